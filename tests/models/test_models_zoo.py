"""The literature's networks: names and sizes of their checkpoints, and what they compute."""

from functools import cache

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.checkpoints import load_into, load_weights
from pipeline.models.networks.convolutions import shuffle_channels
from pipeline.models.networks.four_stage_resnet import FourStageResNet
from pipeline.models.networks.projection_resnet import ProjectionResNet
from pipeline.models.networks.vgg import Vgg
from pipeline.models.networks.wide_resnet import WideResNet
from pipeline.models.probing import name_of, require_image_size
from pipeline.models.zoo import build
from tests.support import zoo_oracles as oracles
from tests.support.cases import looped

PUBLISHED = {
    "resnet8x4": (1_233_540, 62, 256, "fc"),
    "resnet32x4": (7_433_860, 206, 256, "fc"),
    "resnet20": (278_324, 128, 64, "fc"),
    "resnet32": (472_756, 200, 64, "fc"),
    "resnet56": (861_620, 344, 64, "fc"),
    "resnet110": (1_736_564, 668, 64, "fc"),
    "wrn_16_2": (703_284, 83, 128, "fc"),
    "wrn_40_1": (569_780, 226, 64, "fc"),
    "wrn_40_2": (2_255_156, 227, 128, "fc"),
    "vgg8": (3_965_028, 37, 512, "classifier"),
    "vgg13": (9_462_180, 72, 512, "classifier"),
    "ResNet18": (11_220_132, 122, 512, "linear"),
    "ResNet50": (23_705_252, 320, 2048, "linear"),
    "ShuffleV1": (949_258, 296, 960, "linear"),
    "ShuffleV2": (1_355_528, 338, 1024, "linear"),
    "MobileNetV2": (812_836, 320, 1280, "classifier.0"),
}
"""For 100 classes: parameters, entries of the state dict, features, name of the head."""

ORACLES = {
    "resnet14": oracles.projection_resnet,
    "resnet8x4": oracles.projection_resnet,
    "wrn_16_1": oracles.wide_resnet,
    "wrn_16_2": oracles.wide_resnet,
    "vgg8": oracles.vgg,
    "vgg13": oracles.vgg,
    "ResNet18": oracles.four_stage_resnet,
    "ResNet50": oracles.four_stage_resnet,
    "ShuffleV1": oracles.shufflenet_v1,
    "ShuffleV2": oracles.shufflenet_v2,
    "MobileNetV1": oracles.mobilenet_v1,
    "MobileNetV2": oracles.mobilenet_v2,
}
FAMILIES = (
    *("resnet14", "resnet8x4", "wrn_16_2", "vgg8", "ResNet18"),
    *("ShuffleV1", "ShuffleV2", "MobileNetV2", "MobileNetV1"),
)


@cache
def network(arch, *, num_classes=100):
    torch.manual_seed(5)
    return build(arch, num_classes=num_classes)


def images_of(size, *, num=3):
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(7))


def num_parameters(arch):
    return sum(weight.numel() for weight in network(arch).parameters())


@looped("arch", PUBLISHED)
def test_sizes_and_names_are_the_published_ones(arch):
    model = network(arch)
    found = (
        num_parameters(arch),
        len(model.state_dict()),
        model.head.in_features,
        name_of(model, model.head),
    )
    assert found == PUBLISHED[arch]


def test_mobilenet_v1_has_the_published_size_for_imagenet():
    model = network("MobileNetV1", num_classes=1000)
    assert sum(weight.numel() for weight in model.parameters()) == 4_231_976
    assert len(model.state_dict()) == 164
    assert (model.head.in_features, name_of(model, model.head)) == (1024, "fc")


