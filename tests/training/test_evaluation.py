"""Evaluation: against definitions, in the loader's order, without touching the network."""

import pytest
import torch
from hypothesis import given
from torch.nn import functional as F

from pipeline.artefacts.dataset import Dataset
from pipeline.data.loaders import BatchLoader
from pipeline.data.normalisation import Normaliser
from pipeline.methods.metrics import CALIBRATION_BINS, agreement, calibration_error, evaluate_logits
from pipeline.models.zoo import build
from pipeline.runtime.device import Runtime
from pipeline.training.evaluation import evaluate
from tests.support.strategies import logit_batches

FP32 = Runtime(device=torch.device("cpu"), precision="fp32")


def calibration_error_by_loop(probs: torch.Tensor, labels: torch.Tensor) -> float:
    """Definition of Guo et al. 2017: bin b is (b/15, (b+1)/15]."""
    total = 0.0
    for b in range(CALIBRATION_BINS):
        inside = [
            i
            for i, row in enumerate(probs.double())
            if b / CALIBRATION_BINS < row.max() <= (b + 1) / CALIBRATION_BINS
        ]
        if inside:
            accuracy = sum(int(probs[i].argmax() == labels[i]) for i in inside) / len(inside)
            confidence = sum(probs[i].max().item() for i in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


@given(logit_batches())
def test_calibration_error_equals_its_definition(batch):
    logits, labels = batch
    probs = logits.softmax(dim=1)
    found = calibration_error(probs, labels)
    assert found == pytest.approx(calibration_error_by_loop(probs, labels), abs=1e-6)
    assert 0.0 <= found <= 1.0


def test_a_sure_and_right_network_is_calibrated_and_a_sure_and_wrong_one_is_not():
    probs = F.one_hot(torch.tensor([0, 1, 2]), 3).float()
    assert calibration_error(probs, torch.tensor([0, 1, 2])) == 0.0
    assert calibration_error(probs, torch.tensor([1, 2, 0])) == 1.0


@given(logit_batches())
def test_order_of_samples_changes_no_number(batch):
    logits, labels = batch
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    first, second = evaluate_logits(logits, labels), evaluate_logits(logits[order], labels[order])
    assert first.accuracy == second.accuracy
    assert first.loss == pytest.approx(second.loss, rel=1e-12)
    assert first.calibration_error == pytest.approx(second.calibration_error, abs=1e-12)
    assert torch.equal(first.predicted[order], second.predicted)


def test_a_network_is_evaluated_on_every_sample_in_order(digits):
    dataset = Dataset.open(digits.data_folder)
    normalise = Normaliser(
        mean=dataset.record.mean, std=dataset.record.std, device=torch.device("cpu")
    )
    torch.manual_seed(0)
    model = build("resnet8a", num_classes=10)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    loader = BatchLoader(dataset.train, batch_size=100, rows=dataset.held_out)
    found = evaluate(model, loader.view(0), normalise=normalise, runtime=FP32)
    with torch.inference_mode():
        images = torch.cat([batch.images.clone() for batch in loader.view(0)])
        logits = model.eval()(normalise(images))
    labels = torch.from_numpy(dataset.train.samples.labels[dataset.held_out])
    assert torch.equal(found.predicted, logits.argmax(dim=1))
    assert found.accuracy == (logits.argmax(dim=1) == labels).double().mean().item()
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert len(found.predicted) == len(dataset.held_out)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_agreement_is_the_share_of_equal_classes():
    assert agreement(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 0, 0])) == 0.5
