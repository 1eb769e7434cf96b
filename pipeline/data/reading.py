"""Reading a split twice: once to know what is in it, once to hand it over in its order.

Threads read a little ahead; whoever reads sees the samples one by one, in order.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.dataset import Samples
from pipeline.data.betons import fits
from pipeline.data.sources import Split, UnreadableImage
from pipeline.errors import ArtefactMismatch
from pipeline.parallel import read_ahead
from pipeline.progress import progress
from pipeline.provenance import pixel_key
from pipeline.runtime import num_cores

T = TypeVar("T")

READ_AHEAD = 256


@dataclass(frozen=True, kw_only=True)
class ReadSplit:
    """What one pass over a split found, in the order in which it will be written."""

    split: Split
    sources: NDArray[np.int64]
    """Position in the source of each kept sample."""
    samples: Samples
    sums: NDArray[np.float64]
    """Per sample: sum and sum of squares of each channel of pixels / 255, (N, 6)."""
    image_size: tuple[int, int]
    skipped: list[str]

    def as_listed(self) -> "ReadSplit":
        """The samples in the order of their source."""
        return self.rows(np.argsort(self.sources))

    def rows(self, order: NDArray[np.int64]) -> "ReadSplit":
        """The part at ``order``; what was skipped is told once, with the training rows."""
        return replace(
            self,
            sources=self.sources[order],
            samples=self.samples.rows(order),
            sums=self.sums[order],
        )


def read_split(split: Split, name: str, *, skip_corrupt: bool) -> ReadSplit:
    """Read every sample once: its key, its pixels' hash, its sums.

    Raises:
        UnreadableImage: at the first one, unless ``skip_corrupt``.
        ArtefactMismatch: if images are of two sizes, too large for a beton, or there are none.
    """
    keys: list[bytes] = []
    pixels: list[bytes] = []
    sums: list[NDArray[np.float64]] = []
    kept: list[int] = []
    skipped: list[str] = []
    size: tuple[int, int] | None = None
    num_samples = len(split.labels)

    def look(i: int) -> tuple[bytes, bytes, NDArray[np.float64], tuple[int, int]] | UnreadableImage:
        try:
            key, image = split.read(i)
        except UnreadableImage as error:
            return error
        return key, pixel_key(image), _channel_sums(image), (image.shape[0], image.shape[1])

    with progress(f"read {name}", total=num_samples, unit="images") as bar:
        for i, found in enumerate(_in_threads(look, range(num_samples))):
            bar.advance(1)
            if isinstance(found, UnreadableImage):
                if not skip_corrupt:
                    raise found
                skipped.append(split.name(i))
                continue
            size = size or found[3]
            _require_size(split.name(i), found[3], size, split.name(kept[0]) if kept else "")
            keys.append(found[0])
            pixels.append(found[1])
            sums.append(found[2])
            kept.append(i)
    if size is None:
        raise ArtefactMismatch(f"the {name} split has no readable image. Check `prepare.path`.")
    samples = Samples(keys=_rows(keys), labels=split.labels[kept], pixels=_rows(pixels))
    order = samples.canonical_order()
    return ReadSplit(
        split=split,
        sources=np.array(kept)[order],
        samples=samples.rows(order),
        sums=np.array(sums)[order],
        image_size=size,
        skipped=skipped,
    )


def second_reading(read: ReadSplit, name: str) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """The samples in their order, checked to be what the first reading saw."""
    total = len(read.samples)
    with progress(f"write {name}", total=total, unit="images") as bar:
        images = _in_threads(lambda i: read.split.read(int(i))[1], read.sources)
        for row, image in enumerate(images):
            if pixel_key(image) != read.samples.pixels[row].tobytes():
                raise ArtefactMismatch(
                    f"{read.split.name(int(read.sources[row]))} changed while it was being read. "
                    "Run `heartcut prepare` again when nothing writes to the images."
                )
            bar.advance(1)
            yield image, int(read.samples.labels[row])


def statistics(
    sums: NDArray[np.float64], image_size: tuple[int, int]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel over all pixels."""
    first, second = np.split(sums.sum(axis=0) / (len(sums) * image_size[0] * image_size[1]), 2)
    std = np.sqrt(np.maximum(second - first**2, 1e-12))
    return _triple(first), _triple(std)


def _in_threads(work: Callable[[int], T], items: Iterable[int]) -> Iterator[T]:
    return read_ahead(work, items, threads=num_cores(), ahead=READ_AHEAD)


def by_pixels(size: tuple[int, int]) -> str:
    """Height and width, for a message."""
    return f"{size[0]} x {size[1]}"


def _channel_sums(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    pixels = image.reshape(-1, 3).astype(np.float64) / 255.0
    return np.concatenate([pixels.sum(axis=0), np.square(pixels).sum(axis=0)])


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = (round(float(value), 6) for value in values)
    return red, green, blue


def _rows(keys: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), 16)


def _require_size(name: str, found: tuple[int, int], wanted: tuple[int, int], first: str) -> None:
    if found != wanted:
        raise ArtefactMismatch(
            f"{name} is {by_pixels(found)} pixels (expected {by_pixels(wanted)}, as {first}). "
            "Set `prepare.resize` to bring all images to one size."
        )
    if not fits(*found):
        raise ArtefactMismatch(
            f"{name} is {by_pixels(found)} pixels (expected at most 1672 x 1672, what a beton "
            "holds). Set `prepare.resize`."
        )
