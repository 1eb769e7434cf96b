"""`select` says where rows are left out whose scores cannot be told from the threshold."""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.artefacts.selection import SelectionTable
from stages import select
from stages.config.file import with_overrides
from stages.selection.wording import threshold_warnings, warnings_of_table
from tests.support.workspaces import linked_copy


@pytest.fixture
def chosen(digits, tmp_path):
    """`select` under other settings, elsewhere."""
    workspace = linked_copy(digits.workspace, tmp_path / "work")

    def run(*overrides: str) -> SelectionTable:
        return select.execute(with_overrides(digits, [f"workspace={workspace}", *overrides]))

    return run


def counted(table: SelectionTable, threshold: float = 0.0, sign: float = 1.0) -> tuple[int, int]:
    """Rows left out within two standard errors of the threshold, and rows left out."""
    score, near, num = table.record.identity.score, 0, 0
    for row in table.frame.to_dict("records"):
        if row["rank"] < 0 or row["selected"]:
            continue
        num += 1
        near += sign * row[score] + 2 * row[f"{score}_se"] > threshold
    return near, num


def test_rows_left_out_in_doubt_are_counted(chosen):
    table = chosen("select.standard_errors=0")
    outcomes = set()
    for factor in (1e-3, 0.3, 1.0, 1e3):
        frame = table.frame.assign(dloss_undistill_se=table.frame["dloss_undistill_se"] * factor)
        scaled = replace(table, frame=frame)
        near, num = counted(scaled)
        told = list(threshold_warnings(scaled))
        outcomes.add(len(told))
        assert len(told) == (near > num / 2)
        if told:
            assert told[0].startswith(f"{near:,} of the {num:,} rows left out")
    assert outcomes == {0, 1}


@pytest.mark.parametrize(("score", "sign"), [("dloss_swap", -1.0), ("dloss_remove", 1.0)])
def test_the_sign_is_that_of_the_score(chosen, score, sign):
    table = chosen(f"select.score={score}", "select.standard_errors=0", "select.class_quota=0")
    frame = table.frame
    frame = frame.assign(**{f"{score}_se": np.abs(frame[score]) * 0.6})
    near, num = counted(replace(table, frame=frame), sign=sign)
    assert near == num > 0
    assert len(list(threshold_warnings(replace(table, frame=frame)))) == 1
    frame = frame.assign(**{f"{score}_se": np.abs(frame[score]) * 0.4})
    assert not list(threshold_warnings(replace(table, frame=frame)))


def test_select_show_and_report_say_the_same(chosen, caplog):
    middle = chosen().frame["dloss_undistill"].median()
    with caplog.at_level(logging.WARNING):
        table = chosen(f"select.threshold={middle}", "select.class_quota=0")
    near, num = counted(table, middle)
    assert near > num / 2
    (told,) = threshold_warnings(table)
    assert re.match(rf"{near:,} of the {num:,} rows left out \(\d+ %\) are within two", told)
    assert caplog.messages[-1] == told == list(warnings_of_table(table))[-1]


def test_what_is_left_out_beyond_doubt_is_not_doubted(chosen):
    table = chosen("select.class_quota=0")
    assert table.record.identity.standard_errors == -2
    assert counted(table)[0] == 0
    assert not list(threshold_warnings(table))


def test_a_share_that_was_asked_for_is_not_doubted(chosen):
    assert not list(threshold_warnings(chosen("select.fraction=0.5")))
    assert not list(threshold_warnings(chosen("select.strategy=correct")))
