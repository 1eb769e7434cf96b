"""FFCV, imported once and kept from setting torch's threads.

Importing FFCV sets torch to one thread, and every loader sets it to its own number of workers,
behind the back of whoever trains. Importing it also compiles a numba dictionary of two constants,
which takes seconds; and every loader compiles the same reader anew, which takes another. All of it
is undone here; nothing else imports `ffcv`.
"""

from collections.abc import Callable
from typing import Any

import numba
import numba.typed
import torch

_torch_threads = torch.get_num_threads()
_typed_dict, numba.typed.Dict = numba.typed.Dict, dict
from ffcv.fields import IntField, RGBImageField  # noqa: E402
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder  # noqa: E402
from ffcv.loader import Loader, OrderOption  # noqa: E402
from ffcv.loader.epoch_iterator import EpochIterator  # noqa: E402
from ffcv.memory_allocator import MemoryAllocator  # noqa: E402
from ffcv.memory_managers.os_cache import OSCacheManager  # noqa: E402
from ffcv.pipeline import PipelineSpec  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402
from ffcv.pipeline.operation import Operation  # noqa: E402
from ffcv.pipeline.state import State  # noqa: E402
from ffcv.transforms import ToTensor  # noqa: E402
from ffcv.writer import DatasetWriter, handle_sample  # noqa: E402

numba.typed.Dict = _typed_dict
torch.set_num_threads(_torch_threads)

__all__ = [
    "AllocationQuery",
    "DatasetWriter",
    "EpochIterator",
    "IntDecoder",
    "IntField",
    "Loader",
    "MemoryAllocator",
    "Operation",
    "OrderOption",
    "PipelineSpec",
    "RGBImageField",
    "SimpleRGBImageDecoder",
    "State",
    "ToTensor",
    "handle_sample",
]


def _set_loader_threads(compiler: type[Compiler], count: int) -> None:
    compiler.num_threads = count
    numba.set_num_threads(count)


Compiler.set_num_threads = classmethod(_set_loader_threads)

_compile_reader = OSCacheManager.compile_reader
_compiled_readers: list[Callable[..., Any]] = []


def _compile_reader_once(manager: OSCacheManager) -> Callable[..., Any]:
    """The reader is told which file to read with every call, so one serves all loaders."""
    if not _compiled_readers:
        _compiled_readers.append(_compile_reader(manager))
    return _compiled_readers[0]


OSCacheManager.compile_reader = _compile_reader_once
