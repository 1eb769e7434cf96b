"""Explanations of a selection: the text agrees with the table, for every kind of sample."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.artefacts.cache.index import recall
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.selection import COLUMNS, SelectionTable, write
from pipeline.errors import ConfigError
from pipeline.provenance import short
from stages import cache_teacher, prepare, select, train_teacher
from stages.config.file import with_overrides
from stages.config.root import Config
from stages.identities import cache_request
from tests.support.image_folders import CLASSES, save_folder, save_split, textures
from tests.support.workspaces import snapshot

FOLDER = [
    "prepare.source=folder",
    "prepare.test_fraction=unset",
    "train_teacher.batch_size=16",
    "train_teacher.fraction=unset",
    "train_teacher.epochs=6",
    "select.influence.l2=0.01",
]


@pytest.fixture(scope="module")
def config(digits, tmp_path_factory) -> Config:
    """90 images of three classes with names, 60 of them in the cache."""
    folder = tmp_path_factory.mktemp("explain")
    images = save_folder(folder / "cached-images", train=60)
    more = Path(shutil.copytree(images, folder / "images"))
    save_split(folder / "extra", textures(30, seed=7))
    for path in sorted((folder / "extra").rglob("*.png")):
        path.rename(more / "train" / path.parent.name / f"extra-{path.name}")

    def settings(name: str, source: Path, *changes: str) -> Config:
        tree = digits.model_dump(exclude_unset=True)
        tree |= {"prepare": {"source": "folder", "path": source}}
        base = Config.model_validate(tree)
        return with_overrides(base, [f"workspace={folder / name}", *FOLDER, *changes])

    small = settings("small", images)
    prepare.execute(small)
    train_teacher.execute(small)
    cache_teacher.execute(small)
    dataset = Dataset.open(small.data_folder)
    cache = recall(small.caches_folder, request=cache_request(small, dataset), split="train")
    whole = settings("whole", more, f"select.cache={small.caches_folder / short(cache)}")
    prepare.execute(whole)
    return whole


@pytest.fixture(scope="module")
def table(config) -> SelectionTable:
    return select.execute(config)


@pytest.fixture
def edited(config, table, tmp_path):
    """The same table with other numbers in it, in a workspace of its own."""
    workspace = tmp_path / "work"
    workspace.mkdir()
    (workspace / "data").symlink_to(config.data_folder)
    shutil.copytree(config.selections_folder, workspace / "selections")
    path = workspace / "selections" / table.path.name

    def explanation(row: int, **values: object) -> str:
        frame = table.frame.copy()
        for name, value in values.items():
            frame.loc[row, name] = value
        columns = {name: frame[name].to_numpy() for name in COLUMNS if name != "label_issue"}
        missing = frame["label_issue"].isna().to_numpy()
        issues = frame["label_issue"].fillna(False).to_numpy(dtype=bool)
        columns["label_issue"] = np.ma.masked_array(issues, mask=missing)
        write(path, record=table.record, columns=columns)
        changed = with_overrides(config, [f"workspace={workspace}"])
        return unwrapped(select.explain(changed, [row]))

    return explanation


def unwrapped(text: str) -> str:
    return re.sub(r"\n {20}|\n {2}(?=\S+ \S+\Z)", " ", text)


def candidate(frame: pd.DataFrame) -> int:
    return int(np.flatnonzero(frame["rank"] >= 0)[0])


def test_every_sample_is_explained_in_80_columns_of_plain_text(config, table):
    text = select.explain(config, range(len(table.frame)))
    first, *others = text.splitlines()
    assert first == str(table.path)
    assert max(map(len, others)) <= 80
    assert text.isascii() or not str(table.path).isascii()
    assert text.count("\nsample ") == len(table.frame)
    assert "nan" not in text.removeprefix(first)


def test_the_explanation_agrees_with_the_table(config, table):
    frame = table.frame
    texts = unwrapped(select.explain(config, range(len(frame)))).split("\n\nsample ")[1:]
    kinds = set()
    for index, (text, row) in enumerate(zip(texts, frame.itertuples(), strict=True)):
        assert text.startswith(f"{index}: ")
        assert f"label             {row.label} ({CLASSES[row.label]})" in text
        headline = text.splitlines()[0]
        if row.held_out:
            kinds.add("held out")
            assert "held out" in headline
        elif row.rank < 0:
            kinds.add("not cached")
            assert headline.endswith("not in the cache, so it keeps its hard label")
        else:
            kinds.add(word := "kept" if row.selected else "dropped")
            assert headline == f"{index}: {word} ({row.reason})"
            assert f"rank              {row.rank} of {table.record.num_candidates} cand" in text
            assert f"dloss_undistill   {row.dloss_undistill:+.3e}" in text
        if row.teacher_class < 0:
            assert "unknown, the cache does not have the sample" in text
            assert "dloss" not in text.partition("strategy")[0]
        else:
            verdict = "right" if row.teacher_correct else "wrong"
            assert f"{row.teacher_class} ({CLASSES[row.teacher_class]}), {verdict}" in text
            numbers = f"{row.p_target:.3f} for the label, {row.p_max:.3f} for its own class"
            assert numbers in text
    assert kinds == {"held out", "not cached", "kept", "dropped"}


def test_the_class_and_the_whole_have_the_shares_of_the_table(config, table):
    frame = table.frame
    candidates = frame[frame["rank"] >= 0]
    overall = 100 * candidates["selected"].mean()
    for label, name in enumerate(CLASSES):
        row = int(np.flatnonzero(frame["label"] == label)[0])
        own = candidates[candidates["label"] == label]["selected"]
        expected = (
            f"{own.sum()} of {len(own)} candidates of class {label} ({name}) kept, "
            f"{100 * own.mean():.1f} %; {overall:.1f} % overall"
        )
        assert expected in unwrapped(select.explain(config, [row]))


@pytest.mark.parametrize(
    ("column", "helpful", "words", "other"),
    [
        ("dloss_undistill", 1, "distil it", "do not distil it"),
        ("dloss_swap", -1, "distil it", "do not distil it"),
        ("dloss_remove", 1, "it helps", "it harms"),
        ("dloss_add", -1, "distil it", "do not distil it"),
        ("dloss_current", 1, "distil it", "do not distil it"),
    ],
)
def test_the_sign_of_every_score_is_put_into_words(edited, table, column, helpful, words, other):
    row = candidate(table.frame)

    def meaning(score: float) -> str:
        (line,) = re.findall(rf"^  {column} .*$", edited(row, **{column: score}), re.MULTILINE)
        assert f"{score:+.3e}" in line
        assert ("the loss would rise" in line) == (score > 0)
        assert ("the loss would fall" in line) == (score < 0)
        return line.rpartition(": ")[2]

    assert meaning(helpful * 2.5e-4) == words
    assert meaning(-helpful * 2.5e-4) == other


def test_a_score_has_its_standard_error_where_there_is_one(edited, table):
    row = candidate(table.frame)
    assert "+1.000e-03, standard error 2.5e-04:" in edited(
        row, dloss_swap=1e-3, dloss_swap_se=2.5e-4
    )
    assert "+1.000e-03: with" in edited(row, dloss_swap=1e-3, dloss_swap_se=np.nan)


def test_a_label_issue_is_reported_with_the_probability_of_the_label(edited, table):
    row = candidate(table.frame)
    refitted = "a head that did not see the sample gives its label 0.125"
    assert f"yes, {refitted}" in edited(row, label_issue=True, p_refit=0.125)
    assert f"no, {refitted}" in edited(row, label_issue=False, p_refit=0.125)
    assert re.search(r"label issue +no$", edited(row, label_issue=False, p_refit=np.nan), re.M)
    assert "label issue" not in edited(row, label_issue=pd.NA, p_refit=np.nan)


def test_the_place_among_the_candidates_is_that_of_self_influence(edited, table):
    frame = table.frame
    row = candidate(frame)
    for value, share in ((1e9, 1 - 1 / table.record.num_candidates), (-1e9, 0.0)):
        text = edited(row, self_influence=value)
        assert f"{value:.3e}, above {100 * share:.1f} % of the candidates" in text


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (
            ["select.strategy=influence"],
            "influence: samples that help according to dloss_undistill, by more than 0",
        ),
        (
            ["select.strategy=influence", "select.fraction=0.5"],
            "samples that help according to dloss_undistill, the first 50 % of the candidates",
        ),
        (
            ["select.strategy=influence", "select.standard_errors=1.5"],
            "by more than 0, by at least 1.5 standard errors more",
        ),
        (
            ["select.strategy=class-balanced", "select.fraction=0.5"],
            "class-balanced: the same fraction of every class, best dloss_undistill first",
        ),
        (
            ["select.strategy=beta", "select.fraction=0.5", "select.beta_mean=0.25"],
            "beta: a draw around the percentile 0.25 of self-influence, the first 50 %",
        ),
        (["select.strategy=param-change", "select.fraction=0.5"], "soft labels move the head most"),
        (["select.strategy=label-issue-free"], "label-issue-free: samples without a label issue"),
        (
            ["select.strategy=random", "select.fraction=0.5", "select.influence=unset"],
            "random: samples drawn by the seed, the first 50 % of the candidates",
        ),
        (
            ["select.strategy=el2n", "select.threshold=0.5", "select.influence=unset"],
            "el2n: samples with low EL2N, below 0.5",
        ),
        (["select.strategy=correct", "select.influence=unset"], "that the teacher gets right"),
        (["select.strategy=all", "select.influence=unset"], "all: every sample"),
        (["select.strategy=none", "select.influence=unset"], "none: no sample"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_rule_is_reported_with_its_numbers(config, table, overrides, rule):
    changed = with_overrides(config, overrides)
    text = unwrapped(select.explain(changed, [candidate(table.frame)]))
    assert rule in text


@pytest.mark.parametrize("index", [-1, 90, 10**9])
def test_an_index_out_of_range_is_rejected_with_the_range_before_anything_is_made(
    config, tmp_path, index
):
    (tmp_path / "data").symlink_to(config.data_folder)
    changed = with_overrides(config, [f"workspace={tmp_path}"])
    with pytest.raises(ConfigError, match=rf"--explain {index}.*0 to 89") as rejection:
        select.explain(changed, [0, index])
    assert "\n" not in str(rejection.value)
    assert not changed.selections_folder.exists()


def test_explaining_changes_no_table(config, table):
    before = snapshot(table.path.parent)
    select.explain(config, [0])
    assert snapshot(table.path.parent) == before
