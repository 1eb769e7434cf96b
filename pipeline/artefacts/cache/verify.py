"""Verification of a sealed cache: its structure in seconds, or every byte."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.artefacts.cache.arrays import SMALL_AT_ONCE, object_key, object_names, read_in_threads
from pipeline.artefacts.cache.receipts import MANIFEST, SEAL, read_receipt, receipt_key
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.runtime.progress import progress


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Result of a verification: what was checked, and the problems that were found."""

    num_objects: int
    num_bytes: int
    """Stored bytes of the objects."""
    problems: list[str]
    """One line for each damaged or missing object."""
    unknown: list[str]
    """Keys that are not part of the cache: harmless, because nothing reads them."""


def check_cache(store: ObjectStore, *, read_bytes: bool) -> Checked:
    """Compare what is stored with the seal.

    Args:
        store: the folder or address of the cache.
        read_bytes: read every object and compare its SHA-256 too.
    Raises:
        ArtefactNotFound: if there is no sealed cache.
        ArtefactMismatch: if the seal or the manifest is damaged, so that nothing can be compared.
        PipelineError: if the store cannot be read.
    """
    cache = TeacherCache.described(store)
    problems = [str(error) for error in cache.wrong_metadata()]
    problems += _wrong_sizes(cache)
    problems += _wrong_receipts(cache)
    if read_bytes:
        problems += _wrong_bytes(cache)
    objects = dict(cache.objects())
    return Checked(
        num_objects=len(objects),
        num_bytes=sum(facts.bytes for facts in objects.values()),
        problems=list(dict.fromkeys(problems)),
        unknown=_unknown_keys(cache) if store.can_list else [],
    )


def _wrong_sizes(cache: TeacherCache) -> Iterator[str]:
    sizes = cache.store.sizes("data.zarr") if cache.store.can_list else None
    objects = list(cache.objects())

    def found(key: str) -> int | None:
        return sizes.get(key) if sizes is not None else cache.store.size(key)

    for (key, facts), size in zip(
        objects,
        read_in_threads(found, [key for key, _ in objects], at_once=SMALL_AT_ONCE),
        strict=True,
    ):
        if size is None:
            yield f"{cache.path}/{key} is missing (expected {facts.bytes:,} bytes)"
        elif size != facts.bytes:
            yield f"{cache.path}/{key} has {size:,} bytes (expected {facts.bytes:,})"


def _wrong_receipts(cache: TeacherCache) -> Iterator[str]:
    """Compare the receipts, which only resuming needs, with their copies in the seal."""
    names = object_names(cache.manifest)

    def problem(name: tuple[str, int, int]) -> str:
        key = receipt_key(*name)
        try:
            if read_receipt(cache.store, key).facts != cache.seal.receipts[key]:
                return f"{cache.path}/{key} records other numbers than the seal"
        except (ArtefactMismatch, ArtefactNotFound) as error:
            return str(error)
        return ""

    yield from filter(None, read_in_threads(problem, names, at_once=SMALL_AT_ONCE))


def _wrong_bytes(cache: TeacherCache) -> Iterator[str]:
    names = object_names(cache.manifest)

    def problem(name: tuple[str, int, int]) -> str:
        try:
            cache.reader.verified(*name)
        except (ArtefactMismatch, ArtefactNotFound) as error:
            return str(error)
        return ""

    total = sum(cache.reader.facts(*name).bytes for name in names)
    with progress("verify", total=total, unit="bytes") as bar:
        for name, found in zip(names, read_in_threads(problem, iter(names)), strict=True):
            bar.advance(cache.reader.facts(*name).bytes)
            if found:
                yield found


def _unknown_keys(cache: TeacherCache) -> list[str]:
    known = {MANIFEST, SEAL, *cache.seal.metadata}
    for name in object_names(cache.manifest):
        known |= {receipt_key(*name), object_key(cache.reader.specs[name[0]], *name[1:])}
    return sorted(cache.store.sizes().keys() - known)
