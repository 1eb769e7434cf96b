"""A training goes on from wherever it was stopped, to the same bits."""

import filecmp
import json
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.artefacts.run import Run
from pipeline.artefacts.unfinished_run import UNFINISHED
from pipeline.errors import ArtefactMismatch, ArtefactNotFound, PipelineError, Terminated
from stages import train_student
from stages.config.file import with_overrides
from stages.config.root import Config
from tests.support.cases import mentions
from tests.support.commands import heartcut
from tests.support.learners import stopping_after
from tests.support.workspaces import linked_copy

KILLS = 20


def is_content(path: Path, content: bytes) -> bool:
    """Compared here, because pytest would spend hours on how megabytes differ."""
    return path.read_bytes() == content


def bare(digits: Config, folder, *overrides: str) -> Config:
    """The workspace of `digits` without students."""
    workspace = linked_copy(digits.workspace, folder, without=("student-*",))
    return with_overrides(digits, [f"workspace={workspace}", *overrides])


def trained_with_stops(config: Config, *, every: int) -> tuple[Run, int]:
    """Train, stopping after every few steps; the run, and how often it was stopped."""
    for stops in range(1000):
        with suppress(Terminated), stopping_after(every):
            return train_student.execute(config), stops
    raise AssertionError("it never ends")


def lines_of(run: Run) -> list[dict[str, float]]:
    """Metrics of the epochs, without times."""
    text = (run.path / "metrics.jsonl").read_text()
    clock = ("seconds", "images_per_second")
    return [
        {key: value for key, value in json.loads(line).items() if key not in clock}
        for line in text.splitlines()
    ]


SETTINGS = {
    "sgd": (),
    "adamw, cosine, average, fp16": (
        "train_student.optimizer=adamw",
        "train_student.lr=0.001",
        "train_student.schedule=cosine",
        "train_student.ema_decay=0.9",
        "train_student.precision=fp16",
    ),
    "accumulated, clipped, no decay of norms, bf16": (
        "train_student.accumulate=3",
        "train_student.clip_norm=0.5",
        "train_student.decay_norms=false",
        "train_student.label_smoothing=0.1",
        "train_student.precision=bf16",
    ),
    "dkd warming up": ("train_student.method=dkd", "train_student.dkd.warmup_epochs=3"),
    "fitnet": ("train_student.method=fitnet",),
    "crd": (
        "train_student.method=crd",
        "train_student.crd.dim=8",
        "train_student.crd.negatives=16",
    ),
    "simkd": ("train_student.method=simkd",),
    "dropout": ("train_student.arch=tests.support.networks:with_dropout",),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_training_that_is_stopped_again_and_again_reaches_the_same_bits(digits, tmp_path, name):
    changes = ["train_student.epochs=2", "train_student.batch_size=50", *SETTINGS[name]]
    whole = train_student.execute(bare(digits, tmp_path / "whole", *changes))
    config = bare(digits, tmp_path / "stopped", *changes)
    stopped, stops = trained_with_stops(config, every=1 if "accumulated" in name else 3)
    assert stops >= 3
    assert filecmp.cmp(stopped.weights, whole.weights, shallow=False)
    assert lines_of(stopped) == lines_of(whole)
    assert stopped.result.held_out_accuracy_best == whole.result.held_out_accuracy_best
    assert stopped.path.name == whole.path.name
    assert not list(config.runs_folder.glob(f"*{UNFINISHED}"))


def options_of(config: Config, *overrides: str) -> list[str]:
    settings = [f"workspace={config.workspace}", *overrides]
    return [part for setting in settings for part in ("--set", setting)]


OFTEN = ("train_student.epochs=6", "train_student.checkpoint_minutes=0.0001")


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory) -> bytes:
    """The weights of a training of six epochs that nothing stopped."""
    config = bare(digits, tmp_path_factory.mktemp("whole") / "work", *OFTEN)
    return train_student.execute(config).weights.read_bytes()


def is_under_way(config: Config) -> bool:
    return any(config.runs_folder.glob(f"student-*{UNFINISHED}/checkpoint.safetensors"))


