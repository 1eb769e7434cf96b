"""show cache: a teacher cache -> accuracy and confidence of its teacher.

Reads the clean view of the cache, and the records of the data set in the same workspace, if any.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.artefacts.cache.arrays import LOGITS, LOGSUMEXP, TARGET_LOGIT, TOP_LOGIT
from pipeline.artefacts.cache.join import ANYTHING, join_samples
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import DatasetRecord, open_samples, read_record
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.artefacts.records import Record
from pipeline.errors import ArtefactMismatch
from pipeline.methods.metrics import reliability
from stages.cache import info as cache_info
from stages.cache.info import CacheInfo
from stages.show.places import kind_of, refusal, require_no_overrides
from stages.show.records import Histogram, histogram, name_of

_BINS: Final = 10
_WANTED: Final = "a teacher cache"
_ADVICE: Final = "Pass WORKSPACE/caches/ID, an address or a configuration."


class ViewQuality(Record):
    """Accuracy of the teacher in one view; view 0 is the clean one."""

    view: int
    accuracy_training: float
    accuracy_held_out: float | None
    agreement: float
    """Share of samples with the same class as in the clean view."""


class ClassErrors(Record):
    """Samples of one class that the teacher gets wrong in the clean view."""

    label: int
    name: str | None
    num_rows: int
    num_wrong: int


class Calibration(Record):
    """Confidence of the teacher on samples that no student trains on, against its accuracy."""

    split: Literal["held_out", "test"]
    num_rows: int
    accuracy: float
    mean_confidence: float
    expected_calibration_error: float
    """Error over 15 equal bins of confidence."""


class CacheShown(Record):
    """One cache."""

    info: CacheInfo
    """Content of `heartcut cache info --json`."""
    dataset: str | None
    """ID of the data set with these images; None: not known."""
    views: tuple[ViewQuality, ...]
    classes: tuple[ClassErrors, ...]
    """Classes with the most wrong samples first; equal ones by label."""
    confidence: Histogram | None
    """Probability of the teacher's class at temperature 1; None: the cache does not have it."""
    calibration: Calibration | None


class CachesShown(Record):
    """Content of `show cache`; its JSON has these keys."""

    caches: tuple[CacheShown, ...]
    """One cache, or those of the training and test images of a configuration."""


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """Answers of the teacher in the clean view, (N,) each."""

    labels: NDArray[np.int64]
    correct: NDArray[np.bool_]
    """True also for a tie for first place."""
    confidence: NDArray[np.float32] | None


@dataclass(frozen=True, kw_only=True)
class _Unseen:
    """Samples of a cache that no student trains on."""

    split: Literal["held_out", "test"]
    rows: NDArray[np.int64]


def execute(place: str, overrides: Sequence[str] = ()) -> CachesShown:
    """Describe the cache at a folder or an address, or the caches of a configuration.

    Raises:
        ArtefactNotFound: if there is none.
        ArtefactMismatch: if it is damaged, or not a cache.
    """
    if not place.endswith(".toml"):
        require_no_overrides(place, overrides)
        _require_cache(place)
    folder = None
    if place.endswith(".toml"):
        folder = cache_info.configuration(place, list(overrides)).data_folder
    stores = cache_info.places(place, list(overrides))
    return CachesShown(caches=tuple(_describe(store, folder) for store in stores))


def _require_cache(place: str) -> None:
    """Reject a folder that is missing or not a cache."""
    path = Path(place)
    is_address = ":" in place.partition("/")[0]
    if not is_address and kind_of(path) != "a teacher cache":
        raise refusal(path, wanted=_WANTED, advice=_ADVICE)


def _describe(store: ObjectStore, folder: Path | None) -> CacheShown:
    cache = TeacherCache.open(store)
    answers = _answers(cache)
    folder = _folder_beside(store) if folder is None else folder
    record = None if folder is None else read_record(folder)
    unseen = None if folder is None or record is None else _unseen(cache, folder, record)
    names = record.class_names if record is not None and unseen is not None else []
    confidence = answers.confidence
    edges = np.linspace(0.0, 1.0, _BINS + 1)
    return CacheShown(
        info=cache_info.describe(cache),
        dataset=None if record is None or unseen is None else record.id,
        views=_views(cache),
        classes=_classes(answers, cache.shape.num_classes, names),
        confidence=None if confidence is None else histogram(confidence, answers.correct, edges),
        calibration=None if unseen is None else _calibration(answers, unseen),
    )


