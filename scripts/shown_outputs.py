"""Record which configurations the outputs on the pages were printed with.

Tests hold the words of shown outputs to what commands print, but not numbers that take minutes to
compute. docs/outputs.json therefore has, for each page, digests of its outputs and of the
configurations (with their defaults) that its commands name. A test fails if a configuration or a
default has changed since. Print the outputs of that page again, then run:

python -m scripts.shown_outputs [PAGE ...]  # by default all pages
"""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from scripts.pictures import ROOT, demo_config, digest, digest_of_file
from tests.support.documentation import PAGES, Block, blocks_of, read

RECORD = ROOT / "docs" / "outputs.json"
MEASURED = re.compile(r"\d\.\d")
"""Numbers that come from a computation, unlike counts."""
CONFIGURATION = re.compile(r"\bconfigs/[\w/-]+\.toml\b")


def main() -> None:
    wanted = sys.argv[1:] or pages()
    if unknown := set(wanted) - set(pages()):
        sys.exit(f"{sorted(unknown)} show no measured output (expected some of {pages()})")
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    kept = {page: entry for page, entry in record.items() if page in pages()}
    new = kept | {page: record_of(page) for page in wanted}
    RECORD.write_text(json.dumps(new, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def pages() -> list[str]:
    """Pages that show the measured output of a configuration of the repository."""
    return [page for page in PAGES if measured(page) and configurations(page)]


def measured(page: str) -> list[str]:
    """Shown outputs of a page with measured numbers."""
    return [block.output for block in _blocks(page) if MEASURED.search(block.output)]


def configurations(page: str) -> set[str]:
    """Configurations that the commands of a page name."""
    commands = "\n".join(block.text for block in _blocks(page))
    demo = {demo_config().relative_to(ROOT).as_posix()} if "make demo" in commands else set()
    return set(CONFIGURATION.findall(commands)) | demo


def _blocks(page: str) -> list[Block]:
    return blocks_of(page, read(page))


def record_of(page: str) -> dict[str, Any]:
    """Digests of what a page shows and of what it was printed with."""
    inputs = dict(digest_of_file(ROOT / name) for name in sorted(configurations(page)))
    return {"shown": digest("".join(measured(page)).encode()), "inputs": inputs}


def faults() -> Iterator[str]:
    """Yield each page whose outputs are not recorded, or older than a configuration."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    yield from (f"{page} shows no measured output" for page in record.keys() - set(pages()))
    for page in pages():
        now, then = record_of(page), record.get(page, {"shown": "", "inputs": {}})
        if now["shown"] != then["shown"]:
            yield f"outputs of {page} are not recorded"
        for name in sorted(now["inputs"].keys() & then["inputs"].keys()):
            if now["inputs"][name] != then["inputs"][name]:
                yield f"outputs of {page} are older than {name}"


if __name__ == "__main__":
    main()
