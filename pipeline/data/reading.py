"""Two passes over a split: one to inspect its samples, one to yield them in the final order.

Threads read a little ahead; the caller receives the samples one by one, in order.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts.dataset import Samples
from pipeline.artefacts.preparation import Finding
from pipeline.data.betons import Jpeg, Storage, StoredImage, is_storable
from pipeline.data.images.files import UnreadableImage, strict_decoding
from pipeline.data.images.findings import UNREADABLE, Tally
from pipeline.data.sources import Split
from pipeline.errors import ArtefactMismatch
from pipeline.provenance import pixel_key
from pipeline.runtime.device import num_cores
from pipeline.runtime.progress import progress
from pipeline.runtime.read_ahead import read_ahead

T = TypeVar("T")

READ_AHEAD = 32
"""Images of at most 8 MiB each that wait in memory to be written."""


@dataclass(frozen=True, kw_only=True)
class ReadSplit:
    """Result of one pass over a split, in the order in which it will be written."""

    split: Split
    sources: NDArray[np.int64]
    """Position in the source of each kept sample."""
    samples: Samples
    sums: NDArray[np.float64]
    """Per sample: sum and sum of squares of each channel of pixels / 255, (N, 6)."""
    sizes: NDArray[np.int64]
    """Height and width in pixels, (N, 2)."""
    are_jpeg: NDArray[np.bool_]
    """True for images that are stored as JPEGs, (N,)."""
    skipped: list[str]
    unreadable: tuple[Finding, ...]
    """The skipped files by reason."""
    notes: tuple[Finding, ...]
    """Unusual images of the whole pass, also of rows that were taken out since."""
    storage: Storage

    def name(self, row: int) -> str:
        """Readable name of the sample in a row."""
        return self.split.name(int(self.sources[row]))

    def as_listed(self) -> "ReadSplit":
        """The samples in the order of their source."""
        return self.rows(np.argsort(self.sources))

    def rows(self, order: NDArray[np.int64]) -> "ReadSplit":
        """The rows at ``order``; skipped files and notes stay those of the whole pass."""
        return replace(
            self,
            sources=self.sources[order],
            samples=self.samples.rows(order),
            sums=self.sums[order],
            sizes=self.sizes[order],
            are_jpeg=self.are_jpeg[order],
        )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """Facts of one image that are kept until all images were read."""

    key: bytes
    pixels: bytes
    sums: NDArray[np.float64]
    size: tuple[int, int]
    is_jpeg: bool
    notes: frozenset[str]


def read_split(
    split: Split,
    name: str,
    *,
    skip_corrupt: bool,
    storage: Storage | None = None,
    any_size: bool = False,
) -> ReadSplit:
    """Read every sample once: its key, the hash and the sums of the pixels that a loader will see.

    Args:
        split: the source of the images.
        name: name of the split, for messages.
        skip_corrupt: leave out images that cannot be read.
        storage: how images will be stored; None: raw.
        any_size: allow images of several sizes.
    Raises:
        UnreadableImage: at the first unreadable image, unless ``skip_corrupt``.
        ArtefactMismatch: if images are of two sizes, too large for a beton, or there are none.
    """
    storage = storage or Storage()
    seen: list[_Seen] = []
    kept: list[int] = []
    skipped: list[str] = []
    notes, unreadable = Tally(), Tally()
    num_samples = len(split.labels)
    with strict_decoding(), progress(f"read {name}", total=num_samples, unit="images") as bar:
        found = _in_threads(lambda i: _look(split, i, storage), range(num_samples))
        for i, image in enumerate(found):
            bar.advance(1)
            if isinstance(image, UnreadableImage):
                if not skip_corrupt:
                    raise image
                skipped.append(split.name(i))
                unreadable.add(f"{UNREADABLE}{image.reason}", split.name(i))
                continue
            if seen and not any_size:
                _require_size(split.name(i), image.size, seen[0].size, split.name(kept[0]))
            for note in sorted(image.notes):
                notes.add(note, split.name(i))
            seen.append(image)
            kept.append(i)
    if not seen:
        raise ArtefactMismatch(f"the {name} split has no readable image. Check `prepare.path`.")
    samples = Samples(
        keys=_rows([image.key for image in seen]),
        labels=split.labels[kept],
        pixels=_rows([image.pixels for image in seen]),
    )
    listed = ReadSplit(
        split=split,
        sources=np.array(kept),
        samples=samples,
        sums=np.array([image.sums for image in seen]),
        sizes=np.array([image.size for image in seen]),
        are_jpeg=np.array([image.is_jpeg for image in seen]),
        skipped=skipped,
        unreadable=tuple(unreadable.findings()),
        notes=tuple(notes.findings()),
        storage=storage,
    )
    return listed.rows(samples.canonical_order())


def _look(split: Split, i: int, storage: Storage) -> _Seen | UnreadableImage:
    """Facts of sample i as it will be stored, without the image itself."""
    try:
        source = split.load(i)
        image, shown = storage.stored(source.pixels, source.jpeg)
    except UnreadableImage as error:
        return error
    _require_room(split.name(i), image)
    return _Seen(
        key=source.key,
        pixels=pixel_key(shown),
        sums=_channel_sums(shown),
        size=(shown.shape[0], shown.shape[1]),
        is_jpeg=isinstance(image, Jpeg),
        notes=source.notes,
    )


def second_reading(read: ReadSplit, name: str) -> Iterator[tuple[StoredImage, int]]:
    """Yield the samples in their order, checked against the first pass.

    Call it within `strict_decoding`, as the first pass was.
    """

    def store(i: int) -> tuple[StoredImage, bytes] | None:
        try:
            source = read.split.load(i)
        except UnreadableImage:  # it was readable before
            return None
        image, shown = read.storage.stored(source.pixels, source.jpeg)
        return image, pixel_key(shown)

    total = len(read.samples)
    with progress(f"write {name}", total=total, unit="images") as bar:
        for row, stored in enumerate(_in_threads(store, read.sources.tolist())):
            if stored is None or stored[1] != read.samples.pixels[row].tobytes():
                raise ArtefactMismatch(
                    f"{read.name(row)} changed while it was being read. "
                    "Run `heartcut prepare` again when nothing writes to the images."
                )
            bar.advance(1)
            yield stored[0], int(read.samples.labels[row])


def statistics(
    sums: NDArray[np.float64], sizes: NDArray[np.int64]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel over all pixels of all images."""
    num_pixels = int((sizes[:, 0] * sizes[:, 1]).sum())
    first, second = np.split(sums.sum(axis=0) / num_pixels, 2)
    std = np.sqrt(np.maximum(second - first**2, 1e-12))
    return _triple(first), _triple(std)


