"""Crops and flips read directly from a beton: `views.replay` without an intermediate copy.

Unmirrored rows are moved as a whole. Mirrored rows are moved pixel by pixel in words of four bytes;
the next pixel overwrites the fourth byte. A test compares the result with `views.replay`.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_PIXEL = np.uint64(3)
_memcpy: Any = types.ExternalFunction("memcpy", types.uintp(types.uintp, types.uintp, types.uintp))
_memset: Any = types.ExternalFunction("memset", types.uintp(types.uintp, types.int32, types.uintp))


@intrinsic  # type: ignore[untyped-decorator]
def _move_word(_context, _target, _source):  # type: ignore[no-untyped-def]
    """Move four bytes between addresses of any alignment."""

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        pointer = ir.IntType(32).as_pointer()
        target, source = (builder.inttoptr(address, pointer) for address in arguments)
        builder.store(builder.load(source, align=1), target, align=1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp), generate


# Compiled on import: first calls from several threads are not safe in numba's dispatcher.
_REPLAY = types.void(
    types.Array(types.uint8, 1, "C", readonly=True),
    types.int64[::1],
    types.int32[::1],
    types.int64,
    types.int64,
    types.uint8[:, :, :, ::1],
)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _mirror(target, last, count):  # type: ignore[no-untyped-def] # pragma: numba
    """Write ``count`` pixels forwards from ``target``, read backwards from ``last``."""
    for _ in range(count - 1):
        _move_word(target, last)  # type: ignore[call-arg]
        target += _PIXEL
        last -= _PIXEL
    _memcpy(target, last, _PIXEL)  # a word of four bytes would write beyond the row


@numba.njit(_REPLAY, parallel=True, nogil=True, cache=True)  # type: ignore[untyped-decorator]
def replay_stored(file, positions, codes, padding, num_flips, destination):  # type: ignore[no-untyped-def] # pragma: numba
    """Write view ``codes[i]`` of the raw image at ``positions[i]`` to ``destination[i]``.

    Nothing is checked: every image must be within the file.

    Args:
        file: the bytes of a beton, (F,) uint8.
        positions: first byte of each image, all of the destination's size, (B,) int64.
        codes: view codes of `views.view_codes`, (B,) int32.
        padding: zero pixels on each side before the crop.
        num_flips: 2 with flips, else 1.
        destination: (B, H, W, 3) uint8.
    """
    height, width = destination.shape[1], destination.shape[2]
    row_bytes = 3 * width
    for i in numba.prange(len(codes)):
        shift = codes[i] // num_flips
        dy, dx = shift // (2 * padding + 1) - padding, shift % (2 * padding + 1) - padding
        if codes[i] % num_flips:
            first, stop = max(0, dx), min(width, width + dx)
            column = width - 1 - first + dx
        else:
            first, stop = max(0, -dx), min(width, width - dx)
            column = first + dx
        for y in range(height):
            row = destination.ctypes.data + np.uint64((i * height + y) * row_bytes)
            if not 0 <= y + dy < height or first >= stop:
                _memset(row, 0, np.uint64(row_bytes))
                continue
            if first > 0:
                _memset(row, 0, np.uint64(3 * first))
            if stop < width:
                _memset(row + np.uint64(3 * stop), 0, np.uint64(3 * (width - stop)))
            source = file.ctypes.data + np.uint64(positions[i] + (y + dy) * row_bytes + 3 * column)
            row += np.uint64(3 * first)
            if codes[i] % num_flips:
                _mirror(row, source, stop - first)
            else:
                _memcpy(row, source, np.uint64(3 * (stop - first)))
