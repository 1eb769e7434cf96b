"""Every number in the tables of README.md and of the study is of a stored result."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Run
from stages import sweep
from stages.config_file import config_from_tree
from stages.configs import Config
from stages.sweep_tasks import Part
from studies import results
from tests.documentation import ROOT

STUDIES = [path.stem for path in results.KEPT.glob("*.parquet") if ".epochs" not in path.name]
NUMBER = re.compile(r"\d+\.\d")


@pytest.mark.parametrize("page", results.PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_stored_results(page):
    text = page.read_text()
    assert results.rendered(text) == text, "run `python studies/results.py render`"


def test_readme_and_site_begin_with_stored_results_and_have_no_other_table_of_numbers():
    for path in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        text = path.read_text()
        rendered = text.split(results.BEGIN.format(name=results.HEADLINE))[1].split(results.END)[0]
        rows = [line for line in text.splitlines() if line.startswith("|") and NUMBER.search(line)]
        assert rows
        assert set(rows) <= set(rendered.splitlines()), path


@pytest.mark.parametrize("name", STUDIES)
def test_the_table_of_a_study_says_what_numpy_and_scipy_say(name):
    frame = results.kept(name)
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in results.table(name).splitlines()
    )
    assert [row[0] for row in rows] == [
        point for point in results.sweep_of(name).points if point in set(frame["point"])
    ]
    test = frame.pivot_table(index="seed", columns="point", values="test_accuracy") * 100
    for row in rows:
        own = test[row[0]].dropna()
        assert int(row[1]) == len(own)
        told = [float(number) for number in row[header.index("test")].split(" ± ")]
        assert told[0] == pytest.approx(own.mean(), abs=0.0051)
        if len(own) > 1:
            assert told[1] == pytest.approx(np.std(own, ddof=1), abs=0.0051)
        for column, title in enumerate(header):
            other = title.removeprefix("test, minus ")
            if other == title or other == row[0]:
                continue
            _check_gain(row[column], (test[row[0]] - test[other]).dropna())


def _check_gain(told: str, differences: pd.Series) -> None:
    numbers = [float(number) for number in re.findall(r"[+-]\d+\.\d+", told)]
    if not len(differences):
        assert told == ""
        return
    assert numbers[0] == pytest.approx(differences.mean(), abs=0.0051)
    if len(differences) > 1:
        interval = scipy.stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
        assert numbers[1:] == pytest.approx(list(interval), abs=0.0051)


@pytest.mark.parametrize("name", STUDIES)
def test_what_is_kept_of_a_study_is_of_its_points_and_of_one_data_set(name):
    frame, wanted = results.kept(name), results.sweep_of(name)
    assert set(frame["point"]) <= set(wanted.points)
    assert set(frame["seed"]) <= set(wanted.seeds)
    assert not frame.duplicated(results.KEY).any()
    assert frame["run"].is_unique
    assert frame["dataset"].nunique() == 1
    epochs = pd.read_parquet(results.KEPT / f"{name}.epochs.parquet")
    last = epochs.sort_values("epoch").groupby(results.KEY)["held_out_accuracy"].last()
    own = frame.set_index(results.KEY)["held_out_accuracy_last"]
    pd.testing.assert_series_equal(last.sort_index(), own.sort_index(), check_names=False)


POINTS = {
    "plain": ["train_student.distil=false"],
    "KD": ["select.revision=none", "select.strategy=all"],
}


@pytest.fixture
def study(digits_copy: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A study of two points and two seeds, of which nothing is kept."""
    tree = digits_copy.model_dump(mode="json", exclude_unset=True)
    tree["sweep"] = {"points": POINTS, "seeds": [0, 1], "name": "small"}
    config = config_from_tree(tree, origin="test")
    monkeypatch.setattr(results, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(results, "studies", lambda: ["small"])
    monkeypatch.setattr(results, "sweep_of", lambda _: config.sweep)
    return config


def test_results_of_parts_add_up_and_what_is_left_is_told(study, capsys):
    left = results.left()
    assert left.startswith("small: 0 of 4 runs are kept\n")
    assert '  --point "plain" --seed 0 --seed 1\n' in left
    sweep.execute(study, Part(points=("plain",)))
    results.collect(study.workspace)
    assert results.left() == 'small: 2 of 4 runs are kept\n  --point "KD" --seed 0 --seed 1'
    table = study.workspace / "sweeps" / "small" / "results.parquet"
    table.unlink()  # as in another workspace
    sweep.execute(study, Part(points=("KD",), seeds=(1,)))
    results.collect(study.workspace)
    assert "small: 1 runs of" in capsys.readouterr().out
    assert results.left() == 'small: 3 of 4 runs are kept\n  --point "KD" --seed 0'
    kept = results.kept("small")
    assert kept[results.KEY].values.tolist() == [["plain", 0], ["plain", 1], ["KD", 1]]
    for path in study.runs_folder.glob("student-*"):
        run = Run.open(path).result
        (row,) = kept[kept["run"] == run.id].to_dict("records")
        assert row["test_accuracy"] == run.test_accuracy
        assert row["dataset"] == Dataset.open(study.data_folder).record.id
    results.collect(study.workspace)
    pd.testing.assert_frame_equal(results.kept("small"), kept)


def test_results_of_other_images_are_not_mixed_in(study):
    sweep.execute(study, Part(points=("plain",), seeds=(0,)))
    results.collect(study.workspace)
    other = results.kept("small").assign(dataset="another")
    other.to_parquet(results.KEPT / "small.parquet", index=False)
    with pytest.raises(SystemExit, match="is of the data set another"):
        results.collect(study.workspace)
