import argparse
import datetime
import io
import os
import pickle
import re
import subprocess
import sys
import types
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.models.checkpoint_files import EmptyDict, Inert, _stand_ins
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


def test_other_values_may_stand_between_bare_weights(tmp_path):
    state = network().state_dict()
    path = saved({**state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pt")
    assert_same_weights(load_weights(path), state)


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


# Checkpoints as people have them


def wrapped_names(state, wrap):
    return {wrap(name): value for name, value in state.items()}


PREFIXES = [
    *("model.", "net.", "backbone.", "encoder.model.", "model._orig_mod.", "module.model."),
    *("_orig_mod.module.net.", "student_model.", "a.b.c."),
]


@looped("prefix", PREFIXES)
def test_one_more_prefix_of_all_names_is_removed_where_the_rest_fits(tmp_path, prefix):
    state = network().state_dict()
    path = saved({"state_dict": wrapped_names(state, lambda n: prefix + n)}, tmp_path / "w.ckpt")
    model = network(seed=4)
    loaded = load_into(model, load_weights(path), source=path)
    assert_same_weights(model.state_dict(), state)
    assert weights_digest(loaded) == weights_digest(state)


def test_wrappers_within_names_are_removed(tmp_path):
    state = network().state_dict()
    inner = wrapped_names(state, lambda n: n.replace("layer1.", "layer1.module."))
    model = network(seed=4)
    load_into(model, load_weights(saved({"net": inner}, tmp_path / "w.pth")), source=SOURCE)
    assert_same_weights(model.state_dict(), state)


def test_a_prefix_of_the_network_itself_may_be_missing_in_the_file():
    class Wrapped(torch.nn.Module):
        arch = "wrapped"

        def __init__(self, seed):
            super().__init__()
            self.model = network(seed=seed)

        @property
        def head(self):
            return self.model.head

    wrapped, bare = Wrapped(3), network(seed=4).state_dict()
    load_into(wrapped, bare, source=SOURCE)
    assert_same_weights(wrapped.model.state_dict(), bare)


def test_what_is_beside_the_network_under_other_names_is_left_out(tmp_path):
    state = network().state_dict()
    content = wrapped_names(state, lambda n: "model." + n) | {"loss.weight": torch.ones(10)}
    model = network(seed=4)
    loaded = load_into(model, load_weights(saved(content, tmp_path / "w.pt")), source=SOURCE)
    assert_same_weights(model.state_dict(), state)
    assert weights_digest(loaded) == weights_digest(state)


def test_of_two_networks_by_prefix_the_plain_one_is_taken_and_equals_are_rejected(tmp_path):
    plain, other = network(seed=5).state_dict(), network(seed=6).state_dict()

    def path(first, second):
        content = wrapped_names(plain, lambda n: first + n)
        return saved(content | wrapped_names(other, lambda n: second + n), tmp_path / "w.pt")

    model = network(seed=4)
    load_into(model, load_weights(path("model.", "ema_model.")), source=SOURCE)
    assert_same_weights(model.state_dict(), plain)
    twice = load_weights(path("net_a.", "net_b."))
    line = error_line(lambda: load_into(model, twice, source=SOURCE))
    assert mentions(line, 2, "networks", "net_a.conv1.weight", "net_b.conv1.weight")
    assert "`cache_teacher.checkpoint_key`" in line
    chosen = load_weights(path("net_a.", "net_b."), key="net_b")
    load_into(model, chosen, source=SOURCE)
    assert_same_weights(model.state_dict(), other)


def test_other_names_are_shown_where_nothing_fits():
    state = wrapped_names(network().state_dict(), lambda n: n.replace("layer", "stage"))
    line = error_line(lambda: load_into(network(), state, source=SOURCE))
    assert mentions(line, "layer1.0.conv1.weight", "missing")
    assert "stage1.0.conv1.weight" in line


CONTAINERS = [
    *(("net",), ("weights",), ("params",), ("model_state",), ("generator",), ("0",)),
    *(("checkpoint", "model"), ("state", "net"), ("ema",), ("model_ema",), ("ema", "module")),
]


@looped("keys", CONTAINERS)
def test_a_container_may_have_any_key(tmp_path, keys):
    state = network().state_dict()
    content = state
    for key in reversed(keys):
        content = {key: content, "epoch": 3}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3, 3)}}, "param_groups": [{"lr": 1}]}
    content |= {
        "optimizer": optimizer,
        "optim_state": {"a.weight": torch.ones(2, 2)},
        "lr_scheduler": {"w": torch.ones(2, 2)},
        "metrics": {"accuracy": torch.tensor(0.9)},
        "acc": 93.1,
    }
    assert_same_weights(load_weights(saved(content, tmp_path / "w.pth")), state)


