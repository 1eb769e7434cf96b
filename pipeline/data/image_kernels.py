"""Compiled kernels from a stored image to a view: decode, crop, resize, flip.

A crop is resized as by Pillow's BILINEAR, which torchvision's transforms use: a triangle as wide as
a source or a destination pixel, whichever is larger, with weights of 22 bits; rows first, then
columns, rounded to 8 bits in between. This is integer arithmetic on weights that IEEE 754 rounds
exactly, so the same decoded image gives the same pixels on any machine.

JPEGs are decoded by FFCV's function (TurboJPEG, fast DCT). It reports damaged images; FFCV ignores
the report, and these kernels pass it on.
"""

from typing import Any

import numba
import numpy as np
from numba import get_thread_id, types  # type: ignore[attr-defined]

from pipeline.data.ffcv_compat import IMDECODE_SYMBOL, JPEG_MODE

_BITS = 22
_ONE = 1 << _BITS
_HALF = np.int32(1 << (_BITS - 1))

# With an external symbol, unlike a ctypes function, numba can cache the compiled code on disk.
_imdecode: Any = types.ExternalFunction(
    IMDECODE_SYMBOL,
    types.int32(
        *(types.uintp, types.uint64, types.uint32, types.uint32, types.uintp),
        *(types.uint32, types.uint32, types.uint32, types.uint32, types.uint32, types.uint32),
        *(types.boolean, types.boolean),
    ),
)


# Compiled on import: first calls from several threads are not safe in numba's dispatcher.
_CONTENT = types.Array(types.uint8, 1, "C", readonly=True)
_DECODE = types.int32(_CONTENT, types.int64, types.int64, types.uint8[::1])


@numba.njit(_DECODE, nogil=True, cache=True)  # type: ignore[untyped-decorator]
def decode_jpeg(content, height, width, destination):  # type: ignore[no-untyped-def] # pragma: numba
    """Decode a JPEG of a known size to ``destination``, (height * width * 3) uint8; 0 if sound."""
    source, target = content.ctypes.data, destination.ctypes.data
    return _imdecode(
        source, content.size, height, width, target, height, width, 0, 0, 1, 1, False, False
    )


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _triangle(num_sources, side, first, count, weights):  # type: ignore[no-untyped-def] # pragma: numba
    """Compute the source pixels of each of ``side`` pixels: ``first``, ``count``, ``weights``."""
    scale = num_sources / side
    support = max(scale, 1.0)
    inverse = 1.0 / support
    for pixel in range(side):
        centre = (pixel + 0.5) * scale
        start = max(int(centre - support + 0.5), 0)
        number = min(int(centre + support + 0.5), num_sources) - start
        total = 0.0
        for i in range(number):
            total += max(1.0 - abs((i + start - centre + 0.5) * inverse), 0.0)
        for i in range(number):
            share = max(1.0 - abs((i + start - centre + 0.5) * inverse), 0.0) / total
            weights[pixel, i] = np.int32(0.5 + share * _ONE)
        first[pixel], count[pixel] = start, number


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def resize_crop(image, box, destination):  # type: ignore[no-untyped-def] # pragma: numba
    """Write the crop ``box`` of ``image``, (H, 3W) uint8, to ``destination``, (S, S, 3) uint8.

    Each output row takes two passes: a weighted mean of source rows along contiguous bytes, then of
    columns.
    """
    top, left, height, width, flip = box[0], box[1], box[2], box[3], box[4]
    side = destination.shape[0]
    first_y, count_y = np.empty(side, np.int64), np.empty(side, np.int64)
    first_x, count_x = np.empty(side, np.int64), np.empty(side, np.int64)
    taps = 2 * int(np.ceil(max(max(height, width) / side, 1.0))) + 1
    weights_y, weights_x = np.empty((side, taps), np.int32), np.empty((side, taps), np.int32)
    _triangle(height, side, first_y, count_y, weights_y)
    _triangle(width, side, first_x, count_x, weights_x)
    sums = np.empty(3 * width, np.int32)
    means = np.empty(3 * width, np.uint8)
    for y in range(side):
        sums[:] = _HALF
        for j in range(count_y[y]):
            weight = weights_y[y, j]
            row = image[top + first_y[y] + j, 3 * left : 3 * (left + width)]
            for i in range(3 * width):
                sums[i] += np.int32(row[i]) * weight
        for i in range(3 * width):
            means[i] = sums[i] >> _BITS
        for x in range(side):
            red, green, blue = _HALF, _HALF, _HALF
            at = 3 * first_x[x]
            for j in range(count_x[x]):
                weight = weights_x[x, j]
                red += np.int32(means[at]) * weight
                green += np.int32(means[at + 1]) * weight
                blue += np.int32(means[at + 2]) * weight
                at += 3
            to = side - 1 - x if flip else x
            destination[y, to, 0] = red >> _BITS
            destination[y, to, 1] = green >> _BITS
            destination[y, to, 2] = blue >> _BITS


@numba.njit(parallel=True, nogil=True, cache=True)  # type: ignore[untyped-decorator]
def show_views(file, table, boxes, decoded, destination):  # type: ignore[no-untyped-def] # pragma: numba
    """Decode stored images and write the crops ``boxes`` of them to ``destination``.

    Args:
        file: the bytes of a beton, (F,) uint8.
        table: position, bytes, mode, height, width of each image, (B, 5) int64.
        boxes: crops, (B, 5) int32.
        decoded: room for the largest decoded image, for every thread, (T, M) uint8.
        destination: (B, S, S, 3) uint8.
    Returns:
        True for each image that could be decoded, (B,) bool.
    """
    sound = np.ones(len(table), np.bool_)
    for i in numba.prange(len(table)):
        position, size, height, width = table[i, 0], table[i, 1], table[i, 3], table[i, 4]
        image = file[position : position + size]
        if table[i, 2] == JPEG_MODE:
            room = decoded[get_thread_id(), : 3 * height * width]
            sound[i] = decode_jpeg(image, height, width, room) == 0
            resize_crop(room.reshape(height, 3 * width), boxes[i], destination[i])
        else:
            resize_crop(image.reshape(height, 3 * width), boxes[i], destination[i])
    return sound
