"""The results of the study: kept as parquet, shown in tables and figures of its pages.

python -m benchmarks.study.results collect WORKSPACE  # add runs of configs/studies
python -m benchmarks.study.results left               # points and seeds without a kept run
python -m benchmarks.study.results render             # parquet -> tables and figures of the pages
"""

import sys
from functools import partial
from pathlib import Path

from benchmarks.study.differences import DIFFERENCES, differences
from benchmarks.study.figures import draw
from benchmarks.study.store import ROOT, collect, left, studies
from benchmarks.study.tables import (
    HEADLINE,
    MACHINES,
    PROCESSORS,
    headline,
    machines,
    processors,
    table,
)

PAGES = (
    ROOT / "docs" / "results" / "study.md",
    ROOT / "docs" / "index.md",
    ROOT / "README.md",
)
BEGIN, END = "<!-- table of {name}: benchmarks/study/results.py -->", "<!-- end of table -->"


def rendered(page: str) -> str:
    """A page with its tables made again."""
    tables = {HEADLINE: headline, DIFFERENCES: differences}
    tables |= {MACHINES: machines, PROCESSORS: processors}
    tables |= {name: partial(table, name) for name in studies()}
    for name, made in tables.items():
        begin = BEGIN.format(name=name)
        if begin in page:
            before, rest = page.split(begin, 1)
            _, after = rest.split(END, 1)
            page = f"{before}{begin}\n\n{made()}\n\n{END}{after}"
    return page


def main() -> None:
    match sys.argv[1:]:
        case ["collect", workspace]:
            collect(Path(workspace))
        case ["left"]:
            print(left())
        case ["render"]:
            for page in PAGES:
                page.write_text(rendered(page.read_text()))
            draw()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
