"""`attnc.ir.hashing` for int64 tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from attnc.ir.hashing import FIRST, LARGEST, SECOND, START, STRIDE, UNIT, UNUSED_BITS, WORD


def mixed(x: Tensor, y: Tensor) -> Tensor:
    """The hash of two tensors of integers; broadcasts."""
    # Products may wrap around in 64 bits, which leaves the lower 32 as they are.
    z = ((x.to(torch.int64) + START) ^ (y.to(torch.int64) * STRIDE)) & WORD
    z = z ^ (z >> 16)
    z = (z * FIRST) & WORD
    z = z ^ (z >> 15)
    z = (z * SECOND) & WORD
    z = z ^ (z >> 16)
    return z & LARGEST


def unit(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Hashes as numbers in [0, 1)."""
    return (x.to(torch.int64) >> UNUSED_BITS).to(dtype) * UNIT
