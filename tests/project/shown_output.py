"""Output that pages show, held to what commands print today: words and columns, not numbers.

Tests follow the pages with small images and short trainings, so numbers differ. A shown line holds
if a printed line has the same words, signs and columns in the same order.
"""

import ast
import difflib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from tests.support.commands import ROOT

PRODUCT = ("cli.py", "commands/*.py", "pipeline/**/*.py", "stages/**/*.py")
VALUE = "{}"
"""Place of a value in a text."""
_ID = re.compile(r"(?<![\w.])(?=[a-f]*\d)[0-9a-f]{8,64}(?!\w)")
_NETWORK = re.compile(r"\bresnet\d+a\b")
"""Networks that tests replace by a small one."""
_DRAWN = re.compile(r"[\u2500-\u259f|]+")
"""Lines, bars, curves, and the rules of tables."""
_RULE = re.compile(r":?-{3,}:?")
_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d[\d,_]*(?:\.\d+)?|nan|inf)(?:e[-+]?\d+)?(?![\w])")
_SPREAD = re.compile(r"# ?\u00b1 ?#|# ?\[#, ?#\]|# \(one common seed, no interval\)")
"""The spread over several seeds, and the note that replaces it for one seed."""
_LAST = re.compile(r"mean of (?:last|#)")
"""The number of epochs in a mean, if all runs share it and if not."""
_UNIT = re.compile(r"# ?(?:[kMGT]i?B|bytes?|B)\b")
_TIME = re.compile(r"# ?(?:h|min|s|ms)(?: # ?(?:h|min|s|ms))*\b")
_PLURAL = re.compile(r"(?<=# )([a-z]{3,}?)s\b")


def shape(line: str) -> str:
    """A line without its numbers, ids, units and drawings."""
    for pattern, mark in (
        *((_ID, "ID"), (_NETWORK, "resnet"), (_DRAWN, " "), (_RULE, " "), (_NUMBER, "#")),
        *((_SPREAD, "#"), (_LAST, "mean"), (_UNIT, "# B"), (_TIME, "# s"), (_PLURAL, r"\1")),
    ):
        line = pattern.sub(mark, line)
    return " ".join(line.split())


def not_printed(shown: str, printed: Iterable[str]) -> list[str]:
    """Lines of a shown output that no printed line has the shape of; `...` stands for anything."""
    shapes = {shape(line) for line in printed}
    missing = []
    for line in shown.splitlines():
        parts = [re.escape(shape(part)) for part in line.split("...")]
        wanted = re.compile(r"\s*.*\s*".join(parts))
        if shape(line) and not any(wanted.fullmatch(one) for one in shapes):
            missing.append(f"{line.strip()}\n    nearest: {_nearest(shape(line), shapes)}")
    return missing


def _nearest(wanted: str, known: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(wanted, list(known), n=1, cutoff=0.3)), "nothing")


def not_in_product(message: str) -> list[str]:
    """Lines of a shown message that no text of the product makes; ` ...` ends it after a sentence.

    A text may have the file and the key that it is about in front.
    """
    missing = []
    for line in filter(None, (one.strip() for one in message.splitlines())):
        text = line.removeprefix("error: ")
        wanted = text.removesuffix(" ...")
        known = _first_sentences() if wanted != text else _templates()
        if not any(one.fullmatch(wanted) for one in known.values()):
            missing.append(f"{line}\n    nearest: {_nearest(wanted, known)}")
    return missing


@cache
def _templates() -> dict[str, re.Pattern[str]]:
    """Texts of the product of several words, and what each can print."""
    files = sorted(path for pattern in PRODUCT for path in ROOT.glob(pattern))
    texts = (text.removeprefix("error: ") for path in files for text in _texts(path))
    return {text: _pattern(text) for text in texts if _has_words(text)}


@cache
def _first_sentences() -> dict[str, re.Pattern[str]]:
    ends = (
        (text, match.start()) for text in _templates() for match in re.finditer(r"(?<=\.) ", text)
    )
    return {text[:end]: _pattern(text[:end]) for text, end in ends if _has_words(text[:end])}


def _has_words(text: str) -> bool:
    """Check for at least two words: a pattern without words would match every line."""
    words = re.findall(r"[a-z]{2,}", text)
    return len(words) > 1 and sum(map(len, words)) > 8


def _pattern(text: str) -> re.Pattern[str]:
    own = ".*".join(re.escape(part) for part in text.split(VALUE))
    return re.compile(rf"(?:\S+: )*{own}(?: \(\d+ more\))?\.?")


def _texts(path: Path) -> Iterator[str]:
    """Literal texts of a module, with a mark for each value in them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.col_offset > 4:
            yield re.sub(r"%[.\d]*[sdfg]", VALUE, node.value)