@looped("depth", [8, 14, 20, 32, 44, 56, 110])
def test_projection_networks_differ_from_the_papers_by_their_projections(depth):
    """3x3 convolutions, two numbers a channel after each; projections at 16-32 and 32-64."""
    convolutions = [(3, 16)]
    for in_channels, channels in ((16, 16), (16, 32), (32, 64)):
        convolutions += [(in_channels, channels)]
        convolutions += [(channels, channels)] * ((depth - 2) // 3 - 1)
    plain = sum(9 * a * b + 2 * b for a, b in convolutions)
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert num_parameters(f"resnet{depth}") == plain + projections + 65 * 100


@looped("arch, counts", [("vgg8", (1,) * 5), ("vgg16", (2, 2, 3, 3, 3))])
def test_vgg_has_the_parameters_of_its_layers(arch, counts):
    total, before = 513 * 100, 3
    for channels, count in zip((64, 128, 256, 512, 512), counts, strict=True):
        total += 9 * before * channels + 9 * channels**2 * (count - 1) + 3 * channels * count
        before = channels
    assert num_parameters(arch) == total


def norms(*names):
    """Entries of batch normalisations."""
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{name}.{part}" for name in names for part in parts}


def weights(*names):
    return {f"{name}.weight" for name in names}


def head(name):
    return {f"{name}.weight", f"{name}.bias"}


def test_names_of_projection_resnets():
    for arch, projecting in (("resnet14", (2, 3)), ("resnet8x4", (1, 2, 3))):
        num_blocks = 2 if arch == "resnet14" else 1
        expected = weights("conv1") | norms("bn1") | head("fc")
        for at in (f"layer{k}.{i}" for k in (1, 2, 3) for i in range(num_blocks)):
            expected |= weights(f"{at}.conv1", f"{at}.conv2") | norms(f"{at}.bn1", f"{at}.bn2")
        for k in projecting:
            expected |= weights(f"layer{k}.0.downsample.0") | norms(f"layer{k}.0.downsample.1")
        assert set(network(arch).state_dict()) == expected
    state = network("resnet8x4").state_dict()
    assert state["conv1.weight"].shape == (32, 3, 3, 3)
    assert state["layer1.0.downsample.0.weight"].shape == (64, 32, 1, 1)


def test_names_of_wide_resnets():
    for arch, projecting in (("wrn_16_1", (2, 3)), ("wrn_16_2", (1, 2, 3))):
        expected = weights("conv1") | norms("bn1") | head("fc")
        for at in (f"block{k}.layer.{i}" for k in (1, 2, 3) for i in (0, 1)):
            expected |= weights(f"{at}.conv1", f"{at}.conv2") | norms(f"{at}.bn1", f"{at}.bn2")
        expected |= weights(*(f"block{k}.layer.0.convShortcut" for k in projecting))
        assert set(network(arch).state_dict()) == expected
    assert network("wrn_16_2").state_dict()["bn1.weight"].shape == (128,)


def test_names_of_vgg():
    expected = head("classifier")
    for at in (f"block{k}" for k in range(5)):
        expected |= head(f"{at}.0") | head(f"{at}.3") | norms(f"{at}.1", f"{at}.4")
    assert set(network("vgg13").state_dict()) == expected
    assert "block2.6.bias" in network("vgg16").state_dict()


@pytest.mark.parametrize(
    ("arch", "depths", "num_convolutions", "first"),
    [("ResNet18", (2, 2, 2, 2), 2, (2, 3, 4)), ("ResNet50", (3, 4, 6, 3), 3, (1, 2, 3, 4))],
)
def test_names_of_four_stage_resnets(arch, depths, num_convolutions, first):
    expected = weights("conv1") | norms("bn1") | head("linear")
    for stage, depth in enumerate(depths, start=1):
        for at in (f"layer{stage}.{i}" for i in range(depth)):
            for k in range(1, num_convolutions + 1):
                expected |= weights(f"{at}.conv{k}") | norms(f"{at}.bn{k}")
    for stage in first:
        at = f"layer{stage}.0.shortcut"
        expected |= weights(f"{at}.0") | norms(f"{at}.1")
    assert set(network(arch).state_dict()) == expected


def test_names_of_shufflenets():
    ends = weights("conv1") | norms("bn1") | head("linear")
    first, second = set(ends), ends | weights("conv2") | norms("bn2")
    for stage, depth in ((1, 4), (2, 8), (3, 4)):
        for i in range(depth):
            at = f"layer{stage}.{i}"
            for k in (1, 2, 3, 4, 5):
                entries = weights(f"{at}.conv{k}") | norms(f"{at}.bn{k}")
                first |= entries if k <= 3 else set()
                second |= entries if k <= 3 or i == 0 else set()
    assert set(network("ShuffleV1").state_dict()) == first
    assert set(network("ShuffleV2").state_dict()) == second
    state = network("ShuffleV1").state_dict()
    assert state["conv1.weight"].shape == (24, 3, 1, 1)
    assert state["layer1.0.conv3.weight"].shape[0] == 240 - 24
    assert state["layer2.0.conv3.weight"].shape[0] == 480 - 240


def test_names_of_mobilenets():
    expected = weights("conv1.0", "conv2.0") | norms("conv1.1", "conv2.1") | head("classifier.0")
    for stage, depth in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for at in (f"blocks.{stage}.{i}.conv" for i in range(depth)):
            expected |= weights(f"{at}.0", f"{at}.3", f"{at}.6")
            expected |= norms(f"{at}.1", f"{at}.4", f"{at}.7")
    assert set(network("MobileNetV2").state_dict()) == expected
    assert network("MobileNetV2").state_dict()["conv2.0.weight"].shape == (1280, 160, 1, 1)
    expected = weights("model.0.0") | norms("model.0.1") | head("fc")
    for at in (f"model.{i}" for i in range(1, 14)):
        expected |= weights(f"{at}.0", f"{at}.3") | norms(f"{at}.1", f"{at}.4")
    assert set(network("MobileNetV1").state_dict()) == expected


def roughened(arch):
    """A network in double precision whose normalisations do something and whose signal lasts."""
    torch.manual_seed(11)
    model = build(arch, num_classes=7).double()
    for name, value in model.state_dict().items():
        if value.ndim == 1 and value.is_floating_point():
            low, high = (0.5, 1.5) if "var" in name or "weight" in name else (-0.3, 0.3)
            value.uniform_(low, high)
        elif value.ndim == 4:
            value.normal_(std=(2 / value[0].numel()) ** 0.5)
    return model


@pytest.mark.parametrize("arch", ORACLES)
def test_logits_are_those_of_the_oracle(arch):
    model = roughened(arch).eval()
    images = images_of(32, num=2).double()
    expected = ORACLES[arch](images, oracles.Oracle(model.state_dict()))
    torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)
    assert expected.std(dim=0).min() > 1e-5, "the images must matter"


