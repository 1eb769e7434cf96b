"""The page: one file that asks for nothing, with styles, script, charts and pictures inside."""

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.provenance import Json

_TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a header; the first column names the row."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture with what it shows."""

    title: str
    svg: str
    note: str


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """A heading with whatever belongs under it, in this order."""

    title: str
    intro: str = ""
    warnings: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that is shown."""

    title: str
    intro: str
    sections: tuple[ReportSection, ...]
    explorer: dict[str, Json] | None
    """What `report.js` reads; None: there are no samples to look at."""
    explorer_intro: str = ""


def render(page: Page) -> str:
    """The page as HTML; every name and number in it is text, whatever it contains."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((_TEMPLATES / name).read_text() for name in ("report.css", "report.js"))
    return environment.get_template("report.html.j2").render(
        page=page,
        style=Markup(style),
        script=Markup(script),
        script_hash=_hash(script),
        samples=None if page.explorer is None else Markup(_for_script(page.explorer)),
        svg=Markup,
    )


def _hash(script: str) -> str:
    """What the policy of the page allows to run."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _for_script(value: Json) -> str:
    """JSON that no parser of HTML finds an element in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")
