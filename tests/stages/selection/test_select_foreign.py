"""Select on another team's cache: other order, number of samples, kept logits or labels."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.selection import SelectionTable, key_text
from pipeline.artefacts.soft_labels import SoftLabels, soft_label_path
from pipeline.errors import ArtefactMismatch, ConfigError
from pipeline.methods.sparse_labels import unpack
from pipeline.provenance import sample_key
from stages import cache_teacher, prepare, select, train_student, train_teacher
from stages.caches import Caches
from stages.config.file import with_overrides
from stages.config.root import Config
from stages.identities import teacher_run_path
from stages.selection.columns import NOT_CACHED
from tests.support.cases import mentions
from tests.support.image_folders import CLASSES, save_folder, save_split, textures
from tests.support.small_caches import rewritten
from tests.support.workspaces import linked_copy, read_or_refusal

OF_THE_TEACHER = ["teacher_class", "p_target", "p_max", "beta", "cross_entropy", "el2n"]
OF_THE_TEACHER += ["grand_head", "margin", "entropy"]
INFLUENCE = ["dloss_undistill", "dloss_swap", "dloss_remove"]
NUM_CACHED = 60


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Results of select on a data set."""

    config: Config
    dataset: Dataset
    table: SelectionTable
    soft: SoftLabels

    @classmethod
    def by(cls, config: Config) -> "Chosen":
        table = select.execute(config)
        path = soft_label_path(table.path.parent, table.record.identity.soft_labels)
        dataset = Dataset.open(config.data_folder)
        return cls(config=config, dataset=dataset, table=table, soft=SoftLabels.open(path))

    @property
    def by_key(self) -> pd.DataFrame:
        """The table by sample key."""
        frame = self.table.frame.set_index("sample_key")
        assert frame.index.is_unique, "or else samples cannot be distinguished"
        return frame

    def labels_at(self, keys) -> np.ndarray:
        """Dense soft labels of all views, (V, rows, C) float32, by sample key."""
        position = {key: row for row, key in enumerate(key_text(self.dataset.train.samples.keys))}
        rows = [position[key] for key in keys]
        views = [torch.from_numpy(view[rows]) for view in self.soft.views()]
        if self.soft.top_k:
            views = [unpack(view, self.soft.num_classes) for view in views]
        return torch.stack(views).float().numpy()


def cache_path(config: Config) -> str:
    return Caches(config=config, dataset=Dataset.open(config.data_folder)).training.path


def assert_same_rows(one: Chosen, other: Chosen, keys, *, columns) -> None:
    """Rows and soft labels agree by key."""
    ours, theirs = one.by_key.loc[keys, columns], other.by_key.loc[keys, columns]
    for name in columns:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-9, err_msg=name)
    np.testing.assert_array_equal(one.labels_at(keys), other.labels_at(keys))


@pytest.fixture(scope="module")
def canonical(digits) -> Chosen:
    return Chosen.by(digits)


@pytest.fixture(scope="module")
def turned(digits, tmp_path_factory) -> Chosen:
    """The digits as their source lists them, with the cache of the canonical order."""
    workspace = tmp_path_factory.mktemp("turned")
    config = with_overrides(
        digits,
        [
            f"workspace={workspace}",
            "prepare.order=source",
            f"select.cache={cache_path(digits)}",
        ],
    )
    prepare.execute(config)
    return Chosen.by(config)


def test_the_order_of_the_samples_does_not_matter(canonical, turned):
    keys = list(canonical.by_key.index)
    order = key_text(turned.dataset.train.samples.keys)
    assert order != keys, "or else nothing is shown"
    assert sorted(order) == sorted(keys)
    assert turned.table.record.num_not_cached == 0
    assert turned.dataset.record.id == canonical.dataset.record.id
    assert_same_rows(canonical, turned, keys, columns=[*OF_THE_TEACHER, "held_out"])
    assert canonical.table.frame["dloss_undistill"].notna().sum() > 300


