"""Comparison of a teacher with a few of its stored outputs: is its code still the same?

An id holds the weights and the name of a network, and a network of your own has code that no id
holds. Outputs differ in the last digits between machines, so they are compared and not hashed, with
what the cache stores anyway.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artefacts.cache.arrays import (
    KEYS,
    LOGITS,
    TARGET_LOGIT,
    TOP_CLASS,
    TOP_LOGIT,
    ArrayReader,
    array_specs,
)
from pipeline.artefacts.cache.receipts import read_manifest, read_receipt, receipt_key
from pipeline.artefacts.dataset import Beton
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.data.loaders import BatchLoader
from pipeline.data.view_specs import views_from_json
from pipeline.errors import ArtefactMismatch
from pipeline.runtime.device import Runtime
from pipeline.teacher.frozen import Teacher, teacher_outputs

TOLERANCES: Final = {"fp32": 0.005, "bf16": 0.05}
"""Largest difference of a recomputed logit, relative to the largest |logit|.

On the machine that made the cache, the difference is the rounding to float16 (0.0003 for a
resnet56). Between bf16 and fp32 it is 0.02, so other hardware with the same precision stays below.
"""
NUM_IMAGES: Final = 16


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """Stored outputs of a few samples in one view."""

    view: int
    keys: NDArray[np.uint8]
    """(n, 16)"""
    classes: NDArray[np.int64] | None
    """Classes of the stored logits, (n, K); None: all of them, in order."""
    logits: NDArray[np.float32]


def require_same_network(
    place: ObjectStore, teacher: Teacher, beton: Beton, runtime: Runtime
) -> None:
    """Reject a teacher whose outputs are not those of a cache, sealed or begun, of the same id.

    Raises:
        ArtefactMismatch: if they differ by more than hardware explains.
    """
    stored = _stored(place)
    if stored is None:
        return
    logits = _logits(teacher, place, beton, stored, runtime).numpy()
    again = logits if stored.classes is None else np.take_along_axis(logits, stored.classes, axis=1)
    difference = float(np.nan_to_num(np.abs(again - stored.logits), nan=np.inf).max())
    limit = TOLERANCES[runtime.precision] * max(float(np.abs(stored.logits).max()), 1e-2)
    if difference > limit:
        arch = teacher.model.arch
        raise ArtefactMismatch(
            f"{place.url} was made by other code of {arch}: the weights are the same, and the "
            f"logits of {len(logits)} images differ by up to {difference:.3g} (expected at most "
            f"{limit:.3g}). Restore the code, or give the changed network another name in "
            "`cache_teacher.arch`, which makes another cache."
        )


def _stored(place: ObjectStore) -> _Stored | None:
    """Stored outputs of the first samples of a unit that is stored; None if there is none yet."""
    manifest = read_manifest(place)
    reader = ArrayReader(
        store=place,
        manifest=manifest,
        specs=array_specs(manifest),
        facts=lambda *name: read_receipt(place, receipt_key(*name)).facts,
    )
    is_sparse = manifest.identity.top_k > 0
    names = (TOP_CLASS, TOP_LOGIT, TARGET_LOGIT) if is_sparse else (LOGITS,)
    unit = _first_unit(place, names)
    if unit is None or place.size(receipt_key(KEYS, 0, 0)) is None:
        return None
    view, shard = unit
    rows = slice(manifest.rows_of(shard)[0], manifest.rows_of(shard)[0] + NUM_IMAGES)
    arrays = [reader.shard(name, view, shard)[:NUM_IMAGES] for name in names]
    keys = reader.whole(KEYS)[rows][: len(arrays[0])].astype(np.uint8, copy=False)
    classes = arrays[0].astype(np.int64) if is_sparse else None
    logits = arrays[1 if is_sparse else 0].astype(np.float32)
    return _Stored(view=view, keys=keys, classes=classes, logits=logits)


def _first_unit(place: ObjectStore, names: tuple[str, ...]) -> tuple[int, int] | None:
    """View and shard of the first unit whose arrays are all stored, the clean view first."""
    kept = (
        place.sizes("receipts").keys() if place.can_list else {receipt_key(n, 0, 0) for n in names}
    )
    units = sorted(
        tuple(int(part) for part in key.rpartition("/")[2].split(".")[:2])
        for key in kept
        if key.startswith(f"receipts/{names[0]}/")
    )
    whole = [(v, s) for v, s in units if all(receipt_key(name, v, s) in kept for name in names)]
    return whole[0] if whole else None


@torch.inference_mode()
def _logits(
    teacher: Teacher, place: ObjectStore, beton: Beton, stored: _Stored, runtime: Runtime
) -> Tensor:
    """Logits of the samples with the stored keys, in their order."""
    rows = np.array([_index(beton, key) for key in stored.keys])
    views = views_from_json(read_manifest(place).identity.views)
    loader = BatchLoader(beton, batch_size=len(rows), view_spec=views, rows=rows)
    normalise = teacher.normaliser(runtime.device)
    return torch.cat(
        [
            teacher_outputs(teacher.model, normalise, batch, runtime=runtime)[0].cpu()
            for batch in loader.view(stored.view)
        ]
    )


def _index(beton: Beton, key: NDArray[np.uint8]) -> int:
    """A sample with this key; the id covers the images, so there is one."""
    return int(np.flatnonzero((beton.samples.keys == key).all(axis=1))[0])
