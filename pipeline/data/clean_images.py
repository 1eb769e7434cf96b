"""The input of a network from an image file, as `prepare` and the clean view make it.

    student_input = CleanImage.of_run(Path("work/runs/student-s0-1a2b3c4d"), Path("work/data"))
    images = torch.stack([student_input(path) for path in paths])

Tensors are bit-identical to those that the run was evaluated on: the same decoder, EXIF setting,
resizing, storage, crop and normalisation, all from the records of the run and its data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.artefacts.dataset import DatasetRecord, read_record
from pipeline.artefacts.preparation import Preprocessing
from pipeline.artefacts.run import Run, read_settings
from pipeline.data.betons import Storage
from pipeline.data.image_kernels import resize_crop
from pipeline.data.images.files import (
    DecodedImage,
    PixelRule,
    Pixels,
    UnreadableImage,
    WidePixels,
    decode_file,
    decoded,
    read_file,
)
from pipeline.data.images.findings import shown
from pipeline.data.normalisation import Normaliser
from pipeline.data.resized_crops import ResizedCropSpec, crop_boxes
from pipeline.data.view_specs import Views, views_from_json
from pipeline.errors import ArtefactMismatch
from pipeline.provenance import short

ImageLike: TypeAlias = Path | str | bytes | Image.Image | NDArray[np.uint8]
"""A path, the content of a file, an image of Pillow, or pixels: (H, W), (H, W, 1) or (H, W, 3)."""

_compiling = Lock()


@dataclass(frozen=True, kw_only=True)
class CleanImage:
    """Function from an image to the input of a network that was trained on a data set."""

    preprocessing: Preprocessing
    """How the data set's pixels were made."""
    views: Views
    """Views that the network was trained on; their clean view is shown."""
    mean: tuple[float, float, float]
    """Mean of red, green and blue, for pixels from 0 to 1."""
    std: tuple[float, float, float]
    image_size: tuple[int, int] | None
    """Height and width of the data set's images; None where they differ."""

    def __post_init__(self) -> None:
        if isinstance(self.views, ResizedCropSpec):
            with _compiling:  # numba's first call is not safe in several threads
                self._view(np.zeros((1, 1, 3), dtype=np.uint8), "")

    @classmethod
    def of(cls, record: DatasetRecord, views: Views) -> Self:
        """The inputs of networks that were trained on ``views`` of a data set.

        Raises:
            ArtefactMismatch: if an earlier release wrote the record.
        """
        if record.preprocessing is None:
            raise ArtefactMismatch(
                f"data set {short(record.id)} does not record how its images were prepared, "
                "because an earlier release wrote it (expected `preprocessing` in dataset.json). "
                "Run `heartcut prepare` again, which adds it."
            )
        return cls(
            preprocessing=record.preprocessing,
            views=views,
            mean=record.mean,
            std=record.std,
            image_size=record.image_size,
        )

    @classmethod
    def of_run(cls, run: Path, data: Path) -> Self:
        """The inputs of the network of a run.

        Args:
            run: folder of a run of `train-student` or `train-teacher`.
            data: folder of the data set that it was trained on, `data` in its workspace.
        Raises:
            ArtefactNotFound: if one of them does not exist.
            ArtefactMismatch: if one of them is damaged, or the run is of another data set.
        """
        record, result = read_record(data), Run.open(run).result
        if result.inputs.dataset != record.id:
            raise ArtefactMismatch(
                f"{run} was trained on data set {short(result.inputs.dataset)} (expected "
                f"{short(record.id)}, the data set in {data}). Pass the data set of this run."
            )
        try:
            stored = read_settings(run)["views"]
            views = views_from_json(stored)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactMismatch(
                f"{run / 'config.toml'} does not describe the views of the run. Remove {run} and "
                "train again."
            ) from error
        return cls.of(record, views)

    def __call__(self, image: ImageLike) -> Tensor:
        """Make the network's input.

        Returns:
            (3, H, W) float32.
        Raises:
            UnreadableImage: if the image cannot be decoded.
            ArtefactMismatch: if it is of another size than the data set's, without `resize`.
        """
        # Batches of the loader have this order of bytes; another order may round differently.
        batch = torch.from_numpy(self.pixels(image))[None].permute(0, 3, 1, 2)
        return self._normaliser(batch)[0].contiguous()

    def pixels(self, image: ImageLike) -> Pixels:
        """Make the clean view of an image, (H, W, 3) uint8, before normalisation."""
        name, content, found = self._decoded(image)
        how = self.preprocessing
        storage = Storage(store=how.store, raw_pixels=how.raw_pixels, quality=how.quality)
        _, stored = storage.stored(found.pixels, content if found.is_plain_jpeg else None)
        return self._view(np.require(stored, requirements=["C", "W"]), name)

    def _decoded(self, image: ImageLike) -> tuple[str, bytes | None, DecodedImage]:
        """Name for messages, content of the file if there is one, and pixels."""
        how = self.preprocessing
        rule = PixelRule(
            resize=how.resize, max_side=how.max_side, exif_orientation=how.exif_orientation
        )
        if isinstance(image, Path | str | bytes):
            path = Path("image.bytes" if isinstance(image, bytes) else image)
            content = image if isinstance(image, bytes) else read_file(path)
            return shown(path), content, decode_file(content, path, rule)
        opened = _from_pixels(image) if isinstance(image, np.ndarray) else image
        try:
            return "the image", None, decoded(opened, rule, notes=set())
        except WidePixels as error:
            raise UnreadableImage(f"the image {error}. Convert it.") from error

    def _view(self, stored: Pixels, name: str) -> Pixels:
        size = stored.shape[0], stored.shape[1]
        if isinstance(self.views, ResizedCropSpec):
            return _central_crop(stored, self.views.clean)
        if self.image_size is not None and size != self.image_size:
            raise ArtefactMismatch(
                f"{name} is {_by(size)} pixels (expected {_by(self.image_size)}, as the images of "
                "the data set, which were prepared without `prepare.resize`). Resize it as you "
                "resized those."
            )
        return stored

    @cached_property
    def _normaliser(self) -> Normaliser:
        return Normaliser(mean=self.mean, std=self.std, device=torch.device("cpu"))


def _central_crop(stored: Pixels, clean: ResizedCropSpec) -> Pixels:
    height, width = stored.shape[:2]
    no_key, view = np.zeros((1, 16), dtype=np.uint8), np.zeros(1, dtype=np.int64)
    (box,) = crop_boxes(clean, no_key, view, sizes=np.array([[height, width]]))
    view_pixels = np.empty((clean.size, clean.size, 3), dtype=np.uint8)
    resize_crop(stored.reshape(height, 3 * width), box, view_pixels)
    return view_pixels


def _from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    squeezed = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    is_image = squeezed.ndim == 2 or (squeezed.ndim == 3 and squeezed.shape[2] == 3)
    if squeezed.dtype != np.uint8 or not is_image or 0 in squeezed.shape:
        raise ValueError(
            f"pixels must be (H, W) or (H, W, 3) uint8, got {pixels.shape} {pixels.dtype}"
        )
    return Image.fromarray(np.ascontiguousarray(squeezed))


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"
