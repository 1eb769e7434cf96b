import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from pipeline.methods.distillation import kd_loss_rows
from pipeline.methods.logit_distillation import (
    at_temperature,
    dist_loss,
    dkd_rows,
    mlkd_loss,
    nkd_rows,
    standardised,
)
from tests.support.cases import looped

DKD = {"alpha": 1.0, "beta": 8.0}
NKD = {"gamma": 1.5}
DIST = {"beta": 2.0, "gamma": 3.0}
MLKD = {"temperatures": (2.0, 3.0, 5.0)}
LOSSES = {
    "dkd": lambda z, p, y, tau: dkd_rows(z, p, y, temperature=tau, **DKD),
    "nkd": lambda z, p, y, tau: nkd_rows(z, p, y, temperature=tau, **NKD),
    "dist": lambda z, p, _, tau: dist_loss(z, p, temperature=tau, **DIST),
    "mlkd": lambda z, p, _, tau: mlkd_loss(z, p, temperature=tau, **MLKD),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
seeds, batch_sizes = st.integers(0, 10**6), st.integers(1, 7)
class_counts, temperatures = st.integers(2, 8), st.sampled_from([0.7, 1.0, 4.0])


def batch_of(batch_size, num_classes=6, *, seed=0, dtype=torch.float64):
    """Logits, soft labels and labels; row 0 is one-hot at its label, row 1 at a class besides,
    and the others have a zero."""
    generator = torch.Generator().manual_seed(1000 * batch_size + 10 * num_classes + seed)
    logits = 3 * torch.randn(batch_size, num_classes, generator=generator, dtype=dtype)
    labels = torch.randint(num_classes, (batch_size,), generator=generator)
    teacher = 2 * torch.randn(batch_size, num_classes, generator=generator, dtype=dtype)
    zeros = torch.randint(num_classes, (batch_size, 1), generator=generator)
    teacher = teacher.scatter(1, zeros, -math.inf)
    soft = torch.softmax(teacher, dim=1)
    soft[0] = F.one_hot(labels[0], num_classes)
    if batch_size > 1:
        soft[1] = F.one_hot((labels[1] + 1) % num_classes, num_classes)
    return logits, soft, labels


def value_and_gradient(function, logits):
    logits = logits.clone().requires_grad_()
    value = function(logits)
    value.sum().backward()
    return value.detach(), logits.grad


# The formulas again, in plain loops over lists.


def softmax(row, tau=1.0):
    powers = [math.exp((value - max(row)) / tau) for value in row]
    return [power / sum(powers) for power in powers]


def normalised(row):
    return [value / sum(row) for value in row]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def without(row, label):
    return [value for index, value in enumerate(row) if index != label]


def dkd_by_loops(z, p, y, tau):
    q = softmax(z, tau)
    tckd = kl([p[y], sum(without(p, y))], [q[y], sum(without(q, y))])
    nckd = 0.0
    if sum(without(p, y)) > 0:
        nckd = kl(normalised(without(p, y)), normalised(without(q, y)))
    return tau**2 * (DKD["alpha"] * tckd + DKD["beta"] * nckd)


def nkd_by_loops(z, p, y, tau):
    p_at_1 = normalised([value**tau for value in p])
    loss = -p_at_1[y] * math.log(softmax(z)[y])
    if sum(without(p, y)) > 0:
        q = softmax(without(z, y), tau)
        for a, b in zip(normalised(without(p, y)), q, strict=True):
            loss -= NKD["gamma"] * tau**2 * a * math.log(b)
    return loss


def pearson(u, v):
    u = [value - math.fsum(u) / len(u) for value in u]
    v = [value - math.fsum(v) / len(v) for value in v]
    lengths = math.sqrt(sum(a * a for a in u)) * math.sqrt(sum(b * b for b in v))
    return sum(a * b for a, b in zip(u, v, strict=True)) / (lengths + 1e-8)


def mean_disagreement(rows, others):
    return sum(1 - pearson(u, v) for u, v in zip(rows, others, strict=True)) / len(rows)


def dist_by_loops(z, p, tau):
    q = [softmax(row, tau) for row in z]
    over_samples = mean_disagreement(transposed(q), transposed(p))
    return tau**2 * (DIST["beta"] * mean_disagreement(q, p) + DIST["gamma"] * over_samples)


def minus(u, v):
    return [a - b for a, b in zip(u, v, strict=True)]


def transposed(rows):
    return [list(column) for column in zip(*rows, strict=True)]


def gram(rows):
    return [[sum(a * b for a, b in zip(u, v, strict=True)) for v in rows] for u in rows]


def squared_gap(rows, others):
    gap = [minus(u, v) for u, v in zip(gram(rows), gram(others), strict=True)]
    return sum(value**2 for row in gap for value in row)


def mlkd_by_loops(z, p, tau):
    loss = 0.0
    for other in MLKD["temperatures"]:
        p_there = [normalised([value ** (tau / other) for value in row]) for row in p]
        q_there = [softmax(row, other) for row in z]
        of_rows = [kl(a, b) for a, b in zip(p_there, q_there, strict=True)]
        loss += other**2 * sum(of_rows) / len(z)
        loss += squared_gap(p_there, q_there) / len(z)
        loss += squared_gap(transposed(p_there), transposed(q_there)) / len(z[0])
    return loss


BY_LOOPS = {
    "dkd": lambda z, p, y, tau: [dkd_by_loops(*row, tau) for row in zip(z, p, y, strict=True)],
    "nkd": lambda z, p, y, tau: [nkd_by_loops(*row, tau) for row in zip(z, p, y, strict=True)],
    "dist": lambda z, p, _, tau: dist_by_loops(z, p, tau),
    "mlkd": lambda z, p, _, tau: mlkd_by_loops(z, p, tau),
}


@every_loss
@given(seed=seeds, batch_size=batch_sizes, num_classes=class_counts, tau=temperatures)
def test_each_loss_equals_its_equation_in_plain_loops(name, seed, batch_size, num_classes, tau):
    z, p, y = batch_of(batch_size, num_classes, seed=seed)
    expected = BY_LOOPS[name](z.tolist(), p.tolist(), y.tolist(), tau)
    expected = torch.tensor(expected, dtype=torch.float64)
    assert_close(LOSSES[name](z, p, y, tau), expected, rtol=1e-9, atol=1e-11)


@every_loss
@looped("shape, tau", itertools.product([(1, 2), (1, 5), (3, 2), (5, 4)], [1.0, 4.0]))
def test_gradients_equal_finite_differences(name, shape, tau):
    z, p, y = batch_of(*shape)
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, p, y, tau), z.requires_grad_())


