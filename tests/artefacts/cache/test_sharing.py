"""Caches between machines and teams: nothing half, nothing overwritten, nothing without a word."""

import json
import re
import shutil
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.artefacts.cache.hydration import HydratedCache
from pipeline.artefacts.cache.join import join_samples
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.artefacts.run import Run
from pipeline.artefacts.selection import SelectionTable
from pipeline.artefacts.soft_labels import SoftLabels, soft_label_path
from pipeline.data.views import ViewSpec, view_codes
from pipeline.errors import ArtefactNotFound
from pipeline.models.checkpoints import load_weights, save_weights, weights_digest
from pipeline.models.zoo import build
from stages.caches import Caches
from stages.identities import teacher_run_path
from tests.support.cases import mentions
from tests.support.commands import heartcut
from tests.support.image_folders import CLASSES, save_split, textures
from tests.support.servers import (
    BUCKET,
    SECRETS,
    WithoutRanges,
    WithRanges,
    http_server,
    s3_environment,
    seaweedfs,
)
from tests.support.small_caches import forged
from tests.support.workspaces import flip_byte, linked_copy, snapshot, tables_in


@pytest.fixture
def as_user(monkeypatch):
    """Set the environment of a user of a server: `as_user(server, "rw")`."""
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)

    def use(server, identity="rw"):
        for name, value in s3_environment(server, identity).items():
            monkeypatch.setenv(name, value)

    return use


@pytest.fixture
def bucket(seaweed, as_user) -> str:
    """A folder of its own in the bucket, that may be written."""
    as_user(seaweed)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def cache_path(digits) -> Path:
    """The training cache of `digits`; never changed."""
    cache = Caches(config=digits, dataset=Dataset.open(digits.data_folder)).made
    assert cache is not None
    return Path(cache.path)


@pytest.fixture
def cache_copy(cache_path, tmp_path) -> Path:
    return linked_copy(cache_path, tmp_path / "copy" / cache_path.name)


def settings_of(*settings: str) -> list[str]:
    return [part for one in settings for part in ("--set", one)]


def listed(url: str) -> dict[str, tuple[str, str]]:
    """Version and time of every object, to see that nothing was written."""
    from obstore.store import S3Store

    prefix = url.removeprefix(f"s3://{BUCKET}/")
    store = S3Store(BUCKET, client_options={"allow_http": True})
    return {
        item["path"]: (str(item["e_tag"]), str(item["last_modified"]))
        for items in store.list(prefix)
        for item in items
    }


def require_fine(done) -> str:
    assert (done.code, done.err) == (0, ""), done
    return done.out.strip()


def one_error(done, code: int = 1) -> str:
    assert (done.code, done.err.count("\n")) == (code, 1), done
    assert done.err.startswith("error: ")
    return done.err


# Push and pull.


def test_a_cache_that_went_to_s3_and_back_is_the_same_and_going_again_writes_nothing(
    cache_path, bucket, tmp_path
):
    root = TeacherCache.open(cache_path).root
    pushed = require_fine(heartcut("cache", "push", cache_path, bucket))
    assert pushed == f"{bucket}/{cache_path.name}"
    assert TeacherCache.open(pushed).root == root
    there = listed(bucket)
    assert len(there) > 30
    time.sleep(1.1)  # a second writing would change the time
    assert require_fine(heartcut("cache", "push", cache_path, bucket)) == pushed
    assert listed(bucket) == there
    pulled = require_fine(heartcut("cache", "pull", pushed, tmp_path / "here"))
    assert Path(pulled) == tmp_path / "here" / cache_path.name
    one, other = TeacherCache.open(cache_path), TeacherCache.open(pulled)
    assert other.root == root
    for path in cache_path.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (Path(pulled) / path.relative_to(cache_path)).read_bytes()
    assert np.array_equal(one.logits(1), other.logits(1))
    before = snapshot(tmp_path / "here")
    assert require_fine(heartcut("cache", "pull", pushed, tmp_path / "here")) == pulled
    assert snapshot(tmp_path / "here") == before


