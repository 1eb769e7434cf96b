import io
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.models.checkpoints import load_into, load_weights, save_weights, weights_digest
from pipeline.models.zoo import build
from tests.support.cases import looped, mentions

SOURCE = Path("teacher.th")


def network(arch="resnet8a", *, seed=3, num_classes=10):
    torch.manual_seed(seed)
    model = build(arch, num_classes=num_classes)
    model(torch.randn(4, 3, 8, 8))  # running statistics and counters leave their initial values
    return model.eval()


def without_counters(state):
    return {key: value for key, value in state.items() if "num_batches" not in key}


def saved(content, path):
    torch.save(content, path)
    return path


def assert_same_weights(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype
        assert torch.equal(actual[key], value)


def error_line(action, error=ArtefactMismatch):
    """The one line that a refused action says."""
    with pytest.raises(error) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Round trips


def test_a_saved_network_gives_the_same_logits(tmp_path):
    model, other = network(), network(seed=4)
    save_weights(model, tmp_path / "w.safetensors")
    weights = load_weights(tmp_path / "w.safetensors")
    assert_same_weights(weights, model.state_dict())
    load_into(other, weights, source=SOURCE)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(other(images), model(images))


def test_the_file_says_what_it_holds(tmp_path):
    save_weights(network(num_classes=7), tmp_path / "w.safetensors")
    with safetensors.safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert file.metadata() == {"heartcut": '{"arch": "resnet8a", "num_classes": 7}'}


def test_equal_weights_give_equal_files_in_every_memory_format(tmp_path):
    model = network()
    save_weights(model, tmp_path / "a.safetensors")
    save_weights(model.to(memory_format=torch.channels_last), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("container", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files_of_every_layout_give_the_same_weights(tmp_path, container, zipped):
    state = network().state_dict()
    content = {container: state, "epoch": 3, "best_prec1": 91.8} if container else state
    torch.save(content, tmp_path / "w.th", _use_new_zipfile_serialization=zipped)
    assert_same_weights(load_weights(tmp_path / "w.th"), state)


@looped("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_stripped(tmp_path, prefix):
    state = network().state_dict()
    path = saved({prefix + key: value for key, value in state.items()}, tmp_path / "w.pt")
    assert_same_weights(load_weights(path), state)


def test_parameters_load_as_plain_tensors(tmp_path):
    path = saved(dict(network().named_parameters()), tmp_path / "w.pt")
    assert not any(weight.requires_grad for weight in load_weights(path).values())


def test_weights_outlive_a_change_of_their_file(tmp_path):
    path = tmp_path / "w.safetensors"
    model = network()
    save_weights(model, path)
    weights = load_weights(path)
    path.write_bytes(b"")
    assert_same_weights(weights, model.state_dict())


def test_loaded_weights_are_copied_not_shared(tmp_path):
    model = network()
    weights = load_weights(saved(model.state_dict(), tmp_path / "w.pt"))
    load_into(model, weights, source=SOURCE)
    weights["linear.bias"].fill_(9.0)
    assert not (model.head.bias == 9.0).any()


def test_checkpoints_from_before_batch_counters_load():
    model, old = network(), without_counters(network(seed=4).state_dict())
    load_into(model, old, source=SOURCE)
    assert_same_weights(without_counters(model.state_dict()), old)


def distiller(student, teacher=None, *, prefix="module."):
    """Contents of mdistiller's `latest` and `best`: all trained parts, and the optimiser."""
    parts = {
        "student": student,
        "teacher": teacher or {},
        "embed_s": {"linear.weight": torch.ones(2)},
    }
    model = {
        f"{prefix}{part}.{key}": value
        for part, state in parts.items()
        for key, value in state.items()
    }
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.05}]}
    return {"epoch": 240, "model": model, "optimizer": optimizer, "best_acc": torch.tensor(71.9)}


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("with_teacher", [True, False])
def test_of_a_distiller_the_student_is_taken(tmp_path, prefix, with_teacher):
    student, teacher = network("resnet8"), network("resnet14")
    teacher.fc.bias.data.fill_(float("nan"))  # what is left out is not looked at
    state = teacher.state_dict() if with_teacher else None
    content = distiller(student.state_dict(), state, prefix=prefix)
    weights = load_weights(saved(content, tmp_path / "best"))
    assert_same_weights(weights, student.state_dict())
    load_into(network("resnet8", seed=5), weights, source=SOURCE)


def test_a_student_wrapped_within_its_distiller_is_unwrapped(tmp_path):
    state = network().state_dict()
    content = distiller({f"module.{key}": value for key, value in state.items()})
    assert_same_weights(load_weights(saved(content, tmp_path / "latest")), state)


def test_a_student_that_is_there_twice_is_rejected(tmp_path):
    content = {"student.a": torch.zeros(1), "module.student.module.a": torch.ones(1)}
    line = error_line(lambda: load_weights(saved(content, tmp_path / "w.pt")))
    assert "is ambiguous: 2 names, of which 1 differ" in line


def test_the_student_of_a_distiller_is_the_one_that_it_saves_alone(tmp_path):
    student = network("resnet8").state_dict()
    alone = saved({"model": student}, tmp_path / "student_best")
    whole = saved(distiller(student, network("resnet14").state_dict()), tmp_path / "best")
    assert weights_digest(load_weights(whole)) == weights_digest(load_weights(alone))


def test_a_distiller_saved_where_another_student_is_expected_is_rejected(tmp_path):
    content = distiller(network("resnet8").state_dict(), network("resnet14").state_dict())
    weights = load_weights(saved(content, tmp_path / "best"))
    line = error_line(lambda: load_into(network("resnet14"), weights, source=SOURCE))
    assert "does not fit resnet14" in line


# Digest


def test_the_digest_is_that_of_the_weights_not_of_the_file(tmp_path):
    state = network().state_dict()
    wrapped = {"state_dict": {f"module.{key}": state[key] for key in reversed(state)}}
    save_weights(network(), tmp_path / "w.safetensors")
    digests = {
        weights_digest(state),
        weights_digest(wrapped["state_dict"]),
        weights_digest(dict(reversed(state.items()))),
        weights_digest(without_counters(state)),
        weights_digest(network().to(memory_format=torch.channels_last).state_dict()),
        weights_digest(load_weights(saved(wrapped, tmp_path / "w.th"))),
        weights_digest(load_weights(tmp_path / "w.safetensors")),
    }
    assert len(digests) == 1
    assert re.fullmatch("[0-9a-f]{64}", digests.pop())


@pytest.mark.parametrize(
    "changed",
    [
        {"b": torch.arange(6.0)},
        {"a": torch.arange(6.0), "b": torch.zeros(1)},
        {"a": torch.arange(6.0).reshape(2, 3)},
        {"a": torch.arange(6.0).view(torch.int32)},
        {"a": torch.arange(6.0).flip(0)},
        {"a": torch.arange(6.0).double()},
        {"a": torch.empty(0)},
    ],
    ids=["name", "one more", "shape", "dtype, same bytes", "order", "precision", "empty"],
)
def test_the_digest_changes_with_names_shapes_dtypes_and_numbers(changed):
    assert weights_digest(changed) != weights_digest({"a": torch.arange(6.0)})


def test_the_digest_is_pinned():
    weights = {"linear.weight": torch.arange(4.0).reshape(2, 2), "step": torch.tensor(7)}
    assert weights_digest(weights) == (
        "ef66d6f6148f43a4130d48191a36ec014752d816d7f97569fbb101abb42f2e14"
    )


def test_the_digest_takes_every_dtype_of_checkpoints():
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool):
        assert weights_digest({"a": torch.ones(3, dtype=dtype)})


