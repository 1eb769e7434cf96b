"""The verdict, the table and the charts of students whose numbers are known."""

import csv
import io
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from pipeline.artefacts.run import Cost, Inputs, Run, RunResult
from stages.report.answers import answers_section, calibration_chart
from stages.report.confusion import confusion_chart, confusion_list, confusions
from stages.report.cost import cost_section
from stages.report.download import as_csv
from stages.report.noise import (
    TOO_SHORT,
    binomial_gain,
    detectable_points,
    gain_over,
    rate_text,
    seconds_text,
)
from stages.report.subjects import Subjects, references
from stages.report.svg_charts import COLOURS, INK
from stages.report.tables import comparison_section
from stages.report.verdict import parameters_text, verdict
from stages.run_groups import Group

NUM_TEST = 700


@pytest.fixture
def student(tmp_path: Path):
    """Make a student with a run for each seed."""

    def make(name: str, *accuracies: float, distilled: bool = True, **changes: object) -> Group:
        runs = tuple(
            run_of(tmp_path / f"{name}-{seed}", accuracy, seed, distilled=distilled, **changes)
            for seed, accuracy in enumerate(accuracies)
        )
        return Group(name=name, runs=runs)

    return make


def run_of(path: Path, accuracy: float, seed: int, *, distilled: bool, **changes: object) -> Run:
    path.mkdir()
    (path / "config.toml").write_text(f"distil = {str(distilled).lower()}\n")
    (path / "model.safetensors").write_bytes(bytes(310_000))
    result = RunResult(
        id=path.name,
        weights_sha256="",
        arch="resnet8a",
        num_parameters=75_290,
        seed=seed,
        inputs=Inputs(
            dataset="d", cache="c" if distilled else None, soft_labels=None, selection=None
        ),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        held_out="h",
        num_training_samples=100,
        held_out_accuracy_last=accuracy,
        held_out_accuracy_best=accuracy,
        best_epoch=1,
        held_out_accuracy_mean_of_last=accuracy,
        mean_of_last=1,
        test_accuracy=accuracy,
        test_loss=0.3,
        test_calibration_error=0.02,
        teacher_agreement_held_out=None,
        teacher_agreement_test=None,
        num_distilled=100 if distilled else 0,
        method="kd" if distilled else None,
        online=False,
        cost=Cost(
            seconds=4.0, training_images_per_second=2000.0, teacher_forwards_saved=100, device="CPU"
        ),
        versions={},
    )
    return Run(path=path, result=result.model_copy(update=changes))


def teacher_of(accuracy: float | None, *, seconds: float = 3.0) -> SimpleNamespace:
    """A stand-in for the facts about a teacher."""
    summary = SimpleNamespace(accuracy_training=[accuracy], seconds=seconds)
    return SimpleNamespace(
        test=None if accuracy is None else SimpleNamespace(summary=summary),
        cache=SimpleNamespace(summary=summary, num_bytes=1_000_000),
        size=SimpleNamespace(num_parameters=270_000, num_bytes=1_080_000),
        held_out_accuracy=0.9,
        num_forwards=1000,
        images_per_second=1000 / seconds,
    )


def subjects_of(*groups: Group, teacher: SimpleNamespace | None = None, **changes: object):
    given = {
        "groups": groups,
        "compared": references(groups, ()),
        "teacher": teacher,
        "answers": None,
        "num_test": NUM_TEST,
        "num_held_out": 15,
        "class_names": ("a", "b", "c"),
    }
    return Subjects(**{**given, **changes})


