"""Foreign networks: their head is found or named, and verified; others are rejected."""

import copy
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pipeline.errors import ConfigError
from pipeline.models.checkpoints import load_into, load_weights, save_weights
from pipeline.models.headed_network import HeadedNetwork, found_head
from pipeline.models.probing import evaluating, require_image_size
from pipeline.models.zoo import build
from tests.support.cases import looped, mentions

HERE = __name__


class Branches(nn.Module):
    """Hides `features` and `head`, returns a tuple, and has linear modules that are no head."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 1.5))
        self.register_buffer("offset", torch.full((1,), 0.25))
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.gate = nn.Linear(6, 6)
        self.head = nn.ModuleDict(
            {"main": nn.Sequential(nn.Dropout(0.5), nn.Linear(6, num_classes))}
        )
        self.auxiliary = nn.Linear(6, num_classes)

    def forward(self, images):
        maps = self.features(images) * self.scale + self.offset
        pooled = maps.mean(dim=(2, 3))
        pooled = pooled * self.gate(pooled).sigmoid()
        return self.head["main"](pooled), self.auxiliary(pooled)


class OwnLinear(nn.Module):
    """Uses the weights of its linear module, and not the module."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, images):
        return nn.functional.linear(images.mean(dim=(2, 3)), self.fc.weight, self.fc.bias)


