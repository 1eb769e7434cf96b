"""SimKD's student: trunk, projector, and a teacher's head that never changes."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import ConfigError
from pipeline.models.checkpoints import load_into, load_weights, save_weights
from pipeline.models.probing import name_of, require_image_size
from pipeline.models.reused_head import ReusedHead, VectorNorm
from pipeline.models.zoo import build

TRUNKS = ("resnet8a", "MobileNetV2", "torchvision:resnet18")
WEIGHT = torch.randn(5, 24, generator=torch.Generator().manual_seed(3))
BIAS = torch.randn(5, generator=torch.Generator().manual_seed(4))


def student(trunk="resnet8a"):
    torch.manual_seed(1)
    return ReusedHead(build(trunk, num_classes=5), WEIGHT, BIAS)


def images(num=4):
    return torch.randn(num, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("trunk", TRUNKS)
def test_logits_are_the_teachers_head_on_projected_features_of_the_trunk(trunk):
    torch.manual_seed(1)
    bare = build(trunk, num_classes=5).eval()
    model = ReusedHead(bare, WEIGHT, BIAS).eval()
    vectors = bare.features(images()).double()
    state = {key: value.double() for key, value in model.projector.state_dict().items()}
    for place in (0, 3, 6):
        vectors = vectors @ state[f"{place}.weight"].T
        mean, variance = (state[f"{place + 1}.running_{part}"] for part in ("mean", "var"))
        vectors = (vectors - mean) / (variance + 1e-5).sqrt()
        vectors = vectors * state[f"{place + 1}.weight"] + state[f"{place + 1}.bias"]
        vectors = vectors if place == 6 else vectors.clamp_min(0)
    torch.testing.assert_close(model.features(images()).double(), vectors, rtol=1e-4, atol=1e-5)
    expected = vectors @ WEIGHT.double().T + BIAS.double()
    torch.testing.assert_close(model(images()).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_projector_is_half_as_wide_as_the_teachers_features():
    shapes = [
        tuple(weight.shape) for weight in student().projector.parameters() if weight.ndim == 2
    ]
    assert shapes == [(12, 64), (12, 12), (24, 12)]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_training_changes_everything_but_the_head(trunk):
    model = student(trunk).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        F.mse_loss(model.features(images()), torch.ones(4, 24)).backward()
        optimizer.step()
    unchanged = {
        key for key, value in model.state_dict().items() if torch.equal(value, before[key])
    }
    assert unchanged == {"teacher_head.weight", "teacher_head.bias"}
    assert torch.equal(model.head.weight, WEIGHT)
    assert torch.equal(model.head.bias, BIAS)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_trunks_own_head_is_left_out(trunk):
    bare = build(trunk, num_classes=5)
    head = name_of(bare, bare.head)
    kept = {key for key in bare.state_dict() if not key.startswith(f"{head}.")}
    own = {key for key in student(trunk).state_dict() if key.startswith("trunk.")}
    assert own == {f"trunk.{key}" for key in kept}


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_saved_student_is_built_from_its_name_and_gives_the_same_logits(tmp_path, trunk):
    model = student(trunk).train()
    model(images())
    save_weights(model, tmp_path / "w.safetensors")
    again = build(model.arch, num_classes=5)
    assert (type(again), again.arch) == (ReusedHead, f"{trunk}+simkd24")
    load_into(again, load_weights(tmp_path / "w.safetensors"), source=tmp_path)
    with torch.no_grad():
        assert torch.equal(again.eval()(images()), model.eval()(images()))
    require_image_size(again, (32, 32))


def test_modes_reach_the_trunk_and_copies_are_apart():
    model = student("torchvision:resnet18").train()
    twin = copy.deepcopy(model)
    twin(images())
    key = "trunk.bn1.running_mean"
    assert twin.state_dict()[key].any()
    assert not model.state_dict()[key].any()
    model.eval()(images())
    assert not model.state_dict()[key].any()


def test_a_batch_of_one_image_can_be_trained_on():
    model = student().train()
    before = model.state_dict()["projector.1.running_mean"].clone()
    features = model.features(images(1))
    features.sum().backward()
    assert features.isfinite().all()
    assert torch.equal(model.state_dict()["projector.1.running_mean"], before)


def test_normalising_vectors_is_torchs_but_for_a_batch_of_one():
    norm, torchs = VectorNorm(6).train(), torch.nn.BatchNorm1d(6).train()
    vectors = torch.randn(8, 6)
    assert torch.equal(norm(vectors), torchs(vectors))
    assert torch.equal(norm(vectors[:1]), torchs.eval()(vectors[:1]))


@pytest.mark.parametrize(
    "arch", ["resnet8a+simkd", "resnet8a+simkd0", "resnet8a+simkdx", "+simkd4"]
)
def test_names_without_a_trunk_or_a_size_are_rejected(arch):
    with pytest.raises(ConfigError, match="architecture is unknown"):
        build(arch, num_classes=5)


def test_the_trunks_head_can_be_named():
    assert build("torchvision:resnet18+simkd8", num_classes=5, head="fc").head.in_features == 8
    with pytest.raises(ConfigError, match=r"torchvision:resnet18 .*'linear'"):
        build("torchvision:resnet18+simkd8", num_classes=5, head="linear")


def test_weights_of_another_student_are_rejected_with_its_name():
    from pipeline.errors import ArtefactMismatch

    with pytest.raises(ArtefactMismatch, match=r"does not fit resnet8a\+simkd24"):
        load_into(student(), build("resnet14a+simkd24", num_classes=5).state_dict(), source=Path())
