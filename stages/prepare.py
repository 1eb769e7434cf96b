"""prepare: images -> train.beton, eval.beton, dataset.json.

Reads the images twice: once for their keys, once to write them in canonical order.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from pipeline.artefacts import dataset as dataset_format
from pipeline.artefacts.dataset import (
    Dataset,
    DatasetRecord,
    Samples,
    read_record,
    write_record,
)
from pipeline.artefacts.preparation import Finding, Preprocessing
from pipeline.artefacts.publishing import publishing_folder
from pipeline.data import betons, copies, sources
from pipeline.data.betons import Storage
from pipeline.data.images import findings
from pipeline.data.images.files import PixelRule, strict_decoding
from pipeline.data.images.findings import finding, listed, worded
from pipeline.data.images.folders import folding_alike
from pipeline.data.reading import ReadSplit, by_pixels, read_split, second_reading, statistics
from pipeline.data.sources import Source, Split
from pipeline.errors import ArtefactExists, ArtefactMismatch, ArtefactNotFound, ConfigError
from pipeline.models.reused_head import SUFFIX
from pipeline.models.zoo import architectures, unknown_architecture
from pipeline.provenance import array_sha256, identity, short
from stages.config.origin import with_complete_commands
from stages.config.prepare import PrepareConfig
from stages.config.root import Config
from stages.text import counted

logger = logging.getLogger(__name__)

_LATER_SETTINGS = (
    *("store", "raw_pixels", "quality", "max_side"),
    *("exif_orientation", "duplicates"),
)
"""Settings added later: at their defaults they do not change the hash of older data sets."""

_REMEDIES = {
    findings.NOT_TURNED: '; set `prepare.exif_orientation = "apply"` to turn them, if the training '
    "of the teacher did",
    findings.TWO_LABELS: "; remove the wrong ones",
}


def require_known_architectures(config: Config) -> None:
    """Reject a network of a later stage that is neither in the zoo nor from elsewhere.

    Raises:
        ConfigError: naming the key, and the closest names.
    """
    named = {
        "train_teacher.arch": config.train_teacher.arch,
        "cache_teacher.arch": config.cache_teacher.arch,
        "train_student.arch": config.train_student.arch,
    }
    for key, arch in named.items():
        trunk = arch.partition(SUFFIX)[0]
        if arch and ":" not in arch and trunk not in architectures():
            raise ConfigError(f"{key}: {unknown_architecture(arch)}")


@with_complete_commands
def execute(config: Config) -> Dataset:
    """Prepare the data set of ``config`` in its workspace, unless it exists."""
    folder = config.data_folder
    source = open_source(config.prepare)
    request = _request(source, config.prepare)
    any_size = config.views.kind == "rrc-flip"
    existing = _existing_record(folder)
    if existing is None or existing.request != request:
        plan = _plan(source, config.prepare, request, any_size=any_size)
        if existing is None:
            with publishing_folder(folder) as partial:
                _write(partial, plan)
        elif existing.id != plan.id:
            earlier = (
                "An earlier release prepared it, which read fewer kinds of files. "
                if existing.preprocessing is None
                else ""
            )
            raise ArtefactExists(
                f"{folder} was prepared from other images or settings: data set "
                f"{short(existing.id)} (expected {short(plan.id)}). {earlier}"
                "Remove it, or set another `workspace`."
            )
        else:  # files were moved or touched: the next run need not read the images again
            write_record(folder, existing.model_copy(update=_facts(plan)))
    elif existing.preprocessing is None and os.access(folder, os.W_OK):
        update = {"preprocessing": _preprocessing(config.prepare)}  # an earlier release wrote it
        write_record(folder, existing.model_copy(update=update))
    dataset = Dataset.open(folder)
    _log(dataset, source, existed=existing is not None)
    return dataset


def _existing_record(folder: Path) -> DatasetRecord | None:
    if not folder.exists():
        return None
    try:
        return read_record(folder)
    except ArtefactNotFound as error:
        raise ArtefactExists(
            f"{folder} exists and is not a data set: it has no dataset.json (expected a complete "
            "data set, or no folder). Remove it, or set another `workspace`."
        ) from error


def open_source(config: PrepareConfig) -> Source:
    """Open the source of the images."""
    if config.source == "digits":
        return sources.digits(resize=config.resize)
    assert config.path is not None  # checked by the configuration
    if config.source == "torchvision":
        return sources.torchvision_dataset(
            config.name, root=config.path, download=config.download, resize=config.resize
        )
    return sources.image_folder(
        config.path,
        train=config.train,
        test=config.test or None,
        rule=PixelRule(
            resize=config.resize,
            max_side=config.max_side,
            exif_orientation=config.exif_orientation,
        ),
    )


def _preprocessing(config: PrepareConfig) -> Preprocessing:
    names = Preprocessing.model_fields
    return Preprocessing.model_validate({name: getattr(config, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Everything that is settled before anything is written."""

    id: str
    request: str
    source: Source
    train: ReadSplit
    eval: ReadSplit
    held_out: NDArray[np.int64]
    held_out_seed: int
    left_out: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    preprocessing: Preprocessing

    @property
    def skipped(self) -> list[str]:
        """Names of the unreadable files of both splits."""
        return sorted({*self.train.skipped, *self.eval.skipped})


