"""FFCV operations that produce the images of a batch in the views of an epoch.

Every operation is plain Python around one compiled call that takes the crops as arguments, so
another view or another size recompiles nothing.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.dataset import IMAGE, Beton
from pipeline.data import views
from pipeline.data.ffcv_compat import (
    JPEG_MODE,
    RAW_MODE,
    AllocationQuery,
    IntDecoder,
    Loader,
    Operation,
    PipelineSpec,
    Reader,
    SimpleRGBImageDecoder,
    State,
    ToTensor,
)
from pipeline.data.hashing import Keys
from pipeline.data.image_kernels import show_views
from pipeline.data.replay_kernel import replay_stored
from pipeline.data.resized_crops import ResizedCropSpec, crop_boxes
from pipeline.data.view_specs import Views
from pipeline.data.views import ViewSpec
from pipeline.errors import ArtefactMismatch

Images = NDArray[np.void]
"""FFCV's metadata of stored images, (N,)."""


class ShownViews(Protocol):
    """The images of a loader, with a choice of the views to show next."""

    def choose(self, numbers: NDArray[np.int64], *, seed: int, size: int | None) -> None:
        """From now on show view ``numbers[i]`` of sample index i.

        Args:
            numbers: view numbers, (N,) int64.
            seed: the seed of the loader.
            size: side in pixels; None: the side of the views.
        """

    def pipeline(self, index: IntDecoder) -> Any:
        """FFCV's pipeline of the field; ``index`` decodes the sample indices."""

    def attach(self, loader: Loader) -> None:
        """Take the positions of the images from a loader."""


def shown_views(spec: Views, beton: Beton) -> ShownViews:
    """The images of ``beton`` in the views of ``spec``."""
    keys = beton.samples.keys
    if isinstance(spec, ResizedCropSpec):
        return ShownCrops(spec, keys, path=beton.path)
    stored = Reader(str(beton.path))
    images = stored.metadata[f"f{stored.field_names.index(IMAGE)}"]
    if (images["mode"] == RAW_MODE).all():
        _require_one_size(images, beton.path)
        return StoredView(spec, keys, images=images, path=beton.path)
    return ReplayView(spec, keys, path=beton.path)


class StoredView(Operation):  # type: ignore[misc]
    """Crop and flip raw images of one size directly from the beton, with `ReplayView`'s result."""

    def __init__(self, spec: ViewSpec, keys: Keys, *, images: Images, path: Path) -> None:
        super().__init__()
        self._spec, self._keys = spec, keys
        self._codes = np.full(len(keys), spec.clean_code, dtype=np.int32)
        self._shape = (int(images["height"][0]), int(images["width"][0]), 3)
        self._file = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        self._positions = images["data_ptr"].astype(np.int64)
        assert self._positions.max() + math.prod(self._shape) <= len(self._file), path

    def choose(self, numbers: NDArray[np.int64], *, seed: int, size: int | None) -> None:  # noqa: ARG002
        assert size is None, "crops of the padded image have the size of the image"
        self._codes = views.view_codes(self._spec, self._keys, numbers)

    def pipeline(self, index: IntDecoder) -> Any:
        return PipelineSpec(index, transforms=[self, ToTensor()])

    def attach(self, loader: Loader) -> None:
        """Do nothing: the positions of the images are known."""

    def generate_code(self) -> Callable[..., NDArray[np.uint8]]:
        padding, num_flips = self._spec.padding, 2 if self._spec.flip else 1

        def replay(_: Any, destination: Any, indices: Any) -> Any:
            destination = destination[: len(indices)]
            places, codes = self._positions[indices], self._codes[indices]
            replay_stored(self._file, places, codes, padding, num_flips, destination)
            return destination

        replay.with_indices = True  # type: ignore[attr-defined]
        return replay

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        dtype = np.dtype(np.uint8)
        state = replace(previous_state, jit_mode=False, shape=self._shape, dtype=dtype)
        return state, AllocationQuery(self._shape, dtype)


