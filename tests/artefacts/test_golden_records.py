"""Records with digests and tables with seals, as this version wrote them, still open.

    python -m tests.artefacts.test_golden_records

This command writes them again, which only another form of digests or seals needs. Records without
digests are in the other golden artefacts, which earlier versions wrote. `test_golden_selections`
has soft labels, score files and selection tables.
"""

import json
import shutil

import numpy as np
import pytest

from pipeline.artefacts import comparison, predictions, run, sweep
from pipeline.artefacts import dataset as dataset_format
from pipeline.artefacts.cache import index
from pipeline.artefacts.dataset import DatasetRecord, FileRecord, SplitRecord
from pipeline.artefacts.predictions import PredictionRecord, Predictions, SplitPredictions
from pipeline.artefacts.publishing import publish_json
from pipeline.artefacts.records import read_record
from pipeline.artefacts.run import Cost, Inputs, Run, RunResult
from pipeline.artefacts.sweep import Chosen, Measured, PointResult, SweepFolder, SweepRow
from pipeline.artefacts.unfinished_run import describe, require_same_training
from pipeline.errors import ArtefactMismatch
from pipeline.provenance import file_sha256
from tests.support.golden import GOLDEN

FOLDER = GOLDEN / "sealed-v1" / "records"
RUN = FOLDER / "student-s0-00000000"
SWEEP = FOLDER / "sweeps" / "rates"
INPUTS = Inputs(dataset="a" * 64, cache="b" * 64, soft_labels="c" * 64, selection="d" * 64)
SETTINGS = {"lr": 0.125, "name": "student", "views": {"padding": 4, "flip": True}}
METRICS = [
    {"epoch": 1, "seconds": 0.5, "training_loss": 2.25, "held_out_accuracy": 0.25},
    {"epoch": 2, "seconds": 0.5, "training_loss": 1.75, "held_out_accuracy": 0.75},
]
REQUEST = "f" * 64
VARIANTS = {"KD": ("runs/student-s0-00000000",), "no teacher": ("runs/a", "runs/b")}
POINT = PointResult(
    point="lr=0.125",
    overrides=("train_student.lr=0.125",),
    held_out=Measured(num_seeds=2, mean=0.75, std=0.125),
    test=Measured(num_seeds=1, mean=0.5, std=None),
)
CHOSEN = Chosen(
    sweep="rates",
    metric="held_out_mean_of_last",
    chosen=POINT,
    baseline=POINT,
    held_out_gain=None,
    test_gain=None,
)
ROWS = [
    SweepRow(point="lr=0.125", seed=0, settings="1" * 64, status="ok", held_out_last=0.75),
    SweepRow(point="lr=0.25", seed=0, settings="2" * 64, status="failed", error="no disk"),
]


def split_record(name: str) -> SplitRecord:
    return SplitRecord(
        num_samples=4,
        class_counts=[3, 1],
        fingerprint=f"fingerprint of {name}",
        pixel_digest="e" * 64,
        samples="f" * 64,
        beton=FileRecord(bytes=1 << 24, sha256="0" * 64),
    )


DATASET = DatasetRecord(
    id="a" * 64,
    request="1" * 64,
    source="a golden source",
    class_names=["ant", "bée"],
    heights=(8, 16),
    widths=(8, 8),
    num_jpegs=1,
    decoder="pillow 0",
    mean=(0.1, 0.2, 1 / 3),
    std=(0.25, 2**-30, 0.7),
    held_out=[1, 3],
    held_out_seed=7,
    train=split_record("train"),
    eval=split_record("eval"),
    skipped=["ant/broken.png"],
)


def run_result(*, weights: str, files: dict[str, str]) -> RunResult:
    return RunResult(
        id="0" * 64,
        weights_sha256=weights,
        files=files,
        arch="resnet8a",
        num_parameters=3,
        seed=0,
        inputs=INPUTS,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        held_out="2" * 64,
        num_training_samples=2,
        held_out_accuracy_last=0.75,
        held_out_accuracy_best=0.75,
        best_epoch=2,
        held_out_accuracy_mean_of_last=0.5,
        mean_of_last=2,
        test_accuracy=0.5,
        test_loss=1.25,
        test_calibration_error=0.125,
        teacher_agreement_held_out=None,
        teacher_agreement_test=1.0,
        num_distilled=1,
        method="kd",
        online=False,
        cost=Cost(
            seconds=1.0, training_images_per_second=4.0, teacher_forwards_saved=4, device="a device"
        ),
        versions={"heartcut": "0"},
    )


