"""The page on the demo: its tables are the stored results, and these are of today's demo."""

import re

import pandas as pd
import pytest
import scipy.stats

from benchmarks.study import demo, demo_tables
from scripts.demo_images import COUNTS, NOISE, SEED, TRAIN
from stages.config.file import load_config
from tests.support.documentation import cells_of

NUMBER = re.compile(r"[+-]?\d+\.\d+")


def numbers(cell: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(cell)]


@pytest.fixture(scope="module")
def shown() -> pd.DataFrame:
    """Test accuracies in per cent: a row for each split and seed, a column for each variant."""
    frame = demo_tables.results("students")
    return 100 * frame.pivot_table(
        index=["split", "seed"], columns="variant", values="test_accuracy"
    )


def test_the_page_shows_the_stored_results():
    text = demo_tables.PAGE.read_text()
    command = "python -m benchmarks.study.demo render"
    assert demo_tables.rendered(text) == text, f"run `{command}`"


def test_the_table_of_students_agrees_with_numpy_and_scipy(shown):
    _, rows = cells_of(demo_tables.students(demo_tables.results("students")))
    assert [int(row[0]) for row in rows] == list(demo.SHOWN)
    for split, _, *cells in rows:
        own = shown.loc[int(split)]
        revision = own["label revision"]
        for cell, variant in zip(cells[:3], demo_tables.VARIANTS, strict=True):
            assert numbers(cell) == pytest.approx(
                [own[variant].mean(), own[variant].std()], abs=0.0051
            )
        for cell, variant in zip(cells[3:], ("no teacher", "KD"), strict=True):
            gain = revision - own[variant]
            interval = scipy.stats.ttest_1samp(gain, 0.0).confidence_interval(0.95)
            assert numbers(cell) == pytest.approx([gain.mean(), *interval], abs=0.0051)


@pytest.mark.parametrize("split", demo.SHOWN)
def test_label_revision_gives_the_best_students_on_every_split(shown, split):
    means = shown.loc[split].mean()
    assert means.idxmax() == "label revision"


@pytest.mark.parametrize("other", ["no teacher", "KD"])
@pytest.mark.parametrize("split", demo.SHOWN)
def test_the_gain_of_label_revision_is_clear_on_every_split(shown, split, other):
    own = shown.loc[split]
    gain = own["label revision"] - own[other]
    assert scipy.stats.ttest_1samp(gain, 0.0).confidence_interval(0.95).low > 0


def test_the_stored_results_are_of_the_demo_as_it_is():
    config = load_config(demo.CONFIG)
    frame = demo_tables.results("students")
    assert set(frame["split"]) == set(demo.SHOWN)
    assert demo.SHOWN[0] == SEED
    assert set(frame["seed"]) == set(config.compare.seeds)
    assert list(config.compare.variants) == list(demo_tables.VARIANTS)
    assert not frame.duplicated(["split", "variant", "seed"]).any()
    for variant, own in frame.groupby("variant"):
        assert set(own["settings"]) == {demo.settings_of(config, variant)}, "run the demo again"


def test_the_settings_were_chosen_on_splits_that_are_not_shown():
    config = load_config(demo.CONFIG).train_student
    for name in ("baseline", "images"):
        assert set(demo_tables.results(name)["split"]) == set(demo.OTHERS)
    assert not set(demo.OTHERS) & set(demo.SHOWN)
    schedules = demo_tables.results("baseline").groupby(["lr", "epochs"])["test_accuracy"].mean()
    assert schedules.idxmax() == (config.lr, config.epochs), "tune the rate again"
    assert (NOISE, COUNTS[TRAIN]) == picked(demo_tables.results("images"))


def picked(frame: pd.DataFrame) -> tuple[float, int]:
    """The noise and number of images at which the smaller of the two gains is largest."""
    means = frame.pivot_table(index=["noise", "images"], columns="variant", values="test_accuracy")
    steps = means[[*demo_tables.VARIANTS]].diff(axis=1).iloc[:, 1:]
    return steps.min(axis=1).idxmax()