def test_a_configuration_pushes_both_of_its_caches_to_its_share(digits, tiny_toml, bucket):
    options = settings_of(f"workspace={digits.workspace}", f"share={bucket}")
    places = require_fine(heartcut("cache", "push", tiny_toml, *options)).splitlines()
    assert len(places) == 2
    assert {TeacherCache.open(place).shape.num_views for place in places} == {1, 3}
    line = one_error(heartcut("cache", "push", tiny_toml, *options[:2]))
    assert "no destination to push" in line


def test_a_cache_that_is_not_sealed_is_not_pushed(cache_copy, bucket):
    (cache_copy / "sealed.json").unlink()
    assert "is not sealed" in one_error(heartcut("cache", "push", cache_copy, bucket), 5)
    assert listed(bucket).keys() <= {f"{bucket.removeprefix(f's3://{BUCKET}/')}/.heartcut-probe"}


@pytest.mark.parametrize("key", ["data.zarr/logits/c/1/0/0", "data.zarr/labels/c/0"])
def test_a_damaged_object_is_not_pushed(cache_copy, bucket, key):
    flip_byte(cache_copy / key, 9)
    line = one_error(heartcut("cache", "push", cache_copy, bucket), 3)
    assert f"{key} has other contents than were written" in line
    assert not any(name.endswith("sealed.json") for name in listed(bucket))


def test_a_damaged_object_is_not_pulled(cache_path, bucket, tmp_path):
    """Somebody replaced an object in the bucket by one of the same size."""
    from obstore.store import S3Store

    pushed = require_fine(heartcut("cache", "push", cache_path, bucket))
    key = f"{pushed.removeprefix(f's3://{BUCKET}/')}/data.zarr/features/c/0/0/0"
    store = S3Store(BUCKET, client_options={"allow_http": True})
    data = bytearray(store.get(key).bytes())
    data[40] ^= 1
    store.put(key, bytes(data))
    line = one_error(heartcut("cache", "pull", pushed, tmp_path / "here"), 3)
    assert "data.zarr/features/c/0/0/0" in line
    assert not list((tmp_path / "here").rglob("sealed.json"))
    assert heartcut("cache", "verify", pushed).code == 0
    assert heartcut("cache", "verify", "--bytes", pushed).code == 3


@pytest.mark.parametrize("sealed", [True, False])
def test_other_numbers_under_the_same_id_are_not_overwritten(
    cache_path, cache_copy, tmp_path, sealed
):
    forged(cache_copy)
    target = tmp_path / "team"
    place = Path(require_fine(heartcut("cache", "push", cache_copy, target)))
    if not sealed:
        (place / "sealed.json").unlink()
    before = snapshot(place)
    done = heartcut("cache", "push", cache_path, target)
    line = one_error(done, 4)
    assert ("was sealed with other numbers" if sealed else "records other numbers") in line
    assert "Nothing was overwritten" in line
    assert before.items() <= snapshot(place).items()
    assert (place / "sealed.json").exists() == sealed


def test_a_place_with_a_cache_that_is_cut_otherwise_is_not_mixed_up(
    digits, tiny_toml, cache_path, tmp_path
):
    work = linked_copy(digits.workspace, tmp_path / "work", without=("caches",))
    caches = tmp_path / "team"
    options = settings_of(f"workspace={work}", f"caches={caches}", "cache_teacher.shard_rows=200")
    require_fine(heartcut("cache-teacher", tiny_toml, *options, "--shard-range", "0:2"))
    assert (caches / cache_path.name).is_dir()
    line = one_error(heartcut("cache", "push", cache_path, caches), 4)
    assert "with another layout" in line
    require_fine(heartcut("cache-teacher", tiny_toml, *options))
    line = one_error(heartcut("cache", "push", cache_path, caches), 4)
    assert "was sealed with other numbers" in line
    assert heartcut("cache", "diff", cache_path, caches / cache_path.name).code == 4


def number_of_receipts(store) -> int:
    try:
        return len(store.sizes("receipts"))
    except ArtefactNotFound:  # a server that has just started has no bucket yet
        return 0


