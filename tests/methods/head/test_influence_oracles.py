"""EK-FAC, Hessian products and scores against two public libraries, and what scores are blind to.

curvlinops takes the exact expectation over labels (`FisherType.TYPE2`). kronfluence samples
labels; expanding every row to all of its labels, weighted by their probabilities, makes it exact.
"""

import dataclasses
import gc

import pytest
import torch
from curvlinops import (
    EKFACLinearOperator,
    FisherType,
    GGNLinearOperator,
    HessianLinearOperator,
    KFACInverseLinearOperator,
    KFACLinearOperator,
)
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from pipeline.methods.head.ekfac import ekfac
from pipeline.methods.head.influence import heldout_gradient, score_rows
from pipeline.methods.head.problem import HeadProblem
from pipeline.methods.head.solver import fit, solve
from tests.support.head_problems import (
    class_factor,
    data_hessian,
    heldout_of,
    problem_of,
    random_head,
    scored,
)

SCORES = ("dloss_remove", "dloss_swap", "dloss_undistill")
DAMPINGS = (1e-4, 1e-2, 1.0)


def hard_problem(**settings):
    """Labels only, and l2 on the bias too: what the libraries call damping."""
    given = {"num_samples": 60, "num_features": 6, "kd_weight": 0.0, "regularise_bias": True}
    return problem_of(**given | settings)


def layer_of(weight):
    """W as a torch layer."""
    layer = nn.Linear(weight.shape[1] - 1, weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight[:, :-1])
        layer.bias.copy_(weight[:, -1])
    return layer


def rows_of(problem):
    """Every view of every sample as a row of its own, which is what their mean loss is."""
    return problem.features.flatten(0, 1), problem.labels.repeat(problem.num_views)


def operator_of(kind, problem, weight, **settings):
    layer = layer_of(weight)
    features, labels = rows_of(problem)
    batches = list(zip(features.split(25), labels.split(25), strict=True))
    return kind(layer, nn.CrossEntropyLoss(), list(layer.parameters()), batches, **settings)


def dense(operator, weight):
    """Matrix of a library's operator in our order: it has all weights first, then all biases."""
    theirs = operator @ torch.eye(weight.numel(), dtype=torch.float64)
    ours = torch.arange(weight.numel()).reshape(weight.shape)
    order = torch.cat([ours[:, :-1].flatten(), ours[:, -1]])
    matrix = torch.empty_like(theirs)
    matrix[order[:, None], order[None]] = theirs
    return matrix


def dense_of(linear_map, weight):
    """Matrix of a linear function of (C, D + 1)."""
    units = torch.eye(weight.numel(), dtype=torch.float64).reshape(-1, *weight.shape)
    return torch.stack([linear_map(unit).flatten() for unit in units], dim=1)


def assert_matrices_close(ours, theirs, *, rtol):
    assert_close(ours, theirs, rtol=rtol, atol=rtol * float(theirs.abs().max()))


def curvature(kind, problem, weight):
    """A library's Kronecker-factored operator with the exact expectation over labels."""
    exact = {"fisher_type": FisherType.TYPE2, "separate_weight_and_bias": False}
    return operator_of(kind, problem, weight, **exact)


@pytest.mark.parametrize("kind", [GGNLinearOperator, HessianLinearOperator])
@pytest.mark.parametrize("num_views", [1, 2])
def test_hessian_products_equal_curvlinops(kind, num_views):
    problem = hard_problem(num_views=num_views)
    weight = random_head(problem)
    bare = dataclasses.replace(problem, l2=1e-300)
    ours = dense_of(lambda unit: bare.hvp(weight, unit), weight)
    assert_matrices_close(ours, dense(operator_of(kind, problem, weight), weight), rtol=1e-12)


@pytest.mark.parametrize("num_views", [1, 2])
def test_ekfac_equals_curvlinops(num_views):
    problem = hard_problem(num_views=num_views)
    weight = random_head(problem)
    factors = ekfac(problem.linearise(weight))
    basis = torch.kron(factors.class_basis, factors.input_basis)
    ours = basis @ torch.diag(factors.eigenvalues.flatten()) @ basis.T
    theirs = dense(curvature(EKFACLinearOperator, problem, weight), weight)
    assert_matrices_close(ours, theirs, rtol=1e-8)


