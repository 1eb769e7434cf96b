"""Every file that commands write, how commands read it, and single flipped bits in it.

    OMP_NUM_THREADS=1 python -m tests.artefacts.flips [BITS]

This command makes a small workspace, flips BITS bits of every file (a fifth of them where damaged
files are recomputed, all where a file has no more), and prints a table in Markdown: by format, how
many flips were rejected, repaired or of no effect.
"""

import contextlib
import logging
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from pipeline.artefacts import comparison
from pipeline.artefacts.cache.hydration import HYDRATED, HydratedCache
from pipeline.artefacts.cache.index import recall
from pipeline.artefacts.cache.join import join_samples
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.cache.verify import check_cache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.objects.local import LocalObjects
from pipeline.artefacts.records import read_record
from pipeline.artefacts.run import Inputs, Run, read_settings
from pipeline.artefacts.scores import ScoreTable
from pipeline.artefacts.selection import SelectionTable, read_selection_record
from pipeline.artefacts.soft_labels import SoftLabels
from pipeline.artefacts.sweep import Chosen, SweepFolder, sweep_folder
from pipeline.artefacts.unfinished_run import read_state, require_same_training
from pipeline.errors import PipelineError
from stages.show import run as show_run
from stages.training.predictions import open_predictions
from tests.support.golden_workspace import make
from tests.support.workspaces import contents

END_BYTES: Final = 24
"""Bytes at both ends of a file whose bits are all flipped: headers, magic numbers, lengths."""
Reader = Callable[[Path, Path], object]
"""Read what a file belongs to, as commands do: from (workspace, file) to something that has ==."""


def frame_text(frame: pd.DataFrame) -> str:
    """Values, gaps and types of a table."""
    return f"{frame.dtypes.to_dict()}\n{frame.to_csv()}"


def read_dataset(workspace: Path, _: Path) -> object:
    opened = Dataset.open(workspace / "data")
    parts = (opened.train.samples, opened.eval.samples)
    arrays = [part.keys.tobytes() + part.labels.tobytes() + part.pixels.tobytes() for part in parts]
    return opened.record, arrays


def read_index(workspace: Path, path: Path) -> object:
    folder = workspace / "caches"
    return [recall(folder, request=path.stem, split=split) for split in ("train", "eval")]


def cache_of(path: Path) -> Path:
    return next(folder for folder in path.parents if folder.parent.name == "caches")


def read_cache(_: Path, path: Path) -> object:
    cache = TeacherCache.open(cache_of(path))
    views = range(cache.shape.num_views)
    arrays = [cache.logits(view) for view in views]
    if cache.manifest.identity.features:
        arrays += [cache.features(view) for view in views]
    arrays += [cache.labels, cache.keys, cache.pixels, *cache.head]
    return cache.manifest, cache.seal, [array.tobytes() for array in arrays]


def verify_cache(_: Path, path: Path) -> object:
    """Read as `heartcut cache verify` does; its problems are its errors."""
    folder = cache_of(path)
    problems = check_cache(LocalObjects(folder), read_bytes=True).problems
    if problems:
        raise PipelineError("; ".join(problems))
    return read_cache(folder, path)


def read_copies(workspace: Path, path: Path) -> object:
    """Read the local copies of a cache, which are recomputed from the cache if they are damaged."""
    root = path.parent.name.removesuffix(HYDRATED)
    caches = [TeacherCache.open(seal.parent) for seal in workspace.glob("caches/*/sealed.json")]
    (cache,) = [cache for cache in caches if cache.root.startswith(root)]
    samples = Dataset.open(workspace / "data").train.samples
    joined = join_samples(cache, samples, place="flips")
    copies = HydratedCache(cache=cache, joined=joined, folder=workspace / "caches")
    logits = copies.logits(0, temperature=1.0).numpy().tobytes()
    return logits, [copies.features(view).tobytes() for view in range(cache.shape.num_views)]


def read_selection(_: Path, path: Path) -> object:
    table = SelectionTable.open(path)
    assert read_selection_record(path) == table.record
    return table.record, frame_text(table.frame)


def read_scores(_: Path, path: Path) -> object:
    table = ScoreTable.open(path)
    return table.record, frame_text(table.frame)


def read_soft_labels(_: Path, path: Path) -> object:
    folder = next(one for one in (path, *path.parents) if one.suffix == ".soft")
    soft = SoftLabels.open(folder)
    return soft.record, [view.tobytes() for view in soft.views()]


