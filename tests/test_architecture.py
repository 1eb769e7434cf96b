"""The layering is a rule, so it is a test."""

import ast
from functools import cache
from pathlib import Path

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


@cache
def modules() -> list[Path]:
    """Every module of the product."""
    paths = {path for layer in ("pipeline", "stages") for path in ROOT.glob(f"{layer}/**/*.py")}
    return sorted(path.relative_to(ROOT) for path in paths)


@cache
def imported_names(path: Path) -> frozenset[str]:
    """Dotted names of everything that ``path`` imports, at any depth of the code."""
    nodes = list(ast.walk(ast.parse((ROOT / path).read_text())))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return frozenset(names)


def layer_of(path: Path) -> str:
    """The most specific layer that ``path`` lies in."""
    return max((layer for layer in LAYERS if path.is_relative_to(layer)), key=len)


def test_imports_point_one_way():
    offenders = {
        (str(path), name)
        for path in modules()
        for name in imported_names(path)
        if name.partition(".")[0] in {"cli", "stages", "pipeline", "tests", "benchmarks"}
        and not any(f"{name}.".startswith(f"{ok}.") for ok in LAYERS[layer_of(path)])
    }
    assert not offenders


def test_methods_are_pure_tensor_code():
    offenders = {
        (str(path), name)
        for path in modules()
        if layer_of(path) == "pipeline/methods"
        for name in imported_names(path)
        if name.partition(".")[0] not in METHODS_MAY_USE
    }
    assert not offenders


def test_only_the_data_layer_touches_ffcv():
    offenders = {
        str(path)
        for path in modules()
        if path.parent != Path("pipeline/data")
        and any(name.partition(".")[0] == "ffcv" for name in imported_names(path))
    }
    assert not offenders


def test_nothing_is_unpickled():
    unpickling = ("pickle.load", "allow_pickle=True", "weights_only=False")
    offenders = {
        (str(path), call)
        for path in modules()
        for call in unpickling
        if call in (ROOT / path).read_text()
    }
    assert not offenders


def test_no_test_module_imports_another_test_module():
    """Code that several of them need belongs to tests/support."""
    offenders = {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / "tests").rglob("*.py")
        for name in imported_names(path)
        if name.startswith("tests.") and any(part.startswith("test_") for part in name.split("."))
    }
    assert not offenders


def test_configs_import_without_torch():
    names = imported_names(Path("stages/config/root.py"))
    assert not {name.partition(".")[0] for name in names} & {"torch", "zarr", "ffcv", "pandas"}