# What does not fit


def test_another_depth_is_rejected_in_one_line_that_names_the_first_three_keys():
    model, weights = network("resnet14a"), network("resnet8a").state_dict()
    line = error_line(lambda: load_into(model, weights, source=SOURCE))
    assert mentions(line, "teacher.th", "resnet14a", 36, 80)
    assert mentions(line, "layer1.1.conv1.weight", "[16, 16, 3, 3]", "float32")
    assert line.count("(expected") == 3
    small = network("resnet8a")
    backwards = error_line(lambda: load_into(small, model.state_dict(), source=SOURCE))
    assert mentions(backwards, "layer1.1.conv1.weight", "[16, 16, 3, 3]", "float32")


def test_another_class_count_is_said_as_such():
    weights = network(num_classes=10).state_dict()
    line = error_line(lambda: load_into(network(num_classes=100), weights, source=SOURCE))
    assert line.startswith("teacher.th has a head for 10 classes (expected 100). ")
    assert "does not fit" not in line


def test_another_class_count_and_depth_are_both_said():
    weights = network("resnet8a", num_classes=10).state_dict()
    model = network("resnet14a", num_classes=100)
    line = error_line(lambda: load_into(model, weights, source=SOURCE))
    assert "has a head for 10 classes (expected 100)." in line
    assert mentions(line, "resnet14a", 36, 80, "layer1.1.conv1.weight")


