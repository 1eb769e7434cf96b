"""Networks by name from elsewhere: torchvision:NAME, timm:NAME, package.module:callable.

All have fresh weights; nothing is downloaded. The callable of a package.module:callable returns the
network for `num_classes`. Its module is imported, and so run, from the current folder or else from
the installed packages.
"""

import importlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

from torch import nn

from pipeline.errors import ConfigError

TORCHVISION, TIMM = "torchvision", "timm"
_OWN = ("cli", "commands", "pipeline", "stages")
"""Names of heartcut's own modules, which are found first."""
_REGISTERED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def foreign_network(arch: str, *, num_classes: int) -> nn.Module:
    """The network of ``source:name``, freshly initialised from torch's global seed.

    Raises:
        ConfigError: if the package or the name is unknown, or the result is not a network.
    """
    source, _, name = arch.partition(":")
    if source == TORCHVISION:
        return _from_torchvision(name, num_classes=num_classes)
    if source == TIMM:
        return _from_timm(name, num_classes=num_classes)
    return _own(arch, num_classes=num_classes)


def _from_torchvision(name: str, *, num_classes: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)  # only classifiers of images
    if name not in known:
        raise ConfigError(_unknown(TORCHVISION, name, known))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about a change of initial weights
        network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    return network


def _from_timm(name: str, *, num_classes: int) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"arch is 'timm:{name}' and timm is not installed (expected the optional package). "
            "Install it with `pip install timm` into the environment of heartcut."
        ) from error
    if not timm.is_model(name):
        raise ConfigError(_unknown(TIMM, name, timm.list_models()))
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
    return network


def _own(arch: str, *, num_classes: int) -> nn.Module:
    make = _callable(arch)
    try:
        inspect.signature(make).bind(num_classes=num_classes)
    except TypeError as error:
        raise ConfigError(
            f"{arch} cannot be called with num_classes: {error} (expected a callable that takes "
            "num_classes=... and needs nothing else). Give its other arguments defaults."
        ) from error
    network = make(num_classes=num_classes)
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"{arch} returned a {type(network).__name__} (expected a torch.nn.Module). Return the "
            "network."
        )
    return network


def _callable(arch: str) -> Callable[..., object]:
    module_name, _, name = arch.partition(":")
    found = getattr(_module(arch, module_name), name, None)
    if not callable(found):
        what = "has no such name" if found is None else f"is of type {type(found).__name__}"
        raise ConfigError(
            f"{arch} cannot be called: {module_name} {what} (expected a function or class that "
            "makes the network). Correct arch, as package.module:callable."
        )
    made: Callable[..., object] = found
    return made


def _module(arch: str, name: str) -> object:
    """Import a module; the current folder is searched first."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError, TypeError) as error:
        remedy = "Correct arch, as package.module:callable."
        if name.partition(".")[0] in _OWN:
            remedy = f"Rename it: {name.partition('.')[0]} is a package of heartcut itself."
        raise ConfigError(
            f"{arch} cannot be imported: {error} (expected a module {name!r} that is installed or "
            f"is in {here}). {remedy}"
        ) from error


def _unknown(source: str, name: str, known: list[str]) -> str:
    close = spelt_alike(name, known) or get_close_matches(name, known)
    advice = f"Did you mean {' or '.join(close)}?" if close else "Choose one of them."
    return (
        f"{source} has no network {name!r} (expected one of the {len(known):,} in "
        f"{source}'s list_models()). {advice}"
    )


def spelt_alike(name: str, known: Iterable[str]) -> list[str]:
    """Names that differ from ``name`` in case, hyphens and underscores at most."""
    return [other for other in known if _bare(other) == _bare(name)]


def suggestions(name: str) -> list[str]:
    """Networks of torchvision and timm under this name, as `build` takes them.

    The packages' sources are searched, because importing them takes seconds.
    """
    return [
        f"{source}:{known}"
        for source in (TORCHVISION, TIMM)
        for known in spelt_alike(name, _registered(source))
    ]


def _registered(source: str) -> Iterator[str]:
    """Names of the networks in the sources of a package; none if it is not installed."""
    spec = importlib.util.find_spec(source)
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder, "models").glob("*.py")):
            yield from _REGISTERED.findall(file.read_text(encoding="utf-8", errors="replace"))


def _bare(name: str) -> str:
    return re.sub(r"[-_\s]", "", name).casefold()