def test_influence_does_not_depend_on_the_order(canonical, turned):
    ours = canonical.by_key[~canonical.by_key["held_out"]]
    theirs = turned.by_key.loc[ours.index]
    for name in INFLUENCE:
        scale = ours[name].abs().max()
        np.testing.assert_allclose(ours[name] / scale, theirs[name] / scale, rtol=0, atol=1e-9)
    differing = ours["selected"] != theirs["selected"]
    at_the_threshold = ours["dloss_undistill"].abs() < 1e-9 * ours["dloss_undistill"].abs().max()
    assert not (differing & ~at_the_threshold).any()
    assert 0 < ours["selected"].sum() < len(ours)


def test_soft_labels_are_in_the_order_of_the_beton(turned):
    """The loader joins them by position."""
    cache = TeacherCache.open(turned.config.select.cache)
    labels = turned.dataset.train.samples.labels
    correct = turned.table.frame["teacher_correct"].to_numpy()
    for slot, view in enumerate(turned.soft.views()):
        rows = {key.tobytes(): row for row, key in enumerate(cache.keys)}
        mine = [rows[key.tobytes()] for key in turned.dataset.train.samples.keys]
        logits = torch.from_numpy(cache.logits(slot + 1)[mine]).float()
        right = logits.argmax(dim=1).numpy() == labels
        probs = (logits / 4.0).softmax(dim=1).numpy()
        expected = 0.8 * probs + 0.2 * np.eye(probs.shape[1])[labels]  # where it is right
        np.testing.assert_allclose(view[right], expected[right], rtol=2e-3, atol=1e-6)
    assert correct.mean() > 0.1


def test_a_student_trains_on_another_order(turned):
    run = train_student.execute(turned.config)
    assert run.result.num_distilled == turned.table.record.num_selected
    assert run.result.teacher_agreement_held_out is not None


def test_soft_labels_of_another_order_are_rejected_by_training(canonical, turned):
    """Both are of the same data set and cache; only the order of the rows differs."""
    settings = [
        f"train_student.selection={turned.table.path}",
        f"train_student.soft_labels={canonical.soft.path}",
    ]
    with pytest.raises(ArtefactMismatch, match=r"rows .*order"):
        train_student.execute(with_overrides(turned.config, settings))


FOLDER = [
    "prepare.held_out_fraction=0.3",
    "train_teacher.fraction=1.0",
    "train_teacher.epochs=6",
    "train_teacher.batch_size=16",
    "train_student.batch_size=16",
    "select.influence.l2=0.01",
]


@pytest.fixture(scope="module")
def folder_settings(digits, tmp_path_factory):
    """Settings of a workspace on an image folder."""
    base = Config.model_validate(
        {**digits.model_dump(exclude_unset=True), "prepare": {"source": "folder", "path": "."}}
    )

    def settings(images: Path, name: str, *more: str) -> Config:
        workspace = tmp_path_factory.mktemp(name)
        overrides = [f"workspace={workspace}", f"prepare.path={images}", *FOLDER, *more]
        return with_overrides(base, overrides)

    return settings


@pytest.fixture(scope="module")
def cached(folder_settings, tmp_path_factory) -> Chosen:
    """60 images of three classes with a teacher and its cache."""
    images = save_folder(tmp_path_factory.mktemp("images"), train=NUM_CACHED)
    config = folder_settings(images, "cached")
    prepare.execute(config)
    train_teacher.execute(config)
    cache_teacher.execute(config)
    return Chosen.by(config)


@pytest.fixture(scope="module")
def images_with_extras(cached, tmp_path_factory) -> Path:
    """The 60 images and 30 others."""
    folder = tmp_path_factory.mktemp("extras")
    shutil.copytree(cached.config.prepare.path, folder, dirs_exist_ok=True)
    save_split(folder / "extra", textures(30, seed=7))
    for path in sorted((folder / "extra").rglob("*.png")):
        path.rename(folder / "train" / path.parent.name / f"extra-{path.name}")
    shutil.rmtree(folder / "extra")
    return folder


