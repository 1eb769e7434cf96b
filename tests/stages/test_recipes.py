"""The literature's recipes: their settings are exact, and they run."""

from pathlib import Path

import pytest

from pipeline.models.zoo import build
from stages import cache_teacher, prepare, select, train_student, train_teacher
from stages.config.file import load_config, with_overrides
from stages.config.root import Config
from stages.sweep.points import baseline_of, sweep_points
from tests.support.cases import looped
from tests.support.image_folders import save_folder

CONFIGS = Path(__file__).parents[2] / "configs"
CIFAR = {
    # teacher, student: rate, DKD's beta (mdistiller's configurations)
    ("resnet56", "resnet20"): (0.05, 2.0),
    ("resnet110", "resnet32"): (0.05, 2.0),
    ("resnet110", "resnet20"): (0.05, 2.0),
    ("resnet32x4", "resnet8x4"): (0.05, 8.0),
    ("wrn_40_2", "wrn_16_2"): (0.05, 6.0),
    ("wrn_40_2", "wrn_40_1"): (0.05, 6.0),
    ("vgg13", "vgg8"): (0.05, 6.0),
    ("resnet32x4", "ShuffleV1"): (0.01, 8.0),
    ("wrn_40_2", "ShuffleV1"): (0.01, 8.0),
    ("vgg13", "MobileNetV2"): (0.01, 6.0),
    ("ResNet50", "MobileNetV2"): (0.01, 8.0),
    ("resnet32x4", "ShuffleV2"): (0.01, 8.0),
    ("ResNet50", "vgg8"): (0.05, 8.0),
}
IMAGENET = {
    ("torchvision:resnet34", "torchvision:resnet18"): 0.5,
    ("torchvision:resnet50", "MobileNetV1"): 2.0,
}
RECIPES = sorted([*CONFIGS.glob("cifar100/*.toml"), *CONFIGS.glob("imagenet/*.toml")])
EVERY_RECIPE = looped("path", RECIPES)


def variant(config: Config, name: str) -> Config:
    return with_overrides(config, config.compare.variants[name])


def pair_of(config: Config) -> tuple[str, str]:
    return config.cache_teacher.arch, config.train_student.arch


def test_there_is_a_recipe_for_every_pair():
    pairs = [pair_of(load_config(path)) for path in RECIPES]
    assert sorted(pairs) == sorted([*CIFAR, *IMAGENET])


@EVERY_RECIPE
def test_a_recipe_is_named_after_its_pair(path):
    pair = [name.rpartition(":")[2].lower() for name in pair_of(load_config(path))]
    assert path.stem == "-".join(pair)


@EVERY_RECIPE
def test_a_recipe_has_the_literatures_settings(path):
    config = load_config(path)
    student, is_cifar = config.train_student, pair_of(config) in CIFAR
    assert (student.optimizer, student.momentum, student.nesterov) == ("sgd", 0.9, False)
    assert (student.schedule, student.gamma, student.precision) == ("multi-step", 0.1, "fp32")
    found = student.epochs, student.batch_size, student.weight_decay, student.milestones
    if is_cifar:
        assert found == (240, 64, 5e-4, (150, 180, 210))
        assert (config.views.padding, config.views.flip, config.views.count) == (4, True, "all")
    else:
        assert found == (100, 512, 1e-4, (30, 60, 90))
    assert student.lr == (CIFAR[pair_of(config)][0] if is_cifar else 0.2)
    assert config.select.temperature == (4.0 if is_cifar else 1.0)
    assert (student.decay_norms, student.label_smoothing, student.ema_decay) == (True, 0.0, 0.0)


@EVERY_RECIPE
def test_a_recipes_methods_have_the_literatures_weights(path):
    config = load_config(path)
    is_cifar = pair_of(config) in CIFAR
    kd, dkd = (variant(config, name).train_student for name in ("KD", "DKD"))
    assert (kd.method, kd.weights) == ("kd", (0.1, 0.9, 0.0) if is_cifar else (0.5, 0.5, 0.0))
    assert (dkd.method, dkd.weights) == ("dkd", (1.0, 1.0, 0.0))
    beta = CIFAR[pair_of(config)][1] if is_cifar else IMAGENET[pair_of(config)]
    assert (dkd.dkd.alpha, dkd.dkd.beta) == (1.0, beta)
    assert dkd.dkd.warmup_epochs == (20 if is_cifar else 1)
    for name in config.compare.variants:
        assert variant(config, name).select.revision == ("all" if "revised" in name else "none")


def overrides_of(folder: Path, side: int) -> list[str]:
    """Overrides that run a recipe on a few images of its size and a small teacher's cache."""
    overrides = [
        f"workspace={folder / 'work'}",
        "prepare.source=folder",
        "prepare.name=unset",
        "prepare.test=unset",
        f"prepare.path={save_folder(folder / 'images', train=30, size=side)}",
        f"prepare.resize={side}",
        "prepare.store=unset",
        "prepare.held_out_fraction=0.1",
        "views.count=1",
        "views.kind=unset",
        "views.size=unset",
        "views.padding=4",
        "cache_teacher.checkpoint=unset",
        *(f"cache_teacher.{key}=unset" for key in ("arch", "mean", "std")),
        "train_teacher.arch=resnet8a",
        "train_teacher.epochs=1",
    ]
    config = load_config(RECIPES[0], overrides=overrides)
    for stage in (prepare, train_teacher, cache_teacher):
        stage.execute(config)
    for temperature in (1.0, 4.0):
        select.execute(with_overrides(config, [f"select.temperature={temperature}"]))
    return overrides


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> dict[str, list[str]]:
    """Overrides of the recipes by their folder; ImageNet's images are made small."""
    sides = {"cifar100": 32, "imagenet": 64}
    return {name: overrides_of(tmp_path_factory.mktemp(name), side) for name, side in sides.items()}


@pytest.mark.slow
@EVERY_RECIPE
def test_a_recipe_runs_for_two_steps(path, taught):
    config = load_config(path, overrides=taught[path.parent.name])
    changes = [
        "train_student.epochs=1",
        "train_student.batch_size=20",
        "train_student.mean_of_last=1",
    ]
    run = train_student.execute(with_overrides(variant(config, "DKD"), changes))
    assert 1 < run.result.num_training_samples / 20 <= 2
    assert (run.result.method, run.result.arch) == ("dkd", config.train_student.arch)


@EVERY_RECIPE
def test_a_recipes_networks_exist(path):
    for arch in pair_of(load_config(path)):
        assert build(arch, num_classes=100).head.out_features == 100


@looped("path", sorted(CONFIGS.glob("studies/*.toml")))
def test_every_point_of_a_study_can_be_trained(path):
    config = load_config(path)
    assert config.sweep.name == path.stem
    points = sweep_points(config)
    assert all(point.config is not None for point in points)
    assert baseline_of(config, points).name in config.sweep.points
    students = {
        (point.config.train_student.arch, point.config.train_student.epochs) for point in points
    }
    assert len(students) == 1, "points are compared as trainings of one kind"
