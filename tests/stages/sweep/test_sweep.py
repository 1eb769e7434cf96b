"""Sweeps: go on past failures and after kills, choose by held-out images, look at test once."""

import json
import logging
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import scipy.stats

from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.publishing import publish_json
from pipeline.artefacts.run import RESULT, WEIGHTS, Run, run_id
from pipeline.artefacts.sweep import ACCURACIES, OK, SweepRow, sweep_folder
from pipeline.errors import ArtefactMismatch, ConfigError, PipelineError, Terminated
from pipeline.runtime.ranks import ALONE, Ranks
from stages import cache_teacher, select, train_student, train_teacher
from stages.config.file import config_from_tree, with_overrides
from stages.config.root import Config
from stages.identities import teacher_run_path
from stages.sweep import run as sweep
from stages.sweep.report import as_markdown
from stages.sweep.results import Sweep, seconds_left
from stages.sweep.tasks import Part
from tests.support.commands import heartcut
from tests.support.workspaces import contents, replace_bytes, snapshot

POINTS = {
    "a": ["train_student.distil=false", "train_student.lr=0.1"],
    "b": ["train_student.distil=false", "train_student.lr=0.2"],
    "c": ["train_student.distil=false", "train_student.lr=0.3"],
}
"""Students that need no teacher."""
RATES = {0.1: "a", 0.2: "b", 0.3: "c"}


def swept(digits: Config, **table: object) -> Config:
    """A configuration with this sweep table, by default `POINTS` under two seeds."""
    tree = digits.model_dump(mode="json", exclude_unset=True)
    tree["sweep"] = {"points": POINTS, "seeds": [0, 1], **table}
    return config_from_tree(tree, origin="test")


class FakeStudents:
    """Stands in for `train_student`: runs that were never trained, with accuracies as wanted."""

    def __init__(self, config: Config) -> None:
        teacher = Run.open(teacher_run_path(config, Dataset.open(config.data_folder)))
        self._like = teacher
        self.trained: list[tuple[str, int]] = []
        self.held_out: Callable[[str, int], float] = lambda *_: 0.5
        self.test: Callable[[str, int], float] = lambda *_: 0.5
        self.fail: dict[tuple[str, int], BaseException] = {}

    def execute(self, config: Config, *, ranks: Ranks, log_result: bool) -> Run:
        assert ranks is ALONE
        settings = config.train_student
        point, seed = RATES[settings.lr], settings.seed
        path = config.runs_folder / f"{point}-s{seed}"
        if not path.exists():
            self.trained.append((point, seed))
            if (point, seed) in self.fail:
                raise self.fail[point, seed]
            self._write(path, point, seed)
        if log_result:
            logging.getLogger("stages.train_student").info("%s: test 12.34 %%", path)
        return Run.open(path)

    def _write(self, path: Path, point: str, seed: int) -> None:
        held_out = self.held_out(point, seed)
        result = self._like.result.model_copy(
            update={
                "id": run_id({"point": point, "seed": seed}, self._like.result.inputs),
                "seed": seed,
                "files": {},
                "held_out_accuracy_mean_of_last": held_out,
                "held_out_accuracy_last": held_out + 0.01,
                "held_out_accuracy_best": held_out + 0.02,
                "test_accuracy": self.test(point, seed),
            }
        )
        path.mkdir(parents=True)
        os.link(self._like.weights, path / WEIGHTS)
        publish_json(path / RESULT, result.model_dump(mode="json"))


@pytest.fixture
def students(digits_copy: Config, monkeypatch: pytest.MonkeyPatch) -> FakeStudents:
    fake = FakeStudents(digits_copy)
    monkeypatch.setattr(train_student, "execute", fake.execute)
    return fake


def table_of(config: Config) -> pl.DataFrame:
    return pl.read_parquet(sweep_folder(config.workspace, config.sweep.name).results)


def folder_of(config: Config) -> Path:
    return config.workspace / "sweeps" / config.sweep.name


def statuses(config: Config) -> dict[tuple[str, int], str]:
    results = folder_of(config) / "results.parquet"
    if not results.exists():
        return {}
    # Its bytes: Polars opens a path twice, and the file may be replaced between.
    table = pl.read_parquet(results.read_bytes())
    return {(row["point"], row["seed"]): row["status"] for row in table.to_dicts()}


