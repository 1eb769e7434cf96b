"""Parts of a step: parts of a batch, clipping, averages, low precision, compilation."""

import math

import pytest
import torch

from pipeline.data.loaders import BatchLoader
from pipeline.errors import PipelineError
from pipeline.runtime.device import Runtime
from pipeline.training.learner import Learner, StepRules
from pipeline.training.student_loss import PlainLoss
from tests.support.learners import CPU, learner_of, optimizer_of, train_epoch
from tests.support.networks import Small

ROWS = 100


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def weights_of(model) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def trained(dataset, *, batch_size: int, epochs: int = 2, **settings) -> Learner:
    model = small()
    learner = learner_of(model, dataset, optimizer=optimizer_of(model, lr=0.05), **settings)
    loader = BatchLoader(dataset.train, batch_size=batch_size, rows=dataset.training[:ROWS])
    for epoch in range(epochs):
        train_epoch(learner, loader.epoch(epoch), num_samples=ROWS, batch_size=batch_size)
    return learner


def test_accumulated_batches_step_like_the_batch_that_they_are_parts_of(dataset):
    """100 rows in batches of 12, three to a step: 36, 36, and 28 in a whole and a small batch."""
    parts = trained(dataset, batch_size=12, rules=StepRules(accumulate=3))
    whole = trained(dataset, batch_size=36)
    assert parts.num_steps == whole.num_steps == 6
    torch.testing.assert_close(
        weights_of(parts.model), weights_of(whole.model), rtol=1e-5, atol=1e-7
    )
    assert not torch.allclose(weights_of(small()), weights_of(whole.model), atol=1e-3)


def test_metrics_of_accumulated_batches_are_means_over_samples(dataset):
    found = []
    for batch_size, accumulate in ((12, 3), (36, 1)):
        model = small()
        learner = learner_of(
            model,
            dataset,
            optimizer=optimizer_of(model, lr=0.0),
            rules=StepRules(accumulate=accumulate),
        )
        loader = BatchLoader(dataset.train, batch_size=batch_size, rows=dataset.training[:ROWS])
        counted = []
        found.append(
            train_epoch(
                learner,
                loader.epoch(0),
                num_samples=ROWS,
                batch_size=batch_size,
                on_step=counted.append,
            )
        )
        assert counted == [36, 36, 28]
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-6)
    assert found[0].accuracy == found[1].accuracy


@pytest.mark.parametrize("bound", [1e-3, 1e3])
def test_a_gradient_is_not_longer_than_its_bound(dataset, bound):
    """Plain gradient descent: a step is the rate times the gradient."""
    model = small()
    optimizer = optimizer_of(model, lr=1.0, momentum=0.0, nesterov=False)
    learner = learner_of(model, dataset, optimizer=optimizer, rules=StepRules(clip_norm=bound))
    before = weights_of(model)
    loader = BatchLoader(dataset.train, batch_size=ROWS, rows=dataset.training[:ROWS])
    train_epoch(learner, loader.epoch(0), num_samples=ROWS, batch_size=ROWS)
    length = float((weights_of(model) - before).norm())
    free = trained_length(dataset)
    assert length == pytest.approx(min(bound, free), rel=1e-3)


def trained_length(dataset) -> float:
    model = small()
    optimizer = optimizer_of(model, lr=1.0, momentum=0.0, nesterov=False)
    before = weights_of(model)
    loader = BatchLoader(dataset.train, batch_size=ROWS, rows=dataset.training[:ROWS])
    learner = learner_of(model, dataset, optimizer=optimizer)
    train_epoch(learner, loader.epoch(0), num_samples=ROWS, batch_size=ROWS)
    return float((weights_of(model) - before).norm())


def test_the_average_is_that_of_the_weights_after_every_step(dataset):
    model = small()
    optimizer = optimizer_of(model, lr=0.05)
    learner = learner_of(model, dataset, optimizer=optimizer, rules=StepRules(ema_decay=0.8))
    loader = BatchLoader(dataset.train, batch_size=10, rows=dataset.training[:ROWS])
    seen = []
    train_epoch(
        learner,
        loader.epoch(0),
        num_samples=ROWS,
        batch_size=10,
        on_step=lambda _: seen.append(weights_of(model)),
    )
    expected = seen[0]
    for weights in seen[1:]:
        expected = 0.8 * expected + 0.2 * weights
    torch.testing.assert_close(weights_of(learner.evaluated), expected, rtol=1e-5, atol=1e-7)
    assert learner.evaluated is not model


def test_without_an_average_the_network_itself_is_evaluated(dataset):
    learner = trained(dataset, batch_size=50, epochs=1)
    assert learner.evaluated is learner.model


def test_norms_and_biases_can_be_left_out_of_the_decay():
    model = small()
    groups = optimizer_of(model, weight_decay=0.3, decay_norms=False).param_groups
    decayed, others = ({id(w) for w in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert decayed == {id(model.conv.weight), id(model.fc.weight)}
    assert others == {
        id(weight)
        for weight in (model.conv.bias, model.norm.weight, model.norm.bias, model.fc.bias)
    }


def test_weights_that_are_frozen_are_not_given_to_the_optimiser():
    model = small()
    model.fc.requires_grad_(False)
    (group,) = optimizer_of(model).param_groups
    assert {id(w) for w in group["params"]}.isdisjoint({id(w) for w in model.fc.parameters()})
    assert len(group["params"]) == 4


def test_float16_trains_and_a_step_that_overflows_is_left_out(dataset):
    fp16 = Runtime(device=CPU, precision="fp16")
    learner = trained(dataset, batch_size=50, runtime=fp16)
    plain = trained(dataset, batch_size=50)
    torch.testing.assert_close(
        weights_of(learner.model), weights_of(plain.model), rtol=0.05, atol=0.01
    )
    model = small()
    learner = learner_of(model, dataset, Scaled(1e6), runtime=fp16)
    before, steps = weights_of(model), learner.schedule.last_epoch
    loader = BatchLoader(dataset.train, batch_size=ROWS, rows=dataset.training[:ROWS])
    train_epoch(learner, loader.epoch(0), num_samples=ROWS, batch_size=ROWS)
    assert torch.equal(weights_of(model), before)
    assert learner.schedule.last_epoch == steps


class Scaled(PlainLoss):
    """Cross-entropy times a number: scaled once more, its gradient overflows float16."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def forward(self, outputs, batch):
        return self._factor * super().forward(outputs, batch)


def test_a_loss_that_is_not_finite_is_reported_with_step_and_samples(dataset):
    learner = learner_of(small(), dataset, Scaled(math.nan))
    rows = dataset.training[:ROWS]
    loader = BatchLoader(dataset.train, batch_size=10, rows=rows)
    line = rf"became nan in step 1 .* on samples {rows[0]}, {rows[1]}, .* and 2 more\. Lower `lr`"
    with pytest.raises(PipelineError, match=line):
        train_epoch(learner, loader.epoch(0), num_samples=ROWS, batch_size=10)


@pytest.mark.slow
def test_a_compiled_network_trains_like_the_network(dataset):
    compiled = trained(dataset, batch_size=50, rules=StepRules(compile=True))
    plain = trained(dataset, batch_size=50)
    torch.testing.assert_close(
        weights_of(compiled.model), weights_of(plain.model), rtol=1e-4, atol=1e-6
    )