@every_loss
@given(seed=seeds, batch_size=batch_sizes)
def test_order_within_the_batch_does_not_matter(name, seed, batch_size):
    z, p, y = batch_of(batch_size, seed=seed)
    order = torch.randperm(batch_size, generator=torch.Generator().manual_seed(seed))
    expected = LOSSES[name](z, p, y, 4.0)
    expected = expected[order] if expected.ndim else expected
    assert_close(LOSSES[name](z[order], p[order], y[order], 4.0), expected)


@every_loss
@given(seed=seeds, batch_size=batch_sizes)
def test_order_of_the_classes_does_not_matter(name, seed, batch_size):
    z, p, y = batch_of(batch_size, seed=seed)
    order = torch.randperm(z.shape[1], generator=torch.Generator().manual_seed(seed))
    moved = LOSSES[name](z[:, order], p[:, order], order.argsort()[y], 4.0)
    assert_close(moved, LOSSES[name](z, p, y, 4.0))


@every_loss
@given(seed=seeds, batch_size=batch_sizes)
def test_a_constant_added_to_the_logits_of_a_row_changes_nothing(name, seed, batch_size):
    z, p, y = batch_of(batch_size, seed=seed)
    constants = 100 * torch.arange(batch_size, dtype=torch.float64)[:, None]
    assert_close(LOSSES[name](z + constants, p, y, 4.0), LOSSES[name](z, p, y, 4.0))