def test_a_head_on_other_features_is_a_plain_difference():
    weights = network().state_dict() | {"linear.weight": torch.zeros(10, 32)}
    line = error_line(lambda: load_into(network(), weights, source=SOURCE))
    assert mentions(line, 1, 44, "linear.weight", "[10, 32]", "[10, 64]")


@looped("key", ["linear.bias", "bn1.running_mean"])
def test_one_missing_key_is_rejected(key):
    weights = network().state_dict()
    del weights[key]
    line = error_line(lambda: load_into(network(), weights, source=SOURCE))
    assert mentions(line, 1, 44, key, "missing")


def test_integers_in_place_of_weights_are_rejected():
    weights = network().state_dict()
    weights["conv1.weight"] = weights["conv1.weight"].to(torch.int8)
    line = error_line(lambda: load_into(network(), weights, source=SOURCE))
    assert "conv1.weight is [16, 3, 3, 3] int8" in line


def test_rejected_weights_leave_the_model_as_it_was():
    model = network()
    weights = network(seed=4).state_dict() | {"linear.bias": torch.zeros(11)}
    error_line(lambda: load_into(model, weights, source=SOURCE))
    assert_same_weights(model.state_dict(), network().state_dict())


def test_names_from_a_file_cannot_break_the_line():
    weights = network().state_dict() | {"evil\nname\x1b[31m": torch.zeros(1)}
    line = error_line(lambda: load_into(network(), weights, source=SOURCE))
    assert r"evil\nname" in line
    assert "\x1b" not in line


# What is not read