def test_a_sweep_goes_on_past_failures_and_tries_only_those_again(digits_copy, students):
    config = swept(digits_copy)
    students.fail = {
        ("a", 1): PipelineError("a mistake was made"),
        ("b", 0): ZeroDivisionError("by\nzero"),
    }
    done = sweep.execute(config)
    assert Counter(students.trained) == Counter((point, seed) for point in "abc" for seed in (0, 1))
    assert (done.num_failed, len(done.rows)) == (2, 6)
    rows = {(row.point, row.seed): row for row in done.rows}
    mistake, bug = rows["a", 1], rows["b", 0]
    assert (mistake.error_type, mistake.error) == ("PipelineError", "a mistake was made")
    assert (bug.error_type, bug.error) == ("ZeroDivisionError", "ZeroDivisionError: by zero")
    assert mistake.traceback is None
    kept = folder_of(config) / bug.traceback
    assert "raise self.fail[point, seed]" in kept.read_text()
    text = as_markdown(done)
    assert "failed: a, seed 1: a mistake was made" in text
    assert f"failed: b, seed 0: ZeroDivisionError: by zero (see {bug.traceback})" not in text

    students.trained.clear()
    students.fail = {("a", 1): students.fail["a", 1]}
    assert sweep.execute(config).num_failed == 1
    assert sorted(students.trained) == [("a", 1), ("b", 0)]
    assert not kept.exists()
    assert Counter(statuses(config).values()) == {"ok": 5, "failed": 1}


@pytest.mark.parametrize("request_to_end", [KeyboardInterrupt(), Terminated("asked to end")])
def test_a_request_to_end_ends_the_sweep_and_is_no_failure(digits_copy, students, request_to_end):
    config = swept(digits_copy)
    students.fail = {("b", 0): request_to_end}
    with pytest.raises(type(request_to_end)):
        sweep.execute(config)
    assert statuses(config) == {("a", 0): "ok"}
    students.fail = {}
    students.trained.clear()
    assert sweep.execute(config).num_failed == 0
    assert ("a", 0) not in students.trained
    assert len(students.trained) == 5