@pytest.mark.parametrize("name", ["dkd", "dist", "mlkd"])
@looped("tau", [1.0, 4.0])
def test_a_student_that_equals_its_teacher_has_no_loss(name, tau):
    z, _, y = batch_of(16)
    p = torch.softmax(z / tau, dim=1)
    value, gradient = value_and_gradient(lambda z: LOSSES[name](z, p, y, tau), z)
    tolerance = 1e-4 if name == "dist" else 1e-12  # DIST's 1e-8 against products of lengths
    assert_close(value, torch.zeros_like(value), rtol=0, atol=tolerance)
    assert_close(gradient, torch.zeros_like(z), rtol=0, atol=tolerance)


@every_loss
@looped("tau", [1.0, 4.0])
def test_another_student_has_a_larger_loss(name, tau):
    z, _, y = batch_of(16)
    p = torch.softmax(z / tau, dim=1)
    y = p.argmax(dim=1)  # NKD asks for more of the label than the teacher gives
    other = z.scatter_add(1, y[:, None], torch.full((16, 1), -1.0, dtype=z.dtype))
    assert (LOSSES[name](other, p, y, tau) > LOSSES[name](z, p, y, tau)).all()


@looped("tau", [1.0, 3.0])
def test_nkd_of_a_student_that_equals_its_teacher_still_pulls_the_label_up(tau):
    z, _, y = batch_of(16)
    p, p_at_1 = torch.softmax(z / tau, dim=1), torch.softmax(z, dim=1)
    value, gradient = value_and_gradient(lambda z: nkd_rows(z, p, y, temperature=tau, gamma=1.5), z)
    trust = p_at_1.gather(1, y[:, None])
    assert_close(gradient, trust * (p_at_1 - F.one_hot(y, 6)), rtol=0, atol=1e-12)
    assert (value > 0).all()


@given(seed=seeds, num_classes=class_counts, tau=temperatures)
def test_vanilla_is_the_decoupled_parts_weighed_by_what_the_label_leaves(seed, num_classes, tau):
    z, p, y = batch_of(6, num_classes, seed=seed)
    tckd = dkd_rows(z, p, y, temperature=tau, alpha=1.0, beta=0.0)
    nckd = dkd_rows(z, p, y, temperature=tau, alpha=0.0, beta=1.0)
    left = 1 - p.gather(1, y[:, None]).squeeze(1)
    assert_close(tckd + left * nckd, kd_loss_rows(z, p, temperature=tau))


def test_dkd_of_two_classes_is_vanilla_for_every_beta():
    z, p, y = batch_of(8, 2)
    rows = dkd_rows(z, p, y, temperature=4.0, alpha=3.0, beta=7.0)
    assert_close(rows, 3 * kd_loss_rows(z, p, temperature=4.0))


@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_one_hot_rows_at_temperature_1_give_cross_entropy(name):
    z, _, y = batch_of(8)
    onehot = F.one_hot(y, 6).double()
    assert_close(LOSSES[name](z, onehot, y, 1.0), F.cross_entropy(z, y, reduction="none"))


def test_nkd_trusts_the_label_as_the_teacher_does_at_temperature_1():
    z, _, y = batch_of(8)
    p = torch.softmax(torch.randn(8, 6, generator=torch.Generator().manual_seed(3)).double(), 1)
    rows = nkd_rows(z, at_temperature(p, found=1.0, wanted=4.0), y, temperature=4.0, gamma=0.0)
    trust = p.gather(1, y[:, None]).squeeze(1)
    assert_close(rows, trust * F.cross_entropy(z, y, reduction="none"))


@given(seed=seeds, keep=st.floats(0.2, 1.0))
def test_dist_leaves_the_scale_of_the_teacher_open(seed, keep):
    z, *_ = batch_of(16, seed=seed)
    q = torch.softmax(z / 4, dim=1)
    flatter = keep * q + (1 - keep) / 6
    assert float(dist_loss(z, flatter, temperature=4.0, **DIST)) == pytest.approx(0, abs=1e-4)


