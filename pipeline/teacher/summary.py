"""Summary of a cache's teacher, computed from the stored numbers when the cache is sealed."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artefacts.cache.arrays import (
    LOGITS,
    TARGET_LOGIT,
    TOP_CLASS,
    TOP_LOGIT,
    read_in_threads,
)
from pipeline.artefacts.cache.receipts import Note
from pipeline.artefacts.cache.record import CacheSummary, Fidelity
from pipeline.artefacts.cache.teacher_cache import top_and_class
from pipeline.artefacts.cache.writer import CacheWriter, Unit
from pipeline.runtime.device import versions
from pipeline.runtime.progress import progress


def summarise_cache(
    writer: CacheWriter,
    *,
    labels: NDArray[np.int64],
    held_out: NDArray[np.int64],
    target_in_sample: bool,
    description: str,
) -> CacheSummary:
    """Summarise the teacher from the stored numbers; every logit is read back and checked.

    Args:
        writer: a cache with all units stored.
        labels: class ids of all samples, (N,) int64.
        held_out: sample indices whose accuracy is reported apart, (M,) int64; may be empty.
        target_in_sample: True if the teacher's own training saw the held-out images.
        description: readable name of the teacher.
    """
    notes = writer.notes()
    is_held_out = np.zeros(len(labels), dtype=bool)
    is_held_out[held_out] = True
    correct, correct_held_out, agreeing = _counts(writer, labels, is_held_out)
    num_held_out = len(held_out)
    training = len(labels) - num_held_out
    kept_at = [fidelity.temperature for fidelity in notes[0].fidelity]
    return CacheSummary(
        accuracy_training=((correct - correct_held_out) / training).tolist(),
        accuracy_held_out=(correct_held_out / num_held_out).tolist() if num_held_out else [],
        num_wrong=int(len(labels) - correct[0]),
        agreement=(agreeing / len(labels)).tolist(),
        fidelity=[_overall(notes, number) for number in range(len(kept_at))],
        head_error=max(note.head_error for note in notes),
        target_in_sample=target_in_sample,
        teacher=description,
        seconds=sum(note.seconds for note in notes),
        devices=sorted({note.device for note in notes}),
        versions=versions(),
    )


def _counts(
    writer: CacheWriter, labels: NDArray[np.int64], is_held_out: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Per view, (V+1,): correct rows, correct held-out rows, rows with the clean view's class."""
    num_views = writer.manifest.shape.num_views
    correct, held_out, agreeing = (np.zeros(num_views, dtype=np.int64) for _ in range(3))
    reader, is_sparse = writer.reader(), writer.manifest.identity.top_k > 0

    def outcome(unit: Unit) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Top class of each row, and True if the label is first; a tie counts as correct."""
        own = labels[slice(*writer.manifest.rows_of(unit.shard))]
        if is_sparse:
            top = reader.shard(TOP_LOGIT, unit.view, unit.shard)[:, 0]
            target = reader.shard(TARGET_LOGIT, unit.view, unit.shard)
            classes = reader.shard(TOP_CLASS, unit.view, unit.shard)[:, 0].astype(np.int64)
        else:
            logits = reader.shard(LOGITS, unit.view, unit.shard)
            top, classes = top_and_class(logits)
            target = logits[np.arange(len(own)), own]
        return classes, np.greater_equal(target, top)

    by_shard = sorted(writer.units, key=lambda unit: (unit.shard, unit.view))
    clean = np.zeros(0, dtype=np.int64)
    with progress("read back", total=len(by_shard), unit="shards") as bar:
        for unit, (classes, right) in zip(
            by_shard, read_in_threads(outcome, by_shard), strict=True
        ):
            clean = classes if unit.view == 0 else clean
            rows = slice(*writer.manifest.rows_of(unit.shard))
            correct[unit.view] += right.sum()
            held_out[unit.view] += right[is_held_out[rows]].sum()
            agreeing[unit.view] += (classes == clean).sum()
            bar.advance(1)
    return correct, held_out, agreeing


def _overall(notes: list[Note], number: int) -> Fidelity:
    measured = [note.fidelity[number] for note in notes]
    return Fidelity(
        temperature=measured[0].temperature,
        mean_kl=sum(one.mean_kl for one in measured) / len(measured),
        max_kl=max(one.max_kl for one in measured),
    )


def storage_fidelity(exact: Tensor, stored: Tensor, *, temperature: float) -> Fidelity:
    """KL(float32 || stored) of softened probabilities, nats, mean and maximum over rows (B, C)."""
    exact = (exact.double() / temperature).log_softmax(dim=1)
    stored = (stored.double() / temperature).log_softmax(dim=1)
    kl = (exact.exp() * (exact - stored)).sum(dim=1).clamp_min(0.0)
    return Fidelity(temperature=temperature, mean_kl=kl.mean().item(), max_kl=kl.max().item())
