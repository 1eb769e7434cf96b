"""cache gc: leftovers of killed processes in a folder of caches."""

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.artefacts.cache.arrays import array_specs, object_key, object_names
from pipeline.artefacts.cache.hydration import HYDRATED
from pipeline.artefacts.cache.receipts import MANIFEST, SEAL, read_manifest, receipt_key
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.artefacts.publishing import PARTIAL, one_line_disk_errors
from pipeline.artefacts.unfinished_rows import UNFINISHED
from pipeline.errors import ArtefactNotFound, ConfigError


def collect_garbage(
    folder: Path, *, delete: bool, unsealed: bool, hydrated: bool, hours: float
) -> str:
    """List what can be removed, or remove it.

    Args:
        folder: a folder of caches.
        delete: remove the files; otherwise only list them.
        unsealed: also incomplete caches.
        hydrated: also local copies.
        hours: smallest time since the last change, so that files in use stay.
    Raises:
        ArtefactNotFound: if the folder does not exist.
    """
    if "://" in str(folder) or ":/" in str(folder):
        raise ConfigError(
            f"{folder} is a bucket (expected a folder): buckets have no unfinished files. Remove a "
            "cache there with the tools of the store."
        )
    if not folder.is_dir():
        raise ArtefactNotFound(
            f"{folder} does not exist (expected a folder of caches). Pass an existing folder."
        )
    youngest = time.time() - 3600 * hours
    found = [
        path
        for path in _candidates(folder, unsealed=unsealed, hydrated=hydrated)
        if _last_change(path) <= youngest
    ]
    sizes = [_num_bytes(path) for path in found]
    lines = [f"{size:>14,} bytes  {path}" for size, path in zip(sizes, found, strict=True)]
    total = sum(sizes)
    with one_line_disk_errors(folder):
        for path in found if delete else []:
            _remove(path)
    outcome = "removed" if delete else "can be removed with --delete"
    return "\n".join([*lines, f"{total:>14,} bytes {outcome}"])


def _candidates(folder: Path, *, unsealed: bool, hydrated: bool) -> Iterator[Path]:
    gone: set[Path] = set()
    for child in sorted(folder.iterdir()):
        if child.is_symlink() or not child.is_dir():
            continue
        is_unsealed = (child / MANIFEST).exists() and not (child / SEAL).exists()
        is_local = child.suffix == UNFINISHED or (hydrated and child.suffix == HYDRATED)
        if is_local or (unsealed and is_unsealed):
            gone.add(child)
            yield child
        elif is_unsealed:
            yield from _without_receipt(child)
    for path in sorted(folder.rglob(f"*{PARTIAL}")):
        if not any(parent in gone for parent in path.parents):
            gone.add(path)
            yield path


def _without_receipt(cache: Path) -> Iterator[Path]:
    """Objects without a receipt: their worker was killed between writing the two."""
    store = open_objects(cache)
    manifest = read_manifest(store)
    kept, specs = store.sizes("receipts"), array_specs(manifest)
    for name in object_names(manifest):
        path = cache / object_key(specs[name[0]], *name[1:])
        if receipt_key(*name) not in kept and path.is_file():
            yield path


def _last_change(path: Path) -> float:
    """Time of the last change in it; infinity if it was removed meanwhile, so it is in use."""
    try:
        return max(part.lstat().st_mtime for part in [path, *_files(path)])
    except FileNotFoundError:
        return math.inf


def _num_bytes(path: Path) -> int:
    total = 0
    for part in _files(path) if path.is_dir() else [path]:
        with suppress(FileNotFoundError):  # removed by its owner meanwhile
            total += part.lstat().st_size
    return total


def _files(path: Path) -> list[Path]:
    return [part for part in path.rglob("*") if not part.is_dir()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # Renamed first, so that a half-removed cache does not look like a damaged one.
        doomed = path if path.name.endswith(PARTIAL) else path.with_name(path.name + PARTIAL)
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
