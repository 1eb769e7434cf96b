"""Several processes find what one finds: each reads a part of the rows, and all have the result.

Real processes by gloo, in float64; what one process finds is compared with oracles elsewhere.
"""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pipeline.influence.cross_fit import cross_fit
from pipeline.influence.inputs import ScoredRows, Target, Targets
from pipeline.influence.scoring import score_influence
from pipeline.methods.head.data import principal_components
from pipeline.methods.head.difficulty import score_difficulty
from pipeline.methods.head.ekfac import ekfac
from pipeline.methods.head.influence import heldout_gradient, score_added, score_rows
from pipeline.methods.head.parameter_change import undistil_order
from pipeline.methods.head.preconditioner import class_blocks
from pipeline.methods.head.problem import HeadProblem
from pipeline.methods.head.set_effects import undistil_effect
from pipeline.methods.head.solver import fit, solve
from pipeline.runtime.ranks import ALONE, Ranks
from stages import select
from stages.config.file import with_overrides
from stages.config.root import Config
from tests.support.head_problems import PLAIN, heldout_of, problem_of, random_head
from tests.support.rank_processes import exit_codes, on_ranks
from tests.support.workspaces import linked_copy, snapshot, unfinished

WORLDS = [2, 3]
CLOSE = 1e-10
"""Tolerance relative to the largest entry."""

PROBLEMS = {
    "41 rows": {"num_samples": 41},
    "two views, warm": {"num_views": 2, "num_samples": 40, "temperature": 2.0},
    "less curvature": {"num_samples": 40, "hessian_samples": torch.arange(0, 40, 3)},
    "2 rows": {"num_samples": 2, "num_classes": 2},
}
"""Chunks are 7 rows, so that every rank has several; with 2 rows the third rank has none."""


def found_of_problem(ranks: Ranks, **settings: object) -> dict[str, Tensor]:
    """Everything that is computed of a head problem."""
    problem = replace(problem_of(**settings), sharing=ranks)
    weight, direction = random_head(problem), random_head(problem, seed=4)
    there = problem.linearise(weight)
    fitted = fit(problem, start=weight, gtol=1e-10 if problem.hessian_samples is None else 1e-8)
    linear, factors = fitted.linear, ekfac(fitted.linear)
    features, labels = heldout_of(problem)
    gradient = heldout_gradient(linear.weight, features, labels, rows_per_chunk=7, sharing=ranks)
    solution = solve(linear, gradient).solution
    groups = torch.stack([solution, 2 * solution, -solution])
    scores = score_rows(linear, solution, group_solutions=groups)
    difficulty = score_difficulty(linear, factors)
    every = replace(problem, distilled=torch.ones(problem.num_samples)).linearise(linear.weight)
    target = HeadProblem(features=features[None], labels=labels, l2=1e-30, sharing=ranks)
    harmful = torch.arange(problem.num_samples) % 3 == 0
    effect = undistil_effect(every, harmful, target=target, rtol=1e-10)
    return {
        "loss": torch.tensor([problem.loss(weight), there.loss], dtype=torch.float64),
        "slope": there.slope,
        "product": there.hvp(direction),
        "certain product": there.certain_hvp(direction),
        "blocks": class_blocks(there).inverse(direction),
        "factors": ekfac(there).eigenvalues,
        "weight": linear.weight,
        "gradient": gradient,
        "solution": solution,
        "remove": scores.dloss_remove.mean,
        "undistil": scores.dloss_undistill.mean,
        "view_std": scores.dloss_undistill.std,
        "error": scores.dloss_undistill.error,
        "added": score_added(linear, solution).mean,
        "self-influence": difficulty.self_influence,
        "leverage": difficulty.leverage,
        "order": undistil_order(every, factors=factors, block=3),
        "effect": torch.tensor([effect.first_order, effect.second_order], dtype=torch.float64),
    }


def found_of_rows(ranks: Ranks) -> dict[str, Tensor]:
    """Principal components and the heads of folds."""
    problem = problem_of(num_samples=41, num_views=2)
    centre, basis = principal_components(
        problem.features, num_components=2, rows_per_chunk=6, sharing=ranks
    )
    heads = cross_fit(
        HeadProblem(features=problem.features, labels=problem.labels, l2=1e-2, sharing=ranks),
        folds=torch.arange(41) % 4 - 1,
        start=random_head(problem),
    )
    return {
        "centre": centre,
        "projector": basis @ basis.T,
        "heads": heads.weights,
        "overall": heads.overall,
    }


LESS = {"l2": 1e-2, "rounds": 0, "diagnostics": False, "param_change": False}
SCORINGS = {
    "l2 chosen": ({**LESS, "l2": None, "label_issues": False}, False),
    "folds": (LESS, True),
    "EK-FAC": ({"solver": "ekfac", "temperature": 2.0, "l2": 1e-2, "label_issues": False}, False),
    "a part bends": ({**LESS, "hessian_subsample": 30, "label_issues": False}, False),
}
"""Settings, and True if the target is each fold of the rows in turn."""


