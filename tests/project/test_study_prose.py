"""The numbers and the words *clear* and *within noise* of the study are of stored runs."""

import math
import re
from collections.abc import Iterator
from functools import cache
from itertools import chain

import pandas as pd
import pytest
import scipy.stats

from benchmarks.study import differences, names, store
from tests.project.study_claims import (
    CLEAR,
    NOISE,
    PAGES,
    WITHIN_NOISE,
    Kept,
    Mean,
    Minus,
    Recorded,
    Value,
)
from tests.support.documentation import cells_of, read

NUMBER = r"[+-]?\d+\.\d+"
GROUP = r"(\d+(?:\.\d+)?)"
INTERVAL = re.compile(
    rf"(?:(?P<mean>{NUMBER})(?: points?)? )?\[(?P<low>{NUMBER}), (?P<high>{NUMBER})\]"
)
Printed = tuple[str | None, str, str]
Found = tuple[float, float, float]


@cache
def runs_of(name: str) -> pd.DataFrame:
    return store.runs_of(name)


@cache
def by_seed(name: str, field: str) -> pd.DataFrame:
    """A column for each point, in per cent."""
    return runs_of(name).pivot_table(index="seed", columns="point", values=field) * 100


@cache
def found(name: str, point: str, other: str, field: str) -> Found:
    """Mean and 95 % interval in points, by scipy; one seed has no interval."""
    difference = (by_seed(name, field)[point] - by_seed(name, field)[other]).dropna()
    if len(difference) == 1:
        return float(difference.mean()), math.nan, math.nan
    interval = scipy.stats.ttest_1samp(difference, 0.0).confidence_interval(0.95)
    return float(difference.mean()), float(interval.low), float(interval.high)


def all_pairs() -> list[differences.Pair]:
    return list(chain.from_iterable(map(differences.pairs, differences.SUBJECTS)))


def all_found() -> Iterator[Found]:
    for pair in all_pairs():
        for field in differences.MEASURES.values():
            yield found(*pair, field)


def rounds_to(text: str, value: float) -> bool:
    """True if a number of a page is this value, rounded to the digits of the page."""
    return abs(float(text) - value) <= 0.5001 * 10.0 ** -len(text.partition(".")[2])


def says(printed: Printed, values: Found) -> bool:
    return all(
        text is None or rounds_to(text, value) for text, value in zip(printed, values, strict=True)
    )


def prose(page: str) -> str:
    """A page without tables, blocks and code, on one line."""
    lines = read(page).splitlines()
    text = " ".join(x.strip() for x in lines if not x.startswith(("|", "    ", "<!--", "![")))
    return re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)


def value_of(value: Value) -> float:
    """The number that a page prints for it; the size of a difference, without its sign."""
    match value:
        case Minus(study, point, other, field, _):
            return abs(found(study, point, other, field)[0])
        case Mean(study, point, field, scale):
            frame = runs_of(study)
            return float(frame.loc[frame["point"] == point, field].mean() * scale)
        case Kept(study, point):
            frame = runs_of(study)
            own = frame[frame["point"] == point]
            return float((own["num_distilled"] / own["num_training_samples"]).mean() * 100)
        case Recorded(text):
            return float(text)


def sentences(page: str) -> Iterator[tuple[re.Match[str], tuple[Value, ...]]]:
    """The claims of a page where they stand; a sentence may be claimed twice, of two students."""
    text = prose(page)
    for sentence, values in PAGES[page].items():
        pattern = re.sub(r"`[^`]*`|\]\([^)]*\)", "", sentence)
        pattern = re.escape(pattern).replace(r"\{\}", GROUP)
        matches = list(re.finditer(pattern, text))
        assert matches, f"not on {page}: {sentence}"
        yield from ((match, values) for match in matches)


