"""The page: one self-contained file with its styles, script, charts and pictures inside."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.provenance import Json
from stages.report.svg_charts import INK

_TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table."""

    text: str
    note: str = ""
    """A few words below the text."""
    is_best: bool = False
    tone: Literal["", "good", "bad"] = ""
    """Colour of the note; empty: none."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table: one student or the teacher."""

    name: str
    cells: tuple[Cell, ...]
    colour: str = ""
    """Colour of the network in the whole page; empty: none."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a header; the first column names the row."""

    header: tuple[str, ...]
    rows: list[Row]
    note: str = ""
    csv: str = ""
    """The same numbers as a file to download; empty: none is offered."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """An entry of a legend."""

    name: str
    colour: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture with its title, an explanation and a legend."""

    title: str
    svg: str
    """Empty: there is a table instead."""
    note: str
    legend: tuple[Key, ...] = ()
    table: Table | None = None


@dataclass(frozen=True, kw_only=True)
class Folded:
    """Details that the reader opens."""

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """A heading with its content, in this order."""

    title: str
    intro: str = ""
    points: tuple[tuple[str, str], ...] = ()
    """Paragraphs, each with the words that it begins with."""
    warnings: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    folded: tuple[Folded, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One number that matters, with what it compares to."""

    title: str
    value: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result in a sentence and three numbers."""

    sentence: str
    detail: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Date and command of the report, and the page that explains it."""

    date: str
    command: str
    docs: str
    """Name of the page in the documentation."""
    address: str
    """Address of that page; empty: it is not on this machine."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """The content of the page."""

    title: str
    intro: str
    sections: tuple[ReportSection, ...]
    explorer: dict[str, Json] | None
    """Data for `report.js`; None: there are no samples to show."""
    explorer_intro: str = ""
    verdict: Verdict | None = None
    provenance: Folded | None = None
    origin: Origin | None = None


def render(page: Page) -> str:
    """The page as HTML; every name and number in it is text, whatever it contains."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tied"] = _tied
    style, script = (
        (_TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js")
    )
    return environment.get_template("report.html.j2").render(
        page=page,
        style=Markup(style),
        script=Markup(script),
        script_hash=_hash(script),
        samples=None if page.explorer is None else Markup(_for_script(page.explorer)),
        svg=Markup,
        csv_address=_csv_address,
        ink=INK,
    )


def _tied(text: str) -> str:
    """``text`` with numbers and their units on one line."""
    return re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text)


def _csv_address(text: str) -> str:
    """A file as a `data:` address."""
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def _hash(script: str) -> str:
    """The script that the policy of the page allows to run."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _for_script(value: Json) -> str:
    """JSON in which an HTML parser finds no element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")
