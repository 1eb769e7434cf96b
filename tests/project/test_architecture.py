"""The layering is a rule, so it is a test: each check loops over all modules, lists offenders."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("pipeline", "stages", "commands", "cli", "heartcut_main")
GROUND = {"pipeline.errors", "pipeline.provenance"}
"""Modules that every other module may import."""
PIPELINE = {
    "pipeline.runtime": set(),
    "pipeline.methods": set(),
    "pipeline.models": set(),
    "pipeline.artefacts": {"pipeline.methods", "pipeline.runtime"},
    "pipeline.data": {"pipeline.artefacts", "pipeline.methods", "pipeline.runtime"},
    "pipeline.training": {
        "pipeline.data",
        "pipeline.methods",
        "pipeline.models",
        "pipeline.runtime",
    },
    "pipeline.teacher": {
        "pipeline.artefacts",
        "pipeline.data",
        "pipeline.methods",
        "pipeline.models",
        "pipeline.runtime",
    },
    "pipeline.influence": {"pipeline.artefacts", "pipeline.methods", "pipeline.runtime"},
}
ARROWS = {
    **PIPELINE,
    "stages": set(PIPELINE),
    "commands": {"stages", "pipeline.runtime"},  # a command joins its ranks before its stage
    "cli": {"commands", "stages"},
    "heartcut_main": {"cli"},
}
"""Package -> packages that it may import, apart from itself and the ground."""
INSIDE_ARTEFACTS = {
    "objects": {"publishing"},
    "cache": {"objects", "publishing", "records", "dataset", "zarr_arrays", "zarr_store"},
}
"""Part of pipeline.artefacts -> parts that it may import; none of the others imports the cache."""
INSIDE_STAGES = {
    "config": set(),
    "views": {"config"},
    "text": set(),
    "methods": {"text"},
    "prepare": {"config", "text"},
    "identities": {"config", "views"},
    "caches": {"config", "identities"},
    "teacher": {"config", "identities", "views"},
    "run_groups": {"config"},
    "selection": {"caches", "config", "identities", "text"},
    "training": {"caches", "config", "text", "views"},
    "cache": {"caches", "config", "teacher", "text", "views"},
    "show": {"cache", "caches", "config", "run_groups", "selection", "text"},
    "report": {"config", "run_groups", "selection", "text", "training"},
}
"""Part of stages -> parts that it may import; what runs other commands is not listed."""
MANY_PARAMETERS = {
    "pipeline/data/loaders.py __init__": "like torch's DataLoader",
    "pipeline/training/learner.py __init__": "the parts of a step, which are built apart",
    "pipeline/training/rank_batch_norm.py joint_batch_norm": "the signature of torch's batch_norm",
    "pipeline/training/rank_batch_norm.py forward": "the signature of a torch function",
    "pipeline/methods/distillation.py distillation_loss": "the symbols of the equation",
    "pipeline/methods/logit_distillation.py dkd_rows": "the symbols of the equation",
    "pipeline/data/replay_kernel.py replay_stored": "a compiled kernel takes arrays and numbers",
    "cli.py select": "each option of a command is a parameter",
    "cli.py train_student": "each option of a command is a parameter",
    "commands/runs.py report": "each option of a command is a parameter",
    "commands/cache.py estimate": "each option of a command is a parameter",
}
"""Functions with more than five parameters, and the reason."""
METHODS_MAY_USE = {
    "torch",
    "numpy",
    "scipy",
    "math",
    "dataclasses",
    "typing",
    "collections",
    "pipeline",
}
TOO_MANY_MODULES = 21


@dataclass(frozen=True)
class Import:
    """One name that a module imports from another one."""

    importer: str
    line: int
    module: str
    """The module that the name is of; for a name of the product, the module that defines it."""
    name: str

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.name} of {self.module}"


def paths() -> list[Path]:
    """Every module of the product."""
    folders = [path for name in PRODUCT for path in ROOT.glob(f"{name}/**/*.py")]
    return sorted([*folders, ROOT / "cli.py", ROOT / "heartcut_main.py"])


def name_of(path: Path) -> str:
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return dotted.removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports_of(path: Path, modules: frozenset[str]) -> Iterator[Import]:
    """Every import of a module, at any depth of its code."""
    own = name_of(path)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                module = whole if whole in modules else str(node.module)
                yield Import(own, node.lineno, module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(own, node.lineno, alias.name, alias.name)


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    modules = frozenset(map(name_of, paths()))
    return [found for path in paths() for found in imports_of(path, modules)]


def of_product(found: Import) -> bool:
    return found.module.partition(".")[0] in PRODUCT


def package_of(module: str) -> str:
    """The package of the table that a module is in."""
    known = [name for name in ARROWS if f"{module}.".startswith(f"{name}.")]
    return known[0] if known else module


def test_imports_follow_the_arrows(imports):
    offenders = [
        found
        for found in filter(of_product, imports)
        if found.module not in GROUND
        and package_of(found.module) != package_of(found.importer)
        and package_of(found.module) not in ARROWS.get(package_of(found.importer), set())
    ]
    assert not offenders, "\n".join(map(str, offenders))


def test_only_errors_and_provenance_are_loose_in_the_pipeline():
    loose = {name_of(path) for path in ROOT.glob("pipeline/*.py")} - {"pipeline"}
    assert loose == GROUND
    assert not ARROWS.keys() - {package_of(name_of(path)) for path in paths()}


def test_formats_do_not_know_the_cache_and_objects_know_no_format(imports):
    def part(module: str) -> str:
        return module.removeprefix("pipeline.artefacts.").partition(".")[0]

    offenders = [
        found
        for found in imports
        if all(name.startswith("pipeline.artefacts.") for name in (found.importer, found.module))
        and part(found.module) != part(found.importer)
        and part(found.module)
        not in INSIDE_ARTEFACTS.get(part(found.importer), {part(found.module)} - {"cache"})
    ]
    assert not offenders, "\n".join(map(str, offenders))


def test_parts_of_stages_follow_their_arrows(imports):
    def part(module: str) -> str:
        return module.removeprefix("stages.").partition(".")[0]

    offenders = [
        found
        for found in imports
        if all(name.startswith("stages.") for name in (found.importer, found.module))
        and part(found.importer) in INSIDE_STAGES
        and part(found.module) not in {part(found.importer), *INSIDE_STAGES[part(found.importer)]}
    ]
    assert not offenders, "\n".join(map(str, offenders))


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """The nodes of a graph that can be reached from themselves."""
    reached = {node: set(targets) for node, targets in arrows.items()}
    for middle in arrows:
        for targets in reached.values():
            if middle in targets:
                targets |= reached[middle]
    return sorted(node for node, targets in reached.items() if node in targets)


def room_of(module: str) -> str:
    """The folder of a module; the modules at the top of stages are rooms of their own."""
    parts = module.split(".")
    if parts[0] == "stages":
        return ".".join(parts[:2])
    return ".".join(parts[:-1]) if (ROOT / Path(*parts)).with_suffix(".py").exists() else module


@pytest.mark.parametrize("level", [str, room_of, package_of], ids=["module", "folder", "package"])
def test_no_circle_of_imports(imports, level):
    arrows: dict[str, set[str]] = {level(name_of(path)): set() for path in paths()}
    for found in filter(of_product, imports):
        if level(found.importer) != level(found.module):
            arrows[level(found.importer)].add(level(found.module))
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circles(arrows) == []


def defined_in(tree: ast.Module) -> set[str]:
    """Names that a module defines at its top."""
    defined = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (name for target in targets for name in ast.walk(target))
            defined |= {name.id for name in names if isinstance(name, ast.Name)}
    return defined


def test_a_name_is_imported_from_the_module_that_defines_it(imports):
    sources = {name_of(path): tree_of(path) for path in paths()}
    from_ffcv = {"pipeline.data.ffcv_compat"}  # the one module that imports ffcv, for all others
    offenders = [
        found
        for found in imports
        if found.module in sources.keys() - from_ffcv
        and found.name != found.module.rpartition(".")[2]
        and found.name not in defined_in(sources[found.module])
    ]
    offenders += [
        f"{name} has __all__"
        for name, tree in sources.items()
        if "__all__" in defined_in(tree) and name not in from_ffcv
    ]
    assert not offenders, "\n".join(map(str, offenders))


def test_every_third_party_import_is_declared(imports):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]["timm"]
    declared = {
        line.replace("_", "-").lower().split("[")[0].split("=")[0].split(">")[0].strip()
        for line in [*project["dependencies"], *optional]
    }
    owners = packages_distributions()
    offenders = []
    for found in imports:
        top = found.module.partition(".")[0]
        if top in PRODUCT or top in sys.stdlib_module_names:
            continue
        names = {name.replace("_", "-").lower() for name in owners.get(top, [top])}
        if not names & declared:
            offenders.append(found)
    assert not offenders, "\n".join(map(str, offenders))


def test_zarr_is_imported_by_the_product(imports):
    """The product declares zarr because it writes and reads caches by it."""
    assert any(found.module.partition(".")[0] == "zarr" for found in imports)


def test_methods_are_pure_tensor_code(imports):
    offenders = [
        found
        for found in imports
        if package_of(found.importer) == "pipeline.methods"
        and found.module.partition(".")[0] not in METHODS_MAY_USE
    ]
    assert not offenders, "\n".join(map(str, offenders))


def test_only_one_module_imports_ffcv(imports):
    users = {found.importer for found in imports if found.module.partition(".")[0] == "ffcv"}
    assert users == {"pipeline.data.ffcv_compat"}


def test_nothing_is_unpickled():
    forbidden = ("pickle.load", "allow_pickle=True", "weights_only=False")
    offenders = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in paths()
        for text in forbidden
        if text in path.read_text()
    ]
    assert not offenders, "\n".join(offenders)


def test_a_configuration_is_read_without_torch(imports):
    heavy = {"torch", "zarr", "ffcv", "pandas"}
    offenders = [
        found
        for found in imports
        if found.importer.startswith("stages.config.") and found.module.partition(".")[0] in heavy
    ]
    assert not offenders, "\n".join(map(str, offenders))


def test_test_modules_share_helpers_by_the_support_package():
    offenders = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {node.module}"
        for path in sorted(ROOT.glob("tests/**/*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").rpartition(".")[2].startswith("test_")
    ]
    assert not offenders, "\n".join(offenders)


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in paths():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def length_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_short():
    lengths = sorted((length_of(node), where) for where, node in functions())
    assert lengths[len(lengths) // 2][0] <= 8
    assert lengths[int(0.9 * len(lengths))][0] <= 25
    assert not [where for length, where in lengths if length > 60]


def test_functions_take_at_most_five_parameters():
    def count(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        all_of_them = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return len([one for one in all_of_them if one.arg not in ("self", "cls", "ctx")])

    found = {
        f"{where.partition(':')[0]} {node.name}" for where, node in functions() if count(node) > 5
    }
    assert found <= MANY_PARAMETERS.keys()


def test_data_of_packages_are_installed_with_them():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package, patterns in tools["package-data"].items():
        folder = ROOT / Path(*package.split("."))
        assert (folder / "__init__.py").exists()
        assert all(list(folder.glob(pattern)) for pattern in patterns)


def test_folders_and_files_are_of_a_size_that_can_be_read():
    folders: dict[Path, int] = {}
    for path in [*paths(), *ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        folders[path.parent] = folders.get(path.parent, 0) + 1
    assert not [str(folder) for folder, count in folders.items() if count >= TOO_MANY_MODULES]
    assert not [str(path) for path in paths() if len(path.read_text().splitlines()) >= 400]
    assert len(list(ROOT.glob("stages/*.py"))) <= 15