class PerPixel(nn.Module):
    """Classifies every pixel and averages."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, images):
        return self.fc(images.flatten(2).transpose(1, 2)).mean(dim=1)


class Twice(OwnLinear):
    """Uses its head twice."""

    def forward(self, images):
        return self.fc(images.amax(dim=(2, 3))) * 0 + self.fc(images.mean(dim=(2, 3)))


class Frozen(Branches):
    """Keeps its normalisation in evaluation."""

    def train(self, mode=True):
        super().train(mode)
        self.features[1].eval()
        return self


def flat(*last, num_classes=4, width=3):
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes), *last
    )


def scaled(num_classes):
    return flat(nn.LogSoftmax(dim=1), num_classes=num_classes)


def zero_head(num_classes):
    network = Branches(num_classes)
    for linear in (network.head["main"][1], network.auxiliary):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return network


def without_bias(num_classes):
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes, bias=False)
    )


def convolutional(num_classes):
    return nn.Sequential(nn.Conv2d(3, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def four_channels(num_classes):
    return nn.Sequential(nn.Conv2d(4, 3, 1), *flat(num_classes=num_classes))


def no_arguments():
    return flat()


def two_arguments(num_classes, width):
    return flat(num_classes=num_classes, width=width)


def not_a_network(num_classes):
    return [num_classes]


NOT_CALLABLE = 3


def error_line(action):
    with pytest.raises(ConfigError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def branches(*, head=""):
    torch.manual_seed(3)
    return build(f"{HERE}:Branches", num_classes=4, head=head)


def images_of(size, *, num=3):
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(1))


# Names of torchvision and timm


SMALL = [
    ("torchvision:resnet18", "fc", 512, 64),
    ("torchvision:mobilenet_v3_small", "classifier.3", 1024, 64),
    ("timm:resnet10t", "fc", 512, 64),
    ("timm:vit_tiny_patch16_224", "head", 192, 224),
]


@pytest.mark.parametrize(("arch", "head", "dim", "size"), SMALL)
def test_heads_of_packages_are_found_and_give_the_logits(arch, head, dim, size):
    if arch.startswith("timm"):
        pytest.importorskip("timm")
    model = build(arch, num_classes=7).eval()
    assert (model.arch, model.head_name, model.head.in_features) == (arch, head, dim)
    with torch.no_grad():
        features = model.features(images_of(size))
        expected = features @ model.head.weight.T + model.head.bias
        torch.testing.assert_close(model(images_of(size)), expected)
    require_image_size(model, (size, size))


def test_logits_and_names_are_torchvisions_own():
    from torchvision.models import resnet18

    torch.manual_seed(8)
    theirs = resnet18(num_classes=7)
    torch.manual_seed(8)
    ours = build("torchvision:resnet18", num_classes=7)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in theirs.state_dict().items())
    with torch.no_grad():
        assert torch.equal(ours.eval()(images_of(64)), theirs.eval()(images_of(64)))


def test_auxiliary_logits_of_training_are_left_out():
    model = build("torchvision:googlenet", num_classes=3).train()
    assert model(images_of(32)).shape == (3, 3)
    assert "aux1.fc2.weight" in model.state_dict()


def test_images_of_another_size_than_a_transformers_are_rejected():
    pytest.importorskip("timm")
    model = build("timm:vit_tiny_patch16_224", num_classes=3)
    message = error_line(lambda: require_image_size(model, (32, 32)))
    assert mentions(message, "timm:vit_tiny_patch16_224", "32 x 32")


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("torchvision:resnet19", "torchvision has no network 'resnet19'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no network"),
        ("torchvision:squeezenet1_0", "has no linear module with 3 outputs"),
    ],
)
def test_unknown_and_headless_networks_of_torchvision_are_rejected(arch, message):
    assert message in error_line(lambda: build(arch, num_classes=3))


@pytest.mark.parametrize("name", ["resnot18", "hf-hub:someone/something", "hf_hub:someone/x", ""])
def test_unknown_names_of_timm_are_rejected_and_nothing_is_fetched(name):
    pytest.importorskip("timm")
    assert "timm has no network" in error_line(lambda: build(f"timm:{name}", num_classes=3))


def test_without_timm_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    message = error_line(lambda: build("timm:resnet18", num_classes=3))
    assert "timm is not installed" in message
    assert "pip install timm" in message


# One's own


def test_the_hidden_head_of_ones_own_network_is_found():
    model, own = branches().eval(), Branches()
    own.load_state_dict(model.state_dict())
    assert model.head_name == "head.main.1"
    with torch.no_grad():
        logits = own.eval()(images_of(8))[0]
        assert torch.equal(model(images_of(8)), logits)
        torch.testing.assert_close(model.head(model.features(images_of(8))), logits)


def test_a_named_head_is_proven_too():
    assert branches(head="head.main.1").head_name == "head.main.1"
    message = error_line(lambda: branches(head="auxiliary"))
    assert mentions(message, "auxiliary")
    assert "head.main.1, auxiliary" in message


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("fc", "there is no such module"),
        ("head", "it is a ModuleDict"),
        ("gate", "it is a Linear with 6 outputs"),
    ],
)
def test_a_wrong_name_of_a_head_is_rejected_with_the_candidates(head, found):
    message = error_line(lambda: branches(head=head))
    assert mentions(message, f"{HERE}:Branches", f"'{head}'", found)
    assert "expected head.main.1, auxiliary" in message


def test_a_head_of_zeros_is_distinguished_from_another_of_zeros():
    assert build(f"{HERE}:zero_head", num_classes=4).head_name == "head.main.1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OwnLinear", "fc: it is used 0 times for a batch"),
        ("Twice", "fc: it is used 2 times for a batch"),
        ("PerPixel", "fc: its output is not the network's output"),
        ("scaled", "2: its output is not the network's output"),
        ("without_bias", "2: it has no bias"),
        ("convolutional", "has no linear module with 4 outputs"),
        ("four_channels", "the network fails on images of every size tried"),
    ],
)
def test_networks_without_a_linear_head_are_rejected_with_the_reason(name, message):
    assert message in error_line(lambda: build(f"{HERE}:{name}", num_classes=4))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("nowhere.to_be:found", "nowhere.to_be:found cannot be imported: No module named"),
        (":found", "cannot be imported"),
        (f"{HERE}:missing", "has no such name"),
        (f"{HERE}:", "has no such name"),
        (f"{HERE}:NOT_CALLABLE", "is of type int"),
        (f"{HERE}:no_arguments", "cannot be called with num_classes"),
        (f"{HERE}:two_arguments", "missing a required argument: 'width'"),
        (f"{HERE}:not_a_network", "returned a list (expected a torch.nn.Module)"),
    ],
)
def test_what_makes_no_network_is_rejected_in_one_line(arch, message):
    assert message in error_line(lambda: build(arch, num_classes=4))


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))  # and sys.path is as it was afterwards
    monkeypatch.chdir(tmp_path)
    Path("networks_of_mine.py").write_text(
        "from torch import nn\n"
        "def small(num_classes):\n"
        "    head = nn.Linear(3, num_classes)\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)\n"
    )
    assert build("networks_of_mine:small", num_classes=5).head.out_features == 5


# What is done to networks


def test_checkpoints_of_the_bare_network_load_and_are_written(tmp_path):
    model, own = branches(), Branches()
    assert list(model.state_dict()) == list(own.state_dict())
    torch.save(own.state_dict(), tmp_path / "own.pt")
    load_into(model, load_weights(tmp_path / "own.pt"), source=tmp_path)
    save_weights(model, tmp_path / "w.safetensors")
    again = Branches()
    again.load_state_dict(load_weights(tmp_path / "w.safetensors"))
    with torch.no_grad():
        assert torch.equal(model.eval()(images_of(8)), own.eval()(images_of(8))[0])
        assert torch.equal(again.eval()(images_of(8))[0], own(images_of(8))[0])


def test_a_head_for_other_classes_is_reported_as_such():
    from pipeline.errors import ArtefactMismatch

    weights = Branches(num_classes=9).state_dict()
    del weights["auxiliary.weight"], weights["auxiliary.bias"]
    weights |= {k: v for k, v in Branches().state_dict().items() if "auxiliary" in k}
    with pytest.raises(ArtefactMismatch, match=r"9 classes .*4"):
        load_into(branches(), weights, source=Path("w.pt"))


def test_looking_for_the_head_leaves_the_network_and_the_random_numbers_as_they_were():
    torch.manual_seed(0)
    network = Branches().train()
    before = copy.deepcopy(network.state_dict())
    state = torch.random.get_rng_state()
    found_head(network, num_classes=4, arch="mine")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def step(model, images):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images).logsumexp(dim=1).sum().backward()
    optimizer.step()


def test_a_step_changes_every_weight_that_the_logits_are_made_of():
    torch.manual_seed(0)
    model = branches().train()
    before = copy.deepcopy(model.state_dict())
    step(model, images_of(8))
    unchanged = {k for k, v in model.state_dict().items() if torch.equal(v, before[k])}
    assert unchanged == {"offset", "auxiliary.weight", "auxiliary.bias"}


def test_a_deep_copy_is_a_network_of_its_own():
    model = branches().train()
    twin = copy.deepcopy(model)
    step(twin, images_of(8))
    other, first = twin.eval()(images_of(8)), model.eval()(images_of(8))
    assert not torch.equal(other, first)
    model.load_state_dict(twin.state_dict())
    assert torch.equal(model(images_of(8)), other)
    assert torch.equal(twin.head(twin.features(images_of(8))), other)


def test_the_average_of_the_weights_is_one_of_the_network():
    model = branches().train()
    average = AveragedModel(model, avg_fn=lambda old, new, _: 0.5 * old + 0.5 * new)
    average.update_parameters(model)
    step(model, images_of(8))
    average.update_parameters(model)
    own = Branches()
    own.load_state_dict(average.module.state_dict())
    with torch.no_grad():
        averaged = average.module.eval()
        assert torch.equal(averaged(images_of(8)), own.eval()(images_of(8))[0])


@pytest.mark.parametrize("change", ["double", "assign", "channels_last", "stream"])
def test_weights_that_are_exchanged_are_those_in_use(change):
    model, images = branches().eval(), images_of(8)
    expected = model(images)
    if change == "double":
        model, images = model.double(), images.double()
    if change == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    if change == "stream":
        stream = io.BytesIO()
        torch.save(model, stream)
        stream.seek(0)
        loaded = torch.load(stream, weights_only=False)  # our own bytes
        assert isinstance(loaded, HeadedNetwork)
        model = loaded
    if change == "assign":
        state = {key: value.clone() for key, value in model.state_dict().items()}
        state["scale"] *= 2
        own = Branches().eval()
        own.load_state_dict(state)
        model.load_state_dict(state, assign=True)
        expected = own(images)[0]
    torch.testing.assert_close(model(images), expected.to(images.dtype), rtol=1e-4, atol=1e-5)


def test_modes_reach_the_whole_network():
    torch.manual_seed(0)
    model = branches().train()
    assert not torch.equal(model(images_of(8)), model(images_of(8)))  # dropout
    model.eval()
    assert torch.equal(model(images_of(8)), model(images_of(8)))
    with evaluating(model.train()):
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())


def test_a_network_that_keeps_its_statistics_frozen_still_does():
    torch.manual_seed(0)
    model = build(f"{HERE}:Frozen", num_classes=4).train()
    before = model.state_dict()["features.1.running_mean"].clone()
    model(images_of(8))
    assert torch.equal(model.state_dict()["features.1.running_mean"], before)


@looped(
    "arch, wanted",
    [
        ("resnet18", ["ResNet18", "torchvision:resnet18", "timm:resnet18"]),
        ("ResNet-34", ["torchvision:resnet34", "timm:resnet34"]),
        ("MobileNet_V3_Small", ["torchvision:mobilenet_v3_small"]),
        ("VIT_base_patch16_224", ["timm:vit_base_patch16_224"]),
        ("WRN-40-2", ["wrn_40_2"]),
        ("torchvision:ResNet18", ["resnet18"]),
        ("timm:ResNet18", ["resnet18"]),
    ],
)
def test_an_unknown_name_suggests_the_networks_that_are_spelt_alike(arch, wanted):
    with pytest.raises(ConfigError) as caught:
        build(arch, num_classes=3)
    advice = str(caught.value).rpartition("Did you mean ")[2]
    assert advice == " or ".join(wanted) + "?"


def test_suggestions_name_what_the_packages_build_and_import_neither():
    code = (
        "import sys; from pipeline.models.foreign_networks import suggestions; "
        "print(suggestions('resnet18'), 'torchvision' in sys.modules, 'timm' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert shown.split("]") == ["['torchvision:resnet18', 'timm:resnet18'", " False False\n"]
    for arch in ("torchvision:resnet18", "timm:resnet18"):
        assert build(arch, num_classes=3).arch == arch