@pytest.mark.parametrize("damping", DAMPINGS)
def test_damped_ekfac_inverse_equals_curvlinops(damping):
    problem = hard_problem(l2=damping)
    weight = random_head(problem)
    ours = dense_of(ekfac(problem.linearise(weight)).inverse, weight)
    operator = curvature(EKFACLinearOperator, problem, weight)
    inverse = KFACInverseLinearOperator(operator, damping=damping, use_exact_damping=True)
    theirs = dense(inverse, weight)
    assert_matrices_close(ours, theirs, rtol=1e-8)
    gradient = heldout_gradient(weight, *heldout_of(problem))
    found = ekfac(problem.linearise(weight)).inverse(gradient).flatten()
    assert_matrices_close(found, theirs @ gradient.flatten(), rtol=1e-8)


@pytest.mark.parametrize("damping", DAMPINGS)
def test_kfac_in_our_eigenbases_equals_curvlinops(damping):
    problem = hard_problem()
    weight = random_head(problem)
    factors = ekfac(problem.linearise(weight))
    inputs = F.pad(problem.features[0], (0, 1), value=1.0)
    classes = factors.class_basis.T @ class_factor(problem, weight) @ factors.class_basis
    covariance = factors.input_basis.T @ (inputs.T @ inputs / len(inputs)) @ factors.input_basis
    kfac = dataclasses.replace(
        factors, eigenvalues=torch.outer(classes.diagonal(), covariance.diagonal()), l2=damping
    )
    operator = curvature(KFACLinearOperator, problem, weight)
    inverse = KFACInverseLinearOperator(operator, damping=damping, use_exact_damping=True)
    assert_matrices_close(dense_of(kfac.inverse, weight), dense(inverse, weight), rtol=1e-8)


@pytest.mark.parametrize("case", ["one sample", "equal probabilities"])
def test_kfac_and_ekfac_are_the_hessian_where_rows_bend_alike(case):
    problem = hard_problem(num_samples=1 if case == "one sample" else 60)
    weight = random_head(problem)
    if case == "equal probabilities":
        weight[:, :-1] = 0.0
    hessian = data_hessian(problem, weight)
    inputs = F.pad(problem.features[0], (0, 1), value=1.0)
    kfac = torch.kron(class_factor(problem, weight), inputs.T @ inputs / len(inputs))
    assert_matrices_close(kfac, hessian, rtol=1e-12)
    factors = ekfac(problem.linearise(weight))
    basis = torch.kron(factors.class_basis, factors.input_basis)
    assert_matrices_close(
        basis @ torch.diag(factors.eigenvalues.flatten()) @ basis.T, hessian, rtol=1e-12
    )


class HeadTask(Task):
    """Summed cross-entropy, as kronfluence wants it, and three ways to a Fisher matrix."""

    def __init__(self, fisher):
        self.fisher = fisher
        self.generator = torch.Generator().manual_seed(0)

    def compute_train_loss(self, batch, model, sample=False):
        features, labels = batch
        logits = model(features)
        if not sample:
            return F.cross_entropy(logits, labels, reduction="sum")
        probs = torch.softmax(logits, dim=1).detach()
        if self.fisher == "sampled":
            drawn = torch.multinomial(probs, 1, generator=self.generator)[:, 0]
            return F.cross_entropy(logits, drawn, reduction="sum")
        # Squares of these gradients over the C rows of a sample average to the expectation.
        shares = (probs.shape[1] * probs.gather(1, labels[:, None])[:, 0]).sqrt()
        return shares @ F.cross_entropy(logits, labels, reduction="none")

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)


def factor_rows(problem, *, fisher):
    """Rows for kronfluence's factors: all labels of every row, or its own."""
    features, labels = rows_of(problem)
    if fisher != "expanded":
        return TensorDataset(features, labels)
    num_classes = problem.soft_labels.shape[2]
    every_label = torch.arange(num_classes).repeat(len(features))
    return TensorDataset(features.repeat_interleave(num_classes, dim=0), every_label)


