"""The entry point: heartcut's own modules are found first, whatever else has their names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import heartcut_main
from tests.support.commands import ROOT, Finished
from tests.support.image_folders import save_folder


def entered(*arguments: str, folder: Path, **environment: str) -> Finished:
    """Run the entry point in a folder that comes first on the search path."""
    paths = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "heartcut_main", *arguments],
        cwd=folder,
        env={**os.environ, **paths, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    return Finished(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.fixture
def own_modules(tmp_path):
    """A folder with somebody's own modules of the same names, as files and as packages."""
    for name in ("cli", "stages"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('of another project')")
    for name in ("commands", "pipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('of another project')")
    return tmp_path


def test_the_names_are_those_of_the_product():
    found = {path.stem for path in ROOT.glob("*.py")} | {
        path.parent.name for path in ROOT.glob("*/__init__.py")
    }
    assert set(heartcut_main.OWN) == found - {"heartcut_main", "tests", "benchmarks", "scripts"}


def test_modules_of_other_projects_do_not_take_the_place_of_our_own(own_modules):
    assert entered("--version", folder=own_modules).out.startswith("heartcut ")
    done = entered("methods", folder=own_modules)  # imports stages and pipeline
    assert (done.code, done.err) == (0, "")


def test_the_ranks_of_launch_find_our_own_modules_too(own_modules):
    done = entered("launch", "--processes", "1", "prepare", "none.toml", folder=own_modules)
    assert done.code == 1
    assert done.err.startswith("error: none.toml does not exist.")


def test_a_network_of_ones_own_is_still_found(own_modules):
    (own_modules / "nets.py").write_text("from torch import nn\ndef make(num_classes): return 3\n")
    code = (
        "import heartcut_main; heartcut_main.find_own_modules()\n"
        "from pipeline.models.foreign_networks import foreign_network\n"
        "foreign_network('nets:make', num_classes=2)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=own_modules,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "nets:make returned a int (expected a torch.nn.Module)" in done.stderr


def test_names_with_umlauts_are_the_same_in_an_ascii_locale(tmp_path):
    """The file's comment, the folders and the classes are not ASCII; the locale is."""
    image_root = save_folder(tmp_path / "Bilder größer", train=12)
    for split in ("train", "test"):
        first = min((image_root / split).iterdir())
        first.rename(first.with_name("Käfer"))
    text = '# Größe\nworkspace = "{}"\n[prepare]\nsource = "folder"\npath = "Bilder größer"\n'
    written = []
    for locale in ({}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        workspace = f"wörk{len(written)}"
        (tmp_path / "c.toml").write_text(text.format(workspace), encoding="utf-8")
        done = entered("prepare", "c.toml", folder=tmp_path, **locale)
        assert (done.code, done.out) == (0, f"{workspace}/data\n"), done
        written.append((tmp_path / workspace / "data" / "dataset.json").read_bytes())
    assert written[0] == written[1]


def test_the_backend_of_a_notebook_is_not_imported():
    """`!heartcut report` in Jupyter and Colab, whose kernels export it to their children."""
    code = (
        "import cli\n"
        "def command():\n"
        "    import stages.report.svg_charts, matplotlib\n"
        "    print(matplotlib.get_backend())\n"
        "cli._command = command; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "MPLBACKEND": "module://of_a_notebook.backend"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip().lower()) == (0, "agg"), done.stderr
