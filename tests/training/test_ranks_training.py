"""Several processes train one network, fill one cache, and stop and go on together."""

import filecmp
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

from commands import launch
from commands.exit import FAILED, PEER_LOST
from pipeline.artefacts.dataset import Dataset
from pipeline.artefacts.run import Run
from pipeline.artefacts.unfinished_run import UNFINISHED
from stages.caches import Caches
from stages.config.file import with_overrides
from tests.support.commands import ROOT
from tests.support.workspaces import linked_copy

STUDENT = ("train_student.epochs=2", "train_student.batch_size=54", "train_student.lr=0.05")
GUESS = re.compile(r"^\S+ is no better than a guess after .*\n", re.M)
EXACTLY = "train_student.precision=fp64"
"""In float64, because float32 rounding grows without bound in training near the kink of a ReLU."""
CASES = {
    "kd, accumulated, clipped, averaged": (
        "train_student.accumulate=2",
        "train_student.clip_norm=0.5",
        "train_student.ema_decay=0.5",
    ),
    "fitnet": ("train_student.method=fitnet",),
    "rkd": ("train_student.method=rkd",),
    "crd": ("train_student.method=crd", "train_student.crd.dim=8"),
    "dist": ("train_student.method=dist",),
    "simkd": ("train_student.method=simkd",),
}
HEARTCUT = (sys.executable, "-m", "cli")
OFTEN = (*STUDENT, EXACTLY, "train_student.epochs=6", "train_student.checkpoint_minutes=0.0001")


def bare(digits, folder, *overrides):
    """The workspace of `digits` without students."""
    workspace = linked_copy(digits.workspace, folder, without=("student-*",))
    return with_overrides(digits, [f"workspace={workspace}", *overrides])


def options_of(config, *overrides):
    settings = [f"workspace={config.workspace}", *overrides]
    return [part for setting in settings for part in ("--set", setting)]


def student_of(config) -> Run:
    (path,) = config.runs_folder.glob("student-*")
    return Run.open(path)


def numbers(run: Run) -> list[tuple[float, ...]]:
    """Metrics of every epoch, without times."""
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    names = ("training_loss", "training_accuracy", "held_out_accuracy", "held_out_loss")
    return [tuple(line[name] for name in names) for line in lines]


def trained(server, config, toml, folder, world, *overrides) -> Run:
    job = server.start_ranks(
        folder, world, "-q", "train-student", toml, *options_of(config, *overrides)
    )
    ended = job.wait_for_ranks()
    assert [one.code for one in ended] == [0] * world, ended
    assert [GUESS.sub("", one.err) for one in ended] == [""] * world
    assert [one.err for one in ended[1:]] == [""] * (world - 1)  # only the first one speaks
    run = student_of(config)
    assert [one.out for one in ended] == [f"{run.path}\n", *[""] * (world - 1)]
    return run


def alone_of(server, digits, toml, folder, *overrides) -> Run:
    """Training by one process."""
    return trained(server, bare(digits, folder / "alone"), toml, folder / "one", 1, *overrides)


