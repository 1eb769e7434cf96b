"""Every text file is read and written as UTF-8, also where the locale has another encoding."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("pipeline", "stages", "commands", "scripts", "benchmarks")
TEXT_METHODS = {"read_text": 0, "write_text": 1}
"""Method of a path -> positional arguments before its encoding."""


def modules() -> list[Path]:
    return sorted(
        [*ROOT.glob("*.py"), *(p for name in FOLDERS for p in ROOT.glob(f"{name}/**/*.py"))]
    )


def text_calls_without_encoding(tree: ast.Module) -> Iterator[int]:
    """Lines of calls that would use the locale's encoding."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and is_text(node) and "encoding" not in keywords_of(node):
            yield node.lineno


def keywords_of(call: ast.Call) -> set[str | None]:
    return {keyword.arg for keyword in call.keywords}


def is_text(call: ast.Call) -> bool:
    """Recognise a call that reads or writes text, and has no encoding by position."""
    if isinstance(call.func, ast.Attribute) and call.func.attr in TEXT_METHODS:
        return len(call.args) <= TEXT_METHODS[call.func.attr]
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return name in ("NamedTemporaryFile", "TemporaryFile", "open", "fdopen") and opens_text(call)


def opens_text(call: ast.Call) -> bool:
    """Recognise the mode of a text file; an `open` of an artefact or an image has no mode."""
    named = [k.value for k in call.keywords if k.arg == "mode"]
    modes = [a.value for a in (*call.args, *named) if isinstance(a, ast.Constant)]
    texts = [mode for mode in modes if isinstance(mode, str) and set(mode) <= set("rwaxbt+")]
    is_builtin = isinstance(call.func, ast.Name) and call.func.id == "open"
    return any("b" not in mode for mode in texts) or (is_builtin and not texts)


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("path.read_text()", True),
        ("path.write_text(text)", True),
        ("open(path)", True),
        ("path.open('w')", True),
        ("os.fdopen(3, mode='r')", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.read_text('utf-8')", False),
        ("path.write_text(text, encoding='utf-8')", False),
        ("path.open('rb')", False),
        ("Dataset.open(folder)", False),
    ],
)
def test_the_check_finds_what_it_should(line, is_found):
    assert bool(list(text_calls_without_encoding(ast.parse(line)))) == is_found


def test_every_text_file_has_an_encoding():
    offenders = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules()
        for line in text_calls_without_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not offenders, "\n".join(offenders)
