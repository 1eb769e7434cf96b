"""The cache of another target: of the same network, and of images that the scores are not about."""

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.errors import ArtefactMismatch
from pipeline.provenance import short
from stages.selection.columns import Clean


def external_cache(
    path: str, *, own: TeacherCache, dataset: Dataset, inputs: Clean, chooses_l2: bool
) -> TeacherCache:
    """The cache at ``path``, of the network of ``own``, whose images can be a target.

    Raises:
        ArtefactMismatch: if it is of another network, or has an image that is scored, chooses l2,
            or is a test image.
    """
    cache = TeacherCache.open(path)
    cache.require_features()
    if cache.manifest.identity.weights != own.manifest.identity.weights:
        raise ArtefactMismatch(
            f"{cache.path} is of another network than {own.path}: weights "
            f"{short(cache.manifest.identity.weights)} (expected "
            f"{short(own.manifest.identity.weights)}). Cache the target with the same one."
        )
    _require_apart(cache, dataset, inputs, chooses_l2=chooses_l2)
    return cache


def _require_apart(
    cache: TeacherCache, dataset: Dataset, inputs: Clean, *, chooses_l2: bool
) -> None:
    """No sample of the target is scored, chooses l2, or is a test image."""
    keys, test = dataset.train.samples.keys, dataset.eval.samples.keys
    forbidden = [
        ("training", keys[inputs.training.numpy()], "they are what is scored"),
        ("test", test, "what is chosen by them cannot be tested"),
    ]
    if chooses_l2:
        choosing = keys[inputs.held_out.numpy()]
        forbidden.append(("held-out", choosing, "they choose l2"))
    for name, others, because in forbidden:
        shared = len(_texts(cache.keys) & _texts(others))
        if shared:
            raise ArtefactMismatch(
                f"{cache.path} has {shared:,} of the {name} images of {dataset.folder} "
                f"(expected none as select.influence.external: {because}). Choose others."
            )


def _texts(keys: NDArray[np.uint8]) -> set[bytes]:
    return {key.tobytes() for key in keys}
