"""cache verify: structure, bytes, or the numbers themselves against the teacher."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.artefacts.cache_arrays import LOGITS, TARGET_LOGIT, TOP_CLASS, TOP_LOGIT
from pipeline.artefacts.cache_join import ANY_LABELS, join_samples
from pipeline.artefacts.cache_verify import check_cache
from pipeline.artefacts.dataset import Beton, Dataset
from pipeline.artefacts.objects import ObjectStore
from pipeline.artefacts.teacher_cache import TeacherCache
from pipeline.data.loaders import BatchLoader
from pipeline.data.views import ViewSpec
from pipeline.errors import ArtefactMismatch, ConfigError
from pipeline.progress import progress
from pipeline.provenance import short
from pipeline.runtime import Runtime, resolve_runtime
from pipeline.teacher_pass import Teacher, teacher_outputs
from pipeline.training import Normaliser
from stages.cache_places import find_cache, made_cache
from stages.cache_teacher import load_teacher
from stages.configs import Config

logger = logging.getLogger(__name__)

TOLERANCES = {"fp32": 0.02, "bf16": 0.1}
"""Share of the largest |logit| by which a recomputed logit may differ: sums are taken in another
order where batches are made up of other images."""


def check(place: ObjectStore, *, read_bytes: bool) -> bool:
    """Tell what is wrong with a cache, a line for each thing; whether nothing is."""
    checked = check_cache(place, read_bytes=read_bytes)
    for problem in checked.problems:
        logger.error("damaged: %s", problem)
    if checked.strangers:
        logger.warning(
            "%s has %d files that belong to no cache, first %s; nothing reads them",
            place.url,
            len(checked.strangers),
            checked.strangers[0],
        )
    if not checked.problems:
        logger.warning(
            "%s is fine: %d objects, %s bytes, %s",
            place.url,
            checked.num_objects,
            f"{checked.num_bytes:,}",
            "every byte was read" if read_bytes else "structure only (--bytes reads them)",
        )
    return not checked.problems


def parse_share(text: str) -> float:
    """``0.1%`` or ``0.001`` as a share."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"--recompute {text} is no share (expected for example 0.1% or 0.001).")
    return share


def recompute(config: Config, *, share: float, tolerance: float | None) -> bool:
    """Run the teacher of a configuration on random rows of its caches; whether they agree.

    Raises:
        ArtefactMismatch: if a cache was made by another teacher, or of other images.
    """
    dataset = Dataset.open(config.data_folder)
    pairs = [(find_cache(config, dataset), dataset.train)]
    test = made_cache(config, dataset, split="eval")
    if test is not None and config.select.cache is None:
        pairs.append((test, dataset.eval))
    agrees = True
    for cache, beton in pairs:
        runtime = resolve_runtime(cache.manifest.identity.precision)
        teacher = load_teacher(config, dataset, runtime)
        _require_same_teacher(cache, teacher)
        found = _compare(cache, beton, teacher, runtime, share=share)
        limit = tolerance
        if limit is None:
            limit = TOLERANCES[cache.manifest.identity.precision] * found.largest
        fits = found.max_difference <= limit
        agrees &= fits
        logger.warning(
            "%s %s its teacher: %s logits of %s images in %d views, max |difference| %.4g "
            "(expected at most %.4g), mean %.4g, same top class in %.2f %%",
            cache.path,
            "agrees with" if fits else "differs from",
            f"{found.num_logits:,}",
            f"{found.num_images:,}",
            cache.shape.num_views,
            found.max_difference,
            limit,
            found.mean_difference,
            100 * found.agreement,
        )
    return agrees


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


def _compare(
    cache: TeacherCache, beton: Beton, teacher: Teacher, runtime: Runtime, *, share: float
) -> _Compared:
    joined = join_samples(cache, beton.samples, place=str(beton.path), accept=ANY_LABELS)
    known = np.flatnonzero(joined.known)
    size = max(1, round(share * len(known)))
    chosen = np.sort(np.random.default_rng().choice(known, size=size, replace=False))
    spec = ViewSpec.from_json(cache.manifest.identity.views)
    loader = BatchLoader(beton, batch_size=512, view_spec=spec, rows=chosen)
    total, largest, worst, same, count = 0.0, 0.0, 0.0, 0, 0
    num_views = cache.shape.num_views
    with progress("recompute", total=size * num_views, unit="images") as bar:
        for view in range(num_views):
            logits = _logits(teacher, loader, runtime, view)
            bar.advance(size, note=f"view {view}")
            stored, classes = _stored(cache, view, joined.rows[chosen], logits)
            difference = np.abs(stored[1] - stored[0])
            total, count = total + float(difference.sum()), count + difference.size
            worst = max(worst, float(difference.max()))
            largest = max(largest, float(np.abs(stored[1]).max()))
            same += int((classes == logits.argmax(axis=1)).sum())
    return _Compared(
        num_images=size,
        num_logits=count,
        max_difference=worst,
        mean_difference=total / count,
        agreement=same / (size * num_views),
        largest=largest,
    )


@torch.inference_mode()
def _logits(
    teacher: Teacher, loader: BatchLoader, runtime: Runtime, view: int
) -> NDArray[np.float32]:
    normalise = Normaliser(mean=teacher.mean, std=teacher.std, device=runtime.device)
    found = [
        teacher_outputs(teacher.model, normalise, batch, runtime=runtime)[0].cpu().numpy()
        for batch in loader.view(view)
    ]
    return np.concatenate(found)


def _stored(
    cache: TeacherCache, view: int, rows: NDArray[np.int64], logits: NDArray[np.float32]
) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], NDArray[np.int64]]:
    """Pairs of recomputed and stored logits, and the stored top class of each row."""
    if not cache.is_sparse:
        stored = _rows(cache, LOGITS, view, rows).astype(np.float32)
        return (logits, stored), stored.argmax(axis=1)
    classes = _rows(cache, TOP_CLASS, view, rows).astype(np.int64)
    top = _rows(cache, TOP_LOGIT, view, rows).astype(np.float32)
    target = _rows(cache, TARGET_LOGIT, view, rows).astype(np.float32)[:, None]
    listed = np.concatenate([classes, cache.labels[rows][:, None]], axis=1)
    again = np.take_along_axis(logits, listed, axis=1)
    return (again, np.concatenate([top, target], axis=1)), classes[:, 0]


def _rows(
    cache: TeacherCache, name: str, view: int, rows: NDArray[np.int64]
) -> NDArray[np.generic]:
    """Some rows of one view, in the order asked for."""
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
