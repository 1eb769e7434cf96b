"""`heartcut show ...`: every number comes from the files, and text in them is only text."""

import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import zarr
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from pipeline.artefacts import comparison
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Run
from pipeline.artefacts.selection import COLUMNS, SelectionRecord, SelectionTable, write
from stages import train_student
from stages.caches import Caches
from stages.config.file import with_overrides
from stages.selection import influence
from stages.selection.wording import warnings_of
from stages.show import run as show_run
from stages.show import run_text as show_run_text
from stages.show import selection as show_selection
from stages.show import text as show_text
from stages.show.records import as_json
from tests.support.commands import ROOT, heartcut
from tests.support.small_caches import sealed_cache, some_samples
from tests.support.workspaces import (
    TINY,
    contents,
    edited,
    flip_byte,
    linked_copy,
    replace_bytes,
    tables_in,
    tiny_config,
)

HOSTILE = ["[red]zero", "\x1b[31mone", "two\rx", ":smile:", "[/]", "fi\x07ve", "6\n", "7", "8", "n"]


@pytest.fixture(scope="module")
def work(digits, tmp_path_factory) -> Path:
    """`digits` with three students: two seeds of one setting, and one without a teacher."""
    workspace = linked_copy(digits.workspace, tmp_path_factory.mktemp("show") / "work")
    config = with_overrides(digits, [f"workspace={workspace}", "train_student.epochs=2"])
    for overrides in ([], ["train_student.seed=1"], ["train_student.distil=false"]):
        train_student.execute(with_overrides(config, overrides))
    return workspace


@pytest.fixture(scope="module")
def table(work) -> Path:
    (path,) = tables_in(work / "selections")
    return path


@pytest.fixture(scope="module")
def cache(digits, work) -> Path:
    config = with_overrides(digits, [f"workspace={work}"])
    return Path(Caches(config=config, dataset=Dataset.open(work / "data")).made.path)


def out_of(*arguments: object) -> str:
    done = heartcut("show", *arguments)
    assert (done.code, done.err) == (0, ""), done
    return done.out


