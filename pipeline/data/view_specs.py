"""The kinds of views, and what they have in common.

Every kind tells `num_views` beside the clean one, its `clean` part, a `name` for people, and
`as_json`, what identifies it; views are numbers, and 0 is the clean one.
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
    """The views that `as_json` told.

    Raises:
        ValueError, KeyError: if it told no views.
    """
    kind = stored.get("kind", "crop-flip")
    if kind == KIND:
        return ResizedCropSpec.from_json(stored)
    if kind != "crop-flip":
        raise ValueError(f"views are of kind {kind!r} (expected crop-flip or {KIND})")
    return ViewSpec.from_json({name: int(value) for name, value in stored.items()})


def views_of_epoch(spec: Views, keys: Keys, *, epoch: int, seed: int) -> NDArray[np.int64]:
    """View number of every sample in one epoch of training, (N,) int64.

    Seeded views are walked through. Without a seed every sample sees a new random resized crop in
    every epoch, or draws its own among the crops that there are.
    """
    if isinstance(spec, ViewSpec):
        return views.views_of_epoch(spec, keys, epoch=epoch, seed=seed)
    number = 0 if spec.count == 0 else 1 + (epoch if spec.count == ALL else epoch % spec.count)
    return np.full(len(keys), number, dtype=np.int64)
