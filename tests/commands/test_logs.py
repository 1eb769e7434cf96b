"""Log lines: what is needed by default, details with --verbose, warnings always."""

import logging

import pytest

from commands.logs import set_up_logs
from tests.support.commands import heartcut


@pytest.fixture(autouse=True)
def loggers():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("stages", "pipeline", "commands"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [
        ("quiet", ["5"]),
        ("normal", ["2", "3", "5", "6"]),
        ("verbose", ["1", "2", "3", "4", "5", "6"]),
    ],
)
def test_each_verbosity_has_its_lines(capsys, verbosity, shown):
    set_up_logs(verbosity)
    logging.getLogger("stages.select").debug("1")
    logging.getLogger("stages.select").info("2")
    logging.getLogger("pipeline.runtime.progress").info("3")
    logging.getLogger("pipeline.influence.points").info("4")
    logging.getLogger("pipeline.influence.points").warning("5")
    logging.getLogger("other").info("6")
    logging.getLogger("other").debug("7")
    assert capsys.readouterr().err.split() == shown


def test_a_prefix_begins_every_line(capsys):
    set_up_logs("quiet", prefix="rank 1: ")
    logging.getLogger("stages").warning("careful")
    assert capsys.readouterr().err == "rank 1: careful\n"


def test_solver_steps_are_details(digits_copy, tiny_toml):
    options = ["--set", f"workspace={digits_copy.workspace}", "--set", "select.influence.l2=0.01"]
    normal = heartcut("select", tiny_toml, *options, quiet=False)
    assert normal.code == 0
    assert "Newton steps" not in normal.err
    options[-1] = "select.influence.l2=0.02"
    assert "Newton steps" in heartcut("--verbose", "select", tiny_toml, *options, quiet=False).err


def test_quiet_and_verbose_exclude_each_other(tiny_toml):
    done = heartcut("-q", "-v", "prepare", tiny_toml, quiet=False)
    assert done.code == 2
    assert "exclude each other" in done.err
