"""Training: the loss of a real batch, optimisers, schedules, and the same seed twice."""

import filecmp
import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import functional as vision

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Run
from pipeline.data.loaders import BatchLoader
from pipeline.data.normalisation import Normaliser
from pipeline.data.supervision import Batch, Supervision
from pipeline.data.views import ALL, ViewSpec
from pipeline.errors import PipelineError
from pipeline.methods.sparse_labels import pack
from pipeline.models.zoo import build
from pipeline.runtime import progress
from pipeline.training.student_loss import Outputs, PlainLoss
from stages import train_student
from stages.config.file import with_overrides
from stages.config.root import Config
from tests.support.cases import looped
from tests.support.learners import CPU, kd_loss, learner_of, optimizer_of, schedule_of, train_epoch
from tests.support.workspaces import linked_copy

PLAIN, KD = PlainLoss(), kd_loss()


def of_logits(logits: torch.Tensor) -> Outputs:
    """Outputs of a network, with features that no loss here reads."""
    return Outputs(logits=logits, features=logits[:, :0])


def rates(*, lr=0.4, **settings) -> list[float]:
    """The learning rate of every step, and the one after the last."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = schedule_of(optimizer, **settings)
    found = []
    for _ in range(settings.get("epochs", 3) * settings.get("steps_per_epoch", 7)):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def random_rows(dataset: Dataset) -> np.ndarray:
    """A float16 distribution over ten classes for each sample."""
    drawn = np.random.default_rng(0).dirichlet(np.ones(10), dataset.train.num_samples)
    return drawn.astype(np.float16)


def packed_rows(dense: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same rows with every class listed."""
    probs = torch.from_numpy(dense).float()
    classes = probs.argsort(dim=1, descending=True)
    return pack(probs, classes, torch.from_numpy(labels)).numpy()


def first_batch(dataset: Dataset, selected: bool, *, packed: bool = False) -> Batch:
    """A batch out of the loader, with random soft labels and one flag for all."""
    num_samples, drawn = dataset.train.num_samples, random_rows(dataset)
    if packed:
        drawn = packed_rows(drawn, dataset.train.samples.labels)
    supervision = Supervision(
        soft_labels=[drawn],
        selected=np.full(num_samples, selected),
        labels=dataset.train.samples.labels,
        by_view=False,
        num_classes=10,
        top_k=10 if packed else 0,
    )
    loader = BatchLoader(dataset.train, batch_size=32, order="random", supervision=supervision)
    batches = loader.epoch(0)
    batch = next(batches)
    names = [name for name in Batch.__dataclass_fields__ if name != "features"]
    copied = {name: getattr(batch, name).clone() for name in names}
    batches.close()
    assert np.array_equal(copied["soft_labels"].numpy(), drawn[copied["indices"].numpy()])
    return Batch(**copied)


def test_with_nothing_selected_the_loss_is_cross_entropy_to_the_bit(dataset):
    batch = first_batch(dataset, selected=False)
    logits = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(KD(of_logits(logits), batch), PLAIN(of_logits(logits), batch))


def test_with_everything_selected_the_loss_is_vanilla_distillation(dataset):
    batch = first_batch(dataset, selected=True)
    logits = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
    kl = F.kl_div((logits / 4).log_softmax(dim=1), batch.soft_labels.float(), reduction="batchmean")
    expected = 0.1 * F.cross_entropy(logits, batch.labels) + 0.9 * 16 * kl
    torch.testing.assert_close(KD(of_logits(logits), batch), expected, rtol=1e-6, atol=0)


def test_selected_and_other_rows_add_up(dataset):
    batch = first_batch(dataset, selected=True)
    mixed = replace(batch, selected=batch.indices % 3 == 0)
    logits = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
    ce = F.cross_entropy(logits, batch.labels, reduction="none")
    kd = 16 * F.kl_div(
        (logits / 4).log_softmax(dim=1), batch.soft_labels.float(), reduction="none"
    ).sum(dim=1)
    rows = torch.where(mixed.selected, 0.1 * ce + 0.9 * kd, ce)
    torch.testing.assert_close(KD(of_logits(logits), mixed), rows.mean(), rtol=1e-6, atol=0)


