"""Checkpoints: the weights of a network, read from the files of the field and checked.

    *.safetensors       names and tensors, as `save_weights` writes them
    any other name      torch.save of a state dict, or of a dict that holds one under
                        "state_dict", "model" or "model_state_dict"

Files are untrusted: pickled code is rejected and never run. Names lose the prefixes that wrappers
add ("module.", "_orig_mod."). If a file holds a whole distiller, as mdistiller saves under `latest`
and `best`, only the student is loaded: the names that begin with "student.". Nothing is guessed:
weights that do not fit the architecture exactly are rejected.
"""

import hashlib
import io
import json
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeGuard

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.errors import ArtefactMismatch, ArtefactNotFound
from pipeline.models.networks.classifier import Classifier

CONTAINERS = ("state_dict", "model", "model_state_dict")
WRAPPER_PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")
STUDENT = "student."
BATCH_COUNTER = "num_batches_tracked"
"""Batch counter of batch normalisation, which checkpoints from before torch 0.4.1 lack."""

UNREADABLE = (
    SafetensorError,
    UnpicklingError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    EOFError,
    MemoryError,
    OSError,
    struct.error,
)
"""Errors of the two readers on damaged bytes, which they hardly check before use."""

REFUSED_CODE = re.compile(
    r"GLOBAL (?P<name>\S+) (?:was not an allowed global|whose module)"
    r"|Trying to call reduce|Can only create new object|Can only build|TorchScript archives"
    r"|Unsupported operand 14[0-9]\b"  # the opcodes of pickle protocol 4, which torch never writes
)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint as finite dense CPU tensors by name, wrapper prefixes stripped.

    Raises:
        ArtefactNotFound: if there is no such file.
        ArtefactMismatch: if it is damaged, or holds pickled code or values that are not finite.
    """
    state = state_dict_of(read_checkpoint(path), path)
    kept = [key for key in state if plain_name(key).startswith(STUDENT)] or list(state)
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


def load_into(model: Classifier, weights: Mapping[str, Tensor], *, source: Path) -> None:
    """Copy weights into the model, all or none; names and shapes must agree exactly.

    Batch counters may be missing if all of them are; the model then keeps its own.

    Args:
        model: the network to load into.
        weights: result of `load_weights`.
        source: path of the checkpoint, for messages.

    Raises:
        ArtefactMismatch: if a key is missing, unexpected or of another shape or kind.
    """
    expected = model.state_dict()
    if not any(is_batch_counter(key) for key in weights):
        expected = {key: value for key, value in expected.items() if not is_batch_counter(key)}
    keys = dict.fromkeys([*expected, *weights])
    differing = [key for key in keys if not are_alike(weights.get(key), expected.get(key))]
    if differing:
        raise ArtefactMismatch(misfit(model, weights, expected, differing, source=source))
    model.load_state_dict(weights, strict=False)


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


def read_checkpoint(path: Path) -> object:
    """Read the content of a file without running code from it."""
    try:
        data = path.read_bytes()  # not mapped: a later change of the file must not change weights
    except FileNotFoundError as error:
        raise ArtefactNotFound(
            f"{path} was not found (expected a checkpoint). Check the path, which "
            "is `cache_teacher.checkpoint`."
        ) from error
    except OSError as error:
        raise ArtefactMismatch(
            f"{path} cannot be read: {error.strerror} (expected a checkpoint file). Check the path."
        ) from error
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(data)
        return read_tensors_only(data)
    except UNREADABLE as error:
        raise ArtefactMismatch(unreadable(path, len(data), error)) from error


def read_tensors_only(data: bytes) -> object:
    """Read a torch file with an unpickler that allows only tensors and containers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about odd protocols before it raises
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def unreadable(path: Path, num_bytes: int, error: BaseException) -> str:
    """Message for a file that the readers reject; their own messages advise to run its code."""
    code = REFUSED_CODE.search(str(error))
    if code is None:
        return (
            f"{path} is not a readable checkpoint: {num_bytes:,} bytes, damaged or of another kind "
            "(expected safetensors, or tensors written by torch.save). Download or save it again."
        )
    name = f" ({printable(code['name'])})" if code["name"] else ""
    return (
        f"{path} holds pickled code{name} and was not loaded (expected tensors only). If you trust "
        "it, save model.state_dict() with safetensors, or with torch.save as tensors only."
    )


def state_dict_of(content: object, path: Path) -> dict[str, Tensor]:
    """The only state dict in the content of a checkpoint, bare or in a container."""
    if is_state_dict(content):
        return content
    nested = [content.get(key) for key in CONTAINERS] if isinstance(content, dict) else []
    found = [value for value in nested if is_state_dict(value)]
    if len(found) != 1:
        raise ArtefactMismatch(
            f"{path} is not a checkpoint of one network: {len(found)} state dicts in "
            f"{summary(content)} (expected a dict of named dense tensors, bare or under one of "
            f"{', '.join(CONTAINERS)}). Save model.state_dict()."
        )
    return found[0]


def is_state_dict(content: object) -> TypeGuard[dict[str, Tensor]]:
    """True for a non-empty dict of dense tensors by name."""
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(key, str) and is_dense(value) for key, value in content.items())
    )


def is_dense(value: object) -> bool:
    """True for a tensor with plain numbers in memory: not sparse, quantised or meta."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def is_finite(tensor: Tensor) -> bool:
    """True if all numbers are finite in float32, the type of the networks."""
    return not tensor.is_floating_point() or bool(tensor.float().isfinite().all())


def is_batch_counter(key: str) -> bool:
    return key.rpartition(".")[2] == BATCH_COUNTER


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


def misfit(
    model: Classifier,
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    differing: list[str],
    *,
    source: Path,
) -> str:
    """Message with the number of differing keys and three of them, or with the class counts."""
    head = next(name for name, module in model.named_modules() if module is model.head)
    head_keys = {f"{head}.weight", f"{head}.bias"}
    num_classes = classes_of(weights, head, in_features=model.head.in_features)
    sentences = []
    if num_classes not in (None, model.head.out_features):
        differing = [key for key in differing if key not in head_keys]
        sentences = [
            f"{source} has a head for {num_classes} classes (expected {model.head.out_features})."
        ]
    if differing:
        num_keys = len(expected.keys() | weights.keys())
        shown = "; ".join(difference(key, weights, expected) for key in differing[:3])
        sentences += [
            f"{source} does not fit {model.arch} in {len(differing)} of {num_keys} keys: {shown}.",
            "Set the architecture that it was trained with.",
        ]
    else:
        sentences += [
            "Pass the checkpoint of a model trained on these classes, or map its classes by "
            "`cache_teacher.num_classes` and `class_map` (docs/models.md)."
        ]
    return " ".join(sentences)


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


def summary(content: object) -> str:
    """Describe unexpected content by its type and first keys."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    keys = ", ".join(printable(str(key)) for key in list(content)[:3])
    return f"a dict of {len(content)} keys ({keys})" if content else "an empty dict"


def printable(text: str) -> str:
    """A name from an untrusted file, made safe to print on one line."""
    return text if text.isprintable() else ascii(text)
