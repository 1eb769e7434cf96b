"""The documentation site: it builds, asks no other host, and can be searched from a folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts import configuration_reference
from scripts.docs_hooks import outside
from tests.support.browser import Visit, chromium
from tests.support.cases import looped
from tests.support.commands import ROOT

WIDE = ("index.html", "reference/configuration.html", "reference/cli.html", "glossary.html")
"""Pages that are looked at on a phone: prose, the widest tables, code."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def test_no_page_of_the_site_asks_another_host(site):
    loads = re.compile(r"<(?:script|img|iframe|link|source)\b[^>]*(?:src|href)=\"?(?:https?:)?//")
    asking = [path.name for path in site.rglob("*.html") if loads.search(path.read_text())]
    assert asking == []
    styles = [path.read_text() for path in site.rglob("*.css")]
    assert not [style for style in styles if re.search(r"url\(\"?(?:https?:)?//|@import", style)]


@looped(
    "link, folder, path",
    [
        ("../configs/digits.toml", "", "configs/digits.toml"),
        ("../../benchmarks", "results", "benchmarks"),
        ("../configs/nowhere.toml", "", None),
        ("results/cifar10.md", "", None),
        ("../methods.md", "results", None),
        ("../../..", "", None),
    ],
)
def test_links_that_leave_the_pages_are_told_from_others(link, folder, path):
    assert outside(link, folder=folder) == path


def test_the_site_has_the_files_that_pages_link_to(site):
    page = (site / "results" / "cifar10.html").read_text()
    assert "93.6" in page
    assert (site / "source" / "pipeline" / "data" / "resized_crops.py.html").exists()
    assert (
        "resnet34-resnet18.toml"
        in (site / "source" / "configs" / "imagenet" / "index.html").read_text()
    )


def test_the_site_has_every_key_and_command(site):
    page = (site / "reference" / "configuration.html").read_text()
    for table in configuration_reference.sections():
        for key in configuration_reference.keys_of(table):
            assert f'id="{table}.{key}"' in page
    assert "<!-- keys" not in page
    page = (site / "reference" / "cli.html").read_text()
    assert "<!-- command" not in page
    assert 'id="heartcut-cache-verify"' in page


def test_the_four_kinds_of_page_and_results_are_apart():
    lines = (ROOT / "mkdocs.yml").read_text()
    navigation = yaml.safe_load(lines[lines.index("\nnav:") :])["nav"]
    names = [next(iter(entry)) for entry in navigation]
    assert names[1:] == ["Tutorials", "How-to guides", "Reference", "Explanation", "Results"]
    for entry in navigation[1:]:
        (pages,) = entry.values()
        folders = {str(Path(page).parent) for page in pages}
        assert "results" not in folders or folders == {"results"}


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


def foreign(visit: Visit, site: Path) -> list[str]:
    """Addresses outside the folder of the site that a page asked for."""
    return [url for url in visit.asked_for if not url.startswith(site.as_uri())]


@pytest.mark.parametrize("page", ["index.html", "results/study.html"])
def test_a_search_from_a_folder_finds_pages(browser, site, page):
    visit = Visit(browser, site / page, width=1280)
    visit.page.click(".md-search__input")
    visit.page.keyboard.type("temperature")
    found = ".md-search-result__link"
    visit.page.wait_for_selector(found)
    links = visit.page.eval_on_selector_all(found, "links => links.map(link => link.href)")
    assert any("reference/configuration.html" in link for link in links)
    visit.page.goto(links[0])
    assert visit.page.url.startswith(site.as_uri())
    assert visit.complaints == []
    assert foreign(visit, site) == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_pages_fit_their_window_and_complain_of_nothing(browser, site, width, scheme):
    for page in WIDE:
        visit = Visit(browser, site / page, width=width, scheme=scheme)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, page
        wanted = {"light": "default", "dark": "slate"}[scheme]
        assert visit.page.get_attribute("body", "data-md-color-scheme") == wanted
        assert visit.complaints == []
        assert foreign(visit, site) == []
        visit.page.close()
