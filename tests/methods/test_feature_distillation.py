import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pipeline.methods import feature_distillation
from pipeline.methods.feature_distillation import (
    cc_loss,
    feature_map,
    fitnet_rows,
    pkt_loss,
    rkd_loss,
    sp_loss,
    unit_rows,
)
from tests.support.cases import looped

WEIGHTS = {"distance": 25.0, "angle": 50.0}
RELATIONS = {
    "rkd": lambda s, t: rkd_loss(s, t, **WEIGHTS),
    "pkt": pkt_loss,
    "sp": sp_loss,
    "cc": lambda s, t: cc_loss(s, t, gamma=0.4),
}
ALL = RELATIONS | {"fitnet": lambda s, t: fitnet_rows(s, t).mean()}
relations = pytest.mark.parametrize("name", RELATIONS)
all_losses = pytest.mark.parametrize("name", ALL)


def features_of(batch_size, dim, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1000 * batch_size + 10 * dim + seed)
    return 2 * torch.randn(batch_size, dim, generator=generator, dtype=dtype) + 0.5


def rotation(dim):
    return torch.linalg.qr(features_of(dim, dim, seed=5))[0]


# The formulas again, in plain loops over lists.


def inner(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def minus(x, y):
    return [a - b for a, b in zip(x, y, strict=True)]


def cosine(x, y):
    lengths = math.sqrt(inner(x, x)) * math.sqrt(inner(y, y))
    return inner(x, y) / lengths if lengths > 0 else 0.0


def huber(x, y):
    return (x - y) ** 2 / 2 if abs(x - y) <= 1 else abs(x - y) - 0.5


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def rkd_by_loops(student, teacher, distance=25.0, angle=50.0):
    samples = range(len(student))
    psi = []
    for rows in (student, teacher):
        apart = [[math.dist(x, y) for y in rows] for x in rows]
        positive = [d for row in apart for d in row if d > 0]
        mu = mean(positive) if positive else 1.0
        psi.append([[d / mu for d in row] for row in apart])
    pairs = mean(huber(psi[0][i][j], psi[1][i][j]) for i in samples for j in samples)
    triplets = mean(
        huber(*(cosine(minus(f[j], f[i]), minus(f[k], f[i])) for f in (student, teacher)))
        for i in samples
        for j in samples
        for k in samples
    )
    return distance * pairs + angle * triplets


def pkt_by_loops(student, teacher):
    p = []
    for rows in (student, teacher):
        kernel = [[(1 + cosine(x, y)) / 2 for y in rows] for x in rows]
        p.append([[k / sum(row) for k in row] for row in kernel])
    return mean(
        b * (math.log(b + 1e-7) - math.log(a + 1e-7))
        for row_a, row_b in zip(*p, strict=True)
        for a, b in zip(row_a, row_b, strict=True)
    )


def sp_by_loops(student, teacher):
    g = []
    for rows in (student, teacher):
        gram = [[inner(x, y) for y in rows] for x in rows]
        g.append([[q / (math.sqrt(inner(row, row)) or 1.0) for q in row] for row in gram])
    samples = range(len(student))
    return sum((g[1][i][j] - g[0][i][j]) ** 2 for i in samples for j in samples) / len(student) ** 2


def cc_by_loops(student, teacher, gamma=0.4, order=2):
    def kernel(x, y):
        return sum(
            math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosine(x, y) ** p
            for p in range(order + 1)
        )

    samples = range(len(student))
    return mean(
        (kernel(teacher[i], teacher[j]) - kernel(student[i], student[j])) ** 2
        for i in samples
        for j in samples
    )


def fitnet_by_loops(student, teacher):
    differences = [minus(s, t) for s, t in zip(student, teacher, strict=True)]
    return mean(inner(d, d) / len(d) for d in differences)


LOOPS = {
    "rkd": rkd_by_loops,
    "pkt": pkt_by_loops,
    "sp": sp_by_loops,
    "cc": cc_by_loops,
    "fitnet": fitnet_by_loops,
}


@all_losses
@given(seed=st.integers(0, 10**6), batch_size=st.integers(1, 7), scale=st.sampled_from([0.1, 30]))
def test_loss_equals_the_published_formula_in_plain_loops(name, seed, batch_size, scale):
    teacher = features_of(batch_size, 4, seed=seed)
    student = scale * features_of(batch_size, 4 if name == "fitnet" else 3, seed=seed + 1)
    expected = LOOPS[name](student.tolist(), teacher.tolist())
    assert float(ALL[name](student, teacher)) == pytest.approx(expected, rel=1e-11, abs=1e-15)


@all_losses
def test_duplicates_and_zero_vectors_follow_the_formula_too(name):
    teacher, student = features_of(6, 3), features_of(6, 3, seed=1)
    student[1], student[4], teacher[2], teacher[3] = student[0], 0.0, teacher[5], 0.0
    expected = LOOPS[name](student.tolist(), teacher.tolist())
    assert float(ALL[name](student, teacher)) == pytest.approx(expected, rel=1e-11)


@all_losses
@looped("batch_size", [2, 5])
def test_gradient_equals_finite_differences(name, batch_size):
    teacher = features_of(batch_size, 3)
    student = features_of(batch_size, 3 if name == "fitnet" else 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: ALL[name](s, teacher), student)


def opposite(rows):
    rows[1] = -rows[0]


def one_zero(rows):
    rows[0] = 0.0


def one_twice(rows):
    rows[-1] = rows[0]


HARD = {
    "zeros": torch.Tensor.zero_,
    "one zero": one_zero,
    "all equal": lambda rows: rows.copy_(rows[:1].clone().expand_as(rows)),
    "duplicate": one_twice,
    "opposite": opposite,
    "as large as float16 goes": lambda rows: rows.sign_().mul_(65504.0),
    "as small as float16 goes": lambda rows: rows.sign_().mul_(6e-8),
    "far from the origin": lambda rows: rows.mul_(1e-3).add_(65000.0),
}


@all_losses
@looped("hard, batch_size", itertools.product(HARD, [1, 2, 9]))
def test_value_and_gradient_are_finite(name, batch_size, hard):
    plain = features_of(batch_size, 8, dtype=torch.float32)
    spoilt = features_of(batch_size, 8, seed=1, dtype=torch.float32)
    if hard != "opposite" or batch_size > 1:
        HARD[hard](spoilt)
    for student, teacher in [(spoilt, plain), (plain, spoilt), (spoilt, spoilt.clone())]:
        student = student.clone().requires_grad_()
        loss = ALL[name](student, teacher)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()


def test_cosines_that_round_below_minus_one_leave_the_probabilities_positive():
    teacher = features_of(2, 512, dtype=torch.float32)
    for seed in range(200):
        row = features_of(1, 512, seed=seed, dtype=torch.float32)
        assert torch.isfinite(pkt_loss(torch.cat([row, -row]), teacher))


@relations
def test_batches_of_one_have_no_relations(name):
    assert float(RELATIONS[name](features_of(1, 4), features_of(1, 3))) == pytest.approx(0)


@all_losses
def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient(name):
    teacher = features_of(9, 5)
    student = teacher.clone().requires_grad_()
    loss = ALL[name](student, teacher)
    loss.backward()
    assert_close(loss.detach(), torch.zeros_like(loss), rtol=0, atol=1e-14)
    # PKT's 1e-7 leaves it a gradient of about 1e-7 / B^2.
    tolerance = 1e-8 if name == "pkt" else 1e-12
    assert_close(student.grad, torch.zeros_like(teacher), rtol=0, atol=tolerance)


UNCHANGED = {
    "rotated": (lambda f: f @ rotation(5), {"rkd", "pkt", "sp", "cc"}),
    "scaled": (lambda f: 7 * f, {"rkd", "pkt", "sp", "cc"}),
    "embedded in more dimensions": (
        lambda f: torch.cat([f, torch.zeros(len(f), 3)], 1),
        {"rkd", "pkt", "sp", "cc"},
    ),
    "shifted": (lambda f: f + 3, {"rkd"}),
    "scaled by row": (lambda f: f * torch.arange(1.0, 10)[:, None], {"pkt", "cc"}),
}


@relations
@looped("copy", UNCHANGED)
def test_a_loss_is_zero_for_exactly_the_copies_that_its_docstring_names(name, copy):
    teacher = features_of(9, 5)
    change, blind = UNCHANGED[copy]
    loss = float(RELATIONS[name](change(teacher), teacher))
    assert (abs(loss) < 1e-13) if name in blind else (loss > 1e-5)


@all_losses
def test_order_within_the_batch_does_not_matter(name):
    student, teacher = features_of(11, 5), features_of(11, 5, seed=1)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    assert_close(ALL[name](student[order], teacher[order]), ALL[name](student, teacher))


def value_and_gradient(student, teacher):
    student = student.clone().requires_grad_()
    loss = RELATIONS["rkd"](student, teacher)
    loss.backward()
    return loss.detach(), student.grad


@pytest.mark.parametrize("elements", [1, 200, 13 * 13 * 4])
def test_chunks_of_vertices_change_nothing(monkeypatch, elements):
    student, teacher = features_of(13, 5), features_of(13, 7, seed=1)
    whole = value_and_gradient(student, teacher)
    monkeypatch.setattr(feature_distillation, "CHUNK_ELEMENTS", elements)
    assert len(feature_distillation._vertex_chunks(student)) > 1
    assert_close(value_and_gradient(student, teacher), whole, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dim", [8, 500])
def test_relational_loss_keeps_nothing_cubic_for_its_backward_pass(monkeypatch, dim):
    batch_size, kept = 96, {}
    monkeypatch.setattr(feature_distillation, "CHUNK_ELEMENTS", 2**14)
    student = features_of(batch_size, dim, dtype=torch.float32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.update({tensor.data_ptr(): tensor}) or tensor, lambda tensor: tensor
    ):
        loss = RELATIONS["rkd"](student, features_of(batch_size, dim, seed=1, dtype=torch.float32))
    loss.backward()
    assert sum(map(torch.numel, kept.values())) < 8 * batch_size * (batch_size + dim)


def test_relational_loss_is_linear_in_its_weights():
    student, teacher = features_of(7, 5), features_of(7, 3, seed=1)
    distance = rkd_loss(student, teacher, distance=1.0, angle=0.0)
    angle = rkd_loss(student, teacher, distance=0.0, angle=1.0)
    both = rkd_loss(student, teacher, distance=25.0, angle=50.0)
    assert_close(both, 25 * distance + 50 * angle)


def test_relations_of_near_samples_far_from_the_origin_survive_float32():
    student, teacher = features_of(8, 6).float() / 64 + 512, features_of(8, 6, seed=1).float()
    exact = RELATIONS["rkd"](student.double(), teacher.double())
    assert_close(RELATIONS["rkd"](student, teacher).double(), exact, rtol=1e-5, atol=0)


def test_the_expanded_kernel_approaches_the_gaussian_kernel():
    student, teacher = features_of(6, 5), features_of(6, 4, seed=1)
    kernels = [
        torch.exp(-0.4 * torch.cdist(f, f).square()) for f in map(unit_rows, (student, teacher))
    ]
    expected = (kernels[0] - kernels[1]).square().mean()
    assert_close(cc_loss(student, teacher, gamma=0.4, order=30), expected)


@all_losses
def test_half_precision_is_computed_in_float32_and_float64_is_kept(name):
    student, teacher = features_of(9, 16).half(), features_of(9, 16, seed=1).half()
    expected = ALL[name](student.float(), teacher.float())
    assert torch.equal(ALL[name](student, teacher), expected)
    assert ALL[name](student.double(), teacher.double()).dtype == torch.float64


@all_losses
def test_autocast_changes_nothing(name):
    student, teacher = features_of(9, 16).float(), features_of(9, 16, seed=1).float()

    def evaluate(*, autocast):
        leaf = student.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = ALL[name](leaf, teacher)
        return loss, *torch.autograd.grad(loss, leaf)

    assert_close(evaluate(autocast=True), evaluate(autocast=False), rtol=0, atol=0)


def test_a_map_takes_the_student_to_the_dimension_of_the_teacher():
    student_to_teacher = feature_map(3, 5)
    rows = fitnet_rows(student_to_teacher(torch.ones(4, 3)), torch.ones(4, 5))
    rows.sum().backward()
    assert rows.shape == (4,)
    assert student_to_teacher.weight.grad.abs().sum() > 0


def test_zero_vectors_have_no_direction_and_no_gradient():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    unit = unit_rows(vectors)
    unit.sum().backward()
    assert_close(unit.detach(), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert vectors.grad[1].tolist() == [0.0, 0.0]
