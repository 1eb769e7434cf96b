"""docs/sweeps.md: every command and example runs, and every column is described."""

import re
import tomllib
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pytest

from pipeline.artefacts.sweep import FAILED, OK, SweepRecord, SweepRow, sweep_folder
from stages.config.file import config_from_tree, load_config
from stages.sweep.points import baseline_of, sweep_points
from stages.sweep.results import statistics
from tests.support.commands import ROOT, heartcut

PAGE = (ROOT / "docs" / "sweeps.md").read_text()
FENCED = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
PLACE = "work/digits/sweeps/selection/results.parquet"


def block(language: str) -> str:
    (text,) = [text for found, text in FENCED if found == language]
    return text


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results as the sweep of the digits could leave them, with one failed run."""
    config = load_config(ROOT / "configs" / "digits-sweep.toml")
    points = sweep_points(config)
    record = SweepRecord(
        name=config.sweep.name,
        dataset="",
        metric="held_out_mean_of_last",
        baseline=baseline_of(config, points).name,
        seeds=config.sweep.seeds,
        points={p.name: {**dict.fromkeys(config.sweep.axes), **p.known_values} for p in points},
    )
    rows = [_row(point.name, seed) for point in points for seed in config.sweep.seeds]
    folder = sweep_folder(tmp_path_factory.mktemp("sweep"), config.sweep.name)
    folder.path.mkdir(parents=True)
    folder.write_results(record, rows, statistics(record, rows))
    return folder.results


def _row(point: str, seed: int) -> SweepRow:
    if (point, seed) == ("DKD", 1):
        return SweepRow(point=point, seed=seed, settings="", status=FAILED, error="no")
    accuracy = 0.5 + len(point) / 100 + seed / 1000
    return SweepRow(
        point=point,
        seed=seed,
        settings="",
        status=OK,
        held_out_mean_of_last=accuracy,
        held_out_last=accuracy,
        held_out_best=accuracy,
    )


def test_the_table_of_the_page_is_a_sweep():
    config = config_from_tree(tomllib.loads(block("toml")), origin="docs/sweeps.md")
    points = sweep_points(config)
    assert len(points) == 6
    assert all(point.config for point in points)
    assert baseline_of(config, points).name == "eta=0.8 method=kd"


def test_every_command_of_the_page_runs(tmp_path):
    lines = [line.removeprefix("$ ") for line in block("console").splitlines()]
    dry, part, wet, make = (line.split() for line in lines)
    assert dry == [*wet, "--dry-run"]
    assert part == [*wet, "--point", "plain", "--seed", "0"]
    program, command, file = wet
    assert (program, command, make[:2]) == ("heartcut", "sweep", ["make", "sweep"])
    assert make[2] == f"CONFIG={file}"
    assert "\nsweep: setup " in (ROOT / "Makefile").read_text()
    done = heartcut(command, ROOT / file, "--dry-run", "--set", f"workspace={tmp_path}")
    assert "18 runs: 0 done, 18 left." in done.out
    options = [*part[3:], "--dry-run", "--set", f"workspace={tmp_path}"]
    assert "1 run: 0 done, 1 left." in heartcut(command, ROOT / file, *options).out
    assert list(tmp_path.iterdir()) == []


def test_the_result_of_the_page_is_of_the_demo_s_points():
    points = sweep_points(load_config(ROOT / "configs" / "digits-sweep.toml"))
    cells = [line.split("|")[1].strip() for line in block("text").splitlines() if "|" in line]
    assert cells[2:] == [point.name for point in points]


def test_the_example_of_pandas_runs(table):
    names: dict[str, pd.DataFrame] = {}
    exec(block("python").replace(PLACE, str(table)), names)
    effect = names["effect"]
    assert len(names["grid"]) == 12
    assert effect.index.tolist() == [(e, s) for e in (0.6, 0.8) for s in ("all", "influence")]
    assert effect["std"].tolist() == pytest.approx([0.001] * 4)


def test_the_example_of_sql_runs(table):
    rows = duckdb.connect().execute(block("sql").replace(PLACE, str(table))).df()
    assert rows["num_ok"].tolist().count(3) == 5
    assert rows["held_out_best_mean"].is_monotonic_decreasing
    (baseline,) = rows[rows["held_out_best_difference"].isna()]["point"]
    assert baseline == "strategy=all eta=0.8"
    assert rows.set_index("point")["num_pairs"].to_dict()["DKD"] == 2


def test_every_column_is_described_and_no_other(table):
    described = re.findall(r"^\| ([^|]+) \|", PAGE.split("| column | what |")[1], re.MULTILINE)
    named = {name for cell in described for name in re.findall(r"`([^`]+)`", cell)}
    plain = {name for name in named if not name.startswith("...")}
    endings = {name.removeprefix("...") for name in named - plain}
    columns = {name for name in pl.read_parquet(table).columns if "." not in name}
    repeated = {name for name in columns - plain if any(map(name.endswith, endings))}
    assert columns == plain | repeated
    assert len(repeated) == 3 * len(endings)
