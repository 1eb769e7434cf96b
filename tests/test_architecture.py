"""The layering is a rule, so it is a test."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "pipeline/methods": {"pipeline.methods"},
    "pipeline/models": {"pipeline.models", "pipeline.errors", "pipeline.provenance"},
    "pipeline/artefacts": {
        "pipeline.artefacts",
        "pipeline.errors",
        "pipeline.methods",
        "pipeline.runtime.read_ahead",
        "pipeline.runtime.progress",
        "pipeline.provenance",
        "pipeline.runtime.device",
    },
    "pipeline": {"pipeline"},
    "stages": {"pipeline", "stages"},
}
METHODS_MAY_USE = {
    "collections",
    "dataclasses",
    "math",
    "numpy",
    "pipeline",
    "scipy",
    "torch",
    "typing",
}


def modules() -> list[Path]:
    paths = {path for layer in ("pipeline", "stages") for path in ROOT.glob(f"{layer}/**/*.py")}
    return sorted(path.relative_to(ROOT) for path in paths)


def imported_names(path: Path) -> set[str]:
    """Dotted names of every module that ``path`` imports, at any depth of the code."""
    nodes = list(ast.walk(ast.parse((ROOT / path).read_text())))
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names


def layer_of(path: Path) -> str:
    """The most specific layer that ``path`` lies in."""
    return max((layer for layer in LAYERS if path.is_relative_to(layer)), key=len)


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_point_one_way(path):
    project = {
        name
        for name in imported_names(path)
        if name.partition(".")[0] in {"cli", "stages", "pipeline", "tests", "benchmarks"}
    }
    allowed = LAYERS[layer_of(path)]
    strangers = {
        name for name in project if not any(f"{name}.".startswith(f"{ok}.") for ok in allowed)
    }
    assert not strangers


@pytest.mark.parametrize("path", modules(), ids=str)
def test_methods_are_pure_tensor_code(path):
    if layer_of(path) == "pipeline/methods":
        assert {name.partition(".")[0] for name in imported_names(path)} <= METHODS_MAY_USE


@pytest.mark.parametrize("path", modules(), ids=str)
def test_only_the_data_layer_touches_ffcv(path):
    uses_ffcv = any(name.partition(".")[0] == "ffcv" for name in imported_names(path))
    assert not uses_ffcv or path.parent == Path("pipeline/data")


@pytest.mark.parametrize("path", modules(), ids=str)
def test_nothing_is_unpickled(path):
    source = (ROOT / path).read_text()
    assert "pickle.load" not in source
    assert "allow_pickle=True" not in source
    assert "weights_only=False" not in source


def test_configs_import_without_torch():
    names = imported_names(Path("stages/config/root.py"))
    assert not {name.partition(".")[0] for name in names} & {"torch", "zarr", "ffcv", "pandas"}
