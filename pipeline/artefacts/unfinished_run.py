"""A training that is under way: what it needs to go on after a kill.

    <run>.training/
        training.json             the settings and inputs that its id is made of
        checkpoint.safetensors    the last checkpoint; replaced as a whole (`training_state`)
        metrics.jsonl             one line for every epoch that the checkpoint knows
        events.out.tfevents.*     the same numbers for TensorBoard
        lock                      held by the process that trains

The folder is removed when the run is published; until then the same command goes on from it.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.artefacts.publishing import one_line_disk_errors, publish_json, read_json
from pipeline.artefacts.run import Inputs, write_metrics
from pipeline.artefacts.training_state import State, read_state, write_state
from pipeline.errors import ArtefactMismatch, PipelineError
from pipeline.provenance import Json

UNFINISHED: Final = ".training"
_DESCRIPTION, _CHECKPOINT, _LOCK = "training.json", "checkpoint.safetensors", "lock"
_SHOWN_KEYS: Final = 5
_MADE_BY: Final = "heartcut train-student"


@dataclass(frozen=True, kw_only=True)
class UnfinishedRun:
    """The folder of one training; nobody else writes there while it is open."""

    folder: Path

    @classmethod
    @contextmanager
    def opened(
        cls, run: Path, *, settings: Mapping[str, Json], inputs: Inputs
    ) -> Iterator["UnfinishedRun"]:
        """The folder beside the run that will be, begun or found.

        One without a checkpoint, of no use to anybody, is removed when the training fails.

        Raises:
            PipelineError: if it cannot be written, or another process trains the same run.
        """
        folder = unfinished_path(run)
        with one_line_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / _LOCK).open("a")
        with lock:
            _lock(lock.fileno(), folder)
            publish_json(folder / _DESCRIPTION, describe(settings, inputs))
            unfinished = cls(folder=folder)
            try:
                yield unfinished
            except BaseException:
                if not (folder / _CHECKPOINT).exists():
                    unfinished.remove()
                raise

    def checkpoint(self) -> State | None:
        """The last checkpoint, if there is one."""
        path = self.folder / _CHECKPOINT
        return read_state(path) if path.exists() else None

    def keep(self, state: State, metrics: Sequence[Mapping[str, Json]]) -> None:
        """Replace the checkpoint and the lines of metrics."""
        write_state(self.folder / _CHECKPOINT, state)
        write_metrics(self.folder, metrics)

    def events(self) -> list[Path]:
        """Files for TensorBoard."""
        return sorted(self.folder.glob("events.out.tfevents.*"))

    def remove(self) -> None:
        """Forget the training: its run is published."""
        shutil.rmtree(self.folder, ignore_errors=True)


def unfinished_path(run: Path) -> Path:
    """Where the training of a run keeps what it needs to go on."""
    return run.with_name(run.name + UNFINISHED)


def describe(settings: Mapping[str, Json], inputs: Inputs) -> dict[str, Json]:
    """training.json: what the id of the run is made of."""
    return {**settings, "inputs": inputs.model_dump(mode="json")}


def require_same_training(folder: Path, *, settings: Mapping[str, Json], inputs: Inputs) -> None:
    """Refuse to go on with a training of other settings or inputs; name the keys that differ.

    Raises:
        ArtefactNotFound: if no training is under way there.
        ArtefactMismatch: if it is another one.
    """
    found = _flat(read_json(folder / _DESCRIPTION, made_by=_MADE_BY))
    wanted = _flat(describe(settings, inputs))
    keys = [key for key in dict.fromkeys([*found, *wanted]) if found.get(key) != wanted.get(key)]
    if keys:
        told = "; ".join(
            f"{key} {_shown(found.get(key))} (expected {_shown(wanted.get(key))})"
            for key in keys[:_SHOWN_KEYS]
        )
        more = f"; {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
        raise ArtefactMismatch(
            f"{folder} was begun with other settings: {told}{more}. Train with those, or without "
            "--resume to begin anew."
        )


def _flat(tree: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    """Dotted keys of all values in a tree of dicts."""
    flat: dict[str, Json] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _shown(value: Json) -> str:
    text = "unset" if value is None else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PipelineError(
            f"{folder} is being trained by another process. Wait for it, or set another seed."
        ) from error
    except OSError:
        return  # a file system without locks: two processes would write the same numbers