def _in_threads(work: Callable[[int], T], items: Iterable[int]) -> Iterator[T]:
    return read_ahead(work, items, threads=num_cores(), ahead=READ_AHEAD)


def by_pixels(size: Sequence[int]) -> str:
    """Height and width, for a message."""
    return f"{size[0]} x {size[1]}"


def _channel_sums(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Sums by counting grey levels: exact, and ten times faster than sums over floats."""
    levels = np.arange(256)
    counts = [np.bincount(image[:, :, channel].ravel(), minlength=256) for channel in range(3)]
    first = np.array([int(count @ levels) for count in counts])
    second = np.array([int(count @ levels**2) for count in counts])
    return np.concatenate([first / 255.0, second / 255.0**2])


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = (round(float(value), 6) for value in values)
    return red, green, blue


def _rows(keys: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), 16)


def _require_size(name: str, found: tuple[int, int], wanted: tuple[int, int], first: str) -> None:
    if found != wanted:
        raise ArtefactMismatch(
            f"{name} is {by_pixels(found)} pixels (expected {by_pixels(wanted)}, as {first}). "
            "Set `prepare.resize` to bring all images to one size, or "
            '`views.kind = "rrc-flip"` for views of any size.'
        )


def _require_room(name: str, image: StoredImage) -> None:
    """Reject an image that a beton cannot hold."""
    is_jpeg = isinstance(image, Jpeg)
    size = (image.height, image.width) if isinstance(image, Jpeg) else image.shape[:2]
    num_bytes = len(image.content) if isinstance(image, Jpeg) else None
    if not is_storable(*size, num_bytes=num_bytes):
        with_bytes = f" and a JPEG of {num_bytes:,} bytes" if is_jpeg else ""
        room = "8 MiB and sides of 65,535" if is_jpeg else "1672 x 1672"
        way_out = "" if is_jpeg else ', or `prepare.store = "jpeg"`'
        raise ArtefactMismatch(
            f"{name} is {by_pixels(size)} pixels{with_bytes} (expected at most {room}, the limit "
            f"of a beton). Set `prepare.resize` or `prepare.max_side`{way_out}."
        )
