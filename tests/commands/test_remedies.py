"""Commands in messages can be pasted: they carry the configuration and its overrides."""

import logging

import pytest

from commands import remedies
from tests.support.commands import heartcut


@pytest.fixture(autouse=True)
def forgotten():
    yield
    remedies.begin()


def test_a_command_gets_the_configuration_and_the_overrides_that_it_reads():
    remedies.use(["my files/a.toml"], ["workspace=work/b", "prepare.resize=8", "select.eta=0.7"])
    line = "no cache. Run `heartcut cache-teacher` first, or `heartcut cache info PLACE`."
    assert remedies.complete(line) == (
        "no cache. Run `heartcut cache-teacher 'my files/a.toml' --set workspace=work/b "
        "--set prepare.resize=8` first, or `heartcut cache info PLACE`."
    )


def test_options_of_a_command_stay_behind_the_configuration():
    remedies.use(["a.toml"], None)
    found = remedies.complete("Make it with `heartcut select --name half`.")
    assert found == "Make it with `heartcut select a.toml --name half`."


@pytest.mark.parametrize(
    "line", ["Run `heartcut select b.toml`.", "`heartcut show` shows it.", "heartcut select"]
)
def test_a_command_that_is_complete_or_takes_no_configuration_stays(line):
    remedies.use(["a.toml"], None)
    assert remedies.complete(line) == line


def test_without_a_configuration_nothing_is_added():
    remedies.use(["work/runs"], ["a=1"])
    assert remedies.complete("Run `heartcut select` again.") == "Run `heartcut select` again."


def test_a_command_does_not_name_the_configuration_of_an_earlier_one(tiny_toml, tmp_path):
    options = ["--set", f"workspace={tmp_path / 'none'}"]
    assert str(tiny_toml) in heartcut("select", tiny_toml, *options).error_line
    assert str(tiny_toml) not in heartcut("show", "run", tmp_path / "none").error_line


def test_a_remedy_of_show_names_the_configuration(tiny_toml, tmp_path):
    workspace = f"workspace={tmp_path / 'none'}"
    line = heartcut("show", "run", tiny_toml, "--set", workspace).error_line
    assert f"`heartcut train-student {tiny_toml} --set {workspace}`" in line


def test_the_next_command_is_logged(digits, tiny_toml):
    options = ["--set", f"workspace={digits.workspace}"]
    done = heartcut("prepare", tiny_toml, *options, quiet=False)
    assert done.err.endswith(f"next: heartcut train-teacher {tiny_toml} {' '.join(options)}\n")
    done = heartcut("prepare", tiny_toml, *options)
    assert "next" not in done.err


def test_a_selection_of_other_settings_is_named_in_the_next_command(digits_copy, tiny_toml):
    options = ["--set", f"workspace={digits_copy.workspace}"]
    done = heartcut("select", tiny_toml, *options, "--strategy", "correct", quiet=False)
    assert done.err.endswith(f" {' '.join(options)} --selection {done.out.strip()}\n")
    assert logging.getLogger("stages").level == logging.NOTSET