def test_a_clear_gain_is_the_first_sentence(student):
    plain = student("no teacher", 0.88, 0.89, 0.885, distilled=False)
    subjects = subjects_of(
        plain, student("label revision", 0.91, 0.92, 0.915), teacher=teacher_of(0.92)
    )
    found = verdict(subjects)
    assert found.sentence == (
        "label revision reaches 91.5 % on the test images, 3.0 points above no teacher, "
        "a clear gain."
    )
    assert "0.5 points below it, which is within noise" in found.detail
    assert "Between students it is that of 3 paired seeds." in found.detail
    assert "Against the teacher it is the binomial error of 700 test images." in found.detail
    accuracy, size, time = found.tiles
    assert accuracy.value == "91.5 %"
    assert accuracy.lines == (
        "label revision, mean of 3 seeds",
        "+3.0 points against no teacher, clear",
        "-0.5 points against the teacher, within noise",
    )
    assert size.value == "75.3 k parameters"
    assert size.lines[0] == "resnet8a, 0.31 MB"
    assert size.lines[-1] == "3.6 times smaller than the teacher"
    assert time.value == "4.0 s"
    assert "teacher's pass, once for all students: 3.0 s" in time.lines


def test_a_gain_that_seeds_do_not_share_is_noise(student):
    plain = student("no teacher", 0.90, 0.88, 0.89, distilled=False)
    found = verdict(subjects_of(plain, student("KD", 0.89, 0.90, 0.895)))
    assert "0.5 points above no teacher, which is within noise." in found.sentence


def test_a_loss_by_distillation_is_not_hidden(student):
    plain = student("no teacher", 0.98, 0.981, 0.979, distilled=False)
    found = verdict(subjects_of(plain, student("KD", 0.87, 0.871, 0.869)))
    assert found.sentence.startswith("Training without a teacher is best, with 98.0 %")
    assert "KD, is 11.0 points below that, a clear loss." in found.sentence
    assert "best distilled student: 87.0 %" in found.tiles[0].lines


@pytest.mark.parametrize(("accuracy", "word"), [(0.91, "within noise"), (0.95, "a clear gain")])
def test_one_seed_is_judged_by_the_binomial_error(student, accuracy, word):
    plain = student("no teacher", 0.90, distilled=False)
    found = verdict(subjects_of(plain, student("KD", accuracy)))
    assert word in found.sentence
    assert "The interval is the binomial error of 700 test images." in found.detail


def test_students_alone_have_no_gain(student):
    alone = verdict(subjects_of(student("resnet8a, KD", 0.9)))
    assert alone.sentence == '"resnet8a, KD" reaches 90.0 % on the test images.'
    assert "the gain from distillation is not known" in alone.detail
    plain = verdict(subjects_of(student("no teacher", 0.9, distilled=False)))
    assert "No student was distilled" in plain.detail


def test_the_teacher_that_saw_no_test_images_is_not_compared(student):
    found = verdict(subjects_of(student("KD", 0.9), teacher=teacher_of(None)))
    assert "the teacher was not run on the test images" in found.tiles[0].lines
    assert "The teacher reaches" not in found.detail


def test_another_choice_by_held_out_samples_is_named(student):
    first = student("KD", 0.90, held_out_accuracy_mean_of_last=0.99)
    found = verdict(subjects_of(first, student("label revision", 0.91)))
    assert "By accuracy on the 15 held-out samples, KD is best." in found.detail


def test_the_baseline_has_the_architecture_of_the_best_student(student):
    large = student("large", 0.99, distilled=False, arch="resnet20a")
    small = student("small", 0.88, distilled=False)
    subjects = subjects_of(large, small, student("KD", 0.90))
    assert subjects.untaught is small
    assert verdict(subjects).sentence == (
        "large reaches 99.0 % on the test images, without a teacher. The best distilled student, "
        "KD, is 2.0 points above no teacher of its network, which is within noise."
    )


def test_the_binomial_error_is_that_of_two_shares():
    gain = binomial_gain(0.9, 0.8, num_test=1000)
    expected = 1.96 * ((0.9 * 0.1 + 0.8 * 0.2) / 1000) ** 0.5
    assert gain.mean == pytest.approx(0.1)
    assert gain.high - gain.mean == pytest.approx(expected, rel=0.01)
    assert detectable_points(1.0, num_test=100) > 0.0
    widths = [detectable_points(0.9, num_test=num) for num in (100, 1000, 10_000)]
    assert widths == sorted(widths, reverse=True)


