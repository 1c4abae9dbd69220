"""The arithmetic of `attnc.passes.intervals` on tensors and Python numbers, mixed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attnc.ir.dense_block import floor_log2, power_of_two

FAR = 1 << 40
"""Beyond every integer that kernels compute."""


class Tensors:
    """Arithmetic on tensors and Python numbers, mixed."""

    def minimum(self, a: Any, b: Any) -> Any:
        return _extreme(a, b, torch.minimum, min, "max")

    def maximum(self, a: Any, b: Any) -> Any:
        return _extreme(a, b, torch.maximum, max, "min")

    def where(self, c: Any, a: Any, b: Any) -> Any:
        if isinstance(c, bool):
            return a if c else b
        return torch.where(c, a, b)

    def floordiv(self, a: Any, b: Any) -> Any:
        if isinstance(b, Tensor):
            return torch.div(a, b, rounding_mode="floor")
        if not isinstance(a, Tensor):
            return a // b
        if b & (b - 1) == 0:
            return a >> (b.bit_length() - 1)
        return torch.div(a, b, rounding_mode="floor")

    def common_bits(self, low: Any, high: Any) -> tuple[Any, Any]:
        """See `attnc.passes.intervals.Arithmetic`."""
        differ = low ^ high
        for shift in (1, 2, 4, 8, 16, 32):
            differ = differ | (differ >> shift)
        return low & ~differ, high | differ

    def bitand(self, a: Any, b: Any) -> Any:
        return a & b

    def bitor(self, a: Any, b: Any) -> Any:
        return a | b

    def bitxor(self, a: Any, b: Any) -> Any:
        return a ^ b

    def floor_log2(self, a: Any) -> Any:
        """See `attnc.passes.intervals.Arithmetic`."""
        if not isinstance(a, Tensor):
            return max(int(a), 1).bit_length() - 1
        if a.dtype is torch.int32:
            return torch.frexp(a.clamp(min=1).to(torch.float64)).exponent - 1  # exact: a double holds all of them
        return floor_log2(a)

    def power_of_two(self, a: Any) -> Any:
        """See `attnc.passes.intervals.Arithmetic`."""
        return power_of_two(a.to(torch.int64)) if isinstance(a, Tensor) else 1 << max(int(a), 0)

    def both(self, a: Any, b: Any) -> Any:
        for x, y in ((a, b), (b, a)):
            if isinstance(x, bool):
                return y if x else False
        return a & b

    def either(self, a: Any, b: Any) -> Any:
        for x, y in ((a, b), (b, a)):
            if isinstance(x, bool):
                return True if x else y
        return a | b

    def no(self, a: Any) -> Any:
        return not a if isinstance(a, bool) else ~a

    def always(self, a: Any) -> bool:
        return bool(a.all()) if isinstance(a, Tensor) else bool(a)

    def real(self, name: str, a: Any) -> Any:
        """A function that never falls, in double precision."""
        x = torch.as_tensor(a).to(torch.float64)
        match name:
            case "floor":
                return torch.floor(x).clamp(-FAR, FAR).to(torch.int64)
            case "softplus":
                return torch.logaddexp(x, torch.zeros_like(x))
            case "detach":
                return x
            case _:
                return getattr(torch, name)(x)

    def ends(self, low: Any, high: Any) -> tuple[Any, Any]:
        """Reals: an end that is no number bounds nothing."""
        return (
            low.nan_to_num(-math.inf, math.inf, -math.inf) if isinstance(low, Tensor) else low,
            high.nan_to_num(math.inf, math.inf, -math.inf) if isinstance(high, Tensor) else high,
        )


def _extreme(a: Any, b: Any, tensors: Any, numbers: Any, keyword: str) -> Any:
    if not isinstance(a, Tensor):
        a, b = b, a
    if not isinstance(a, Tensor):
        return numbers(a, b)
    if isinstance(b, Tensor):
        return tensors(a, b)
    return torch.clamp(a, **{keyword: b})


ON_TENSORS = Tensors()