@pytest.fixture(scope="module")
def extended(folder_settings, images_with_extras, cached) -> Chosen:
    cache = f"select.cache={cache_path(cached.config)}"
    config = folder_settings(images_with_extras, "extended", cache)
    prepare.execute(config)
    return Chosen.by(config)


@pytest.fixture(scope="module")
def extras(extended, cached) -> np.ndarray:
    known = set(key_text(cached.dataset.train.samples.keys))
    return np.array([key not in known for key in extended.table.frame["sample_key"]])


def test_extra_samples_are_not_selected_and_have_no_scores(extended, extras):
    frame = extended.table.frame
    assert extras.sum() == 30
    own = frame[extras & ~frame["held_out"]]
    assert 0 < len(own) < 30, "some extras are held out and some are not"
    assert (own["reason"] == NOT_CACHED).all()
    assert (frame[extras]["rank"] == -1).all()
    assert not frame[extras]["selected"].any()
    assert (frame[extras]["teacher_class"] == -1).all()
    assert not frame[extras]["teacher_correct"].any()
    scores = [name for name in OF_THE_TEACHER if name not in ("teacher_class", "beta")]
    assert frame.loc[extras, [*scores, *INFLUENCE, "view_std"]].isna().all(axis=None)
    assert not (frame[~extras]["reason"] == NOT_CACHED).any()
    assert frame.loc[~extras, scores].notna().all(axis=None)


def test_extra_samples_that_are_held_out_are_marked(extended, extras):
    frame = extended.table.frame
    reasons = set(frame[extras & frame["held_out"]]["reason"])
    assert reasons == set(frame[~extras & frame["held_out"]]["reason"])


def test_extra_samples_are_supervised_by_their_hard_labels(extended, extras):
    one_hot = np.eye(3, dtype=np.float16)[extended.dataset.train.samples.labels]
    for view in extended.soft.views():
        np.testing.assert_array_equal(view[extras], one_hot[extras])
        assert (view[~extras].max(axis=1) < 1).any()


def test_candidates_are_known_training_samples(extended, extras):
    frame, record = extended.table.frame, extended.table.record
    candidates = frame[~extras & ~frame["held_out"]]
    assert (record.num_not_cached, record.num_candidates) == (30, len(candidates))
    assert sorted(candidates["rank"]) == list(range(len(candidates)))
    assert candidates["dloss_undistill"].notna().all()


def test_known_samples_among_extras_have_the_numbers_of_the_cache(cached, extended):
    keys = list(cached.by_key.index)
    assert_same_rows(cached, extended, keys, columns=OF_THE_TEACHER)


def test_the_number_of_extra_samples_is_reported(extended, caplog):
    config = with_overrides(extended.config, ["select.seed=1"])
    with caplog.at_level(logging.WARNING):
        record = select.execute(config).record
    assert "lacks 30 of the 90 images of" in caplog.text
    assert "hard labels" in caplog.text
    assert (record.num_not_cached, record.id != extended.table.id) == (30, True)


def test_a_student_trains_with_extra_samples(extended):
    result = train_student.execute(extended.config).result
    assert result.num_distilled == extended.table.record.num_selected
    assert result.num_training_samples == len(extended.dataset.training)
    assert 0 <= result.teacher_agreement_held_out <= 1


