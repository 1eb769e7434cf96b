"""The documentation as its tests read it: blocks of code, what is to be done with each, links."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.support.commands import ROOT

PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
REASONS = (
    "needs a cluster",
    "needs a GPU",
    "needs a bucket of yours",
    "needs ImageNet",
    "takes minutes",
    "changes the machine",
    "does not end by itself",
)
SHELL, TOML, PYTHON, SQL, NOT_RUN = "shell", "toml", "python", "sql", "not run"
OUTPUT, MESSAGE, EXAMPLE = "output", "message", "example"
KINDS = (SHELL, TOML, PYTHON, SQL, NOT_RUN, OUTPUT, MESSAGE, EXAMPLE)
EXAMPLES = ("a formula", "a folder", "a file", "a drawing")
"""Texts that no command prints."""
LANGUAGES = {
    **dict.fromkeys(("sh", "console"), SHELL),
    **{"toml": TOML, "python": PYTHON, "sql": SQL, "text": OUTPUT},
}
PROGRAMS = {
    "heartcut",
    "make",
    "python",
    "torchrun",
    "tensorboard",
    "export",
    "sudo",
    "#!/bin/bash",
}
"""Beginnings of the first line of an indented block of commands."""
CODE_BLOCKS = {"fence", "code_block"}
READER = MarkdownIt("commonmark").enable("table")


class Undecided(AssertionError):
    """A block that is neither run nor marked."""


@dataclass(frozen=True)
class Block:
    """A fenced or indented block, and the comment above it."""

    page: str
    line: int
    language: str
    text: str
    comment: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def reason(self) -> str:
        """Why it is not run; empty where it is."""
        marked = re.fullmatch(r"not run: (.+)", self.comment)
        if marked is None:
            return ""
        if marked[1] not in REASONS:
            raise Undecided(f"{self.place}: {marked[1]!r} is no reason (expected one of {REASONS})")
        return marked[1]

    @property
    def kind(self) -> str:
        """Treatment of the block by the tests."""
        if self.reason:
            return NOT_RUN
        if self.comment in (OUTPUT, MESSAGE):
            return self.comment
        if self.comment.startswith("example"):
            return self._example()
        if self.language:
            if self.language not in LANGUAGES:
                raise Undecided(f"{self.place}: no decision for the language {self.language!r}")
            return LANGUAGES[self.language]
        return self._kind_of_indented()

    def _example(self) -> str:
        if self.comment.removeprefix("example: ") not in EXAMPLES:
            raise Undecided(f"{self.place}: {self.comment!r} (expected one of {EXAMPLES})")
        return EXAMPLE

    def _kind_of_indented(self) -> str:
        if self.text.split()[0] in PROGRAMS:
            return SHELL
        try:
            tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            raise Undecided(
                f"{self.place} is neither a command nor TOML: mark it <!-- output -->, "
                "<!-- message -->, <!-- example: REASON --> or <!-- not run: REASON -->"
            ) from error
        return TOML

    @property
    def commands(self) -> list[list[str]]:
        """Words of every command, without prompts and comments."""
        words = [shlex.split(line.removeprefix("$ "), comments=True) for line in self._lines()]
        return [line for line in words if line]

    @property
    def output(self) -> str:
        """Lines that a block shows as printed: all of an output, and those without a prompt."""
        if self.kind == OUTPUT:
            return self.text
        if self.language != "console":
            return ""
        return "\n".join(line for line in self._lines(prompted=False))

    def _lines(self, *, prompted: bool = True) -> list[str]:
        """Lines of commands, or those that follow them."""
        lines = [line.strip() for line in self.text.replace("\\\n", " ").splitlines()]
        if self.language != "console":
            return lines
        return [line for line in lines if line.startswith("$ ") == prompted]


def blocks_of(page: str, text: str) -> list[Block]:
    """Every block of code of a page."""
    tokens = [Token("start", "", 0), *READER.parse(text)]
    return [
        Block(
            page=page,
            line=token.map[0] + 1,
            language=token.info.strip(),
            text=token.content,
            comment=_comment(before),
        )
        for before, token in pairwise(tokens)
        if token.type in CODE_BLOCKS
    ]


def read(page: str) -> str:
    return (ROOT / page).read_text()


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page, read(page))]


def heartcut_arguments(words: list[str]) -> list[str] | None:
    """Arguments of `heartcut` in a line; None: it is not called."""
    names = [i for i, word in enumerate(words) if Path(word).name == "heartcut"]
    if not names:
        return None
    rest = words[names[0] + 1 :]
    ends = [i for i, word in enumerate(rest) if word in ("||", "&&", "|", ";", "...")]
    return rest[: ends[0]] if ends else rest


def inline_code(page: str) -> list[str]:
    """Code within the prose and the tables of a page."""
    return [
        child.content
        for token in READER.parse(read(page))
        for child in token.children or ()
        if child.type == "code_inline"
    ]


def named_paths(text: str) -> set[str]:
    """Files and folders of the repository that a text names; patterns and placeholders are none."""
    folders = "benchmarks|configs|docs|pipeline|scripts|stages|tests"
    found = re.findall(rf"(?<![\w./-])((?:{folders})/[\w./-]*\w)(?![\w*<{{])", text)
    return set(found)


def links(page: str) -> Iterator[str]:
    """Targets of the links and images of a page."""
    for token in READER.parse(read(page)):
        for child in token.children or ():
            if child.type == "link_open":
                yield str(child.attrs["href"])
            elif child.type == "image":
                yield str(child.attrs["src"])


@cache
def anchors(page: str) -> set[str]:
    """Anchors of the headings, by the rule that code hosts and the site share."""
    tokens = READER.parse(read(page))
    headings = [after.content for t, after in pairwise(tokens) if t.type == "heading_open"]
    bare = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {re.sub(r" ", "-", heading.strip()) for heading in bare}


def _comment(token: Token) -> str:
    """Text of an HTML comment; empty: it is none."""
    found = re.fullmatch(r"<!--\s*(.*?)\s*-->\s*", token.content) if token.content else None
    return found[1] if found and token.type == "html_block" else ""


def cells_of(table: str) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of a table in markdown."""
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
    )
    return header, rows
