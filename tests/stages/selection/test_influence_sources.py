"""The scores of `select` are those of the cache's arrays, written out with dense tensors.

The oracle reads the arrays of the cache and of the data set, and cuts, projects, fits and solves
on its own; of the stage it knows only the settings.
"""

import logging
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.scores import score_path
from pipeline.artefacts.selection import SelectionTable
from pipeline.methods.data_selection import select_samples
from pipeline.methods.data_selection_rules import Rule, SelectionCandidates
from pipeline.methods.folds import stratified_folds, stratified_parts
from pipeline.methods.head.dense_inverse import dense_inverse
from pipeline.methods.head.ekfac import ekfac
from pipeline.methods.head.influence import heldout_gradient, score_added, score_rows
from pipeline.methods.head.problem import HeadProblem, centred
from pipeline.methods.head.solver import fit, solve
from pipeline.methods.label_issues import label_issues
from pipeline.provenance import array_sha256
from stages import select
from stages.caches import Caches
from stages.config.file import with_overrides
from stages.config.root import Config
from stages.selection.explain import explained
from stages.show.selection import execute as show
from stages.show.selection_text import as_text
from tests.support.small_caches import rewritten
from tests.support.workspaces import linked_copy

L2, KD_WEIGHT = 0.01, 0.9
PLAIN = [
    f"select.influence.l2={L2}",
    "select.influence.label_issues=false",
    "select.influence.diagnostics=false",
]
COLUMNS = ("dloss_undistill", "dloss_swap", "dloss_remove", "dloss_add")
ROUNDING = 2e-5
"""Tolerance relative to the largest score: the stage solves to a relative residual of 1e-6."""


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Cached numbers of the training split of a data set, in memory."""

    features: Tensor
    """(V, N, D) float64"""
    logits: Tensor
    """(V, N, C) float64"""
    labels: Tensor
    keys: np.ndarray
    training: Tensor
    held_out: Tensor

    @classmethod
    def of(cls, cache: TeacherCache, dataset: Dataset) -> "Arrays":
        views = range(cache.shape.num_views)
        assert np.array_equal(cache.keys, dataset.train.samples.keys), "rows are sample indices"
        return cls(
            features=torch.stack([torch.from_numpy(cache.features(v)).double() for v in views]),
            logits=torch.stack([torch.from_numpy(cache.logits(v)).double() for v in views]),
            labels=torch.from_numpy(dataset.train.samples.labels),
            keys=dataset.train.samples.keys,
            training=torch.from_numpy(dataset.training),
            held_out=torch.from_numpy(dataset.held_out),
        )

    def problem(self, rows: Tensor, *, views=(0,), **settings) -> HeadProblem:
        """True for every row: all are distilled."""
        views = list(views)
        given = {"l2": L2, "kd_weight": KD_WEIGHT, "distilled": torch.ones(len(rows))} | settings
        tau = given.get("temperature", 1.0)
        return HeadProblem(
            features=self.features[views][:, rows],
            labels=self.labels[rows],
            soft_labels=torch.softmax(self.logits[views][:, rows] / tau, dim=2),
            **given,
        )

    def target(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.features[0, rows], self.labels[rows]


def minimum(problem: HeadProblem):
    """The problem at its minimum, computed from scratch."""
    num_classes, num_inputs = problem.soft_labels.shape[2], problem.features.shape[2] + 1
    start = torch.zeros(num_classes, num_inputs, dtype=torch.float64)
    return fit(problem, start=start, gtol=1e-10).linear


def by_hand(problem: HeadProblem, target: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Every score of the problem's rows against a target, two heads as documented."""
    scores = {}
    for distilled, names in ((1.0, COLUMNS[:1]), (0.0, COLUMNS[1:3])):
        linear = minimum(replace(problem, distilled=torch.full((problem.num_samples,), distilled)))
        solution = solve(linear, heldout_gradient(linear.weight, *target), rtol=1e-10).solution
        found = score_rows(linear, solution)
        scores |= {name: getattr(found, name).mean for name in names}
        if distilled:
            scores["view_std"] = found.dloss_undistill.std
        else:
            scores["dloss_add"] = score_added(linear, solution).mean
    return scores