def test_a_server_that_dies_in_the_middle_of_a_push_shows_no_cache_until_it_is_completed(
    digits, tiny_toml, as_user, tmp_path
):
    work = linked_copy(digits.workspace, tmp_path / "work", without=("caches",))
    options = settings_of(f"workspace={work}", "cache_teacher.shard_rows=16")
    cache = Path(require_fine(heartcut("cache-teacher", tiny_toml, *options)))
    root = TeacherCache.open(cache).root
    (tmp_path / "server").mkdir()
    with seaweedfs(tmp_path / "server") as server:
        as_user(server)
        bucket = f"s3://{BUCKET}/push"
        seen = open_objects(f"{bucket}/{cache.name}")
        ended: list[object] = []
        pushing = threading.Thread(
            target=lambda: ended.append(heartcut("cache", "push", cache, bucket))
        )
        pushing.start()
        while number_of_receipts(seen) < 20:
            assert pushing.is_alive()
            time.sleep(0.005)
        server.kill()
        pushing.join(60)
        (done,) = ended
        assert "could not be reached" in one_error(done)
        server.restart(seen, "manifest.json")
        kept = seen.sizes("receipts")
        assert 20 <= len(kept) < len(TeacherCache.open(cache).seal.receipts)
        assert seen.size("sealed.json") is None
        assert "is not sealed" in one_error(heartcut("cache", "info", seen.url), 5)
        versions = listed(bucket)
        require_fine(heartcut("cache", "push", cache, bucket))
        assert TeacherCache.open(seen.url).root == root
        assert versions.items() <= listed(bucket).items()
        assert heartcut("cache", "verify", "--bytes", seen.url).code == 0


def test_a_server_without_conditional_creation_needs_a_single_writer(
    cache_path, nanio_server, as_user, tmp_path
):
    as_user(nanio_server)
    bucket = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    line = one_error(heartcut("cache", "push", cache_path, bucket))
    assert "ignores conditional creation" in line
    assert open_objects(bucket).sizes() == {}
    pushed = require_fine(heartcut("cache", "push", "--single-writer", cache_path, bucket))
    assert TeacherCache.open(pushed).root == TeacherCache.open(cache_path).root
    require_fine(heartcut("cache", "pull", pushed, tmp_path))


def test_a_reader_can_pull_and_select_but_not_push(
    cache_path, bucket, seaweed, as_user, digits, tiny_toml, tmp_path
):
    pushed = require_fine(heartcut("cache", "push", cache_path, bucket))
    as_user(seaweed, "ro")
    require_fine(heartcut("cache", "pull", pushed, tmp_path / "here"))
    work = linked_copy(digits.workspace, tmp_path / "work", without=("caches", "runs"))
    options = settings_of(f"workspace={work}", f"select.cache={pushed}")
    assert heartcut("select", tiny_toml, *options).code == 0
    line = one_error(heartcut("cache", "push", cache_path, f"{bucket}-other"))
    assert "permission denied" in line


@pytest.mark.parametrize("handler", [WithRanges, WithoutRanges])
def test_a_cache_behind_a_web_server_is_read_and_never_written(
    handler, digits, tiny_toml, cache_path, tmp_path
):
    with http_server(cache_path.parent, handler) as url:
        place = f"{url}/{cache_path.name}"
        cache = TeacherCache.open(place)
        assert cache.root == TeacherCache.open(cache_path).root
        assert np.array_equal(cache.features(2), TeacherCache.open(cache_path).features(2))
        done = heartcut("cache", "verify", "--bytes", place)
        assert "is OK" in require_fine(done)
        assert "all bytes checked" in done.out
        require_fine(heartcut("cache", "info", place))
        pulled = require_fine(heartcut("cache", "pull", place, tmp_path / "here"))
        assert TeacherCache.open(pulled).root == cache.root
        assert "cannot be listed" in one_error(heartcut("cache", "list", url))
        assert "cannot be written" in one_error(heartcut("cache", "push", cache_path, url))
        work = linked_copy(digits.workspace, tmp_path / "work", without=("caches", "selections"))
        options = settings_of(f"workspace={work}", f"select.cache={place}")
        table = Path(heartcut("select", tiny_toml, *options).out.strip())
        (made,) = tables_in(digits.selections_folder)
        assert table.name == made.name