def _facts(plan: _Plan) -> dict[str, object]:
    """Fields of the record that say what was seen in the source and how."""
    return {
        "request": plan.request,
        "left_out": plan.left_out,
        "notes": plan.notes,
        "skipped": plan.skipped,
        "preprocessing": plan.preprocessing,
    }


def _request(source: Source, config: PrepareConfig) -> str:
    """Hash of the settings and of a listing of the source, to recognise a second run."""
    splits = [s for s in (source.train, source.test) if s is not None]
    listing = [split.listing() for split in splits]
    labels = [array_sha256(split.labels) for split in splits]
    defaults = PrepareConfig()
    unset = {name for name in _LATER_SETTINGS if getattr(config, name) == getattr(defaults, name)}
    settings = config.model_dump(mode="json", exclude={"download", "path", *unset})
    return identity("prepare", [settings, listing, labels])


def _plan(source: Source, config: PrepareConfig, request: str, *, any_size: bool) -> _Plan:
    """Read the source once, and assign its samples to the splits."""
    train, test = _read_splits(source, config, any_size=any_size)
    if config.order == "source":
        train, test = train.as_listed(), test.as_listed()
    if not any_size and (train.sizes[0] != test.sizes[0]).any():
        raise ArtefactMismatch(
            f"the test images are {by_pixels(test.sizes[0])} pixels (expected "
            f"{by_pixels(train.sizes[0])}, as the training images). Set `prepare.resize`, or "
            '`views.kind = "rrc-flip"`.'
        )
    train, shared = _without_shared(source, train, test, config)
    held_out = dataset_format.stratified_rows(
        train.samples,
        fraction=config.held_out_fraction,
        seed=config.held_out_seed,
        purpose="held-out",
    )
    _require_all_classes(source, train.samples, test.samples, held_out)
    identity_ = dataset_format.dataset_id(
        train.samples, test.samples, class_names=source.class_names, held_out=held_out
    )
    passes = [train] if source.test is None else [train, test]
    unreadable = findings.merged(*(one.unreadable for one in passes))
    noted = findings.merged(*(one.notes for one in passes))
    return _Plan(
        id=identity_,
        request=request,
        source=source,
        train=train,
        eval=test,
        held_out=held_out,
        held_out_seed=config.held_out_seed,
        left_out=(*source.left_out, *unreadable),
        notes=(*noted, *shared, *_copies(train, test, held_out)),
        preprocessing=_preprocessing(config),
    )


def _without_shared(
    source: Source, train: ReadSplit, test: ReadSplit, config: PrepareConfig
) -> tuple[ReadSplit, list[Finding]]:
    """The training images, by default with an error if a test image is one of them."""
    of_train, of_test = copies.image_numbers(train.samples, test.samples)
    shared = np.flatnonzero(np.isin(of_test, of_train))
    pairs = [
        f"{test.name(row)} = {train.name(copies.first_equal(of_train, of_test[row]))}"
        for row in shared[:3].tolist()
    ]
    if source.published or config.duplicates == "allow" or not len(shared):
        return train, finding(findings.SHARED, len(shared), pairs)
    if config.duplicates == "drop":
        kept = ~np.isin(of_train, of_test)
        left = finding(findings.DROPPED, int((~kept).sum()), pairs)
        return train.rows(np.flatnonzero(kept)), left
    remove = "Remove the copies" if source.test is None else "Remove them from one of the two"
    are = "is a training image" if len(shared) == 1 else "are training images"
    raise ArtefactMismatch(
        f"{counted(len(shared), 'test image')} {are} too, for example {', '.join(pairs)} "
        f"(expected none, because the test accuracy would be too high). {remove}, or set "
        '`prepare.duplicates = "drop"`, which leaves them out of the training images, or "allow", '
        "which keeps them."
    )


