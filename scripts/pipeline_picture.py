"""Draw the pipeline of docs/how-it-works.md: `python -m scripts.pictures pipeline`.

The drawing has its own background, so it is readable on light and dark pages. It is narrow, so its
text is readable on a phone.
"""

from pathlib import Path
from xml.sax.saxutils import escape

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "pipeline.svg"
WIDTH, HEIGHT = 400, 668
TITLE = "The pipeline of heartcut"
DESCRIPTION = (
    "prepare turns images into a data set. cache-teacher runs the teacher once over every view and "
    "stores logits and features. select revises labels and chooses samples. train-student trains "
    "from data set, soft labels and selection, without the teacher. report writes one page."
)
STYLE = """
  text { font-family: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
  .name { font-size: 15px; font-weight: 600; fill: #2b211d; }
  .note { font-size: 12.5px; fill: #54473f; }
  .command { font-size: 14px; font-weight: 600; fill: #ffffff; font-family: ui-monospace, Menlo,
    Consolas, monospace; }
  .does { font-size: 12.5px; fill: #f3e9e2; }
  .file { fill: #ffffff; stroke: #8d7b70; stroke-width: 1.2; }
  .stage { fill: #6d4c41; }
  .teacher { fill: #fff3e0; stroke: #d9822b; stroke-width: 1.6; }
  .arrow { fill: none; stroke: #54473f; stroke-width: 1.6; marker-end: url(#head); }
  .border { stroke: #d9822b; stroke-width: 1.4; stroke-dasharray: 5 4; }
  .aside { font-size: 12px; font-style: italic; fill: #a4500d; }
"""


def text(x: float, y: float, words: str, kind: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, lines: list[str], kind: str = "file") -> str:
    """A file: its name, and notes below it."""
    height = 12 + 18 * len(lines)
    name, *notes = lines
    drawn = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" class="{kind}"/>']
    drawn.append(text(x + width / 2, y + 20, name, "name"))
    drawn += [text(x + width / 2, y + 38 + 17 * i, note, "note") for i, note in enumerate(notes)]
    return "".join(drawn)


def stage(y: float, command: str, does: str, *, width: float = 376) -> str:
    """A command, and what it does."""
    middle = 12 + width / 2
    bar = f'<rect x="12" y="{y}" width="{width}" height="46" rx="23" class="stage"/>'
    return bar + text(middle, y + 20, command, "command") + text(middle, y + 37, does, "does")


def arrow(x: float, start: float, end: float, *, to: float | None = None) -> str:
    return f'<path d="M{x} {start} L{x if to is None else to} {end}" class="arrow"/>'


def picture() -> str:
    """The SVG."""
    parts = [
        box(12, 12, 180, ["images", "one folder for each class"]),
        box(208, 12, 180, ["teacher", "a checkpoint, or your own"], "teacher"),
        arrow(102, 60, 74),
        stage(76, "prepare", "store images as betons", width=180),
        arrow(102, 122, 138),
        box(12, 140, 180, ["data set", "training, held-out, test"]),
        arrow(102, 188, 206),
        '<path d="M298 60 L298 206" class="arrow"/>',
        stage(208, "cache-teacher", "run the teacher once over every view"),
        arrow(200, 254, 270),
        box(12, 272, 376, ["teacher cache", "logits and features of every view"]),
        '<line x1="12" y1="332" x2="388" y2="332" class="border"/>',
        text(388, 347, "no teacher is needed below this line", "aside", "end"),
        arrow(102, 320, 358),
        stage(360, "select", "correct labels, score samples, choose"),
        arrow(102, 406, 422),
        arrow(298, 406, 422),
        box(12, 424, 180, ["soft labels", "revised, for every view"]),
        box(208, 424, 180, ["selection table", "which samples, and why"]),
        arrow(102, 472, 488),
        arrow(298, 472, 488),
        stage(490, "train-student", "read the data set and both files above"),
        arrow(200, 536, 552),
        box(12, 554, 376, ["run", "weights, accuracy, predictions, settings"]),
        arrow(200, 602, 616),
        '<rect x="12" y="618" width="376" height="38" rx="19" class="stage"/>',
        text(200, 642, "report", "command"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-labelledby="title description">\n'
        f'<title id="title">{TITLE}</title>\n<desc id="description">{DESCRIPTION}</desc>\n'
        f"<style>{STYLE}</style>\n"
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#54473f"/></marker>'
        "</defs>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#faf6f2"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def draw() -> None:
    """Write the drawing to `docs/images`."""
    PICTURE.write_text(picture(), encoding="utf-8")
