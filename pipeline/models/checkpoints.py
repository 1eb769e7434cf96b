"""Checkpoints: the weights of a network, read from the files of the field and checked.

    safetensors         names and tensors, as `save_weights` writes them
    torch.save          a state dict, bare or in a container (`state_dicts`)

Files are untrusted: pickled code is rejected and never run (`checkpoint_files`). Names lose the
prefixes that wrappers add ("module.", "_orig_mod."). If a file holds a whole distiller, as
mdistiller saves under `latest` and `best`, only the student is loaded: the names that begin with
"student.". Nothing is guessed: names may lose or gain one more prefix only where the weights then
fit the architecture exactly, and all other weights are rejected.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import ArtefactMismatch
from pipeline.models.checkpoint_files import printable, read_checkpoint
from pipeline.models.networks.classifier import Classifier
from pipeline.models.state_dicts import KEY, is_average, state_dict_of

logger = logging.getLogger(__name__)

WRAPPERS = r"(?:module|_orig_mod)\."
WRAPPER_PREFIXES = re.compile(rf"^(?:{WRAPPERS})+")
INNER_WRAPPERS = re.compile(rf"(?<![^.]){WRAPPERS}")
STUDENT = "student."
BATCH_COUNTER = "num_batches_tracked"
"""Batch counter of batch normalisation, which checkpoints from before torch 0.4.1 lack."""
COUNTS = ("total_ops", "total_params", "n_averaged")
"""Buffers of profilers and of averaging, which do not change what a network computes."""

Weights = Mapping[str, Tensor]


def load_weights(path: Path, *, key: str = "") -> dict[str, Tensor]:
    """Read a checkpoint as finite dense CPU tensors by name, wrapper prefixes stripped.

    Args:
        path: the file.
        key: key of the state dict, for files with several networks; see `state_dict_of`.

    Raises:
        ArtefactNotFound: if there is no such file.
        ArtefactMismatch: if it is damaged, or holds pickled code or values that are not finite.
    """
    state = state_dict_of(read_checkpoint(path), path, key=key)
    kept = [name for name in state if plain_name(name).startswith(STUDENT)] or list(state)
    weights = {plain_name(plain_name(key).removeprefix(STUDENT)): state[key] for key in kept}
    if len(weights) < len(kept):
        raise ArtefactMismatch(
            f"{path} is ambiguous: {len(kept)} names, of which {len(weights)} differ beyond "
            "module. and _orig_mod. (expected all). Save the state dict of the bare model."
        )
    broken = [key for key, value in weights.items() if not is_finite(value)]
    if broken:
        raise ArtefactMismatch(
            f"{path} is damaged: {len(broken)} of {len(weights)} tensors hold NaN or infinity, "
            f"first {printable(broken[0])} (expected finite float32). Download or train it again."
        )
    return {key: value.detach() for key, value in weights.items()}


def load_into(model: Classifier, weights: Weights, *, source: Path) -> dict[str, Tensor]:
    """Copy weights into the model, all or none; names and shapes must agree exactly.

    One more prefix of all names does not count as a difference, neither do wrappers within names.
    Counters that do not change what a network computes may be missing, added or of another kind.

    Args:
        model: the network to load into.
        weights: result of `load_weights`.
        source: path of the checkpoint, for messages.

    Returns:
        The loaded weights, under the names of the model.

    Raises:
        ArtefactMismatch: if a key is missing, unexpected or of another shape or kind.
    """
    own = model.state_dict()
    expected = {key: value for key, value in own.items() if not is_batch_counter(key)}
    weights = {key: value for key, value in weights.items() if key in own or not is_count(key)}
    named = [dict(weights), *renamed(weights, expected)]
    fitting = [w for w in named if not differing_keys(w, expected)]
    if not fitting:
        best = max(named, key=lambda w: sum(are_alike(w.get(k), v) for k, v in expected.items()))
        raise ArtefactMismatch(misfit(model, best, source=source))
    fitted = one_of(fitting, weights, source=source)
    if len(fitted) < len(weights):
        logger.info(
            "%s: %d of %d tensors belong to %s and are loaded, the others are left out",
            *(source, len(fitted), len(weights), model.arch),
        )
    counters = {key: value for key, value in fitted.items() if is_batch_counter(key)}
    unlike = {key for key, value in counters.items() if not are_alike(value, own.get(key))}
    fitted = {key: value for key, value in fitted.items() if key not in unlike}
    model.load_state_dict(fitted, strict=False)
    return fitted


def renamed(weights: Weights, expected: Weights) -> Iterator[dict[str, Tensor]]:
    """The weights with other prefixes: without wrappers, with one prefix less, or with one more."""
    bare = {INNER_WRAPPERS.sub("", name): value for name, value in weights.items()}
    if len(bare) == len(weights):
        if bare.keys() != weights.keys():
            yield bare
        weights = bare
    for start in sorted(prefixes(weights), key=len):
        yield {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}
    for start in sorted(prefixes(expected), key=len):
        if all(name.startswith(start) for name in expected):
            yield {start + name: value for name, value in weights.items()}


def prefixes(weights: Weights) -> list[str]:
    """All first parts of names with their last dot, in the order of the names."""
    parts = (n[: at + 1] for n in weights for at, letter in enumerate(n) if letter == ".")
    return list(dict.fromkeys(parts))


def one_of(
    fitting: list[dict[str, Tensor]], weights: Weights, *, source: Path
) -> dict[str, Tensor]:
    """The only fitting part of the weights, or the only one that is not a moving average.

    Raises:
        ArtefactMismatch: if there are several.
    """
    if len(fitting) > 1 and len(fitting[0]) < len(weights):
        names = {id(value): name for name, value in weights.items()}
        firsts = [names[id(next(iter(state.values())))] for state in fitting]
        plain = [s for s, name in zip(fitting, firsts, strict=True) if not is_average(name)]
        if len(plain) != 1:
            raise ArtefactMismatch(
                f"{source} holds {len(fitting)} networks that fit, beginning with the names "
                f"{', '.join(map(printable, firsts[:4]))} (expected one). Set `{KEY}` to the first "
                "part of the names of one."
            )
        return plain[0]
    return fitting[0]


def differing_keys(weights: Weights, expected: Weights, *, counters: bool = False) -> list[str]:
    """Names that are missing, unexpected or of another shape or kind.

    Batch counters are never compared; those on one side only are listed if ``counters``.
    """

    def differs(name: str) -> bool:
        if is_batch_counter(name):
            return counters and (name in weights) != (name in expected)
        return not are_alike(weights.get(name), expected.get(name))

    return [name for name in dict.fromkeys([*expected, *weights]) if differs(name)]


def save_weights(model: Classifier, path: Path) -> None:
    """Write the model's weights as safetensors; equal weights give equal files."""
    weights = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    described = {"arch": model.arch, "num_classes": model.head.out_features}
    # One entry only: safetensors writes several in a random order.
    data = safetensors.torch.save(weights, metadata={"heartcut": json.dumps(described)})
    path.write_bytes(data)  # raises OSError if the disk is full, unlike safetensors' own writer


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256, hex, over the name, dtype, shape and bytes of every tensor, sorted by name.

    File format, key order, memory format, device and wrapper prefixes do not change it. Batch
    counters are left out: they do not change what a network computes, and old files lack them.
    """
    digest = hashlib.sha256()
    for name, key in sorted((plain_name(key), key) for key in weights):
        if not is_batch_counter(name):
            tensor = weights[key].detach().cpu().contiguous()
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_finite(tensor: Tensor) -> bool:
    """True if all numbers are finite in float32, the type of the networks."""
    return not tensor.is_floating_point() or bool(tensor.float().isfinite().all())


def is_batch_counter(key: str) -> bool:
    return key.rpartition(".")[2] == BATCH_COUNTER


def is_count(key: str) -> bool:
    return key.rpartition(".")[2] in COUNTS


def plain_name(key: str) -> str:
    """The name without the prefixes of DistributedDataParallel and torch.compile."""
    return WRAPPER_PREFIXES.sub("", key)


def are_alike(found: Tensor | None, wanted: Tensor | None) -> bool:
    """True if both exist, with the same shape and both or neither floating point."""
    return (
        found is not None
        and wanted is not None
        and found.shape == wanted.shape
        and found.is_floating_point() == wanted.is_floating_point()
    )


def misfit(model: Classifier, weights: Weights, *, source: Path) -> str:
    """Message with the number of differing keys and three of them, or with the class counts."""
    has_counters = any(is_batch_counter(key) for key in weights)
    expected = {
        k: v for k, v in model.state_dict().items() if has_counters or not is_batch_counter(k)
    }
    differing = differing_keys(weights, expected, counters=True)
    head = next(name for name, module in model.named_modules() if module is model.head)
    head_keys = {f"{head}.weight", f"{head}.bias"}
    num_classes = classes_of(weights, head, in_features=model.head.in_features)
    wanted = model.head.out_features
    sentences = []
    if num_classes not in (None, wanted):
        differing = [key for key in differing if key not in head_keys]
        sentences = [f"{source} has a head for {num_classes} classes (expected {wanted})."]
    if differing:
        num_keys = len(expected.keys() | weights.keys())
        shown = "; ".join(difference(key, weights, expected) for key in differing[:3])
        sentences += [
            f"{source} does not fit {model.arch} in {len(differing)} of {num_keys} keys: {shown}.",
            *_names_of_the_file(weights, expected, differing[:3]),
            "Set the architecture that it was trained with.",
        ]
    else:
        one_more = "often one more is a background class; " if num_classes == wanted + 1 else ""
        sentences += [
            f"Set `cache_teacher.num_classes = {num_classes}` and map your classes to the head's "
            f"by `cache_teacher.class_names` or `cache_teacher.class_map` ({one_more}see "
            "docs/models.md), or pass the checkpoint of a model trained on these classes."
        ]
    return " ".join(sentences)


def _names_of_the_file(weights: Weights, expected: Weights, shown: list[str]) -> list[str]:
    """A sentence with the first unexpected names of the file, unless such a name was shown."""
    unexpected = [name for name in weights if name not in expected and not is_batch_counter(name)]
    if not unexpected or not set(unexpected).isdisjoint(shown):
        return []
    names = ", ".join(printable(name) for name in unexpected[:3])
    return [f"Names of the file that the network lacks begin with {names}."]


def classes_of(weights: Mapping[str, Tensor], head: str, *, in_features: int) -> int | None:
    """Number of classes of the checkpoint's head; None if it does not fit these features."""
    weight, bias = weights.get(f"{head}.weight"), weights.get(f"{head}.bias")
    if weight is None or bias is None or bias.ndim != 1:
        return None
    return len(bias) if weight.shape == (len(bias), in_features) else None


def difference(key: str, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Describe the fault of one key: ``bn1.bias is missing (expected [16] float32)``."""
    found = kind(weights[key]) if key in weights else "missing"
    wanted = kind(expected[key]) if key in expected else "no such key"
    return f"{printable(key)} is {found} (expected {wanted})"


def kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
