"""The kinds of views, and their common interface.

Every kind has `num_views`, the number of views besides the clean one; `clean`, the spec of the
clean view alone; a readable `name`; and `as_json`, its identity. Views are numbers; 0 is clean.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.data import views
from pipeline.data.hashing import Keys
from pipeline.data.resized_crops import KIND, ResizedCropSpec
from pipeline.data.views import ALL, ViewSpec

Views: TypeAlias = ViewSpec | ResizedCropSpec


def views_from_json(stored: Mapping[str, int | bool | float | str]) -> Views:
    """The views from the fields of `as_json`.

    Raises:
        ValueError, KeyError: if ``stored`` does not describe views.
    """
    kind = stored.get("kind", "crop-flip")
    if kind == KIND:
        return ResizedCropSpec.from_json(stored)
    if kind != "crop-flip":
        raise ValueError(f"views are of kind {kind!r} (expected crop-flip or {KIND})")
    return ViewSpec.from_json({name: int(value) for name, value in stored.items()})


def views_of_epoch(spec: Views, keys: Keys, *, epoch: int, seed: int) -> NDArray[np.int64]:
    """View number of every sample in one epoch of training, (N,) int64.

    Seeded views are used in turn. With `ALL`, every sample sees a new random resized crop in every
    epoch, or draws its own among all crops and flips.
    """
    if isinstance(spec, ViewSpec):
        return views.views_of_epoch(spec, keys, epoch=epoch, seed=seed)
    number = 0 if spec.count == 0 else 1 + (epoch if spec.count == ALL else epoch % spec.count)
    return np.full(len(keys), number, dtype=np.int64)
