"""An unfinished training: everything that it needs to resume after a kill.

    <run>.training/
        training.json             the settings and inputs that its id is computed from
        checkpoint.safetensors    the last checkpoint; replaced as a whole
        metrics.jsonl             one line for every epoch in the checkpoint
        events.out.tfevents.*     the same numbers for TensorBoard
        lock                      held by the process that trains

The folder is removed when the run is published; until then the same command resumes from it.

checkpoint.safetensors holds every tensor, and as metadata "heartcut" the version of the format, a
JSON tree in which {"tensor": n} stands for tensor n and {"pairs": [[k, v], ...]} for a dict whose
keys are not strings, and a SHA-256 over all of it. A state is what torch's `state_dict` methods
return: dicts, lists and tuples of tensors, numbers, strings, booleans and None. Tuples come back as
lists. Nothing is pickled.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.artefacts.publishing import locked_folder, publish_json, publishing_file, read_json
from pipeline.artefacts.run import Inputs, write_metrics
from pipeline.errors import ArtefactMismatch
from pipeline.provenance import Json

State: TypeAlias = Any
"""A tree of dicts, lists, tensors and JSON's scalars."""

FORMAT_VERSION: Final = 1
_TENSOR, _PAIRS = "tensor", "pairs"
UNFINISHED: Final = ".training"
_DESCRIPTION, _CHECKPOINT, _LOCK = "training.json", "checkpoint.safetensors", "lock"
_SHOWN_KEYS: Final = 5
_MADE_BY: Final = "heartcut train-student"


def write_state(path: Path, state: State) -> None:
    """Write a state to ``path``, all or nothing.

    Raises:
        TypeError: if it holds a type that a state must not hold.
        PipelineError: if the file cannot be written.
    """
    tensors: list[Tensor] = []
    tree = json.dumps(_packed(state, tensors))
    named = {str(n): _own(tensor) for n, tensor in enumerate(tensors)}
    described = json.dumps([FORMAT_VERSION, tree, _digest(FORMAT_VERSION, tree, named)])
    data = safetensors.torch.save(named, metadata={"heartcut": described})
    with publishing_file(path) as partial:
        partial.write_bytes(data)


def read_state(path: Path) -> State:
    """The state that `write_state` wrote.

    Raises:
        ArtefactMismatch: if the file is damaged.
    """
    try:
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        version, tree, digest = json.loads(header["__metadata__"]["heartcut"])
        tensors = safetensors.torch.load(data)
        whole = _digest(version, tree, tensors) == digest
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtefactMismatch(_damaged(path)) from error
    if not whole:
        raise ArtefactMismatch(_damaged(path))
    if version != FORMAT_VERSION:
        raise ArtefactMismatch(
            f"{path} is of version {version} (expected {FORMAT_VERSION}). Remove {path.parent} and "
            "train again."
        )
    return _unpacked(json.loads(tree), tensors)


def _damaged(path: Path) -> str:
    return f"{path} is damaged (expected a checkpoint). Remove {path.parent} and train again."


def _packed(state: State, tensors: list[Tensor]) -> State:
    """``state`` as JSON, its tensors moved into the list."""
    if isinstance(state, Tensor):
        tensors.append(state)
        return {_TENSOR: len(tensors) - 1}
    if isinstance(state, Mapping):
        if all(isinstance(key, str) for key in state) and state.keys().isdisjoint(
            (_TENSOR, _PAIRS)
        ):
            return {key: _packed(value, tensors) for key, value in state.items()}
        return {_PAIRS: [[key, _packed(value, tensors)] for key, value in state.items()]}
    if isinstance(state, list | tuple):
        return [_packed(value, tensors) for value in state]
    return state


def _unpacked(tree: State, tensors: Mapping[str, Tensor]) -> State:
    if isinstance(tree, list):
        return [_unpacked(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return tensors[str(tree[_TENSOR])]
    if _PAIRS in tree:
        return {key: _unpacked(value, tensors) for key, value in tree[_PAIRS]}
    return {key: _unpacked(value, tensors) for key, value in tree.items()}


def _own(tensor: Tensor) -> Tensor:
    """The tensor on the CPU in memory of its own, because safetensors rejects shared memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _digest(version: int, tree: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{version} {tree}".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class UnfinishedRun:
    """The folder of one training; no other process writes there while it is open."""

    folder: Path

    @classmethod
    @contextmanager
    def opened(
        cls, run: Path, *, settings: Mapping[str, Json], inputs: Inputs
    ) -> Iterator["UnfinishedRun"]:
        """Create or find the folder next to the future run, and lock it.

        A folder without a checkpoint is of no use and is removed if the training fails.

        Raises:
            PipelineError: if it cannot be written, or another process trains the same run.
        """
        folder = unfinished_path(run)
        busy = f"{folder} is being trained by another process. Wait for it, or set another seed."
        with locked_folder(folder, file=_LOCK, busy=busy):
            publish_json(folder / _DESCRIPTION, describe(settings, inputs))
            unfinished = cls(folder=folder)
            try:
                yield unfinished
            except BaseException:
                if not (folder / _CHECKPOINT).exists():
                    unfinished.remove()
                raise

    def checkpoint(self) -> State | None:
        """The last checkpoint; None if there is none."""
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
        """Remove the folder, after its run was published."""
        shutil.rmtree(self.folder, ignore_errors=True)


def unfinished_path(run: Path) -> Path:
    """Folder in which the training of a run keeps its checkpoint."""
    return run.with_name(run.name + UNFINISHED)


def describe(settings: Mapping[str, Json], inputs: Inputs) -> dict[str, Json]:
    """Contents of training.json: the inputs of the run's id."""
    return {**settings, "inputs": inputs.model_dump(mode="json")}


def require_same_training(folder: Path, *, settings: Mapping[str, Json], inputs: Inputs) -> None:
    """Reject resuming a training with other settings or inputs; name the keys that differ.

    Raises:
        ArtefactNotFound: if there is no unfinished training.
        ArtefactMismatch: if its settings or inputs differ.
    """
    found = _flat(read_json(folder / _DESCRIPTION, made_by=_MADE_BY))
    wanted = _flat(describe(settings, inputs))
    keys = [key for key in dict.fromkeys([*found, *wanted]) if found.get(key) != wanted.get(key)]
    if keys:
        differing = "; ".join(
            f"{key} {_shown(found.get(key))} (expected {_shown(wanted.get(key))})"
            for key in keys[:_SHOWN_KEYS]
        )
        more = f"; {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
        raise ArtefactMismatch(
            f"{folder} was started, by {_DESCRIPTION}, with other settings: {differing}{more}. "
            "Train with those, or without --resume to start again."
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
