"""Checkpoints: what comes back is what was written, or nothing does."""

import math

import pytest
import torch
from torch import nn

from pipeline.artefacts import unfinished_run
from pipeline.artefacts.unfinished_run import read_state, write_state
from pipeline.errors import ArtefactMismatch
from tests.support.learners import optimizer_of, schedule_of
from tests.support.workspaces import flip_byte


def moved(kind: str, schedule: str):
    """A model whose optimiser and schedule have taken three steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = optimizer_of(model, kind=kind, weight_decay=0.01)
    rates = schedule_of(optimizer, kind=schedule, milestones=(1, 2))
    for step in range(3):
        take_step(model, optimizer, rates, step)
    return model, optimizer, rates


def take_step(model, optimizer, rates, step):
    images = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()
    rates.step()


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "multi-step", "constant"])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_steps_after_a_restored_checkpoint_are_the_same_to_the_bit(tmp_path, kind, schedule):
    original = moved(kind, schedule)
    names = ("model", "optimizer", "schedule")
    state = {name: part.state_dict() for name, part in zip(names, original, strict=True)}
    write_state(tmp_path / "a.safetensors", state)
    torch.manual_seed(9)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = optimizer_of(model, kind=kind, weight_decay=0.01)
    restored = model, optimizer, schedule_of(optimizer, kind=schedule, milestones=(1, 2))
    found = read_state(tmp_path / "a.safetensors")
    for name, part in zip(names, restored, strict=True):
        part.load_state_dict(found[name])
    for step in range(3, 20):
        take_step(*original, step)
        take_step(*restored, step)
    assert original[1].param_groups[0]["lr"] == restored[1].param_groups[0]["lr"]
    for expected, actual in zip(
        original[0].state_dict().values(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, actual)


def test_every_kind_of_value_comes_back(tmp_path):
    state = {
        "tensors": [
            torch.zeros(0, 3),
            torch.tensor(2.5, dtype=torch.float64),
            torch.arange(3, dtype=torch.uint8),
            torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
            torch.tensor([True, False]),
            torch.ones(3, dtype=torch.bfloat16),
        ],
        "numbers": [1, 0.1, 1e300, math.inf, None, True, "text"],
        "keys": {0: {"step": 3}, 7: "seven"},
        "tensor": {"tensor": 1, "pairs": [2]},
        "empty": {},
    }
    write_state(tmp_path / "a.safetensors", state)
    found = read_state(tmp_path / "a.safetensors")
    for expected, actual in zip(state.pop("tensors"), found.pop("tensors"), strict=True):
        assert torch.equal(expected, actual)
        assert expected.dtype == actual.dtype
    assert found == state


def test_one_tensor_under_two_names_comes_back_twice(tmp_path):
    shared = torch.arange(4.0)
    write_state(tmp_path / "a.safetensors", {"a": shared, "b": shared, "part": shared[1:]})
    found = read_state(tmp_path / "a.safetensors")
    assert torch.equal(found["a"], found["b"])
    assert torch.equal(found["part"], shared[1:])


def test_an_object_that_is_not_a_state_is_not_written(tmp_path):
    with pytest.raises(TypeError):
        write_state(tmp_path / "a.safetensors", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def test_every_changed_byte_and_every_cut_is_rejected(tmp_path):
    path = tmp_path / "folder" / "a.safetensors"
    write_state(path, {"a": torch.arange(5.0), "b": {"c": 1}})
    data = path.read_bytes()
    for offset in range(len(data)):
        flip_byte(path, offset)
        with pytest.raises(ArtefactMismatch, match=r"safetensors is damaged"):
            read_state(path)
        path.write_bytes(data)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ArtefactMismatch):
            read_state(path)


def test_another_version_is_rejected_in_one_line(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(unfinished_run, "FORMAT_VERSION", 7)
        write_state(path, {"a": 1})
    with pytest.raises(ArtefactMismatch, match=r"a\.safetensors .*version 7 .*1"):
        read_state(path)
