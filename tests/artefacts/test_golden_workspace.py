"""A workspace that an earlier heartcut wrote is read, shown, reported, and resumed.

    OMP_NUM_THREADS=1 python -m tests.support.golden_workspace

This command writes the workspace again, which only a new format version needs. Ids and numbers are
those of the files in tests/golden/workspace-v1. A new version of a format needs a second workspace
next to it, and these tests for both.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.artefacts import comparison
from pipeline.artefacts.cache.hydration import HydratedCache
from pipeline.artefacts.cache.index import recall
from pipeline.artefacts.cache.join import join_samples
from pipeline.artefacts.dataset import FORMAT_VERSION as DATASET_VERSION
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.predictions import PredictionRecord, Predictions
from pipeline.artefacts.records import read_record
from pipeline.artefacts.run import FORMAT_VERSION as RUN_VERSION
from pipeline.artefacts.run import Run, read_metrics, read_settings
from pipeline.artefacts.sweep import FORMAT_VERSION as SWEEP_VERSION
from pipeline.artefacts.sweep import Chosen, sweep_folder
from pipeline.artefacts.unfinished_run import FORMAT_VERSION as STATE_VERSION
from pipeline.data.loaders import BatchLoader
from pipeline.models.checkpoints import load_weights
from stages.caches import Caches
from stages.identities import cache_request
from tests.support.commands import heartcut
from tests.support.golden import files
from tests.support.golden_workspace import CONFIG, UNDER_WAY, golden_config, images, unpacked
from tests.support.workspaces import snapshot

DATASET_ID = "e40d9ad11a34be7d89c2321490ab85917fa4a569ab9d831941ed9d05c5f0a5f0"
HELD_OUT = [1, 4, 13, 16, 21, 23, 25, 26, 27]
CACHE_IDS = {
    "train": "4ad9331182d358f8353f41999212bb2e5c80001b0f7e601a7950732c7f584760",
    "eval": "b619d0c1be5b7e84443fb7b733c1b407d9ca7c9c76a8fae5a5ba1aa7a6ba5c39",
}
KD_RUN = "student-s0-a22152e7"
RUNS = {
    "teacher-s0-b490a3b6": ("38928d3a336d", None, 0, 7 / 9, 8 / 9),
    "student-s0-d7491cc1": ("38928d3a336d", None, 0, 7 / 9, 8 / 9),
    "student-s0-dbcfbd15": ("b0e31fdff4fb", "fitnet", 18, 7 / 9, 7 / 9),
    KD_RUN: ("40fe886e3da2", "kd", 18, 6 / 9, 7 / 9),
    "student-s1-895aaeec": ("a016c6c683ea", "kd", 18, 1.0, 1.0),
    "student-s0-83fd7097": ("4c75fad4c3c4", "kd", 18, 6 / 9, 6 / 9),
    "student-s1-cf656689": ("da55eeb12c29", "kd", 18, 6 / 9, 5 / 9),
}
"""Start of the weights' SHA-256, method, distilled samples, test and last held-out accuracy."""
VARIANTS = {
    "CE": ("runs/student-s0-d7491cc1",),
    "FitNet": ("runs/student-s0-dbcfbd15",),
    "KD": (f"runs/{KD_RUN}",),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A copy that is read; tests that write have their own."""
    return unpacked(tmp_path_factory.mktemp("golden") / "work")


@pytest.fixture
def changing(tmp_path, monkeypatch) -> Path:
    """A copy of its own, which is the working directory."""
    folder = unpacked(tmp_path / "work")
    monkeypatch.chdir(folder)
    return folder


def test_the_golden_workspace_has_the_versions_of_today():
    """A new version needs tests/golden/workspace-v2; workspace-v1 stays readable."""
    versions = {
        "data set": DATASET_VERSION,
        "run": RUN_VERSION,
        "predictions": PredictionRecord.model_fields["version"].default,
        "sweep": SWEEP_VERSION,
        "comparison": comparison.ComparisonRecord.model_fields["version"].default,
        "training state": STATE_VERSION,
    }
    assert versions == {
        "data set": 3,
        "run": 2,
        "predictions": 1,
        "sweep": 1,
        "comparison": 1,
        "training state": 1,
    }


def test_a_released_data_set_opens_and_its_betons_hold_the_images(workspace):
    dataset = Dataset.open(workspace / "data")
    assert dataset.record.id == DATASET_ID
    assert dataset.record.class_names == ["ant", "bee", "cat"]
    assert dataset.held_out.tolist() == HELD_OUT
    assert dataset.record.mean == (0.582118, 0.593367, 0.581546)
    for beton, count, seed in ((dataset.train, 33, 1), (dataset.eval, 9, 2)):
        read = {}
        for batch in BatchLoader(beton, batch_size=8).view(0):
            pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
            read |= {p.tobytes(): int(y) for p, y in zip(pixels, batch.labels, strict=True)}
        expected = images(count, seed=seed)
        assert read == {image.tobytes(): i % 3 for i, image in enumerate(expected)}


def test_released_runs_open_with_their_results_metrics_settings_and_weights(workspace):
    found = {}
    for path in (workspace / "runs").iterdir():
        run = Run.open(path)
        result = run.result
        found[path.name] = (
            result.weights_sha256[:12],
            result.method,
            result.num_distilled,
            result.test_accuracy,
            result.held_out_accuracy_last,
        )
        lines = read_metrics(path)
        assert [line["epoch"] for line in lines] == [1, 2, 3]
        assert lines[-1]["held_out_accuracy"] == result.held_out_accuracy_last
        assert read_settings(path)["batch_size"] == 8
        assert result.inputs.dataset == DATASET_ID
        assert sum(w.numel() for w in load_weights(run.weights).values()) >= result.num_parameters
    assert found == RUNS


def test_released_predictions_open_and_agree_with_the_accuracies(workspace):
    for name, (weights, _, _, test_accuracy, held_out_accuracy) in RUNS.items():
        predictions = Predictions.open(workspace / "runs" / name)
        assert predictions.record.weights_sha256.startswith(weights)
        test, held_out = predictions.of("test"), predictions.of("held_out")
        assert held_out["sample_index"].tolist() == HELD_OUT
        assert (test["predicted"] == test["label"]).mean() == test_accuracy
        assert (held_out["predicted"] == held_out["label"]).mean() == held_out_accuracy
    kd = Predictions.open(workspace / "runs" / KD_RUN).of("test")
    assert kd["predicted"].tolist() == [0, 2, 2, 2, 2, 0, 0, 0, 2]


def test_released_sweep_results_open(workspace):
    rows = sweep_folder(workspace, "rates").rows()
    assert [(row.point, row.seed, row.status, row.run_path) for row in rows] == [
        ("no cache", 0, "failed", None),
        ("no cache", 1, "failed", None),
        ("lr=0.05", 0, "ok", "runs/student-s0-83fd7097"),
        ("lr=0.05", 1, "ok", "runs/student-s1-cf656689"),
        ("lr=0.1", 0, "ok", f"runs/{KD_RUN}"),
        ("lr=0.1", 1, "ok", "runs/student-s1-895aaeec"),
    ]
    assert {row.error_type for row in rows[:2]} == {"ArtefactNotFound"}
    means = [17 / 27, 21 / 27]
    assert [row.held_out_mean_of_last for row in rows[4:]] == pytest.approx(means)


def test_a_released_choice_of_a_sweep_opens(workspace):
    path = sweep_folder(workspace, "rates").chosen
    chosen = read_record(Chosen, path, made_by="heartcut sweep", remedy="")
    assert (chosen.chosen.point, chosen.baseline.point) == ("lr=0.1", "lr=0.05")
    assert chosen.chosen.overrides == ("train_student.lr=0.1",)
    assert chosen.chosen.held_out.mean == pytest.approx(19 / 27)
    assert chosen.held_out_gain.mean == pytest.approx(13 / 54)
    assert chosen.test_gain.mean == pytest.approx(1 / 6)


def test_a_released_comparison_names_runs_in_show_and_report(workspace, tmp_path):
    expected = {name: [workspace / run for run in runs] for name, runs in VARIANTS.items()}
    assert comparison.read(workspace) == expected
    shown = heartcut("show", "run", workspace, "--json")
    assert shown.code == 0, shown.err
    groups = {group["name"]: group for group in json.loads(shown.out)["groups"]}
    assert VARIANTS.keys() < groups.keys()
    assert groups["KD"]["seeds"] == [0, 1]
    assert groups["KD"]["numbers"]["test_accuracy"]["mean"] == pytest.approx(15 / 18)
    page = tmp_path / "report.html"
    reported = heartcut("report", workspace, "--output", page)
    assert reported.code == 0, reported.err
    assert all(f">{name}<" in page.read_text() for name in (*VARIANTS, "lr=0.05"))


def test_a_released_index_leads_to_the_caches(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    config = golden_config(Path())
    dataset = Dataset.open(config.data_folder)
    request = cache_request(config, dataset)
    for split, expected in CACHE_IDS.items():
        assert recall(config.caches_folder, request=request, split=split) == expected
    cache = Caches(config=config, dataset=dataset).training
    assert cache.id == CACHE_IDS["train"]
    assert cache.summary.accuracy_held_out == pytest.approx([8 / 9, 1])


def test_released_local_copies_of_a_cache_are_used_unchanged(changing):
    config = golden_config(changing)
    dataset = Dataset.open(config.data_folder)
    cache = Caches(config=config, dataset=dataset).training
    before = snapshot(config.caches_folder)
    assert sum(path.suffix == ".npy" for path in before) == 3
    joined = join_samples(cache, dataset.train.samples, place="golden")
    hydrated = HydratedCache(cache=cache, joined=joined, folder=config.caches_folder)
    for view in (0, 1):
        stored = np.concatenate(list(cache.blocks("features", view)))
        assert np.array_equal(hydrated.features(view), stored.view(np.float16))
    assert snapshot(config.caches_folder) == before


def test_a_training_that_an_earlier_version_stopped_is_resumed(changing):
    """Bits of weights depend on the processor, so they are compared within 1e-6."""
    run = changing / "runs" / KD_RUN
    finished = Run.open(run)
    finished_weights, finished_lines = load_weights(finished.weights), read_metrics(run)
    shutil.rmtree(run)
    under_way = run.with_name(f"{KD_RUN}.training")
    shutil.copytree(UNDER_WAY / under_way.name, under_way)
    first_line = read_metrics(under_way)[0]
    resumed = heartcut("train-student", CONFIG, quiet=False)
    assert resumed.code == 0, resumed.err
    assert "at epoch 2, batch 3" in resumed.err
    assert not under_way.exists()
    lines = read_metrics(run)
    assert lines[0] == first_line
    for line, expected in zip(lines, finished_lines, strict=True):
        for name in ("epoch", "training_loss", "held_out_loss", "held_out_accuracy", "lr"):
            assert line[name] == pytest.approx(expected[name], abs=1e-6), name
    result = Run.open(run).result
    assert result.id == finished.result.id
    assert result.test_accuracy == finished.result.test_accuracy
    torch.testing.assert_close(
        load_weights(Run.open(run).weights), finished_weights, rtol=0, atol=1e-6
    )


def test_no_stage_makes_anything_again_in_a_released_workspace(changing):
    """Every identity of today is that of the version which wrote the workspace."""

    def made() -> dict[str, bytes]:
        return {
            name: content
            for folder in ("caches", "selections", "runs")
            for name, content in files(changing / folder).items()
        }

    before = made()
    assert heartcut("compare", CONFIG).code == 0
    assert heartcut("sweep", CONFIG).code == 5  # one point is refused, as before
    assert made().keys() == before.keys()
    assert made() == before
