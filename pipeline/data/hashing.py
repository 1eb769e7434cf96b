"""The counter-based hash that draws views: integers only, the same on every machine.

hash(a, b, ...) = fold from h = 0 by h <- mix(h xor word); all arithmetic modulo 2^64
mix(h)          = finaliser of SplitMix64 applied to h + 0x9E3779B97F4A7C15
bounded(h, n)   = ((h >> 32) * n) >> 32
key_lo, key_hi  = the sample key's bytes 0-7 and 8-15, little endian
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Keys: TypeAlias = NDArray[np.uint8]
Words: TypeAlias = NDArray[np.uint64]

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def hash_words(domain: int, *words: Words | np.uint64) -> Words:
    """hash(domain, words...), elementwise."""
    state = np.zeros(1, dtype=np.uint64)
    for word in (np.uint64(domain), *words):
        state = folded(state, word)
    return state


def folded(state: Words, word: Words | np.uint64) -> Words:
    """Fold one more word into a hash."""
    return _mix(state ^ word)


def key_words(keys: Keys) -> tuple[Words, Words]:
    """key_lo and key_hi, (N,) uint64 each, of sample keys (N, 16) uint8."""
    words = np.ascontiguousarray(keys).view("<u8").astype(np.uint64)
    return words[:, 0], words[:, 1]


def bounded(hashed: Words, bound: Words | int) -> NDArray[np.int64]:
    """Uniform integers in 0..bound - 1 from hashes; ``bound`` must be below 2^32."""
    scaled = (hashed >> np.uint64(32)) * np.asarray(bound, dtype=np.uint64)
    return (scaled >> np.uint64(32)).astype(np.int64)


def _mix(state: Words) -> Words:
    state = state + _GOLDEN_GAMMA
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))
