"""A checkpoint of a training that is under way: one file, replaced as a whole.

    checkpoint.safetensors  every tensor, and as metadata "heartcut" the version of the format, a
                            JSON tree in which {"tensor": n} stands for tensor n and {"pairs":
                            [[k, v], ...]} for a dict whose keys are no strings, and a SHA-256
                            over all of it

A state is what torch's `state_dict` methods return: dicts, lists and tuples of tensors, numbers,
strings, booleans and None. Tuples come back as lists. Nothing is pickled.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.artefacts.publishing import publishing_file
from pipeline.errors import ArtefactMismatch

State: TypeAlias = Any
"""A tree of dicts, lists, tensors and JSON's scalars."""

FORMAT_VERSION: Final = 1
_TENSOR, _PAIRS = "tensor", "pairs"


def write_state(path: Path, state: State) -> None:
    """Write a state under ``path``, all or nothing.

    Raises:
        TypeError: if it holds anything else than a state may.
        PipelineError: if the place cannot be written.
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
    """The tensor on the CPU in memory of its own: safetensors writes no tensor twice."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _digest(version: int, tree: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{version} {tree}".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
