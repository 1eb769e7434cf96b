"""Every method of distillation trains, or says why not, whatever the cache keeps."""

import json

import pytest

from pipeline.artefacts.dataset import Dataset
from pipeline.errors import ArtefactMismatch, ConfigError
from pipeline.methods.catalogue import METHODS
from stages import cache_teacher, methods, prepare, select, train_student, train_teacher
from stages.caches import Caches
from stages.config.file import with_overrides
from stages.config.root import Config
from tests.support.commands import heartcut
from tests.support.image_folders import save_folder
from tests.support.workspaces import linked_copy, tiny_config

CHANCE = 0.1
GENTLER = {"mlkd": ("train_student.lambda_kd=0.1",)}
"""Its paper's weight is for a hundred classes: with ten, its terms are too large for this rate."""
DENSE_ONLY = ("nkd", "dist", "mlkd")
BY_SIGN = ("select.revision=all", "select.standard_errors=0")
"""The selection that leaves out the most rows of this teacher."""
WITHOUT_SCORES = ("select.standard_errors=unset",)
"""Strategies that score nothing refuse the key."""


@pytest.fixture(scope="module")
def revised(digits, tmp_path_factory) -> dict[str, Config]:
    """A workspace with labels revised and samples selected, of a whole cache and of a top-k one."""
    workspace = linked_copy(digits.workspace, tmp_path_factory.mktemp("methods") / "work")
    config = with_overrides(digits, [f"workspace={workspace}", *BY_SIGN])
    caches = {"dense": config, "top-k": with_overrides(config, ["cache_teacher.top_k=3"])}
    cache_teacher.execute(caches["top-k"])
    for kind in caches.values():
        select.execute(kind)
    return caches


def student(config: Config, method: str, *overrides: str) -> Config:
    changes = [f"train_student.method={method}", "train_student.epochs=4", *overrides]
    return with_overrides(config, [*changes, *GENTLER.get(method, ())])


@pytest.mark.parametrize("kind", ["dense", "top-k"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_with_revision_and_selection_or_says_why_not(revised, method, kind):
    config = student(revised[kind], method)
    if kind == "top-k" and method in DENSE_ONLY:
        with pytest.raises(ArtefactMismatch, match=rf"{method} .*soft labels of a top"):
            train_student.execute(config)
        return
    run = train_student.execute(config)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["training_accuracy"] > lines[0]["training_accuracy"]
    assert lines[-1]["training_accuracy"] > 2 * CHANCE
    assert run.result.test_accuracy > CHANCE
    assert (run.result.method, run.result.num_distilled > 0) == (method, True)


def test_logit_standardisation_needs_all_logits_and_vanilla_or_decoupled_distillation(revised):
    standard = with_overrides(revised["dense"], ["select.standardise=true"])
    select.execute(standard)
    assert train_student.execute(student(standard, "dkd")).result.test_accuracy > CHANCE
    with pytest.raises(ArtefactMismatch, match=r"rkd .*standardised"):
        train_student.execute(student(standard, "rkd"))
    with pytest.raises(ConfigError, match=r"select\.standardise must be false where .*top_k"):
        with_overrides(revised["top-k"], ["select.standardise=true"])
    cache = Caches(
        config=revised["top-k"], dataset=Dataset.open(revised["top-k"].data_folder)
    ).training.path
    shared = with_overrides(standard, [f"select.cache={cache}"])
    with pytest.raises(ConfigError, match=r"standardise is true .*top logits"):
        select.execute(shared)


def test_a_method_of_features_needs_a_cache_that_keeps_them(revised):
    bare = with_overrides(
        revised["dense"],
        [*WITHOUT_SCORES, "cache_teacher.features=false", "select.strategy=correct"],
    )
    cache_teacher.execute(bare)
    select.execute(bare)
    message = (
        r"rkd distils penultimate features, and the cache has none\. Set `cache_teacher\.features"
    )
    with pytest.raises(ArtefactMismatch, match=message):
        train_student.execute(student(bare, "rkd"))


def test_a_selection_of_nothing_is_refused(revised):
    none = with_overrides(revised["dense"], ["select.threshold=1e9", "select.class_quota=0"])
    select.execute(none)
    message = (
        r"selects 0 of \d+ training samples \(expected at least 1 for strategy 'influence'\)\."
    )
    with pytest.raises(ArtefactMismatch, match=message):
        train_student.execute(none)


def test_nothing_can_be_distilled_on_purpose(revised):
    nothing = with_overrides(revised["dense"], [*WITHOUT_SCORES, "select.strategy=none"])
    select.execute(nothing)
    assert train_student.execute(nothing).result.num_distilled == 0


def test_the_teacher_in_the_loop_gives_what_its_cache_gives(revised):
    """Two of two cached views, seen in turn: the same images, rounded to 16 bits or not."""
    curves = []
    for online in (False, True):
        config = with_overrides(
            revised["dense"],
            ["train_student.augmentation=cached", f"train_student.online={str(online).lower()}"],
        )
        run = train_student.execute(config)
        (line,) = (run.path / "metrics.jsonl").read_text().splitlines()
        curves.append(json.loads(line)["training_loss"])
        assert run.result.online == online
        assert (run.result.cost.teacher_forwards_saved > 0) != online
    assert curves[0] == pytest.approx(curves[1], abs=1e-3)
    assert curves[0] != curves[1], "or else one was read as the other"


@pytest.mark.parametrize("method", ["kd", "crd"])
def test_the_teacher_in_the_loop_teaches_views_that_the_cache_does_not_have(revised, method):
    settings = ["train_student.online=true", f"train_student.method={method}"]
    run = train_student.execute(with_overrides(revised["dense"], settings))
    assert run.result.online
    assert run.result.num_distilled > 0


def test_the_catalogue_is_listed_for_people_and_machines():
    text = heartcut("methods").out
    assert [line.split()[0] for line in text.splitlines()[1 : 1 + len(METHODS)]] == list(METHODS)
    assert "2203.08679" in text
    listed = json.loads(heartcut("methods", "--json").out)
    assert [method["name"] for method in listed] == list(METHODS)
    assert methods.as_text() + "\n" == text


def test_networks_of_torchvision_and_timm_go_through_every_stage(tiny_toml, tmp_path):
    """Images of 64 pixels; freshly initialised, the student smaller than the teacher."""
    config = tiny_config(
        tiny_toml,
        tmp_path / "work",
        "prepare.source=folder",
        f"prepare.path={save_folder(tmp_path / 'images', train=120, size=32)}",
        "prepare.test_fraction=unset",
        "prepare.resize=64",
        "train_teacher.arch=torchvision:shufflenet_v2_x0_5",
        "train_teacher.epochs=1",
        "train_teacher.lr=0.01",
        "train_student.arch=timm:test_resnet",
        "train_student.method=sp",
        "train_student.lr=0.01",
        "views.count=1",
    )
    for stage in (prepare, train_teacher, cache_teacher, select):
        stage.execute(config)
    run = train_student.execute(config)
    assert run.result.arch == "timm:test_resnet"
    assert (
        Caches(config=config, dataset=Dataset.open(config.data_folder)).training.shape.num_features
        == 1024
    )
