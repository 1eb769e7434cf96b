"""Files of weights: recognised by their first bytes, and read without running code.

    safetensors         names and tensors
    torch.save          a zip archive or the older plain stream, read by torch's unpickler for
                        weights alone (`weights_only`)

Training scripts save settings and scores beside the weights. The classes of such values are known
by name (`INERT`, `EMPTY_DICTS`) and are never imported or called. Stand-ins take their places and
keep nothing, so a file cannot reach the real class, whatever arguments it holds. Every other name
is rejected.
"""

import io
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Final

import safetensors.torch
import torch
from safetensors import SafetensorError

from pipeline.errors import ArtefactMismatch, ArtefactNotFound

INERT: Final = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "builtins.bool",
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
    "builtins.str",
    "builtins.tuple",
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    ),
    "pathlib.WindowsPath",
    "pathlib._local.WindowsPath",
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{module}.multiarray.{name}"
        for module in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(
        f"numpy.dtypes.{name}DType"
        for name in (
            *("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"),
            *("Float16", "Float32", "Float64", "Str", "Bytes"),
        )
    ),
)
"""Classes and functions of values beside the weights; `Inert` stands in for each."""

EMPTY_DICTS: Final = (
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
)
"""Classes of dicts; an ordinary dict stands in for each."""

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

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_OTHER_KINDS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: run `git lfs pull`"),
    (b"\x89HDF", "an HDF5 file, as Keras writes"),
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"\xfd7zXZ", "compressed by xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"\x93NUMPY", "an array of numpy"),
    (b"<", "a web page or XML text, not the file itself"),
    (b"{", "a JSON text"),
)
"""First bytes of files that people take for checkpoints, and their kinds."""


class Inert:
    """Stand-in for a value beside the weights: it takes any arguments and keeps nothing."""

    def __new__(cls, *_: object) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class EmptyDict:
    """Stand-in for a class of dicts: makes an ordinary dict, which the reader then fills."""

    def __new__(cls, *_: object) -> dict[object, object]:  # type: ignore[misc]
        return {}


def read_checkpoint(path: Path) -> object:
    """Read the content of a file without running code from it.

    Raises:
        ArtefactNotFound: if there is no such file.
        ArtefactMismatch: if it is damaged, of another kind, or holds pickled code.
    """
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
        if _is_safetensors(data, path):
            return safetensors.torch.load(data)
        return read_tensors_only(data)
    except UNREADABLE as error:
        raise ArtefactMismatch(_unreadable(path, data, error)) from error


def read_tensors_only(data: bytes) -> object:
    """Read a torch file with an unpickler that makes only tensors, containers and stand-ins."""
    with (
        warnings.catch_warnings(),
        torch.serialization.safe_globals(_stand_ins()),
    ):
        warnings.simplefilter("ignore")  # torch warns about odd protocols before it raises
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _stand_ins() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """Stand-ins by the names that files give, as torch takes them."""
    return [*((Inert, name) for name in INERT), *((EmptyDict, name) for name in EMPTY_DICTS)]


def _is_safetensors(data: bytes, path: Path) -> bool:
    """Recognise safetensors by the first bytes: the length of a JSON text, and its bracket.

    Files with neither these nor torch's first bytes go by their suffix.
    """
    if len(data) > 8 and data[8:9] == b"{":
        return int.from_bytes(data[:8], "little") <= len(data) - 8
    return path.suffix.lower() == ".safetensors" and not data.startswith((_ZIP, _PICKLE))


def _unreadable(path: Path, data: bytes, error: BaseException) -> str:
    """Message for a file that the readers reject; their own messages advise to run its code."""
    code = REFUSED_CODE.search(str(error))
    if code is None:
        what = next((kind for start, kind in _OTHER_KINDS if data.startswith(start)), "")
        return (
            f"{path} is not a readable checkpoint: {len(data):,} bytes, "
            f"{what or 'damaged or of another kind'} (expected safetensors, or tensors written by "
            "torch.save). Download or save it again."
        )
    name = f" ({printable(code['name'])})" if code["name"] else ""
    return (
        f"{path} holds pickled code{name} and was not loaded (expected tensors only). If you trust "
        "it, save model.state_dict() with safetensors, or with torch.save as tensors only."
    )


def printable(text: str) -> str:
    """A name from an untrusted file, made safe to print on one line."""
    return text if text.isprintable() else ascii(text)
