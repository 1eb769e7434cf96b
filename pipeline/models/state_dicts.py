"""The weights of one network in the content of a checkpoint: bare, or in a container.

A container may be under any key, and one level deeper. Dicts that hold no network are left out:
optimisers, and dicts of single numbers. Of several networks the plain weights are chosen before a
moving average of them, and an average only where it is alone. Anything else needs the key.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from pipeline.errors import ArtefactMismatch
from pipeline.models.checkpoint_files import printable

logger = logging.getLogger(__name__)

CONTAINERS = ("state_dict", "model", "model_state_dict")
"""The usual keys, which come before all others."""
KEY = "cache_teacher.checkpoint_key"
_AVERAGES = re.compile(r"(?:^|[._-])(?:ema|swa)(?:$|[._-])|[a-z]E(?:MA|ma)|averag|shadow", re.ASCII)
_NO_NETWORKS = re.compile(r"optim|sched|scaler|(?:^|[._-])amp(?:$|[._-])", re.IGNORECASE)
_DEPTH = 2


def state_dict_of(content: object, path: Path, *, key: str = "") -> dict[str, Tensor]:
    """Choose the state dict of one network in the content of a checkpoint.

    Args:
        content: content of the file.
        path: path of the file, for messages.
        key: key of the state dict, with dots between levels, or the first part of the network's
            names; empty: choose as the module describes.

    Raises:
        ArtefactMismatch: if there is none, or several and no rule chooses.
    """
    found = {"": content} if is_state_dict(content) else dict(_networks(content))
    found = found or _beside_values(content)
    if key:
        return _named(found, path, key)
    if not found:
        raise ArtefactMismatch(
            f"{path} is not a checkpoint of one network: 0 state dicts in {summary(content)} "
            "(expected a dict of named dense tensors, bare or in a dict). Save model.state_dict()."
        )
    chosen = _chosen(found)
    if chosen is None:
        raise ArtefactMismatch(
            f"{path} is not a checkpoint of one network: {len(found)} state dicts in "
            f"{summary(content)}, under {_listed(found)} (expected one). Choose one, such as "
            f'`{KEY} = "{printable(next(iter(found)))}"`.'
        )
    if len(found) > 1:
        others = {name: state for name, state in found.items() if name != chosen}
        logger.info(
            '%s holds %d networks: "%s" is loaded; to load another one, set `%s = "%s"`',
            *(path, len(found), printable(chosen), KEY, printable(next(iter(others)))),
        )
    return found[chosen]


def _beside_values(content: object) -> dict[str, dict[str, Tensor]]:
    """A bare state dict with other values between its weights, such as an epoch."""
    if not isinstance(content, dict):
        return {}
    weights = {name: value for name, value in _items(content) if is_dense(value)}
    return {"": weights} if any(value.ndim > 1 for value in weights.values()) else {}


def _chosen(found: Mapping[str, dict[str, Tensor]]) -> str | None:
    """Key of the network to load; None if no rule chooses one."""
    plain = [name for name in found if not is_average(name)]
    usual = [name for name in plain if name in CONTAINERS]
    return next((names[0] for names in (list(found), usual, plain) if len(names) == 1), None)


def _named(found: Mapping[str, dict[str, Tensor]], path: Path, key: str) -> dict[str, Tensor]:
    """The state dict under a key, or the part of one whose names begin with it."""
    if key in found:
        return found[key]
    start = f"{key}."
    parts = [
        part
        for state in found.values()
        if (part := {n.removeprefix(start): w for n, w in state.items() if n.startswith(start)})
    ]
    if len(parts) != 1:
        first = [printable(name) for state in found.values() for name in state][:3]
        raise ArtefactMismatch(
            f"{path} has {len(parts)} networks {key!r} (expected one; its keys are "
            f"{_listed(found)}, its first names {', '.join(first) or 'none'}). Correct `{KEY}`."
        )
    return parts[0]


def _networks(
    content: object, *, above: str = "", depth: int = 1
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Networks by their keys within containers."""
    for key, value in _items(content):
        name = f"{above}{key}"
        if _NO_NETWORKS.search(key):
            continue
        if is_state_dict(value):
            if key in CONTAINERS or any(tensor.ndim > 1 for tensor in value.values()):
                yield name, value
        elif depth < _DEPTH:
            yield from _networks(value, above=f"{name}.", depth=depth + 1)


def _items(content: object) -> Iterator[tuple[str, object]]:
    if isinstance(content, dict):
        yield from ((key, value) for key, value in content.items() if isinstance(key, str))
    elif isinstance(content, list | tuple):
        yield from ((str(number), value) for number, value in enumerate(content))


def is_average(name: str) -> bool:
    """True for a key, or a part of a name, that names a moving average of the weights."""
    return _AVERAGES.search(name) is not None


def is_state_dict(content: object) -> TypeGuard[dict[str, Tensor]]:
    """True for a non-empty dict of dense tensors by name."""
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(key, str) and is_dense(value) for key, value in content.items())
    )


def is_dense(value: object) -> TypeGuard[Tensor]:
    """True for a tensor with plain numbers in memory: not sparse, quantised or meta."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def summary(content: object) -> str:
    """Describe unexpected content by its type and first keys."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    keys = ", ".join(printable(str(key)) for key in list(content)[:3])
    return f"a dict of {len(content)} keys ({keys})" if content else "an empty dict"


def _listed(found: Mapping[str, object]) -> str:
    names = [f'"{printable(name)}"' for name in found]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
