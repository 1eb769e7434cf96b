"""Copying a sealed cache between places: numbers, then receipts, then the seal.

A reader of the target therefore never sees an incomplete cache as complete. Every object is checked
against the seal before it is sent. Objects with a receipt at the target are skipped, so repeating
the command resumes an interrupted copy.
"""

from pipeline.artefacts.cache.arrays import (
    metadata_objects,
    object_key,
    object_names,
    read_in_threads,
    remedy,
)
from pipeline.artefacts.cache.receipts import (
    MANIFEST,
    SEAL,
    create_receipt,
    create_record,
    create_seal,
    read_receipt,
    receipt_key,
    record_bytes,
)
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.objects.protocol import ObjectStore
from pipeline.errors import ArtefactMismatch, Damaged
from pipeline.provenance import short
from pipeline.runtime.progress import progress


def copy_cache(cache: TeacherCache, target: ObjectStore) -> TeacherCache:
    """Copy a sealed cache to ``target``, or complete a copy; return the copy.

    Raises:
        ArtefactMismatch: if ``target`` holds other numbers, or an object of ``cache`` is damaged.
        PipelineError: if ``target`` cannot be written.
    """
    if target.size(SEAL) is None:
        _copy_manifest(cache, target)
        for key, data in metadata_objects(cache.manifest).items():
            target.create(key, data)
        _copy_objects(cache, target)
        create_seal(target, cache.seal)
    copy = TeacherCache.open(target)
    if copy.root != cache.root:
        raise ArtefactMismatch(
            f"{target.url} was sealed with other numbers than {cache.path}: root hash "
            f"{short(copy.root)} (expected {short(cache.root)}). Nothing was overwritten; "
            f"run `heartcut cache diff {target.url} {cache.path}` to see where they differ."
        )
    return copy


def _copy_manifest(cache: TeacherCache, target: ObjectStore) -> None:
    try:
        create_record(target, MANIFEST, cache.manifest)
    except ArtefactMismatch as error:
        found = target.read(MANIFEST, max_bytes=1 << 20)
        if found != record_bytes(cache.manifest):
            raise ArtefactMismatch(
                f"{target.url} holds another cache than {cache.path}, or the same one with another "
                "layout. Nothing was overwritten; complete it there with "
                "`heartcut cache-teacher`, or choose another place."
            ) from error
        raise


def _copy_objects(cache: TeacherCache, target: ObjectStore) -> None:
    kept = target.sizes("receipts")
    names = object_names(cache.manifest)
    todo = [name for name in names if receipt_key(*name) not in kept]
    done = len(names) - len(todo)

    def copy(name: tuple[str, int, int]) -> int:
        data = cache.reader.verified(*name)
        target.create(object_key(cache.reader.specs[name[0]], *name[1:]), data)
        key = receipt_key(*name)
        receipt = read_receipt(cache.store, key)
        if receipt.facts != cache.reader.facts(*name):
            raise Damaged(
                f"{cache.path}/{key} records other numbers than the seal. {remedy(cache.store)}"
            )
        create_receipt(target, key, receipt)
        return len(data)

    total = sum(cache.reader.facts(*name).bytes for name in todo)
    what = "copy" if done == 0 else f"copy, {done} of {len(names)} objects are there,"
    with progress(what, total=total, unit="bytes") as bar:
        for num_bytes in read_in_threads(copy, iter(todo)):
            bar.advance(num_bytes)
    _require_kept(cache, target, [name for name in names if receipt_key(*name) in kept])


def _require_kept(
    cache: TeacherCache, target: ObjectStore, names: list[tuple[str, int, int]]
) -> None:
    """Reject objects that were in ``target`` before, if they differ from the seal."""
    sizes = target.sizes("data.zarr") if names else {}

    def require(name: tuple[str, int, int]) -> None:
        key, expected = receipt_key(*name), cache.reader.facts(*name)
        found = read_receipt(target, key).facts
        if found != expected:
            raise ArtefactMismatch(
                f"{target.url}/{key} records other numbers than {cache.path}: sha256 "
                f"{short(found.sha256)} (expected {short(expected.sha256)}). Nothing was "
                "overwritten; choose another place, or remove the cache there."
            )
        data = object_key(cache.reader.specs[name[0]], *name[1:])
        if sizes.get(data) != expected.bytes:
            raise ArtefactMismatch(
                f"{target.url}/{data} has {sizes.get(data, 0):,} bytes (expected "
                f"{expected.bytes:,}). Remove it and its receipt, and run the same command again."
            )

    for _ in read_in_threads(require, iter(names)):
        pass
