"""Image folders: their classes, the images of each class, and what is left out.

Names and first bytes decide; images are decoded later. Files with an image's suffix must be
readable images, so a damaged one is an error. All other files are opened and are images if they
begin like one. Everything else is left out and counted by reason.

Sub-folders of a class belong to it, at any depth, and links to folders are followed, as in
torchvision.
"""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from pipeline.artefacts.preparation import Finding
from pipeline.data.images.findings import (
    BROKEN_LINK,
    CLOSED,
    EMPTY,
    HIDDEN_FILE,
    HIDDEN_FOLDER,
    LOOP,
    NO_IMAGE,
    OTHER_IMAGE,
    OUTSIDE,
    REASONS,
    SPECIAL,
    TEMPORARY,
    Tally,
    listed,
    shown,
)
from pipeline.data.images.kinds import (
    IMAGE_SUFFIXES,
    OTHER_FORMATS,
    SIGNATURE_BYTES,
    begins_like_image,
    is_hidden,
    is_temporary,
)
from pipeline.errors import ArtefactMismatch, ArtefactNotFound

_SPLITS: Final = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")
_Folder = tuple[int, int]
"""Device and inode."""


class FolderReader:
    """Reads the folders of one data set, and counts what it leaves out."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tally = Tally()

    @property
    def left_out(self) -> tuple[Finding, ...]:
        """What was left out, by reason; the most surprising first."""
        return tuple(sorted(self._tally.findings(), key=lambda one: REASONS.index(one.what)))

    def class_folders(self, split: str, *, key: Literal["train", "test"]) -> tuple[str, ...]:
        """Names of the classes of a split, sorted.

        Raises:
            ArtefactNotFound: if there is no such folder.
            ArtefactMismatch: if it has fewer than two classes, or a name that cannot be stored.
        """
        folder = self._root / split
        if not folder.is_dir():
            raise ArtefactNotFound(self._no_split(split, key))
        above, classes = _chain(folder), []
        for entry in _entries(folder):
            if self._is_folder(entry, above):
                classes.append(entry.name)
            elif not _is_dir(entry) and self._is_image(entry):
                self._leave_out(OUTSIDE, entry)
        if len(classes) < 2:
            also = f"; left out: {listed(self.left_out)}" if self.left_out else ""
            raise ArtefactMismatch(
                f"{shown(folder)} has {len(classes)} class folder{'s' * (len(classes) != 1)} "
                f"(expected at least 2, one per class{also}). Put the images into one folder per "
                "class."
            )
        if not split and all(name.lower() in _SPLITS for name in classes):
            raise ArtefactMismatch(
                f"{shown(folder)} has the folders {_some(classes)} (expected one per class). They "
                "look like splits: set `prepare.train` and `prepare.test` to their names."
            )
        for name in classes:
            _require_storable(folder / name)
        return tuple(classes)

    def images(self, folder: Path) -> list[Path]:
        """Paths of the images of a class, sorted.

        Raises:
            ArtefactMismatch: if there are none, or a folder below cannot be listed.
        """
        found = sorted(self._images(folder))
        if not found:
            raise ArtefactMismatch(
                f"{shown(folder)} holds no image (expected at least one of "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}). Add images or remove the class folder."
            )
        return found

    def _images(self, folder: Path) -> Iterator[Path]:
        waiting = [(folder, _chain(folder))]
        while waiting:
            inside, above = waiting.pop()
            for entry in _entries(inside):
                if self._is_folder(entry, above):
                    below = Path(entry.path)
                    waiting.append((below, above | {_identity(below)}))
                elif not _is_dir(entry) and self._is_image(entry):
                    yield Path(entry.path)

    def _is_folder(self, entry: os.DirEntry[str], above: frozenset[_Folder]) -> bool:
        """True for a folder to be read; counts those that are left out."""
        if not _is_dir(entry):
            return False
        if is_hidden(entry.name):
            self._leave_out(HIDDEN_FOLDER, entry, kind=entry.name)
        elif entry.is_symlink() and _identity(Path(entry.path)) in above:
            self._leave_out(LOOP, entry)
        else:
            return True
        return False

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        """True for a file to be decoded; counts those that are left out."""
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 a Path costs more
        if is_hidden(entry.name):
            self._leave_out(HIDDEN_FILE, entry, kind=entry.name)
        elif is_temporary(entry.name, suffix):
            self._leave_out(TEMPORARY, entry, kind=suffix)
        elif not _is_file(entry) and not entry.is_symlink():
            self._leave_out(SPECIAL, entry)
        elif suffix in IMAGE_SUFFIXES:
            return True  # a broken link is an image that was lost: reading it raises
        elif suffix in OTHER_FORMATS:
            self._leave_out(OTHER_IMAGE, entry, kind=suffix)
        elif not _is_file(entry):
            self._leave_out(BROKEN_LINK, entry)
        else:
            return self._begins_like_image(entry, suffix or "no suffix")
        return False

    def _begins_like_image(self, entry: os.DirEntry[str], suffix: str) -> bool:
        try:
            with open(entry.path, "rb", buffering=0) as file:  # noqa: PTH123 a Path costs more
                start = file.read(SIGNATURE_BYTES)
        except OSError:
            self._leave_out(CLOSED, entry, kind=suffix)
            return False
        if begins_like_image(start):
            return True
        self._leave_out(NO_IMAGE if start else EMPTY, entry, kind=suffix)
        return False

    def _leave_out(self, reason: str, entry: os.DirEntry[str], *, kind: str | None = None) -> None:
        self._tally.add(reason, os.path.relpath(entry.path, self._root), kind=kind)

    def _no_split(self, split: str, key: Literal["train", "test"]) -> str:
        """Message for a split's folder that does not exist, with the folders that do."""
        folder = self._root / split
        message = (
            f"{shown(folder)} is not a folder. Expected one folder per class in it, as "
            f"{shown(folder)}/<class>/<image>; check `prepare.path`, `prepare.train` and "
            "`prepare.test`."
        )
        if not self._root.is_dir():
            return message
        found = [e.name for e in _entries(self._root) if _is_dir(e) and not is_hidden(e.name)]
        splits = [name for name in found if name.lower() in _SPLITS]
        if key == "train" and found and not splits:
            return (
                f"{message} If {shown(self._root)} holds the class folders ({_some(found)}), set "
                '`prepare.train = ""` and `prepare.test = ""`.'
            )
        others = [name for name in splits if key == "train" or "train" not in name.lower()]
        ways = [f'`prepare.{key} = "{name}"`' for name in others[:3]]
        if key == "test":
            ways.append('`prepare.test = ""`, which tests on a part of the training images')
        return f"{message} Set {', or '.join(ways)}." if ways else message


