"""prepare: images -> train.beton, eval.beton, dataset.json.

Reads the images twice: once to know their keys, once to write them in canonical order.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray

from pipeline.artefacts import dataset as dataset_format
from pipeline.artefacts.dataset import Dataset, DatasetRecord, Samples
from pipeline.artefacts.store import publishing_folder
from pipeline.data import sources
from pipeline.data.betons import MAX_SIDE, write_beton
from pipeline.data.sources import Source, Split, UnreadableImage
from pipeline.errors import ArtefactExists, ArtefactMismatch
from pipeline.progress import progress
from pipeline.provenance import identity, pixel_key, short
from pipeline.runtime import num_cores
from stages.configs import Config, PrepareConfig

logger = logging.getLogger(__name__)
T = TypeVar("T")

READ_AHEAD = 256


def execute(config: Config) -> Dataset:
    """Prepare the data set of ``config`` in its workspace, unless it lies there already."""
    folder = config.data_folder
    source = open_source(config.prepare)
    request = _request(source, config.prepare)
    existing = dataset_format.read_record(folder) if folder.exists() else None
    if existing is None or existing.request != request:
        plan = _plan(source, config.prepare, request)
        if existing is None:
            with publishing_folder(folder) as partial:
                _write(partial, plan)
        elif existing.id != plan.id:
            raise ArtefactExists(
                f"{folder} was prepared from other images or settings: data set "
                f"{short(existing.id)} (expected {short(plan.id)}). "
                "Remove it or set another `workspace`."
            )
    dataset = Dataset.open(folder)
    _tell(dataset, existed=existing is not None)
    return dataset


def open_source(config: PrepareConfig) -> Source:
    """The source that the settings name."""
    if config.source == "digits":
        return sources.digits()
    assert config.path is not None  # the config refused this
    if config.source == "torchvision":
        return sources.torchvision_dataset(config.name, root=config.path, download=config.download)
    return sources.image_folder(
        config.path, train=config.train, test=config.test or None, resize=config.resize
    )


@dataclass(frozen=True, kw_only=True)
class _ReadSplit:
    """What one pass over a split found, in the order in which it will be written."""

    split: Split
    sources: NDArray[np.int64]
    """Position in the source of each kept sample."""
    samples: Samples
    sums: NDArray[np.float64]
    """Per sample: sum and sum of squares of each channel of pixels / 255, (N, 6)."""
    image_size: tuple[int, int]
    skipped: list[str]

    def rows(self, order: NDArray[np.int64]) -> "_ReadSplit":
        """The part at ``order``; what was skipped is told once, with the training rows."""
        return replace(
            self,
            sources=self.sources[order],
            samples=self.samples.rows(order),
            sums=self.sums[order],
        )


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """All that is known before anything is written."""

    id: str
    request: str
    source: Source
    train: _ReadSplit
    eval: _ReadSplit
    held_out: NDArray[np.int64]
    held_out_seed: int


def _request(source: Source, config: PrepareConfig) -> str:
    """Hash of the settings and of a listing of the source, to know a second run at once."""
    splits = [s for s in (source.train, source.test) if s is not None]
    listing = [[_stat(split.name(i)) for i in range(len(split.labels))] for split in splits]
    labels = [split.labels.tolist() for split in splits]
    settings = config.model_dump(mode="json", exclude={"download", "path"})
    return identity("prepare", [settings, listing, labels])


def _stat(name: str) -> list[str | int]:
    try:
        stat = os.stat(name)  # noqa: PTH116 - 50,000 calls: Path costs as much as the call
    except OSError:
        return [name]
    return [name, stat.st_size, stat.st_mtime_ns]


def _plan(source: Source, config: PrepareConfig, request: str) -> _Plan:
    """Read the source once and settle what goes where."""
    train, test = _read_splits(source, config)
    if train.image_size != test.image_size:
        raise ArtefactMismatch(
            f"the test images are {_by(test.image_size)} pixels (expected "
            f"{_by(train.image_size)}, as the training images). Set `prepare.resize`."
        )
    held_out = dataset_format.stratified_rows(
        train.samples,
        fraction=config.held_out_fraction,
        seed=config.held_out_seed,
        purpose="held-out",
    )
    identity_ = dataset_format.dataset_id(
        train.samples, test.samples, class_names=source.class_names, held_out=held_out
    )
    return _Plan(
        id=identity_,
        request=request,
        source=source,
        train=train,
        eval=test,
        held_out=held_out,
        held_out_seed=config.held_out_seed,
    )


def _read_splits(source: Source, config: PrepareConfig) -> tuple[_ReadSplit, _ReadSplit]:
    train = _read_split(source.train, "train", config)
    if source.test is not None:
        return train, _read_split(source.test, "eval", config)
    test_rows = dataset_format.stratified_rows(
        train.samples, fraction=config.test_fraction, seed=config.held_out_seed, purpose="test"
    )
    rest = np.setdiff1d(np.arange(len(train.samples)), test_rows)
    return train.rows(rest), train.rows(test_rows)


def _read_split(split: Split, name: str, config: PrepareConfig) -> _ReadSplit:
    """Read every sample once: its key, its pixels' hash, its sums."""
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
        for i, found in enumerate(_in_order(look, range(num_samples))):
            bar.advance(1)
            if isinstance(found, UnreadableImage):
                if not config.skip_corrupt:
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
    return _ReadSplit(
        split=split,
        sources=np.array(kept)[order],
        samples=samples.rows(order),
        sums=np.array(sums)[order],
        image_size=size,
        skipped=skipped,
    )


