"""docs/selection.md: every example gives what it says. docs/reference/selection.md describes every
column, strategy and diagnostic.

That commands run and configurations load is asked of every page, by `test_docs`.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import duckdb
import numpy as np
import pandas as pd
import pytest

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.scores import Diagnostics
from pipeline.artefacts.selection import COLUMNS, SelectionTable
from pipeline.methods.catalogue import Strategy
from stages import select
from stages.config.root import Config
from tests.support.commands import ROOT

PAGE = (ROOT / "docs" / "selection.md").read_text()
REFERENCE = (ROOT / "docs" / "reference" / "selection.md").read_text()
FENCED = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
PLACE = "work/digits/selections"


def blocks(*languages: str) -> list[str]:
    return [text for language, text in FENCED if language in languages]


def title(block: str) -> str:
    return block.splitlines()[0].lstrip("#- ")


@dataclass(frozen=True)
class Ran:
    """Results of an example."""

    table: SelectionTable
    folder: Path
    names: dict[str, object]
    """Variables of Python."""
    rows: pd.DataFrame | None
    """The result of SQL."""

    @property
    def frame(self) -> pd.DataFrame:
        return self.table.frame

    def edited(self, name: str) -> SelectionTable:
        return SelectionTable.open(self.folder / name)


def costly(ran: Ran) -> None:
    frame = ran.frame
    wrong = frame[~frame["teacher_correct"] & ~frame["held_out"]]
    found = ran.names["costly"]
    assert len(found) == min(10, len(wrong)) > 0
    assert found["dloss_undistill"].is_monotonic_increasing
    assert found["dloss_undistill"].iloc[0] == wrong["dloss_undistill"].min()


def share_per_class(ran: Ran) -> None:
    candidates = ran.frame[ran.frame["rank"] >= 0]
    shares = candidates.groupby("label")["selected"].mean()
    assert ran.rows["label"].tolist() == shares.index.tolist() == list(range(10))
    np.testing.assert_allclose(ran.rows["kept"], shares, rtol=1e-12)
    assert ran.rows["num"].sum() == ran.table.record.num_candidates


def clear_scores(ran: Ran) -> None:
    frame, found = ran.frame, ran.names["clear"]
    wanted = frame["dloss_undistill"].abs() > 2 * frame["dloss_undistill_se"]
    assert found["sample_index"].to_list() == np.flatnonzero(wanted).tolist()
    assert 0 < len(found) < len(frame)


def record_of_pandas(ran: Ran) -> None:
    assert ran.names["record"] == json.loads(ran.table.record.model_dump_json())
    assert ran.names["record"]["scores"]["diagnostics"]["num_target"] > 0


def record_of_duckdb(ran: Ran) -> None:
    (text,) = ran.rows["diagnostics"]
    assert json.loads(text) == json.loads(ran.table.record.scores.diagnostics.model_dump_json())


def edited_to(name: str, wanted: Callable[[pd.DataFrame], pd.Series]) -> Callable[[Ran], None]:
    """The edited table opens, keeps its record and its samples, and selects what was ``wanted``."""

    def check(ran: Ran) -> None:
        edited = ran.edited(name)
        assert edited.record == ran.table.record
        assert np.array_equal(edited.selected, wanted(ran.frame).to_numpy(dtype=bool))
        assert 0 < edited.selected.sum() < len(edited.frame)
        for column in COLUMNS.keys() - {"selected", "reason"}:
            same = ran.frame[column].equals(edited.frame[column])
            assert same or column == "sample_key", column
        assert edited.frame["sample_key"].tolist() == ran.frame["sample_key"].tolist()

    return check


CHECKS: dict[str, Callable[[Ran], None]] = {
    "the teacher's costliest mistakes": costly,
    "share distilled per class": share_per_class,
    "scores that stand two standard errors from zero": clear_scores,
    "the record of a table": record_of_pandas,
    "the record again": record_of_duckdb,
    "edited with pandas": edited_to(
        "by-pandas.parquet", lambda t: (t["margin"] > 0.2) & ~t["held_out"]
    ),
    "edited with Polars": edited_to(
        "by-polars.parquet", lambda t: (t["p_target"] > 0.5) & ~t["held_out"]
    ),
    "edited with DuckDB": edited_to(
        "by-duckdb.parquet",
        lambda t: t["selected"] & (t["dloss_undistill"] > 2 * t["dloss_undistill_se"]),
    ),
    "edited with pyarrow": edited_to("by-pyarrow.parquet", lambda t: t["entropy"] < 1.0),
}


@pytest.fixture(scope="module")
def table(digits: Config) -> SelectionTable:
    return select.execute(digits)


@pytest.fixture
def folder(table: SelectionTable, tmp_path: Path) -> Path:
    """The folder of selections that the page speaks of."""
    shutil.copy(table.path, tmp_path / "first.parquet")
    return tmp_path


def run(block: str, language: str, table: SelectionTable, folder: Path) -> Ran:
    code = block.replace(PLACE, str(folder))
    names: dict[str, object] = {}
    rows = None
    if language == "python":
        exec(code, names)
    else:
        rows = duckdb.connect().execute(code).df()
    return Ran(table=table, folder=folder, names=names, rows=rows)


@pytest.mark.parametrize("name", CHECKS)
def test_every_example_runs_and_gives_what_it_says(name, table, folder, digits):
    ((language, block),) = [
        (language, text)
        for language, text in FENCED
        if language in ("python", "sql") and title(text) == name
    ]
    assert PLACE in block
    CHECKS[name](run(block, language, table, folder))
    samples = Dataset.open(digits.data_folder).train.samples
    for path in folder.glob("by-*.parquet"):
        SelectionTable.open(path).require_samples(samples.keys, samples.labels)


def test_no_example_is_left_out():
    titles = [title(block) for block in blocks("python", "sql")]
    assert sorted(titles) == sorted(CHECKS)
    assert {language for language, _ in FENCED} == {"python", "sql", "sh", "toml", "text"}
    outside = re.sub(r"^```\w+\n.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert "```" not in outside
    assert not re.findall(r"^ {4}", outside, flags=re.MULTILINE), "an indented block"


def table_of(heading: str) -> list[list[str]]:
    """Code words of the first cell of every row of the table under a heading."""
    text = REFERENCE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in rows]


def test_every_column_is_described_once():
    named = [name for row in table_of("Columns") for name in row]
    assert sorted(named) == sorted(COLUMNS)


def test_every_strategy_and_every_diagnostic_is_described():
    strategies = [name for row in table_of("Strategies")[1:] for name in row]
    assert sorted(strategies) == sorted(get_args(Strategy))
    diagnostics = [name for row in table_of("Diagnostics") for name in row]
    assert sorted(diagnostics) == sorted(Diagnostics.model_fields)