def test_the_interval_is_that_of_common_seeds(student):
    gain = gain_over(student("KD", 0.9, 0.91), student("other", 0.8, 0.81, 0.5), num_test=NUM_TEST)
    assert gain.num_pairs == 2
    assert gain.mean == pytest.approx(0.1)


def test_short_times_and_rates_are_not_shown(student):
    assert seconds_text(0.4) == rate_text(100, 0.4) == TOO_SHORT
    assert [seconds_text(seconds) for seconds in (1.0, 12.0, 120.0, 7200.0)] == [
        "1.0 s",
        "12 s",
        "2 min",
        "2 h 0 min",
    ]
    cost = Cost(seconds=0.2, training_images_per_second=9.0, teacher_forwards_saved=100, device="")
    short = student("KD", 0.9, cost=cost)
    subjects = subjects_of(short, teacher=teacher_of(0.9, seconds=0.3))
    assert verdict(subjects).tiles[2].value == "Too short to measure"
    section = cost_section(subjects)
    facts = dict(section.facts)
    assert facts["teacher's pass"] == facts["a teacher in the loop would add"] == TOO_SHORT
    assert facts["break-even"] == "10 students"
    (table,) = section.tables
    assert [cell.text for cell in table.rows[0].cells][1:3] == [TOO_SHORT, TOO_SHORT]


def test_the_best_value_of_a_column_is_marked(student):
    plain = student("no teacher", 0.88, 0.89, distilled=False, test_calibration_error=0.01)
    subjects = subjects_of(plain, student("KD", 0.91, 0.92), teacher=teacher_of(0.99))
    (table,) = comparison_section(subjects).tables
    marks = {
        row.name: [
            name for name, cell in zip(table.header[1:], row.cells, strict=True) if cell.is_best
        ]
        for row in table.rows
    }
    assert marks == {
        "no teacher": ["calibration error"],
        "KD": ["test", "held out, mean of last 1"],
        "teacher": [],
    }
    (alone,) = comparison_section(subjects_of(plain)).tables
    assert not any(cell.is_best for row in alone.rows for cell in row.cells)


def test_the_teacher_has_a_row_and_differences(student):
    plain = student("no teacher", 0.88, 0.89, distilled=False)
    (table,) = comparison_section(subjects_of(plain, teacher=teacher_of(0.95))).tables
    row = {row.name: row for row in table.rows}["teacher"]
    assert row.colour == INK
    assert row.cells[0].text == "95.00"
    assert row.cells[1].text.startswith("+6.50 [")
    assert row.cells[1].note == "clear"


def test_everyone_has_one_colour(student):
    groups = [student(name, 0.9) for name in ("KD", "label revision", "swap")]
    subjects = subjects_of(*groups)
    assert [subjects.colour_of(group.name) for group in groups] == list(COLOURS[:3])
    many = [student(f"{number:02d}", 0.5 + number / 100) for number in range(12)]
    colours = [subjects_of(*many).colour_of(group.name) for group in many]
    assert sorted(filter(None, colours)) == sorted(COLOURS)
    assert colours[:5] == [""] * 5


def test_the_file_has_the_numbers_unrounded(student):
    accuracies = (0.8812345, 0.8898765)
    plain = student("no teacher", *accuracies, distilled=False)
    subjects = subjects_of(plain, student("=cmd()", 0.91, 0.92), teacher=teacher_of(0.95))
    lines = list(csv.DictReader(io.StringIO(as_csv(subjects))))
    assert [line["student"] for line in lines] == ["no teacher", "'=cmd()", "teacher"]
    first, second, teacher = lines
    assert float(first["test_accuracy_mean"]) == pytest.approx(fmean(accuracies), rel=1e-12)
    difference = float(second["test_accuracy_minus no teacher"])
    assert difference == pytest.approx(0.915 - fmean(accuracies))
    assert float(teacher["test_accuracy_mean"]) == 0.95
    assert float(teacher["num_parameters"]) == 270_000
    assert teacher["seconds"] == ""


