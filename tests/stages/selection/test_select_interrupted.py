"""An interrupt during select leaves nothing unfinished, whenever it comes.

Once, threads that wrote for the command continued after the interrupt, and recreated the folder
that had just been removed.
"""

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.artefacts.scores import ScoreTable
from pipeline.artefacts.selection import SelectionTable
from pipeline.artefacts.soft_labels import SoftLabels
from stages.config.root import Config
from tests.support.workspaces import tables_in, unfinished

NUM_INTERRUPTS, NUM_WHILE_WRITING = 4, 6


@pytest.fixture
def select(server, digits_copy, tiny_toml, tmp_path):
    """Start `select` on digits that were not selected from yet."""
    numbers = iter(range(10**9))

    def start(*overrides: str):
        shutil.rmtree(digits_copy.selections_folder, ignore_errors=True)
        for copied in digits_copy.caches_folder.glob("*.hydrated"):
            shutil.rmtree(copied)
        options = [f"workspace={digits_copy.workspace}", *overrides]
        settings = [part for option in options for part in ("--set", option)]
        return server.start(tmp_path / str(next(numbers)), "select", tiny_toml, *settings)

    return start


def appeared(folder: Path, pattern: str, *, command, seconds: float = 60) -> bool:
    """Wait until something of that name is there, or the command has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if next(folder.glob(pattern), None) is not None:
            return True
        if not command.is_running:
            return False
    raise TimeoutError(pattern)


def check_what_is_left(config: Config, command) -> int:
    """Check that everything is complete, now and a little later; return the exit code."""
    done = command.wait()
    assert unfinished(config.workspace) == []
    time.sleep(0.02)
    assert unfinished(config.workspace) == [], "a thread continued"
    assert done.shell_code in (0, 130), done
    if done.shell_code == 130:
        assert "Traceback" not in done.err
    for path in config.selections_folder.glob("*.soft"):
        SoftLabels.open(path)
    for path in tables_in(config.selections_folder):
        SelectionTable.open(path)
    for path in config.selections_folder.glob("*.scores.parquet"):
        ScoreTable.open(path)
    return done.shell_code


def test_an_interrupt_at_any_moment_leaves_nothing_unfinished(select, digits_copy):
    assert select().wait().code == 0  # the server has imported everything
    started = time.monotonic()
    assert select().wait().code == 0
    seconds = time.monotonic() - started
    delays = np.random.default_rng(0).permutation(np.linspace(0, 1.1 * seconds, NUM_INTERRUPTS))
    codes = []
    for delay in delays:
        command = select()
        time.sleep(delay)
        command.signal(signal.SIGINT)
        codes.append(check_what_is_left(digits_copy, command))
    assert 130 in codes, "or else nothing was interrupted"


def test_an_interrupt_while_soft_labels_are_written_leaves_nothing(select, digits_copy):
    delays = np.random.default_rng(1).permutation(np.geomspace(1e-4, 0.05, NUM_WHILE_WRITING))
    interrupted = 0
    for delay in delays:
        command = select("select.strategy=none")
        if appeared(digits_copy.selections_folder, "*.soft.*.partial", command=command):
            time.sleep(delay)
            command.signal(signal.SIGINT)
        interrupted += check_what_is_left(digits_copy, command) == 130
    assert interrupted > 0
    assert select("select.strategy=none").wait().code == 0


def test_an_interrupt_while_the_scores_are_made_leaves_nothing(select, digits_copy):
    """The soft labels are whole by then; neither scores nor a table are there in part."""
    delays = np.random.default_rng(2).permutation(np.geomspace(1e-3, 0.3, NUM_INTERRUPTS))
    folder, interrupted = digits_copy.selections_folder, 0
    for delay in delays:
        command = select()
        if appeared(folder, "*.soft/soft_labels.json", command=command):
            time.sleep(delay)
            command.signal(signal.SIGINT)
        if check_what_is_left(digits_copy, command) == 130:
            interrupted += tables_in(folder) == []
    assert interrupted > 0
    assert select().wait().code == 0
    assert len(tables_in(folder)) == len(list(folder.glob("*.scores.parquet"))) == 1
