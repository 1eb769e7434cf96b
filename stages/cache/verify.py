"""cache verify: checks of structure or bytes, or of the numbers against the teacher."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.artefacts.cache.arrays import LOGITS, TARGET_LOGIT, TOP_CLASS, TOP_LOGIT
from pipeline.artefacts.cache.join import ANY_LABELS, join_samples
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.cache.verify import check_cache
from pipeline.artefacts.dataset import Beton, Dataset
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.data.loaders import BatchLoader
from pipeline.data.view_specs import views_from_json
from pipeline.errors import ArtefactMismatch, ConfigError, Damaged
from pipeline.provenance import short
from pipeline.runtime.device import Runtime, resolve_runtime
from pipeline.runtime.progress import Progress, progress
from pipeline.teacher.batches import fitting_batch
from pipeline.teacher.frozen import Teacher, teacher_outputs
from pipeline.teacher.stored_outputs import TOLERANCES
from stages.caches import Caches
from stages.config.origin import with_complete_commands
from stages.config.root import Config
from stages.teacher import load_teacher
from stages.text import percent
from stages.views import seen_size


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of a check."""

    is_fine: bool
    lines: list[str]
    """Lines to print."""


def check(place: ObjectStore, *, read_bytes: bool) -> Finding:
    """Compare a cache with its seal; a line for each problem, or one line if there is none."""
    try:
        checked = check_cache(place, read_bytes=read_bytes)
    except Damaged as error:  # the seal or the manifest, so nothing else can be checked
        return Finding(is_fine=False, lines=[f"damaged: {error}"])
    lines = [f"damaged: {problem}" for problem in checked.problems]
    if checked.unknown:
        lines.append(
            f"{place.url} has {len(checked.unknown)} files that belong to no cache, first "
            f"{checked.unknown[0]}; nothing reads them"
        )
    if not checked.problems:
        how = "all bytes checked" if read_bytes else "structure checked (--bytes checks the bytes)"
        lines.append(
            f"{place.url} is OK: {checked.num_objects} objects, {checked.num_bytes:,} bytes, {how}"
        )
    return Finding(is_fine=not checked.problems, lines=lines)


