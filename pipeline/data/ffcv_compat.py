"""FFCV without its side effects; the only module that imports `ffcv`.

Four side effects are undone here. Importing FFCV sets torch to one thread, and each loader sets
torch's threads to its number of workers. The import compiles a numba dictionary of two constants,
which takes seconds. Each loader compiles the same reader and decoders again, which takes a second.
It also marks numba's type of a byte row as read-only, so compiled functions of such rows are not
found afterwards.

An epoch of FFCV hangs if its thread raises an error, and the thread stays if the epoch is left
early. `EndingEpoch` raises the error, and closing it ends the thread.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from queue import Empty, Full
from typing import Any, Final

import llvmlite.binding
import numba
import numba.extending
import numba.typed
import numpy as np
import torch
from numba import types
from numba.np.ufunc import parallel
from numpy.typing import NDArray
from torch import Tensor

_torch_threads = torch.get_num_threads()
_typed_dict, numba.typed.Dict = numba.typed.Dict, dict
from ffcv.fields import IntField, RGBImageField  # noqa: E402
from ffcv.fields.decoders import IntDecoder as FfcvIntDecoder  # noqa: E402
from ffcv.fields.decoders import SimpleRGBImageDecoder  # noqa: E402
from ffcv.fields.rgb_image import IMAGE_MODES  # noqa: E402
from ffcv.libffcv import ctypes_imdecode  # noqa: E402
from ffcv.loader import Loader, OrderOption  # noqa: E402
from ffcv.loader.epoch_iterator import EpochIterator  # noqa: E402
from ffcv.memory_allocator import MemoryAllocator  # noqa: E402
from ffcv.memory_managers.os_cache import OSCacheManager  # noqa: E402
from ffcv.pipeline import PipelineSpec  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402
from ffcv.pipeline.operation import Operation  # noqa: E402
from ffcv.pipeline.state import State  # noqa: E402
from ffcv.reader import Reader  # noqa: E402
from ffcv.transforms import ToTensor  # noqa: E402
from ffcv.writer import DatasetWriter, handle_sample  # noqa: E402

numba.typed.Dict = _typed_dict
torch.set_num_threads(_torch_threads)

__all__ = [
    "IMDECODE_SYMBOL",
    "JPEG_MODE",
    "RAW_MODE",
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
    "Reader",
    "SimpleRGBImageDecoder",
    "State",
    "ToTensor",
    "handle_sample",
]

JPEG_MODE: Final = IMAGE_MODES["jpg"]
RAW_MODE: Final = IMAGE_MODES["raw"]
"""Code in a beton's table for the form in which an image is stored."""

IMDECODE_SYMBOL: Final = "heartcut_ffcv_imdecode"
"""FFCV's JPEG decoder, for compiled code to link to by name."""
llvmlite.binding.add_symbol(IMDECODE_SYMBOL, ctypes.cast(ctypes_imdecode, ctypes.c_void_p).value)


def _leave_lock() -> None:
    """Start numba's threads in a forked process without the lock of its parent.

    The lock is a semaphore that forked processes share. If one of them were killed while it holds
    the lock, all others would wait for ever. Each process still has numba's lock between threads.
    """
    parallel._backend_init_process_lock = nullcontext()  # type: ignore[assignment]


os.register_at_fork(after_in_child=_leave_lock)


def _set_loader_threads(compiler: type[Compiler], count: int) -> None:
    compiler.num_threads = count
    numba.set_num_threads(count)


Compiler.set_num_threads = classmethod(_set_loader_threads)

_FILE = types.Array(types.uint8, 1, "C", readonly=True)
_PLACES = types.Tuple([_FILE, types.uint64[::1], types.uint64[::1]])  # type: ignore[no-untyped-call]


@numba.njit(_FILE(types.uint64, _PLACES), nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _read(address, places):  # type: ignore[no-untyped-def] # pragma: numba
    """Bytes stored at an address; places = (file, sorted addresses, their sizes)."""
    size = places[2][np.searchsorted(places[1], address)]
    return places[0][address : address + size]


def _compiled_reader(_: OSCacheManager) -> Callable[..., Any]:
    return _read  # type: ignore[no-any-return]


OSCacheManager.compile_reader = _compiled_reader


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _decode_numbers(indices, destination, numbers, _):  # type: ignore[no-untyped-def] # pragma: numba
    """Rows of a field by sample index."""
    for row in range(len(indices)):
        destination[row] = numbers[indices[row]]
    return destination[: len(indices)]


class IntDecoder(FfcvIntDecoder):  # type: ignore[misc]
    """FFCV's decoder of integers, (B,) indices -> (B, 1) int64, compiled once for all loaders."""

    def generate_code(self) -> Callable[..., Any]:
        return _decode_numbers  # type: ignore[no-any-return]


_compile = Compiler.compile


def _compile_what_is_not(_: type[Compiler], code: Callable[..., Any], *more: Any) -> Any:
    return code if numba.extending.is_jitted(code) else _compile(code, *more)


Compiler.compile = classmethod(_compile_what_is_not)


class EndingEpoch(EpochIterator):  # type: ignore[misc]
    """FFCV's epoch over the samples of ``order``: it raises its thread's error, and always ends."""

    def __init__(self, loader: Loader, order: NDArray[np.int64]) -> None:
        self.failure: BaseException | None = None
        super().__init__(loader, order)

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:
            self.failure = error
            self._end_of_batches()

    def __next__(self) -> Sequence[Tensor]:
        try:
            batch: Sequence[Tensor] = super().__next__()
        except StopIteration:
            if self.failure is not None:
                raise self.failure from None
            raise
        return batch

    def close(self) -> None:
        """End the thread at any point and release its buffers."""
        super().close()
        while self.is_alive() and threading.current_thread() is not self:
            try:
                self.output_queue.get(timeout=0.01)
            except Empty:
                continue
        self.closed = True

    def _end_of_batches(self) -> None:
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(None, timeout=0.1)
            except Full:
                continue
            return