def found_of_scoring(
    ranks: Ranks, *, changes: dict[str, object], is_folded: bool
) -> dict[str, Tensor]:
    """All columns and diagnostics of the influence of some rows, as the stage asks for them."""
    problem = problem_of(num_samples=42, num_views=2)
    features, labels = heldout_of(problem, num_samples=31)
    folds = (torch.arange(42) % 2 + 1) * (torch.arange(42) > 1)  # two rows are fold 0
    rows = ScoredRows(
        features=problem.features,
        soft_labels=problem.soft_labels,
        labels=problem.labels,
        start=random_head(problem),
        clean=problem.features[:1],
        folds=folds,
        ranks=ranks,
    )
    groups = torch.arange(31) % 3
    outside = Target(features=features[None], labels=labels, groups=groups, ranks=ranks)
    targets = Targets(target=outside, choosing=outside)
    if is_folded:
        groups = (torch.arange(42) // 2 + torch.arange(42)) % 2  # both in every fold
        own = Target(features=rows.clean, labels=rows.labels, groups=groups, ranks=ranks)
        targets = Targets(target=own, folds=folds, choosing=outside)
    found = score_influence(rows, targets, replace(PLAIN, **changes))
    facts = [(solve.held_out_loss, solve.effective_parameters) for solve in found.solves]
    facts += found.l2_grid
    facts.append((found.details.second_order_gain or 0.0, found.details.target_weight_cosine))
    return {
        **{name: torch.from_numpy(np.asarray(values)) for name, values in found.columns.items()},
        "facts": torch.tensor(facts, dtype=torch.float64),
        "stability": torch.tensor(list(found.details.rank_stability.values())),
    }


JOBS = {
    **{f"problem, {name}": partial(found_of_problem, **given) for name, given in PROBLEMS.items()},
    "rows": found_of_rows,
    **{
        f"scores, {name}": partial(found_of_scoring, changes=changes, is_folded=is_folded)
        for name, (changes, is_folded) in SCORINGS.items()
    },
}


def found_of_all(ranks: Ranks) -> dict[str, Tensor]:
    return {
        f"{job}: {name}": values
        for job, work in JOBS.items()
        for name, values in work(ranks).items()
    }


def assert_equal_to_rounding(found: Tensor, expected: Tensor, *, name: str) -> None:
    sizes = [0.0, *expected.double().nan_to_num().abs().flatten().tolist()]
    within = CLOSE * max(sizes) if expected.dtype.is_floating_point else 0
    assert_close(
        found, expected, rtol=0, atol=within, equal_nan=True, msg=lambda text: f"{name}: {text}"
    )


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return found_of_all(ALONE)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=WORLDS)
def together(request, tmp_path_factory) -> list[dict[str, Tensor]]:
    """Results of each of several ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    return on_ranks(found_of_all, world=request.param, folder=folder)


@pytest.mark.parametrize("job", JOBS)
def test_several_ranks_find_what_one_finds(alone, together, job):
    names = [name for name in alone if name.startswith(f"{job}: ")]
    assert names
    for name in names:
        assert_equal_to_rounding(together[0][name], alone[name], name=name)


def test_every_rank_has_the_bit_identical_result(together):
    first, *others = together
    for other in others:
        assert other.keys() == first.keys()
        for name, values in first.items():
            assert_close(other[name], values, rtol=0, atol=0, equal_nan=True)


STAGE = [
    "select.repair=head",
    "select.soft_views=clean",
    "select.influence.target=cross-fit",
    "select.influence.folds=2",
    "select.influence.l2=0.003",
    "select.influence.labels=revised",
    "select.influence.pca=6",
    "select.influence.diagnostics=false",
]


@pytest.fixture(scope="module")
def configured(digits: Config, tmp_path_factory):
    """The cache of `digits` in a workspace of its own, without local copies and selections."""

    def config_in(name: str) -> Config:
        workspace = folder / name
        if not workspace.exists():
            linked_copy(digits.workspace, workspace, without=("selections", "runs", "*.hydrated"))
        return with_overrides(digits, [f"workspace={workspace}", *STAGE])

    folder = tmp_path_factory.mktemp("stage")
    return config_in


def files_of(config: Config) -> dict[Path, Path]:
    folder = config.selections_folder
    return {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}


def numbers_of(path: Path) -> dict[str, Tensor]:
    """The columns of a table, texts by the order of their values."""
    frame = pd.read_parquet(path)
    objects = frame.select_dtypes(exclude=["number", "bool"])
    codes = {name: pd.factorize(values, sort=False)[0] for name, values in objects.items()}
    return {name: torch.tensor(np.array(codes.get(name, frame[name]))) for name in frame}


@pytest.mark.parametrize("world", WORLDS)
def test_the_stage_makes_the_same_files_by_several_ranks(configured, tmp_path, monkeypatch, world):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone, shared = configured("alone"), configured(f"by {world}")
    select.execute(alone)

    def select_twice(ranks: Ranks) -> dict[str, Tensor]:
        table = select.execute(shared, ranks=ranks)
        before = snapshot(shared.workspace)
        ranks.wait()
        assert select.execute(shared, ranks=ranks).id == table.id
        assert snapshot(shared.workspace) == before, "nothing is made twice"
        return {"selected": torch.from_numpy(table.selected.copy())}

    first, *others = on_ranks(select_twice, world=world, folder=tmp_path)
    assert all(torch.equal(other["selected"], first["selected"]) for other in others)
    expected, found = files_of(alone), files_of(shared)
    assert found.keys() == expected.keys()
    assert unfinished(shared.workspace) == []
    for name, path in found.items():
        if name.suffix == ".parquet":
            columns = numbers_of(expected[name])
            for column, values in numbers_of(path).items():
                assert_equal_to_rounding(values, columns[column], name=f"{name} {column}")
        elif name.name == "0":
            assert path.read_bytes() == expected[name].read_bytes()  # 16 bits hide the rounding


def test_no_rank_waits_for_one_that_has_died(tmp_path):
    def fit_with_one_rank_less(ranks: Ranks) -> None:
        problem = replace(problem_of(num_samples=41), sharing=ranks)
        if ranks.rank == 1:
            os._exit(7)
        fit(problem, start=random_head(problem))

    assert exit_codes(fit_with_one_rank_less, world=2, folder=tmp_path) == [1, 7]