def assert_same(run: Run, other: Run, *, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(numbers(run), numbers(other), atol=atol, rtol=0)
    assert run.path.name == other.path.name
    ours, theirs = (safetensors.numpy.load_file(one.weights) for one in (run, other))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        np.testing.assert_allclose(weight, theirs[name], atol=10 * atol, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_ranks_train_as_one_process_does(server, digits, tiny_toml, tmp_path, name):
    changes = [*STUDENT, EXACTLY, *CASES[name]]
    alone = alone_of(server, digits, tiny_toml, tmp_path, *changes)
    for world in (2, 3) if name.startswith("kd") else (2,):
        config = bare(digits, tmp_path / f"ranks{world}")
        run = trained(server, config, tiny_toml, tmp_path / f"out{world}", world, *changes)
        assert_same(run, alone, atol=1e-12)
        assert run.result.cost.device.endswith(f", {world} processes")


def test_a_rank_may_have_nothing_of_the_last_batch(server, digits, tiny_toml, tmp_path):
    batch = 81  # the last one is of two rows
    rate = "train_student.lr=0.01"
    changes = ["train_student.epochs=1", "train_student.batch_size=81", rate, EXACTLY]
    alone = alone_of(server, digits, tiny_toml, tmp_path, *changes)
    assert alone.result.num_training_samples % batch == 2
    config = bare(digits, tmp_path / "ranks")
    run = trained(server, config, tiny_toml, tmp_path / "out", 3, *changes)
    assert_same(run, alone, atol=1e-12)  # two rows' variance makes much of float32's rounding


def test_a_batch_that_cannot_be_shared_out_is_rejected_once(server, digits, tiny_toml, tmp_path):
    config = bare(digits, tmp_path / "work")
    options = options_of(config, "train_student.batch_size=50")
    ended = server.start_ranks(
        tmp_path / "out", 3, "train-student", tiny_toml, *options
    ).wait_for_ranks()
    assert [one.code for one in ended] == [1, 1, 1]
    printed = "".join(one.err for one in ended)
    assert printed.count("error: ") == 1
    assert "batch_size is 50 (expected a multiple of 3" in printed
    assert "Traceback" not in printed
    assert not list(config.runs_folder.glob(f"*{UNFINISHED}"))


def is_under_way(config) -> bool:
    return any(config.runs_folder.glob(f"student-*{UNFINISHED}/checkpoint.safetensors"))


@pytest.fixture(scope="module")
def whole(server, digits, tiny_toml, tmp_path_factory):
    """A training in two ranks that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return trained(server, bare(digits, folder / "w"), tiny_toml, folder / "out", 2, *OFTEN)


def test_a_stop_request_to_one_rank_stops_all_and_the_resumed_run_is_bit_identical(
    server, digits, tiny_toml, tmp_path, whole
):
    config = bare(digits, tmp_path / "work")
    options = options_of(config, *OFTEN)
    job = server.start_ranks(tmp_path / "out", 2, "-q", "train-student", tiny_toml, *options)
    while job.is_running and not is_under_way(config):
        time.sleep(0.001)
    job.signal(signal.SIGTERM, rank=1)
    ended = job.wait_for_ranks()
    assert [one.code for one in ended] == [143, 143]
    printed = "".join(one.err for one in ended)
    assert printed.count("keeps the training at epoch") == 1
    assert printed.count("terminated: ") == 1
    assert printed.count("\n") == 2
    run = trained(server, config, tiny_toml, tmp_path / "again", 2, *OFTEN)
    assert filecmp.cmp(run.weights, whole.weights, shallow=False)
    assert numbers(run) == numbers(whole)


def test_a_training_resumes_with_another_number_of_ranks(
    server, digits, tiny_toml, tmp_path, whole
):
    config = bare(digits, tmp_path / "work")
    options = options_of(config, *OFTEN)
    job = server.start_ranks(tmp_path / "out", 3, "-q", "train-student", tiny_toml, *options)
    while job.is_running and not is_under_way(config):
        time.sleep(0.001)
    job.signal(signal.SIGTERM, rank=0)
    assert [one.code for one in job.wait_for_ranks()] == [143] * 3
    again = trained(server, config, tiny_toml, tmp_path / "again", 1, *OFTEN)
    assert_same(again, whole, atol=1e-12)


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_makes_the_same_cache(server, digits, tiny_toml, tmp_path, world):
    config = bare(digits, tmp_path / "work")
    caches = config.workspace / "caches"
    caches.rename(tmp_path / "apart")
    job = server.start_ranks(
        tmp_path / "out", world, "-q", "cache-teacher", tiny_toml, *options_of(config)
    )
    ended = job.wait_for_ranks()
    assert [one.code for one in ended] == [0] * world, ended
    assert [one.out.count("\n") for one in ended] == [1, *[0] * (world - 1)]
    dataset = Dataset.open(config.data_folder)
    assert (
        Caches(config=config, dataset=dataset).training.root
        == Caches(config=digits, dataset=dataset).training.root
    )


def processes_of(launcher: subprocess.Popen[str]) -> list[int]:
    """The ranks that a launcher has started, in their order."""
    path = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return sorted(map(int, path.read_text().split()))


def test_a_killed_rank_is_reported_and_the_same_command_resumes(
    server, digits, tiny_toml, tmp_path, whole
):
    config = bare(digits, tmp_path / "work")
    options = options_of(config, *OFTEN)
    launcher = subprocess.Popen(
        [*HEARTCUT, "-q", "launch", "-n", "2", "train-student", str(tiny_toml), *options],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while launcher.poll() is None and not is_under_way(config):
        time.sleep(0.01)
    for pid in processes_of(launcher):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if b"RANK=1" in environment:
            os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    _, printed = launcher.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert launcher.returncode == 137
    assert printed.startswith("error: rank 1 of 2 was ended by SIGKILL")
    assert "run the same command" in printed
    assert printed.count("\n") == 1
    run = trained(server, config, tiny_toml, tmp_path / "again", 2, *OFTEN)
    assert filecmp.cmp(run.weights, whole.weights, shallow=False)


@pytest.mark.parametrize("is_ignored", [False, True], ids=["heard", "nohup"])
def test_a_hang_up_stops_the_launcher_with_one_line_unless_it_is_ignored(
    digits, tiny_toml, tmp_path, is_ignored
):
    config = bare(digits, tmp_path / "work")
    options = options_of(config, *OFTEN, "train_student.epochs=1000")
    nohup = ["nohup"] if is_ignored else []
    launcher = subprocess.Popen(
        [*nohup, *HEARTCUT, "launch", "-n", "1", "train-student", tiny_toml, *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while launcher.poll() is None and not is_under_way(config):
        time.sleep(0.01)
    os.kill(launcher.pid, signal.SIGHUP)
    if is_ignored:
        with pytest.raises(subprocess.TimeoutExpired):
            launcher.wait(timeout=3)
        os.kill(launcher.pid, signal.SIGTERM)
    _, printed = launcher.communicate(timeout=60)
    assert launcher.returncode == 143
    name = "SIGTERM" if is_ignored else "SIGHUP because the terminal was closed"
    assert f"\nterminated by {name}: run the same command to resume" in printed
    assert printed.count("terminated") == 1


@pytest.mark.parametrize(
    ("codes", "rank", "printed"),
    [
        ({0: PEER_LOST, 1: -signal.SIGKILL}, 1, "rank 1 of 2 was ended by SIGKILL"),
        ({0: PEER_LOST, 1: PEER_LOST}, 0, "rank 0 of 2 lost the connection to another rank"),
        ({0: PEER_LOST, 1: FAILED}, 1, "rank 1 of 2 failed, its traceback is above"),
    ],
)
def test_the_launcher_reports_the_cause_once(capsys, codes, rank, printed):
    failures = {
        rank: SimpleNamespace(exitcode=code, timestamp=rank, message="a traceback")
        for rank, code in codes.items()
    }
    found, failure = launch._cause(failures)
    assert found == rank
    launch._report(found, failure, processes=2)
    line = capsys.readouterr().err
    assert line.startswith(f"error: {printed}")
    assert line.count("\n") == 1