class Malice:
    """Pickles to a call that creates a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def torch_zip(content, path):
    torch.save(content, path)


def torch_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain_pickle(protocol):
    def write(content, path):
        path.write_bytes(pickle.dumps(content, protocol=protocol))

    return write


WRITERS = [torch_zip, torch_legacy, *(plain_pickle(protocol) for protocol in range(1, 6))]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a state dict"])
def test_pickled_code_is_rejected_and_not_run(tmp_path, write, inside):
    target, path = tmp_path / "created", tmp_path / "w.pth"
    malice = Malice(target)
    write({"state_dict": malice, "conv1.weight": 1.0} if inside else malice, path)
    line = error_line(lambda: load_weights(path))
    assert not target.exists()
    assert f"{path} holds pickled code" in line
    assert "was not loaded" in line
    assert "safetensors" in line
    assert "weights_only" not in line


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a dict"])
def test_pickled_code_of_the_oldest_protocol_is_rejected_and_not_run(tmp_path, inside):
    malice = Malice(tmp_path / "created")
    plain_pickle(0)({"state_dict": malice} if inside else malice, tmp_path / "w.pth")
    error_line(lambda: load_weights(tmp_path / "w.pth"))
    assert not (tmp_path / "created").exists()


def test_the_malicious_pickle_would_have_worked(tmp_path):
    subprocess.run(
        [sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"],
        input=pickle.dumps(Malice(tmp_path / "created")),
        check=True,
    )
    assert (tmp_path / "created").exists()


def test_a_whole_pickled_network_is_rejected(tmp_path):
    line = error_line(lambda: load_weights(saved(network(), tmp_path / "w.pt")))
    assert mentions(line, "pickled code", "pipeline.models.networks.cifar_resnet.CifarResNet")


def test_a_missing_file_is_not_found(tmp_path):
    line = error_line(lambda: load_weights(tmp_path / "none.pt"), ArtefactNotFound)
    assert "none.pt was not found" in line


def test_a_folder_is_rejected(tmp_path):
    assert "cannot be read: Is a directory" in error_line(lambda: load_weights(tmp_path))


@looped("name", ["w.safetensors", "w.th"])
@looped(
    "data",
    [b"", b"\x80", b"\x80\x02", b"PK\x03\x04", b"<!DOCTYPE html>\n", b"\x00" * 64, b"{}" * 99],
)
def test_other_files_are_rejected(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    line = error_line(lambda: load_weights(tmp_path / name))
    assert mentions(line, name, len(data), "bytes")


def checkpoint_bytes(kind):
    state = {"conv.weight": torch.ones(4, 3), "linear.bias": torch.zeros(3)}
    if kind == "safetensors":
        return safetensors.torch.save(state)
    stream = io.BytesIO()
    torch.save({"state_dict": state}, stream, _use_new_zipfile_serialization=kind == "zip")
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_every_truncation_is_rejected(tmp_path, kind):
    whole = checkpoint_bytes(kind)
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    for size in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:size])
        assert "w." in error_line(lambda: load_weights(path))


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_flipped_bytes_never_raise_anything_but_a_rejection(tmp_path, kind):
    whole = checkpoint_bytes(kind)
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    lines = []
    for place in range(0, len(whole), max(1, len(whole) // 400)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xA5]) + whole[place + 1 :])
        try:
            load_weights(path)
        except ArtefactMismatch as error:
            lines.append(str(error))
    assert lines
    assert not any("\n" in line for line in lines)


@looped("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_rejected(tmp_path, value):
    state = network().state_dict()
    state["bn1.running_var"][3] = value
    line = error_line(lambda: load_weights(saved(state, tmp_path / "w.pt")))
    assert mentions(line, 1, len(state), "NaN", "bn1.running_var")


def test_numbers_beyond_float32_are_rejected(tmp_path):
    path = saved({"a": torch.full((2,), 1e300, dtype=torch.float64)}, tmp_path / "w.pt")
    assert "hold NaN or infinity" in error_line(lambda: load_weights(path))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (torch.zeros(3), "a Tensor"),
        ([1, 2], "a list"),
        ({}, "an empty dict"),
        ({"state_dict": {}}, "a dict of 1 keys (state_dict)"),
        ({"weights": {"a": torch.zeros(1)}}, "a dict of 1 keys (weights)"),
        ({"a": torch.zeros(1), "b": 2.0}, "a dict of 2 keys (a, b)"),
        ({0: torch.zeros(1)}, "a dict of 1 keys (0)"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "a dict of 1 keys (a)"),
        ({"a": torch.zeros(2, device="meta")}, "a dict of 1 keys (a)"),
    ],
)
def test_an_object_that_is_not_a_state_dict_is_rejected(tmp_path, content, found):
    line = error_line(lambda: load_weights(saved(content, tmp_path / "w.pt")))
    assert mentions(line, "0 state dicts")
    assert found in line


def test_two_networks_in_a_file_are_rejected(tmp_path):
    state = {"a": torch.zeros(1)}
    path = saved({"state_dict": state, "model": state}, tmp_path / "w.pt")
    assert "2 state dicts" in error_line(lambda: load_weights(path))


def test_names_that_collide_without_their_prefix_are_rejected(tmp_path):
    path = saved({"a": torch.zeros(1), "module.a": torch.ones(1)}, tmp_path / "w.pt")
    assert "w.pt is ambiguous: 2 names" in error_line(lambda: load_weights(path))
