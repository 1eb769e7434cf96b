"""The loss of every method: what is distilled is what was selected, and weighs by its share."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.data.supervision import Batch
from pipeline.methods.catalogue import METHODS
from pipeline.methods.logit_distillation import standardised
from pipeline.training.feature_terms import feature_term
from pipeline.training.student_loss import (
    DistillationLoss,
    DistillationSettings,
    Outputs,
    PlainLoss,
    Weights,
)
from stages.config.training import TrainStudentConfig
from tests.support.cases import looped

NUM_ROWS, NUM_CLASSES, STUDENT_DIM, TEACHER_DIM = 24, 5, 6, 7
LABELS = np.arange(100) % NUM_CLASSES
EVERY_METHOD = pytest.mark.parametrize("method", METHODS)


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(selected: torch.Tensor) -> Batch:
    """Rows 30 to 53 of a hundred samples."""
    indices = torch.arange(30, 30 + NUM_ROWS)
    return Batch(
        images=torch.zeros(NUM_ROWS, 3, 1, 1, dtype=torch.uint8),
        labels=torch.from_numpy(LABELS)[indices],
        indices=indices,
        soft_labels=drawn(NUM_ROWS, NUM_CLASSES, seed=1).softmax(dim=1).half(),
        selected=selected,
        features=drawn(NUM_ROWS, TEACHER_DIM, seed=2).half(),
    )


def outputs_of(method: str) -> Outputs:
    dim = TEACHER_DIM if method == "simkd" else STUDENT_DIM
    return Outputs(
        logits=drawn(NUM_ROWS, NUM_CLASSES, seed=3).requires_grad_(),
        features=drawn(NUM_ROWS, dim, seed=4).requires_grad_(),
    )


def loss_of(method: str, *, weights: Weights | None = None, **settings) -> DistillationLoss:
    torch.manual_seed(0)
    config = TrainStudentConfig(method=method)
    own = {} if config.method_settings is None else config.method_settings.model_dump()
    own |= {"negatives": 8, "dim": 4} if method == "crd" else {}
    outputs = outputs_of(method)
    term = feature_term(
        method,
        own,
        dims=(outputs.features.shape[1], TEACHER_DIM),
        labels=LABELS,
        seed=0,
    )
    ce, kd, feature = config.weights
    made = DistillationSettings(
        method=method,
        own=own,
        weights=weights or Weights(ce=ce, kd=kd, feature=feature),
        temperature=4.0,
        **settings,
    )
    return DistillationLoss(made, feature_term=term)


MIXED = torch.arange(NUM_ROWS) % 3 != 0
ALL, NONE = torch.ones(NUM_ROWS, dtype=torch.bool), torch.zeros(NUM_ROWS, dtype=torch.bool)


@EVERY_METHOD
@looped("smoothing", [0.0, 0.2])
def test_with_nothing_selected_every_loss_is_cross_entropy_to_the_bit(method, smoothing):
    outputs, batch = outputs_of(method), batch_of(NONE)
    found = loss_of(method, label_smoothing=smoothing)(outputs, batch)
    assert torch.equal(found, PlainLoss(label_smoothing=smoothing)(outputs, batch))
    found.backward()
    assert outputs.logits.grad.isfinite().all()


@EVERY_METHOD
def test_what_is_not_selected_is_not_looked_at(method):
    outputs, batch = outputs_of(method), batch_of(MIXED)
    features, soft_labels = batch.features.clone(), batch.soft_labels.clone()
    features[~MIXED], soft_labels[~MIXED] = torch.nan, 1.0 / NUM_CLASSES
    other = replace(batch, features=features, soft_labels=soft_labels)
    found = loss_of(method)(outputs, batch)
    assert found.isfinite()
    assert torch.equal(found, loss_of(method)(outputs, other))


@EVERY_METHOD
def test_what_is_selected_is_looked_at(method):
    outputs, batch = outputs_of(method), batch_of(MIXED)
    other = replace(batch, features=batch.features.flip(0), soft_labels=batch.soft_labels.flip(0))
    losses = [float(loss_of(method)(outputs, some).detach()) for some in (batch, other)]
    assert abs(losses[0] - losses[1]) > 1e-3 * abs(losses[0])


@EVERY_METHOD
def test_a_part_weighs_by_its_share_of_the_batch(method):
    """The selected rows alone, as a batch of their own, times their share; and plain the rest."""
    outputs, batch = outputs_of(method), batch_of(MIXED)
    rows = MIXED.nonzero().squeeze(1)
    alone = Batch(**{name: getattr(batch, name)[rows] for name in Batch.__dataclass_fields__})
    some = Outputs(logits=outputs.logits[rows], features=outputs.features[rows])
    share = len(rows) / NUM_ROWS
    rest = F.cross_entropy(outputs.logits[~MIXED], batch.labels[~MIXED]) * (1 - share)
    expected = rest + share * loss_of(method)(some, alone)
    torch.testing.assert_close(loss_of(method)(outputs, batch), expected, rtol=1e-5, atol=1e-6)


@EVERY_METHOD
def test_the_weights_weigh_the_terms(method):
    outputs, batch = outputs_of(method), batch_of(ALL)
    unit = {
        name: float(loss_of(method, weights=Weights(**weights))(outputs, batch).detach())
        for name, weights in (
            ("ce", {"ce": 1.0, "kd": 0.0}),
            ("kd", {"ce": 0.0, "kd": 1.0}),
            ("feature", {"ce": 0.0, "kd": 0.0, "feature": 1.0}),
        )
    }
    assert unit["ce"] == pytest.approx(
        float(F.cross_entropy(outputs.logits, batch.labels).detach())
    )
    assert (unit["feature"] != 0.0) == METHODS[method].needs_features
    weights = Weights(ce=0.3, kd=0.7, feature=2.0)
    expected = 0.3 * unit["ce"] + 0.7 * unit["kd"] + 2.0 * unit["feature"]
    found = float(loss_of(method, weights=weights)(outputs, batch).detach())
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].needs_features])
def test_soft_labels_of_a_method_of_features_are_distilled_as_vanilla(method):
    outputs, batch = outputs_of(method), batch_of(MIXED)
    weights = Weights(ce=0.1, kd=0.9)
    expected = loss_of("kd", weights=weights)(outputs, batch)
    assert torch.equal(loss_of(method, weights=weights)(outputs, batch), expected)


def test_the_weight_of_a_warming_method_climbs():
    outputs, batch = outputs_of("dkd"), batch_of(ALL)
    loss = loss_of("dkd")
    losses = []
    for epoch in (0, 9, 19, 20, 239):
        loss.begin_epoch(epoch)
        losses.append(float(loss(outputs, batch).detach()))
    plain = float(PlainLoss()(outputs, batch).detach())
    term = losses[-1] - plain
    assert [value - plain for value in losses] == pytest.approx(
        [term / 20, term / 2, term, term, term], rel=1e-5
    )


@pytest.mark.parametrize("method", ["kd", "dkd"])
def test_standardised_logits_are_those_of_the_loss(method):
    outputs, batch = outputs_of(method), batch_of(MIXED)
    weights = Weights(ce=0.0, kd=1.0)
    found = loss_of(method, weights=weights, standardise=True)(outputs, batch)
    standard = Outputs(logits=standardised(outputs.logits), features=outputs.features)
    hard = F.cross_entropy(outputs.logits[~MIXED], batch.labels[~MIXED]) * (~MIXED).sum() / NUM_ROWS
    of_standard = F.cross_entropy(standard.logits[~MIXED], batch.labels[~MIXED]) * (
        (~MIXED).sum() / NUM_ROWS
    )
    expected = loss_of(method, weights=weights)(standard, batch) - of_standard + hard
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_what_a_method_trains_is_trained():
    for method, trained in {"fitnet": 2, "crd": 4, "kd": 0, "sp": 0, "simkd": 0}.items():
        assert len(list(loss_of(method).parameters())) == trained, method
