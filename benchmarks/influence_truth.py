"""Claim: predicted influence agrees with refitting the head, if p_eff/N is small.

The head is fitted to the clean view of a cache's training samples, and the loss of its held-out
samples is predicted. Four truths are computed by refitting: leave one sample out; remove a random
half or tenth; swap one sample between its hard label and distillation; swap a random half or tenth.
All predictors score the same samples, drawn before any truth is known. Intervals are 95 %,
bootstrapped over the refits.

    python benchmarks/influence_truth.py [CONFIG] [--set KEY=VALUE ...] [--json FILE]

It needs the cache of CONFIG (`heartcut cache-teacher`). Without CONFIG it makes the digits' cache.
"""

import argparse
import json
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _agreement import Truth
from _common import machine
from _heads import EXACT, Data, Head, Setting, midway, pushes, swap_residuals
from _refits import GTOL, Centre, without
from torch import Tensor

from pipeline.methods.head.problem import HeadProblem
from pipeline.methods.head.solver import fit
from pipeline.runtime.device import num_cores, versions
from pipeline.runtime.progress import Progress, progress
from stages import cache_teacher, prepare, train_teacher
from stages.config.file import load_config

DIGITS = Path("configs/digits.toml")
ALONE, SWAPPED, SUBSETS = 200, 100, 60
STRATA = 20
TRUSTED = 0.1  # p_eff / N up to which the thresholds apply
FEW_ROWS = 600
MIDWAY, NEWTON = "exact solve, read midway", "one Newton step"
CHECKED = (0, -1)  # refits that are repeated by `fit` with a ten times smaller tolerance


def leave_one_out(hard: Head, bar: Progress) -> Truth:
    column = hard.column("dloss_remove")
    rows = stratified(column[EXACT], ALONE)
    changed = [without(hard.problem, row[None]) for row in rows]
    return truth(
        "leave one out", hard, changed, {by: scores[rows] for by, scores in column.items()}, bar
    )


def single_swaps(head: Head, name: str, bar: Progress) -> Truth:
    """Swap one sample between its hard label and distillation."""
    column = head.column(name)
    rows = stratified(column[EXACT], SWAPPED)
    distilled = head.problem.distilled
    changed = []
    for row in rows:
        other = distilled.clone()
        other[row] = 1.0 - other[row]
        changed.append(replace(head.problem, distilled=other))
    predicted = {by: scores[rows] for by, scores in column.items()}
    return truth(f"single swap ({name})", head, changed, predicted, bar)


def subset_removals(hard: Head, keep: float, bar: Progress) -> Truth:
    """LDS: keep random subsets."""
    problem = hard.problem
    num_removed = problem.num_samples - round(keep * problem.num_samples)
    share = 1.0 - num_removed / problem.num_samples
    masks = random_masks(problem.num_samples, num_removed)
    predicted = {by: masks @ scores for by, scores in hard.column("dloss_remove").items()}
    centre = Centre.of(replace(problem, l2=problem.l2 / share), start=hard.centre.weight)
    predicted[MIDWAY] = masks @ midway(centre, hard.target).dloss_remove.mean / share
    residuals = torch.cat([chunk.residuals() for chunk in hard.centre.linear.chunks()])
    predicted[NEWTON] = hard.after_step(-pushes(problem, masks, residuals), share=share)
    changed = [without(problem, mask.nonzero().squeeze(1)) for mask in masks]
    name = f"LDS, {100 * keep:.0f} % kept"
    return truth(name, replace(hard, centre=centre), changed, predicted, bar, base=hard.base)


def subset_swaps(head: Head, name: str, share: float, bar: Progress) -> Truth:
    """Swap a fraction of the samples between hard label and distillation."""
    problem, own = head.problem, head.problem.distilled
    masks = random_masks(problem.num_samples, round(share * problem.num_samples))
    predicted = {by: masks @ scores for by, scores in head.column(name).items()}
    average = replace(problem, distilled=own + share * (1.0 - 2.0 * own))
    centre = Centre.of(average, start=head.centre.weight)
    predicted[MIDWAY] = masks @ getattr(midway(centre, head.target), name).mean
    sign = 1.0 if name == "dloss_swap" else -1.0
    predicted[NEWTON] = head.after_step(sign * pushes(problem, masks, swap_residuals(head)))
    changed = [replace(problem, distilled=torch.where(mask > 0, 1.0 - own, own)) for mask in masks]
    title = f"{100 * share:.0f} % swapped ({name})"
    return truth(title, replace(head, centre=centre), changed, predicted, bar, base=head.base)


def truth(
    name: str,
    head: Head,
    changed: list[HeadProblem],
    predicted: dict[str, Tensor],
    bar: Progress,
    *,
    base: float | None = None,
) -> Truth:
    """Refit every changed problem from the head's centre."""
    base, losses = head.base if base is None else base, []
    for problem in changed:
        losses.append(head.target.loss(head.centre.refit(problem)))
        bar.advance(1, note=name)
    values = np.array(losses) - base
    again = [
        head.target.loss(fit(changed[i], start=head.centre.weight, gtol=GTOL / 10).weight)
        for i in CHECKED
    ]
    error = max(abs(loss - losses[i]) for i, loss in zip(CHECKED, again, strict=True))
    return Truth(
        name=name,
        effective=head.effective,
        values=values,
        predicted={by: scores.numpy() for by, scores in predicted.items()},
        refit_error=error / float(values.std()),
    )