@pytest.mark.parametrize("arch", FAMILIES)
def test_gradients_of_training_are_those_of_the_oracle(arch):
    model = roughened(arch).train()
    images = images_of(16 if arch != "vgg8" else 32, num=4).double()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    leaves = {key: value.requires_grad_(value.is_floating_point()) for key, value in start.items()}
    expected = ORACLES[arch](images, oracles.Oracle(leaves, training=True))
    logits = model(images)
    torch.testing.assert_close(logits, expected, rtol=1e-7, atol=1e-7)
    logits.logsumexp(dim=1).sum().backward()
    expected.logsumexp(dim=1).sum().backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, leaves[name].grad, rtol=1e-5, atol=1e-6)


def test_vgg_pools_once_more_where_images_are_64_pixels():
    model, images = roughened("vgg8").eval(), images_of(64, num=2).double()
    expected = oracles.vgg(images, oracles.Oracle(model.state_dict()))
    torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)


@looped("arch", FAMILIES)
@looped("size", [32, 40])
def test_logits_are_the_head_of_the_features(arch, size):
    model, images = network(arch).eval(), images_of(size)
    with torch.no_grad():
        features = model.features(images)
        assert features.shape == (3, model.head.in_features)
        assert torch.equal(model(images), model.head(features))


@pytest.mark.parametrize("arch", FAMILIES)
def test_channels_last_changes_nothing_but_the_memory(arch):
    torch.manual_seed(2)
    model, images = build(arch, num_classes=5).eval(), images_of(32)
    with torch.no_grad():
        expected = model(images)
        layout = []
        model.to(memory_format=torch.channels_last)
        hooks = [
            module.register_forward_hook(
                lambda _, __, out: layout.append(
                    out.is_contiguous(memory_format=torch.channels_last)
                )
            )
            for module in model.modules()
            if isinstance(module, torch.nn.Conv2d)
        ]
        actual = model(images.to(memory_format=torch.channels_last))
    assert len(hooks) == len(layout)
    assert all(layout)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_images_are_left_as_they_were():
    images = images_of(32)
    for arch in FAMILIES:
        model = network(arch).train()
        model(images)
        assert torch.equal(images, images_of(32))


