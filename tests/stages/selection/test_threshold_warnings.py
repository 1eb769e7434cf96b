"""`select` warns if it drops samples whose scores do not differ clearly from the threshold."""

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
    """Run `select` with other settings in another workspace."""
    workspace = linked_copy(digits.workspace, tmp_path / "work")

    def run(*overrides: str) -> SelectionTable:
        return select.execute(with_overrides(digits, [f"workspace={workspace}", *overrides]))

    return run


def counted(table: SelectionTable, threshold: float = 0.0, sign: float = 1.0) -> tuple[int, int]:
    """Dropped samples within two standard errors of the threshold, and all dropped samples."""
    score, near, num = table.record.identity.score, 0, 0
    for row in table.frame.to_dict("records"):
        if row["rank"] < 0 or row["selected"]:
            continue
        num += 1
        near += sign * row[score] + 2 * row[f"{score}_se"] > threshold
    return near, num


def test_dropped_samples_near_the_threshold_are_counted(chosen):
    table = chosen("select.standard_errors=0")
    outcomes = set()
    for factor in (1e-3, 0.3, 1.0, 1e3):
        frame = table.frame.assign(dloss_undistill_se=table.frame["dloss_undistill_se"] * factor)
        scaled = replace(table, frame=frame)
        near, num = counted(scaled)
        warnings = list(threshold_warnings(scaled))
        outcomes.add(len(warnings))
        assert len(warnings) == (near > num / 2)
        if warnings:
            assert warnings[0].startswith(f"{near:,} of the {num:,} dropped samples")
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
    (warning,) = threshold_warnings(table)
    assert re.match(rf"{near:,} of the {num:,} dropped samples \(\d+ %\) are within two", warning)
    assert caplog.messages[-1] == warning == list(warnings_of_table(table))[-1]


def test_clearly_harmful_samples_cause_no_warning(chosen):
    table = chosen("select.class_quota=0")
    assert table.record.identity.standard_errors == -2
    assert counted(table)[0] == 0
    assert not list(threshold_warnings(table))


def test_a_fraction_causes_no_warning(chosen):
    assert not list(threshold_warnings(chosen("select.fraction=0.5")))
    assert not list(threshold_warnings(chosen("select.strategy=correct")))