class ReplayView(Operation):  # type: ignore[misc]
    """Crop and flip decoded images of one size by `views.replay`, with a code per sample index."""

    def __init__(self, spec: ViewSpec, keys: Keys, *, path: Path) -> None:
        super().__init__()
        self._spec, self._keys, self._path = spec, keys, path
        self._codes = np.full(len(keys), spec.clean_code, dtype=np.int32)

    def choose(self, numbers: NDArray[np.int64], *, seed: int, size: int | None) -> None:  # noqa: ARG002
        assert size is None, "crops of the padded image have the size of the image"
        self._codes = views.view_codes(self._spec, self._keys, numbers)

    def pipeline(self, index: IntDecoder) -> Any:  # noqa: ARG002
        return [_UniformDecoder(self._path), self, ToTensor()]

    def attach(self, loader: Loader) -> None:
        """Do nothing: FFCV's own decoder reads the images."""

    def generate_code(self) -> Callable[..., NDArray[np.uint8]]:
        padding, num_flips = self._spec.padding, 2 if self._spec.flip else 1

        def replay(images: Any, destination: Any, indices: Any) -> Any:
            destination = destination[: len(images)]
            views.replay(images, self._codes[indices], padding, num_flips, destination)
            return destination

        replay.with_indices = True  # type: ignore[attr-defined]
        return replay

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        memory = AllocationQuery(previous_state.shape, previous_state.dtype)
        return replace(previous_state, jit_mode=False), memory


class _UniformDecoder(SimpleRGBImageDecoder):  # type: ignore[misc]
    """FFCV's decoder of images of one size, with an error that explains what to do with others."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        _require_one_size(self.metadata, self._path)
        return super().declare_state_and_memory(previous_state)  # type: ignore[no-any-return]


def _require_one_size(images: Images, path: Path) -> None:
    heights, widths = images["height"], images["width"]
    if heights.min() != heights.max() or widths.min() != widths.max():
        raise ArtefactMismatch(
            f"{path} has images of {heights.min()} to {heights.max()} x {widths.min()} "
            f"to {widths.max()} pixels (expected one size, for views of kind 'crop-flip'). Set "
            '`views.kind = "rrc-flip"`, or set `prepare.resize` and run `heartcut prepare` again.'
        )


class ShownCrops(Operation):  # type: ignore[misc]
    """Decode images of any sizes, JPEG or raw, and show random resized crops of them."""

    def __init__(self, spec: ResizedCropSpec, keys: Keys, *, path: Path) -> None:
        super().__init__()
        self._spec, self._keys, self._path = spec, keys, path
        self._numbers = np.zeros(len(keys), dtype=np.int64)
        self._seed = 0
        self._side = spec.size

    def choose(self, numbers: NDArray[np.int64], *, seed: int, size: int | None) -> None:
        self._numbers, self._seed = numbers, seed
        self._side = self._spec.size if size is None else size

    def pipeline(self, index: IntDecoder) -> Any:
        return PipelineSpec(index, transforms=[self, ToTensor()])

    def attach(self, loader: Loader) -> None:
        fields = loader.reader.metadata[f"f{loader.field_name_to_f_ix[IMAGE]}"]
        manager = loader.memory_manager
        sizes = manager.sizes[np.searchsorted(manager.ptrs, fields["data_ptr"])]
        columns = (fields["data_ptr"], sizes, fields["mode"], fields["height"], fields["width"])
        self._table = np.stack([column.astype(np.int64) for column in columns], axis=1)
        pixels = np.where(self._table[:, 2] == JPEG_MODE, self._table[:, 3] * self._table[:, 4], 0)
        self._decoded = np.empty((loader.num_workers, 3 * int(pixels.max())), dtype=np.uint8)
        self._file = np.asarray(np.memmap(self._path, dtype=np.uint8, mode="r"))

    def generate_code(self) -> Callable[..., NDArray[np.uint8]]:
        def show(_: Any, destination: Any, indices: Any) -> Any:
            destination = destination[: len(indices)]
            rows = self._table[indices]
            boxes = crop_boxes(
                self._spec,
                self._keys[indices],
                self._numbers[indices],
                sizes=rows[:, 3:],
                seed=self._seed,
            )
            sound = show_views(self._file, rows, boxes, self._decoded, destination)
            if not sound.all():
                self._reject(int(indices[np.argmin(sound)]))
            return destination

        show.with_indices = True  # type: ignore[attr-defined]
        return show

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        shape, dtype = (self._side, self._side, 3), np.dtype(np.uint8)
        state = replace(previous_state, jit_mode=False, shape=shape, dtype=dtype)
        return state, AllocationQuery(shape, dtype)

    def _reject(self, index: int) -> None:
        raise ArtefactMismatch(
            f"the JPEG of sample {index} of {self._path} is damaged and cannot be decoded "
            f"(expected the stored one). Remove {self._path.parent} and run `heartcut prepare` "
            "again."
        )