@pytest.fixture
def quick_collection():
    """Kronfluence collects garbage all the time, and the imported libraries are a lot of it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def kronfluence_scores(problem, weight, *, heldout, fisher, folder):
    """(1 / N M) of its pairwise scores summed over the held-out rows, (N,)."""
    task = HeadTask(fisher)
    model = prepare_model(nn.Sequential(layer_of(weight)), task)
    analyzer = Analyzer(fisher, model, task, cpu=True, disable_tqdm=True, output_dir=str(folder))
    analyzer.fit_all_factors(
        "head",
        factor_rows(problem, fisher=fisher),
        per_device_batch_size=32,
        factor_args=FactorArguments(
            use_empirical_fisher=fisher == "empirical",
            covariance_max_examples=None,
            lambda_max_examples=None,
            activation_covariance_dtype=torch.float64,
            gradient_covariance_dtype=torch.float64,
            per_sample_gradient_dtype=torch.float64,
            lambda_dtype=torch.float64,
        ),
    )
    analyzer.compute_pairwise_scores(
        "head",
        "head",
        query_dataset=TensorDataset(*heldout),
        train_dataset=TensorDataset(*rows_of(problem)),
        per_device_query_batch_size=len(heldout[1]),
        per_device_train_batch_size=32,
        score_args=ScoreArguments(
            damping_factor=problem.l2,
            per_sample_gradient_dtype=torch.float64,
            precondition_dtype=torch.float64,
            score_dtype=torch.float64,
        ),
    )
    pairwise = analyzer.load_pairwise_scores("head")["all_modules"]
    return pairwise.sum(dim=0) / (problem.num_samples * len(heldout[1]))


def assert_scores_close(ours, theirs):
    """To a millionth of each score, or of a millionth of the largest where one is near 0."""
    assert_close(ours, theirs, rtol=1e-6, atol=1e-12 * float(theirs.abs().max()))


@pytest.mark.usefixtures("quick_collection")
@pytest.mark.parametrize("damping", [1e-3, 1e-1])
def test_ekfac_scores_equal_kronfluence_with_expanded_labels(damping, tmp_path):
    problem = hard_problem(l2=damping)
    weight, heldout = random_head(problem) / 2, heldout_of(problem)
    linear = problem.linearise(weight)
    solution = ekfac(linear).inverse(heldout_gradient(weight, *heldout))
    theirs = kronfluence_scores(
        problem, weight, heldout=heldout, fisher="expanded", folder=tmp_path
    )
    assert_scores_close(score_rows(linear, solution).dloss_remove.mean, theirs)


def empirical_inverse(problem, weight, right_side):
    """(Empirical EK-FAC + l2)^-1 R, written out: factors of the labels' own gradients."""
    inputs = F.pad(problem.features[0], (0, 1), value=1.0)
    residuals = torch.softmax(inputs @ weight.T, dim=1) - F.one_hot(problem.labels, len(weight))
    _, u = torch.linalg.eigh(residuals.T @ residuals / len(inputs))
    _, q = torch.linalg.eigh(inputs.T @ inputs / len(inputs))
    squares = ((residuals @ u)[:, :, None] * (inputs @ q)[:, None, :]).square().mean(dim=0)
    return u @ ((u.T @ right_side @ q) / (squares + problem.l2)) @ q.T


@pytest.mark.usefixtures("quick_collection")
def test_scores_with_an_empirical_fisher_equal_kronfluence(tmp_path):
    problem = hard_problem(l2=1e-2)
    weight, heldout = random_head(problem) / 2, heldout_of(problem)
    solution = empirical_inverse(problem, weight, heldout_gradient(weight, *heldout))
    theirs = kronfluence_scores(
        problem, weight, heldout=heldout, fisher="empirical", folder=tmp_path
    )
    assert_scores_close(score_rows(problem.linearise(weight), solution).dloss_remove.mean, theirs)


@pytest.mark.usefixtures("quick_collection")
def test_ekfac_scores_rank_like_kronfluence_with_sampled_labels(tmp_path, record_property):
    problem = hard_problem(l2=1e-2)
    weight, heldout = random_head(problem) / 2, heldout_of(problem)
    linear = problem.linearise(weight)
    solution = ekfac(linear).inverse(heldout_gradient(weight, *heldout))
    theirs = kronfluence_scores(problem, weight, heldout=heldout, fisher="sampled", folder=tmp_path)
    rank = spearmanr(score_rows(linear, solution).dloss_remove.mean, theirs).statistic
    record_property("spearman", float(rank))
    assert 0.5 < rank < 1.0  # equal ranks would mean that no label was drawn


def assert_same_scores(here, there, *, rows=slice(None)):
    for name in SCORES:
        ours, theirs = getattr(here, name), getattr(there, name)
        assert_close(theirs.mean, ours.mean[rows], rtol=1e-7, atol=1e-11)
        assert_close(theirs.std, ours.std[rows], rtol=1e-7, atol=1e-11)


def test_rotating_features_does_not_change_scores():
    problem = problem_of(num_views=2, temperature=4.0)
    features, labels = heldout_of(problem)
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    turned = dataclasses.replace(problem, features=problem.features @ turn)
    assert_same_scores(scored(problem)[0], scored(turned, heldout=(features @ turn, labels))[0])