def test_a_damaged_cache_behind_a_web_server_is_reported(cache_copy):
    flip_byte(cache_copy / "data.zarr" / "logits" / "c" / "2" / "0" / "0", 30)
    with http_server(cache_copy.parent, WithoutRanges) as url:
        place = f"{url}/{cache_copy.name}"
        assert heartcut("cache", "verify", place).code == 0
        done = heartcut("cache", "verify", "--bytes", place)
        assert done.code == 3
        assert "logits/c/2/0/0 has other contents" in done.out
        (cache_copy / "data.zarr" / "features" / "c" / "1" / "0" / "0").unlink()
        done = heartcut("cache", "verify", place)
        assert (done.code, "features/c/1/0/0 is missing" in done.out) == (3, True)


# A second team.


class Team:
    """A workspace, the images of its own and the commands that are run there."""

    def __init__(self, toml: Path, workspace: Path, *settings: str) -> None:
        self.toml, self.workspace = toml, workspace
        self.options = settings_of(f"workspace={workspace}", *settings)

    def run(self, command: str, *arguments: object, quiet: bool = True):
        done = heartcut(command, self.toml, *self.options, *arguments, quiet=quiet)
        assert done.code == 0, done
        return done

    @property
    def dataset(self) -> Dataset:
        return Dataset.open(self.workspace / "data")

    def student(self, *arguments: object) -> Run:
        return Run.open(Path(self.run("train-student", *arguments).out.strip()))


@pytest.fixture(scope="module")
def first(digits, tiny_toml, tmp_path_factory) -> tuple[Run, SelectionTable]:
    """The student and the selection of the team that has the teacher; never changed."""
    work = linked_copy(digits.workspace, tmp_path_factory.mktemp("first") / "work")
    team = Team(tiny_toml, work)
    return team.student(), SelectionTable.open(Path(team.run("select").out.strip()))


def test_a_second_team_without_the_teacher_trains_the_same_student_to_the_bit(
    first, cache_path, bucket, tiny_toml, tmp_path
):
    pushed = require_fine(heartcut("cache", "push", cache_path, bucket))
    team = Team(tiny_toml, tmp_path / "work", f"select.cache={pushed}")
    team.run("prepare")
    team.run("select")
    student, table = team.student(), first[1]
    assert not list(team.workspace.rglob("teacher*"))
    assert weights_digest(load_weights(student.weights)) == weights_digest(
        load_weights(first[0].weights)
    )
    assert (student.result.id, student.result.inputs) == (
        first[0].result.id,
        first[0].result.inputs,
    )
    (own,) = tables_in(team.workspace / "selections")
    assert own.name == table.path.name
    assert SelectionTable.open(own).frame.equals(table.frame)