def _write(folder: Path, plan: _Plan) -> None:
    records = {}
    for name, read in (("train", plan.train), ("eval", plan.eval)):
        path = dataset_format.beton_path(folder, name)
        write_beton(path, _second_reading(read, name), num_samples=len(read.samples))
        dataset_format.write_samples(folder, name, read.samples)
        records[name] = dataset_format.split_record(
            folder, name, read.samples, num_classes=len(plan.source.class_names)
        )
    mean, std = _statistics(
        np.delete(plan.train.sums, plan.held_out, axis=0), plan.train.image_size
    )
    record = DatasetRecord(
        id=plan.id,
        request=plan.request,
        source=plan.source.description,
        class_names=list(plan.source.class_names),
        image_size=plan.train.image_size,
        decoder=f"pillow {PIL.__version__}",
        mean=mean,
        std=std,
        held_out=plan.held_out.tolist(),
        held_out_seed=plan.held_out_seed,
        train=records["train"],
        eval=records["eval"],
        skipped=sorted({*plan.train.skipped, *plan.eval.skipped}),
    )
    dataset_format.write_record(folder, record)


def _second_reading(read: _ReadSplit, name: str) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """The samples in canonical order, checked to be what the first reading saw."""
    total = len(read.samples)
    with progress(f"write {name}", total=total, unit="images") as bar:
        images = _in_order(lambda i: read.split.read(int(i))[1], read.sources)
        for row, image in enumerate(images):
            if pixel_key(image) != read.samples.pixels[row].tobytes():
                raise ArtefactMismatch(
                    f"{read.split.name(int(read.sources[row]))} changed while it was being read. "
                    "Run `heartcut prepare` again when nothing writes to the images."
                )
            bar.advance(1)
            yield image, int(read.samples.labels[row])


def _in_order(work: Callable[[int], T], items: Iterable[int]) -> Iterator[T]:
    """``map`` by threads that read a little ahead, in the order of ``items``."""
    remaining = iter(items)
    with ThreadPoolExecutor(max_workers=num_cores()) as pool:
        waiting = deque(pool.submit(work, i) for i in islice(remaining, READ_AHEAD))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, i) for i in islice(remaining, 1))
        finally:
            for future in waiting:
                future.cancel()


def _channel_sums(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    pixels = image.reshape(-1, 3).astype(np.float64) / 255.0
    return np.concatenate([pixels.sum(axis=0), np.square(pixels).sum(axis=0)])


def _statistics(
    sums: NDArray[np.float64], image_size: tuple[int, int]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel over all pixels."""
    first, second = np.split(sums.sum(axis=0) / (len(sums) * image_size[0] * image_size[1]), 2)
    std = np.sqrt(np.maximum(second - first**2, 1e-12))
    return _triple(first), _triple(std)


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = (round(float(value), 6) for value in values)
    return red, green, blue


def _rows(keys: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), 16)


def _require_size(name: str, found: tuple[int, int], wanted: tuple[int, int], first: str) -> None:
    if found != wanted:
        raise ArtefactMismatch(
            f"{name} is {_by(found)} pixels (expected {_by(wanted)}, as {first}). "
            "Set `prepare.resize` to bring all images to one size."
        )
    if max(found) > MAX_SIDE:
        raise ArtefactMismatch(
            f"{name} is {_by(found)} pixels (expected at most {MAX_SIDE} a side). "
            "Set `prepare.resize`."
        )


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _tell(dataset: Dataset, *, existed: bool) -> None:
    record = dataset.record
    logger.info(
        "%s%s: %s, %d classes, %s train (%s held out), %s test, %s pixels, id %s",
        dataset.folder,
        " exists, nothing to do" if existed else "",
        record.source,
        dataset.num_classes,
        f"{len(dataset.training):,}",
        f"{len(record.held_out):,}",
        f"{dataset.eval.num_samples:,}",
        _by(record.image_size),
        short(record.id),
    )
    if record.skipped:
        logger.warning(
            "%d unreadable files were left out, listed under `skipped` in dataset.json: %s",
            len(record.skipped),
            ", ".join(record.skipped[:3]),
        )