def test_a_sweep_that_is_begun_again_keeps_what_its_table_knew(digits_copy, students):
    """Nothing is lost by a kill right after a new start."""
    config = swept(digits_copy)
    students.fail = {("c", 1): PipelineError("no")}
    sweep.execute(config)
    before = statuses(config)
    shutil.rmtree(digits_copy.runs_folder / "b-s0")
    students.fail = {("b", 0): KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        sweep.execute(config)
    del before["b", 0]  # its run is gone
    assert statuses(config) == before


def test_held_out_images_choose_where_test_images_would_choose_otherwise(
    digits_copy, students, caplog
):
    caplog.set_level(logging.INFO)
    config = swept(digits_copy)
    students.held_out = lambda point, seed: {"a": 0.5, "b": 0.7, "c": 0.6}[point] + seed / 100
    students.test = lambda point, seed: {"a": 0.9, "b": 0.1, "c": 0.8}[point] + seed / 100
    done = sweep.execute(config)
    assert done.chosen.chosen.point == "b"
    assert done.chosen.baseline.point == "a"
    assert done.chosen.chosen.test.mean == pytest.approx(0.105)
    assert done.chosen.test_gain.mean == pytest.approx(-0.8)
    assert done.chosen.held_out_gain.mean == pytest.approx(0.2)
    assert contents(folder_of(config) / "chosen.json") == json.loads(done.chosen.model_dump_json())
    assert not [name for name in table_of(config).columns if "test" in name]
    assert "test 12.34" not in caplog.text, "of each run"
    assert "10.50" not in caplog.text
    text = as_markdown(done)
    assert text.count("10.50") == text.count("90.50") == 1
    assert "80.50" not in text, "of a point that was neither chosen nor the baseline"
    assert "test: chosen minus baseline -80.00 [-80.00, -80.00] points" in text


def test_what_test_images_say_changes_neither_table_nor_choice(digits_copy, students, tmp_path):
    tables = []
    for name, accuracy in (("first", 0.1), ("second", 0.9)):
        config = swept(with_overrides(digits_copy, [f"workspace={tmp_path / name}"]))
        students.test = lambda point, _, accuracy=accuracy: abs(accuracy - ord(point) / 1000)
        students.held_out = lambda point, seed: ord(point) / 200 + seed / 100
        done = sweep.execute(config)
        assert done.chosen.chosen.point == "c"
        tables.append(pq.read_table(folder_of(config) / "results.parquet"))
    assert tables[0].equals(tables[1], check_metadata=True)


@pytest.mark.parametrize(("metric", "best"), [("mean-of-last", "b"), ("last", "b"), ("best", "b")])
def test_a_point_with_a_failed_run_is_not_chosen(digits_copy, students, metric, best):
    config = swept(digits_copy, metric=metric)
    students.held_out = lambda point, _: {"a": 0.5, "b": 0.6, "c": 0.9}[point]
    students.fail = {("c", 1): PipelineError("no")}
    done = sweep.execute(config)
    assert done.chosen.chosen.point == best
    assert done.chosen.metric == done.record.metric


def test_of_equal_points_the_first_is_chosen_and_where_none_is_whole_none(digits_copy, students):
    config = swept(digits_copy)
    assert sweep.execute(config).chosen.chosen.point == "a"
    assert "baseline" in as_markdown(sweep.execute(config))
    students.fail = {(point, 2): PipelineError("no") for point in "abc"}
    done = sweep.execute(swept(digits_copy, seeds=[0, 2]))
    assert done.chosen is None
    assert "No point has all its runs" in as_markdown(done)
    assert not (folder_of(config) / "chosen.json").exists()


def test_parts_make_the_sweep_and_only_the_last_lets_test_images_be_seen(digits_copy, students):
    config = swept(digits_copy)
    students.held_out = lambda point, seed: ord(point) / 200 + seed / 100
    done = sweep.execute(config, Part(points=("c", "a"), seeds=(1,)))
    assert students.trained == [("a", 1), ("c", 1)], "in the order of the sweep"
    assert (done.num_left, done.chosen) == (4, None)
    text = as_markdown(done)
    assert "4 runs of the sweep are left" in text
    assert "| b " not in text
    assert not (folder_of(config) / "chosen.json").exists()
    assert "3 runs: 2 done, 1 left, about" in sweep.preview(config, Part(seeds=(1,)))
    sweep.execute(config, Part(points=("b",)))
    assert sweep.execute(config, Part(seeds=(0,))).chosen.chosen.point == "c"
    assert sorted(students.trained) == [(point, seed) for point in "abc" for seed in (0, 1)]
    parts = pq.read_table(folder_of(config) / "results.parquet")
    (folder_of(config) / "results.parquet").unlink()
    sweep.execute(config)
    assert pq.read_table(folder_of(config) / "results.parquet").equals(parts, check_metadata=True)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part(points=("a", "d")), "--point d: the sweep has no such point (expected a, b, c)."),
        (Part(seeds=(2,)), "--seed 2: the sweep has no such seed (expected 0, 1)."),
    ],
)
def test_a_part_that_does_not_exist_is_rejected_before_anything_runs(
    digits_copy, students, part, message
):
    for command in (sweep.execute, sweep.preview):
        with pytest.raises(ConfigError, match=re.escape(message)):
            command(swept(digits_copy), part)
    assert students.trained == []
    assert not folder_of(swept(digits_copy)).exists()


def test_a_finished_sweep_says_the_same_again_and_leaves_its_table_alone(digits_copy, students):
    config = swept(digits_copy)
    first = as_markdown(sweep.execute(config))
    before = snapshot(digits_copy.workspace)
    assert as_markdown(sweep.execute(config)) == first
    after = snapshot(digits_copy.workspace)
    before.pop(folder_of(config) / "chosen.json")
    assert before.items() <= after.items()
    assert len(students.trained) == 6


