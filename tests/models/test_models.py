import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.networks.cifar_resnet import CifarResNet, option_a_shortcut
from pipeline.models.zoo import architectures, build
from tests.support.cases import looped

OPTION_A = [arch for arch in architectures() if arch.endswith("a")]
IMAGES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(7))


def small_network():
    torch.manual_seed(3)
    return build("resnet8a", num_classes=4).eval()


def parameters_of_depth(depth, *, num_classes):
    """Count from the paper's table: 3x3 convolutions, two numbers a channel after each, a head."""
    convolutions = [(3, 16)]
    for in_channels, channels in ((16, 16), (16, 32), (32, 64)):
        convolutions += [(in_channels, channels)]
        convolutions += [(channels, channels)] * ((depth - 2) // 3 - 1)
    return sum(9 * a * b + 2 * b for a, b in convolutions) + (64 + 1) * num_classes


@looped("arch", OPTION_A)
@looped("num_classes", [10, 100])
def test_parameters_are_those_of_the_layer_shapes(arch, num_classes):
    count = sum(p.numel() for p in build(arch, num_classes=num_classes).parameters())
    assert count == parameters_of_depth(
        int(arch.removeprefix("resnet").removesuffix("a")), num_classes=num_classes
    )


@looped("arch, published", [("resnet20a", 269_722), ("resnet32a", 464_154), ("resnet56a", 853_018)])
def test_parameters_are_the_published_ones(arch, published):
    assert sum(p.numel() for p in build(arch, num_classes=10).parameters()) == published


@looped("arch", architectures())
def test_a_network_knows_the_name_that_builds_it(arch):
    assert build(arch, num_classes=2).arch == arch


def test_names_are_those_of_the_checkpoints_of_the_field():
    keys = list(build("resnet14a", num_classes=10).state_dict())
    assert {key.rpartition(".")[0] for key in keys} == {"conv1", "bn1", "linear"} | {
        f"layer{stage}.{block}.{part}"
        for stage in (1, 2, 3)
        for block in (0, 1)
        for part in ("conv1", "bn1", "conv2", "bn2")
    }


@looped("size", [8, 9, 13, 32])
def test_logits_are_the_head_of_the_features(size):
    model = small_network()
    images = torch.randn(2, 3, size, size)
    features = model.features(images)
    assert features.shape == (2, 64)
    assert torch.equal(model(images), model.head(features))
    weight, bias = model.head.weight, model.head.bias
    torch.testing.assert_close(model(images), features @ weight.T + bias)


@looped("height, width", [(8, 8), (7, 5), (1, 2)])
def test_the_shortcut_equals_the_explicit_loop(height, width):
    maps = torch.randn(2, 6, height, width)
    expected = torch.zeros(2, 12, (height + 1) // 2, (width + 1) // 2)
    for channel in range(6):
        for row in range(0, height, 2):
            for column in range(0, width, 2):
                expected[:, channel + 3, row // 2, column // 2] = maps[:, channel, row, column]
    assert torch.equal(option_a_shortcut(maps, channels=12), expected)


def test_the_shortcut_keeps_channels_last():
    maps = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    shortcut = option_a_shortcut(maps, channels=32)
    assert shortcut.is_contiguous(memory_format=torch.channels_last)


def test_a_block_with_silent_convolutions_is_its_shortcut():
    block = small_network().layer2[0]
    torch.nn.init.zeros_(block.bn2.weight)
    maps = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(maps), option_a_shortcut(maps, channels=32).relu())


def test_images_and_maps_are_left_as_they_were():
    model, images = small_network(), IMAGES.clone()
    model(images)
    assert torch.equal(images, IMAGES)
    maps = torch.randn(2, 16, 8, 8)
    before = maps.clone()
    model.layer1(maps)
    assert torch.equal(maps, before)


def test_the_seed_fixes_weights_and_logits():
    first, second = small_network(), small_network()
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert torch.equal(first(IMAGES), second(IMAGES))


def test_channels_last_gives_the_same_logits():
    model = small_network()
    expected = model(IMAGES)
    actual = model.to(memory_format=torch.channels_last)(
        IMAGES.to(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(actual, expected)


def test_batching_does_not_change_logits():
    model = small_network()
    one_by_one = torch.cat([model(image[None]) for image in IMAGES])
    torch.testing.assert_close(model(IMAGES), one_by_one)


def test_gradients_are_those_of_double_precision_differences():
    torch.manual_seed(0)
    block = CifarResNet(depth=8, num_classes=2).layer2[0].double()
    maps = torch.randn(2, 16, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, maps, fast_mode=True)


def test_initial_weights_have_the_spread_of_he():
    torch.manual_seed(0)
    weight = build("resnet8a", num_classes=10).layer3[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert weight.mean().item() == pytest.approx(0.0, abs=1e-3)


def test_an_unknown_name_is_rejected_with_the_close_ones_and_all():
    with pytest.raises(ConfigError, match=r"'resnet56b' .*resnet56a") as caught:
        build("resnet56b", num_classes=10)
    assert all(arch in str(caught.value) for arch in architectures())
    assert "\n" not in str(caught.value)


def test_a_name_close_to_nothing_is_rejected_without_a_guess():
    with pytest.raises(ConfigError, match=r"'vit' .*Choose one of them"):
        build("vit", num_classes=10)


@looped("num_classes", [-1, 0, 1])
def test_fewer_than_two_classes_are_rejected(num_classes):
    with pytest.raises(ConfigError, match=r"num_classes .*2, got"):
        build("resnet8a", num_classes=num_classes)


@looped("depth", [2, 9, 18, 0, -4])
def test_depths_other_than_6n_plus_2_are_rejected(depth):
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2"):
        CifarResNet(depth=depth, num_classes=10)
