"""The results of the study: stored as parquet, shown in tables and figures of its pages.

python -m benchmarks.study.results collect WORKSPACE  # add runs of configs/studies
python -m benchmarks.study.results left               # points and seeds without a stored run
python -m benchmarks.study.results render             # parquet -> tables and figures of the pages
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.study.differences import DIFFERENCES, SUBJECTS, differences
from benchmarks.study.figures import draw
from benchmarks.study.store import ROOT, collect, left, studies
from benchmarks.study.summaries import (
    BY_TEACHER,
    GAINS,
    REPAIR,
    SELECTION,
    gains,
    repair_in_short,
    selection_in_short,
    teachers_in_short,
)
from benchmarks.study.tables import MACHINES, PROCESSORS, machines, processors, table

PAGES = (
    ROOT / "docs" / "results" / "conclusions.md",
    ROOT / "docs" / "results" / "study.md",
    ROOT / "docs" / "results" / "study-differences.md",
    ROOT / "docs" / "index.md",
    ROOT / "README.md",
)
BEGIN, END = "<!-- table of {name}: benchmarks/study/results.py -->", "<!-- end of table -->"


def tables() -> dict[str, Callable[[], str]]:
    """Name of a table on a page -> its text."""
    return {
        GAINS: gains,
        BY_TEACHER: teachers_in_short,
        SELECTION: selection_in_short,
        REPAIR: repair_in_short,
        MACHINES: machines,
        PROCESSORS: processors,
        **{
            DIFFERENCES.format(subject=subject): partial(differences, subject)
            for subject in SUBJECTS
        },
        **{name: partial(table, name) for name in studies()},
    }


def rendered(page: str) -> str:
    """A page with its tables rendered from the stored results."""
    for name, text in tables().items():
        begin = BEGIN.format(name=name)
        if begin in page:
            before, rest = page.split(begin, 1)
            _, after = rest.split(END, 1)
            page = f"{before}{begin}\n\n{text()}\n\n{END}{after}"
    return page


def main() -> None:
    match sys.argv[1:]:
        case ["collect", workspace]:
            collect(Path(workspace))
        case ["left"]:
            print(left())
        case ["render"]:
            for page in PAGES:
                page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
            draw()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