def test_the_statistics_of_the_table_are_those_of_its_rows(digits_copy, students):
    config = swept(digits_copy, seeds=[0, 1, 2, 3], baseline="b")
    draw = np.random.default_rng(0)
    values = {(point, seed): draw.uniform() for point in "abc" for seed in range(4)}
    students.held_out = lambda point, seed: values[point, seed]
    students.fail = {("a", 2): PipelineError("no"), ("b", 3): PipelineError("no")}
    sweep.execute(config)
    table = table_of(config)
    assert len(table) == 12
    for point, pairs in (("a", 2), ("b", None), ("c", 3)):
        own = table.filter(pl.col("point") == point)
        for column in own.select(
            pl.selectors.matches("_(mean|std|difference.*)$|num_(ok|failed|pairs)")
        ).columns:
            assert own[column].n_unique() == 1, "repeated in every row of the point"
        row = own.row(0, named=True)
        assert row["num_pairs"] == pairs
        assert row["num_ok"] + row["num_failed"] == 4
        for accuracy in ACCURACIES:
            ok = own.filter(pl.col("status") == "ok")[accuracy].to_numpy()
            assert row[f"{accuracy}_mean"] == pytest.approx(ok.mean(), abs=1e-12)
            assert row[f"{accuracy}_std"] == pytest.approx(ok.std(ddof=1), abs=1e-12)
    for point, seeds in (("a", [0, 1]), ("c", [0, 1, 2])):
        ours, theirs = ([values[name, seed] for seed in seeds] for name in (point, "b"))
        interval = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        row = table.row(by_predicate=(pl.col("point") == point) & (pl.col("seed") == 0), named=True)
        for accuracy in ACCURACIES:
            found = [row[f"{accuracy}_difference{end}"] for end in ("", "_low", "_high")]
            wanted = [np.mean(np.subtract(ours, theirs)), interval.low, interval.high]
            assert found == pytest.approx(wanted, rel=1e-9)
    baseline = table.filter(pl.col("point") == "b")
    assert baseline["is_baseline"].all()
    assert baseline["held_out_best_difference"].null_count() == 4


def test_one_common_seed_gives_no_interval_and_says_so(digits_copy, students):
    config = swept(digits_copy, seeds=[0])
    done = sweep.execute(config)
    assert "+0.00 (one common seed, no interval)" in as_markdown(done)
    row = table_of(config).row(1, named=True)
    assert row["held_out_last_difference"] == 0.0
    assert row["held_out_last_difference_low"] is None
    students.fail = {("a", 1): PipelineError("no")}
    assert "no common seed" in as_markdown(sweep.execute(swept(digits_copy, seeds=[1])))


@pytest.mark.usefixtures("students")
def test_the_axes_are_columns_of_their_types(digits_copy):
    config = swept(
        digits_copy,
        points={"c": POINTS["c"]},
        axes={
            "train_student.distil": [False],
            "train_student.lr": [0.1, 0.2],
            "train_student.epochs": [1],
            "views.count": ["all", 2],
            "select.fraction": ["unset"],
        },
        seeds=[0],
    )
    sweep.execute(config)
    table = pq.read_table(folder_of(config) / "results.parquet")
    kinds = {name: str(table.schema.field(name).type) for name in config.sweep.axes}
    assert list(kinds.values()) == ["bool", "double", "int64", "string", "string"]
    assert table["train_student.lr"].to_pylist() == [None, 0.1, 0.1, 0.2, 0.2]
    assert table["views.count"].to_pylist() == [None, "all", "2", "all", "2"]
    assert table["select.fraction"].to_pylist() == [None] * 5
    assert pl.from_arrow(table).group_by("train_student.lr").len().height == 3


@pytest.mark.usefixtures("students")
def test_points_whose_difference_has_no_effect_are_listed(digits_copy):
    points = {"a": POINTS["a"], "twin": [*POINTS["a"], "train_student.workers=1"]}
    done = sweep.execute(swept(digits_copy, points=points))
    assert "the same runs, so the settings that differ have no effect: a, twin" in as_markdown(done)


@pytest.mark.usefixtures("students")
def test_rows_of_other_settings_are_not_believed(digits_copy):
    config = swept(digits_copy)
    sweep.execute(config)
    assert "6 runs: 6 done, 0 left." in sweep.preview(config)
    changed = with_overrides(config, ["train_student.epochs=2"])
    assert "6 runs: 0 done, 6 left." in sweep.preview(changed)
    assert "9 runs: 6 done, 3 left, about" in sweep.preview(swept(digits_copy, seeds=[0, 1, 2]))