def frame_of(confidence: list[float], *, right: bool = True) -> pd.DataFrame:
    label = np.zeros(len(confidence), dtype=np.int64)
    predicted = label if right else label + 1
    return pd.DataFrame(
        {"label": label, "predicted": predicted, "confidence": np.array(confidence, dtype="f4")}
    )


def test_bins_of_fewer_than_ten_images_are_not_drawn(student):
    one, two = student("one", 0.9), student("two", 0.9, 0.9)
    subjects = subjects_of(one, two)
    nine = {"one": frame_of([0.55] * 9), "two": frame_of([0.55] * 19)}
    assert calibration_chart(nine, subjects, None) is None
    ten = {"one": frame_of([0.55] * 10), "two": frame_of([0.55] * 19)}
    chart = calibration_chart(ten, subjects, None)
    assert COLOURS[0] in chart.svg
    assert len(chart.legend) == 2


def predictions(labels: list[int], predicted: list[int]) -> pd.DataFrame:
    return pd.DataFrame({"label": labels, "predicted": predicted, "confidence": 0.9})


def test_classes_are_sorted_by_their_difference(student):
    plain, taught = student("no teacher", 0.8, distilled=False), student("KD", 0.9)
    labels = [0, 0, 1, 1, 2, 2]
    frames = {
        "no teacher": predictions(labels, [0, 0, 1, 0, 0, 0]),
        "KD": predictions(labels, [1, 1, 1, 0, 2, 2]),
    }
    section = answers_section(frames, subjects_of(plain, taught))
    chart = section.charts[0]
    assert chart.title == "Accuracy by class, minus no teacher"
    assert [key.name for key in chart.legend] == ["KD"]
    places = [chart.svg.index(f">{name}</text>") for name in ("c", "b", "a")]
    heights = [float(chart.svg[:place].rpartition('y="')[2].partition('"')[0]) for place in places]
    assert heights == sorted(heights)
    assert section.charts[1].title == "Confusion matrix, KD"


def test_a_student_alone_has_its_accuracy_by_class(student):
    frames = {"KD": predictions([0, 1, 2], [0, 1, 0])}
    section = answers_section(frames, subjects_of(student("KD", 0.9)))
    assert section.charts[0].title == "Accuracy by class"
    assert "accuracy, %" in section.charts[0].svg


def test_confusions_are_counted_by_label():
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1])
    found = confusions(labels, predicted, num_classes=3, name="KD")
    assert found.counts.tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]
    assert found.shares[2].tolist() == [0.0, 0.0, 0.0]
    svg = confusion_chart(found, ["<script>", "b", "c"]).svg
    assert "<script>" not in svg
    assert svg.count("<rect") == 4  # three cells and the frame
    assert ">67</text>" in svg
    table = confusion_list(found, ["a", "b", "c"]).table
    assert [(row.name, *(cell.text for cell in row.cells)) for row in table.rows] == [
        ("a", "b", "66.7 %")
    ]


def test_of_many_classes_the_most_frequent_mistakes_are_listed(student):
    names = tuple(f"class {number}" for number in range(100))
    labels = np.arange(100).repeat(3)
    frames = {"KD": predictions(labels.tolist(), ((labels + 1) % 100).tolist())}
    section = answers_section(frames, subjects_of(student("KD", 0.9), class_names=names))
    by_class, mistakes = section.charts
    assert len(mistakes.table.rows) == 12
    assert "class 99" in by_class.svg


@pytest.mark.parametrize(
    ("number", "text"),
    [(950, "950"), (75_290, "75.3 k"), (1_250_000, "1.25 M"), (3e9, "3 billion")],
)
def test_parameters_are_counted_in_three_digits(number, text):
    assert parameters_text(int(number)) == text