def split_predictions(split: str) -> SplitPredictions:
    return SplitPredictions(
        split=split,
        indices=np.array([1, 3]),
        labels=np.array([0, 1]),
        predicted=np.array([0, 0]),
        confidence=np.array([0.75, 0.5], np.float32),
        cross_entropy=np.array([0.25, 0.75], np.float32),
    )


def write() -> None:
    """Write the golden records of this version."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    RUN.mkdir(parents=True)
    (RUN / "model.safetensors").write_bytes(b"weights")
    (RUN / "config.toml").write_text("lr = 0.125\n")
    run.write_metrics(RUN, METRICS)
    result = run_result(weights=file_sha256(RUN / "model.safetensors"), files=run.file_digests(RUN))
    publish_json(RUN / "result.json", result.model_dump(mode="json"))
    record = PredictionRecord(weights_sha256=result.weights_sha256, dataset="a" * 64)
    predictions.write(RUN, record, [split_predictions("held_out"), split_predictions("test")])
    publish_json(FOLDER / "training.json", describe(SETTINGS, INPUTS))
    dataset_format.write_record(FOLDER, DATASET)
    index.remember(FOLDER, request=REQUEST, train="3" * 64, test="4" * 64)
    runs = {name: [FOLDER / path for path in own] for name, own in VARIANTS.items()}
    comparison.write(FOLDER, runs)
    statistics = {row.point: dict.fromkeys(sweep.STATISTICS) for row in ROWS}
    SweepFolder(path=SWEEP).write_results(sweep_record(), ROWS, statistics)
    SweepFolder(path=SWEEP).write_chosen(CHOSEN)


def sweep_record() -> sweep.SweepRecord:
    return sweep.SweepRecord(
        name="rates",
        dataset="a" * 64,
        metric="held_out_mean_of_last",
        baseline="lr=0.125",
        seeds=(0,),
        points={"lr=0.125": {"train_student.lr": 0.125}, "lr=0.25": {"train_student.lr": 0.25}},
    )


def test_released_records_with_digests_open():
    assert dataset_format.read_record(FOLDER) == DATASET
    for split, expected in (("train", "3"), ("eval", "4")):
        assert index.recall(FOLDER, request=REQUEST, split=split) == expected * 64
    compared = comparison.read(FOLDER)
    assert compared == {name: [FOLDER / path for path in own] for name, own in VARIANTS.items()}
    assert read_record(Chosen, SWEEP / "chosen.json", made_by="heartcut", remedy="") == CHOSEN
    require_same_training(FOLDER, settings=SETTINGS, inputs=INPUTS)
    with pytest.raises(ArtefactMismatch, match=r"lr 0\.125 \(expected 0\.25\)"):
        require_same_training(FOLDER, settings=SETTINGS | {"lr": 0.25}, inputs=INPUTS)


def test_a_released_run_with_digests_opens():
    opened = Run.open(RUN)
    files = opened.result.files
    assert opened.result == run_result(weights=opened.result.weights_sha256, files=files)
    assert files.keys() == {"config.toml", "metrics.jsonl"}
    assert opened.epochs() == METRICS
    assert run.read_settings(RUN) == {"lr": 0.125}


def test_released_tables_with_seals_open():
    found = Predictions.open(RUN)
    assert (found.accuracy("held_out"), found.accuracy("test")) == (0.5, 0.5)
    assert found.of("test")["cross_entropy"].tolist() == [0.25, 0.75]
    assert SweepFolder(path=SWEEP).rows() == ROWS


def test_the_golden_records_have_digests_and_seals():
    paths = [path for path in FOLDER.rglob("*") if path.is_file()]
    for path in paths:
        if path.suffix == ".json":
            assert len(json.loads(path.read_text())["digest"]) == 64, path
        if path.suffix == ".parquet":
            assert path.read_bytes().startswith(b"PAR1heartcut seal 1\n"), path


if __name__ == "__main__":
    write()