def test_a_team_with_another_order_has_the_same_view_logits_and_label_of_every_image(
    first, cache_path, bucket, digits, tiny_toml, tmp_path
):
    """F1, F2: what belongs to an image goes by the image."""
    pushed = require_fine(heartcut("cache", "push", cache_path, bucket))
    settings = (f"select.cache={pushed}", "prepare.order=source")
    team = Team(tiny_toml, tmp_path / "work", *settings)
    team.run("prepare")
    table = SelectionTable.open(Path(team.run("select").out.strip()))
    mine, theirs = team.dataset.train.samples, Dataset.open(digits.data_folder).train.samples
    place_of: dict[bytes, int] = {key.tobytes(): i for i, key in enumerate(theirs.keys)}
    rows = np.array([place_of[key.tobytes()] for key in mine.keys])
    assert sorted(rows.tolist()) == list(range(len(theirs)))
    assert not np.array_equal(rows, np.arange(len(rows)))
    assert np.array_equal(mine.keys, theirs.keys[rows])

    cache = TeacherCache.open(pushed)
    own, local = (
        HydratedCache(
            cache=cache,
            joined=join_samples(cache, samples, place="images"),
            folder=tmp_path / f"copies{number}",
        )
        for number, samples in enumerate((mine, theirs))
    )
    spec = ViewSpec.from_json(cache.manifest.identity.views)
    soft = SoftLabels.open(
        soft_label_path(table.path.parent, table.record.identity.soft_labels)
    ).views()
    identity = first[1].record.identity
    their_soft = SoftLabels.open(
        soft_label_path(first[1].path.parent, identity.soft_labels)
    ).views()
    for view in range(cache.shape.num_views):
        number = np.array([view])
        codes = view_codes(spec, theirs.keys, number)
        assert np.array_equal(view_codes(spec, mine.keys, number), codes[rows])
        logits = own.logits(view, temperature=4.0)
        assert torch.equal(logits, local.logits(view, temperature=4.0)[rows])
        assert np.array_equal(logits.numpy(), cache.logits(view)[rows])
        assert np.array_equal(own.features(view), local.features(view)[rows])
        if view:
            assert np.array_equal(soft[view - 1], their_soft[view - 1][rows])
    assert np.array_equal(table.labels, first[1].labels[rows])
    student = team.student()
    assert student.result.num_distilled > 0
    done = team.run("train-student", quiet=False)
    assert re.search(r"test accuracy \d+\.\d\d %, held-out accuracy", done.err)


# Teams whose images are not all the same. The teacher is untrained: only agreement counts.

FOLDER = """\
[views]
padding = 1
count = 2

[cache_teacher]
precision = "fp32"
shard_rows = 17

[select]
strategy = "all"

[train_student]
arch = "resnet8a"
epochs = 1
batch_size = 16
precision = "fp32"
"""
NUM_IMAGES = 60


@pytest.fixture(scope="module")
def folder_team(tmp_path_factory):
    """Makes a team with a copy of the same image folder; each may change its own."""
    base = tmp_path_factory.mktemp("folder-teams")
    toml = base / "folder.toml"
    toml.write_text(FOLDER)

    def make(*settings: str) -> tuple[Team, Path]:
        folder = base / uuid.uuid4().hex
        save_split(folder / "images" / "train", textures(NUM_IMAGES, seed=1))
        save_split(folder / "images" / "test", textures(9, seed=2))
        sources = ("prepare.source=folder", f"prepare.path={folder / 'images'}")
        return Team(toml, folder / "work", *sources, *settings), folder / "images"

    return make


@pytest.fixture(scope="module")
def folder_cache(folder_team, tmp_path_factory) -> str:
    """The first team's cache of its images."""
    torch.manual_seed(0)
    checkpoint = tmp_path_factory.mktemp("untrained") / "teacher.safetensors"
    save_weights(build("resnet8a", num_classes=len(CLASSES)), checkpoint)
    team, _ = folder_team(f"cache_teacher.checkpoint={checkpoint}", "cache_teacher.arch=resnet8a")
    team.run("prepare")
    return str(team.run("cache-teacher").out.strip())


@pytest.fixture
def second(folder_team, folder_cache):
    """A team that has images and the cache of the first; prepared after a change."""

    def make(change, *settings: str) -> Team:
        settings = (f"select.cache={folder_cache}", "cache_teacher.shard_rows=20", *settings)
        team, images = folder_team(*settings)
        change(images)
        team.run("prepare")
        return team

    return make


def relabel(images: Path) -> None:
    """The ant of number 3 is a bee."""
    path = images / "train" / CLASSES[0] / "003.png"
    path.rename(images / "train" / CLASSES[1] / path.name)


def test_a_relabelled_image_is_rejected_counted_and_named_unless_it_is_accepted(second):
    team = second(relabel)
    samples = team.dataset.train.samples
    done = heartcut("select", team.toml, *team.options)
    line = one_error(done)
    assert mentions(line, "labels", 1, 60)
    found = re.search(r"sample (\d+) \((\w{12})\) has label 1, the cache 0", line)
    assert found is not None, line
    assert samples.keys[int(found[1])].tobytes().hex()[:12] == found[2]
    assert samples.labels[int(found[1])] == 1
    assert "--accept-mismatch labels" in line
    assert not list((team.workspace / "selections").glob("*"))

    accept = ("--accept-mismatch", "labels")
    done = team.run("select", *accept, quiet=False)
    assert "other labels than" in done.err
    assert "accepted: " in done.err
    student = team.student(*accept)
    result = json.loads((student.path / "result.json").read_text())
    assert result["inputs"]["accepted_mismatches"] == ["labels"]
    assert heartcut("train-student", team.toml, *team.options).code == 1  # it must be said again


