"""`heartcut cache ...`: the output about caches, and its exit codes."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.artefacts.cache.receipts import Seal, record_bytes
from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.models.checkpoints import load_weights, save_weights
from pipeline.models.zoo import build
from stages.cache import verify as cache_verify
from stages.cache.sizes import CacheSize
from stages.caches import Caches
from stages.config.cache_teacher import CacheTeacherConfig
from stages.config.file import with_overrides
from stages.identities import teacher_run_path
from tests.support.cases import mentions
from tests.support.commands import heartcut
from tests.support.small_caches import forged
from tests.support.workspaces import flip_byte, linked_copy, snapshot

HOUR = 3600


def settings_of(*settings: str) -> list[str]:
    return [part for one in settings for part in ("--set", one)]


@pytest.fixture(scope="module")
def caches(digits) -> tuple[Path, Path]:
    """The caches of the training and the test images of `digits`; never changed."""
    dataset = Dataset.open(digits.data_folder)
    made = [
        Caches(config=digits, dataset=dataset).made,
        Caches(config=digits, dataset=dataset).test,
    ]
    return Path(made[0].path), Path(made[1].path)


@pytest.fixture
def copied(caches, tmp_path) -> Path:
    return linked_copy(caches[0], tmp_path / "copies" / caches[0].name)


@pytest.fixture
def options(digits) -> list[str]:
    return settings_of(f"workspace={digits.workspace}")


def cached_again(digits, tiny_toml, folder: Path, *settings: str) -> Path:
    """The training cache of the same teacher with other settings."""
    run = teacher_run_path(digits, Dataset.open(digits.data_folder))
    checkpoint = folder / "teacher.safetensors"
    work = linked_copy(digits.workspace, folder / "work", without=("caches", "selections", "runs"))
    shutil.copy(run / "model.safetensors", checkpoint)
    chosen = (f"cache_teacher.checkpoint={checkpoint}", "cache_teacher.arch=resnet8a", *settings)
    done = heartcut("cache-teacher", tiny_toml, *settings_of(f"workspace={work}", *chosen))
    assert done.code == 0, done
    return Path(done.out.strip())


def out_of(*arguments: object, code: int = 0) -> str:
    done = heartcut("cache", *arguments)
    assert (done.code, done.err) == (code, ""), done
    return done.out


def error_of(*arguments: object, code: int) -> str:
    done = heartcut("cache", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done
    return done.err


# info and list


def test_info_shows_the_inputs_of_a_cache_and_its_teachers_accuracy(caches):
    cache = TeacherCache.open(caches[0])
    shown = dict(
        re.split(r"  +", line, maxsplit=1) for line in out_of("info", caches[0]).splitlines()
    )
    assert (shown["id"], shown["root hash"]) == (cache.id, cache.root)
    assert shown["teacher"].startswith("resnet8a of teacher-s0-")
    assert shown["images"].startswith("450 of 10 classes")
    assert shown["views"] == "clean + crop1 x 2"
    assert shown["keeps"] == "all logits + features"
    stored = sum(
        path.stat().st_size for path in caches[0].glob("data.zarr/*/c/**/*") if path.is_file()
    )
    assert shown["size"].startswith(f"{stored:,} bytes in ")
    right = cache.labels == cache.logits(0).argmax(axis=1)
    assert shown["wrong"].startswith(f"{int((~right).sum()):,} images")


def test_info_as_json_lists_both_caches_of_a_configuration(caches, tiny_toml, options):
    one = json.loads(out_of("info", "--json", caches[0]))
    cache = TeacherCache.open(caches[0])
    assert (one["root"], one["manifest"]["id"]) == (cache.root, cache.id)
    assert one["summary"]["num_wrong"] == cache.summary.num_wrong
    text = out_of("info", "--json", tiny_toml, *options)
    decoder, both = json.JSONDecoder(), []
    while text.strip():
        value, end = decoder.raw_decode(text.strip())
        both.append(value)
        text = text.strip()[end:]
    assert [info["place"] for info in both] == [str(path) for path in caches]


def test_info_of_another_folder_is_one_line(copied, tmp_path):
    assert "is not a teacher cache" in error_of("info", tmp_path, code=1)
    assert "is not a teacher cache" in error_of("info", tmp_path / "nothing", code=1)
    (copied / "sealed.json").unlink()
    assert "is not sealed" in error_of("info", copied, code=5)
    assert "--set needs a configuration" in error_of("info", copied, "--set", "a=b", code=1)


def test_list_shows_every_cache_complete_or_not_or_damaged(digits, caches, copied):
    lines = out_of("list", digits.caches_folder).splitlines()
    assert lines[0].split()[:2] == ["id", "complete"]
    assert {tuple(line.split()[:2]) for line in lines[1:]} == {
        (path.name, "yes") for path in caches
    }
    (copied / "sealed.json").unlink()
    other = linked_copy(caches[1], copied.parent / caches[1].name)
    flip_byte(other / "manifest.json", 5)
    listed = {tuple(line.split()[:2]) for line in out_of("list", copied.parent).splitlines()[1:]}
    assert listed == {(copied.name, "no"), (other.name, "damaged")}


def test_list_of_a_place_without_caches_is_one_line(tmp_path):
    assert "has no teacher cache" in error_of("list", tmp_path, code=1)


# diff


def test_diff_of_equal_caches_says_the_same(caches, copied):
    assert out_of("diff", caches[0], copied) == "the same, to the byte\n"


def test_diff_shows_other_numbers_of_the_same_identity(caches, copied):
    forged(copied)
    text = out_of("diff", caches[0], copied, code=4)
    assert "numbers: 1 of " in text
    assert "receipts/logits/0.0.json" in text


def test_diff_shows_other_images(caches):
    text = out_of("diff", *caches, code=4)
    assert "num_samples: 450 | 1347" in text
    assert re.search(r"images: [\d,]+ only in the first: \w{12}", text)
    assert re.search(r"images: [\d,]+ only in the second: \w{12}", text)


def test_diff_shows_other_views_and_another_layout(digits, tiny_toml, caches, tmp_path):
    other = cached_again(
        digits, tiny_toml, tmp_path, "views.count=1", "cache_teacher.shard_rows=100"
    )
    text = out_of("diff", caches[0], other, code=4)
    assert re.search(r"^views: .*'count': 2.* \| .*'count': 1", text, re.M)
    assert "num_views: 3 | 2" in text
    assert re.search(r"^shard_rows: \d+ \| 100$", text, re.M)
    assert "weights" not in text
    assert "images:" not in text


def test_diff_of_an_incomplete_cache_has_its_own_exit_code(caches, copied):
    (copied / "sealed.json").unlink()
    assert "is not sealed" in error_of("diff", caches[0], copied, code=5)


# verify


def test_verify_of_a_good_cache_is_zero_and_names_the_check(caches, tiny_toml, options):
    assert "structure checked (--bytes checks the bytes)" in out_of("verify", caches[0])
    assert "all bytes checked" in out_of("verify", "--bytes", caches[0])
    assert out_of("verify", "--bytes", tiny_toml, *options).count("is OK: ") == 2


def test_verify_of_a_missing_cache_is_one_and_of_an_incomplete_one_five(copied, tmp_path):
    error_of("verify", tmp_path / "nothing", code=1)
    (copied / "sealed.json").unlink()
    error_of("verify", copied, code=5)


OBJECT = "data.zarr/features/c/1/0/0"


def test_verify_finds_every_missing_or_changed_file_and_exits_with_three(caches, tmp_path):
    files = sorted(p.relative_to(caches[0]) for p in caches[0].rglob("*") if p.is_file())
    assert len(files) > 25
    for number, name in enumerate(files):
        copy = linked_copy(caches[0], tmp_path / f"changed{number}")
        flip_byte(copy / name, (copy / name).stat().st_size // 2)
        done = heartcut("cache", "verify", "--bytes", copy)
        assert done.code == 3, name
        assert name.name in done.out + done.err
        (copy / name).unlink()
        done = heartcut("cache", "verify", copy)
        expected = 5 if str(name) == "sealed.json" else 3
        assert done.code == expected, (name, done)
        shutil.rmtree(copy)


def test_only_reading_every_byte_finds_a_changed_one(copied):
    flip_byte(copied / OBJECT, 33)
    out_of("verify", copied)
    text = out_of("verify", "--bytes", copied, code=3)
    assert text.startswith("damaged: ")
    assert f"{copied}/{OBJECT}" in text


def test_verify_lists_unknown_files_without_failing(copied):
    (copied / "data.zarr" / "notes.txt").write_text("mine")
    text = out_of("verify", copied)
    assert mentions(text, 1, "data.zarr/notes.txt")


def test_recomputing_agrees_with_the_teacher(tiny_toml, options):
    text = out_of("verify", "--recompute", "5%", tiny_toml, *options)
    lines = [line for line in text.splitlines() if "agrees with its teacher" in line]
    assert len(lines) == 2
    assert "of 22 images in 3 views" in lines[0]  # 5 % of 450
    assert "same top class in 100.00 %" in lines[0]


def test_recomputing_with_no_tolerance_differs_and_exits_with_four(tiny_toml, options):
    arguments = ("verify", "--recompute", "0.1", "--tolerance", "1e-9", tiny_toml)
    assert "differs from its teacher" in out_of(*arguments, *options, code=4)


def test_recomputing_finds_numbers_that_the_teacher_did_not_give(tiny_toml, copied, options):
    """Well-formed, sealed and off by one."""
    forged(copied)
    out_of("verify", "--bytes", copied)
    more = settings_of(f"select.cache={copied}")
    text = out_of("verify", "--recompute", "1%", tiny_toml, *options, *more, code=4)
    found = re.search(r"max \|difference\| ([\d.]+)", text)
    assert found is not None
    assert float(found[1]) == pytest.approx(1.0, abs=0.1)


def test_recomputing_with_another_teacher_is_rejected(digits, tiny_toml, caches, options, tmp_path):
    run = teacher_run_path(digits, Dataset.open(digits.data_folder))
    model = build("resnet8a", num_classes=10)
    model.load_state_dict(load_weights(run / "model.safetensors"))
    model.head.bias.data[0] += 0.5
    other = tmp_path / "other.safetensors"
    save_weights(model, other)
    more = settings_of(
        f"select.cache={caches[0]}",
        f"cache_teacher.checkpoint={other}",
        "cache_teacher.arch=resnet8a",
    )
    done = heartcut("cache", "verify", "--recompute", "1%", tiny_toml, *options, *more)
    assert done.code == 4
    assert "was made by another teacher: weights" in done.err


@pytest.mark.parametrize("wrong", ["0", "101%", "some", "-1%"])
def test_an_invalid_fraction_is_rejected(tiny_toml, options, wrong):
    done = heartcut("cache", "verify", f"--recompute={wrong}", tiny_toml, *options)
    assert done.code == 1
    assert "is not a fraction" in done.err


def test_recomputing_needs_a_configuration(caches):
    done = heartcut("cache", "verify", "--recompute", "1%", caches[0])
    assert (done.code, "is not a configuration" in done.err) == (1, True)


# estimate


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("cache_teacher.features=false",),
        ("cache_teacher.top_k=3", "cache_teacher.temperatures=[1.0, 2.0, 4.0]"),
        ("cache_teacher.shard_rows=100", "views.count=1"),
    ],
    ids=["all", "logits", "top3", "shards"],
)
def test_an_estimate_is_the_size_of_the_cache_that_is_made(digits, tiny_toml, tmp_path, settings):
    chosen = (*settings, "cache_teacher.compression=none")
    work = linked_copy(digits.workspace, tmp_path / "work", without=("caches", "selections"))
    options = settings_of(f"workspace={work}", *chosen)
    text = out_of("estimate", tiny_toml, *options)
    assert not (work / "caches").exists()
    (row,) = [line for line in text.splitlines() if line.endswith("<- configured")]
    numbers = row.removesuffix("<- configured").replace(",", "").split()
    *_, per_row, train, test, _, shards, objects = numbers
    assert heartcut("cache-teacher", tiny_toml, *options).code == 0
    config = with_overrides(digits, [f"workspace={work}", *chosen])
    dataset = Dataset.open(config.data_folder)
    made = [
        Caches(config=config, dataset=dataset).made,
        Caches(config=config, dataset=dataset).test,
    ]
    sizes = [bytes_of(cache) for cache in made]
    assert [int(train), int(test)] == sizes
    units = sum(cache.manifest.num_shards * cache.shape.num_views for cache in made)
    assert int(shards) == units
    assert int(objects) == sum(len(open_objects(cache.path).sizes()) for cache in made)
    widths = {
        (): 2 * 10 + 2 * made[0].shape.num_features,
        ("cache_teacher.features=false",): 2 * 10,
    }
    assert int(per_row) == widths.get(settings, int(per_row))


def bytes_of(cache: TeacherCache) -> int:
    """Stored bytes of all numbers."""
    return sum(facts.bytes for _, facts in cache.objects())


def size_of(num_samples: int, **settings: object) -> CacheSize:
    return CacheSize(
        settings=CacheTeacherConfig(**settings),
        num_samples=num_samples,
        num_views=3,
        num_classes=100,
        num_features=64,
    )


def test_an_estimate_without_images_is_that_of_a_prepared_data_set(digits, tiny_toml):
    where = settings_of(f"workspace={digits.workspace}")
    dataset = Dataset.open(digits.data_folder)
    images = str(dataset.train.num_samples)
    paper = ("--images", images, "--classes", "10", "--side", "8")
    prepared, planned = (
        out_of("estimate", tiny_toml, *where, *more).splitlines() for more in ((), paper)
    )
    rows = [
        [
            line.removesuffix("<- configured").split()
            for line in text
            if line.startswith("all logits")
        ]
        for text in (prepared, planned)
    ]
    assert [row[-6:-4] for row in rows[0]] == [row[-6:-4] for row in rows[1]]
    assert len(rows[0]) == 2


@pytest.mark.parametrize(
    ("num_samples", "settings", "expected"),
    [
        (67_108_865, {}, ["keys are one object of 1,073,741,840 bytes"]),
        (67_108_864, {}, []),
        (67_108_864, {"shard_rows": 128}, ["sealed.json would have about 1,038,090,240 bytes"]),
    ],
)
def test_limits_of_the_formats_are_reported_before_a_cache_is_made(num_samples, settings, expected):
    reasons = list(size_of(num_samples, **settings).too_large())
    assert len(reasons) == len(expected)
    assert all(part in reason for part, reason in zip(expected, reasons, strict=True))


def test_estimated_bytes_are_linear_in_the_images():
    small, large, larger = (size_of(n).num_bytes for n in (20_000, 50_000, 80_000))
    assert larger - large == large - small


def test_time_is_estimated_for_every_stage_from_measured_rates(tiny_toml):
    text = out_of("estimate", tiny_toml, "--images", "1000000", "--side", "8", "--measure")
    rows = [line for line in text.splitlines() if line.startswith(("cache-teacher", "select"))]
    assert len(rows) == 5
    hours = [float(row.split()[-1]) for row in rows]
    assert all(hour > 0 for hour in hours)
    rate = float(text.split("resnet8a ")[-1].split()[0].replace(",", ""))
    passes = int(rows[0].split()[1].replace(",", ""))
    assert hours[0] == pytest.approx(passes / rate / 3600, rel=0.02, abs=1e-3)


# gc


def aged(path: Path, hours: float) -> None:
    """Make a file, or everything in a folder, so old."""
    then = time.time() - hours * HOUR
    for part in [path, *path.rglob("*")]:
        os.utime(part, (then, then), follow_symlinks=False)


@pytest.fixture
def littered(caches, tmp_path) -> dict[str, Path]:
    """A folder of caches with everything that killed processes leave; copies, not links."""
    folder = tmp_path / "caches"
    sealed = Path(shutil.copytree(caches[0], folder / "sealed"))
    unsealed = Path(shutil.copytree(caches[0], folder / "unsealed"))
    (unsealed / "sealed.json").unlink()
    hydrated = folder / "abc.hydrated"
    hydrated.mkdir()
    (hydrated / "logits.0.npy").write_bytes(b"x" * 100)
    old = sealed / "data.zarr" / "logits" / "c" / "0" / "0" / ".0.0123456789abcdef.partial"
    old.write_bytes(b"y" * 77)
    aged(folder, 30)
    young = folder / "unsealed" / "receipts" / ".young.partial"
    young.write_bytes(b"z")
    return {
        "folder": folder,
        "sealed": sealed,
        "unsealed": unsealed,
        "hydrated": hydrated,
        "old": old,
        "young": young,
    }


def test_gc_only_lists_until_it_is_asked_to_delete(littered):
    before = snapshot(littered["folder"])
    text = out_of("gc", littered["folder"])
    assert text.splitlines() == [
        f"{77:>14,} bytes  {littered['old']}",
        f"{77:>14,} bytes can be removed with --delete",
    ]
    assert snapshot(littered["folder"]) == before


def test_gc_removes_old_unfinished_files_that_are_not_part_of_a_cache(littered):
    expected = snapshot(littered["folder"])
    del expected[littered["old"]]
    assert "removed" in out_of("gc", "--delete", littered["folder"])
    assert snapshot(littered["folder"]) == expected
    assert "is OK" in out_of("verify", "--bytes", littered["sealed"])
    assert out_of("gc", littered["folder"]).strip() == "0 bytes can be removed with --delete"


def test_gc_takes_a_cache_without_a_seal_only_if_asked_and_if_it_is_not_in_use(littered):
    out_of("gc", "--delete", "--unsealed", littered["folder"])
    assert littered["unsealed"].exists()  # somebody wrote there a moment ago
    littered["young"].unlink()
    aged(littered["unsealed"], 30)
    out_of("gc", "--delete", "--unsealed", "--older-than", "31", littered["folder"])
    assert littered["unsealed"].exists()
    out_of("gc", "--delete", littered["folder"])
    assert littered["unsealed"].exists()
    out_of("gc", "--delete", "--unsealed", littered["folder"])
    assert not littered["unsealed"].exists()
    assert (littered["sealed"].exists(), littered["hydrated"].exists()) == (True, True)
    assert "is OK" in out_of("verify", "--bytes", littered["sealed"])


def test_gc_takes_objects_without_a_receipt_in_a_cache_without_a_seal(littered):
    """A worker was killed between writing an object and its receipt."""
    lost = littered["unsealed"] / "data.zarr" / "logits" / "c" / "0" / "0" / "0"
    (littered["unsealed"] / "receipts" / "logits" / "0.0.json").unlink()
    in_sealed = littered["sealed"] / "receipts" / "logits" / "0.0.json"
    in_sealed.unlink()  # damage, not litter: the seal still lists the object
    expected = snapshot(littered["folder"])
    for path in (lost, littered["old"]):
        del expected[path]
    out_of("gc", "--delete", littered["folder"])
    assert snapshot(littered["folder"]) == expected


def test_gc_takes_local_copies_only_if_asked(littered):
    out_of("gc", "--delete", littered["folder"])
    assert littered["hydrated"].exists()
    out_of("gc", "--delete", "--hydrated", littered["folder"])
    assert not littered["hydrated"].exists()
    assert littered["sealed"].exists()


def test_gc_follows_no_link_out_of_the_folder(littered, tmp_path):
    outside = Path(shutil.copytree(littered["unsealed"], tmp_path / "outside"))
    (outside / "x.partial").write_bytes(b"x")
    aged(outside, 30)
    (littered["folder"] / "link").symlink_to(outside)
    out_of("gc", "--delete", "--unsealed", "--older-than", "0", littered["folder"])
    assert (outside / "x.partial").exists()
    assert (outside / "manifest.json").exists()


def test_gc_of_an_address_or_of_nothing_is_rejected_in_one_line(tmp_path):
    assert "is a bucket (expected a folder)" in error_of("gc", "s3://cache/x", code=1)
    assert "does not exist" in error_of("gc", tmp_path / "nothing", code=1)


def test_the_numbers_of_a_cache_are_those_of_the_info(caches):
    """A guard for the tests above: the fixture is a real cache."""
    cache = TeacherCache.open(caches[1])
    assert np.isfinite(cache.logits(0)).all()
    assert cache.shape.num_samples == 1347


# mistakes of a team


def test_more_logits_than_classes_are_rejected_before_anything_is_written(
    digits, tiny_toml, tmp_path
):
    work = linked_copy(digits.workspace, tmp_path / "work", without=("caches", "selections"))
    options = settings_of(f"workspace={work}", "cache_teacher.top_k=16")
    for command in (("cache-teacher",), ("cache", "estimate")):
        line = heartcut(*command, tiny_toml, *options).error_line
        assert mentions(line, "cache_teacher.top_k", 16, 10)
    assert not list((work / "caches").glob("*/manifest.json"))


def test_a_teacher_that_gives_nan_does_not_agree(digits, monkeypatch):
    """As a broken accelerator would."""
    real = cache_verify.teacher_outputs

    def broken(*arguments, **options):
        logits, features = real(*arguments, **options)
        return logits * torch.nan, features

    monkeypatch.setattr(cache_verify, "teacher_outputs", broken)
    finding = cache_verify.recompute(digits, share=0.02, tolerance=None)
    assert not finding.is_fine
    assert "max |difference| inf" in finding.lines[0]


def test_a_tolerance_without_a_recomputation_is_rejected(caches):
    done = heartcut("cache", "verify", "--tolerance", "0.1", caches[0])
    assert (done.code, "has no effect without --recompute" in done.err) == (1, True)


def test_an_incomplete_cache_has_its_own_exit_code(digits, tiny_toml, tmp_path):
    work = linked_copy(digits.workspace, tmp_path / "work", without=("selections",))
    for seal in work.glob("caches/*/sealed.json"):
        seal.unlink()
    options = settings_of(f"workspace={work}")
    for command in ("info", "verify"):
        done = heartcut("cache", command, tiny_toml, *options)
        assert (done.code, "is not sealed" in done.err) == (5, True)
    done = heartcut("cache", "push", tiny_toml, tmp_path / "team", *options)
    assert (done.code, "is not sealed" in done.err) == (5, True)
    assert "is not sealed" in heartcut("select", tiny_toml, *options).error_line


def test_a_damaged_first_cache_does_not_hide_the_second(digits, tiny_toml, tmp_path):
    work = linked_copy(digits.workspace, tmp_path / "work", without=("selections",))
    dataset = Dataset.open(work / "data")
    config = with_overrides(digits, [f"workspace={work}"])
    train, test = (
        Caches(config=config, dataset=dataset).made,
        Caches(config=config, dataset=dataset).test,
    )
    flip_byte(Path(train.path) / "sealed.json", 100)
    text = out_of("verify", tiny_toml, *settings_of(f"workspace={work}"), code=3)
    assert f"damaged: {train.path}/sealed.json" in text
    assert f"{test.path} is OK" in text


def test_text_of_another_teams_cache_cannot_move_the_cursor(caches, tmp_path):
    cache = TeacherCache.open(caches[0])
    copy = tmp_path / "copy"
    shutil.copytree(caches[0], copy)
    (copy / "sealed.json").unlink()
    summary = cache.summary.model_copy(update={"teacher": "evil\x1b[2J\nline"})
    seal = Seal.of(cache.seal.metadata, cache.seal.receipts, summary)
    (copy / "sealed.json").write_bytes(record_bytes(seal))
    text = out_of("info", copy)
    assert "\x1b" not in text
    assert "evil" in text
