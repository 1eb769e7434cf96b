"""Comparisons: named points on the engine of a sweep that stop at the first failure."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pipeline.artefacts import comparison
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Run
from pipeline.errors import PipelineError
from pipeline.methods.paired_differences import paired_difference
from pipeline.runtime.ranks import ALONE
from stages import cache_teacher, compare, select, train_student
from stages.config.file import config_from_tree, with_overrides
from stages.config.root import Config
from stages.identities import teacher_run_path
from stages.sweep.tasks import Students
from tests.support.rank_processes import exit_codes
from tests.support.workspaces import contents

STORED = {
    "format": "heartcut.comparison",
    "variants": [
        {"name": "plain", "runs": ["runs/student-s0-1a2b", "runs/student-s1-3c4d"]},
        {"name": "KD", "runs": ["runs/student-s0-5e6f"]},
    ],
    "version": 1,
}
"""As every version of heartcut has written it."""


def compared(digits: Config, **table: object) -> Config:
    tree = digits.model_dump(mode="json", exclude_unset=True)
    variants = {"a": ["train_student.lr=0.1"], "b": ["train_student.lr=0.2"]}
    tree["compare"] = {"variants": variants, "seeds": [0, 1], **table}
    return config_from_tree(tree, origin="test")


def test_a_failing_run_stops_the_comparison_with_its_own_error(digits_copy, monkeypatch):
    config = compared(digits_copy)
    teacher = Run.open(teacher_run_path(config, Dataset.open(config.data_folder)))
    trained = []

    def train(config: Config, **options: object) -> Run:
        assert options == {"ranks": ALONE, "log_result": False}
        trained.append((config.train_student.lr, config.train_student.seed))
        if trained[-1] == (0.1, 1):
            raise PipelineError("a mistake was made")
        return teacher

    monkeypatch.setattr(train_student, "execute", train)
    with pytest.raises(PipelineError, match=r"^a mistake was made$"):
        compare.execute(config)
    assert trained == [(0.1, 0), (0.1, 1)], "variant by variant, and nothing after the failure"
    assert comparison.read(config.workspace) == {}


def result_of(seed: int, accuracy: float) -> Run:
    result = SimpleNamespace(seed=seed, test_accuracy=accuracy)
    return cast(Run, SimpleNamespace(result=result))


@pytest.mark.parametrize("last", ["label revision + selection", "a" * 70], ids=["usual", "long"])
def test_the_table_has_at_most_80_columns_and_paired_differences(last):
    accuracies = {
        "no teacher": (0.981, 0.979, 0.983),
        "KD": (0.868, 0.858, 0.882),
        last: (0.991, 0.987, 0.995),
    }
    runs = {
        name: [result_of(seed, value) for seed, value in enumerate(values)]
        for name, values in accuracies.items()
    }
    found = compare.Comparison(
        runs=runs,
        baselines={"no teacher": "no teacher", "KD": "KD"},
        teacher="resnet20a, test accuracy 91.54 %",
        workspace=Path("work"),
    )
    lines = compare.as_text(found).splitlines()
    assert max(map(len, lines)) <= 80
    (kd,) = [line for line in lines if line.startswith("KD ")]
    expected = paired_difference(
        dict(enumerate(accuracies["KD"])), dict(enumerate(accuracies["no teacher"]))
    )
    numbers = [100 * float(value) for value in (expected.mean, expected.low, expected.high)]
    assert kd.split()[1:] == [
        *("3", "86.93", "±", "1.21"),
        f"{numbers[0]:+.2f}",
        f"[{numbers[1]:.2f},",
        f"{numbers[2]:.2f}]",
        "-",
    ]


def test_one_seed_has_no_interval_and_a_missing_baseline_no_column():
    found = compare.Comparison(
        runs={"a": [result_of(0, 0.5)], "KD": [result_of(0, 0.6)]},
        baselines={"KD": "KD"},
        teacher="t",
        workspace=Path("work"),
    )
    lines = [line.split() for line in compare.as_text(found).splitlines()[1:4]]
    assert lines == [
        ["student", "seeds", "accuracy", "KD"],
        ["a", "1", "50.00", "-10.00"],
        ["KD", "1", "60.00", "-"],
    ]


@pytest.mark.parametrize(
    ("variants", "baselines"),
    [
        ({"x": ["train_student.distil=false"]}, {"no teacher": "x"}),
        ({"x": [], "y": ["select.revision=none", "select.strategy=all"]}, {"KD": "y"}),
        ({"x": ["select.revision=none"], "y": ["select.strategy=all"]}, {}),
        ({"x": ["select.revision=none", "select.strategy=all", "train_student.method=nkd"]}, {}),
    ],
)
def test_baselines_are_found_by_their_settings(variants, baselines):
    configs = {name: with_overrides(Config(), overrides) for name, overrides in variants.items()}
    assert compare._baselines(configs) == baselines


def test_two_ranks_compare_together(digits_copy, tmp_path):
    config = compared(digits_copy, seeds=[0])
    codes = exit_codes(
        lambda ranks: compare.execute(config, ranks=ranks), world=2, folder=tmp_path / "ranks"
    )
    assert codes == [0, 0]
    runs = comparison.read(config.workspace)
    assert list(runs) == ["a", "b"]
    for own in runs.values():
        (run,) = map(Run.open, own)
        assert run.result.cost.device.endswith("2 processes")


def test_what_variants_share_is_computed_once(digits_copy, monkeypatch):
    made = []
    for stage in (cache_teacher, select):
        name, execute = stage.__name__, stage.execute
        monkeypatch.setattr(
            stage,
            "execute",
            lambda *given, name=name, execute=execute, **options: (
                made.append(name),
                execute(*given, **options),
            ),
        )
    compare.execute(compared(digits_copy))
    assert made == ["stages.cache_teacher", "stages.select"]


def test_what_failed_once_fails_for_all_that_share_it_and_is_not_tried_again(
    digits_copy, monkeypatch
):
    tried = []

    def fail(config: Config, **_: object) -> None:
        tried.append(config)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cache_teacher, "execute", fail)
    students = Students(ranks=ALONE, log_results=False)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="a bug") as raised:
            students.train(digits_copy)
        assert raised.traceback[-1].name == "fail"
    assert len(tried) == 1


def test_the_stored_names_are_those_of_every_version(tmp_path):
    (tmp_path / comparison.FILE).write_text(json.dumps(STORED))
    runs = comparison.read(tmp_path)
    assert runs["KD"] == [tmp_path / "runs/student-s0-5e6f"]
    assert list(runs) == ["plain", "KD"]
    (tmp_path / comparison.FILE).unlink()
    comparison.write(tmp_path, runs)
    assert contents(tmp_path / comparison.FILE) == STORED
