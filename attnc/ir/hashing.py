"""Counter-based random numbers: a hash of a seed and of positions, the same on every backend.

A kernel that needs the same random number again, as the backward of a dropout does, computes it again. The mixer is
"lowbias32" of Wellons (2018, Prospecting for hash functions), a bijection of 32 bits with the statistics of a good
generator; numbers are chained through it, ``hash(hash(seed, i), j)``. Kept to 31 bits, so that every integer type that
kernels use holds it. Source of the idea: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
"""

from __future__ import annotations

START = 0x6A09E667
STRIDE = 0x9E3779B9
FIRST, SECOND = 0x7FEB352D, 0x846CA68B
WORD = 0xFFFFFFFF
LARGEST = 0x7FFFFFFF
UNUSED_BITS = 7
"""Bits of a hash that a number in [0, 1) does not keep: f32 has 24."""
UNIT = 2.0**-24


def mixed(x: int, y: int) -> int:
    """The hash of two integers, of which the lower 32 bits count; from 0 to 2**31 - 1."""
    z = ((x + START) ^ (y * STRIDE)) & WORD
    z ^= z >> 16
    z = z * FIRST & WORD
    z ^= z >> 15
    z = z * SECOND & WORD
    z ^= z >> 16
    return z & LARGEST


def unit(x: int) -> float:
    """A hash as a number in [0, 1), exact in f32."""
    return (x >> UNUSED_BITS) * UNIT
