"""The whole pipeline: every stage twice, interrupted at any moment, on a full disk, compared."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Run
from pipeline.errors import NotSealed
from stages.config.file import with_overrides
from stages.config.root import Config
from stages.identities import teacher_run_path
from tests.support.commands import ROOT, heartcut
from tests.support.workspaces import linked_copy, snapshot, unfinished

STAGES = ("prepare", "train-teacher", "cache-teacher", "select", "train-student")
MADE_IN = dict(zip(STAGES, ("", "runs", "caches", "selections", "runs"), strict=True))
"""Folder of the workspace in which a stage publishes."""
INTERRUPTED = "interrupted: run the same command to resume\n"


def options_of(config: Config, *overrides: str) -> list[str]:
    settings = [f"workspace={config.workspace}", *overrides]
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture
def before(digits, tmp_path, request) -> Config:
    """`digits` just before the stage that the test is about."""
    stage = request.node.callspec.params["stage"]
    gone = {"prepare": ("data", "runs", "caches", "selections"), "train-teacher": ("runs",)}
    without = gone.get(stage, (MADE_IN[stage],) if stage != "train-student" else ("student-*",))
    workspace = linked_copy(digits.workspace, tmp_path / "work", without=without)
    return with_overrides(digits, [f"workspace={workspace}"])


def has_begun(stage: str, folder: Path) -> bool:
    """True if a stage writes already."""
    if stage == "cache-teacher":
        return any(folder.glob("*/receipts/*/*.json"))
    return any(folder.glob("*.partial")) or any(folder.glob("*.training"))


def require_kept(stage: str, lines: list[str]) -> None:
    """Stages that can resume print what they keep, in at most one line."""
    kept = {
        "cache-teacher": r"/caches/\w{12} keeps \d+ of \d+ shards: run the same command",
        "train-teacher": r"/teacher-s0-\w{8}\.training keeps the training at epoch \d, batch \d",
        "train-student": r"/student-s0-\w{8}\.training keeps the training at epoch \d, batch \d",
    }
    assert len(lines) <= (stage in kept)
    for line in lines:
        assert re.search(kept[stage], line)


def require_complete(caches: Path) -> None:
    """A cache with a seal is complete; one without is rejected."""
    for manifest in caches.glob("*/manifest.json"):
        if (manifest.parent / "sealed.json").exists():
            TeacherCache.open(manifest.parent)
        else:
            with pytest.raises(NotSealed):
                TeacherCache.open(manifest.parent)


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_stage_leaves_nothing_half_written(
    server, tiny_toml, before, tmp_path, stage
):
    """While writing and a little later: 130, one line; and running again succeeds.

    A teacher cache keeps its finished shards, prints one more line, and has no seal. `select` may
    end before the interrupt comes: it is then complete, and is run again.
    """
    folder = before.workspace / MADE_IN[stage]
    complete = snapshot(before.workspace)

    def is_interrupted(name: str, *, delay: float) -> bool:
        running = server.start(tmp_path / name, stage, tiny_toml, *options_of(before))
        while running.is_running and not has_begun(stage, folder):
            time.sleep(0.0005)
        time.sleep(delay)
        was_running = running.is_running
        running.signal(signal.SIGINT)
        done = running.wait()
        is_met = was_running and done.out == ""
        if is_met:
            *kept, last = done.err.splitlines(keepends=True)
            assert (done.shell_code, last) == (130, INTERRUPTED)
            require_kept(stage, kept)
        assert unfinished(before.workspace) == []
        assert complete.items() <= snapshot(before.workspace).items()
        require_complete(before.workspace / "caches")
        return is_met

    attempts = (is_interrupted(f"at once {number}", delay=0.0) for number in range(20))
    while not next(attempts):
        assert stage == "select"
        shutil.rmtree(folder)
    is_interrupted("later", delay=0.1)  # or it has ended by then, and is complete
    assert heartcut(stage, tiny_toml, *options_of(before)).code == 0


def test_an_interrupt_while_torch_is_imported_is_one_line(tiny_toml, tmp_path):
    command = [sys.executable, "-m", "cli", "-q", "prepare", str(tiny_toml)]
    command += ["--set", f"workspace={tmp_path / 'work'}"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as a terminal does
    ) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while "libtorch_cpu" not in maps.read_text():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode in (130, -signal.SIGINT)  # a shell shows 130 for both
    assert err == INTERRUPTED
    assert not (tmp_path / "work").exists()


def test_the_second_run_of_a_stage_prints_exists_and_writes_nothing(digits_copy, tiny_toml):
    assert heartcut("train-student", tiny_toml, *options_of(digits_copy)).code == 0
    before = snapshot(digits_copy.workspace)
    for stage in STAGES:
        done = heartcut(stage, tiny_toml, *options_of(digits_copy), quiet=False)
        assert done.code == 0
        assert " exists" in done.err, stage
        assert "nothing to do" in done.err, stage
        assert Path(done.out.strip()).exists()
        assert snapshot(digits_copy.workspace) == before, stage


def test_a_student_needs_neither_the_teacher_nor_its_checkpoint(digits, tiny_toml, tmp_path):
    dataset = Dataset.open(digits.data_folder)
    checkpoint = tmp_path / "teacher.safetensors"
    shutil.copy(teacher_run_path(digits, dataset) / "model.safetensors", checkpoint)
    workspace = linked_copy(
        digits.workspace, tmp_path / "work", without=("runs", "caches", "selections")
    )
    config = with_overrides(digits, [f"workspace={workspace}"])
    options = options_of(
        config, f"cache_teacher.checkpoint={checkpoint}", "cache_teacher.arch=resnet8a"
    )
    for stage in ("cache-teacher", "select"):
        assert heartcut(stage, tiny_toml, *options).code == 0
    checkpoint.unlink()
    done = heartcut("train-student", tiny_toml, *options)
    assert done.code == 0
    assert Run.open(Path(done.out.strip())).result.num_distilled > 0


def test_a_student_without_a_teacher_needs_no_cache(digits, tiny_toml, tmp_path):
    others = ("runs", "caches", "selections")
    workspace = linked_copy(digits.workspace, tmp_path / "work", without=others)
    config = with_overrides(digits, [f"workspace={workspace}"])
    options = options_of(config, "train_student.distil=false")
    result = Run.open(Path(heartcut("train-student", tiny_toml, *options).out.strip())).result
    assert (result.num_distilled, result.inputs.cache) == (0, None)
    assert result.teacher_agreement_test is None
    assert result.cost.teacher_forwards_saved == 0


def test_compare_prints_every_variant_with_its_seeds(digits_copy, tiny_toml, tmp_path):
    file = tmp_path / "compare.toml"
    file.write_text(
        tiny_toml.read_text()
        + '[compare]\nseeds = [0, 1]\n[compare.variants]\n"plain" = ["train_student.distil=false"]'
        '\n"all of it" = ["select.strategy=all"]\n'
    )
    done = heartcut("compare", file, *options_of(digits_copy))
    lines = done.out.splitlines()
    assert done.code == 0
    assert [line.split() for line in lines[:2]] == [
        ["test", "minus"],
        ["student", "seeds", "accuracy", "no", "teacher"],
    ]
    assert [line.split("  ")[0] for line in lines[2:4]] == ["plain", "all of it"]
    assert all(re.search(r"  2 +\d+\.\d\d ± \d+\.\d\d  ", line) for line in lines[2:4])
    assert lines[2].endswith("  -")
    assert re.search(r"  [+-]\d+\.\d\d \[-?\d+\.\d\d, -?\d+\.\d\d\]$", lines[3])
    assert lines[-2].startswith("Teacher: resnet8a of teacher-s0-")
    assert all(len(line) <= 80 for line in lines[:-1])
    again = heartcut("compare", file, *options_of(digits_copy), quiet=False)
    assert again.out == done.out
    selections = [line for line in again.err.splitlines() if "/selections/" in line]
    assert len(selections) == 1, "once for both seeds"
    steps = [line for line in again.err.splitlines() if line.startswith("[")]
    assert steps == [
        "[1/5] prepare",
        "[2/5] train-teacher",
        "[3/5] cache-teacher",
        "[4/5] plain: students 1 to 2 of 4",
        "[5/5] all of it: students 3 to 4 of 4",
    ]
    begun = re.findall(r"^run (\d) of 4: (.*?), seed (\d)", again.err, re.M)
    students = re.findall(r"^student (\d) of 4: (.*?), seed (\d): test accuracy", again.err, re.M)
    assert begun == students
    assert students == [
        ("1", "plain", "0"),
        ("2", "plain", "1"),
        ("3", "all of it", "0"),
        ("4", "all of it", "1"),
    ]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 40 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.decode().strip()}")
    yield folder
    # Lazily: a beton stays mapped until its loader is collected.
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, *, leave_bytes: int) -> Path:
    """Leave so much space and no more."""
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave_bytes)
    return filler


@pytest.mark.parametrize(
    ("stage", "leave_bytes"),
    [
        ("prepare", 0),
        ("prepare", 9_000_000),
        ("cache-teacher", 0),
        ("cache-teacher", 60_000),
        ("select", 0),
        ("select", 20_000),
        ("train-student", 0),
        ("train-student", 60_000),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    digits, tiny_toml, small_disk, stage, leave_bytes
):
    gone = {"cache-teacher": "caches", "select": "selections", "train-student": "student-*"}
    work = small_disk / "work"
    if stage == "prepare":
        work.mkdir()
    else:
        ignore = shutil.ignore_patterns(gone[stage])
        shutil.copytree(digits.workspace, work, ignore=ignore)
    config = with_overrides(digits, [f"workspace={work}"])
    before = snapshot(work)
    filler = fill(small_disk, leave_bytes=leave_bytes)
    done = heartcut(stage, tiny_toml, *options_of(config))
    assert (done.code, done.out) == (1, "")
    *kept, error = done.err.splitlines()
    require_kept(stage, kept)
    assert error.startswith("error: ")
    assert "could not be written: No space left on device. Free some space" in error
    require_complete(work / "caches")
    assert unfinished(work) == []
    assert before.items() <= snapshot(work).items()
    filler.unlink()
    assert heartcut(stage, tiny_toml, *options_of(config)).code == 0
