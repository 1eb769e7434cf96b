"""A `~` in an argument that no shell has replaced."""

import pytest

from tests.support.commands import heartcut


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ("prepare", "~/none.toml"),
        ("show", "cache", "~/none.toml"),
        ("show", "selection", "~/none.toml"),
        ("show", "run", "~/none.toml"),
        ("report", "~/none.toml"),
        ("cache", "info", "~/none.toml"),
        ("cache", "push", "~/none.toml", "~/there"),
        ("cache", "pull", "~/none", "~/there"),
        ("cache", "diff", "~/none", "~/there"),
        ("cache", "list", "~/none"),
        ("cache", "gc", "~/none"),
    ],
)
def test_it_is_the_home(command, home):
    line = heartcut(*command).error_line
    assert f"{home}/none" in line
    assert "~" not in line


def test_it_is_the_home_in_options_and_overrides(tiny_toml, home):
    line = heartcut("train-student", tiny_toml, "--set", "workspace=~/work").error_line
    assert f"{home}/work" in line
    work = ("--set", f"workspace={home}/work")
    assert heartcut("prepare", tiny_toml, *work).code == 0
    line = heartcut("train-student", tiny_toml, *work, "--selection", "~/mine").error_line
    assert f"{home}/mine does not exist" in line
    line = heartcut("train-teacher", tiny_toml, *work, "--resume", "~/run.training").error_line
    assert f"{home}/run.training" in line


def test_an_unknown_user_is_an_error_of_the_command_line():
    done = heartcut("cache", "list", "~nobody-here/caches")
    assert done.code == 2
    assert "nobody-here" in done.err
