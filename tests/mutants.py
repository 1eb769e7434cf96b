"""Break the code on purpose, one mistake at a time, and run the tests that should see it.

    python tests/mutants.py               # all mutants
    python tests/mutants.py methods/head  # those whose file or name contains this

The first seven are mistakes of influence that public libraries have made; the others break one
package of the product each. Prints which test failed first; exits 1 if a mutant lives.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

PROJECT = Path(__file__).parents[1]
COPIED = ("cli.py", "commands", "pipeline", "stages", "tests", "pyproject.toml")
TESTS = tuple(
    f"tests/methods/head/test_{name}.py"
    for name in ("head_influence", "influence_oracles", "influence_truth")
)


@dataclass(frozen=True)
class Mutant:
    """One edit of one file; ``old`` must be there exactly once."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = TESTS
    """The test modules that are run."""


MUTANTS = (
    Mutant(
        "transposed eigenbasis",
        "pipeline/methods/head/ekfac.py",
        """\
        rotated = self.class_basis.T @ right_side @ self.input_basis
        return self.class_basis @ (rotated / (self.eigenvalues + self.l2)) @ self.input_basis.T
""",
        """\
        rotated = self.class_basis @ right_side @ self.input_basis.T
        return self.class_basis.T @ (rotated / (self.eigenvalues + self.l2)) @ self.input_basis
""",
    ),
    Mutant(
        "bias appended by flatten and reshape",
        "pipeline/methods/head/rows.py",
        "    return F.pad(features, (0, 1), value=1.0)\n",
        """\
    ones = torch.ones_like(features[:, 0])
    return torch.cat([features.flatten(), ones]).reshape(len(features), -1)
""",
    ),
    Mutant(
        "sum of per-batch inverses",
        "pipeline/methods/head/solver.py",
        """\
    right_side = right_side.double()
    _require_right_side(right_side, linear=linear)
""",
        """\
    right_side = right_side.double()
    whole, rows = linear.problem, linear.problem.rows_per_chunk
    if whole.num_samples > rows:
        batches = torch.arange(whole.num_samples).split(rows)
        parts = [whole.part(batch).linearise(linear.weight) for batch in batches]
        found = [solve(part, right_side, rtol=rtol) for part in parts]
        return HeadSolution(
            solution=torch.stack([part.solution for part in found]).sum(dim=0),
            relative_residual=max(part.relative_residual for part in found),
            iterations=max(part.iterations for part in found),
        )
    _require_right_side(right_side, linear=linear)
""",
    ),
    Mutant(
        "wrong sign",
        "pipeline/methods/head/influence.py",
        "remove.add((residuals * pulls)",
        "remove.add(-(residuals * pulls)",
    ),
    Mutant(
        "missing 1 / N",
        "pipeline/methods/head/influence.py",
        "scaled = values.double() / self._problem.num_samples\n",
        "scaled = values.double()\n",
    ),
    Mutant(
        "mean over views before the outer product",
        "pipeline/methods/head/influence.py",
        "            remove.add((residuals * pulls).sum(dim=1), group=group)\n",
        """\
            views = (linear.problem.num_views, -1, pulls.shape[1])
            products = residuals.reshape(views).mean(dim=0) * pulls.reshape(views).mean(dim=0)
            remove.add(products.sum(dim=1).repeat(linear.problem.num_views), group=group)
""",
    ),
    Mutant(
        "regularised bias",
        "pipeline/methods/head/problem.py",
        "        mask[:, -1] = float(self.regularise_bias)\n",
        "        mask[:, -1] = 1.0\n",
    ),
    Mutant(
        "results out of order",
        "pipeline/runtime/read_ahead.py",
        "yield waiting.popleft().result()",
        "yield waiting.pop().result()",
        ("tests/data/test_reading.py",),
    ),
    Mutant(
        "revision of the top class in place of the label",
        "pipeline/methods/label_revision.py",
        "probs.gather(1, labels[:, None])",
        "probs.gather(1, probs.argmin(dim=1, keepdim=True))",
        ("tests/methods/test_label_revision.py",),
    ),
    Mutant(
        "channels dealt group by group",
        "pipeline/models/networks/convolutions.py",
        "groups, channels // groups)",
        "channels // groups, groups)",
        ("tests/models/test_models_zoo.py",),
    ),
    Mutant(
        "soft labels believed without their digest",
        "pipeline/artefacts/soft_labels.py",
        "        for slot, expected in enumerate(record.sha256):\n",
        "        for slot, expected in enumerate(record.sha256[:0]):\n",
        ("tests/artefacts/test_soft_labels.py",),
    ),
    Mutant(
        "objects believed without their digest",
        "pipeline/artefacts/cache/arrays.py",
        "        if found != facts.sha256:\n",
        "        if found == '':\n",
        ("tests/artefacts/cache/test_teacher_cache.py",),
    ),
    Mutant(
        "views that do not depend on the seed",
        "pipeline/data/views.py",
        "hash_words(_VIEW_DOMAIN, np.uint64(spec.seed), low",
        "hash_words(_VIEW_DOMAIN, np.uint64(0), low",
        ("tests/data/test_views.py",),
    ),
    Mutant(
        "a short batch that weighs as much as a whole one",
        "pipeline/training/learner.py",
        "return self.loss(outputs, batch), self._ranks.world * len(batch) / place.num_in_step",
        "return self.loss(outputs, batch), self._ranks.world * 1.0",
        ("tests/training/test_learner.py",),
    ),
    Mutant(
        "the head in the precision of the trunk",
        "pipeline/teacher/frozen.py",
        "F.linear(features, model.head.weight, model.head.bias), features",
        "F.linear(features, model.head.weight.bfloat16().float(), model.head.bias), features",
        ("tests/training/test_equivalence.py", "tests/artefacts/cache/test_teacher_cache.py"),
    ),
    Mutant(
        "heads that have seen the row that they judge",
        "pipeline/influence/cross_fit.py",
        "fitted((folds >= 0) & (folds != fold))",
        "fitted(folds >= 0)",
        ("tests/influence/test_cross_fit.py",),
    ),
    Mutant(
        "a cache that is opened whenever it is asked for",
        "stages/caches.py",
        """\
    @cached_property
    def training(self)""",
        """\
    @property
    def training(self)""",
        ("tests/stages/test_caches.py",),
    ),
    Mutant(
        "the worst point chosen",
        "stages/sweep/results.py",
        "return max(means, key=means.__getitem__)",
        "return min(means, key=means.__getitem__)",
        ("tests/stages/sweep/test_sweep.py",),
    ),
    Mutant(
        "one exit code for every fault",
        "commands/shared.py",
        "raise typer.Exit(code=next(filter(None, known), FAILED)) from error",
        "raise typer.Exit(code=FAILED) from error",
        ("tests/stages/cache/test_cache_commands.py",),
    ),
)