@pytest.mark.slow
def test_twenty_kills_at_any_moment_change_nothing(server, digits, tiny_toml, tmp_path, whole):
    draw, kills, finished = random.Random(0), 0, 0
    while kills < KILLS:
        config = bare(digits, tmp_path / f"killed{finished}", *OFTEN)
        options = options_of(config, *OFTEN)
        while not (runs := [p for p in config.runs_folder.glob("student-*") if not p.suffix]):
            folder = tmp_path / f"output{finished}-{kills}"
            running = server.start(folder, "train-student", tiny_toml, *options)
            while running.is_running and not is_under_way(config):
                time.sleep(0.001)
            time.sleep(draw.uniform(0.0, 0.6))
            if kills < KILLS and running.is_running:
                running.signal(signal.SIGKILL)
                kills += 1
            running.wait()
        assert is_content(Run.open(runs[0]).weights, whole)
        finished += 1


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_keeps_a_checkpoint_first(
    server, digits, tiny_toml, tmp_path, whole, number, code, message
):
    config = bare(digits, tmp_path / "work", *OFTEN)
    running = server.start(
        tmp_path / "output", "train-student", tiny_toml, *options_of(config, *OFTEN)
    )
    while running.is_running and not is_under_way(config):
        time.sleep(0.001)
    running.signal(number)
    done = running.wait()
    assert done.shell_code == code
    kept, last = done.err.splitlines()
    assert "keeps the training at epoch" in kept
    assert last.startswith(message)
    (folder,) = config.runs_folder.glob(f"student-*{UNFINISHED}")
    place = kept.partition(" at epoch ")[2].partition(". Run")[0]
    went_on = heartcut("train-student", tiny_toml, *options_of(config, *OFTEN), quiet=False)
    assert went_on.code == 0
    assert mentions(went_on.err, folder, "at epoch", place)
    (run,) = config.runs_folder.glob("student-*")
    assert is_content(Run.open(run).weights, whole)


def begun(digits: Config, tmp_path) -> Config:
    """A workspace with a training that was stopped."""
    config = bare(digits, tmp_path / "work", "train_student.epochs=3")
    with stopping_after(1), pytest.raises(Terminated):
        train_student.execute(config)
    return config


def test_going_on_with_other_settings_names_the_keys(digits, tmp_path):
    config = begun(digits, tmp_path)
    (folder,) = config.runs_folder.glob(f"student-*{UNFINISHED}")
    other = with_overrides(config, ["train_student.lr=0.2", "train_student.lambda_kd=0.5"])
    message = (
        r"other settings: lambda_kd 0\.9 \(expected 0\.5\); lr 0\.1 \(expected 0\.2\)\. Train with"
    )
    with pytest.raises(ArtefactMismatch, match=message):
        train_student.execute(other, resume=folder)
    assert train_student.execute(config, resume=folder).result.num_distilled > 0


def test_a_folder_without_a_training_cannot_be_gone_on_with(digits_copy, tmp_path):
    with pytest.raises(ArtefactNotFound, match=r"nowhere.*does not exist"):
        train_student.execute(digits_copy, resume=tmp_path / "nowhere")


def test_a_damaged_checkpoint_is_rejected_in_one_line(digits, tmp_path):
    config = begun(digits, tmp_path)
    (path,) = config.runs_folder.glob(f"student-*{UNFINISHED}/checkpoint.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtefactMismatch, match=r"checkpoint\.safetensors is damaged"):
        train_student.execute(config)


def test_runs_that_cannot_be_written_are_reported_before_anything_is_trained(digits, tmp_path):
    config = bare(digits, tmp_path / "work", "train_student.seed=5")
    teacher = next(config.runs_folder.iterdir())
    teacher.rename(config.workspace / teacher.name)
    config.runs_folder.rmdir()
    config.runs_folder.write_text("a file")
    with pytest.raises(PipelineError, match=r"could not be written: .*`workspace`"):
        train_student.execute(config)


def test_a_training_belongs_to_one_process(digits, tmp_path):
    config = begun(digits, tmp_path)
    (folder,) = config.runs_folder.glob(f"student-*{UNFINISHED}")
    import fcntl

    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(PipelineError, match="another process"):
            train_student.execute(config)
    assert os.path.exists(train_student.execute(config).path)  # noqa: PTH110 - a run is a folder