def assert_scores(
    frame: pd.DataFrame, rows: Tensor, expected: dict[str, Tensor], *, within: float = ROUNDING
) -> None:
    for name, values in expected.items():
        found = torch.from_numpy(frame[name].to_numpy(dtype=np.float64)[rows.numpy()])
        assert float(values.abs().max()) > 0 or name == "view_std"
        bound = within * float(values.abs().max()) + 1e-14
        assert_close(
            found, values, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture(scope="module")
def arrays(cache: TeacherCache, dataset: Dataset) -> Arrays:
    return Arrays.of(cache, dataset)


@pytest.fixture(scope="module")
def base(digits: Config, tmp_path_factory) -> Config:
    """The cache of `digits` in a workspace without selections."""
    workspace = tmp_path_factory.mktemp("sources") / "work"
    linked_copy(digits.workspace, workspace, without=("selections", "runs"))
    return with_overrides(digits, [f"workspace={workspace}", *PLAIN])


@pytest.fixture(scope="module")
def chosen(base: Config):
    def run(*overrides: str) -> SelectionTable:
        return select.execute(with_overrides(base, overrides))

    return run


@pytest.fixture
def made(cache: TeacherCache, tmp_path):
    """A changed copy of the cache of `digits`; the path for a setting."""

    def write(name: str = "other", **changes) -> str:
        return rewritten(cache, tmp_path / name, **changes).path

    return write


def solves_of(table: SelectionTable) -> list:
    return table.record.scores.solves


def test_scores_against_the_held_out_rows_are_those_by_hand(chosen, arrays):
    table = chosen()
    target = arrays.target(arrays.held_out)
    expected = by_hand(arrays.problem(arrays.training), target)
    assert_scores(table.frame, arrays.training, expected)
    held_out = table.frame.iloc[arrays.held_out.numpy()]
    assert held_out[list(COLUMNS)].isna().all(axis=None)
    (soft, hard), found = solves_of(table), table.record.scores.diagnostics
    assert (soft.num_rows, found.num_target) == (len(arrays.training), len(arrays.held_out))
    assert (found.target, found.target_in_sample) == ("held-out", False)
    assert soft.held_out_loss != hard.held_out_loss


def test_scores_of_augmented_views_at_another_temperature_are_those_by_hand(chosen, arrays):
    table = chosen("select.influence.views=augmented", "select.influence.temperature=2")
    problem = arrays.problem(arrays.training, views=(1, 2), temperature=2.0)
    expected = by_hand(problem, arrays.target(arrays.held_out))
    assert_scores(table.frame, arrays.training, expected)
    assert float(expected["view_std"].max()) > 0


def test_l2_is_chosen_by_rows_that_the_scores_do_not_use(chosen, arrays):
    table = chosen("select.influence.l2=auto")
    labels, keys = arrays.labels[arrays.held_out].numpy(), arrays.keys[arrays.held_out.numpy()]
    parts = stratified_parts(labels, keys, num_parts=5, seed=0)
    target = arrays.held_out[torch.from_numpy(parts != 0)]
    found = table.record.scores.diagnostics
    assert found.num_target == len(target) < len(arrays.held_out)
    assert found.target_digest == array_sha256(arrays.keys[target.numpy()])
    l2 = solves_of(table)[0].l2
    expected = by_hand(arrays.problem(arrays.training, l2=l2), arrays.target(target))
    assert_scores(table.frame, arrays.training, expected)
    choosing = arrays.target(arrays.held_out[torch.from_numpy(parts == 0)])
    hard = minimum(arrays.problem(arrays.training, l2=found.l2_grid[0][0], kd_weight=0.0))
    inputs = torch.cat([choosing[0], torch.ones(len(choosing[0]), 1)], dim=1).double()
    loss = torch.nn.functional.cross_entropy(inputs @ hard.weight.T, choosing[1])
    assert found.l2_grid[0][1] == pytest.approx(float(loss), rel=1e-5)


def folds_of(arrays: Arrays, *, num_folds: int) -> Tensor:
    own = arrays.training.numpy()
    labels = arrays.labels[arrays.training].numpy()
    return torch.from_numpy(stratified_folds(labels, arrays.keys[own], num_folds=num_folds, seed=0))


@pytest.mark.parametrize("num_folds", [2, 3])
def test_a_cross_fit_scores_every_row_against_the_folds_that_it_is_not_in(
    chosen, arrays, num_folds
):
    table = chosen("select.influence.target=cross-fit", f"select.influence.folds={num_folds}")
    folds = folds_of(arrays, num_folds=num_folds)
    total = {name: torch.zeros(len(folds), dtype=torch.float64) for name in COLUMNS}
    for fold in range(num_folds):
        others, own = arrays.training[folds != fold], arrays.training[folds == fold]
        scores = by_hand(arrays.problem(others), arrays.target(own))
        for name in COLUMNS:
            total[name][folds != fold] += scores[name] / (num_folds - 1)
    assert_scores(table.frame, arrays.training, total)
    found = table.record.scores.diagnostics
    assert (found.target, found.target_in_sample) == ("cross-fit", True)
    assert len(solves_of(table)) == 2 * num_folds
    assert table.record.target_in_sample


def groups_by_hand(arrays: Arrays, fitted: Tensor, target: Tensor, *, num_groups: int) -> Tensor:
    """Standard error of dloss_undistill of the fitted rows: one solve for each group."""
    labels, keys = arrays.labels[target].numpy(), arrays.keys[target.numpy()]
    parts = stratified_parts(labels, keys, num_parts=num_groups, seed=0)
    linear = minimum(arrays.problem(fitted))
    scores = []
    for group in range(num_groups):
        rows = target[torch.from_numpy(parts == group)]
        right_side = heldout_gradient(linear.weight, *arrays.target(rows))
        found = score_rows(linear, solve(linear, right_side, rtol=1e-8).solution)
        scores.append(found.dloss_undistill.mean.numpy())
    return torch.from_numpy(np.std(scores, axis=0, ddof=1) / num_groups**0.5)


def assert_errors(table: SelectionTable, rows: Tensor, expected: Tensor) -> None:
    found = torch.from_numpy(table.frame["dloss_undistill_se"].to_numpy(dtype=np.float64))
    difference = (found[rows] - expected).norm() / expected.norm()
    assert float(difference) < 0.02, "group solves are good to 1e-2"


def test_standard_errors_are_the_deviation_over_groups(chosen, arrays):
    table = chosen("select.influence.standard_error_groups=4")
    expected = groups_by_hand(arrays, arrays.training, arrays.held_out, num_groups=4)
    assert_errors(table, arrays.training, expected)


def test_standard_errors_of_a_cross_fit_are_of_the_mean_of_its_folds(chosen, arrays):
    cross_fit = ["select.influence.target=cross-fit", "select.influence.folds=3"]
    table = chosen(*cross_fit, "select.influence.standard_error_groups=4")
    folds = folds_of(arrays, num_folds=3)
    squares = torch.zeros(len(folds), dtype=torch.float64)
    for fold in range(3):
        others, own = arrays.training[folds != fold], arrays.training[folds == fold]
        squares[folds != fold] += groups_by_hand(arrays, others, own, num_groups=4).square()
    assert_errors(table, arrays.training, squares.sqrt() / 2)


def test_no_groups_give_no_standard_errors(chosen):
    frame = chosen("select.influence.standard_error_groups=0").frame
    errors = [f"{name}_se" for name in COLUMNS[:3]]
    assert frame[errors].isna().all(axis=None)
    assert frame["dloss_undistill"].notna().any()


def test_standard_errors_raise_the_bound_of_the_selection(chosen):
    frame = chosen("select.standard_errors=1", "select.class_quota=0").frame
    lower = frame["dloss_undistill"] - frame["dloss_undistill_se"]
    assert (frame["selected"] == (lower > 0)).all()
    assert 0 < frame["selected"].sum() < (frame["dloss_undistill"] > 0).sum()


def test_negative_standard_errors_drop_only_clearly_harmful_samples(chosen):
    frame = chosen("select.standard_errors=-1", "select.class_quota=0").frame
    upper = frame["dloss_undistill"] + frame["dloss_undistill_se"]
    assert (frame["selected"] == (upper > 0)).all()
    ranked = frame["rank"] >= 0
    assert (frame["dloss_undistill"] > 0).sum() < frame["selected"].sum() < ranked.sum()


def test_two_rounds_fit_again_at_what_was_selected(chosen, arrays):
    table = chosen("select.influence.rounds=2")
    problem, target = arrays.problem(arrays.training), arrays.target(arrays.held_out)
    scores = by_hand(problem, target)["dloss_undistill"]
    for _ in range(2):
        linear = minimum(replace(problem, distilled=(scores > 0).double()))
        right_side = heldout_gradient(linear.weight, *target)
        scores = score_rows(linear, solve(linear, right_side, rtol=1e-10).solution)
        scores = scores.dloss_undistill.mean
    assert_scores(table.frame, arrays.training, {"dloss_current": scores})
    assert chosen().frame["dloss_current"].isna().all()
    read = chosen("select.influence.rounds=2", "select.score=dloss_current", "select.class_quota=0")
    assert (read.frame["selected"] == (read.frame["dloss_current"] > 0)).all()


def test_all_principal_components_change_nothing(chosen, arrays, cache):
    """A rotation about the mean: the L2 term is isotropic and the bias, which moves, has none."""
    all_of_them = chosen(f"select.influence.pca={cache.shape.num_features}")
    rows, frame = arrays.training, chosen().frame
    expected = {name: torch.tensor(frame[name].to_numpy()) for name in COLUMNS}
    assert_scores(all_of_them.frame, rows, {name: all_[rows] for name, all_ in expected.items()})


def test_few_principal_components_are_those_of_the_training_rows(chosen, arrays):
    table = chosen("select.influence.pca=5")
    own = arrays.features[0, arrays.training]
    _, _, directions = torch.linalg.svd(own - own.mean(dim=0), full_matrices=False)
    reduced = replace(arrays, features=(arrays.features - own.mean(dim=0)) @ directions[:5].T)
    expected = by_hand(reduced.problem(arrays.training), reduced.target(arrays.held_out))
    assert_scores(table.frame, arrays.training, expected)


def test_a_proxy_gives_the_features_and_the_teacher_the_labels(chosen, arrays, cache, made):
    """Its rows are in another order, so they must be joined by image."""
    features = arrays.features.flip(2).sqrt().half().numpy()
    backwards = np.arange(cache.shape.num_samples)[::-1].copy()
    proxy = made("proxy", features=features, weights="0" * 64, rows=backwards)
    table = chosen(f"select.influence.proxy={proxy}")
    seen = replace(arrays, features=torch.from_numpy(features).double())
    expected = by_hand(seen.problem(arrays.training), seen.target(arrays.held_out))
    assert_scores(table.frame, arrays.training, expected)
    assert table.frame["p_target"].equals(chosen().frame["p_target"])


def test_a_curvature_subsample_of_all_rows_changes_nothing(chosen, arrays):
    """In every target of a cross-fit, too."""
    num_rows = len(arrays.training)
    for settings in ([], ["select.influence.target=cross-fit", "select.influence.folds=2"]):
        every = chosen(*settings).frame
        named = chosen(*settings, f"select.influence.hessian_subsample={num_rows}").frame
        assert every[list(COLUMNS)].equals(named[list(COLUMNS)])


def test_fewer_rows_for_the_curvature_are_evenly_spread(chosen, arrays):
    table = chosen("select.influence.hessian_subsample=300")
    num_rows = len(arrays.training)
    spread = torch.tensor([number * num_rows // 300 for number in range(300)])
    linear = minimum(arrays.problem(arrays.training))
    there = arrays.problem(arrays.training[spread]).linearise(linear.weight)
    right_side = heldout_gradient(linear.weight, *arrays.target(arrays.held_out))
    expected = score_rows(linear, solve(there, right_side, rtol=1e-10).solution)
    few = {"dloss_undistill": expected.dloss_undistill.mean}
    # The head is fitted to a gradient of 1e-4 only: the curvature is not worth more.
    assert_scores(table.frame, arrays.training, few, within=1e-3)
    every = torch.tensor(chosen().frame["dloss_undistill"].to_numpy())[arrays.training]
    apart = (few["dloss_undistill"] - every).abs().max() / every.abs().max()
    assert float(apart) > 0.02, "or else nothing is shown"
    assert {solve_.hessian_rows for solve_ in solves_of(table)} == {300}
    cross_fit = ["select.influence.target=cross-fit", "select.influence.folds=2"]
    folded = chosen(*cross_fit, "select.influence.hessian_subsample=160")
    assert {solve_.hessian_rows for solve_ in solves_of(folded)} == {160}


def test_ekfac_records_its_residual(chosen, arrays):
    table = chosen("select.influence.solver=ekfac")
    linear = minimum(arrays.problem(arrays.training))
    right_side = heldout_gradient(linear.weight, *arrays.target(arrays.held_out))
    solution = centred(ekfac(linear).inverse(right_side))
    residual = (right_side - linear.hvp(solution)).norm() / right_side.norm()
    (soft, _), expected = solves_of(table), score_rows(linear, solution).dloss_undistill.mean
    assert soft.solver == "EK-FAC"
    assert soft.residual == pytest.approx(float(residual), rel=1e-4)
    assert soft.residual > 1e-3, "or else nothing is shown"
    assert_scores(table.frame, arrays.training, {"dloss_undistill": expected})


def test_a_head_that_is_partly_distilled_gives_the_slope_there(chosen, arrays):
    table = chosen("select.influence.distilled=0.5")
    half = torch.full((len(arrays.training),), 0.5)
    linear = minimum(arrays.problem(arrays.training, distilled=half))
    right_side = heldout_gradient(linear.weight, *arrays.target(arrays.held_out))
    found = score_rows(linear, solve(linear, right_side, rtol=1e-10).solution)
    assert_scores(table.frame, arrays.training, {"dloss_undistill": found.dloss_undistill.mean})
    assert solves_of(table)[0].linearised_at == "0.5 distilled"


def test_label_issues_are_by_heads_that_have_not_seen_the_row(chosen, arrays):
    frame = chosen("select.influence.label_issues=true", "select.influence.folds=3").frame
    rows, folds = arrays.training, folds_of(arrays, num_folds=3)
    probs = torch.empty(len(rows), arrays.logits.shape[2], dtype=torch.float64)
    for fold in range(3):
        head = minimum(arrays.problem(rows[folds != fold], kd_weight=0.0)).weight
        logits = arrays.features[0, rows[folds == fold]] @ head[:, :-1].T + head[:, -1]
        probs[folds == fold] = logits.softmax(dim=1)
    scored = frame.iloc[rows.numpy()]
    own = probs.gather(1, arrays.labels[rows, None]).squeeze(1).numpy()
    np.testing.assert_allclose(scored["p_refit"], own, rtol=1e-4, atol=1e-6)
    issues = label_issues(probs, arrays.labels[rows]).numpy()
    assert (scored["label_issue"] == issues).all()
    assert 0 < issues.sum() < len(issues)
    others = frame.iloc[arrays.held_out.numpy()]
    assert others[["p_refit", "label_issue"]].isna().all(axis=None)
    assert chosen().frame[["p_refit", "label_issue"]].isna().all(axis=None)


# The samples of another cache as the target.


@pytest.fixture(scope="module")
def outside(digits, dataset, tmp_path_factory) -> str:
    """The test images' features and labels under keys of no image of the data set."""
    test = Caches(config=digits, dataset=dataset).test
    rows = np.arange(test.shape.num_samples)[::3]
    keys = np.random.default_rng(0).integers(0, 256, (len(rows), 16), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("outside") / "cache"
    return rewritten(test, folder, rows=rows, keys=keys).path


def test_scores_against_another_cache_are_those_by_hand(chosen, arrays, outside):
    options = ["select.influence.target=external", f"select.influence.external={outside}"]
    target = TeacherCache.open(outside)
    features = torch.from_numpy(target.features(0)).double()
    labels = torch.from_numpy(np.array(target.labels))
    table = chosen(*options)
    expected = by_hand(arrays.problem(arrays.training), (features, labels))
    assert_scores(table.frame, arrays.training, expected)
    found = table.record.scores.diagnostics
    assert (found.target, found.num_target) == ("external", len(labels))
    assert found.target_digest == array_sha256(target.keys)
    chosen_by_all = chosen(*options, "select.influence.l2=auto")
    assert chosen_by_all.record.scores.diagnostics.num_target == len(labels)


# The score file is shared.


def scores_of(base: Config, table: SelectionTable):
    return score_path(base.selections_folder, table.record.identity.scores)


def test_another_strategy_reads_the_same_scores(base, chosen, caplog):
    first = chosen()
    path = scores_of(base, first)
    before = path.stat().st_mtime_ns, path.read_bytes()
    with caplog.at_level(logging.DEBUG):
        second = chosen("select.strategy=beta", "select.fraction=0.3")
    assert f"{path} exists, nothing to do" in caplog.text
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert second.record.scores == first.record.scores
    assert second.frame["dloss_swap"].equals(first.frame["dloss_swap"])
    assert second.id != first.id


@pytest.fixture
def guessing(made, cache):
    """The setting of a proxy whose features know nothing of the images."""
    shape = (cache.shape.num_views, cache.shape.num_samples, cache.shape.num_features)
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    return f"select.influence.proxy={made('noise', features=noise, weights='0' * 64)}"


@pytest.mark.parametrize("l2", ["auto", 0.03])
def test_scores_that_are_guesses_decide_nothing(guessing, chosen, arrays, caplog, l2):
    with caplog.at_level(logging.WARNING):
        table = chosen(guessing, f"select.influence.l2={l2}")
    found = table.record.scores.diagnostics
    gain, error = found.gain_over_guess
    assert gain < 2 * error
    assert found.is_guess
    assert "no better than a guess" in caplog.text
    assert table.record.fallback == "all"
    frame = table.frame.iloc[arrays.training.numpy()]
    assert frame["selected"].all()
    assert set(frame["reason"]) == {"scores are guesses"}
    assert "all (instead of influence) keeps" in select.describe(table.record)
    text = as_text(show(str(table.path)))
    assert 'strategy "all", because the scores are no better than a guess' in " ".join(text.split())
    assert "no better than a guess on unseen samples" in " ".join(text.split())
    assert "no better than a guess" in explained(table, (), [int(arrays.training[0])])


def test_a_fraction_by_scores_that_are_guesses_is_drawn_at_random(guessing, chosen, arrays):
    half = ["select.fraction=0.5", "select.class_quota=0"]
    table = chosen(guessing, *half)
    assert table.record.fallback == "random"
    candidates = np.zeros(len(arrays.labels), dtype=bool)
    candidates[arrays.training] = True
    every = SelectionCandidates(labels=arrays.labels.numpy(), candidates=candidates)
    drawn = select_samples("random", every, rule=Rule(fraction=0.5), seed=0)
    assert np.array_equal(table.selected, drawn.selected)
    assert drawn.selected.sum() == pytest.approx(len(arrays.training) / 2, abs=1)
    assert set(table.frame["reason"].iloc[arrays.training.numpy()]) == {"drawn, scores are guesses"}


def test_a_head_that_knows_the_images_decides(chosen, arrays):
    table = chosen()
    found = table.record.scores.diagnostics
    assert not found.is_guess
    assert table.record.fallback is None
    linear = minimum(arrays.problem(arrays.training, kd_weight=0.0))
    features, labels = arrays.target(arrays.held_out)
    logits = torch.cat([features, torch.ones(len(features), 1)], dim=1) @ linear.weight.T
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    counts = torch.bincount(arrays.labels[arrays.training], minlength=logits.shape[1]).double() + 1
    by_frequency = -(counts / counts.sum()).log()[labels]
    uniform = torch.full_like(by_frequency, np.log(logits.shape[1]))
    guess = min(by_frequency, uniform, key=torch.mean)
    assert found.gain_over_guess[0] == pytest.approx(float((guess - losses).mean()), rel=1e-4)
    assert found.gain_over_guess[1] == pytest.approx(
        float((guess - losses).std()) / len(labels) ** 0.5, rel=1e-4
    )


def test_the_difficulty_of_a_small_head_is_exact(chosen, arrays):
    table = chosen()
    linear = minimum(arrays.problem(arrays.training, kd_weight=0.0))
    exact = dense_inverse(linear)
    frame = table.frame.iloc[arrays.training.numpy()]
    for name, wanted in (
        ("self_influence", exact.self_influence()),
        ("leverage", exact.leverage()),
    ):
        found = torch.from_numpy(frame[name].to_numpy(dtype=np.float64))
        assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.max()))
    (_, hard), diagnostics = solves_of(table), table.record.scores.diagnostics
    assert diagnostics.difficulty == "exact"
    assert hard.effective_parameters_error == 0.0
    expected = exact.effective_parameters / len(arrays.training)
    assert hard.effective_parameters == pytest.approx(expected, rel=1e-4)