def copy_project(folder: Path) -> Path:
    for name in COPIED:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    return folder


def break_it(folder: Path, mutant: Mutant) -> None:
    path = folder / mutant.file
    text = path.read_text()
    found = text.count(mutant.old)
    if found != 1:
        raise SystemExit(
            f"{mutant.name}: the code to change is in {mutant.file} {found} times (expected once). "
            "Bring the list in tests/mutants.py up to date."
        )
    path.write_text(text.replace(mutant.old, mutant.new))


def first_failure(folder: Path, tests: Sequence[str]) -> str | None:
    """The first of the tests that fails in a copy of the project; None if all pass."""
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode == 0:
        return None
    failed = re.search(r"^FAILED tests/(\S+)", ran.stdout, re.MULTILINE)
    if ran.returncode != 1 or failed is None:
        raise SystemExit(f"the tests did not run:\n{ran.stdout}{ran.stderr}")
    return failed[1]


def killed_by(mutant: Mutant | None, tests: Sequence[str]) -> str | None:
    with tempfile.TemporaryDirectory() as name:
        folder = copy_project(Path(name))
        if mutant is not None:
            break_it(folder, mutant)
        return first_failure(folder, tests)


def main(word: str = "") -> int:
    mutants = [one for one in MUTANTS if word in f"{one.file} {one.name}"]
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    broken = killed_by(None, tests)
    if broken is not None:
        raise SystemExit(f"the tests fail without a mutant: {broken}")
    table = Table("mutant", "file", Column("killed by", overflow="fold"), "seconds")
    survivors = 0
    for mutant in mutants:
        started = time.perf_counter()
        killer = killed_by(mutant, mutant.tests)
        survivors += killer is None
        seconds = f"{time.perf_counter() - started:.0f}"
        table.add_row(mutant.name, mutant.file, killer or "NOTHING: it lives", seconds)
    Console(width=160).print(table)
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
