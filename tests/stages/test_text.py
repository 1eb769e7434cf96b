"""Numbers and tables as text."""

import pytest
from markdown_it import MarkdownIt

from stages.text import (
    counted,
    decimal,
    duration,
    markdown_table,
    percent,
    percent_over_seeds,
    percentage_points,
    text_table,
)

ROWS = [("name", "n"), ("a long name", "3"), ("b", "1,000")]


def test_numbers_as_text():
    assert (percent(0.12345), percent(1.0, digits=1), percent(None)) == ("12.35 %", "100.0 %", "-")
    assert (decimal(0.5, ".3f"), decimal(None, ".3f")) == ("0.500", "-")
    assert [counted(number, "run") for number in (0, 1, 2000)] == ["0 runs", "1 run", "2,000 runs"]


def test_a_mean_over_seeds_has_its_deviation_if_there_is_one():
    assert percent_over_seeds(0.5, 0.012) == "50.00 ± 1.20 %"
    assert percent_over_seeds(0.5, None) == "50.00 %"
    assert percent_over_seeds(0.5, None, unit="") == "50.00"
    assert percent_over_seeds(None, None) == "-"
    assert percent_over_seeds(None, None, unknown="") == ""


def test_a_difference_has_its_sign_and_its_interval_if_there_is_one():
    assert percentage_points(0.01, None, None) == "+1.00"
    assert percentage_points(-0.01, -0.03, 0.01) == "-1.00 [-3.00, +1.00]"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(3, "3 s"), (89, "89 s"), (100, "2 min"), (5000, "83 min"), (7530, "2 h 6 min")],
)
def test_a_duration_has_a_unit_that_suits_it(seconds, expected):
    assert duration(seconds) == expected


def test_columns_are_aligned_and_lines_have_no_space_at_the_end():
    assert text_table(ROWS).splitlines() == [
        "name         n",
        "a long name  3",
        "b            1,000",
    ]


def test_long_names_continue_in_the_next_line_where_the_width_is_limited():
    rows = [("student", "n"), ("label revision + selection", "3"), ("a", "12")]
    assert text_table(rows, width=20).splitlines() == [
        "student           n",
        "label revision +  3",
        "  selection",
        "a                 12",
    ]
    assert text_table(rows, width=80) == text_table(rows)


def test_an_aligned_table_is_the_same_markdown():
    aligned, plain = markdown_table(ROWS), markdown_table(ROWS, aligned=False)
    assert aligned.splitlines()[1:3] == ["|-------------|-------|", "| a long name | 3     |"]
    assert plain.splitlines()[1:3] == ["|---|---|", "| a long name | 3 |"]
    first, second = (MarkdownIt().enable("table").render(table) for table in (aligned, plain))
    assert first == second
    assert "<td>1,000</td>" in first
