"""The claims at the top of the page on performance are of the tables below them."""

import re

from tests.support.cases import looped
from tests.support.documentation import cells_of, read

PAGE = "docs/performance.md"
CLAIMS = {
    "A training step is as fast": (("heartcut / resident", 1),),
    "A training step is faster": (("heartcut / field", 2), ("heartcut / field", 1)),
    "The loader is faster": (
        ("+ soft labels, 256 features, 1,000 classes", 2),
        ("+ top 16 of 100 classes", 2),
    ),
    "`cache-teacher` is as fast": (("`cache_teacher.py --samples 15360`", 3),),
    "Exact influence is faster": (("exact solve and scores", 2),),
    "Commands start fast": (("0.10 |", 0), ("0.10 |", 11)),
}
"""Beginning of a claim -> row and column of each of its numbers."""


README_CLAIMS = {
    r"has ([\d.]+) of the speed of the same step": ("heartcut / resident", 1),
    r"is ([\d.]+) to [\d.]+ times as fast": ("heartcut / field", 2),
    r"to ([\d.]+) times as fast": ("heartcut / field", 1),
}
"""Words of README -> row and column of their number."""


@looped("claim", CLAIMS)
def test_a_claim_is_the_number_of_its_table(claim):
    (row,) = lines(claim)
    found = re.findall(r"\d+(?:\.\d+)?", row.split(" | ")[1])
    for printed, place in zip(found, CLAIMS[claim], strict=True):
        assert measured(*place, as_in=printed) == printed, claim


@looped("words", README_CLAIMS)
def test_a_claim_of_the_readme_is_the_number_of_its_table(words):
    claimed = re.search(words, " ".join(read("README.md").split()))
    assert claimed is not None
    assert measured(*README_CLAIMS[words], as_in=claimed[1]) == claimed[1]


def measured(start: str, column: int, *, as_in: str) -> str:
    """The number of a table's cell, rounded to the decimals of ``as_in``."""
    (line,) = lines(start)
    found = re.search(r"\d+(?:\.\d+)?", line.strip("| ").split(" | ")[column])
    assert found is not None
    return f"{float(found[0]):.{len(as_in.partition('.')[2])}f}"


def lines(start: str) -> list[str]:
    return [line for line in read(PAGE).splitlines() if line.startswith(f"| {start}")]


def test_the_bytes_an_image_are_between_the_claimed_ones():
    section = read(PAGE).split("## Memory")[1].split("\n\n")
    table = next(block for block in section if block.startswith("| stage"))
    _, rows = cells_of(table)
    kilobytes = [float(row[-1].replace(",", "")) / 1000 for row in rows]
    assert f"{min(kilobytes):.1f} to {max(kilobytes):.1f} kB an image" in read(PAGE)