def test_packed_rows_with_every_class_give_loss_and_gradient_of_the_dense_rows(dataset):
    values, gradients = [], []
    for packed in (True, False):
        batch = first_batch(dataset, selected=True, packed=packed)
        dense = batch.soft_labels
        if not packed:  # unpacking divides the float16 rounding out
            dense = dense.float() / dense.float().sum(dim=1, keepdim=True)
        logits = torch.randn(32, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
        mixed = replace(batch, soft_labels=dense, selected=batch.indices % 3 == 0)
        value = KD(of_logits(logits), mixed)
        gradients.extend(torch.autograd.grad(value, logits))
        values.append(value.detach())
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-8)


def test_with_nothing_selected_packed_rows_are_not_used(dataset):
    batch = first_batch(dataset, selected=False, packed=True)
    logits = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(KD(of_logits(logits), batch), PLAIN(of_logits(logits), batch))


def test_sixteen_samples_are_overfitted(dataset):
    torch.manual_seed(0)
    model = build("resnet8a", num_classes=10)
    learner = learner_of(model, dataset, optimizer=optimizer_of(model, lr=0.05))
    loader = BatchLoader(dataset.train, batch_size=16, rows=dataset.training[:16])
    for epoch in range(30):
        metrics = train_epoch(learner, loader.epoch(epoch), num_samples=16, batch_size=16)
    assert (metrics.accuracy, metrics.num_samples) == (1.0, 16)
    assert metrics.loss < 0.02


def test_epoch_metrics_are_means_over_samples_not_batches(dataset):
    model = build("resnet8a", num_classes=10)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    counted = []
    metrics = train_epoch(
        learner_of(model, dataset, optimizer=optimizer_of(model, lr=0.0)),
        BatchLoader(dataset.train, batch_size=100, rows=dataset.training[:130]).epoch(0),
        num_samples=130,
        batch_size=100,
        on_step=counted.append,
    )
    share = (dataset.train.samples.labels[dataset.training[:130]] == 0).mean()
    assert metrics.loss == pytest.approx(math.log(10), rel=1e-6)
    assert metrics.accuracy == pytest.approx(share)
    assert counted == [100, 30]


def student(digits: Config, workspace: Path, precision: str, *, seed: int) -> Run:
    """A student of two epochs in a workspace of its own."""
    linked_copy(digits.workspace, workspace, without=("runs",))
    changes = [
        f"workspace={workspace}",
        f"train_student.precision={precision}",
        f"train_student.seed={seed}",
        "train_student.epochs=2",
    ]
    return train_student.execute(with_overrides(digits, changes))


def test_a_training_shows_the_held_out_accuracy_as_it_goes(digits, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        run = student(digits, tmp_path / "work", "fp32", seed=5)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    shown = f", held out {100 * json.loads(lines[0])['held_out_accuracy']:.1f} %"
    trained = [line for line in caplog.messages if line.startswith("train resnet8a: ")]
    assert {line.rpartition(" s left, ")[2] for line in trained} == {
        "epoch 1/2",
        f"epoch 2/2{shown}",
    }
    evaluated = [line.partition(", ")[0] for line in caplog.messages if "evaluate " in line]
    assert evaluated[-1] == "evaluate test images: 1,347 of 1,347 images"
    count = len(Dataset.open(digits.data_folder).held_out)
    assert evaluated.count(f"evaluate held-out images: {count} of {count} images") == 2


def curve(run: Run) -> list[float]:
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["training_loss"] for line in lines]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_seed_fixes_loss_curve_and_weights_to_the_bit(digits, tmp_path, precision):
    first = student(digits, tmp_path / "first", precision, seed=3)
    second = student(digits, tmp_path / "second", precision, seed=3)
    assert curve(first) == curve(second)
    assert filecmp.cmp(first.weights, second.weights, shallow=False)
    assert first.result.id == second.result.id
    other = student(digits, tmp_path / "other", precision, seed=4) if precision == "fp32" else None
    assert other is None or set(curve(other)).isdisjoint(curve(first))


