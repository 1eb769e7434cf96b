"""Betons: written sample by sample, in canonical order, with the same bytes on every machine.

FFCV's own writer forks workers. They hang if a sample raises, and they order pages by which worker
finishes first. Here one writer lays out the pages while threads read ahead of it, so an unreadable
image or a full disk is an ordinary error, and equal images give equal files.

`Storage` decides if an image is stored as pixels or as a JPEG.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.artefacts.dataset import IMAGE, INDEX, LABEL
from pipeline.data.ffcv_compat import (
    JPEG_MODE,
    DatasetWriter,
    IntField,
    MemoryAllocator,
    RGBImageField,
    handle_sample,
)
from pipeline.data.image_kernels import decode_jpeg
from pipeline.data.images.files import Pixels
from pipeline.errors import PipelineError

_PAGE_BYTES = 1 << 23  # FFCV keeps an image within one page,
_MAX_SIDE = 65_535  # and height and width in 16 bits
Store: TypeAlias = Literal["raw", "jpeg", "mixed"]
LARGEST_DIFFERENCE = 8.0
"""Mean difference in grey levels above which two decoders disagree about an image. The loader's
decoder uses a fast transform that differs from Pillow's by about 1."""


@dataclass(frozen=True, kw_only=True)
class Jpeg:
    """An image to be stored as the bytes of a JPEG."""

    content: bytes
    height: int
    width: int


StoredImage: TypeAlias = NDArray[np.uint8] | Jpeg
"""An image as a beton stores it: (H, W, 3) uint8 pixels, or a JPEG."""


def is_storable(height: int, width: int, *, num_bytes: int | None = None) -> bool:
    """True if a beton can hold an image of this size, raw or in ``num_bytes`` of a JPEG."""
    stored = 3 * height * width if num_bytes is None else num_bytes
    return max(height, width) <= _MAX_SIDE and stored <= _PAGE_BYTES


def write_beton(
    path: Path, samples: Iterable[tuple[StoredImage, int]], *, num_samples: int
) -> None:
    """Write (image, label) pairs as a beton with fields image, label, index.

    Args:
        path: file to write.
        samples: ``num_samples`` pairs of an image, of any size that `is_storable` allows, and a
            class id.
        num_samples: the number of pairs.
    Raises:
        OSError: if the disk is full.
        PipelineError: if there are fewer or more pairs than ``num_samples``.
    """
    _SerialWriter(path, num_samples).write(samples)


class _SerialWriter(DatasetWriter):  # type: ignore[misc]
    """Writer of FFCV's file format that starts no processes."""

    metadata_sm: Any

    def __init__(self, path: Path, num_samples: int) -> None:
        fields = {IMAGE: RGBImageField(write_mode="raw"), LABEL: IntField(), INDEX: IntField()}
        super().__init__(str(path), fields, page_size=_PAGE_BYTES, num_workers=1)
        self.num_samples = num_samples
        self._encoders = {**fields, IMAGE: _ImageEncoder(fields[IMAGE])}

    def write(self, samples: Iterable[tuple[StoredImage, int]]) -> None:
        self.prepare()
        self._keep_metadata_in_memory()
        metadata = np.frombuffer(self.metadata_sm.buf, dtype=self.metadata_type)
        allocator = _Pages(self.fname, self.data_region_start, self.page_size)
        names = self.metadata_type.names
        written = 0
        with allocator:
            for index, (image, label) in enumerate(samples):
                row = (image, label, index)
                handle_sample(row, index, names, metadata, allocator, self._encoders)
                written += 1
        if written != self.num_samples:
            raise PipelineError(
                f"{self.fname} got {written} samples (expected {self.num_samples}). "
                "Run `heartcut prepare` again when nothing writes to the images."
            )
        self.finalize([allocator.allocations])

    def _keep_metadata_in_memory(self) -> None:
        """Keep the sample table in ordinary memory: a full /dev/shm would kill the process."""
        self.metadata_sm.close()
        self.metadata_sm.unlink()
        size = self.num_samples * self.metadata_type.itemsize
        self.metadata_sm = SimpleNamespace(buf=bytearray(size))


class _ImageEncoder:
    """FFCV's encoder, except that it stores a JPEG unchanged instead of encoding it again."""

    def __init__(self, raw: RGBImageField) -> None:
        self._raw = raw

    def encode(self, row: Any, image: StoredImage, malloc: Callable[[int], Any]) -> None:
        if not isinstance(image, Jpeg):
            self._raw.encode(row, np.ascontiguousarray(image), malloc)
            return
        row["mode"], row["height"], row["width"] = JPEG_MODE, image.height, image.width
        row["data_ptr"], place = malloc(len(image.content))
        place[:] = np.frombuffer(image.content, dtype=np.uint8)


class _Pages(MemoryAllocator):  # type: ignore[misc]
    """Pages written completely: FFCV writes without a buffer, and a full disk truncates them."""

    def __enter__(self) -> None:
        self.fp = Path(self.fname).open("ab")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self.fp:
            if kind is None:
                self.flush_page()


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Rule for how images are stored."""

    store: Store = "raw"
    """Pixels, JPEGs, or JPEGs only for images of more than ``raw_pixels``."""
    raw_pixels: int = 0
    quality: int = 90
    """Quality of JPEGs that are encoded here, 1 to 100."""

    def stored(self, pixels: Pixels, jpeg: bytes | None) -> tuple[StoredImage, Pixels]:
        """The image as it is stored, and the pixels that the loader will decode from it.

        Args:
            pixels: (H, W, 3) uint8.
            jpeg: content of the source file if it is a JPEG of exactly these pixels. It is stored
                unchanged if the loader's decoder reads it as Pillow does.
        """
        height, width = pixels.shape[:2]
        if self.store == "raw" or (self.store == "mixed" and height * width <= self.raw_pixels):
            return pixels, pixels
        if jpeg is not None:
            kept = Jpeg(content=jpeg, height=height, width=width)
            decoded = decode(kept)
            if decoded is not None and _agree(decoded, pixels):
                return kept, decoded
        made = Jpeg(content=_encoded(pixels, self.quality), height=height, width=width)
        decoded = decode(made)
        assert decoded is not None, "Pillow writes JPEGs that TurboJPEG reads"
        return made, decoded


def decode(image: Jpeg) -> Pixels | None:
    """The pixels that the loader will decode, (H, W, 3) uint8; None if the JPEG is damaged."""
    content = np.frombuffer(image.content, dtype=np.uint8)
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    status = decode_jpeg(content, image.height, image.width, pixels.reshape(-1))
    return pixels if status == 0 else None


def _agree(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Compare every fourth pixel of every fourth row."""
    difference = one[::4, ::4].astype(np.int16) - other[::4, ::4]
    return float(np.abs(difference).mean()) <= LARGEST_DIFFERENCE


def _encoded(pixels: Pixels, quality: int) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
    return file.getvalue()
