"""The differences that the study's pages tell: those of the table are of the stored results, and
those told in words are of the table."""

import math
import re
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest
import scipy.stats

from benchmarks.study import differences, store
from benchmarks.study.tables import STUDENTS
from tests.support.documentation import ROOT, cells_of

FEWEST = {"docs/results/study.md": 30}
"""Intervals that a page tells in words, so that a page written another way is not passed over."""
NUMBER = r"[+-]?\d+\.\d+"
INTERVAL = re.compile(
    rf"(?:(?P<mean>{NUMBER})(?: points?)? )?\[(?P<low>{NUMBER}), (?P<high>{NUMBER})\]"
)
Told = tuple[str | None, str, str]
Found = tuple[float, float, float]


@cache
def by_seed(name: str, field: str) -> pd.DataFrame:
    """A column for each point, in per cent."""
    return store.runs_of(name).pivot_table(index="seed", columns="point", values=field) * 100


def found(name: str, point: str, other: str, field: str) -> Found:
    """Mean and 95 % interval in points, by scipy; one seed has no interval."""
    difference = (by_seed(name, field)[point] - by_seed(name, field)[other]).dropna()
    if len(difference) == 1:
        return float(difference.mean()), math.nan, math.nan
    interval = scipy.stats.ttest_1samp(difference, 0.0).confidence_interval(0.95)
    return float(difference.mean()), float(interval.low), float(interval.high)


def all_found() -> Iterator[Found]:
    studies = {**STUDENTS, **{name: name for name in store.studies()}}
    _, rows = cells_of(differences.differences())
    for name, point, other, *_ in rows:
        for field in differences.MEASURES.values():
            yield found(studies[name], point, other, field)


def says(told: Told, values: Found) -> bool:
    """Whether a sentence tells these values, each rounded to the digits that it gives."""
    return all(
        text is None or abs(float(text) - value) <= 0.5001 * 10.0 ** -len(text.split(".")[1])
        for text, value in zip(told, values, strict=True)
    )


def prose(page: Path) -> str:
    """A page without its tables, on one line."""
    lines = page.read_text().splitlines()
    return " ".join(line.strip() for line in lines if not line.startswith("|"))


def test_the_table_of_differences_says_what_scipy_says():
    header, rows = cells_of(differences.differences())
    studies = {**STUDENTS, **{name: name for name in store.studies()}}
    assert len(rows) >= 60
    for row in rows:
        study, point, other, n = row[:4]
        frame = store.runs_of(studies[study])
        seeds = [set(frame.loc[frame["point"] == name, "seed"]) for name in (point, other)]
        assert int(n) == len(seeds[0] & seeds[1])
        for title, field in differences.MEASURES.items():
            numbers = [float(number) for number in re.findall(NUMBER, row[header.index(title)])]
            if int(n) > 1:
                assert numbers == pytest.approx(
                    found(studies[study], point, other, field), abs=0.0051
                )


@pytest.mark.parametrize("page", FEWEST)
def test_intervals_told_in_words_are_of_the_table(page):
    known = list(all_found())
    mirrored = [(-mean, -high, -low) for mean, low, high in known]  # "below" instead of "above"
    told = [match.group("mean", "low", "high") for match in INTERVAL.finditer(prose(ROOT / page))]
    assert len(told) >= FEWEST[page]
    strangers = [one for one in told if not any(says(one, v) for v in chain(known, mirrored))]
    assert not strangers, "not in the table of differences"