def test_a_changed_image_is_a_new_one_and_not_the_old_one_with_a_word(second):
    def change(images: Path) -> None:
        Image.fromarray(textures(1, seed=9)[0]).save(images / "train" / CLASSES[0] / "003.png")

    team = second(change)
    assert mentions(team.run("select", quiet=False).err, "lacks", 1, 60)


def test_extra_images_are_trained_with_their_hard_labels_and_counted(second):
    def more(images: Path) -> None:
        for i, image in enumerate(textures(5, seed=7)):
            Image.fromarray(image).save(images / "train" / CLASSES[i % 3] / f"extra{i}.png")

    team = second(more)
    done = team.run("select", quiet=False)
    assert "lacks 5 of the 65 images" in done.err
    assert "trained with their hard labels" in done.err
    table = SelectionTable.open(Path(done.out.strip()))
    assert table.record.num_not_cached == 5
    dataset, cache = team.dataset, TeacherCache.open(team.options[-1 - 2].partition("=")[2])
    known = join_samples(cache, dataset.train.samples, place="images").known
    assert (~known).sum() == 5
    soft = SoftLabels.open(soft_label_path(table.path.parent, table.record.identity.soft_labels))
    for view in soft.views():
        own = np.eye(3, dtype=np.float16)[dataset.train.samples.labels]
        assert np.array_equal(np.asarray(view)[~known], own[~known])
        assert np.isfinite(np.asarray(view)).all()
    training = np.isin(np.arange(65), dataset.training)
    student = team.student()
    assert student.result.num_distilled == int((known & training).sum())
    assert student.result.num_training_samples == int(training.sum())


def test_removed_images_do_not_matter(second):
    def fewer(images: Path) -> None:
        for path in sorted((images / "train" / CLASSES[2]).iterdir())[:4]:
            path.unlink()

    team = second(fewer)
    done = team.run("select", quiet=False)
    assert "lacks" not in done.err
    assert team.student().result.num_distilled == len(team.dataset.training)


def test_images_that_are_all_unknown_to_the_cache_are_rejected(second):
    def others(images: Path) -> None:
        shutil.rmtree(images / "train")
        save_split(images / "train", textures(NUM_IMAGES, seed=5))

    team = second(others)
    line = one_error(heartcut("select", team.toml, *team.options))
    assert "has none of the 60 images" in line


# One place for all.


def notes_of(cache: TeacherCache) -> dict[str, bytes]:
    return {
        key: cache.store.read(key, max_bytes=1 << 16)
        for key in cache.store.sizes("receipts")
        if "/logits/" in key
    }


@pytest.fixture
def teacher_settings(digits, tmp_path) -> tuple[str, ...]:
    run = teacher_run_path(digits, Dataset.open(digits.data_folder))
    checkpoint = tmp_path / "teacher.safetensors"
    shutil.copy(run / "model.safetensors", checkpoint)
    return (f"cache_teacher.checkpoint={checkpoint}", "cache_teacher.arch=resnet8a")