@looped("groups", [1, 2, 3])
def test_shuffling_deals_the_channels_of_the_groups_in_turn(groups):
    maps = torch.randn(2, 12, 3, 2)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        actual = shuffle_channels(maps.contiguous(memory_format=memory_format), groups=groups)
        for channel in range(12):
            group, place = divmod(channel, 12 // groups)
            assert torch.equal(actual[:, place * groups + group], maps[:, channel])
        assert groups == 1 or actual.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arch", "key", "spread"),
    [
        ("resnet8", "layer3.0.conv2.weight", (2 / (9 * 64)) ** 0.5),
        ("ResNet18", "layer2.0.conv1.weight", (2 / (9 * 128)) ** 0.5),
        ("wrn_16_2", "block3.layer.0.conv1.weight", (2 / (9 * 128)) ** 0.5),
        ("vgg8", "block2.0.weight", (2 / (9 * 256)) ** 0.5),
        ("vgg8", "classifier.weight", 0.01),
        ("MobileNetV2", "conv2.0.weight", (2 / 1280) ** 0.5),
        ("MobileNetV2", "classifier.0.weight", 0.01),
        ("ShuffleV2", "conv2.weight", (1 / (3 * 464)) ** 0.5),
        ("MobileNetV1", "model.13.3.weight", (1 / (3 * 1024)) ** 0.5),
    ],
)
def test_initial_weights_have_the_spread_of_the_field(arch, key, spread):
    weight = network(arch).state_dict()[key]
    assert weight.std().item() == pytest.approx(spread, rel=0.03)
    assert weight.mean().item() == pytest.approx(0.0, abs=0.05 * spread)


def test_initial_biases_are_zero_where_the_field_has_them_so():
    for arch, key in (
        ("vgg8", "block0.0.bias"),
        ("wrn_16_1", "fc.bias"),
        ("vgg8", "classifier.bias"),
    ):
        assert not network(arch).state_dict()[key].any()


def test_the_seed_fixes_the_weights():
    for arch in ("resnet14", "ShuffleV1"):
        states = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            states.append(build(arch, num_classes=3).state_dict())
        first, same, other = states
        assert all(torch.equal(first[key], same[key]) for key in first)
        assert not all(torch.equal(first[key], other[key]) for key in first)


def test_a_checkpoint_of_the_field_loads(tmp_path):
    state = {f"module.{key}": value for key, value in network("resnet8x4").state_dict().items()}
    torch.save({"model": state, "epoch": 240, "best_acc": torch.tensor(72.5)}, tmp_path / "w.pth")
    other = build("resnet8x4", num_classes=100)
    load_into(other, load_weights(tmp_path / "w.pth"), source=tmp_path / "w.pth")
    with torch.no_grad():
        images = images_of(32)
        assert torch.equal(other.eval()(images), network("resnet8x4").eval()(images))


@looped(
    "make",
    [
        lambda: ProjectionResNet(depth=18, num_classes=10),
        lambda: WideResNet(depth=20, factor=2, num_classes=10),
        lambda: Vgg(depth=11, num_classes=10),
        lambda: FourStageResNet(depth=34, num_classes=10),
    ],
)
def test_depths_that_do_not_exist_are_rejected(make):
    with pytest.raises(ValueError, match="depth must be"):
        make()


def test_images_that_are_too_small_are_rejected_in_one_line():
    model = network("vgg8").train()
    counters = model.state_dict()["block0.1.num_batches_tracked"].clone()
    with pytest.raises(ConfigError, match=r"vgg8 .*4 x 4 pixels") as caught:
        require_image_size(model, (4, 4))
    assert "\n" not in str(caught.value)
    assert "`prepare.resize`" in str(caught.value)
    require_image_size(model, (8, 8))
    assert model.training
    assert torch.equal(model.state_dict()["block0.1.num_batches_tracked"], counters)


@looped("arch", FAMILIES)
def test_every_network_takes_the_smallest_data_set(arch):
    require_image_size(network(arch), (8, 8))


def test_a_head_is_named_or_found_and_never_another():
    assert build("MobileNetV2", num_classes=3, head="classifier.0").head.out_features == 3
    with pytest.raises(ConfigError, match=r"resnet8 .*'linear' .*fc"):
        build("resnet8", num_classes=3, head="linear")
