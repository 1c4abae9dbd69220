"""What tensors of values say about tiles: least and greatest values, as intervals and truths, and their layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnc.passes.intervals import Interval, Truth
from attnc.runtime.arithmetic import ON_TENSORS

SMALL = 1 << 27
"""Integers below this are computed in 32 bits."""


def bounded(low: Tensor, high: Tensor, space: int, kind: str) -> Interval | Truth:
    """What is known of values between the least and the greatest, which both occur."""
    if kind == "b":
        return Truth(high, low, high, ~low, space)
    attained: Any = True
    if low.is_floating_point():
        attained = ~(low.isnan() | high.isnan())
        low, high = ON_TENSORS.ends(low, high)
    return Interval(low, high, attained, low == high, space)


def forget_witnesses(found: Interval | Truth | None) -> None:
    """Only blocks are asked for witnesses."""
    if isinstance(found, Interval):
        found.attained = found.solid = False
    elif isinstance(found, Truth):
        found.some = found.lacking = False


def wide(values: Tensor) -> Tensor:
    """Numbers in the type that rules compute in."""
    if values.dtype is torch.bool:
        return values
    return values.to(torch.float64 if values.is_floating_point() else torch.int64)


def pooled(values: Tensor, length: int, reduce: Any) -> Tensor:
    """The extreme of every `length` columns of [combinations, columns], flattened."""
    short = -values.shape[1] % length
    if short:
        values = torch.cat([values, values[:, -1:].expand(-1, short)], 1)
    pooled: Tensor = reduce(values.view(len(values), -1, length), 2)
    return pooled.flatten()


def pooled_plane(values: Tensor, outer: int, inner: int, reduce: Any) -> Tensor:
    """The extreme of every tile of the last two dimensions."""
    lengths = {values.dim() - 2: outer, values.dim() - 1: inner}
    strides = values.stride()
    flags = values.dtype is torch.bool
    values = values.view(torch.uint8) if flags else values  # bytes have reductions in vectors
    for dim in sorted(lengths, key=lambda d: strides[d], reverse=True):
        length, count = lengths[dim], values.shape[dim]
        whole = count // length * length
        parts = []
        if whole:
            parts.append(reduce(values.narrow(dim, 0, whole).unflatten(dim, (-1, length)), dim + 1))
        if whole < count:
            parts.append(reduce(values.narrow(dim, whole, count - whole), dim, keepdim=True))
        values = torch.cat(parts, dim)
    return values.view(torch.bool) if flags else values


def simple(value: Any) -> Any:
    """The same in fewer bytes: integers in 32 bits, where a few sums and products with small numbers cannot overflow
    them, and a Python bool for what is known of all or of none."""
    if isinstance(value, Truth):
        may, every, some, lacking = map(alike, (value.may, value.every, value.some, value.lacking))
        return Truth(may, every, some, lacking, value.space)
    low, high = value.low, value.high
    integers = isinstance(low, Tensor) and low.dtype is torch.int64 and len(low) > 0
    if integers and max(abs(int(low.min())), abs(int(high.max()))) < SMALL:
        low, high = low.to(torch.int32), high.to(torch.int32)
    return Interval(low, high, alike(value.attained), alike(value.solid), value.space)


def alike(flag: Any) -> Any:
    if not isinstance(flag, Tensor) or not len(flag):
        return flag
    least, most = flag.aminmax()
    return bool(least) if bool(least) == bool(most) else flag


def taken(values: Tensor, at: Tensor) -> Tensor:
    """The last dimension at some positions; one copy for each row, which is several times as fast as one for all."""
    if values.dim() == 1:
        return values.index_select(0, at)
    out = values.new_empty((len(values), len(at)))
    for row, target in zip(values, out, strict=True):
        torch.index_select(row, 0, at, out=target)
    return out


def changed(value: Any, space: int, change: Callable[[Tensor], Tensor]) -> Any:
    """The same change made to all tensors of an interval or a truth, which are then of another space."""

    def made(x: Any) -> Any:
        return change(x) if isinstance(x, Tensor) and x.dim() else x

    if isinstance(value, Truth):
        return Truth(made(value.may), made(value.every), made(value.some), made(value.lacking), space)
    return Interval(made(value.low), made(value.high), made(value.attained), made(value.solid), space)