def read_run(_: Path, path: Path) -> object:
    run = Run.open(path.parent)
    return run.result, run.epochs(), read_settings(run.path), run.weights.read_bytes()


def read_predictions(workspace: Path, path: Path) -> object:
    """Read the predictions as `report` does: they are recomputed if they are damaged."""
    found = open_predictions(Run.open(path.parent), Dataset.open(workspace / "data"))
    return found.record, frame_text(found.frame)


def read_training(_: Path, path: Path) -> object:
    """Compare the description of an unfinished run, as `--resume` does."""
    written = contents(path.parent.parent / f"{path.parent.name}.json")
    inputs = Inputs.model_validate(written.pop("inputs"))
    require_same_training(path.parent, settings=written, inputs=inputs)
    return None


def read_checkpoint(_: Path, path: Path) -> object:
    return repr(read_state(path))


def read_comparison(workspace: Path, _: Path) -> object:
    return comparison.read(workspace)


def read_sweep(_: Path, path: Path) -> object:
    return SweepFolder(path=path.parent).rows()


def read_tracebacks(_: Path, path: Path) -> object:
    """Read what a sweep reads; tracebacks are for people."""
    return SweepFolder(path=path.parent.parent).rows()


def read_choice(_: Path, path: Path) -> object:
    return read_record(Chosen, path, made_by="heartcut sweep", remedy="")


def read_resumed(_: Path, path: Path) -> object:
    """Read what resuming reads: metrics.jsonl is written again from the checkpoint."""
    return read_checkpoint(path, path.with_name("checkpoint.safetensors"))


def read_shown(workspace: Path, _: Path) -> object:
    """Read everything that `show run` prints, which includes no events of TensorBoard."""
    return show_run.execute([workspace / "runs"])


@dataclass(frozen=True)
class Format:
    """One format: its files, and how commands read them."""

    name: str
    pattern: str
    """Pattern of paths below the workspace."""
    read: Reader


FORMATS: Final = (
    Format("`dataset.json`", "data/dataset.json", read_dataset),
    Format("betons", "data/*.beton", read_dataset),
    Format("samples of the data set", "data/*.samples.safetensors", read_dataset),
    Format("index of caches", "caches/index/*.json", read_index),
    Format("cache: `manifest.json`, `sealed.json`", "caches/*/sealed.json", read_cache),
    Format("cache: `manifest.json`, `sealed.json`", "caches/*/manifest.json", read_cache),
    Format("cache: arrays", "caches/*/data.zarr/*", read_cache),
    Format("cache: receipts (`cache verify`)", "caches/*/receipts/*", verify_cache),
    Format("local copies of a cache", "caches/*.hydrated/*", read_copies),
    Format("selection table", "selections/*.parquet", read_selection),
    Format("score file", "selections/*.scores.parquet", read_scores),
    Format("soft labels", "selections/*.soft/*", read_soft_labels),
    Format("run: `result.json`", "runs/*/result.json", read_run),
    Format("run: `config.toml`", "runs/*/config.toml", read_run),
    Format("run: `metrics.jsonl`", "runs/*/metrics.jsonl", read_run),
    Format("run: `model.safetensors`", "runs/*/model.safetensors", read_run),
    Format("run: `predictions.parquet`", "runs/*/predictions.parquet", read_predictions),
    Format("`compared.json`", "compared.json", read_comparison),
    Format("sweep: `results.parquet`", "sweeps/*/results.parquet", read_sweep),
    Format("sweep: `chosen.json`", "sweeps/*/chosen.json", read_choice),
    Format("unfinished run: `training.json`", "under-way/*/training.json", read_training),
    Format("unfinished run: checkpoint", "under-way/*/checkpoint.safetensors", read_checkpoint),
    Format("unfinished run: `metrics.jsonl`", "under-way/*/metrics.jsonl", read_resumed),
    Format("TensorBoard events", "*/events.out.tfevents.*", read_shown),
    Format("tracebacks of a sweep", "sweeps/*/failures/*", read_tracebacks),
)
"""A later format is tried first, so it may be a special case of an earlier one."""
RECOMPUTED: Final = ("local copies of a cache", "run: `predictions.parquet`")
"""Formats whose damaged files are recomputed, which takes longer than rejecting them."""
NOT_WRITTEN_BY_COMMANDS: Final = ("images/*", "golden.toml", "*/lock", "under-way/*.training.json")


def format_of(name: str) -> Format | None:
    """Find the format of a file by its path below the workspace; None if there is none."""
    found = [one for one in FORMATS if fnmatchcase(name, one.pattern)]
    return found[-1] if found else None