def test_what_the_team_shares_is_fetched_and_not_computed(
    digits, tiny_toml, bucket, teacher_settings, tmp_path
):
    """The receipts name who computed what, and when: they are the first team's."""
    work = linked_copy(digits.workspace, tmp_path / "one", without=("caches", "selections"))
    one = Team(tiny_toml, work, f"share={bucket}", *teacher_settings)
    made = one.run("cache-teacher", quiet=False)
    assert "fetched from" not in made.err
    places = require_fine(heartcut("cache", "push", tiny_toml, *one.options)).splitlines()
    work = linked_copy(digits.workspace, tmp_path / "two", without=("caches", "selections", "runs"))
    other = Team(tiny_toml, work, f"share={bucket}", *teacher_settings)
    done = other.run("cache-teacher", quiet=False)
    assert done.err.count("fetched from") == 2
    assert all(f"fetched from {place}" in done.err for place in places)
    mine, theirs = (TeacherCache.open(Path(one.out.strip())) for one in (made, done))
    assert mine.path != theirs.path
    assert notes_of(mine) == notes_of(theirs)
    assert mine.seal == theirs.seal
    assert other.run("select").out.strip().endswith(".parquet")
    again = other.run("cache-teacher", quiet=False)
    assert again.err.count("exists, nothing to do") == 1, "one line for both caches"


def test_caches_are_written_straight_into_the_bucket_by_two_workers(
    digits, tiny_toml, bucket, cache_path, tmp_path
):
    work = linked_copy(digits.workspace, tmp_path / "work", without=("caches", "selections"))
    settings = (f"caches={bucket}", "cache_teacher.shard_rows=64")
    team = Team(tiny_toml, work, *settings)
    first = team.run("cache-teacher", "--shard-range", "0:20", quiet=False)
    assert first.out == ""
    assert mentions(first.err, f"{bucket}/{cache_path.name}", "4 shards")
    assert "not sealed" in one_error(heartcut("cache", "info", f"{bucket}/{cache_path.name}"), 5)
    assert heartcut("select", tiny_toml, *team.options).code == 1
    place = team.run("cache-teacher", "--shard-range", "20:46").out.strip()
    assert place == f"{bucket}/{cache_path.name}"
    local = linked_copy(digits.workspace, tmp_path / "local", without=("caches", "selections"))
    own = Team(tiny_toml, local, settings[1]).run("cache-teacher").out.strip()
    assert TeacherCache.open(own).root == TeacherCache.open(place).root
    assert "yes" in require_fine(heartcut("cache", "list", bucket))
    team.run("select")
    assert team.student().result.num_distilled > 0


def test_no_credential_is_ever_written_or_printed(
    digits, tiny_toml, bucket, cache_path, seaweed, as_user, monkeypatch, tmp_path, caplog, capfd
):
    words = [word for pair in SECRETS.values() for word in pair]
    printed: list[str] = []

    def run(*arguments: object) -> None:
        done = heartcut(*arguments, quiet=False)
        printed.append(done.out + done.err)

    work = linked_copy(digits.workspace, tmp_path / "work", without=("caches", "selections"))
    options = settings_of(f"workspace={work}", f"caches={bucket}", f"share={bucket}/share")
    run("cache-teacher", tiny_toml, *options)
    run("cache", "push", tiny_toml, *options)
    place = f"{bucket}/{cache_path.name}"
    for command in ("select", "train-student"):
        run(command, tiny_toml, *options)
        assert "error" not in printed[-1], printed[-1]
    for arguments in (
        ("list", bucket),
        ("info", place),
        ("info", "--json", place),
        ("verify", "--bytes", place),
        ("diff", place, cache_path),
        ("pull", place, tmp_path / "here"),
        ("estimate", tiny_toml, *options),
        ("push", cache_path, "s3://no-such-bucket/x"),
        ("info", f"{bucket}/nothing"),
    ):
        run("cache", *arguments)
    as_user(seaweed, "ro")
    run("cache", "push", cache_path, f"{bucket}/other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS["rw"][1])
    run("cache", "info", place)
    run("cache", "info", f"s3://{':'.join(SECRETS['rw'])}@{BUCKET}/x")
    assert sum("error: " in text for text in printed) >= 4
    captured = capfd.readouterr()
    printed += [caplog.text, captured.out, captured.err]
    for text in printed:
        for word in words:
            assert word not in text
    looked_at = 0
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            looked_at += 1
            assert not any(word.encode() in data for word in words), path
    assert looked_at > 50
    as_user(seaweed)
    store = open_objects(bucket)
    for key, size in store.sizes().items():
        data = store.read(key, max_bytes=size)
        assert not any(word.encode() in data for word in words), key
