"""Calls that the tests of identities share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.differential.compare import compiled

HEADS, LENGTH = 4, 40


def run(name: str, *qkv: Tensor, consts: Any = None, **tensors: Any) -> Tensor:
    """The op of an example at these consts, without observations; its tile programs are interpreted, not compiled."""
    q, k, v = qkv
    found = compiled(name, "tiled", tuple(sorted((consts or {}).items())))(q, k, v, **tensors)
    assert isinstance(found, Tensor)
    return found


def observed(name: str, *qkv: Tensor, consts: Any = None, **tensors: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The same with observations."""
    q, k, v = qkv
    found = compiled(name, "tiled", tuple(sorted((consts or {}).items())))(q, k, v, **tensors, observe=True)
    assert isinstance(found, tuple)
    return found


def operands(length: int = LENGTH, batch: int = 2, seed: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Seeded float64 q, k and v of HEADS heads and 16 channels."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, batch, HEADS, length, 16, generator=generator, dtype=torch.float64)
    return q, k, v


def weights_of(name: str, length: int, consts: dict[str, int | float], **tensors: Tensor) -> Tensor:
    """The weights [length, length] of one head where all keys are equal: values are unit vectors."""
    zero = torch.zeros(1, 1, length, length, dtype=torch.float64)
    one_hot = torch.eye(length, dtype=torch.float64)[None, None]
    return run(name, zero, zero, one_hot, consts=consts, **tensors)[0, 0]