def test_one_cycle_climbs_to_the_rate_and_falls_to_nothing():
    found = rates(kind="one-cycle", epochs=1, steps_per_epoch=19, warmup=0.3, lr=0.4)

    def between(first, last, share):
        return last + (first - last) * (1 + math.cos(math.pi * share)) / 2

    climb = [between(0.4 / 25, 0.4, step / 5) for step in range(5)]
    fall = [between(0.4, 0.4 / 25e4, (step - 5) / 14) for step in range(5, 20)]
    assert found == pytest.approx(climb + fall, rel=1e-9)
    assert max(found) == found[5] == pytest.approx(0.4, rel=1e-12)
    assert found[-1] < 1e-5


@looped("steps", range(1, 12))
@looped("warmup", [0.01, 0.1, 0.2, 0.25, 0.5, 0.99])
def test_one_cycle_of_any_length_has_rates(steps, warmup):
    found = rates(kind="one-cycle", epochs=1, steps_per_epoch=steps, warmup=warmup, lr=0.4)
    assert len(found) == steps + 1
    assert all(0 < rate <= 0.4 + 1e-12 for rate in found)


def test_cosine_starts_at_the_rate_and_ends_at_zero():
    found = rates(kind="cosine", epochs=3, steps_per_epoch=7, lr=0.4)
    expected = [0.2 * (1 + math.cos(math.pi * step / 21)) for step in range(22)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[0] == 0.4


def test_multi_step_falls_after_its_epochs():
    found = rates(kind="multi-step", epochs=4, steps_per_epoch=3, milestones=(1, 3), lr=0.4)
    assert found == pytest.approx([0.4] * 3 + [0.04] * 6 + [0.004] * 4)


def test_constant_stays():
    assert rates(kind="constant", lr=0.4) == [0.4] * 22


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimisers_take_the_steps_of_their_definition(kind):
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    model = torch.nn.Module()
    model.weight = weight
    optimizer = optimizer_of(model, kind=kind, lr=0.1, weight_decay=0.01)
    expected, first, second = 1.0, 0.0, 0.0
    for step in range(1, 4):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
        gradient = 2 * expected
        if kind == "sgd":
            gradient += 0.01 * expected
            first = 0.9 * first + gradient if step > 1 else gradient
            expected -= 0.1 * (gradient + 0.9 * first)
        else:
            expected -= 0.1 * 0.01 * expected
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            scaled = math.sqrt(second / (1 - 0.999**step)) + 1e-8
            expected -= 0.1 * first / (1 - 0.9**step) / scaled
        assert weight.item() == pytest.approx(expected, rel=1e-9)


def test_a_loss_that_is_not_finite_stops_the_training_in_one_line(dataset):
    model = build("resnet8a", num_classes=10)
    learner = learner_of(model, dataset, optimizer=optimizer_of(model, lr=1e30))
    loader = BatchLoader(dataset.train, batch_size=64)
    message = (
        r"loss became nan in step 2 \(expected a finite number\), on samples 64, 65, .* and 56 more"
    )
    with pytest.raises(PipelineError, match=message):
        train_epoch(learner, loader.epoch(0), num_samples=dataset.train.num_samples, batch_size=64)
    assert learner.num_steps == 1, "the reported step is not taken"


def test_the_normaliser_equals_torchvision():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = vision.normalize(images.float() / 255, mean, std)
    found = Normaliser(mean=mean, std=std, device=CPU)(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_images_stay_channels_last_from_the_loader_to_the_first_layer(dataset):
    model = build("resnet8a", num_classes=10).to(memory_format=torch.channels_last)
    seen = []
    model.conv1.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    loader = BatchLoader(dataset.train, batch_size=64, view_spec=ViewSpec(padding=1, count=ALL))
    num_samples = dataset.train.num_samples
    train_epoch(learner_of(model, dataset), loader.epoch(0), num_samples=num_samples, batch_size=64)
    assert len(seen) == 2 * loader.num_batches
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in seen)
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
