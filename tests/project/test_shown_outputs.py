"""Outputs with measured numbers were printed with the configurations as they are today."""

import pytest

from scripts import shown_outputs

SHOWN = (
    "```sh\nheartcut compare configs/a.toml\n```\n\n<!-- output -->\n\n```text\nKD 90.1 %\n```\n"
)


def test_no_output_is_older_than_its_configuration():
    assert list(shown_outputs.faults()) == [], (
        "print the outputs again, then run `python -m scripts.shown_outputs`"
    )


@pytest.fixture
def page(tmp_path, monkeypatch):
    """One page that shows the output of one configuration."""
    config = tmp_path / "configs" / "a.toml"
    config.parent.mkdir()
    config.write_text('workspace = "work/a"\n')
    (tmp_path / "a.md").write_text(SHOWN)
    for module in ("scripts.shown_outputs", "scripts.pictures", "tests.support.documentation"):
        monkeypatch.setattr(f"{module}.ROOT", tmp_path)
    monkeypatch.setattr(shown_outputs, "PAGES", ["a.md"])
    monkeypatch.setattr(shown_outputs, "RECORD", tmp_path / "outputs.json")
    monkeypatch.setattr("sys.argv", ["shown_outputs"])
    shown_outputs.main()
    return tmp_path


def test_a_changed_setting_is_noticed(page):
    assert list(shown_outputs.faults()) == []
    (page / "configs" / "a.toml").write_text('# a comment\nworkspace = "work/a"\n')
    assert list(shown_outputs.faults()) == []
    (page / "configs" / "a.toml").write_text('workspace = "work/a"\n[select]\neta = 0.7\n')
    (fault,) = shown_outputs.faults()
    assert fault.startswith("outputs of a.md are older than configs/a.toml")


def test_a_changed_output_is_noticed(page):
    (page / "a.md").write_text(SHOWN.replace("90.1", "91.5"))
    assert list(shown_outputs.faults()) == ["outputs of a.md are not recorded"]
    (page / "a.md").write_text("Nothing.\n")
    assert list(shown_outputs.faults()) == ["a.md shows no measured output"]


def test_pages_without_measured_numbers_are_not_recorded(page, monkeypatch):
    (page / "a.md").write_text(SHOWN.replace("90.1", "90"))
    assert shown_outputs.pages() == []
    monkeypatch.setattr("sys.argv", ["shown_outputs", "a.md"])
    with pytest.raises(SystemExit, match=r"\['a\.md'\]"):
        shown_outputs.main()