def test_shifting_the_logits_of_all_classes_does_not_change_scores():
    problem = problem_of(num_views=2, temperature=4.0)
    scores, linear, solution = scored(problem)
    shift = torch.randn(1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = problem.linearise(linear.weight + shift)
    assert_same_scores(scores, score_rows(shifted, solution))
    heldout = heldout_of(problem)
    gradient = heldout_gradient(linear.weight, *heldout)
    assert_close(heldout_gradient(linear.weight + shift, *heldout), gradient, rtol=0, atol=1e-14)
    assert_close(solve(shifted, gradient, rtol=1e-12).solution, solution, rtol=1e-8, atol=1e-10)


def test_duplicate_rows_have_equal_scores():
    problem = problem_of(num_views=2, temperature=4.0)
    rows = torch.cat([torch.arange(40), torch.tensor([3, 17, 3])])
    doubled = HeadProblem(
        features=problem.features[:, rows],
        labels=problem.labels[rows],
        soft_labels=problem.soft_labels[:, rows],
        distilled=problem.distilled[rows],
        kd_weight=problem.kd_weight,
        temperature=problem.temperature,
        l2=problem.l2,
        rows_per_chunk=7,
    )
    scores = scored(doubled)[0]
    for name in SCORES:
        values = getattr(scores, name).mean
        assert_close(values[[40, 41, 42]], values[[3, 17, 3]], rtol=1e-12, atol=0)


def test_duplicating_every_row_halves_scores():
    problem = problem_of(temperature=4.0)
    doubled = dataclasses.replace(
        problem,
        features=problem.features.repeat(1, 2, 1),
        labels=problem.labels.repeat(2),
        soft_labels=problem.soft_labels.repeat(1, 2, 1),
        distilled=problem.distilled.repeat(2),
    )
    here, there = scored(problem)[0], scored(doubled)[0]
    for name in SCORES:
        halves = getattr(here, name).mean.repeat(2) / 2
        assert_close(getattr(there, name).mean, halves, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_a_second_call_gives_the_same_bits_and_changes_nothing(cache_bytes):
    problem = problem_of(num_views=2, temperature=4.0)
    given = (problem.features, problem.labels, problem.soft_labels, problem.distilled)
    before = [values.clone() for values in given]
    found = fit(problem, start=random_head(problem))
    linear = problem.linearise(found.weight, cache_bytes=cache_bytes)
    gradient = heldout_gradient(found.weight, *heldout_of(problem))
    factors = ekfac(linear)
    calls = [
        lambda: linear.hvp(gradient),
        lambda: factors.inverse(gradient),
        lambda: ekfac(linear).eigenvalues,
        lambda: solve(linear, gradient).solution,
        lambda: solve(linear, gradient, preconditioner=factors).solution,
        lambda: score_rows(linear, gradient).dloss_remove.mean,
        lambda: score_rows(linear, gradient).dloss_swap.std,
        lambda: linear.gradient(),
        lambda: fit(problem, start=random_head(problem)).weight,
    ]
    first = [call().clone() for call in calls]
    assert all(torch.equal(call(), value) for call, value in zip(calls, first, strict=True))
    assert all(torch.equal(call(), value) for call, value in zip(calls, first, strict=True))
    assert all(torch.equal(now, then) for now, then in zip(given, before, strict=True))


def test_kept_and_streamed_chunks_agree_in_every_result():
    problem = problem_of(num_views=2, temperature=4.0)
    weight = fit(problem, start=random_head(problem)).weight
    gradient = heldout_gradient(weight, *heldout_of(problem))
    kept, streamed = problem.linearise(weight), problem.linearise(weight, cache_bytes=0)
    assert kept.kept is not None
    assert streamed.kept is None
    assert torch.equal(kept.hvp(gradient), streamed.hvp(gradient))
    assert torch.equal(kept.gradient(), streamed.gradient())
    assert torch.equal(ekfac(kept).eigenvalues, ekfac(streamed).eigenvalues)
    here, there = solve(kept, gradient), solve(streamed, gradient)
    assert torch.equal(here.solution, there.solution)
    assert_same_scores(score_rows(kept, here.solution), score_rows(streamed, there.solution))


def test_scores_do_not_depend_on_how_held_out_rows_are_ordered():
    problem = problem_of(num_views=2, temperature=4.0)
    features, labels = heldout_of(problem)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    assert_same_scores(
        scored(problem)[0], scored(problem, heldout=(features[order], labels[order]))[0]
    )
