"""Every number in the tables of README.md and of the study is of a stored result."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from benchmarks.study import differences, figures, names, results, store, summaries, tables
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Run
from stages.config.file import config_from_tree
from stages.config.root import Config
from stages.config.sweep import SweepConfig
from stages.sweep import run as sweep
from stages.sweep.tasks import Part
from tests.support.documentation import ROOT, cells_of

STUDIES = [path.stem for path in store.KEPT.glob("*.parquet") if "." not in path.stem]
NUMBER = re.compile(r"\d+\.\d")
PAGE_WITH_GAINS = ROOT / "docs" / "results" / "study.md"


@pytest.mark.parametrize("page", results.PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_stored_results(page):
    text = page.read_text()
    assert results.rendered(text) == text, "run `python -m benchmarks.study.results render`"


FIRST_PAGES = (ROOT / "README.md", ROOT / "docs" / "index.md")
GAINS = results.BEGIN.format(name=summaries.GAINS)


@pytest.mark.parametrize(
    "path",
    [path for path in FIRST_PAGES if GAINS in path.read_text()] or [PAGE_WITH_GAINS],
    ids=lambda path: path.name,
)
def test_the_first_pages_show_gains_of_stored_results_and_no_other_table_of_numbers(path):
    """A page is held from the moment that it has the marker of the table."""
    text = path.read_text()
    table = text.split(GAINS)[1].split(results.END)[0]
    rows = [line for line in text.splitlines() if line.startswith("|") and NUMBER.search(line)]
    assert rows
    assert table.strip() == summaries.gains()
    if path in FIRST_PAGES:
        assert set(rows) <= set(table.splitlines())


def test_the_gains_say_what_numpy_and_scipy_say():
    header, rows = cells_of(summaries.gains())
    assert header[1:] == ["ResNet-8", "ResNet-20"]
    assert [row[0] for row in rows] == [names.variant_name(p) for p in summaries.GAINING]
    for point, row in zip(summaries.GAINING, rows, strict=True):
        for student, cell in zip(header[1:], row[1:], strict=True):
            frame = store.runs_of(f"ablation-{student.lower().replace('-', '')}")
            test = frame.pivot_table(index="seed", columns="point", values="test_accuracy") * 100
            own = (test[point] - test["plain"]).dropna()
            assert len(own) >= 5
            interval = scipy.stats.ttest_1samp(own, 0.0).confidence_interval(0.95)
            half = (interval.high - interval.low) / 2
            printed = [float(number) for number in cell.strip("*").split(" ± ")]
            assert printed == pytest.approx([own.mean(), half], abs=0.051)
            over_kd = scipy.stats.ttest_1samp((test[point] - test["KD"]).dropna(), 0.0)
            clear = point != "KD" and over_kd.confidence_interval(0.95).low > 0
            assert cell.startswith("**") == clear


def _test_accuracy(name: str) -> pd.DataFrame:
    return store.runs_of(name).pivot_table(index="seed", columns="point", values="test_accuracy")


def test_the_table_of_teachers_in_short_says_what_scipy_says():
    header, rows = cells_of(summaries.teachers_in_short())
    assert [float(row[1]) for row in rows[2:]] == sorted(
        (float(row[1]) for row in rows[2:]), reverse=True
    )
    assert len(rows) == 9
    for (name, teacher), row in zip(summaries.by_accuracy(), rows, strict=True):
        test = 100 * _test_accuracy(name)
        frame = store.runs_of(name)
        own = frame[frame["point"] == f"{teacher}LR"]
        assert float(row[1]) == pytest.approx(100 * own["teacher_accuracy_test"].iloc[0])
        assert int(row[header.index("n")]) == len(own)
        for title, point, other in (
            ("KD", f"{teacher}KD", "plain"),
            ("label revision", f"{teacher}LR", "plain"),
            ("label revision minus KD", f"{teacher}LR", f"{teacher}KD"),
        ):
            _check_gain(row[header.index(title)], (test[point] - test[other]).dropna())


def test_the_tables_of_selection_and_repair_in_short_say_what_scipy_says():
    shown = {"default": "LR + DS, -2 errors", "sign": "LR + DS"}
    header, rows = cells_of(summaries.selection_in_short())
    parts = {
        (names.teacher_name(f"{teacher}KD"), differences.student_of(name)): (name, teacher)
        for name, teacher in summaries.by_accuracy()
    }
    for row in rows:
        name, teacher = parts[row[0], row[2]]
        point = f"{teacher}{shown[row[header.index('rule')]]}"
        test = 100 * _test_accuracy(name)
        frame = store.runs_of(name)
        own = frame[frame["point"] == point]
        share = 100 * (own["num_distilled"] / own["num_training_samples"]).mean()
        assert float(row[header.index("kept")].removesuffix(" %")) == pytest.approx(share, abs=0.05)
        _check_gain(row[header.index("test")], (test[point] - test[f"{teacher}LR"]).dropna())
    header, rows = cells_of(summaries.repair_in_short())
    assert len(rows) == len(summaries.HEADS) + 1
    for row in rows:
        name, teacher = parts[row[0], row[2]]
        test = 100 * _test_accuracy(name)
        gains = test[f"{teacher}repaired, LR"] - test[f"{teacher}LR"]
        _check_gain(row[header.index("test")], gains.dropna())


@pytest.mark.parametrize("name", STUDIES)
def test_no_two_variants_of_a_study_have_one_name(name):
    points = list(store.sweep_of(name).points)
    shown = [(names.teacher_name(point), names.variant_name(point)) for point in points]
    assert len(set(shown)) == len(points)


@pytest.mark.parametrize("name", STUDIES)
def test_the_table_of_a_study_says_what_numpy_and_scipy_say(name):
    frame = store.runs_of(name)
    header, rows = cells_of(tables.table(name))
    points = [point for point in store.sweep_of(name).points if point in set(frame["point"])]
    assert [row[header.index("variant")] for row in rows] == list(map(names.variant_name, points))
    test = frame.pivot_table(index="seed", columns="point", values="test_accuracy") * 100
    for point, row in zip(points, rows, strict=True):
        own = test[point].dropna()
        assert int(row[header.index("n")]) == len(own)
        printed = [float(number) for number in row[header.index("test")].split(" ± ")]
        assert printed[0] == pytest.approx(own.mean(), abs=0.0051)
        if len(own) > 1:
            assert printed[1] == pytest.approx(np.std(own, ddof=1), abs=0.0051)
        for column, title in enumerate(header):
            shown = title.removeprefix("test, minus ")
            if shown == title:
                continue
            other = next(name for name in tables.COMPARED if names.variant_name(name) == shown)
            if ": " in point and other != "plain":
                other = f"{point.split(': ')[0]}: {other}"
            if other in {point, *(set(tables.COMPARED) - set(test))}:
                assert row[column] == ""
            else:
                _check_gain(row[column], (test[point] - test[other]).dropna())


def test_the_table_of_time_says_how_long_each_training_took():
    header, rows = cells_of(tables.table(store.TIMED))
    epochs = store.epochs_of_study(store.TIMED)
    points = [p for p in store.sweep_of(store.TIMED).points if p in set(epochs["point"])]
    for point, row in zip(points, rows, strict=True):
        assert row[0] == names.variant_name(point)
        own = epochs[epochs["point"] == point]
        last = [own.loc[own["seed"] == seed, "seconds"].max() for seed in sorted(set(own["seed"]))]
        assert row[header.index("seconds")] == f"{sum(last) / len(last):.0f}"


def _check_gain(printed: str, differences: pd.Series) -> None:
    numbers = [float(number) for number in re.findall(r"[+-]\d+\.\d+", printed)]
    if not len(differences):
        assert printed == ""
        return
    assert numbers[0] == pytest.approx(differences.mean(), abs=0.0051)
    if len(differences) > 1:
        interval = scipy.stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
        assert numbers[1:] == pytest.approx(list(interval), abs=0.0051)


@pytest.mark.parametrize("name", STUDIES)
def test_what_is_kept_of_a_study_is_of_its_points_and_of_one_data_set(name):
    frame, wanted = store.runs_of(name), store.sweep_of(name)
    assert set(frame["point"]) <= set(wanted.points)
    assert set(frame["seed"]) <= set(wanted.seeds)
    assert not frame.duplicated(store.KEY).any()
    assert frame["run"].is_unique
    assert frame["dataset"].nunique() == 1
    epochs = store.epochs_of_study(name)
    last = epochs.sort_values("epoch").groupby(store.KEY)["held_out_accuracy"].last()
    own = frame.set_index(store.KEY)["held_out_accuracy_last"]
    pd.testing.assert_series_equal(last.sort_index(), own.sort_index(), check_names=False)


def test_what_is_kept_of_a_teacher_is_of_one_network():
    frame = store.runs_of("teachers")
    caches = frame.groupby(frame["point"].map(store.teacher_of_point))["cache"].nunique()
    assert caches.pop("") == 0
    assert (caches == 1).all()


def test_runs_on_other_processors_are_listed():
    _, rows = cells_of(tables.machines())
    printed = {(study, name) for study, *_, variants in rows for name in variants.split("; ")}
    for name in (name for name in STUDIES if name != store.TIMED):
        frame = store.runs_of(name)
        others = frame[frame["device"] != "AMD EPYC, 1 thread, bf16"]
        title = tables.STUDY_NAMES.get(name, name)
        variants = set(map(names.variant_name, others["point"]))
        assert {variant for study, variant in printed if study == title} == variants
        assert sum(int(row[3]) for row in rows if row[0] == title) == len(others)


def test_students_of_several_teachers_are_compared_with_kd_of_their_own(monkeypatch):
    points = ["plain", "good: KD", "good: LR", "bad: KD", "bad: LR + DS"]
    rng = np.random.default_rng(0)
    rows = [{"point": point, "seed": seed} for point in points for seed in (0, 1, 2)]
    frame = pd.DataFrame(rows)
    for field in store.FIELDS:
        frame[field] = rng.random(len(frame))
    accuracy = {"good": 0.9, "bad": 0.7}
    frame["teacher_accuracy_test"] = [accuracy.get(row["point"].split(":")[0]) for row in rows]
    wanted = SweepConfig(points=dict.fromkeys(points, ()), seeds=(0, 1, 2))
    for module in (tables, figures):
        monkeypatch.setattr(module, "runs_of", lambda _: frame)
    monkeypatch.setattr(tables, "sweep_of", lambda _: wanted)
    header, lines = cells_of(tables.table("teachers"))
    printed = {
        point: dict(zip(header, line, strict=True))
        for point, line in zip(points, lines, strict=True)
    }
    assert [printed[point]["teacher, test"] for point in points] == [
        "",
        *["90.00"] * 2,
        *["70.00"] * 2,
    ]
    assert printed["good: KD"]["test, minus KD"] == printed["bad: KD"]["test, minus KD"] == ""
    test = frame.pivot_table(index="seed", columns="point", values="test_accuracy") * 100
    _check_gain(printed["good: LR"]["test, minus KD"], test["good: LR"] - test["good: KD"])
    _check_gain(printed["bad: LR + DS"]["test, minus KD"], test["bad: LR + DS"] - test["bad: KD"])
    _check_gain(
        printed["bad: LR + DS"]["test, minus no teacher"], test["bad: LR + DS"] - test["plain"]
    )
    where, gain, below, above = figures.against_plain(frame, "bad: LR + DS")
    difference = test["bad: LR + DS"] - test["plain"]
    interval = scipy.stats.ttest_1samp(difference, 0.0).confidence_interval(0.95)
    assert where == 0.7
    assert 100 * gain == pytest.approx(difference.mean())
    assert 100 * (gain - below) == pytest.approx(interval.low)
    assert 100 * (gain + above) == pytest.approx(interval.high)
    alone = frame[(frame["point"] != "plain") | (frame["seed"] == 0)]
    later = alone[(alone["point"] != "bad: LR + DS") | (alone["seed"] != 0)]
    assert figures.against_plain(later, "bad: LR + DS") is None


def test_the_figures_are_those_of_the_stored_results():
    drawn = {name: make() for name, make in figures.FIGURES.items()}
    assert drawn["gains"] is not None
    for name, chart in drawn.items():
        path = figures.FOLDER / f"study-{name}.svg"
        assert path.exists() == (chart is not None), path
        if chart is not None:
            assert path.read_text() == chart, "run `python -m benchmarks.study.results render`"
            page = (ROOT / "docs" / "results" / "study.md").read_text()
            assert path.name in page, "the page shows it"


@pytest.mark.parametrize("name", STUDIES)
def test_the_bars_of_a_figure_are_what_scipy_says(name):
    frame = store.runs_of(name)
    reference = "base" if name == "sensitivity" else "KD"
    test = frame.pivot_table(index="seed", columns="point", values="test_accuracy")
    bars = {bar.name: bar.found for bar in figures.bars(name, reference)}
    if reference not in test:
        assert not bars
        return
    for point in set(test) - {reference}:
        own = (test[point] - test[reference]).dropna()
        assert (point in bars) == (len(own) >= 3)
        if point in bars:
            interval = scipy.stats.ttest_1samp(own, 0.0).confidence_interval(0.95)
            found = bars[point]
            assert (found.mean, found.low, found.high) == pytest.approx((own.mean(), *interval))


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
    monkeypatch.setattr(store, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(store, "studies", lambda: ["small"])
    monkeypatch.setattr(store, "config_of", lambda _: config)
    return config


def test_results_of_parts_add_up_and_what_is_left_is_listed(study, capsys):
    left = store.left()
    assert left.startswith("small: 0 of 4 runs are stored\n")
    assert '  --point "plain" --seed 0 --seed 1\n' in left
    sweep.execute(study, Part(points=("plain",)))
    store.collect(study.workspace)
    assert store.left() == 'small: 2 of 4 runs are stored\n  --point "KD" --seed 0 --seed 1'
    table = study.workspace / "sweeps" / "small" / "results.parquet"
    table.unlink()  # as in another workspace
    sweep.execute(study, Part(points=("KD",), seeds=(1,)))
    store.collect(study.workspace)
    assert "small: 1 run of" in capsys.readouterr().out
    assert store.left() == 'small: 3 of 4 runs are stored\n  --point "KD" --seed 0'
    kept = store.runs_of("small")
    assert kept[store.KEY].values.tolist() == [["plain", 0], ["plain", 1], ["KD", 1]]
    for path in study.runs_folder.glob("student-*"):
        run = Run.open(path).result
        (row,) = kept[kept["run"] == run.id].to_dict("records")
        assert row["test_accuracy"] == run.test_accuracy
        assert row["dataset"] == Dataset.open(study.data_folder).record.id
    store.collect(study.workspace)
    pd.testing.assert_frame_equal(store.runs_of("small"), kept)


def test_runs_of_another_processor_that_are_repeated_are_put_aside(study, monkeypatch):
    monkeypatch.setattr(tables, "studies", store.studies)
    sweep.execute(study, Part(points=("plain",)))
    store.collect(study.workspace)
    kept = store.runs_of("small")
    assert tables.processors().count("\n") == 1
    store.collect(study.workspace)  # the very runs
    assert store.replaced_runs_of("small").empty
    fields = ["test_accuracy", "held_out_accuracy_mean_of_last"]
    older = kept.assign(device="Some CPU, 1 thread, bf16", run=["a", "b"])
    older[fields] -= np.array([[0.01, 0.02], [0.03, 0.02]])
    older.to_parquet(store.KEPT / "small.parquet", index=False)
    for _ in range(2):
        store.collect(study.workspace)
        pd.testing.assert_frame_equal(store.runs_of("small"), kept)
        pd.testing.assert_frame_equal(store.replaced_runs_of("small"), older)
    _, ((_, before, _, num, test, held_out),) = cells_of(tables.processors())
    assert (before, num, test, held_out) == ("Some CPU", "2", "2.00 ± 1.41", "2.00 ± 0.00")


def test_results_of_other_images_are_not_mixed_in(study):
    sweep.execute(study, Part(points=("plain",), seeds=(0,)))
    store.collect(study.workspace)
    other = store.runs_of("small").assign(dataset="another")
    other.to_parquet(store.KEPT / "small.parquet", index=False)
    with pytest.raises(SystemExit, match="is of the data set another"):
        store.collect(study.workspace)


def test_students_of_a_teacher_that_was_trained_again_take_the_places_of_all(
    study, capsys, monkeypatch
):
    points = {f"own: {name}": settings for name, settings in POINTS.items() if name != "plain"}
    tree = study.model_dump(mode="json", exclude_unset=True)
    tree["sweep"] = {"points": points, "seeds": [0, 1], "name": "small"}
    config = config_from_tree(tree, origin="test")
    monkeypatch.setattr(store, "config_of", lambda _: config)
    sweep.execute(config, Part(seeds=(0,)))
    store.collect(config.workspace)
    (cache,) = store.runs_of("small")["cache"]
    store.collect(config.workspace)  # the same network
    assert "left out" not in capsys.readouterr().out

    both = store.runs_of("small")
    both = pd.concat([both, both.assign(seed=1)]).assign(cache="another", run="another")
    both.to_parquet(store.KEPT / "small.parquet", index=False)
    store.collect(config.workspace)
    assert "left out 1 run of a teacher `own` that is not the teacher of the 2 stored students" in (
        capsys.readouterr().out
    )
    assert set(store.runs_of("small")["cache"]) == {"another"}

    sweep.execute(config, Part(seeds=(1,)))
    store.collect(config.workspace)
    assert store.runs_of("small")["cache"].tolist() == [cache, cache]


def test_a_run_that_two_studies_ask_for_is_kept_for_both(study, monkeypatch):
    tree = study.model_dump(mode="json", exclude_unset=True)
    tree["select"] = {"revision": "none", "strategy": "all"}
    points = {"base": (), "hot": ("select.temperature=8",)}
    tree["sweep"] = {"points": points, "seeds": [0, 1], "name": "other"}
    configs = {"small": study, "other": config_from_tree(tree, origin="test")}
    monkeypatch.setattr(store, "studies", lambda: ["other", "small"])
    monkeypatch.setattr(store, "config_of", configs.__getitem__)
    sweep.execute(study, Part(points=("plain", "KD"), seeds=(0,)))
    store.collect(study.workspace)
    assert not (store.KEPT / "other.parquet").exists()  # nobody began it
    sweep.execute(configs["other"], Part(points=("hot",), seeds=(1,)))
    store.collect(study.workspace)
    given = store.runs_of("small").set_index(store.KEY).loc[("KD", 0)]
    taken = store.runs_of("other").set_index(store.KEY)
    assert sorted(taken.index) == [("base", 0), ("hot", 1)]
    pd.testing.assert_series_equal(taken.loc[("base", 0)], given, check_names=False)
    epochs = store.epochs_of_study("other")
    assert set(epochs["point"]) == {"base", "hot"}
    monkeypatch.setattr(store, "TIMED", "other")
    (store.KEPT / "other.parquet").unlink()
    (store.KEPT / "other.epochs.parquet").unlink()
    store.collect(study.workspace)
    assert store.runs_of("other")["point"].tolist() == ["hot"]  # its seconds are its own
