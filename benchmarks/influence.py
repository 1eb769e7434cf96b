"""Claim: exact influence is many times faster than kronfluence.

Synthetic features (`_head_data`), 100 classes, 256 features, 5,000 held-out samples, the head with
everything distilled. kronfluence gets an `nn.Linear` with the fitted head, its defaults, and one
aggregated query; its time is that of fitting factors and scoring. heartcut is timed twice: with the
same fitted head, and with the fit from the teacher's head. All are compared with scores solved to
1e-12 in float64.

    python benchmarks/influence.py [--rounds 3] [--rows 50000] [--classes 100] [--features 256]

`--large` instead scores 320,000 and 1,280,000 rows of 1,000 classes and 512 features from memory-
mapped files, with `hessian_subsample` 100,000, one process for each size, and prints time and peak
memory. It needs 4 GB of disk in --folder and 15 minutes.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from _common import machine
from _head_data import FeatureRows, LabelRows, Synthetic, synthetic
from scipy.stats import spearmanr
from torch import Tensor

from pipeline.methods.head.ekfac import ekfac
from pipeline.methods.head.influence import heldout_gradient, score_rows
from pipeline.methods.head.preconditioner import Preconditioner
from pipeline.methods.head.problem import HeadProblem, Linearisation
from pipeline.methods.head.solver import fit, least_gradient, least_residual, solve, with_precision
from pipeline.runtime.device import versions

L2 = 1e-4
SUBSAMPLE = 100_000
LARGE = (320_000, 1_280_000)
TARGETS = {"given the head": 12.0, "with the refit": 5.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=5_000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--one", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.large:
        large(options.folder)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.one:
            print(json.dumps(score_from_disk(Path(folder), num_rows=options.one)))
        else:
            compare(options, Path(folder))


def problem_of(data: Synthetic, rows: Tensor, **settings: float) -> HeadProblem:
    """The problem with everything distilled, at temperature 1."""
    problem = HeadProblem(
        features=FeatureRows(values=data.features),
        labels=data.labels,
        soft_labels=LabelRows(values=data.logits),
        distilled=torch.ones(len(data.labels)),
        kd_weight=0.9,
        **{"l2": L2, **settings},
    )
    return with_precision(problem.part(rows), num_classes=len(data.head))


def compare(options: argparse.Namespace, folder: Path) -> None:
    from _kronfluence import kronfluence_fit

    data = synthetic(
        folder,
        num_samples=options.rows + options.held_out,
        num_classes=options.classes,
        num_features=options.features,
    )
    rows, held_out = torch.arange(len(data.labels)).split([options.rows, options.held_out])
    problem = problem_of(data, rows)
    features, labels = data.features[held_out], data.labels[held_out]
    exact_linear = fit(replace(problem, products=torch.float64), start=data.head).linear
    weight = exact_linear.weight
    exact = exact_scores(exact_linear, features, labels)
    dense = replace(
        problem,
        features=data.features[rows][None],
        soft_labels=data.logits[rows].float().softmax(dim=1)[None],
    )

    def given_head() -> Tensor:
        return scores_at(problem.linearise(weight), None, features, labels)

    def with_refit() -> Tensor:
        fitted = fit(problem, start=data.head, gtol=least_gradient(problem))
        return scores_at(fitted.linear, fitted.preconditioner, features, labels)

    def theirs() -> Tensor:
        return kronfluence_fit(dense, weight, features=features, labels=labels).removal

    contestants = {
        "kronfluence": theirs,
        "given the head": given_head,
        "with the refit": with_refit,
    }
    seconds, found = timed(contestants, rounds=options.rounds)
    accuracy = float((data.logits.argmax(dim=1) == data.labels).float().mean())
    facts = {
        "rows": options.rows,
        "teacher_accuracy": accuracy,
        "effective_parameters": ekfac(exact_linear).effective_parameters / options.rows,
    }
    show(facts, seconds, found, exact)


def exact_scores(linear: Linearisation, features: Tensor, labels: Tensor) -> Tensor:
    """Solve dloss_remove in float64 to a residual of 1e-12."""
    gradient = heldout_gradient(linear.weight, features, labels)
    solution = solve(linear, gradient, rtol=1e-12, max_iterations=5000).solution
    return score_rows(linear, solution).dloss_remove.mean


def scores_at(
    linear: Linearisation, helper: Preconditioner | None, features: Tensor, labels: Tensor
) -> Tensor:
    """Held-out gradient, solve and scores, as in `select`."""
    gradient = heldout_gradient(linear.weight, features, labels)
    rtol = least_residual(linear.problem)
    solved = solve(linear, gradient, preconditioner=helper, rtol=rtol)
    return score_rows(linear, solved.solution).dloss_remove.mean


def timed(
    contestants: dict[str, Callable[[], Tensor]], *, rounds: int
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of all contestants, taken in turn after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    found = {}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            found[name] = run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds, found


def show(
    facts: dict[str, float],
    seconds: dict[str, list[float]],
    found: dict[str, Tensor],
    exact: Tensor,
) -> None:
    """Print hardware, a table, and one line of JSON."""
    print(f"\n{__doc__.splitlines()[0]}\n{machine()}")
    print(", ".join(f"{name} {value:.4g}" for name, value in facts.items()))
    print(f"\n{'':22} {'s, median':>10} {'min - max':>17} {'n':>3} {'faster':>8} {'Spearman':>9} ")
    ratios, ranks = {}, {}
    for name, values in seconds.items():
        ratios[name] = statistics.median(
            other / own for own, other in zip(values, seconds["kronfluence"], strict=True)
        )
        ranks[name] = float(spearmanr(found[name], exact).statistic)
        error = float((found[name] - exact).norm() / exact.norm())
        print(row(name, values) + f"{ratios[name]:>8.1f}x {ranks[name]:>9.6f}   error {error:.1e}")
    print(f"targets: {TARGETS}")
    line = {
        "machine": machine(),
        "versions": versions(),
        **facts,
        "seconds": seconds,
        "median_ratio": ratios,
        "spearman": ranks,
    }
    print(json.dumps(line), flush=True)


def row(name: str, values: list[float]) -> str:
    spread = f"{min(values):.2f} - {max(values):.2f}"
    return f"{name:22} {statistics.median(values):>10.2f} {spread:>17} {len(values):>3} "


def large(folder: Path | None) -> None:
    """Run one process for each size, so that peak memory is its own."""
    print(f"\n{machine()}, 1,000 classes, 512 features, hessian_subsample {SUBSAMPLE:,}\n")
    for num_rows in LARGE:
        command = [sys.executable, __file__, "--one", str(num_rows)]
        if folder is not None:
            command += ["--folder", str(folder)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(output.strip().splitlines()[-1], flush=True)


def score_from_disk(folder: Path, *, num_rows: int) -> dict[str, float]:
    """Refit, solve and score the all-distilled head from memory-mapped files."""
    held_out = 20_000
    data = synthetic(folder, num_samples=num_rows + held_out, num_classes=1000, num_features=512)
    rows = torch.arange(num_rows)
    features, labels = data.features[num_rows:], data.labels[num_rows:]
    problem = problem_of(data, rows)
    few = (torch.arange(SUBSAMPLE) * num_rows) // SUBSAMPLE
    problem = replace(problem, hessian_samples=few)
    start = time.perf_counter()
    fitted = fit(problem, start=data.head, gtol=least_gradient(problem))
    fit_seconds = time.perf_counter() - start
    gradient = heldout_gradient(fitted.weight, features, labels)
    helper = fitted.preconditioner
    solved = solve(fitted.linear, gradient, preconditioner=helper, rtol=least_residual(problem))
    scores = score_rows(fitted.linear, solved.solution)
    return {
        "rows": num_rows,
        "seconds": time.perf_counter() - start,
        "fit_seconds": fit_seconds,
        "newton_steps": fitted.iterations,
        "gradient_norm": fitted.gradient_norm,
        "iterations": solved.iterations,
        "residual": solved.relative_residual,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "kept": float((scores.dloss_undistill.mean > 0).double().mean()),
    }


if __name__ == "__main__":
    main()