def make_workspace(workspace: Path) -> Path:
    """Make a small workspace with every artefact."""
    make(workspace)
    for path in workspace.glob("under-way/*/training.json"):
        shutil.copy2(path, path.parent.with_name(f"{path.parent.name}.json"))
    sweep_folder(workspace, "rates").write_traceback("a" * 64, "Traceback of a failure")
    return workspace


def files_by_format(workspace: Path) -> dict[str, list[Path]]:
    """List the files of a workspace by the name of their format.

    Raises:
        AssertionError: if a file has no format, so a new format cannot be forgotten here.
    """
    found: dict[str, list[Path]] = {one.name: [] for one in FORMATS}
    for path in sorted(workspace.rglob("*")):
        name = path.relative_to(workspace).as_posix()
        if path.is_dir() or any(fnmatchcase(name, known) for known in NOT_WRITTEN_BY_COMMANDS):
            continue
        own = format_of(name)
        assert own is not None, f"{name} has no format"
        if path.stat().st_size:
            found[own.name].append(path)
    return found


@dataclass
class Outcomes:
    """Results of the flips in the files of one format."""

    num_files: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counter[str]) -> None:
        self.num_files += 1
        self.counts += other


def bits_of(path: Path, most: int, *, seed: int = 0) -> list[int]:
    """Choose the bits to flip: all, or those of both ends and others at random."""
    num = 8 * path.stat().st_size
    if num <= most:
        return list(range(num))
    ends = [*range(8 * END_BYTES), *range(num - 8 * END_BYTES, num)]
    rng = np.random.default_rng(seed)
    if most <= len(ends):
        half = rng.choice(ends, most // 2, replace=False)
        return sorted({*half.tolist(), *rng.integers(num, size=most - most // 2).tolist()})
    return sorted({*ends, *rng.integers(num, size=most - len(ends)).tolist()})


def flip_bits(workspace: Path, path: Path, bits: list[int]) -> Counter[str]:
    """Flip single bits of a file, read it each time, and count what happened.

    Raises:
        AssertionError: if a flip changes what is read, or its error is not one line that names
            the file.
    """
    own = format_of(path.relative_to(workspace).as_posix())
    assert own is not None
    counts: Counter[str] = Counter()
    original = path.read_bytes()
    expected = own.read(workspace, path)
    for bit in bits:
        with flipped_bit(path, original, bit):
            try:
                read = own.read(workspace, path)
            except PipelineError as error:
                line = str(error)
                assert "\n" not in line, (path, bit, line)
                assert path.name in line, (path, bit, line)
                counts["rejected"] += 1
                continue
            assert read == expected, f"bit {bit} of {path} changes what is read"
            is_flipped = path.read_bytes() != original
            counts["no effect" if is_flipped else "repaired"] += 1
    return counts


@contextlib.contextmanager
def flipped_bit(path: Path, original: bytes, bit: int) -> Iterator[None]:
    """One bit of a file inverted for a while."""
    place, mask = bit // 8, 1 << bit % 8
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([original[place] ^ mask]))
    try:
        yield
    finally:  # a repair may have replaced the file
        if path.stat().st_size == len(original):
            with path.open("r+b") as file:
                file.seek(place)
                file.write(original[place : place + 1])
        else:
            path.write_bytes(original)


def tables(workspace: Path, most: int) -> Iterator[str]:
    """Rows of the table in Markdown."""
    yield "| format | files | flips | rejected | repaired | no effect |"
    yield "|---|---|---|---|---|---|"
    total = Outcomes()
    for name, paths in files_by_format(workspace).items():
        found = Outcomes()
        own = most // 5 if name in RECOMPUTED else most
        for path in paths:
            found.add(flip_bits(workspace, path, bits_of(path, own)))
        total.num_files += found.num_files
        total.counts += found.counts
        yield _row(name, found)
    yield _row("all", total)


def _row(name: str, found: Outcomes) -> str:
    counts = [found.counts[kind] for kind in ("rejected", "repaired", "no effect")]
    numbers = " | ".join(f"{number:,}" for number in (found.num_files, sum(counts), *counts))
    return f"| {name} | {numbers} |"


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # every repair warns
    with tempfile.TemporaryDirectory() as folder:
        made = make_workspace(Path(folder) / "work")
        for line in tables(made, int(sys.argv[1]) if len(sys.argv) > 1 else 1000):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
