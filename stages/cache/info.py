"""cache info, list, diff: descriptions of teacher caches, read from their seals."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.artefacts.cache.arrays import num_objects
from pipeline.artefacts.cache.receipts import MANIFEST, read_manifest
from pipeline.artefacts.cache.record import CacheManifest, CacheSummary
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.artefacts.records import Record, printable
from pipeline.data.view_specs import views_from_json
from pipeline.errors import ArtefactNotFound, ConfigError, Damaged, PipelineError
from pipeline.provenance import short
from stages.caches import Caches, begun_cache, is_sealed
from stages.config.file import load_config
from stages.config.root import Config
from stages.text import text_table

_EXAMPLES = 3


class CacheInfo(Record):
    """Description of a cache: the JSON of `cache info`."""

    place: str
    root: str
    bytes: int
    manifest: CacheManifest
    summary: CacheSummary


def places(what: str, overrides: list[str]) -> list[ObjectStore]:
    """Places of the named caches: the one at an address, or those of a configuration."""
    if not what.endswith(".toml"):
        if overrides:
            raise ConfigError(
                f"--set needs a configuration, got {what} (expected a .toml file). Pass a "
                "configuration, or leave --set out."
            )
        return [open_objects(what)]
    config = configuration(what, overrides)
    dataset = Dataset.open(config.data_folder)
    if config.select.cache is not None:
        return [open_objects(config.select.cache)]
    splits: tuple[Literal["train", "eval"], ...] = ("train", "eval")
    begun = [begun_cache(config, dataset, split=split) for split in splits]
    found = [place for place in begun if place is not None]
    return (
        found if begun[0] is not None else [Caches(config=config, dataset=dataset).training.store]
    )


def configuration(what: str, overrides: list[str]) -> Config:
    """Read a configuration.

    Raises:
        ConfigError: if ``what`` is not a configuration.
    """
    if not what.endswith(".toml"):
        raise ConfigError(
            f"{what} is not a configuration (expected a .toml file that names the teacher and the "
            "images). Pass a configuration, for example configs/digits.toml."
        )
    return load_config(Path(what), overrides=overrides)


def info(place: ObjectStore, *, as_json: bool) -> str:
    """Describe a cache in full, as text or as JSON."""
    found = describe(TeacherCache.open(place))
    if as_json:
        return json.dumps(found.model_dump(mode="json"), indent=1, sort_keys=True)
    return "\n".join(f"{name:<20} {printable(value)}" for name, value in lines(found))


def describe(cache: TeacherCache) -> CacheInfo:
    """Read the description of an open cache."""
    return CacheInfo(
        place=cache.path,
        root=cache.root,
        bytes=cache.num_bytes,
        manifest=cache.manifest,
        summary=cache.summary,
    )


def table_of(root: str) -> str:
    """Table with a line for each cache in a folder or bucket."""
    store = open_objects(root)
    rows: list[tuple[str, ...]] = [
        ("id", "complete", "teacher", "views", "images", "classes", "keeps", "MB")
    ]
    for name in store.folders():
        place = store.child(name)
        if place.size(MANIFEST) is not None:
            rows.append(_row(place))
    if len(rows) == 1:
        raise ArtefactNotFound(
            f"{store.url} has no teacher cache. Make one with `heartcut cache-teacher CONFIG`, or "
            "pass the folder of caches."
        )
    return text_table(rows)


def diff(first: str, second: str) -> list[str]:
    """Differences of two caches, one a line; none if they are the same."""
    one, other = TeacherCache.open(first), TeacherCache.open(second)
    if one.root == other.root:
        return []
    lines = []
    for part in ("identity", "shape", "layout"):
        mine, theirs = (getattr(cache.manifest, part).model_dump() for cache in (one, other))
        lines += [
            f"{name}: {_brief(mine[name])} | {_brief(theirs[name])}"
            for name in mine
            if mine[name] != theirs[name]
        ]
    lines += _different_samples(one, other)
    if one.id == other.id:
        differing = [
            key for key, facts in one.seal.receipts.items() if other.seal.receipts.get(key) != facts
        ]
        lines.append(
            f"numbers: {len(differing)} of {len(one.seal.receipts)} objects differ, first "
            f"{', '.join(sorted(differing)[:_EXAMPLES])}"
        )
    return lines


def _different_samples(one: TeacherCache, other: TeacherCache) -> Iterator[str]:
    labels, theirs = (_labels_by_key(cache) for cache in (one, other))
    for name, extra in (("first", labels.keys() - theirs), ("second", theirs.keys() - labels)):
        if extra:
            yield f"images: {len(extra):,} only in the {name}: {_examples(extra)}"
    changed = {key for key in labels.keys() & theirs if labels[key] != theirs[key]}
    if changed:
        yield f"labels: {len(changed):,} images have another label: {_examples(changed)}"
    if one.shape.num_samples == other.shape.num_samples and not np.array_equal(
        one.keys, other.keys
    ):
        yield "order: the images are in another order"


def _labels_by_key(cache: TeacherCache) -> dict[bytes, tuple[int, ...]]:
    labels: dict[bytes, tuple[int, ...]] = {}
    for key, label in zip(cache.keys, cache.labels.tolist(), strict=True):
        labels[key.tobytes()] = tuple(sorted((*labels.get(key.tobytes(), ()), label)))
    return labels


def _examples(keys: set[bytes]) -> str:
    return ", ".join(key.hex()[:12] for key in sorted(keys)[:_EXAMPLES])


def _brief(value: object) -> str:
    text = str(value)
    return short(text) if len(text) == 64 else text


def lines(found: CacheInfo) -> Iterator[tuple[str, str]]:
    """Yield the lines of `cache info`: names and values."""
    manifest, summary = found.manifest, found.summary
    identity, shape = manifest.identity, manifest.shape
    yield "place", found.place
    yield "id", manifest.id
    yield "root hash", found.root
    yield "teacher", f"{summary.teacher}, weights {short(identity.weights)}"
    yield (
        "images",
        f"{shape.num_samples:,} of {shape.num_classes} classes, fingerprint "
        + short(identity.fingerprint),
    )
    augmented = f" + {views_from_json(identity.views).name}" if shape.num_views > 1 else ""
    yield "views", f"clean{augmented}"
    yield "keeps", _keeps(manifest)
    yield "precision", identity.precision
    yield "size", _size(manifest, found.bytes)
    yield "accuracy", "/".join(f"{100 * a:.2f}" for a in summary.accuracy_training) + " % per view"
    if summary.accuracy_held_out:
        held_out = "/".join(f"{100 * a:.2f}" for a in summary.accuracy_held_out)
        yield "held out", held_out + " % per view"
    yield "wrong", f"{summary.num_wrong:,} images in the clean view"
    yield "agreement", "/".join(f"{100 * a:.2f}" for a in summary.agreement) + " % per view"
    for fidelity in summary.fidelity:
        divergence = f"mean {fidelity.mean_kl:.2e}, max {fidelity.max_kl:.2e}"
        yield f"KL at {fidelity.temperature:g}", f"{divergence} to float32"
    yield "saw held-out images", "yes" if summary.target_in_sample else "no"
    yield "computed", f"in {summary.seconds:,.1f} s on {'; '.join(summary.devices)}"
    yield "versions", ", ".join(f"{name} {value}" for name, value in summary.versions.items())


def _keeps(manifest: CacheManifest) -> str:
    identity = manifest.identity
    kept = "all logits"
    if identity.top_k:
        at = ", ".join(f"{value:g}" for value in identity.temperatures)
        kept = f"top {identity.top_k} + label (temperatures {at})"
    return kept + (" + features" if identity.features else "")


def _size(manifest: CacheManifest, num_bytes: int) -> str:
    shape = manifest.shape
    per_row = num_bytes / (shape.num_samples * shape.num_views)
    return (
        f"{num_bytes:,} bytes in {num_objects(manifest):,} objects, {per_row:.1f} bytes per "
        f"image and view, {manifest.layout.codec}"
    )


def _row(place: ObjectStore) -> tuple[str, ...]:
    try:
        manifest = read_manifest(place)
        complete, size = ("yes", _size_of(place)) if is_sealed(place) else ("no", _size_of(place))
    except PipelineError as error:
        state = "damaged" if isinstance(error, Damaged) else "cannot be read"
        return (place.url.rsplit("/", 1)[-1], state, "", "", "", "", "", "")
    shape = manifest.shape
    return (
        short(manifest.id),
        complete,
        printable(f"{manifest.identity.arch} {short(manifest.identity.weights)}"),
        str(shape.num_views),
        f"{shape.num_samples:,}",
        str(shape.num_classes),
        _keeps(manifest),
        size,
    )


def _size_of(place: ObjectStore) -> str:
    return f"{sum(place.sizes('data.zarr').values()) / 1e6:,.1f}"
