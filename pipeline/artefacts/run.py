"""A run: a trained network, the inputs of its training, and its results.

    <name>-s<seed>-<id>/
        config.toml           the resolved settings
        metrics.jsonl         one line per epoch
        events.out.tfevents.* the same for TensorBoard
        model.safetensors     weights after the last epoch
        predictions.parquet   predictions for held-out and test images (`predictions`)
        result.json           written last: accuracies, agreement, ids of all inputs, cost, and
                              digests of config.toml, metrics.jsonl, the weights and itself

The id in the folder's name is a hash of the settings and of the ids of all inputs.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, FiniteFloat, TypeAdapter

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

_ROUNDING: Final = 1e-9
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
    files: dict[Literal["config.toml", "metrics.jsonl"], str] = Field(default_factory=dict)
    """SHA-256 of config.toml and of metrics.jsonl; empty in runs of earlier versions."""
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
            ArtefactMismatch: if result.json or a file that it has a digest of is damaged, or
                result.json is of another version.
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
        for name, expected in [(WEIGHTS, result.weights_sha256), *result.files.items()]:
            run._check_file(path / name, expected)
        return run

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    def epochs(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl, one for each epoch, compared with result.json.

        Raises:
            ArtefactNotFound: if there are none.
            ArtefactMismatch: if they are damaged, or result.json has other accuracies.
        """
        lines, result = read_metrics(self.path), self.result
        numbers = [line["epoch"] for line in lines]
        accuracies = [line["held_out_accuracy"] for line in lines]
        best, last = max(accuracies), accuracies[-result.mean_of_last :]
        compared = {
            "last epoch": (numbers[-1], len(lines)),
            "last held-out accuracy": (accuracies[-1], result.held_out_accuracy_last),
            "best held-out accuracy": (best, result.held_out_accuracy_best),
            "best epoch": (numbers[accuracies.index(best)], result.best_epoch),
            "mean of the last held-out accuracies": (
                sum(last) / len(last),
                result.held_out_accuracy_mean_of_last,
            ),
        }
        for name, (found, expected) in compared.items():
            if abs(found - expected) > _ROUNDING:
                raise ArtefactMismatch(
                    f"{self.path / METRICS} has another {name} than {RESULT}: {found:g} (expected "
                    f"{expected:g}). Remove {self.path} and train again."
                )
        return lines

    def _check_file(self, path: Path, expected: str) -> None:
        remedy = f"Remove {self.path} and train again."
        try:
            found = file_sha256(path)
        except FileNotFoundError as error:
            raise ArtefactNotFound(f"{path} is missing. {remedy}") from error
        if found != expected:
            raise ArtefactMismatch(
                f"{path} is damaged: sha256 {short(found)} (expected {short(expected)}). {remedy}"
            )


def file_digests(folder: Path) -> dict[str, str]:
    """`RunResult.files` of a run whose other files are written."""
    return {name: file_sha256(folder / name) for name in (SETTINGS, METRICS)}


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