def _answers(cache: TeacherCache) -> _Answers:
    """Read the clean view a shard at a time, because it may not fit in memory."""
    labels = cache.labels
    has_confidence = not cache.is_sparse or 1.0 in cache.manifest.identity.temperatures
    parts = list(_sparse(cache) if cache.is_sparse else _dense(cache, labels))
    return _Answers(
        labels=labels,
        correct=np.concatenate([right for right, _ in parts]),
        confidence=np.concatenate([sure for _, sure in parts]) if has_confidence else None,
    )


def _dense(
    cache: TeacherCache, labels: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float32]]]:
    start = 0
    for block in cache.blocks(LOGITS, 0):
        logits = torch.from_numpy(block).float()
        own = torch.from_numpy(labels[start : start + len(block), None])
        start += len(block)
        right = logits.gather(1, own)[:, 0] >= logits.amax(dim=1)
        yield right.numpy(), logits.softmax(dim=1).amax(dim=1).numpy()


def _sparse(cache: TeacherCache) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float32]]]:
    """Read a top-k cache; confidence is valid only with the log-sum-exp at temperature 1."""
    kept = cache.manifest.identity.temperatures
    slot = kept.index(1.0) if 1.0 in kept else 0
    blocks = (cache.blocks(name, 0) for name in (TOP_LOGIT, TARGET_LOGIT, LOGSUMEXP))
    for logits, own, logsumexp in zip(*blocks, strict=True):
        top = logits[:, 0].astype(np.float32)
        sure = np.exp(np.minimum(top - logsumexp[:, slot].astype(np.float32), 0.0))
        yield own.astype(np.float32) >= top, sure


def _views(cache: TeacherCache) -> tuple[ViewQuality, ...]:
    summary = cache.summary
    held_out: Sequence[float | None] = summary.accuracy_held_out or [None] * cache.shape.num_views
    found = zip(summary.accuracy_training, held_out, summary.agreement, strict=False)
    return tuple(
        ViewQuality(view=view, accuracy_training=right, accuracy_held_out=unseen, agreement=agrees)
        for view, (right, unseen, agrees) in enumerate(found)
    )


def _classes(answers: _Answers, num_classes: int, names: Sequence[str]) -> tuple[ClassErrors, ...]:
    rows = np.bincount(answers.labels, minlength=num_classes)
    wrong = np.bincount(answers.labels[~answers.correct], minlength=num_classes)
    return tuple(
        ClassErrors(
            label=label, name=name_of(label, names), num_rows=int(rows[label]), num_wrong=int(num)
        )
        for label, num in sorted(enumerate(wrong.tolist()), key=lambda pair: -pair[1])
    )


def _folder_beside(store: ObjectStore) -> Path | None:
    """Find the data set in the workspace of a local cache."""
    if ":" in store.url.partition("/")[0]:
        return None
    folder = Path(store.url).resolve().parent.parent / "data"
    return folder if (folder / "dataset.json").exists() else None


def _unseen(cache: TeacherCache, folder: Path, record: DatasetRecord) -> _Unseen | None:
    """Find the samples that no student trains on; None if the data set has other images."""
    if cache.manifest.identity.fingerprint == record.eval.fingerprint:
        return _Unseen(split="test", rows=np.arange(cache.shape.num_samples))
    samples = open_samples(folder, "train", record.train)
    try:
        joined = join_samples(cache, samples, place=str(folder), accept=ANYTHING)
    except ArtefactMismatch:  # no image in common
        return None
    rows = joined.rows[np.array(record.held_out, dtype=np.int64)]
    return _Unseen(split="held_out", rows=rows[rows >= 0])


def _calibration(answers: _Answers, unseen: _Unseen) -> Calibration | None:
    if answers.confidence is None or not len(unseen.rows):
        return None
    sure = answers.confidence[unseen.rows].astype(np.float64)
    right = answers.correct[unseen.rows]
    return Calibration(
        split=unseen.split,
        num_rows=len(right),
        accuracy=float(right.mean()),
        mean_confidence=float(sure.mean()),
        expected_calibration_error=reliability(sure, right).error,
    )