def json_of(*arguments: object):
    """The JSON document, which has neither NaN nor infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(out_of(*arguments, "--json"), parse_constant=refuse)


def test_a_selected_sample_that_is_no_candidate_does_not_count(table, tmp_path):
    frame = pd.read_parquet(table)
    frame["selected"] = True
    frame.to_parquet(tmp_path / "all.parquet")
    found = json_of("selection", tmp_path / "all.parquet")
    assert found["num_selected"] == found["num_candidates"] == (frame["rank"] >= 0).sum()
    assert found["num_candidates"] < len(frame)


def plain_lines(text: str) -> list[str]:
    """Lines of at most 80 columns without a control character."""
    lines = text.splitlines()
    assert "\x1b" not in text
    assert max(map(len, lines)) <= 80
    assert all(line.isprintable() and line == line.rstrip() for line in lines)
    return lines


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


# selection


def test_the_numbers_of_a_selection_are_those_of_its_rows(work, table):
    found = json_of("selection", table)
    frame = pq.read_table(table).to_pandas()
    record = json.loads(pq.ParquetFile(table).metadata.metadata[b"heartcut"])
    candidates = frame[frame["rank"] >= 0]
    wrong = candidates[~candidates["teacher_correct"]]
    assert found["record"] == record
    assert found["record"]["wrong_row_auc"] == record["wrong_row_auc"]
    assert found["num_samples"] == len(frame)
    assert found["num_held_out"] == frame["held_out"].sum()
    assert found["num_candidates"] == len(candidates) == record["num_candidates"]
    assert found["num_selected"] == frame["selected"].sum() == record["num_selected"]
    assert found["num_wrong"] == len(wrong) == record["num_wrong"]
    assert found["num_wrong_selected"] == wrong["selected"].sum()
    assert found["num_wrong_left_out"] == (~wrong["selected"]).sum()
    assert found["reasons"] == frame["reason"].value_counts().to_dict()
    assert found["is_edited"] is False
    assert found["score"] == "dloss_undistill"
    assert found["threshold"] == 0.0
    names = json.loads((work / "data" / "dataset.json").read_text())["class_names"]
    by_class = candidates.groupby("label")
    assert [one["label"] for one in found["classes"]] == sorted(by_class.groups)
    for one in found["classes"]:
        own = by_class.get_group(one["label"])
        assert one["name"] == names[one["label"]]
        assert one["num_candidates"] == len(own)
        assert one["num_selected"] == own["selected"].sum()
        assert one["num_wrong"] == (~own["teacher_correct"]).sum()
        assert one["share"] == own["selected"].sum() / len(own)


def test_the_samples_that_help_and_harm_are_the_ends_of_the_score(table):
    found = json_of("selection", table)
    frame = pq.read_table(table).to_pandas()
    order = frame[frame["dloss_undistill"].notna()].sort_values("dloss_undistill", kind="stable")
    assert [one["sample_index"] for one in found["harmful"]] == order.index[:10].tolist()
    helpful = order["dloss_undistill"].to_numpy()[::-1][:10].tolist()
    assert [one["score"] for one in found["helpful"]] == helpful
    for one in (*found["helpful"], *found["harmful"]):
        row = frame.loc[one["sample_index"]]
        columns = ("label", "teacher_class", "p_target", "p_refit", "beta", "selected", "reason")
        assert all(one[name] == row[name] for name in columns)
        assert (one["score"], one["standard_error"]) == (
            row["dloss_undistill"],
            row["dloss_undistill_se"],
        )
    issues = frame[frame["label_issue"].eq(True).fillna(False)]
    assert found["label_issues"]["num"] == len(issues)
    assert found["label_issues"]["num_selected"] == issues["selected"].sum()
    likeliest = issues.sort_values("p_refit", kind="stable").index[:10].tolist()
    assert [one["sample_index"] for one in found["label_issues"]["likeliest"]] == likeliest


def test_the_histogram_of_the_score_counts_every_scored_row_and_has_an_edge_at_zero(table):
    found = json_of("selection", table)["histogram"]
    frame = pq.read_table(table).to_pandas()
    scored = frame[frame["dloss_undistill"].notna()]
    edges = np.array(found["edges"])
    assert 0.0 in edges
    np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0], rtol=1e-9)
    for name, rows in scored.groupby("teacher_correct"):
        counts = found["right" if name else "wrong"]
        inner = rows["dloss_undistill"].to_numpy()
        places = np.clip(np.searchsorted(edges, inner, side="right") - 1, 0, len(edges) - 2)
        assert counts == np.bincount(places, minlength=len(edges) - 1).tolist()
    low, high = np.quantile(scored["dloss_undistill"], [0.005, 0.995])
    assert edges[0] <= low
    assert edges[-1] >= high


def test_the_text_of_a_selection_has_its_numbers(table):
    found, text = json_of("selection", table), out_of("selection", table)
    plain_lines(text)
    flat = squeezed(text)
    assert f"{found['num_selected']:,} of {found['num_candidates']:,} candidates" in flat
    assert (
        f"{found['num_wrong']:,} candidates: {found['num_wrong_left_out']:,} left out, "
        f"{found['num_wrong_selected']:,} selected" in flat
    )
    assert f"{found['record']['wrong_row_auc']:.4f}" in flat
    assert "samples that help according to dloss_undistill, by more than 0" in flat
    assert "<- 0, threshold" in text
    for warning in found["warnings"]:
        assert f"warning: {warning}" in flat
    for one in found["classes"]:
        assert re.search(
            rf"{one['num_selected']:,} +{one['num_candidates']:,} +{one['num_wrong']:,} +"
            rf"{100 * one['share']:.1f} %",
            text,
        )
    for one in (*found["helpful"], *found["harmful"]):
        assert re.search(
            rf"^{one['sample_index']} .*{re.escape(format(one['score'], '+.2e'))}", text, re.M
        )
    for solve in found["record"]["scores"]["solves"]:
        assert f"{solve['held_out_loss']:.4f}" in text


@pytest.mark.parametrize(("error", "leaks"), [(None, True), (0.05, True), (0.1, False)])
def test_a_leak_is_beyond_the_error_of_the_images(table, error, leaks):
    """Nine right of nine held-out images are no proof against 81 % of 91 test images."""
    found = SelectionTable.open(table).record.scores.diagnostics
    found = found.model_copy(update={"leak": 0.187, "leak_error": error})
    assert any("better on held-out samples" in line for line in warnings_of(found)) == leaks


def test_what_select_warns_of_is_what_show_warns_of(table, tmp_path):
    found = SelectionTable.open(table)
    scores = found.record.scores
    doubtful = {"effective_parameters": 0.9, "rank_stability": {"3 l2": 0.5}, "leak": 0.25}
    diagnostics = scores.diagnostics.model_copy(update=doubtful)
    record = found.record.model_copy(
        update={"scores": scores.model_copy(update={"diagnostics": diagnostics})}
    )
    path = tmp_path / "doubtful.parquet"
    rewritten(table, path, record=record)
    assert influence.warnings_of is warnings_of
    warnings = list(warnings_of(diagnostics))
    assert len(warnings) == 3
    assert json_of("selection", path)["warnings"] == warnings
    text = squeezed(out_of("selection", path))
    assert all(f"warning: {warning}" in text for warning in warnings)


def test_a_table_is_found_by_name_by_folder_and_by_configuration(work, table, tiny_toml):
    expected = json_of("selection", table)
    for place in (work / table.stem, work, work / "selections", table.with_suffix("")):
        assert json_of("selection", place)["id"] == expected["id"]
    options = ("--set", f"workspace={work}")
    assert json_of("selection", tiny_toml, *options) == expected
    line = heartcut("show", "selection", table, *options).error_line
    assert "--set needs a configuration" in line


def rewritten(
    table: Path, path: Path, *, record: SelectionRecord | None = None, **changes: object
) -> None:
    """The table with other columns, or another record."""
    found = SelectionTable.open(table)
    frame = found.frame.assign(**changes)
    columns = {name: frame[name].to_numpy() for name in COLUMNS if name != "label_issue"}
    missing = frame["label_issue"].isna().to_numpy()
    issues = frame["label_issue"].fillna(False).to_numpy(dtype=bool)
    columns["label_issue"] = np.ma.masked_array(issues, mask=missing)
    write(path, record=found.record if record is None else record, columns=columns)


def test_an_edited_table_is_counted_as_it_is(table, tmp_path):
    path = tmp_path / "edited.parquet"
    rewritten(table, path, selected=SelectionTable.open(table).frame["rank"].eq(0))
    found = json_of("selection", path)
    assert (found["num_selected"], found["is_edited"]) == (1, True)
    assert "edited" in out_of("selection", path)
    assert all(one["name"] is None for one in found["classes"])


def test_a_table_without_scores_is_shown_without_them(table, tmp_path):
    path = tmp_path / "plain.parquet"
    scores = [name for name in COLUMNS if name.startswith("dloss")]
    rewritten(table, path, **dict.fromkeys(scores, np.nan), label_issue=pd.NA, p_refit=np.nan)
    found = json_of("selection", path)
    assert (found["score"], found["histogram"], found["threshold"]) == (None, None, None)
    assert (found["helpful"], found["harmful"], found["label_issues"]) == ([], [], None)
    plain_lines(out_of("selection", path))


def test_a_low_score_helps_where_its_sign_says_so(table, monkeypatch):
    monkeypatch.setattr(show_selection, "_score", lambda _: "dloss_swap")
    frame = SelectionTable.open(table).frame
    found = show_selection.execute(str(table))
    assert found.helpful[0].score == frame["dloss_swap"].min()
    assert found.harmful[0].score == frame["dloss_swap"].max()


def test_a_table_of_two_hundred_thousand_rows_takes_seconds(table, tmp_path):
    """Python's own loops over rows would take a minute for it."""
    found = SelectionTable.open(table)
    many = pd.concat([found.frame] * (200_000 // len(found.frame)), ignore_index=True)
    large = SelectionTable(path=tmp_path / "x.parquet", record=found.record, frame=many)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SelectionTable, "open", lambda _: large)
        started = time.process_time()
        shown = show_selection.execute(str(table))
        seconds = time.process_time() - started
    assert shown.num_samples == len(many)
    assert seconds < 5


# cache


def test_the_numbers_of_a_cache_are_those_of_its_arrays(cache, work):
    (found,) = json_of("cache", cache)["caches"]
    seal = json.loads((cache / "sealed.json").read_text())
    arrays = zarr.open_group(cache / "data.zarr", mode="r")
    logits, labels = arrays["logits"][0].astype(np.float64), arrays["labels"][:].astype(int)
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    sure = 1.0 / probs.sum(axis=1)
    right = logits[np.arange(len(labels)), labels] >= logits.max(axis=1)
    assert found["info"] == json.loads(heartcut("cache", "info", "--json", cache).out)
    assert found["info"]["summary"]["num_wrong"] == (~right).sum()
    wrong = np.bincount(labels[~right], minlength=10)
    assert [one["num_wrong"] for one in found["classes"]] == sorted(wrong.tolist(), reverse=True)
    assert all(one["num_wrong"] == wrong[one["label"]] for one in found["classes"])
    assert all(one["num_rows"] == (labels == one["label"]).sum() for one in found["classes"])
    edges = np.linspace(0, 1, 11)
    assert found["confidence"]["edges"] == edges.tolist()
    for name, rows in (("right", right), ("wrong", ~right)):
        counts = np.histogram(sure[rows], edges)[0]
        assert np.abs(np.array(found["confidence"][name]) - counts).max() <= 1  # of float32
        assert sum(found["confidence"][name]) == rows.sum()
    for name, key in (("accuracy_training", "accuracy_training"), ("agreement", "agreement")):
        assert [view[name] for view in found["views"]] == seal["summary"][key]
    assert [view["accuracy_held_out"] for view in found["views"]] == (
        seal["summary"]["accuracy_held_out"]
    )
    record = json.loads((work / "data" / "dataset.json").read_text())
    assert found["dataset"] == record["id"]
    held_out = np.array(record["held_out"])
    error = expected_calibration_error(sure[held_out], right[held_out])
    told_of = found["calibration"]
    assert (told_of["split"], told_of["num_rows"]) == ("held_out", len(held_out))
    assert told_of["accuracy"] == right[held_out].mean()
    assert told_of["mean_confidence"] == pytest.approx(sure[held_out].mean(), rel=1e-5)
    assert told_of["expected_calibration_error"] == pytest.approx(error, abs=1e-5)


def expected_calibration_error(sure, right) -> float:
    """By its definition, bin by bin."""
    error = 0.0
    for number in range(15):
        rows = (sure > number / 15) & (sure <= (number + 1) / 15)
        if rows.any():
            error += rows.mean() * abs(right[rows].mean() - sure[rows].mean())
    return error


def test_the_text_of_a_cache_has_its_numbers_and_the_lines_of_the_info(cache):
    text = out_of("cache", cache)
    plain_lines(text)
    (found,) = json_of("cache", cache)["caches"]
    flat = squeezed(text).replace(" ", "")
    for line in heartcut("cache", "info", cache).out.splitlines():
        if not line.startswith(("accuracy", "held out", "agreement")):
            assert line.replace(" ", "") in flat
    for view in found["views"]:
        shares = (view["accuracy_training"], view["accuracy_held_out"], view["agreement"])
        assert re.search(" +".join(f"{100 * share:.2f} %" for share in shares), text)
    assert f"error {found['calibration']['expected_calibration_error']:.4f}" in text
    worst = found["classes"][0]
    assert re.search(rf"^{worst['label']} +{worst['num_wrong']} +{worst['num_rows']} ", text, re.M)


def test_a_configuration_shows_both_caches_and_the_test_images_are_unseen(work, tiny_toml, cache):
    found = json_of("cache", tiny_toml, "--set", f"workspace={work}")["caches"]
    assert [one["calibration"]["split"] for one in found] == ["held_out", "test"]
    assert found[0] == json_of("cache", cache)["caches"][0]
    record = json.loads((work / "data" / "dataset.json").read_text())
    assert found[1]["calibration"]["num_rows"] == record["eval"]["num_samples"]
    plain_lines(out_of("cache", tiny_toml, "--set", f"workspace={work}"))


@pytest.mark.parametrize("top_k", [0, 2])
@pytest.mark.parametrize("taus", [(1.0, 4.0), (4.0,)])
def test_a_cache_of_the_top_logits_describes_the_same_teacher(tmp_path, top_k, taus):
    samples = some_samples(40)
    whole = sealed_cache(tmp_path / "whole", samples, num_views=2)
    sealed_cache(tmp_path / "kept", samples, num_views=2, top_k=top_k, taus=taus)
    (found,), (other,) = (json_of("cache", tmp_path / name)["caches"] for name in ("whole", "kept"))
    assert found["classes"] == other["classes"]
    assert (found["dataset"], found["calibration"]) == (None, None)
    logits = whole.logits(0).astype(np.float64)
    right = logits[np.arange(40), samples.labels] >= logits.max(axis=1)
    assert sum(one["num_wrong"] for one in found["classes"]) == (~right).sum()
    if top_k and 1.0 not in taus:
        assert other["confidence"] is None
        assert "confidence: not known" in out_of("cache", tmp_path / "kept")
    else:
        assert other["confidence"] == found["confidence"]


# run


def test_the_numbers_of_runs_are_those_of_their_files(work):
    found = json_of("run", work / "runs")
    files = {path.parent: contents(path) for path in work.glob("runs/*/result.json")}
    assert {Path(run["path"]) for run in found["runs"]} == set(files)
    for run in found["runs"]:
        folder = Path(run["path"])
        assert run["result"] == files[folder]
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert run["epochs"] == [json.loads(line) for line in lines]
        assert run["kind"] == folder.name.partition("-")[0]
    assert sorted(len(group["seeds"]) for group in found["groups"]) == [1, 1, 2]
    held_out = "held_out_accuracy_mean_of_last"
    means = [group["numbers"][held_out]["mean"] for group in found["groups"]]
    assert means == sorted(means, reverse=True)
    (pair,) = [group for group in found["groups"] if len(group["seeds"]) == 2]
    assert pair["seeds"] == [0, 1]
    results = [files[Path(path)] for path in pair["runs"]]
    for name, number in pair["numbers"].items():
        values = [result.get(name, result["cost"].get(name)) for result in results]
        assert number["num"] == 2
        assert number["mean"] == pytest.approx(mean(values), rel=1e-12)
        assert number["sd"] == pytest.approx(stdev(values), rel=1e-9, abs=1e-15)
    alone = next(group for group in found["groups"] if "no teacher" in group["name"])
    assert alone["numbers"]["teacher_agreement_test"]["num"] in (0, 1)


def test_the_text_of_several_runs_has_means_and_deviations_side_by_side(work):
    found, text = json_of("run", work / "runs"), out_of("run", work / "runs")
    plain_lines(text)
    for group in found["groups"]:
        number = group["numbers"]["test_accuracy"]
        cell = f"{100 * number['mean']:.2f}"
        assert (cell if number["sd"] is None else f"{cell}±{100 * number['sd']:.2f}") in text
    for run in found["runs"]:
        assert re.search(rf"^ +{run['name']} +\S+ +\S+ +\d+\.\d\d %$", text, re.M)


def test_the_text_of_one_run_has_its_epochs_accuracies_and_cost(work):
    path = next(path.parent for path in work.glob("runs/student-s1-*/result.json"))
    text = out_of("run", path)
    plain_lines(text)
    flat, result = squeezed(text), Run.open(path).result
    for name in ("last", "best", "mean_of_last"):
        assert f"{100 * getattr(result, f'held_out_accuracy_{name}'):.2f} %" in flat
    assert f"{100 * result.test_accuracy:.2f} %, loss {result.test_loss:.4f}" in flat
    assert f"error {result.test_calibration_error:.4f}" in flat
    assert f"{result.cost.seconds:,.1f} s" in flat
    assert f"{100 * result.teacher_agreement_test:.2f} %" in flat
    for line in (path / "metrics.jsonl").read_text().splitlines():
        epoch = json.loads(line)
        assert re.search(rf"^ *{epoch['epoch']} +{epoch['training_loss']:.4f} ", text, re.M)


def test_runs_are_found_by_workspace_by_configuration_and_one_by_one(work, tiny_toml):
    expected = json_of("run", work / "runs")
    assert json_of("run", work) == expected
    assert json_of("run", tiny_toml, "--set", f"workspace={work}") == expected
    folders = [path.parent for path in work.glob("runs/*/result.json")]
    assert json_of("run", *folders, *folders) == expected
    line = heartcut("show", "run", work, "--set", "a=1").error_line
    assert "--set needs a configuration" in line


def test_groups_have_the_names_of_the_comparison_and_the_others_their_own(work, tmp_path):
    copy = linked_copy(work, tmp_path / "work")
    pair = sorted((copy / "runs").glob("student-s*"))
    seeds = [path for path in pair if Run.open(path).result.method is not None]
    comparison.write(copy, {HOSTILE[1]: seeds})
    found = json_of("run", copy)
    assert sum(group["name"] == HOSTILE[1] for group in found["groups"]) == 1
    text = out_of("run", copy)
    plain_lines(text)
    assert "\\x1b[31mone" in text


def test_a_curve_rises_with_its_values_and_has_room_for_many():
    assert show_text.curve([0.0, 0.5, 1.0]) == "▁▅█"
    assert show_text.curve([2.0, 2.0]) == "▄▄"
    assert show_text.curve([None, 1.0, 2.0]) == " ▁█"
    assert show_text.curve([]) == ""
    many = show_text.curve(list(range(1000)), width=16)
    assert len(many) == 16
    assert list(many) == sorted(many)


# what is in the files is only text


def hostile_classes(work: Path, copy: Path) -> Path:
    """The workspace with names of classes that are markup and escape codes."""
    linked_copy(work, copy)
    path = copy / "data" / "dataset.json"
    with edited(path) as record:
        record["class_names"] = HOSTILE
    return copy


def test_markup_and_control_characters_of_class_names_are_shown_as_text(
    work, table, cache, tmp_path
):
    copy = hostile_classes(work, tmp_path / "[blue]work")
    rewritten(table, copy / "selections" / table.name, reason="[bold]why\x1b[0m")
    text = out_of("selection", copy / "selections" / table.name)
    plain_lines(text)
    for shown in (
        "[red]zero",
        "\\x1b[31mone",
        "two\\rx",
        ":smile:",
        "[/]",
        "fi\\x07ve",
        "[bold]why",
    ):
        assert shown in text
    flat = text.replace("\n", "").replace(" ", "")
    assert "[blue]work" in flat
    text = out_of("cache", copy / "caches" / cache.name)
    plain_lines(text)
    assert "[red]zero" in text
    assert "\\x1b[31mone" in text
    names = [
        one["name"]
        for one in json_of("cache", copy / "caches" / cache.name)["caches"][0]["classes"]
    ]
    assert sorted(names) == sorted(HOSTILE)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_its_own_codes_and_none_from_the_files(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    text = show_text.rendered([show_text.title("[red]\x1b[31mname"), show_text.plain("\x1b[2J[u]")])
    assert "\x1b[1m" in text
    assert "[red]\\x1b[31mname" in text
    assert "\\x1b[2J[u]" in text
    assert "\x1b[2J" not in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_pipe_gets_plain_text_of_its_width_whatever_is_forced(work, table, monkeypatch, width):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    for command, place in (("selection", table), ("run", work)):
        text = out_of(command, place)
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= width


def test_a_terminal_without_blocks_gets_other_characters(work, monkeypatch):
    class Old(io.StringIO):
        encoding = "ascii"

    monkeypatch.setattr(sys, "stdout", Old())
    text = show_run_text.as_text(show_run.execute([work]))
    assert text.isascii()
    assert "~" in text


# refusals


@pytest.mark.parametrize(
    ("command", "place", "kind"),
    [
        ("selection", "runs/student-s1-*", "is a run (expected a selection table)"),
        ("selection", "caches/" + "[0-9a-f]" * 12, "is a teacher cache"),
        ("selection", "data", "is a data set"),
        ("selection", "selections/*.scores.parquet", "is not a selection table"),
        ("selection", "data/train.beton", "is a beton"),
        ("selection", "runs/student-s1-*/predictions.parquet", "is not a selection table"),
        ("selection", "selections/*.soft", "is soft labels"),
        ("cache", "runs/student-s1-*", "is a run (expected a teacher cache)"),
        ("cache", "caches", "is a folder of teacher caches"),
        ("cache", "runs", "is a folder of runs"),
        ("cache", ".", "is a workspace"),
        ("run", "selections/????????????.parquet", "is a table (expected a run"),
        ("run", "data", "is a data set"),
        ("run", "caches", "is a folder of teacher caches"),
        ("run", "runs/student-s1-*/result.json", "is a file"),
    ],
)
def test_the_wrong_kind_of_thing_is_one_line_that_names_both(work, command, place, kind):
    path = sorted(work.glob(place))[0] if place != "." else work
    line = heartcut("show", command, path).error_line
    assert str(path) in line
    assert kind in line
    assert "expected" in line


@pytest.mark.parametrize("command", ["cache", "selection", "run"])
def test_what_is_not_there_is_one_line(command, tmp_path):
    line = heartcut("show", command, tmp_path / "no\x1b[31mthing").error_line
    assert "does not exist (expected a" in line
    assert "\x1b" not in line
    assert "\\x1b[31mthing" in line


def test_a_damaged_table_and_a_damaged_cache_are_one_line(work, table, cache, tmp_path):
    copy = linked_copy(work, tmp_path / "work")
    path = copy / "selections" / table.name
    flip_byte(path, path.stat().st_size // 2)
    assert str(path) in heartcut("show", "selection", path).error_line
    folder = copy / "caches" / cache.name
    flip_byte(folder / "data.zarr" / "logits" / "c" / "0" / "0" / "0", 33)
    assert "has other contents than were written" in heartcut("show", "cache", folder).error_line
    (folder / "sealed.json").unlink()
    assert "is not sealed" in heartcut("show", "cache", folder).error_line


def test_runs_are_named_without_the_rows_of_their_selection(work, table, tmp_path):
    copy = linked_copy(work, tmp_path / "work")
    names = [group["name"] for group in json_of("run", work)["groups"]]
    assert any("influence" in name for name in names)
    path = copy / "selections" / table.name
    flip_byte(path, path.stat().st_size // 2)
    assert [group["name"] for group in json_of("run", copy)["groups"]] == names
    replace_bytes(path, path.read_bytes()[:-100])
    assert f"{path} is not a readable parquet file" in heartcut("show", "run", copy).error_line


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("metrics.jsonl", b'{"epoch": NaN}\n'),
        ("metrics.jsonl", b"\xff"),
        ("config.toml", b"seed ="),
        ("result.json", b"{}"),
        ("model.safetensors", b""),
    ],
)
def test_a_damaged_run_is_one_line_that_names_the_file(work, tmp_path, name, data):
    run = next(iter((linked_copy(work, tmp_path / "work") / "runs").glob("student-s1-*")))
    replace_bytes(run / name, data)
    assert str(run / name) in heartcut("show", "run", run).error_line
    if name != "result.json":  # without it, it is no run
        (run / name).unlink()
        assert f"{run / name} is missing" in heartcut("show", "run", run).error_line


def test_several_tables_are_listed_by_name(work, table, tmp_path):
    copy = linked_copy(work, tmp_path / "work")
    rewritten(table, copy / "selections" / "other.parquet")
    line = heartcut("show", "selection", copy).error_line
    assert "has 2 selection tables (expected one)" in line
    assert "other" in line
    assert json_of("selection", copy / "other")["path"].endswith("other.parquet")


def test_a_record_is_one_document_of_finite_numbers(table):
    text = as_json(show_selection.execute(str(table)))
    assert "NaN" not in text
    assert text.isascii()


# start-up and TensorBoard


def test_help_is_printed_at_once_and_loads_nothing_heavy():
    code = (
        "import sys, time, cli\n"
        "try: cli.app(['show', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(len({'torch', 'ffcv', 'numba', 'zarr', 'pandas'} & set(sys.modules))\n"
        "         + 10 * (time.process_time() > 1.0))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    for command in (b"cache", b"selection", b"run"):
        assert command in done.stdout
    assert b"runs-folder" not in done.stdout


def test_tensorboard_shows_all_runs_under_their_folders_names_with_the_same_tags(work, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    done = heartcut("show", "runs-folder", tmp_path / "tiny.toml", "--set", f"workspace={work}")
    assert done.out.strip() == str(work / "runs")
    shown = EventMultiplexer()
    shown.AddRunsFromDirectory(done.out.strip())
    shown.Reload()
    runs = {path.parent.name: path.parent for path in work.glob("runs/*/result.json")}
    assert set(shown.Runs()) == set(runs)
    tags = {name: set(shown.GetAccumulator(name).Tags()["tensors"]) for name in runs}
    scalars = {name: set(shown.GetAccumulator(name).Tags().get("scalars", [])) for name in runs}
    known = {name: tags[name] | scalars[name] for name in runs}
    (same,) = {frozenset(found) for found in known.values()}
    assert {"training_loss", "held_out_accuracy", "lr"} <= same
    for name, folder in runs.items():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert set(lines[0]) - {"epoch"} == same
        events = shown.Tensors(name, "held_out_accuracy")
        assert [event.step for event in events] == [line["epoch"] for line in lines]
        values = [event.tensor_proto.float_val[0] for event in events]
        np.testing.assert_allclose(values, [line["held_out_accuracy"] for line in lines], rtol=1e-6)


def test_tensorboard_of_a_workspace_without_runs_is_rejected(tiny_toml, tmp_path):
    options = ("--set", f"workspace={tmp_path}")
    line = heartcut("show", "runs-folder", tiny_toml, *options).error_line
    assert "does not exist (expected a run, or a folder of runs)" in line
    (tmp_path / "runs").mkdir()
    assert "is a folder" in heartcut("show", "runs-folder", tiny_toml, *options).error_line


def test_make_tensorboard_asks_for_the_folder_of_the_configuration():
    done = subprocess.run(
        ["make", "--dry-run", "tensorboard", "CONFIG=my.toml", "ARGS=--set a=b"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'show runs-folder "my.toml" --set a=b' in done.stdout
    assert '--logdir "$runs"' in done.stdout


def test_every_fixture_is_what_the_tests_say(work, tiny_toml):
    config = tiny_config(tiny_toml, work)
    assert len(list(config.runs_folder.glob("*/result.json"))) == 4
