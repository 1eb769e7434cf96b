"""The command line as Markdown: usage, help, arguments and options of each command, from the code.

`docs/reference/cli.md` has a heading for each command and a mark below it, which the hook of the
site replaces: `<!-- command: cache info -->`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from typer.core import TyperGroup

MARK = re.compile(r"^<!-- command:(?P<name>[a-z -]*)-->$", re.MULTILINE)
"""Place of a command in the page; without a name, of `heartcut` itself."""
TYPES = {int: "whole number", float: "number", Path: "path"}


def replace_marks(markdown: str) -> str:
    """A page with the reference of each command in place of its mark."""
    known = commands()
    return MARK.sub(lambda mark: reference_of(mark["name"].strip(), known), markdown)


def commands() -> dict[str, Any]:
    """Name of each command that help lists, such as `cache info`, and the command itself."""
    import cli

    return dict(_commands("", typer.main.get_command(cli.app)))


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    if isinstance(command, TyperGroup):
        for child, below in command.commands.items():
            if not below.hidden:
                yield from _commands(f"{name} {child}".strip(), below)


def reference_of(name: str, known: dict[str, Any]) -> str:
    """Markdown of one command."""
    command = known[name]
    called = f"heartcut {name}".strip()
    context = command.make_context(called, [], resilient_parsing=True)
    pieces = [
        re.sub(r"[{}]|(?:\.\.\.)+$", "", one) for one in command.collect_usage_pieces(context)
    ]
    usage = " ".join([called, *pieces])
    parts = [f"```text\n{usage}\n```", *_paragraphs(command.help or "")]
    listed = command.get_params(context)
    parameters = [one for one in listed if not one.hidden and one.name != "help"]
    arguments = [one for one in parameters if one.param_type_name == "argument"]
    options = [one for one in parameters if one.param_type_name == "option"]
    if isinstance(command, TyperGroup):
        parts.append(_table(("command", "purpose"), _children(name, command)))
    if arguments:
        rows = [(code(one.display_name_raw), _help(one)) for one in arguments]
        parts.append(_table(("argument", "meaning"), rows))
    parts.append(_table(*_option_rows(options)))
    parts += _paragraphs(command.epilog or "")
    return "\n\n".join(part for part in parts if part)


def _children(name: str, group: TyperGroup) -> list[tuple[str, str]]:
    """Link to each command of a group, and the first sentence of its help."""
    shown = [(child, below) for child, below in group.commands.items() if not below.hidden]
    return [
        (f"[{code(child)}](#{anchor(f'{name} {child}')})", first_sentence(below.help or ""))
        for child, below in shown
    ]


def anchor(name: str) -> str:
    """Anchor of the heading of a command."""
    return "-".join(["heartcut", *name.split()])


def first_sentence(text: str) -> str:
    """Beginning of a help text up to its first full stop, semicolon or empty line."""
    text = " ".join(text.split("\n\n")[0].split())
    return cell(re.split(r"(?<=\.)\s|;", text)[0].rstrip(".;"))


def _option_rows(options: list[Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Titles and rows of the table of options; environment variables only if there are any."""
    has_environment = any(one.envvar for one in options)
    titles = ("option", "value", "default", "meaning", *["environment"] * has_environment)
    rows = []
    for one in options:
        names = ", ".join(code(name) for name in [*one.opts, *one.secondary_opts])
        value = "" if one.is_flag else _value(one)
        row = (names, value, _default(one), _help(one))
        rows.append((*row, *[code(one.envvar) if one.envvar else ""] * has_environment))
    return titles, rows


def _value(parameter: Any) -> str:
    """Values of an option: those of a list, else its placeholder or type, with the smallest."""
    kind = parameter.type_descriptor
    if kind.is_choice:
        return ", ".join(code(str(getattr(one, "value", one))) for one in kind.choices or ())
    if parameter.metavar:
        return code(parameter.metavar)
    value = TYPES.get(kind.annotation, "text")
    return value if parameter.min is None else f"{value}, at least {parameter.min:g}"


def _default(option: Any) -> str:
    """Default of an option, empty if a command works without a value."""
    if option.is_flag or option.default is None or option.default in ((), []):
        return ""
    return "" if callable(option.default) else code(str(option.default))


def _help(parameter: Any) -> str:
    text = " ".join((parameter.help or "").split())
    return cell(f"{text} Can be repeated." if _repeats(parameter, text) else text)


def _repeats(parameter: Any, text: str) -> bool:
    is_many = getattr(parameter, "multiple", False)
    return bool(is_many) and "repeat" not in text.lower()


def _paragraphs(text: str) -> list[str]:
    """Paragraphs of a help text on a line each; a command within it is a block of its own."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.replace("\f", ""))]
    return [f"    {one}" if one.startswith("heartcut ") else escaped(one) for one in paragraphs]


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if rows else ""


def code(text: str) -> str:
    """Text in the font of code, within a cell."""
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, except for what stands in backticks."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def cell(text: str) -> str:
    """Text of a table's cell."""
    return escaped(text).replace("|", r"\|")