def test_the_tables_of_differences_say_what_scipy_says():
    pairs = all_pairs()
    assert len(pairs) >= 120
    assert len(pairs) == len(set(pairs))
    for subject in differences.SUBJECTS:
        header, rows = cells_of(differences.differences(subject))
        own = list(differences.pairs(subject))
        for row, (study, point, other) in zip(rows, own, strict=True):
            shown = [*map(names.variant_name, (point, other))]
            assert row[1:4] == [names.teacher_name(point), *shown]
            frame = runs_of(study)
            seeds = [set(frame.loc[frame["point"] == name, "seed"]) for name in (point, other)]
            assert int(row[4]) == len(seeds[0] & seeds[1])
            for title, field in differences.MEASURES.items():
                numbers = [float(text) for text in re.findall(NUMBER, row[header.index(title)])]
                assert numbers == pytest.approx(found(study, point, other, field), abs=0.0051)


@pytest.mark.parametrize("page", PAGES)
def test_the_numbers_of_a_sentence_are_of_stored_results(page):
    for match, values in sentences(page):
        assert len(match.groups()) == len(values), match[0]
        for text, value in zip(match.groups(), values, strict=True):
            assert rounds_to(text, value_of(value)), (match[0], text, value, value_of(value))


@pytest.mark.parametrize("page", PAGES)
def test_no_number_of_a_sentence_is_without_a_source(page):
    held = {span for match, values in sentences(page) for span in spans(match, values)}
    for number in re.finditer(r"\d+\.\d+", prose(page)):
        around = prose(page)[max(0, number.start() - 60) : number.end() + 30]
        assert number.span() in held, f"{number[0]} in: {around}"


def spans(match: re.Match[str], values: tuple[Value, ...]) -> Iterator[tuple[int, int]]:
    yield from (match.span(number) for number in range(1, len(values) + 1))


def test_what_is_called_clear_excludes_zero_and_noise_does_not():
    claimed = [value for claims in PAGES.values() for values in claims.values() for value in values]
    kinds = {CLEAR: 0, NOISE: 0}
    for value in claimed:
        if isinstance(value, Minus) and value.kind in kinds:
            kinds[value.kind] += 1
            _, low, high = found(value.study, value.point, value.other, value.field)
            assert (low * high > 0) == (value.kind == CLEAR), value
    assert min(kinds.values()) >= 25


def test_what_is_within_noise_without_a_number_includes_zero():
    for value in WITHIN_NOISE:
        _, low, high = found(value.study, value.point, value.other, value.field)
        assert low <= 0 <= high, value


def test_the_seconds_of_the_study_are_those_of_the_stored_runs():
    epochs = store.epochs_of_study(store.TIMED)
    seconds = epochs.groupby("point")["seconds"].max()
    printed = re.search(
        r"take (\d+) s without a teacher, (\d+) s with KD and (\d+) s with label revision\. "
        r"With the teacher in the loop they take (\d+) s.* adds (\d+) s to each student",
        prose("docs/results/study.md"),
    )
    assert printed is not None
    points = ("plain", "KD, offline", "LR, offline", "KD, online")
    for text, point in zip(printed.groups(), points, strict=False):
        assert rounds_to(text, seconds[point])
    assert rounds_to(printed[5], seconds["KD, online"] - seconds["KD, offline"])
    cache_seconds = 408
    assert f"took {cache_seconds} s of the two cores" in prose("docs/results/study.md")
    saved = seconds["KD, online"] - seconds["KD, offline"]
    assert math.ceil(cache_seconds / saved) == 3, "the cache pays from the third student on"


@pytest.mark.parametrize("page", [*PAGES, "docs/selection.md", "docs/results/selection.md"])
def test_intervals_in_words_are_of_the_tables(page):
    known = list(all_found())
    mirrored = [(-mean, -high, -low) for mean, low, high in known]  # "below" instead of "above"
    printed = [match.group("mean", "low", "high") for match in INTERVAL.finditer(prose(page))]
    unknown = [one for one in printed if not any(says(one, v) for v in chain(known, mirrored))]
    assert not unknown, "not in the tables of differences"