def _chain(folder: Path) -> frozenset[_Folder]:
    """A folder and all folders above it."""
    whole = folder.resolve()
    return frozenset(_identity(one) for one in (whole, *whole.parents))


def _identity(folder: Path) -> _Folder:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ArtefactMismatch(
            f"{shown(folder)} cannot be listed: {error.strerror} (expected a folder of images). "
            "Change its permissions, or remove it."
        ) from error


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _require_storable(folder: Path) -> None:
    """Reject a class whose name is not text, or would break a line or a table."""
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in folder.name):
        raise ArtefactMismatch(
            f"class folder {shown(folder)} has a name with control characters or undecodable bytes "
            "(expected text in UTF-8). Rename it."
        )


def folding_alike(names: Sequence[str]) -> tuple[str, str] | None:
    """Two names that differ only in case, spaces around them or Unicode form; None if none do."""
    seen: dict[str, str] = {}
    for name in names:
        folded = unicodedata.normalize("NFC", name.strip()).casefold()
        if folded in seen:
            return seen[folded], name
        seen[folded] = name
    return None


def _some(names: Sequence[str]) -> str:
    """At most three names, for a message."""
    listed = ", ".join(map(shown, names[:3]))
    return listed + (f" and {len(names) - 3} more" if len(names) > 3 else "")
