"""A run: a trained network, the inputs of its training, and its results.

    <name>-s<seed>-<id>/
        config.toml           the resolved settings
        metrics.jsonl         one line per epoch
        events.out.tfevents.* the same for TensorBoard
        model.safetensors     weights after the last epoch
        predictions.parquet   predictions for held-out and test images (`predictions`)
        result.json           written last: accuracies, agreement, ids of all inputs, cost

The id in the folder's name is a hash of the settings and of the ids of all inputs.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import FiniteFloat, TypeAdapter

from pipeline.artefacts.publishing import publishing_file
from pipeline.artefacts.records import Record, read_record
from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.provenance import Json, file_sha256, identity, short

FORMAT_VERSION: Final = 2
METRICS, WEIGHTS, SETTINGS, RESULT = (
    "metrics.jsonl",
    "model.safetensors",
    "config.toml",
    "result.json",
)

_LINE = TypeAdapter(dict[str, FiniteFloat])
_IN_EVERY_LINE: Final = frozenset({"epoch", "seconds", "training_loss", "held_out_accuracy"})


class Inputs(Record):
    """Ids of everything that a run was trained on."""

    dataset: str
    cache: str | None
    soft_labels: str | None
    selection: str | None
    accepted_mismatches: tuple[str, ...] = ()
    """Differences between the teacher cache and the data set that the user accepted by name."""


class Cost(Record):
    """Cost of the run, and the teacher's work that it saved."""

    seconds: float
    training_images_per_second: float
    teacher_forwards_saved: int
    """Teacher forward passes that online distillation would have made."""
    device: str


class RunResult(Record):
    """result.json"""

    format: Literal["heartcut.run"] = "heartcut.run"
    version: Literal[2] = FORMAT_VERSION
    id: str
    weights_sha256: str
    """SHA-256 of model.safetensors."""
    arch: str
    num_parameters: int
    seed: int
    inputs: Inputs
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    held_out: str
    """Hash of the keys of the held-out samples, which this run did not train on."""
    num_training_samples: int
    held_out_accuracy_last: float
    held_out_accuracy_best: float
    best_epoch: int
    held_out_accuracy_mean_of_last: float
    mean_of_last: int
    test_accuracy: float
    """Accuracy on test images of the weights after the last epoch; measured once."""
    test_loss: float
    test_calibration_error: float
    """Expected calibration error over 15 equal bins of confidence."""
    teacher_agreement_held_out: float | None
    teacher_agreement_test: float | None
    num_distilled: int
    method: str | None
    """Distillation method; None for training without a teacher."""
    online: bool
    """True if the teacher ran in the training loop."""
    cost: Cost
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A complete run, open for reading."""

    path: Path
    result: RunResult

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a run.

        Raises:
            ArtefactNotFound: if there is none.
            ArtefactMismatch: if result.json or the weights are damaged, or of another version.
        """
        if not path.is_dir():
            raise ArtefactNotFound(
                f"{path} does not exist. Train it with `heartcut train-student` or "
                "`heartcut train-teacher` and the same configuration."
            )
        remedy = f"Remove {path} and train again."
        result = read_record(
            RunResult, path / RESULT, made_by="heartcut train-student", remedy=remedy
        )
        run = cls(path=path, result=result)
        run._check_weights()
        return run

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    def _check_weights(self) -> None:
        try:
            found = file_sha256(self.weights)
        except FileNotFoundError as error:
            raise ArtefactNotFound(
                f"{self.weights} is missing. Remove {self.path} and train again."
            ) from error
        if found != self.result.weights_sha256:
            raise ArtefactMismatch(
                f"{self.weights} is damaged: sha256 {short(found)} (expected "
                f"{short(self.result.weights_sha256)}). Remove {self.path} and train again."
            )


def run_id(settings: Mapping[str, Json], inputs: Inputs) -> str:
    """Identity of a run: its settings and its inputs."""
    return identity("run", [FORMAT_VERSION, settings, inputs.model_dump(mode="json")])


def run_path(runs: Path, *, name: str, seed: int, id: str) -> Path:  # noqa: A002
    """Folder of a run: readable, and unique by the id in it."""
    return runs / f"{name}-s{seed}-{short(id)[:8]}"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl: numbers by name, an epoch each.

    Raises:
        ArtefactNotFound: if there is none.
        ArtefactMismatch: if it is damaged.
    """
    path = folder / METRICS
    remedy = f"Remove {folder} and train again."
    try:
        lines = [
            _LINE.validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()
        ]
        if not lines or not all(line.keys() >= _IN_EVERY_LINE for line in lines):
            raise ValueError("not a line of metrics")
        return lines
    except FileNotFoundError as error:
        raise ArtefactNotFound(f"{path} is missing. {remedy}") from error
    except ValueError as error:
        raise ArtefactMismatch(
            f"{path} is damaged: it does not hold a line of numbers for every epoch. {remedy}"
        ) from error


def read_settings(folder: Path) -> dict[str, Json]:
    """The settings in config.toml.

    Raises:
        ArtefactNotFound: if there is none.
        ArtefactMismatch: if it is damaged.
    """
    path = folder / SETTINGS
    remedy = f"Remove {folder} and train again."
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtefactNotFound(f"{path} is missing. {remedy}") from error
    except ValueError as error:
        raise ArtefactMismatch(f"{path} is damaged: it is not valid TOML. {remedy}") from error


def write_metrics(folder: Path, lines: Iterable[Mapping[str, Json]]) -> None:
    """Write metrics.jsonl: a line for every epoch."""
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    with publishing_file(folder / METRICS) as partial:
        partial.write_text(text, encoding="utf-8")
