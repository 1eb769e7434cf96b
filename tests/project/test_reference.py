"""The reference pages list every command, option and key, and each example loads."""

import re
import tomllib

import pytest

from scripts import cli_reference, configuration_examples, configuration_reference
from scripts.configuration_reference import SHARED, TOP, TRAINING
from stages.config.file import config_from_tree
from tests.support.cases import looped
from tests.support.documentation import read

CLI, CONFIGURATION = "docs/reference/cli.md", "docs/reference/configuration.md"
KEYS = [
    (table, key)
    for table in configuration_reference.sections()
    for key in configuration_reference.keys_of(table)
]
COMMANDS = cli_reference.commands()


def test_every_command_has_its_place():
    page = read(CLI)
    marked = [name.strip() for name in cli_reference.MARK.findall(page)]
    assert marked == list(COMMANDS)
    for name in marked:
        heading = f"heartcut {name}".strip()
        assert f"\n## {heading}\n" in page


@looped("name", COMMANDS)
def test_the_reference_of_a_command_has_its_help_and_every_parameter(name):
    command = COMMANDS[name]
    made = cli_reference.reference_of(name, COMMANDS)
    assert f"\nheartcut {name}".strip() in made
    for part in (command.help, *(one.help for one in command.params if not one.hidden)):
        assert part is None or bare(part) in bare(made)
    for parameter in command.params:
        shown = parameter.display_name_raw
        names = parameter.opts if parameter.param_type_name == "option" else [shown]
        assert all(f"`{one}`" in made for one in names), (name, names)


def bare(text: str) -> str:
    """A text without what Markdown adds to it."""
    return re.sub(r"[\\`|\s]", "", text)


def test_every_table_of_the_configuration_has_its_place():
    page = read(CONFIGURATION)
    marked = configuration_reference.MARK.findall(page)
    assert sorted(marked) == sorted(
        table
        for table in configuration_reference.sections()
        if configuration_reference.keys_of(table)
    )
    for table in {*marked} - {TOP, TRAINING}:
        assert f" `[{table}]`\n" in page


@looped("table, key", KEYS)
def test_every_key_has_a_meaning_its_values_and_an_example(table, key):
    (row,) = [
        line
        for line in configuration_reference.table_of(table).splitlines()
        if f'id="{table}.{key}"' in line
    ]
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
    assert len(cells) == len(configuration_reference.TITLES)
    assert all(cells), row


@looped("table, key", KEYS)
def test_every_example_loads_and_differs_from_the_default(table, key):
    config = config_from_tree(tomllib.loads(example(table, key)), origin=f"{table}.{key}")
    for part in place_of(table).split("."):
        config = getattr(config, part) if part else config
    assert getattr(config, key) != type(config).model_fields[key].get_default(
        call_default_factory=True
    )


def place_of(table: str) -> str:
    """TOML table that an example of a key is written in; empty: above all tables."""
    return {TOP: "", TRAINING: "train_student"}.get(table, table)


def example(table: str, key: str) -> str:
    """A configuration with the example of a key and what it needs."""
    prefix = f"{place_of(table)}." if place_of(table) else ""
    lines = {f"{prefix}{key}": configuration_examples.EXAMPLES[table][key]}
    for needed, value in configuration_examples.NEEDED.get(f"{table}.{key}", {}).items():
        lines[needed if "." in needed else f"{prefix}{needed}"] = value
    return "".join(f"{name} = {value}\n" for name, value in lines.items())


def test_there_are_no_examples_or_meanings_of_keys_that_do_not_exist():
    known = {f"{table}.{key}" for table, key in KEYS}
    examples = {
        f"{table}.{key}" for table, keys in configuration_examples.EXAMPLES.items() for key in keys
    }
    assert examples == known
    assert known >= {*configuration_examples.NEEDED, *configuration_examples.MEANINGS}


def test_both_trainings_have_the_shared_keys():
    sections = configuration_reference.sections()
    for table in SHARED:
        assert issubclass(sections[table], sections[TRAINING])


@pytest.mark.parametrize(
    ("value", "toml"),
    [
        (True, "true"),
        (16_384, "16_384"),
        (5e-4, "0.0005"),
        (4 / 3, "1.3333"),
        ((1.0, "a"), '[1.0, "a"]'),
        ({}, "{}"),
    ],
)
def test_defaults_are_written_as_toml(value, toml):
    assert configuration_reference.as_toml(value) == toml
    tomllib.loads(f"a = {toml}")


def test_marks_are_replaced():
    assert "`--dry-run`" in cli_reference.replace_marks(read(CLI))
    page = configuration_reference.replace_marks(read(CONFIGURATION))
    assert "| number above 0 and below 1 |" in page
    assert "<!-- keys" not in page