def test_a_dry_run_writes_nothing_and_lists_rejected_points(digits_copy):
    before = snapshot(digits_copy.workspace)
    text = sweep.preview(
        swept(digits_copy, axes={"select.revision": ["none", "wrong"], "select.eta": [0.6]})
    )
    assert "rejected: revision=none eta=0.6: select: eta has no effect with" in text
    assert "8 runs: 0 done, 8 left." in text
    assert "a (baseline)" in text
    assert snapshot(digits_copy.workspace) == before


def test_two_processes_do_not_sweep_one_folder(digits_copy, students):
    config = swept(digits_copy)
    with (
        sweep_folder(config.workspace, "sweep").locked(),
        pytest.raises(PipelineError, match="is being swept by another process"),
    ):
        sweep.execute(config)
    assert students.trained == []


@pytest.mark.usefixtures("students")
@pytest.mark.parametrize("damage", ["bytes", "other table", "no record"])
def test_a_damaged_table_is_rejected_in_one_line(digits_copy, damage):
    config = swept(digits_copy)
    sweep.execute(config)
    path = folder_of(config) / "results.parquet"
    if damage == "bytes":
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 0xFF
        replace_bytes(path, bytes(data))
    elif damage == "other table":
        pq.write_table(pq.read_table(next(config.selections_folder.glob("*.parquet"))), path)
    else:
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(ArtefactMismatch) as refusal:
        sweep.execute(config)
    assert "\n" not in str(refusal.value)
    assert f"Remove {path} and run `heartcut sweep` again" in str(refusal.value)


def taught(digits: Config, *, seeds: tuple[int, ...] = (0, 1)) -> Config:
    axes = {"views.count": [1, 2], "select.strategy": ["all", "correct"]}
    return swept(digits, points={}, axes=axes, seeds=seeds)


def test_what_points_share_is_computed_once_and_a_failed_teacher_fails_its_points_alone(
    digits_copy, students, monkeypatch
):
    cached, selected = [], []

    def cache(config: Config, **_: object) -> None:
        cached.append(config.views.count)
        if config.views.count == 1:
            raise PipelineError("the teacher is ill")

    def choose(config: Config, **_: object) -> None:
        selected.append((config.views.count, config.select.strategy))

    monkeypatch.setattr(cache_teacher, "execute", cache)
    monkeypatch.setattr(select, "execute", choose)
    done = sweep.execute(taught(digits_copy))
    assert cached == [1, 2]
    assert selected == [(2, "all"), (2, "correct")]
    failed = {row.point for row in done.rows if row.error == "the teacher is ill"}
    assert failed == {"count=1 strategy=all", "count=1 strategy=correct"}
    assert done.num_failed == 4
    assert students.trained == [("a", 0), ("a", 1)], "which the other point finds"


@pytest.mark.usefixtures("students")
@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        (["train_student.distil=false"], []),
        ([], ["train_teacher", "cache_teacher", "select"]),
        (["select.cache=elsewhere"], ["select"]),
        (["train_student.selection=a.parquet"], []),
        (
            ["train_student.selection=a.parquet", "train_student.method=fitnet"],
            ["train_teacher", "cache_teacher"],
        ),
        (
            ["select.cache=elsewhere", "train_student.online=true"],
            ["train_teacher", "select"],
        ),
        (
            ["cache_teacher.checkpoint=a.pt", "cache_teacher.arch=resnet20"],
            ["cache_teacher", "select"],
        ),
    ],
    ids=str,
)
def test_a_student_gets_the_stages_that_it_needs_and_no_others(
    digits_copy, monkeypatch, overrides, stages
):
    ran = []
    for module in (train_teacher, cache_teacher, select):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "execute", lambda *_, name=name, **__: ran.append(name))
    sweep.execute(swept(digits_copy, points={"a": overrides}, seeds=[0]))
    assert ran == stages


def test_the_time_that_is_left_is_that_of_each_point():
    def row(point: str, seconds: float | None) -> SweepRow:
        return SweepRow(point=point, seed=0, settings="", status=OK, seconds=seconds)

    rows = [row("a", 10.0), row("a", 20.0), row("b", 60.0), row("c", None)]
    assert seconds_left(rows, ["a", "a", "b", "d"]) == 15.0 + 15.0 + 60.0 + 30.0
    assert seconds_left(rows, []) == 0
    assert seconds_left([], ["a"]) is None