def _copies(train: ReadSplit, test: ReadSplit, held_out: NDArray[np.int64]) -> list[Finding]:
    """Copies of images within the training images and within the test images."""
    of_train, of_test = copies.image_numbers(train.samples, test.samples)
    contradictory = copies.rows_of_two_labels(of_train, train.samples.labels)
    known = np.isin(of_train[held_out], np.delete(of_train, held_out))

    def pairs(read: ReadSplit, numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> list[str]:
        found: dict[frozenset[int], str] = {}  # each pair once
        for row in rows[:6].tolist():
            other = copies.first_equal(numbers, numbers[row], but=row)
            found.setdefault(frozenset((row, other)), f"{read.name(row)} = {read.name(other)}")
        return list(found.values())[:3]

    found = finding(findings.TWO_LABELS, len(contradictory), pairs(train, of_train, contradictory))
    for what, read, numbers in (
        (findings.COPY_IN_TRAINING, train, of_train),
        (findings.COPY_IN_TEST, test, of_test),
    ):
        later = copies.later_copies(numbers)
        found += finding(what, len(later), pairs(read, numbers, later))
    rows = held_out[known]
    return found + finding(findings.HELD_OUT_COPY, len(rows), pairs(train, of_train, rows))


def _require_all_classes(
    source: Source, train: Samples, test: Samples, held_out: NDArray[np.int64]
) -> None:
    """Reject a class without a training image or without a test image."""
    parts = {"training": np.delete(train.labels, held_out), "test": test.labels}
    for part, labels in parts.items():
        counts = np.bincount(labels, minlength=len(source.class_names))
        if not counts.all():
            raise ArtefactMismatch(
                f"class {source.class_names[int(counts.argmin())]} has 0 {part} images after some "
                "were held out, skipped or dropped (expected at least 1). Add images, or remove "
                "the class."
            )


def _read_splits(
    source: Source, config: PrepareConfig, *, any_size: bool
) -> tuple[ReadSplit, ReadSplit]:
    storage = Storage(store=config.store, raw_pixels=config.raw_pixels, quality=config.quality)

    def read(split: Split, name: str) -> ReadSplit:
        skip = config.skip_corrupt
        return read_split(split, name, skip_corrupt=skip, storage=storage, any_size=any_size)

    train = read(source.train, "train")
    if source.test is not None:
        return train, read(source.test, "eval")
    test_rows = dataset_format.stratified_rows(
        train.samples, fraction=config.test_fraction, seed=config.held_out_seed, purpose="test"
    )
    rest = np.setdiff1d(np.arange(len(train.samples)), test_rows)
    return train.rows(rest), train.rows(test_rows)


def _write(folder: Path, plan: _Plan) -> None:
    records = {}
    for name, read in (("train", plan.train), ("eval", plan.eval)):
        path = dataset_format.beton_path(folder, name)
        with strict_decoding():
            betons.write_beton(path, second_reading(read, name), num_samples=len(read.samples))
        dataset_format.write_samples(folder, name, read.samples)
        records[name] = dataset_format.split_record(
            folder, name, read.samples, num_classes=len(plan.source.class_names)
        )
    rows = np.delete(np.arange(len(plan.train.samples)), plan.held_out)
    mean, std = statistics(plan.train.sums[rows], plan.train.sizes[rows])
    sizes = np.concatenate([plan.train.sizes, plan.eval.sizes])
    smallest, largest = sizes.min(axis=0).tolist(), sizes.max(axis=0).tolist()
    num_jpegs = int(plan.train.are_jpeg.sum() + plan.eval.are_jpeg.sum())
    record = DatasetRecord(
        id=plan.id,
        request=plan.request,
        source=plan.source.description,
        class_names=list(plan.source.class_names),
        heights=(smallest[0], largest[0]),
        widths=(smallest[1], largest[1]),
        num_jpegs=num_jpegs,
        decoder=f"pillow {PIL.__version__}",
        mean=mean,
        std=std,
        held_out=plan.held_out.tolist(),
        held_out_seed=plan.held_out_seed,
        train=records["train"],
        eval=records["eval"],
        skipped=plan.skipped,
        left_out=plan.left_out,
        notes=plan.notes,
        preprocessing=plan.preprocessing,
    )
    write_record(folder, record)


def _sizes(record: DatasetRecord) -> str:
    """Sizes of the images in words."""
    if record.image_size is not None:
        return by_pixels(record.image_size)
    smallest, largest = (by_pixels((record.heights[i], record.widths[i])) for i in (0, 1))
    return f"{smallest} to {largest}"


def _log(dataset: Dataset, source: Source, *, existed: bool) -> None:
    record = dataset.record
    logger.info(
        "%s%s: %s, %s, %s, %s held-out samples, %s, %s pixels",
        dataset.folder,
        " exists, nothing to do" if existed else "",
        record.source,
        f"{dataset.num_classes} classes",
        counted(len(dataset.training), "training sample"),
        f"{len(record.held_out):,}",
        counted(dataset.eval.num_samples, "test image"),
        _sizes(record),
    )
    logger.debug("data set id %s", record.id)
    if record.skipped:
        reasons = [one for one in record.left_out if one.what.startswith(findings.UNREADABLE)]
        logger.warning(
            "left out %s, listed under `skipped` in %s: %s%s",
            counted(len(record.skipped), "unreadable file"),
            dataset.folder / "dataset.json",
            ", ".join(record.skipped[:3]),
            f" ({listed(reasons)})" if reasons else "",
        )
    if source.left_out:
        examples = [example for one in source.left_out for example in one.examples]
        logger.warning("left out %s: %s", listed(source.left_out), ", ".join(examples[:3]))
    if existed and record.notes:
        where = dataset.folder / "dataset.json"
        logger.warning(
            "%s on the images: see `notes` in %s", counted(len(record.notes), "note"), where
        )
    for note in () if existed else record.notes:
        logger.warning(
            "%s: %s%s", worded(note), ", ".join(note.examples), _REMEDIES.get(note.what, "")
        )
    alike = folding_alike(record.class_names)
    if alike:
        logger.warning(
            "classes %s and %s differ only in case, spaces or Unicode form: make one folder of "
            "them if they are one class",
            *map(repr, alike),
        )