def test_the_plain_network_comes_before_its_average_and_a_key_chooses(tmp_path, caplog):
    plain, average = network(seed=5).state_dict(), network(seed=6).state_dict()
    for names in (("state_dict", "state_dict_ema"), ("net", "net_ema"), ("model", "modelEMA")):
        path = saved({names[0]: plain, names[1]: average}, tmp_path / "w.pth")
        with caplog.at_level("INFO"):
            assert_same_weights(load_weights(path), plain)
        assert f'"{names[0]}" is loaded' in caplog.text
        assert f'"{names[1]}"' in caplog.text
        assert "cache_teacher.checkpoint_key" in caplog.text
        assert_same_weights(load_weights(path, key=names[1]), average)


def test_several_networks_without_a_rule_need_a_key(tmp_path):
    states = {name: network(seed=seed).state_dict() for seed, name in enumerate(("gen", "dis"))}
    path = saved(states, tmp_path / "w.pth")
    line = error_line(lambda: load_weights(path))
    assert mentions(line, 2, "state dicts", "gen", "dis")
    assert '`cache_teacher.checkpoint_key = "gen"`' in line
    assert_same_weights(load_weights(path, key="dis"), states["dis"])
    line = error_line(lambda: load_weights(path, key="other"))
    assert mentions(line, 0, "networks", "other", "gen", "dis")


def test_counters_and_counts_never_matter(tmp_path):
    state = network().state_dict()
    counters = [name for name in state if "num_batches" in name]
    variants = {
        "half": {name: value.half() for name, value in state.items()},
        "some": {n: v for n, v in state.items() if n not in counters[2:]},
        "shape": state | {counters[0]: torch.zeros(1)},
        "thop": state
        | {"total_ops": torch.zeros(1).double(), "layer1.total_params": torch.zeros(1).double()},
        "averaged": {"n_averaged": torch.tensor(5)} | wrapped_names(state, lambda n: f"module.{n}"),
    }
    for name, content in variants.items():
        model = network(seed=4)
        loaded = load_into(model, load_weights(saved(content, tmp_path / "w.pt")), source=SOURCE)
        expected = without_counters(state)
        for key, value in without_counters(model.state_dict()).items():
            close = expected[key].half().float() if name == "half" else expected[key]
            assert torch.equal(value, close), (name, key)
        if name != "half":
            assert weights_digest(loaded) == weights_digest(state)


def test_a_head_of_other_classes_names_the_settings_that_map_them():
    weights = network(num_classes=1000).state_dict()
    line = error_line(lambda: load_into(network(num_classes=2), weights, source=SOURCE))
    assert "`cache_teacher.num_classes = 1000`" in line
    assert "`cache_teacher.class_names`" in line
    assert "`cache_teacher.class_map`" in line
    lightning = wrapped_names(weights, lambda n: "model." + n)
    line = error_line(lambda: load_into(network(num_classes=999), lightning, source=SOURCE))
    assert "head for 1000 classes (expected 999)" in line
    assert "background class" in line


@looped("name", ["w.bin", "w.SAFETENSORS", "w.pth", "w.ckpt", "noname"])
def test_safetensors_load_under_any_name(tmp_path, name):
    save_weights(network(), tmp_path / "w")
    (tmp_path / name).write_bytes((tmp_path / "w").read_bytes())
    assert_same_weights(load_weights(tmp_path / name), network().state_dict())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files_load_under_the_name_of_safetensors(tmp_path, zipped):
    path = tmp_path / "w.safetensors"
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=zipped)
    assert_same_weights(load_weights(path), network().state_dict())


@looped(
    "data, kind",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b"\x1f\x8b\x08\x00" + bytes(64), "gzip"),
        (b'{"weight_map": {}}', "JSON"),
    ],
)
def test_files_that_people_take_for_checkpoints_are_named(tmp_path, data, kind):
    (tmp_path / "w.pth").write_bytes(data)
    assert kind in error_line(lambda: load_weights(tmp_path / "w.pth"))


# Values beside the weights


class ChildOfNamespace(argparse.Namespace):
    """A class of one's own, which no list names."""


BESIDE = {
    "opt": argparse.Namespace(lr=0.1, milestones=[1, 2], name="x", path=Path("a/b")),
    "simple": types.SimpleNamespace(a=1),
    "best_acc": np.float64(93.1),
    "best": np.float32(1.5),
    "epoch": np.int64(3),
    "flag": np.bool_(True),
    "text": np.str_("a"),
    "curve": np.arange(12.0).reshape(3, 4),
    "counts": np.arange(3),
    "path": Path("runs/a"),
    "pure": PurePosixPath("a"),
    "log": defaultdict(list, {"loss": [0.1]}),
    "nested": defaultdict(dict),
    "order": OrderedDict(a=1),
    "seen": Counter("aab"),
    "when": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    "took": datetime.timedelta(seconds=3),
    "random": np.random.RandomState(0).get_state(),
    "size": torch.Size([1, 2]),
    "dtype": np.dtype("float32"),
}