def test_a_sweep_that_is_ill_formed_runs_nothing(digits_copy, students):
    with pytest.raises(ConfigError, match="did you mean"):
        sweep.execute(swept(digits_copy, points={**POINTS, "d": ["select.etaa=1"]}))
    assert students.trained == []
    assert not folder_of(digits_copy).exists()


def real(digits: Config, **table: object) -> Config:
    """Real students: plain, from two caches, and one that diverges."""
    points = {
        "plain": ["train_student.distil=false"],
        "diverges": ["train_student.distil=false", "train_student.lr=1e30"],
    }
    axes = {"views.count": [1, 2], "select.strategy": ["correct"]}
    return swept(digits, **{"points": points, "axes": axes, "seeds": [0], **table})


def test_real_students_of_two_caches_and_one_that_diverges(digits_copy):
    config = real(digits_copy)
    caches = set(config.caches_folder.glob("*/sealed.json"))
    done: Sweep = sweep.execute(config)
    made = set(config.caches_folder.glob("*/sealed.json")) - caches
    assert len(made) == 1, "of one view; two were there"
    rows = {row.point: row for row in done.rows}
    assert rows.pop("diverges").error.startswith("the training loss became")
    for row in rows.values():
        result = Run.open(config.workspace / row.run_path).result
        assert (row.run_id, row.seed) == (result.id, 0)
        assert row.held_out_last == result.held_out_accuracy_last
        assert row.num_distilled == result.num_distilled
        assert (row.num_distilled > 0) == (row.point != "plain")
        assert row.seconds == result.cost.seconds > 0
    assert rows["count=1 strategy=correct"].run_id != rows["count=2 strategy=correct"].run_id
    best = max(rows.values(), key=lambda row: row.held_out_mean_of_last)
    assert done.chosen.chosen.point == best.point


def test_a_student_hides_its_test_accuracy_when_asked(digits_copy, caplog):
    caplog.set_level(logging.INFO)
    config = with_overrides(digits_copy, POINTS["a"])
    for _ in ("trained", "found"):
        run = train_student.execute(config, log_result=False)
        assert str(run.path) not in caplog.text
    train_student.execute(config)
    assert (
        f"{run.path} exists, nothing to do: test accuracy {100 * run.result.test_accuracy:.2f} %"
        in caplog.text
    )
    caplog.clear()
    shutil.rmtree(run.path)
    train_student.execute(config)
    assert f"{run.path}: test accuracy {100 * run.result.test_accuracy:.2f} %" in caplog.text


def finished(config: Config) -> dict[Path, tuple[int, int]]:
    """Inode and time of every file of the runs that the table has."""
    results = folder_of(config) / "results.parquet"
    if not results.exists():
        return {}
    paths = [config.workspace / path for path in pl.read_parquet(results)["run_path"].drop_nulls()]
    files = [file for path in paths for file in path.iterdir()]
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(server, digits_copy, tiny_toml, tmp_path):
    """By the command as it is typed; `Terminated` above is what SIGTERM becomes."""
    points = {"broken": ["train_student.arch=resnet9"], **POINTS}
    config = swept(digits_copy, points=points)
    file = tmp_path / "sweep.toml"
    file.write_text(
        f'workspace = "{digits_copy.workspace}"\n{tiny_toml.read_text()}\n'
        '[sweep]\nseeds = [0, 1]\nbaseline = "a"\n[sweep.points]\n'
        + "".join(f"{name} = {json.dumps(overrides)}\n" for name, overrides in points.items())
    )
    running = server.start(tmp_path / "output", "sweep", file)
    while running.is_running and len(statuses(config)) < 2:
        time.sleep(0.02)
    running.signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    known = finished(config)
    assert len(known) > 0, "the table can be read"
    done = heartcut("sweep", file)
    assert done.code == 5, "a run failed"
    assert known.items() <= finished(config).items(), "finished runs are left alone"
    assert Counter(statuses(config).values()) == {"ok": 6, "failed": 2}
    assert "failed: broken, seeds 0, 1: architecture is unknown: 'resnet9'" in done.out
    assert heartcut("sweep", file).out == done.out
    assert "8 runs: 6 done, 2 left" in heartcut("sweep", file, "--dry-run").out
