"""A run: complete, described, and its weights are the ones that were trained."""

import json
import tomllib
from pathlib import Path

import pytest

from pipeline.artefacts.run import Inputs, Run, run_id, run_path, write_metrics
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, PipelineError
from stages import train_teacher
from stages.config.root import Config
from tests.support.workspaces import edited, flip_byte, replace_bytes

INPUTS = Inputs(dataset="a" * 64, cache=None, soft_labels=None, selection=None)


@pytest.fixture
def run(digits_copy: Config) -> Run:
    return train_teacher.execute(digits_copy)


def test_a_run_returns_its_settings_metrics_and_result(run, digits):
    settings = tomllib.loads((run.path / "config.toml").read_text())
    assert settings["lr"] == digits.train_teacher.lr
    assert settings["views"] == {"padding": 1, "flip": False, "count": -1}
    metrics = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in metrics] == [1, 2]
    assert run.result.held_out_accuracy_last == metrics[-1]["held_out_accuracy"]
    assert run.result.held_out_accuracy_best == max(line["held_out_accuracy"] for line in metrics)
    assert run.result.held_out_accuracy_mean_of_last == pytest.approx(
        sum(line["held_out_accuracy"] for line in metrics) / 2
    )
    assert (run.result.mean_of_last, run.result.num_distilled) == (2, 0)


def test_a_run_is_found_by_its_name_seed_and_id(run):
    assert run.path.name == f"teacher-s0-{run.result.id[:8]}"


def test_settings_and_every_input_change_the_id():
    reference = run_id({"lr": 0.1}, INPUTS)
    assert run_id({"lr": 0.2}, INPUTS) != reference
    accepted = {"accepted_mismatches": ("labels",)}
    for name in Inputs.model_fields:
        changed = INPUTS.model_copy(update={name: accepted.get(name, "b" * 64)})
        assert run_id({"lr": 0.1}, changed) != reference, name


def test_two_seeds_are_two_folders():
    paths = {run_path(Path("runs"), name="student", seed=seed, id="a" * 64) for seed in range(3)}
    assert len(paths) == 3


def test_metrics_refuse_numbers_that_json_lacks(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(tmp_path, [{"loss": float("nan")}])


def test_the_error_for_a_missing_run_names_its_command(tmp_path):
    with pytest.raises(ArtefactNotFound, match=r"student-s0-aaaaaaaa .*`heartcut"):
        Run.open(tmp_path / "student-s0-aaaaaaaa")


def test_a_run_without_a_result_is_not_a_run(run):
    (run.path / "result.json").unlink()
    with pytest.raises(ArtefactNotFound, match=r"result.json does not exist"):
        Run.open(run.path)


@pytest.mark.parametrize("offset", [0, 9, 1000, -1])
def test_a_flipped_byte_in_the_weights_is_rejected(run, offset):
    flip_byte(run.weights, offset)
    with pytest.raises(ArtefactMismatch, match=r"model\.safetensors .*sha256 \w+ \(expected \w+\)"):
        Run.open(run.path)


def test_missing_weights_are_reported(run):
    run.weights.unlink()
    with pytest.raises(ArtefactNotFound, match=r"model\.safetensors is missing"):
        Run.open(run.path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("version", 1), ("format", "heartcut.selection"), ("seed", "one"), ("surprise", 1)],
)
def test_a_result_of_another_form_is_rejected_by_key(run, key, value):
    path = run.path / "result.json"
    with edited(path) as record:
        record[key] = value
    with pytest.raises(PipelineError, match=rf"result\.json .*{key}: "):
        Run.open(run.path)


def test_the_files_of_a_run_are_checked_when_it_is_opened(run):
    assert run.result.files.keys() == {"config.toml", "metrics.jsonl"}
    for name in run.result.files:
        path = run.path / name
        written = path.read_bytes()
        replace_bytes(path, written.replace(b"0", b"1", 1))
        with pytest.raises(ArtefactMismatch, match=rf"{name} is damaged: sha256 .*train again"):
            Run.open(run.path)
        replace_bytes(path, written)
    Run.open(run.path)


def without_digests(run: Run, **changes: float) -> Run:
    """The run as earlier versions wrote it, or as edited on purpose."""
    with edited(run.path / "result.json") as record:
        del record["files"]
        record |= changes
    return Run.open(run.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:1], "(last|best) (held-out accuracy|epoch)"),
        (lambda lines: lines[1:], "last epoch"),
        (lambda lines: [*lines, lines[-1]], "last epoch"),
        (lambda lines: [lines[0], *lines], "last epoch"),
    ],
    ids=["last lost", "first lost", "last doubled", "first doubled"],
)
def test_lines_that_were_lost_or_doubled_are_rejected_without_a_digest_too(run, change, message):
    path = run.path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    replace_bytes(path, b"".join(change(lines)))
    with pytest.raises(ArtefactMismatch, match=rf"metrics\.jsonl has another {message} than"):
        without_digests(run).epochs()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("held_out_accuracy_last", "last held-out accuracy"),
        ("held_out_accuracy_best", "best held-out accuracy"),
        ("best_epoch", "best epoch"),
        ("held_out_accuracy_mean_of_last", "mean of the last held-out accuracies"),
    ],
)
def test_numbers_that_stand_in_two_files_are_compared(run, field, message):
    other = getattr(run.result, field) + 0.125 if field != "best_epoch" else 9
    with pytest.raises(ArtefactMismatch, match=rf"has another {message} than result\.json"):
        without_digests(run, **{field: other}).epochs()


def test_a_run_that_was_edited_on_purpose_opens(run):
    with edited(run.path / "result.json") as record:
        record["cost"]["device"] = "a workstation"
    assert Run.open(run.path).result.cost.device == "a workstation"


def test_digests_of_other_files_are_no_part_of_a_result(run):
    with edited(run.path / "result.json") as record:
        record["files"]["../../x"] = "a" * 64
    with pytest.raises(ArtefactMismatch, match=r"result\.json .*files"):
        Run.open(run.path)
