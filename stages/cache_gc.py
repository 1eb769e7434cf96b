"""cache gc: what killed processes left in a folder of caches."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.artefacts.cache_receipts import MANIFEST, SEAL
from pipeline.artefacts.hydration import HYDRATED
from pipeline.artefacts.store import PARTIAL
from pipeline.errors import ArtefactNotFound, ConfigError


def sweep(folder: Path, *, delete: bool, unsealed: bool, hydrated: bool, hours: float) -> str:
    """Tell what can go, or remove it.

    Args:
        folder: holds caches.
        delete: remove it; otherwise it is only told.
        unsealed: also caches that were never completed.
        hydrated: also local copies.
        hours: since anything in it was changed, so that what is being written stays.
    Raises:
        ArtefactNotFound: if there is no such folder.
    """
    if "://" in str(folder) or ":/" in str(folder):
        raise ConfigError(
            "gc works in folders (expected one): a bucket holds no unfinished files. Remove a "
            "cache there with the tools of the store."
        )
    if not folder.is_dir():
        raise ArtefactNotFound(f"{folder} does not exist. Name a folder that holds caches.")
    youngest = time.time() - 3600 * hours
    found = [
        path
        for path in _candidates(folder, unsealed=unsealed, hydrated=hydrated)
        if _last_change(path) <= youngest
    ]
    lines = [f"{_num_bytes(path):>14,} bytes  {path}" for path in found]
    total = sum(_num_bytes(path) for path in found)
    if delete:
        for path in found:
            _remove(path)
    told = "removed" if delete else "can go, with --delete"
    return "\n".join([*lines, f"{total:>14,} bytes {told}"])


def _candidates(folder: Path, *, unsealed: bool, hydrated: bool) -> Iterator[Path]:
    gone: set[Path] = set()
    for child in sorted(folder.iterdir()):
        if child.is_symlink() or not child.is_dir():
            continue
        is_unsealed = (child / MANIFEST).exists() and not (child / SEAL).exists()
        if (unsealed and is_unsealed) or (hydrated and child.suffix == HYDRATED):
            gone.add(child)
            yield child
    for path in sorted(folder.rglob(f"*{PARTIAL}")):
        if not any(parent in gone for parent in path.parents):
            gone.add(path)
            yield path


def _last_change(path: Path) -> float:
    return max(part.lstat().st_mtime for part in [path, *_files(path)])


def _num_bytes(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size if path.exists() else 0
    return sum(part.lstat().st_size for part in _files(path))


def _files(path: Path) -> list[Path]:
    return [part for part in path.rglob("*") if not part.is_dir()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # The manifest goes first: what is half removed is then no cache, rather than a damaged one.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