def test_fewer_samples_have_the_same_numbers(cached, folder_settings, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(cached.config.prepare.path, images)
    for path in sorted((images / "train").rglob("*.png"))[::4]:
        path.unlink()
    cache = f"select.cache={cache_path(cached.config)}"
    config = folder_settings(images, "fewer", cache)
    prepare.execute(config)
    fewer = Chosen.by(config)
    assert len(fewer.table.frame) == NUM_CACHED - NUM_CACHED // 4
    assert fewer.table.record.num_not_cached == 0
    assert_same_rows(fewer, cached, list(fewer.by_key.index), columns=OF_THE_TEACHER)


def relabelled(cached, folder_settings, tmp_path, *more) -> Config:
    """Two images moved to another class."""
    images = tmp_path / "images"
    shutil.copytree(cached.config.prepare.path, images)
    ant, bee = CLASSES[:2]
    for path in sorted((images / "train" / ant).iterdir())[:2]:
        path.rename(images / "train" / bee / path.name)
    cache = f"select.cache={cache_path(cached.config)}"
    config = folder_settings(images, "relabelled", cache, *more)
    prepare.execute(config)
    return config


def test_other_labels_are_rejected_and_with_their_name_accepted_and_recorded(
    cached, folder_settings, tmp_path
):
    config = relabelled(cached, folder_settings, tmp_path)
    line = read_or_refusal(lambda: select.execute(config))
    assert mentions(line, "labels", 2, NUM_CACHED)
    assert not config.selections_folder.exists()
    accepted = with_overrides(config, ['select.accept_mismatch=["labels"]'])
    chosen = Chosen.by(accepted)
    assert chosen.table.record.accepted == ["labels"]
    assert chosen.soft.record.identity.accepted == ("labels",)
    run = train_student.execute(accepted)
    assert run.result.inputs.accepted_mismatches == ("labels",)
    ours = chosen.by_key
    moved = ours.index[ours["label"] != cached.by_key.loc[ours.index, "label"]]
    assert len(moved) == 2
    for key in moved:  # revised towards the data set's label, not the cache's
        label = ours.loc[key, "label"]
        shares = chosen.labels_at([key])[:, 0, label]
        raw = cached.labels_at([key])[:, 0, label]
        assert (shares >= raw - 1e-3).all()
        assert shares.max() > raw.max()


def test_a_cache_of_other_classes_is_rejected(digits, cached):
    config = with_overrides(cached.config, [f"select.cache={cache_path(digits)}"])
    line = read_or_refusal(lambda: select.execute(config))
    assert "has 10 classes (expected 3, as " in line


@pytest.fixture(scope="module")
def top_k(digits, tmp_path_factory):
    """Digits with a cache of only the top k logits, and what select makes of it."""
    made: dict[int, Chosen] = {}

    def chosen(k: int) -> Chosen:
        if k not in made:
            workspace = linked_copy(
                digits.workspace,
                tmp_path_factory.mktemp(f"top{k}") / "work",
                without=("caches", "selections"),
            )
            overrides = [f"workspace={workspace}", f"cache_teacher.top_k={k}"]
            config = with_overrides(digits, overrides)
            cache_teacher.execute(config)
            made[k] = Chosen.by(config)
        return made[k]

    return chosen


def test_all_logits_as_top_k_are_the_dense_cache(canonical, top_k):
    sparse = top_k(10)
    assert sparse.soft.top_k == 10
    assert sparse.soft.record.shape[2] == 23
    keys = list(canonical.by_key.index)
    np.testing.assert_allclose(
        sparse.labels_at(keys), canonical.labels_at(keys), rtol=2e-3, atol=1e-6
    )
    for name in OF_THE_TEACHER:
        np.testing.assert_allclose(
            sparse.by_key[name], canonical.by_key[name], rtol=1e-6, atol=1e-6, err_msg=name
        )
    for name in INFLUENCE:
        ours, theirs = sparse.by_key[name], canonical.by_key[name]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * theirs.abs().max())
    near = canonical.by_key["dloss_undistill"].abs() < (
        1e-6 * canonical.by_key["dloss_undistill"].abs().max()
    )
    assert not ((sparse.by_key["selected"] != canonical.by_key["selected"]) & ~near).any()


def test_a_student_of_all_logits_as_top_k_is_that_of_the_dense_cache(canonical, top_k, tmp_path):
    results = []
    for number, chosen in enumerate((canonical, top_k(10))):
        workspace = linked_copy(chosen.config.workspace, tmp_path / str(number))
        config = with_overrides(chosen.config, [f"workspace={workspace}"])
        results.append(train_student.execute(config).result)
    dense, sparse = results
    assert dense.inputs != sparse.inputs
    assert sparse.num_distilled == dense.num_distilled > 0
    assert sparse.test_loss == pytest.approx(dense.test_loss, rel=1e-2)
    assert sparse.test_accuracy == pytest.approx(dense.test_accuracy, abs=0.01)
    assert sparse.teacher_agreement_test == pytest.approx(dense.teacher_agreement_test, abs=0.01)


