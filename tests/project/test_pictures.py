"""Every picture of the documentation is drawn by `make pictures` from what is here today."""

import json
import re
import subprocess

import pytest

from scripts import pictures
from tests.support.documentation import PAGES, ROOT, read


def test_no_picture_is_older_than_what_it_shows():
    assert list(pictures.faults()) == [], "run `make pictures`"


def test_every_picture_of_a_page_is_drawn():
    text = "".join(map(read, PAGES))
    shown = set(re.findall(r"images/([\w.-]+\.(?:svg|png))", text))
    drawn = {path.name for path in pictures.FOLDER.iterdir()} - {pictures.RECORD.name}
    assert shown <= drawn
    assert len(shown) >= 5


def test_make_pictures_runs_the_demo_and_draws():
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "pictures"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    config = pictures.demo_config().relative_to(ROOT).as_posix()
    lines = done.stdout.splitlines()
    assert any(f"report {config}" in line for line in lines)
    assert lines[-1].endswith("-m scripts.pictures")


@pytest.fixture
def part(tmp_path, monkeypatch):
    """One picture, drawn from one file."""
    folder, source = tmp_path / "images", tmp_path / "source"
    folder.mkdir()
    source.write_text("old")
    monkeypatch.setattr(pictures, "FOLDER", folder)
    monkeypatch.setattr(pictures, "RECORD", folder / "pictures.json")
    part = pictures.Part(
        pictures="a*.svg",
        inputs=lambda: {"source": pictures.digest(source.read_bytes())},
        draw=(folder / "a.svg").touch,
    )
    monkeypatch.setattr(pictures, "PARTS", {"part": part})
    monkeypatch.setattr("sys.argv", ["pictures"])
    pictures.main()
    return tmp_path


def test_a_changed_input_is_noticed(part):
    assert list(pictures.faults()) == []
    (part / "source").write_text("new")
    assert list(pictures.faults()) == ["pictures of the part are older than source"]


def test_a_picture_without_a_command_and_a_missing_one_are_noticed(part):
    (part / "images" / "by-hand.png").touch()
    (part / "images" / "a.svg").unlink()
    assert list(pictures.faults()) == [
        "docs/images/by-hand.png has no command",
        "docs/images/a.svg is missing",
    ]


def test_a_changed_default_is_noticed(monkeypatch, tmp_path):
    """A configuration is compared with its defaults, also those that it does not name."""
    config = tmp_path / "demo.toml"
    monkeypatch.setattr(pictures, "ROOT", tmp_path)
    config.write_text('workspace = "work/a"\n')
    _, before = pictures.digest_of_file(config)
    config.write_text('# a comment\nworkspace = "work/a"\n')
    assert pictures.digest_of_file(config)[1] == before
    config.write_text('workspace = "work/a"\n[select]\neta = 0.7\n')
    assert pictures.digest_of_file(config)[1] != before


def test_an_unknown_part_is_rejected(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pictures", "nothing"])
    with pytest.raises(SystemExit, match=r"unknown parts \['nothing'\]"):
        pictures.main()


def test_the_record_has_one_entry_for_each_part():
    assert json.loads(pictures.RECORD.read_text()).keys() == pictures.PARTS.keys()