@given(seed=seeds, batch_size=batch_sizes, tau=temperatures)
def test_dist_is_between_agreement_and_opposition(seed, batch_size, tau):
    z, p, _ = batch_of(batch_size, seed=seed)
    loss = float(dist_loss(z, p, temperature=tau, **DIST))
    assert 0 <= loss <= 2 * tau**2 * (DIST["beta"] + DIST["gamma"])


def test_dist_of_a_batch_of_one_compares_classes_alone():
    z, p, _ = batch_of(1)
    whole, its_gradient = value_and_gradient(
        lambda z: dist_loss(z, p, temperature=4.0, beta=2.0, gamma=3.0), z
    )
    part, gradient = value_and_gradient(
        lambda z: dist_loss(z, p, temperature=4.0, beta=2.0, gamma=0.0), z
    )
    assert float(whole) == pytest.approx(float(part) + 3.0 * 4.0**2)
    assert torch.equal(its_gradient, gradient)


def test_dist_learns_nothing_from_a_class_that_the_teacher_never_varies():
    z, p, _ = batch_of(8)
    p[:, 2] = 0.0
    p = p / p.sum(dim=1, keepdim=True)
    _, gradient = value_and_gradient(
        lambda z: dist_loss(z, p, temperature=1.0, beta=0.0, gamma=6.0), z
    )
    listed = [0, 1, 3, 4, 5]

    def of_the_others(z):
        q = torch.softmax(z, dim=1)[:, listed]
        q, teacher = q - q.mean(0), p[:, listed] - p[:, listed].mean(0)
        return -F.cosine_similarity(q, teacher, dim=0).sum()

    assert_close(gradient, value_and_gradient(of_the_others, z)[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dist_of_a_student_that_cannot_tell_anything_apart_yet_is_finite(dtype):
    _, p, _ = batch_of(8, dtype=dtype)
    z = torch.zeros(8, 6, dtype=dtype)
    value, gradient = value_and_gradient(lambda z: dist_loss(z, p, temperature=4.0, **DIST), z)
    assert float(value) == 4.0**2 * (DIST["beta"] + DIST["gamma"])
    assert torch.equal(gradient, torch.zeros_like(z))


def test_mlkd_adds_up_over_temperatures():
    z, p, _ = batch_of(8)
    parts = [mlkd_loss(z, p, temperature=4.0, temperatures=(tau,)) for tau in (2.0, 4.0)]
    assert_close(mlkd_loss(z, p, temperature=4.0, temperatures=(2.0, 4.0)), sum(parts))


def test_mlkd_exceeds_vanilla_by_how_samples_relate_where_classes_relate_alike():
    z, *_ = batch_of(8)
    p, q = torch.softmax(z.flip(0) / 4, dim=1), torch.softmax(z / 4, dim=1)
    vanilla = kd_loss_rows(z, p, temperature=4.0).mean()
    found = mlkd_loss(z, p, temperature=4.0, temperatures=(4.0,))
    assert_close(found - vanilla, (p @ p.T - q @ q.T).square().sum() / 8)


@every_loss
@looped(
    "scale, shape, tau",
    itertools.product([1.0, 1e4], [(1, 2), (1, 6), (4, 2), (16, 100)], [1.0, 4.0]),
)
def test_huge_logits_and_exact_zeros_give_finite_losses_and_gradients(name, scale, shape, tau):
    z, p, y = batch_of(*shape, dtype=torch.float32)
    value, gradient = value_and_gradient(lambda z: LOSSES[name](z, p, y, tau), scale * z.sign())
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_a_label_that_the_student_excludes_costs_what_its_logit_lacks():
    z, y = torch.tensor([[-1e4, 0.0, 0.0]]), torch.tensor([0])
    p = torch.tensor([[1.0, 0.0, 0.0]])
    expected = torch.tensor([1e4 + math.log(2)])
    assert_close(dkd_rows(z, p, y, temperature=1.0, **DKD), expected)
    assert_close(nkd_rows(z, p, y, temperature=1.0, **NKD), expected)


def test_a_label_that_the_student_is_sure_of_does_not_hide_the_other_classes():
    z, y = torch.tensor([[0.0, -1e4, -1e4]]), torch.tensor([0])
    p = torch.tensor([[0.0, 1.0, 0.0]])
    others = math.log(2)
    dkd, nkd = DKD["alpha"] * (1e4 - others) + DKD["beta"] * others, NKD["gamma"] * others
    assert_close(dkd_rows(z, p, y, temperature=1.0, **DKD), torch.tensor([dkd]))
    assert_close(nkd_rows(z, p, y, temperature=1.0, **NKD), torch.tensor([nkd]))


@every_loss
@looped("num_classes", [2, 100])
def test_float32_is_close_to_float64_and_float64_is_kept(name, num_classes):
    z, p, y = batch_of(32, num_classes, dtype=torch.float32)
    single = LOSSES[name](z, p, y, 4.0)
    double = LOSSES[name](z.double(), p.double(), y, 4.0)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert_close(single.double(), double, rtol=1e-5, atol=1e-6)


@every_loss
def test_half_precision_logits_are_computed_in_float32_also_under_autocast(name):
    z, p, y = batch_of(32, dtype=torch.float32)
    z, p = z.bfloat16(), p.half()
    expected = LOSSES[name](z.float(), p.float(), y, 4.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LOSSES[name](z, p, y, 4.0), expected)


@given(seed=seeds, batch_size=batch_sizes, num_classes=class_counts)
def test_standardised_rows_have_mean_0_and_deviation_1(seed, batch_size, num_classes):
    z, *_ = batch_of(batch_size, num_classes, seed=seed)
    for row, found in zip(z.tolist(), standardised(z).tolist(), strict=True):
        mean = sum(row) / num_classes
        deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / num_classes)
        assert found == pytest.approx([(value - mean) / deviation for value in row])
        assert max(map(abs, found)) <= math.sqrt(num_classes - 1) + 1e-9


@given(seed=seeds, factor=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_standardised_logits_do_not_tell_scale_and_shift(seed, factor, shift):
    z, *_ = batch_of(4, seed=seed)
    assert_close(standardised(factor * z + shift), standardised(z), rtol=1e-6, atol=1e-8)
    assert_close(standardised(-z), -standardised(z))


def test_a_row_of_equal_logits_standardises_to_0_without_gradient():
    z = torch.tensor([[2.1, 2.1, 2.1], [1.0, 2.0, 4.0]])
    weights = torch.tensor([[1.0, 2.0, 3.0]])
    value, gradient = value_and_gradient(lambda z: standardised(z) * weights, z)
    assert value[0].tolist() == [0.0, 0.0, 0.0] == gradient[0].tolist()
    assert gradient[1].isfinite().all()
    assert gradient[1].abs().sum() > 0


def test_gradient_of_standardised_logits_equals_finite_differences():
    z, *_ = batch_of(3)
    assert torch.autograd.gradcheck(standardised, z.requires_grad_())


@pytest.mark.parametrize("found", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("wanted", [0.5, 1.0, 4.0, 6.0])
def test_probabilities_at_another_temperature_are_those_of_the_logits(found, wanted):
    z, *_ = batch_of(16)
    actual = at_temperature(torch.softmax(z / found, dim=1), found=found, wanted=wanted)
    assert_close(actual, torch.softmax(z / wanted, dim=1))


@given(seed=seeds, batch_size=batch_sizes, found=temperatures, wanted=temperatures)
def test_another_temperature_keeps_zeros_order_and_mass(seed, batch_size, found, wanted):
    _, p, _ = batch_of(batch_size, seed=seed)
    actual = at_temperature(p, found=found, wanted=wanted)
    assert torch.equal(actual == 0, p == 0)
    assert torch.equal(actual.argsort(dim=1, stable=True), p.argsort(dim=1, stable=True))
    assert_close(actual.sum(dim=1), torch.ones(batch_size, dtype=p.dtype))
    assert_close(at_temperature(actual, found=wanted, wanted=found), p)


def test_a_high_power_of_many_small_probabilities_does_not_underflow():
    p = torch.full((1, 10_000), 1e-4)
    assert_close(at_temperature(p, found=20.0, wanted=1.0), p)
