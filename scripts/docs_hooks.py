"""Hooks of the documentation site: reference tables made from the code, and pages of linked files.

On the code host `../configs/digits.toml` is a link to that file. The site has no host to point to,
so it has a copy under `source/`, with one list for each linked folder.
"""

import os
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the product and these scripts, wherever the site is built from

from scripts import cli_reference, configuration_reference  # noqa: E402

MADE = {
    "reference/cli.md": cli_reference.replace_marks,
    "reference/configuration.md": configuration_reference.replace_marks,
}
"""Pages with marks -> function that puts tables in their place."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)(?=[)#\s])")
"""The target of a relative link, without its anchor."""
LANGUAGES = {".md": "markdown", ".py": "python", ".sh": "bash", ".toml": "toml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file and folder of the repository that a page links to."""
    for path in sorted(_named_outside(files)):
        content = _folder_page(path) if (ROOT / path).is_dir() else _file_page(path)
        files.append(File.generated(config, _page_of(path), content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Put tables in place of marks; point links that leave `docs` to the pages made for them."""
    markdown = MADE.get(page.file.src_uri, str)(markdown)
    if page.file.src_uri.startswith("source/"):
        return markdown
    folder = posixpath.dirname(page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        path = outside(link[1], folder=folder)
        return link[1] if path is None else posixpath.relpath(_page_of(path), folder or ".")

    return LINK.sub(rewritten, markdown)


def outside(link: str, *, folder: str) -> str | None:
    """Path in the repository of a link from a page in ``folder`` of `docs`; None: within `docs`."""
    path = posixpath.normpath(posixpath.join("docs", folder, link))
    is_inside = path == "docs" or path.startswith("docs/")
    return None if is_inside or path.startswith("..") or not (ROOT / path).exists() else path


def _named_outside(files: Files) -> set[str]:
    """Files and folders that pages name, and the files of these folders."""
    named: set[str] = set()
    for file in files.documentation_pages():
        folder = posixpath.dirname(file.src_uri)
        links = LINK.findall(file.content_string)
        named.update(path for link in links if (path := outside(link, folder=folder)))
    return named | {name for path in named if (ROOT / path).is_dir() for name in _tracked(path)}


def _tracked(folder: str) -> Iterator[str]:
    """Files below a folder that belong to the repository."""
    for parent, folders, names in os.walk(ROOT / folder):
        folders[:] = [name for name in folders if not name.startswith(("_", "."))]
        place = Path(parent).relative_to(ROOT)
        yield from ((place / name).as_posix() for name in names if Path(name).suffix in LANGUAGES)


def _page_of(path: str) -> str:
    return f"source/{path}/index.md" if (ROOT / path).is_dir() else f"source/{path}.md"


def _file_page(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    ticks = "`" * 4
    return f"# {path}\n\n{ticks}{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}{ticks}\n"


def _folder_page(path: str) -> str:
    names = (posixpath.relpath(name, path) for name in sorted(_tracked(path)))
    return f"# {path}\n\n" + "".join(f"- [{name}]({name}.md)\n" for name in names)
