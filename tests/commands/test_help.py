"""Help texts: each begins with a verb or a noun, ends as a sentence, and lists its choices."""

from typing import get_args

import pytest
import typer.main
from typer.core import TyperGroup

import cli
from pipeline.methods.catalogue import Strategy
from stages.config.cache_teacher import CacheTeacherConfig
from stages.config.select import SelectConfig
from stages.config.types import PrecisionChoice

NO_BEGINNING = ("Of", "For", "What", "Whether", "Which", "Where", "How", "It", "On", "Also", "Only")


def commands(group=None, name=""):
    """Every command with its name."""
    group = typer.main.get_command(cli.app) if group is None else group
    yield name, group
    if isinstance(group, TyperGroup):
        for part, command in group.commands.items():
            yield from commands(command, f"{name} {part}".strip())


COMMANDS = dict(commands())
PARAMETERS = {
    f"{name} {parameter.name}".strip(): parameter
    for name, command in COMMANDS.items()
    for parameter in command.params
    if parameter.name != "help"
}


def require_style(text: str | None) -> None:
    assert text, "a help text is missing"
    first = text.split()[0]
    assert first[0].isupper()
    assert first not in NO_BEGINNING
    assert text.strip().endswith(".")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_begins_with_a_verb(name):
    require_style((COMMANDS[name].help or "").split("\n\n")[0])


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_help_of_a_parameter_says_what_it_is(name):
    require_style(PARAMETERS[name].help)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("select strategy", get_args(Strategy)),
        ("select repair", get_args(SelectConfig.model_fields["repair"].annotation)),
        ("select accept_mismatch", ("labels", "pixels")),
        ("cache-teacher precision", get_args(PrecisionChoice)),
    ],
)
def test_the_help_lists_the_choices_of_the_code(name, choices):
    text = PARAMETERS[name].help
    assert [choice for choice in choices if choice not in text] == []


def test_the_choices_above_are_those_of_the_configuration():
    assert CacheTeacherConfig.model_fields["precision"].annotation == PrecisionChoice
    accepted = SelectConfig.model_fields["accept_mismatch"].annotation
    assert get_args(get_args(accepted)[0]) == ("labels", "pixels")
