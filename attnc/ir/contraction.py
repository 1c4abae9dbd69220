"""Sums of products of tensors with named dimensions: the order of contraction, selection by conditions, scattering.

An operand is a tensor and the names of its dimensions. Dimensions are always in one canonical order (`axis_order`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from attnc.ir import zero_dominant as zd
from attnc.ir.construct import free_axes
from attnc.ir.node import Axes, Iverson, Node, Sum

Dims = tuple[str, ...]
Operand = tuple[Tensor, Dims]
Order = Callable[[Iterable[str]], Dims]
Extent = Callable[[str], int]


def axis_order(order: Sequence[str]) -> Order:
    """Sorts axis names canonically: by `order` of the unprimed name, unknown ones last, fewer primes first."""
    place = {name: k for k, name in enumerate(order)}

    def key(name: str) -> tuple[int, str, int]:
        base = name.rstrip("'")
        return place.get(base, len(place)), base, len(name) - len(base)

    return lambda names: tuple(sorted(names, key=key))


def aligned(value: Tensor, dims: Dims, target: Dims) -> Tensor:
    """`value` viewed with the dimensions `target`, extent 1 where it has none. Both are in canonical order."""
    if dims == target:
        return value
    return value[tuple(slice(None) if a in dims else None for a in target)]


def contract(operands: Sequence[Operand], conditions: Sequence[Operand], keep: Axes, order: Order) -> Operand:
    """The product of `operands` where all `conditions` hold, summed over every axis not in `keep`.

    Operands meet pairwise, the pair with the smallest result first, so that no value wider than needed is made. What an
    operand holds where a condition is false is never seen.
    """
    left = _select(_merge_equal(operands), conditions)
    while True:
        left = [_sum_private(x, left, keep) for x in left]
        if len(left) == 1:
            return left[0]
        a, b = _best_pair(left, keep)
        others = [x for x in left if x is not a and x is not b]
        left = [*others, _pair(a, b, keep.union(*(dims for _, dims in others)), order)]


def _merge_equal(operands: Iterable[Operand]) -> list[Operand]:
    merged: dict[Dims, Tensor] = {}
    for value, dims in operands:
        merged[dims] = zd.multiply(merged[dims], value) if dims in merged else value
    return [(value, dims) for dims, value in merged.items()]


def _select(operands: Sequence[Operand], conditions: Iterable[Operand]) -> list[Operand]:
    """Apply each condition in every operand that has its axes; without one it becomes an operand, 0 or 1."""
    masks: dict[int, Tensor] = {}
    extra: list[Operand] = []
    for condition, names in conditions:
        hosts = [k for k, (_, dims) in enumerate(operands) if set(names) <= set(dims)]
        if not hosts:
            extra.append((condition.to(operands[0][0].dtype), names))
            continue
        for host in hosts:
            mask = aligned(condition, names, operands[host][1])
            masks[host] = masks[host] & mask if host in masks else mask
    selected = [
        (torch.where(masks[k], value, value.new_zeros(())) if k in masks else value, dims)
        for k, (value, dims) in enumerate(operands)
    ]
    return selected + _merge_equal(extra)


def _sum_private(operand: Operand, operands: Sequence[Operand], keep: Axes) -> Operand:
    """Sum out the axes that occur in this operand alone."""
    value, dims = operand
    shared = keep.union(*(x[1] for x in operands if x is not operand))
    over = [k for k, a in enumerate(dims) if a not in shared]
    return (value.sum(over), tuple(a for a in dims if a in shared)) if over else operand


def _best_pair(operands: Sequence[Operand], keep: Axes) -> tuple[Operand, Operand]:
    extent = {a: n for value, dims in operands for a, n in zip(dims, value.shape, strict=True)}

    def cost(pair: tuple[Operand, Operand]) -> tuple[int, int]:
        a, b = pair
        both = {*a[1], *b[1]}
        wanted = keep.union(*(x[1] for x in operands if x is not a and x is not b))
        return math.prod(extent[x] for x in both & wanted), math.prod(extent[x] for x in both)

    return min(combinations(operands, 2), key=cost)


def _pair(a: Operand, b: Operand, keep: Axes, order: Order) -> Operand:
    both = order({*a[1], *b[1]})
    dims = tuple(x for x in both if x in keep)
    if dims == both or not a[0].is_floating_point():
        product = zd.multiply(aligned(*a, both), aligned(*b, both))
        over = [k for k, x in enumerate(both) if x not in keep]
        return (product.sum(over) if over else product), dims
    letter = {x: chr(97 + k) for k, x in enumerate(both)}
    ia, ib, out = ("".join(letter[x] for x in names) for names in (a[1], b[1], dims))
    return zd.contract(a[0], b[0], ia, ib, out), dims


def scatter_axes(node: Sum, extent: Extent) -> tuple[Axes, list[frozenset[str]]]:
    """The bound axes along which a scattered sum is collected before the other factors join, and the values that makes.

    Of all subsets of the index's bound axes, the one for which the values before and after collecting are smallest.
    """
    index_axes = free_axes(n for _, n in node.scatter)
    targets = frozenset(a for a, _ in node.scatter)
    outer = node.axes - targets
    parts = [*node.factors, *node.domain]

    def before(along: frozenset[str]) -> frozenset[str]:
        near = free_axes(p for p in parts if p.axes & along)
        far = free_axes(p for p in parts if not p.axes & along)
        return (near & (outer | far)) | index_axes

    def cost(along: frozenset[str]) -> tuple[int, int]:
        first = before(along)
        sizes = math.prod(map(extent, first)), math.prod(map(extent, first - along)) * math.prod(map(extent, targets))
        return max(sizes), -len(along)

    names = sorted(index_axes & node.bound)
    subsets = [frozenset(s) for n in range(1, len(names) + 1) for s in combinations(names, n)]
    along = min(subsets, key=cost) if subsets else frozenset[str]()
    return along, [before(along), (before(along) - along) | targets]


def collect(
    operand: Operand, indices: Sequence[Operand], ranges: Sequence[range], along: Axes, names: Dims, order: Order
) -> Operand:
    """Add an operand up by index: the axes `along` give way to axes `names`, one per index, that sort last.

    Only the positions `ranges` of the new axes are collected.
    """
    grouped = _grouped(operand, indices, ranges, along)
    if grouped is not None:
        return grouped[0], (*grouped[1], *names)
    every = order({*operand[1], *(a for _, dims in indices for a in dims)})
    extent = {a: n for value, dims in [operand, *indices] for a, n in zip(dims, value.shape, strict=True)}
    shape = [extent[a] for a in every]
    extents = [len(r) for r in ranges]
    device = operand[0].device
    linear = torch.zeros((), dtype=torch.int64, device=device)
    inside = torch.ones((), dtype=torch.bool, device=device)
    for (index, dims), r in zip(indices, ranges, strict=True):
        position = aligned(index, dims, every) - r.start
        inside = inside & (position >= 0) & (position < len(r))
        linear = linear * len(r) + position.clamp(0, max(len(r) - 1, 0))
    kept = tuple(a for a in every if a not in along)
    axes = [every.index(a) for a in (*kept, *order(along))]
    rows = [shape[every.index(a)] for a in kept]
    count = math.prod(shape[every.index(a)] for a in along)

    def flat(t: Tensor) -> Tensor:
        return t.expand(shape).permute(axes).reshape([*rows, count])

    source = flat(torch.where(inside, aligned(*operand, every), operand[0].new_zeros(())))
    total = source.new_zeros([*rows, math.prod(extents)]).scatter_add(-1, flat(linear), source)
    return total.reshape([*rows, *extents]), (*kept, *names)


def _grouped(operand: Operand, indices: Sequence[Operand], ranges: Sequence[range], along: Axes) -> Operand | None:
    """The same without an index per element, where each position collects equally many neighbours: heads of a group."""
    value, dims = operand
    if len(indices) != 1 or len(along) != 1 or indices[0][1] != tuple(along) or not along <= set(dims):
        return None
    at, (index, _), (kept,) = dims.index(next(iter(along))), indices[0], ranges
    total, count = value.shape[at], len(kept)
    if index.shape[0] != total or count == 0 or total % count:
        return None
    heads = torch.arange(total, device=index.device) // (total // count) + kept.start
    if not bool((index == heads).all()):
        return None
    rest = tuple(a for a in dims if a not in along)
    if total == count:
        return value.movedim(at, -1), rest
    return value.unflatten(at, (count, total // count)).sum(at + 1).movedim(at, -1), rest


def split(nodes: Iterable[Node]) -> tuple[list[Node], list[Node]]:
    """Factors that are numbers, and the conditions of those that are brackets."""
    nodes = list(nodes)
    numbers = [n for n in nodes if not isinstance(n, Iverson)]
    return numbers, [n.condition for n in nodes if isinstance(n, Iverson)]