def stratified(scores: Tensor, count: int) -> Tensor:
    """Samples drawn from each of `STRATA` quantiles of the scores."""
    generator = torch.Generator().manual_seed(0)
    strata = scores.argsort().tensor_split(STRATA)
    picks = [part[torch.randperm(len(part), generator=generator)] for part in strata]
    return torch.cat([part[: count // STRATA] for part in picks])


def random_masks(num_samples: int, count: int) -> Tensor:
    """`SUBSETS` random subsets of ``count`` samples, (G, N) of 0 and 1."""
    generator = torch.Generator().manual_seed(count)
    masks = torch.zeros(SUBSETS, num_samples, dtype=torch.float64)
    for mask in masks:
        mask[torch.randperm(num_samples, generator=generator)[:count]] = 1.0
    return masks


def measure(setting: Setting, data: Data, bar: Progress) -> list[Truth]:
    """Compute all truths of a setting; removal does not depend on the temperature."""
    hard = Head.of(data.problem(setting, distilled=0.0), data)
    distilled = Head.of(data.problem(setting, distilled=1.0), data)
    errors = max(hard.kronfluence_error, distilled.kronfluence_error)
    logging.info("largest relative difference from kronfluence's own scores: %.0e", errors)
    found = []
    if setting.temperature == 1.0:
        found.append(leave_one_out(hard, bar))
        found += [subset_removals(hard, keep, bar) for keep in (0.5, 0.9)]
    for head, name in ((hard, "dloss_swap"), (distilled, "dloss_undistill")):
        found.append(single_swaps(head, name, bar))
        found += [subset_swaps(head, name, share, bar) for share in (0.5, 0.1)]
    return found


def settings(num_rows: int) -> list[Setting]:
    """All samples with usual l2 values, and few samples with smaller and smaller ones."""
    few = [Setting(l2=l2, num_rows=FEW_ROWS) for l2 in (1.0, 1e-1, 1e-2, 1e-3, 1e-4)]
    return [
        Setting(l2=1e-4),
        Setting(l2=1e-3),
        Setting(l2=1e-4, temperature=4.0),
        *(few if num_rows > FEW_ROWS else []),
    ]


def num_refits(setting: Setting) -> int:
    removals = ALONE + 2 * SUBSETS if setting.temperature == 1.0 else 0
    return removals + 2 * (SWAPPED + 2 * SUBSETS)


def show(setting: Setting, truths: list[Truth], num_rows: int) -> None:
    """Print one table for each truth."""
    used = setting.num_rows or num_rows
    print(f"\n## N = {used:,}, l2 = {setting.l2:g}, temperature {setting.temperature:g}")
    for one in truths:
        print(
            f"\n{one.name}: p_eff/N {one.effective:.3f}, n = {len(one.values)}, true changes "
            f"{one.values.mean():.2e} +- {one.values.std():.2e}, refit error "
            f"{one.refit_error:.0e} of their sd\n"
        )
        print("| predictor | Pearson | Spearman | slope |\n|---|---|---|---|")
        for by, found in one.agreements.items():
            print(f"| {by} | {found.pearson} | {found.spearman} | {found.slope} |")


def show_summary(results: dict[Setting, list[Truth]]) -> None:
    """Print the agreement of the exact scores next to p_eff/N and the thresholds."""
    print("\n## Exact scores against p_eff/N\n")
    print("Pearson of single samples, Spearman of subsets.\n")
    print("| N | l2 | temperature | truth | p_eff/N | exact solve | read midway | wanted |")
    print("|---|---|---|---|---|---|---|---|")
    for setting, truths in results.items():
        for one in truths:
            alone = one.name.startswith(("leave", "single"))
            found = {
                by: each.pearson if alone else each.spearman for by, each in one.agreements.items()
            }
            wanted = 0.85 if one.name == "LDS, 50 % kept" else 0.99 if alone else 0.95
            print(
                f"| {setting.num_rows or 'all'} | {setting.l2:g} | {setting.temperature:g} "
                f"| {one.name} | {one.effective:.3f} | {found[EXACT]} | {found.get(MIDWAY, '-')} "
                f"| {f'>= {wanted}' if one.effective <= TRUSTED else '-'} |"
            )


def as_json(results: dict[Setting, list[Truth]], seconds: float) -> str:
    """All results as JSON, with the numbers of every refit."""
    parts = [
        {
            "setting": vars(setting),
            "truth": one.name,
            "p_eff_over_n": one.effective,
            "refit_error": one.refit_error,
            "values": one.values.tolist(),
            "predicted": {by: scores.tolist() for by, scores in one.predicted.items()},
        }
        for setting, truths in results.items()
        for one in truths
    ]
    whole = {"machine": machine(), "versions": versions(), "seconds": seconds, "results": parts}
    return json.dumps(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="file to write the numbers of every refit to")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(num_cores())
    config = load_config(arguments.config or DIGITS, overrides=arguments.set)
    if arguments.config is None:
        for stage in (prepare, train_teacher, cache_teacher):
            stage.execute(config)
    data = Data.read(config)
    num_rows, started = len(data.labels), time.perf_counter()
    chosen = settings(num_rows)
    print(f"N = {num_rows:,}, M = {len(data.target.labels):,}; {machine()}")
    results = {}
    with progress("refit", total=sum(map(num_refits, chosen)), unit="refits") as bar:
        for setting in chosen:
            results[setting] = measure(setting, data, bar)
            show(setting, results[setting], num_rows)
            sys.stdout.flush()
    show_summary(results)
    seconds = time.perf_counter() - started
    print(f"\n{sum(map(num_refits, chosen)):,} refits, {seconds:.0f} s; {versions()}")
    if arguments.json:
        arguments.json.write_text(as_json(results, seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
