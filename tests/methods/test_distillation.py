import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from pipeline.methods.distillation import distillation_loss, kd_loss_rows
from tests.support.cases import looped

SETTING = {"lambda_ce": 0.1, "lambda_kd": 0.9, "temperature": 4.0}
BATCH_SIZES = [*range(1, 34), 64, 100, 128, 200, 256, 511]


def batch_of(batch_size, *, num_classes=10, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1000 * batch_size + seed)
    logits = 3 * torch.randn(batch_size, num_classes, generator=generator, dtype=dtype)
    labels = torch.randint(num_classes, (batch_size,), generator=generator)
    teacher = 8 * torch.randn(batch_size, num_classes, generator=generator, dtype=dtype)
    selected = torch.rand(batch_size, generator=generator) < 0.5
    return logits, labels, torch.softmax(teacher / 4, dim=1), selected


def value_and_gradient(function, logits):
    logits = logits.clone().requires_grad_()
    value = function(logits)
    value.backward()
    return value.detach(), logits.grad


def assert_equal_to_the_bit(actual, expected, logits):
    for ours, theirs in zip(
        value_and_gradient(actual, logits), value_and_gradient(expected, logits), strict=True
    ):
        assert torch.equal(ours, theirs)


@looped("batch_size, num_classes", itertools.product(BATCH_SIZES, [2, 10, 100]))
def test_nothing_selected_is_cross_entropy_to_the_bit(batch_size, num_classes):
    logits, labels, soft, _ = batch_of(batch_size, num_classes=num_classes)
    nothing = torch.zeros(batch_size, dtype=torch.bool)
    assert_equal_to_the_bit(
        lambda z: distillation_loss(z, labels, soft_labels=soft, selected=nothing, **SETTING),
        lambda z: F.cross_entropy(z, labels),
        logits,
    )


@pytest.mark.parametrize(
    "setting", [SETTING, {"lambda_ce": 1.0, "lambda_kd": 0.3, "temperature": 3.0}]
)
@looped("batch_size, num_classes", itertools.product(BATCH_SIZES, [2, 10, 100]))
def test_everything_selected_is_vanilla_distillation_to_the_bit(batch_size, num_classes, setting):
    logits, labels, soft, _ = batch_of(batch_size, num_classes=num_classes)
    everything = torch.ones(batch_size, dtype=torch.bool)

    def vanilla(z):
        tau = setting["temperature"]
        kd = F.kl_div(F.log_softmax(z / tau, dim=1), soft, reduction="batchmean")
        return (
            setting["lambda_ce"] * F.cross_entropy(z, labels) + setting["lambda_kd"] * tau**2 * kd
        )

    assert_equal_to_the_bit(
        lambda z: distillation_loss(z, labels, soft_labels=soft, selected=everything, **setting),
        vanilla,
        logits,
    )


def loss_by_loops(logits, labels, soft, selected, *, lambda_ce, lambda_kd, temperature):
    total = 0.0
    for z, y, t, s in zip(
        logits.tolist(), labels.tolist(), soft.tolist(), selected.tolist(), strict=True
    ):
        ce = math.log(sum(math.exp(v) for v in z)) - z[y]
        norm = math.log(sum(math.exp(v / temperature) for v in z))
        kd = sum(
            p * (math.log(p) - v / temperature + norm) for p, v in zip(t, z, strict=True) if p > 0
        )
        total += lambda_ce * ce + lambda_kd * temperature**2 * kd if s else ce
    return total / len(labels)


@given(seed=st.integers(0, 10**6), batch_size=st.integers(1, 9), tau=st.sampled_from([1.0, 4.0]))
def test_loss_equals_the_equation_in_plain_loops(seed, batch_size, tau):
    logits, labels, soft, selected = batch_of(batch_size, seed=seed, dtype=torch.float64)
    soft[0] = F.one_hot(labels[0], 10)
    setting = SETTING | {"temperature": tau}
    actual = distillation_loss(logits, labels, soft_labels=soft, selected=selected, **setting)
    assert float(actual) == pytest.approx(
        loss_by_loops(logits, labels, soft, selected, **setting), rel=1e-12
    )


@given(seed=st.integers(0, 10**6))
def test_order_within_the_batch_does_not_matter(seed):
    logits, labels, soft, selected = batch_of(16, seed=seed, dtype=torch.float64)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    assert_close(
        distillation_loss(logits, labels, soft_labels=soft, selected=selected, **SETTING),
        distillation_loss(
            logits[order],
            labels[order],
            soft_labels=soft[order],
            selected=selected[order],
            **SETTING,
        ),
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_student_that_equals_its_teacher_has_no_distillation_loss(temperature):
    logits, *_ = batch_of(32, dtype=torch.float64)
    soft = torch.softmax(logits / temperature, dim=1)
    rows, gradient = value_and_gradient(
        lambda z: kd_loss_rows(z, soft, temperature=temperature).sum(), logits
    )
    assert_close(rows, torch.zeros_like(rows), rtol=0, atol=1e-12)
    assert_close(gradient, torch.zeros_like(logits), rtol=0, atol=1e-12)


def test_zeros_in_soft_labels_are_finite_and_give_cross_entropy_for_one_hot_rows():
    logits, labels, *_ = batch_of(8)
    onehot = F.one_hot(labels, 10).float()
    expected = F.cross_entropy(logits, labels, reduction="none")
    assert_close(kd_loss_rows(logits, onehot, temperature=1.0), expected)


def test_rows_that_are_not_selected_do_not_read_their_soft_labels():
    logits, labels, soft, selected = batch_of(16)
    other = torch.where(selected[:, None], soft, soft.flip(1))
    losses = [
        distillation_loss(logits, labels, soft_labels=t, selected=selected, **SETTING)
        for t in (soft, other)
    ]
    assert torch.equal(*losses)


def test_gradient_equals_finite_differences():
    logits, labels, soft, selected = batch_of(5, num_classes=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: distillation_loss(z, labels, soft_labels=soft, selected=selected, **SETTING),
        logits.requires_grad_(),
    )


def test_half_precision_logits_are_computed_in_float32_also_under_autocast():
    logits, labels, soft, selected = batch_of(64)
    logits, soft = logits.bfloat16(), soft.half()
    setting = {"selected": selected, **SETTING}
    expected = distillation_loss(logits.float(), labels, soft_labels=soft.float(), **setting)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = distillation_loss(logits, labels, soft_labels=soft, **setting)
    assert torch.equal(actual, expected)
