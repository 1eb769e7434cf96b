"""Measure how readable the pages are, and find words that only insiders understand.

`python scripts/prose.py` prints a line for every page: its words, the mean length of its sentences,
how many of them are long. It fails if a page breaks a limit below, states an interval in a sentence
instead of a table, or if a page or source file uses a word of `PRIVATE_WORDS`.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

ROOT = Path(__file__).parents[1]
MAX_MEAN_WORDS = 20
"""Words in the mean sentence of a page."""
MAX_README_WORDS = 1300
PRIVATE_WORDS = re.compile(
    r"(?<!\.)\b(tell|tells|told|mend|mends|mended|stranger|strangers|beyond doubt)\b", re.I
)
CHECKED = ("*.md", "*.py", "*.toml", "*.html", "*.sh", "Makefile")
MEANT = {
    "scripts/prose.py": "this list of the words",
    "tests/project/test_prose.py": "the tests of the list",
}
"""Files that may use a private word, each with the reason."""
INTERVAL = re.compile(r"\[[-+]?\d+(\.\d+)?, ?[-+]?\d+(\.\d+)?\]")
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\.\.\.)[\"')]*\s+|:\s+(?=[A-Z])")
"""Full stops end a sentence whatever follows, because names such as heartcut are lower case."""
ABBREVIATIONS = re.compile(r"\b(e\.g|i\.e|vs|et al|approx|Fig|Eq)\.")


READER = MarkdownIt().enable("table")
EXEMPT = ("<!-- output -->", "<!-- message -->")
"""Marks of code blocks that follow their command or a heading that names the symptom."""


@dataclass(frozen=True)
class Page:
    """The sentences of a page's paragraphs and lists, without code blocks, tables and headings."""

    name: str
    sentences: list[str]

    @property
    def lengths(self) -> list[int]:
        return [len(sentence.split()) for sentence in self.sentences]

    @property
    def mean(self) -> float:
        return sum(self.lengths) / len(self.lengths) if self.lengths else 0.0


def page_of(name: str, text: str) -> Page:
    """Split Markdown into sentences."""
    return Page(name, [part for block in _prose(text) for part in _sentences(block)])


def _prose(text: str) -> Iterator[str]:
    """Yield paragraphs: breaks are spaces, code is one word, alternative texts are left out."""
    for node in SyntaxTreeNode(READER.parse(text)).walk():
        if node.type == "inline" and node.parent.type == "paragraph":
            yield "".join(map(_words, node.children))


def _words(node: SyntaxTreeNode) -> str:
    if node.type in ("softbreak", "hardbreak"):
        return " "
    if node.type == "code_inline":
        return "_".join(node.content.split())
    return node.content if node.type == "text" else "".join(map(_words, _read_aloud(node)))


def _read_aloud(node: SyntaxTreeNode) -> list[SyntaxTreeNode]:
    return [] if node.type == "image" else node.children


def _sentences(block: str) -> list[str]:
    block = ABBREVIATIONS.sub(lambda match: match[0][:-1], " ".join(block.split()))
    return [part for part in SENTENCE_END.split(block) if len(part.split()) > 1]


def not_introduced(text: str) -> Iterator[int]:
    """Yield the lines of code blocks that no sentence introduces; outputs need none."""
    before = ""
    for node in SyntaxTreeNode(READER.parse(text)).walk():
        if node.type == "paragraph":
            before = " ".join(_prose("\n".join(text.splitlines()[slice(*node.map)])))
        elif node.type == "html_block" and node.content.strip() in EXEMPT:
            before = "The command prints:"
        elif node.type == "heading":
            before = ""
        elif node.type in ("fence", "code_block"):
            if not before.endswith((":", ".")):
                yield node.map[0] + 1
            before = ""


def tracked(*patterns: str) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return sorted(set(listed.stdout.splitlines()))


def faults_of(page: Page, text: str) -> Iterator[str]:
    """Yield what a page breaks, a line each."""
    if page.mean > MAX_MEAN_WORDS:
        yield f"{page.name}: {page.mean:.1f} words in the mean sentence (at most {MAX_MEAN_WORDS})"
    words = len(text.split())
    if page.name == "README.md" and words > MAX_README_WORDS:
        yield f"README.md: {words} words (at most {MAX_README_WORDS})"
    for sentence in page.sentences:
        if match := INTERVAL.search(sentence):
            yield f"{page.name}: interval {match[0]} in a sentence: {sentence[:80]}"


def private_words() -> Iterator[str]:
    for name in tracked(*CHECKED):
        if name in MEANT or not (ROOT / name).is_file():
            continue
        for number, line in enumerate(
            (ROOT / name).read_text(encoding="utf-8").splitlines(), start=1
        ):
            if match := PRIVATE_WORDS.search(line):
                yield f"{name}:{number}: {match[0]!r}: {line.strip()[:80]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", action="store_true", help="list private words only")
    parser.add_argument(
        "--long", type=int, default=0, help="list sentences of more words than this"
    )
    parser.add_argument(
        "--blocks", action="store_true", help="list code blocks that no sentence introduces"
    )
    parser.add_argument("pages", nargs="*", help="pages to measure (default: README and docs)")
    options = parser.parse_args()
    faults = list(private_words()) if not options.pages else []
    if not options.words:
        names = options.pages or [n for n in tracked("*.md") if n.startswith(("docs/", "README"))]
        for name in names:
            text = (ROOT / name).read_text(encoding="utf-8")
            page = page_of(name, text)
            long = sum(length > 25 for length in page.lengths)
            counts = f"{long:3d} over 25, {len(text.split()):5d} words"
            print(f"{page.mean:5.1f} words a sentence, {counts}: {name}")
            faults += faults_of(page, text)
            if options.blocks:
                print("".join(f"    {name}:{line}\n" for line in not_introduced(text)), end="")
            for sentence in page.sentences:
                if options.long and len(sentence.split()) > options.long:
                    print(f"    {sentence}")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
