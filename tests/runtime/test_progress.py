import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime import progress as module
from pipeline.runtime.progress import naming, per_second, progress

ROOT = Path(__file__).parents[2]
WORK = """
import time
from pipeline.runtime.progress import progress
with progress("read train", total=40, unit="images") as bar:
    for _ in range(4):
        bar.advance(10, note="loss 0.5")
        time.sleep(0.15)
print("done")
"""


def test_lines_have_count_total_rate_and_time_left(caplog, monkeypatch):
    monkeypatch.setattr(module, "LINE_EVERY_SECONDS", 0.0)
    with (
        caplog.at_level(logging.INFO),
        progress("read train", total=2000, unit="images") as lines,
    ):
        lines.advance(1000, note="loss 0.50")
        lines.advance(1000)
    first, second = caplog.messages
    assert first.startswith("read train: 1,000 of 2,000 images, ")
    assert first.endswith(" s left, loss 0.50")
    assert second.startswith("read train: 2,000 of 2,000 images, ")
    assert second.endswith(", 0 s left")


def test_work_that_was_done_before_counts_and_does_not_speed_up_the_rate(caplog, monkeypatch):
    monkeypatch.setattr(module, "LINE_EVERY_SECONDS", 0.0)
    with (
        caplog.at_level(logging.INFO),
        progress("train", total=2000, unit="images", done=900) as lines,
    ):
        lines.started -= 10.0
        lines.logged -= 10.0
        lines.advance(100)
    assert caplog.messages == ["train: 1,000 of 2,000 images, 10 images/s, 100 s left"]


@pytest.mark.parametrize(
    ("rate", "shown"),
    [(1234.4, "1,234"), (12.3, "12"), (9.96, "10"), (9.94, "9.9"), (0.0372, "0.037")],
)
def test_a_slow_rate_keeps_two_digits(rate, shown):
    assert per_second(rate) == shown


def test_lines_are_few(caplog):
    with caplog.at_level(logging.INFO), progress("x", total=10_000, unit="images") as lines:
        for _ in range(10_000):
            lines.advance(1)
    assert caplog.messages == []


def on_a_terminal(work=WORK, **environment):
    """Run ``work`` in a terminal; return its output and exit code."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", work],
        stderr=child,
        stdout=child,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", **environment},
    )
    os.close(child)
    shown = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # Linux says so when the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(parent)
    return shown.decode(), process.wait(timeout=30)


def test_a_terminal_shows_a_bar_with_rate_and_cleans_up():
    shown, code = on_a_terminal()
    assert code == 0
    for part in ("read train", "images/s", "/40 ", "loss 0.5"):
        assert part in shown
    assert shown.rstrip().endswith("done")


LOGGING = """
import logging
import time
from commands.logs import set_up_logs
from pipeline.runtime.progress import progress

set_up_logs("normal")
with progress("teacher on train.beton", total=12_580, unit="images") as bar:
    for view in range(4):
        bar.advance(1_258, note=f"view {view}")
        logging.getLogger("stages").info("line %d with [brackets] and 0.5", view)
        time.sleep(0.15)
print("done")
"""


def test_a_log_line_during_a_bar_has_a_line_of_its_own():
    shown, code = on_a_terminal(LOGGING, COLUMNS="80")
    assert code == 0, shown
    assert "teacher on train.beton" in shown
    visible = [line.rpartition("\x1b[2K")[2] for line in shown.split("\n")]  # the bar was erased
    lines = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", line) for line in visible]
    logged = [line for line in lines if "line " in line]
    assert logged == [f"line {view} with [brackets] and 0.5" for view in range(4)]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_bar_never_wraps(columns):
    shown, _ = on_a_terminal(LOGGING, COLUMNS=str(columns))
    frames = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", part) for part in re.split(r"[\r\n]", shown)]
    bars = [frame for frame in frames if "teacher on" in frame]
    assert bars
    assert max(map(len, bars)) <= columns
    assert "\x1b[1A\x1b[2K\x1b[1A" not in shown, "a bar of two lines is removed by going up twice"


def test_long_work_has_fewer_lines(caplog, monkeypatch):
    """Some 20 lines in the first 200 seconds, 60 in the rest of the first hour, then 12 an hour."""
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    counts = []
    with caplog.at_level(logging.INFO):
        lines = module._Lines(description="x", total=100_000, unit="images", started=0, logged=0)
        for end in (200, 3600, 7200):
            caplog.clear()
            while now < end:
                now += 1.0
                lines.advance(1)
            counts.append(len(caplog.messages))
    assert counts[0] == 20
    assert 40 < counts[1] < 65
    assert 10 <= counts[2] <= 20


NESTED = """
from pipeline.runtime.progress import progress
for _ in range(2):
    with progress("outer", total=2, unit="views") as outer:
        for _ in range(2):
            with progress("inner", total=5, unit="rows") as inner:
                inner.advance(5)
            outer.advance(1)
print("done")
"""


def test_work_inside_of_work_leaves_the_one_bar_alone():
    shown, code = on_a_terminal(NESTED)
    assert code == 0, shown
    assert "outer" in shown
    assert "inner" not in shown
    assert shown.rstrip().endswith("done")


def test_a_second_rank_shows_no_bar():
    shown, code = on_a_terminal(RANK="1")
    assert (shown.strip(), code) == ("done", 0)


def test_a_pipe_gets_no_bar():
    result = subprocess.run(
        [sys.executable, "-c", WORK], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("done\n", "")


def test_an_error_inside_is_raised():
    with pytest.raises(KeyError), progress("x", total=1, unit="images"):
        raise KeyError


def test_work_that_needs_no_doing_changes_neither_rate_nor_what_is_left(caplog, monkeypatch):
    monkeypatch.setattr(module, "LINE_EVERY_SECONDS", 0.0)
    with (
        caplog.at_level(logging.INFO),
        progress("teacher", total=2000, unit="images") as lines,
    ):
        lines.started -= 10.0
        lines.logged -= 10.0
        lines.skip(900)
        lines.advance(100)
    assert caplog.messages == ["teacher: 100 of 1,100 images, 10 images/s, 100 s left"]


SKIPPING = """
import time
from pipeline.runtime.progress import naming, progress
with naming("run 2 of 9"), progress("teacher", total=40, unit="images") as bar:
    bar.skip(10)
    for _ in range(3):
        bar.advance(10)
        time.sleep(0.15)
"""


def test_a_bar_leaves_out_what_needs_no_doing_and_the_name_of_the_run_above_it():
    shown, code = on_a_terminal(SKIPPING)
    assert code == 0, shown
    assert "run 2 of 9" not in shown
    assert "30/30 " in shown
    assert "/40" not in shown.replace("0/40", "", 1)  # of the first frame, before the skip


def test_work_is_named_by_the_run_around_it_only(caplog, monkeypatch):
    monkeypatch.setattr(module, "LINE_EVERY_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        with naming("run 7 of 15"), progress("train", total=1, unit="images") as lines:
            lines.advance(1)
        with pytest.raises(ValueError, match="a mistake"), naming("run 8 of 15"):
            raise ValueError("a mistake")
        with progress("train", total=1, unit="images") as lines:
            lines.advance(1)
    assert [message.partition(": 1 of")[0] for message in caplog.messages] == [
        "run 7 of 15: train",
        "train",
    ]