def parse_share(text: str) -> float:
    """Parse ``0.1%`` or ``0.001``."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise ConfigError(
            f"--recompute {text} is not a fraction (expected for example 0.1% or 0.001)."
        )
    return share


@with_complete_commands
def recompute(config: Config, *, share: float, tolerance: float | None) -> Finding:
    """Run the teacher of a configuration on random samples of its caches, and compare.

    Raises:
        ArtefactMismatch: if a cache was made by another teacher, or from other images.
    """
    dataset = Dataset.open(config.data_folder)
    caches = Caches(config=config, dataset=dataset)
    pairs = [(caches.training, dataset.train)]
    if config.select.cache is None and caches.test is not None:
        pairs.append((caches.test, dataset.eval))
    agrees, lines = True, []
    for cache, beton in pairs:
        runtime = resolve_runtime(cache.manifest.identity.precision)
        teacher = load_teacher(config, dataset, runtime)
        _require_same_teacher(cache, teacher)
        spec = views_from_json(cache.manifest.identity.views)
        batch_size = fitting_batch(teacher.model, seen_size(spec, dataset), runtime)
        again = _Again(teacher=teacher, runtime=runtime, batch_size=batch_size)
        found = _compare(cache, beton, again, share=share)
        limit = tolerance
        if limit is None:
            limit = TOLERANCES[cache.manifest.identity.precision] * found.largest
        is_close = found.max_difference <= limit
        agrees &= is_close
        lines.append(
            f"{cache.path} {'agrees with' if is_close else 'differs from'} its teacher: "
            f"{found.num_logits:,} logits of {found.num_images:,} images in "
            f"{cache.shape.num_views} views, max |difference| {found.max_difference:.4g} (expected "
            f"at most {limit:.4g}), mean {found.mean_difference:.4g}, same top class in "
            f"{percent(found.agreement)}"
        )
    return Finding(is_fine=agrees, lines=lines)


@dataclass(frozen=True, kw_only=True)
class _Compared:
    num_images: int
    num_logits: int
    max_difference: float
    mean_difference: float
    agreement: float
    largest: float
    """max |logit|"""


def _require_same_teacher(cache: TeacherCache, teacher: Teacher) -> None:
    identity = cache.manifest.identity
    expected = {
        "weights": (identity.weights, teacher.digest),
        "arch": (identity.arch, teacher.model.arch),
        "mean": (identity.mean, teacher.mean),
        "std": (identity.std, teacher.std),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise ArtefactMismatch(
                f"{cache.path} was made by another teacher: {name} {_brief(found)} (expected "
                f"{_brief(wanted)}, as configured). Configure the teacher that made it."
            )


def _brief(value: object) -> str:
    return short(str(value)) if len(str(value)) == 64 else str(value)


@dataclass(frozen=True, kw_only=True)
class _Again:
    """The teacher that runs again, and its batch."""

    teacher: Teacher
    runtime: Runtime
    batch_size: int

    @torch.inference_mode()
    def logits(self, loader: BatchLoader, view: int, bar: Progress) -> NDArray[np.float32]:
        """Logits of all rows of a loader."""
        teacher, runtime = self.teacher, self.runtime
        normalise = teacher.normaliser(runtime.device)
        found = []
        for batch in loader.view(view):
            logits, _ = teacher_outputs(teacher.model, normalise, batch, runtime=runtime)
            found.append(logits.cpu().numpy())
            bar.advance(len(batch), note=f"view {view + 1}")
        return np.concatenate(found)


def _compare(cache: TeacherCache, beton: Beton, again: _Again, *, share: float) -> _Compared:
    joined = join_samples(cache, beton.samples, place=str(beton.path), accept=ANY_LABELS)
    known = np.flatnonzero(joined.known)
    size = max(1, round(share * len(known)))
    chosen = np.sort(np.random.default_rng().choice(known, size=size, replace=False))
    spec = views_from_json(cache.manifest.identity.views)
    loader = BatchLoader(beton, batch_size=again.batch_size, view_spec=spec, rows=chosen)
    total, largest, worst, same, count = 0.0, 0.0, 0.0, 0, 0
    num_views = cache.shape.num_views
    with progress("recompute", total=size * num_views, unit="images") as bar:
        for view in range(num_views):
            logits = again.logits(loader, view, bar)
            computed, stored, classes = _pairs(cache, view, joined.rows[chosen], logits)
            difference = np.nan_to_num(np.abs(stored - computed), nan=np.inf)
            total, count = total + float(difference.sum()), count + difference.size
            worst = max(worst, float(difference.max()))
            largest = max(largest, float(np.abs(stored).max()))
            same += int((classes == logits.argmax(axis=1)).sum())
    return _Compared(
        num_images=size,
        num_logits=count,
        max_difference=worst,
        mean_difference=total / count,
        agreement=same / (size * num_views),
        largest=largest,
    )


def _pairs(
    cache: TeacherCache, view: int, rows: NDArray[np.int64], logits: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Recomputed logits, the stored ones, and the stored top class of each row."""
    if not cache.is_sparse:
        stored = _rows(cache, LOGITS, view, rows).astype(np.float32)
        return logits, stored, stored.argmax(axis=1)
    classes = _rows(cache, TOP_CLASS, view, rows).astype(np.int64)
    top = _rows(cache, TOP_LOGIT, view, rows).astype(np.float32)
    target = _rows(cache, TARGET_LOGIT, view, rows).astype(np.float32)[:, None]
    listed = np.concatenate([classes, cache.labels[rows][:, None]], axis=1)
    again = np.take_along_axis(logits, listed, axis=1)
    return again, np.concatenate([top, target], axis=1), classes[:, 0]


def _rows(
    cache: TeacherCache, name: str, view: int, rows: NDArray[np.int64]
) -> NDArray[np.generic]:
    """Read some rows of one view, in the given order."""
    parts, start = [], 0
    order = np.argsort(rows, kind="stable")
    for block in cache.blocks(name, view):
        first, last = np.searchsorted(rows[order], [start, start + len(block)])
        parts.append(block[rows[order][first:last] - start])
        start += len(block)
    found = np.concatenate(parts)
    out = np.empty_like(found)
    out[order] = found
    return out
