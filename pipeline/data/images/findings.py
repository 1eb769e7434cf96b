"""Counts of files that have something in common, with a few examples of each."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.artefacts.preparation import Finding

OTHER_IMAGE: Final = "image in a format that is not read"
OUTSIDE: Final = "image outside the class folders"
NO_IMAGE: Final = "file that is not an image"
EMPTY: Final = "empty file"
CLOSED: Final = "file that cannot be opened"
BROKEN_LINK: Final = "broken link"
LOOP: Final = "link to a folder above it"
SPECIAL: Final = "pipe, socket or device"
TEMPORARY: Final = "temporary or backup file"
HIDDEN_FILE: Final = "hidden or system file"
HIDDEN_FOLDER: Final = "hidden or system folder"
_REASON_PLURALS: Final = {
    OTHER_IMAGE: "images in formats that are not read",
    OUTSIDE: "images outside the class folders",
    NO_IMAGE: "files that are not images",
    EMPTY: "empty files",
    CLOSED: "files that cannot be opened",
    BROKEN_LINK: "broken links",
    LOOP: "links to folders above them",
    SPECIAL: "pipes, sockets or devices",
    TEMPORARY: "temporary or backup files",
    HIDDEN_FILE: "hidden or system files",
    HIDDEN_FOLDER: "hidden or system folders",
}
REASONS: Final = tuple(_REASON_PLURALS)
"""Reasons to leave out an entry of a folder, the most surprising first."""

NOT_TURNED: Final = "image with an EXIF orientation that is not applied"
TURNED: Final = "image turned by its EXIF orientation"
FRAMES: Final = "image with several frames or pages, of which the first is stored"
TRANSPARENT: Final = "image with transparent pixels, stored without transparency"
BROKEN_EXIF: Final = "image with damaged EXIF data"
HUGE: Final = "image with more than 89 million pixels"
UNREADABLE: Final = "unreadable image: "
"""Begins what is followed by the reason."""
SHARED: Final = "test image that is a training image too"
DROPPED: Final = "training image that is a test image too, and was left out"
TWO_LABELS: Final = "training image with a copy of another class"
COPY_IN_TRAINING: Final = "training image that is a copy of another one"
COPY_IN_TEST: Final = "test image that is a copy of another one"
HELD_OUT_COPY: Final = "held-out sample with a copy that is trained on"
_PLURALS: Final = {
    **_REASON_PLURALS,
    TURNED: "images turned by their EXIF orientation",
    SHARED: "test images that are training images too",
    DROPPED: "training images that are test images too, and were left out",
    TWO_LABELS: "training images with copies of other classes",
    COPY_IN_TRAINING: "training images that are copies of others",
    COPY_IN_TEST: "test images that are copies of others",
    HELD_OUT_COPY: "held-out samples with copies that are trained on",
}
_EXAMPLES: Final = 3
_KINDS: Final = 6
_MOST: Final = 40
"""Reasons that are counted apart; those in words of decoders could be many."""


def shown(path: os.PathLike[str] | str) -> str:
    """A path on one line: names with line breaks or undecodable bytes are shown escaped."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def finding(what: str, count: int, examples: Iterable[str]) -> list[Finding]:
    """What was counted, or nothing if the count is 0."""
    return [Finding(what=what, count=count, examples=tuple(examples))] if count else []


def worded(found: Finding) -> str:
    """A count with its noun, and with the kinds of files if there are any."""
    plural = _PLURALS.get(found.what) or found.what.replace("image", "images", 1)
    kinds = f" ({', '.join(found.kinds)})" if found.kinds else ""
    return f"{found.count:,} {found.what if found.count == 1 else plural}{kinds}"


def listed(found: Sequence[Finding]) -> str:
    """All counts in one line."""
    return ", ".join(map(worded, found))


def merged(*several: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings of several parts of a source as those of the whole."""
    tally: dict[str, Finding] = {}
    for one in (one for part in several for one in part):
        if one.what in tally:
            before = tally[one.what]
            examples = (*before.examples, *one.examples)[:_EXAMPLES]
            update = {"count": before.count + one.count, "examples": examples}
            tally[one.what] = before.model_copy(update=update)
        else:
            tally[one.what] = one
    return tuple(tally.values())


@dataclass(kw_only=True)
class _Count:
    count: int = 0
    kinds: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)


class Tally:
    """Counter of files by what they have in common; its size does not grow with the files."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    def add(self, what: str, name: str, *, kind: str | None = None) -> None:
        """Count one file; the first ones become examples."""
        if what not in self._counts and len(self._counts) >= _MOST:
            what = f"{what.partition(':')[0]}: other reasons"
        found = self._counts.setdefault(what, _Count())
        found.count += 1
        if len(found.examples) < _EXAMPLES:
            found.examples.append(shown(name))
        if kind is not None and kind not in found.kinds and len(found.kinds) < _KINDS:
            found.kinds.append(shown(kind))

    def findings(self) -> Iterator[Finding]:
        """What was counted, in the order in which it was first seen."""
        for what, found in self._counts.items():
            yield Finding(
                what=what,
                count=found.count,
                kinds=tuple(found.kinds),
                examples=tuple(found.examples),
            )