@looped("name", BESIDE)
@looped("zipped", [True, False])
def test_plain_values_beside_the_weights_load(tmp_path, name, zipped):
    state = network().state_dict()
    content = {"model": state, name: BESIDE[name]}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert_same_weights(load_weights(tmp_path / "w.pth"), state)


def test_weights_in_a_defaultdict_load(tmp_path):
    state = network().state_dict()
    assert_same_weights(load_weights(saved(defaultdict(list, net=state), tmp_path / "w.pt")), state)


def test_reading_allows_nothing_to_the_rest_of_the_process(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    load_weights(saved({"model": network().state_dict(), **BESIDE}, tmp_path / "w.pth"))
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_stand_in_is_made_of_anything_and_keeps_nothing():
    made = Inert(np.dtype("O"), b"bytes", os.system)
    made.__setstate__({"a": os.system})
    assert vars(made) == {}
    assert EmptyDict(os.system, {"a": 1}) == {}
    assert {stand_in for stand_in, _ in _stand_ins()} == {Inert, EmptyDict}


def test_no_listed_class_is_ever_called(tmp_path, monkeypatch):
    """The real classes raise here, and all values beside the weights are read all the same."""

    def called(*_, **__):
        raise AssertionError("a class from the file was called")

    path = saved({"model": network().state_dict(), **BESIDE}, tmp_path / "w.pth")
    for owner, name in ((argparse.Namespace, "__init__"), (types, "SimpleNamespace")):
        monkeypatch.setattr(owner, name, called)
    monkeypatch.setattr(np._core.multiarray, "scalar", called)
    monkeypatch.setattr(np._core.multiarray, "_reconstruct", called)
    load_weights(path)


def forged(opcodes):
    """A legacy torch file, or a bare pickle, with these opcodes for its content."""
    return b"\x80\x02" + opcodes + b"."


FORGERIES = {
    # dtype('V8') whose state claims to hold objects, and bytes in place of pointers
    "object scalar": b"cnumpy._core.multiarray\nscalar\n"
    b"cnumpy\ndtype\nX\x01\x00\x00\x00O\x89\x88\x87R"
    b"c_codecs\nencode\nX\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1\x86R\x86R",
    "huge array": b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86c_codecs\nencode\nX\x01\x00\x00\x00bX\x06\x00\x00\x00"
    b"latin1\x86R\x87R",
    "namespace state": b"cargparse\nNamespace\n)\x81"
    b"}X\x09\x00\x00\x00__class__cargparse\nNamespace\nsb",
}


@looped("name", FORGERIES)
def test_forged_values_reach_no_class(tmp_path, name):
    (tmp_path / "w.pth").write_bytes(forged(FORGERIES[name]))
    line = error_line(lambda: load_weights(tmp_path / "w.pth"))
    assert "w.pth" in line


CALLS = [
    *("os\nsystem", "posix\nsystem", "nt\nsystem", "sys\nexit", "subprocess\nPopen"),
    *("builtins\neval", "builtins\nexec", "builtins\ngetattr", "builtins\n__import__"),
    *("__builtin__\neval", "builtins\nopen", "builtins\ncompile", "builtins\nobject"),
    *("numpy\nload", "numpy\nfromfile", "numpy\nmemmap", "numpy.lib.npyio\nload"),
    *("numpy.testing._private.utils\nrunstring", "numpy.core.multiarray\nfromfile"),
    *("pathlib\nPath.unlink", "pathlib\nos.system", "argparse\nFileType", "argparse\n_sys.exit"),
    *("argparse\nNamespace.__init__.__globals__", "types\nFunctionType", "types\nCodeType"),
    *(
        "datetime\nsys.exit",
        "collections\nnamedtuple",
        "functools\npartial",
        "operator\nmethodcaller",
    ),
    *("torch\nload", "torch.hub\nload", "torch.storage\n_load_from_bytes", "pickle\nloads"),
    *("torch.jit\nload", "runpy\nrun_path", "importlib\nimport_module", "webbrowser\nopen"),
    *("pipeline.models.checkpoint_files\nInert", "pipeline.models.zoo\nbuild"),
]


@looped("call", CALLS)
def test_every_other_name_stays_rejected(tmp_path, call):
    """Names that run code, lead to such, or only look like a listed one."""
    created = tmp_path / "created"
    argument = f"touch {created}".encode()
    opcodes = (
        f"c{call}\n".encode() + b"X" + len(argument).to_bytes(4, "little") + argument + b"\x85R"
    )
    for data in (forged(opcodes), forged(b"}X\x05\x00\x00\x00model" + opcodes + b"s")):
        (tmp_path / "w.pth").write_bytes(data)
        line = error_line(lambda: load_weights(tmp_path / "w.pth"))
        assert "holds pickled code" in line
        assert not created.exists()


def test_a_class_that_inherits_from_a_listed_one_stays_rejected(tmp_path):
    path = saved({"model": network().state_dict(), "opt": ChildOfNamespace()}, tmp_path / "w.pt")
    assert "ChildOfNamespace" in error_line(lambda: load_weights(path))