def test_top_3_soft_labels_are_exact_in_the_label_and_the_largest_class(canonical, top_k):
    sparse = top_k(3)
    keys = list(canonical.by_key.index)
    found, exact = sparse.labels_at(keys), canonical.labels_at(keys)
    rows, label = np.arange(len(keys)), canonical.by_key["label"].to_numpy()
    np.testing.assert_allclose(found[:, rows, label], exact[:, rows, label], rtol=3e-3, atol=1e-4)
    np.testing.assert_allclose(found.max(axis=2), exact.max(axis=2), rtol=3e-3, atol=1e-4)
    assert (found.argmax(axis=2) == exact.argmax(axis=2)).mean() > 0.99, "ties apart"
    np.testing.assert_allclose(found.sum(axis=2), 1, rtol=1e-5)
    assert np.abs(found - exact).max() > 1e-3, "or else nothing was left out"
    for name in ("teacher_class", "p_target", "p_max", "beta", "cross_entropy", "margin"):
        np.testing.assert_allclose(
            sparse.by_key[name], canonical.by_key[name], rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_influence_works_on_a_top_k_cache(canonical, top_k):
    sparse = top_k(3)
    assert len(sparse.table.record.scores.solves) == 2
    candidates = canonical.by_key.index[~canonical.by_key["held_out"]]
    ours, theirs = (chosen.by_key.loc[candidates] for chosen in (sparse, canonical))
    for name in INFLUENCE:
        assert ours[name].notna().all()
        assert ours[name].corr(theirs[name], method="spearman") > 0.9, name


def test_a_student_trains_on_top_3_labels(top_k):
    chosen = top_k(3)
    result = train_student.execute(chosen.config).result
    assert result.num_distilled == chosen.table.record.num_selected > 0
    assert np.isfinite(result.test_loss)


@pytest.mark.parametrize(
    "setting", ["select.temperature=2", "select.revise_at=2", "select.influence.temperature=2"]
)
def test_a_temperature_that_was_not_kept_is_rejected(top_k, setting):
    """With another team's cache; one's own configuration is rejected before there is a cache."""
    own = top_k(3).config
    with pytest.raises(ConfigError, match=r"cache_teacher\.temperatures must include 2"):
        with_overrides(own, [setting])
    cache = Caches(config=own, dataset=Dataset.open(own.data_folder)).training.path
    config = with_overrides(own, [f"select.cache={cache}", setting])
    line = read_or_refusal(lambda: select.execute(config))
    assert mentions(line, "top 3", "1 and 4")
    assert "(expected 2 among them)" in line
    assert not list(config.selections_folder.glob("*.partial"))


def test_accepting_other_labels_is_rejected_where_only_the_top_is_kept(top_k):
    config = with_overrides(top_k(3).config, ['select.accept_mismatch=["labels"]'])
    with pytest.raises(ConfigError, match=r"top logits") as refusal:
        select.execute(config)
    assert "\n" not in str(refusal.value)
    other = with_overrides(top_k(3).config, ['select.accept_mismatch=["pixels"]'])
    assert select.execute(other).record.accepted == []


def test_top_k_with_extra_samples_gives_these_hard_labels(
    cached, folder_settings, images_with_extras, tmp_path
):
    """In a packed row, too, for every label."""
    base = linked_copy(cached.config.workspace, tmp_path / "k", without=("caches", "selections"))
    sparse = with_overrides(cached.config, [f"workspace={base}", "cache_teacher.top_k=1"])
    cache_teacher.execute(sparse)
    cache = f"select.cache={cache_path(sparse)}"
    config = folder_settings(images_with_extras, "extended-k", cache)
    prepare.execute(config)
    chosen = Chosen.by(config)
    known = set(key_text(cached.dataset.train.samples.keys))
    keys = key_text(chosen.dataset.train.samples.keys)
    extra = np.array([key not in known for key in keys])
    one_hot = np.eye(3)[chosen.dataset.train.samples.labels]
    found = chosen.labels_at(keys)
    assert set(chosen.dataset.train.samples.labels[extra]) == {0, 1, 2}
    np.testing.assert_array_equal(found[:, extra], np.broadcast_to(one_hot, found.shape)[:, extra])
    assert train_student.execute(config).result.num_training_samples == len(chosen.dataset.training)


def test_a_selection_takes_views_from_the_cache_and_not_from_the_settings(
    digits, canonical, tmp_path
):
    """The reader takes everything from the manifest: other `views` here change nothing."""
    workspace = tmp_path / "work"
    linked_copy(digits.workspace, workspace, without=("caches", "selections", "runs"))
    settings = [f"workspace={workspace}", f"select.cache={cache_path(digits)}"]
    wrong = ["views.padding=3", "views.flip=true", "views.count=7", "views.seed=5"]
    wrong += ["cache_teacher.top_k=2", "cache_teacher.features=false"]
    config = with_overrides(digits, [*settings, *wrong])
    chosen = Chosen.by(config)
    assert chosen.table.id == canonical.table.id
    assert chosen.soft.id == canonical.soft.id
    assert chosen.soft.record.sha256 == canonical.soft.record.sha256
    assert chosen.soft.record.identity.views == (1, 2)
    assert (
        chosen.soft.record.identity.view_spec
        == Caches(config=config, dataset=chosen.dataset).training.manifest.identity.views
    )
    assert train_student.execute(config).result.num_distilled == chosen.table.record.num_selected


def test_a_cache_without_any_held_out_image_is_rejected_for_influence(
    cached, folder_settings, tmp_path
):
    """Influence cannot be predicted; other strategies work."""
    keys = key_text(cached.dataset.train.samples.keys[cached.dataset.held_out])
    images = tmp_path / "images"
    shutil.copytree(cached.config.prepare.path, images)
    for path in sorted((images / "train").rglob("*.png")):
        if sample_key(path.read_bytes()).hex() in keys:
            path.unlink()
    part = folder_settings(images, "part")
    prepare.execute(part)
    teacher = [f"cache_teacher.checkpoint={teacher_of(cached.config)}"]
    own = with_overrides(part, [*teacher, "cache_teacher.arch=resnet8a"])
    cache_teacher.execute(own)
    more = [f"select.cache={cache_path(own)}"]
    config = with_overrides(cached.config, [f"workspace={tmp_path / 'all'}", *more])
    prepare.execute(config)
    for needs in ("target=held-out", "l2=auto"):
        with pytest.raises(ConfigError, match="held-out images"):
            select.execute(with_overrides(config, [f"select.influence.{needs}"]))
    others = ["select.strategy=correct", "select.influence=unset"]
    assert select.execute(with_overrides(config, others)).record.num_not_cached > 0


def teacher_of(config: Config) -> Path:
    return teacher_run_path(config, Dataset.open(config.data_folder)) / "model.safetensors"


def test_a_student_is_not_compared_with_another_teacher_than_its_own(digits, tmp_path):
    """A selection from another team's cache, next to the cache of one's own teacher."""
    copy = tmp_path / "foreign"
    shutil.copytree(cache_path(digits), copy)
    workspace = linked_copy(digits.workspace, tmp_path / "work", without=("selections",))
    own = with_overrides(digits, [f"workspace={workspace}"])
    select.execute(own)
    assert train_student.execute(own).result.teacher_agreement_test is not None
    another = rewritten(TeacherCache.open(copy), tmp_path / "another", weights="0" * 64)
    foreign = with_overrides(own, [f"select.cache={another.path}"])
    select.execute(foreign)
    assert train_student.execute(foreign).result.teacher_agreement_test is None
