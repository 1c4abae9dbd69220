"""Linear time: a causal sum whose weights separate becomes a sum over near positions plus a carried state.

The outer axis is cut into chunks. For a query i of chunk c and a key before the chunk, the weight separates at the
chunk's edge (`attnc.passes.scan_factors`), so that all keys before the chunk act through one matrix:

o[i, e] = sum_j[cut(c) <= j <= i](weight * v)  +  sum_d(q'[i, d] * state[c, d, e])
state[c, d, e] = sum_j[j < cut(c)](k'[j, d] * v[j, e])

Written as index notation, the state is one more reduction over a plane, that of keys and chunks. What is special about
it is only how it is computed: each chunk's state from the one before (`Carry`), in one pass over the keys. Sums over
later queries (the gradients of keys and values) are the same with the order reversed. The form is that of chunked
linear attention (Hua et al. 2022, arXiv:2202.10447; Yang et al. 2023, arXiv:2312.06635; Dao and Gu 2024,
arXiv:2405.21060).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from attnc.ir.construct import ONE, add, axis, call, const, max_over, mul, raw_sum, sub
from attnc.ir.node import Axes, Max, Node, Sum
from attnc.ir.program import AxisInfo, Program
from attnc.ir.walk import postorder, rebuild
from attnc.passes.associate import product
from attnc.passes.chunks import CHUNK, CHUNK_OF_CHANNELS, Chunks, chunks
from attnc.passes.decision import Decision
from attnc.passes.multiply_out import Parts, parts_of
from attnc.passes.planes import Planes, Reduction
from attnc.passes.scan_cost import carried, left
from attnc.passes.scan_factors import Apart, apart
from attnc.passes.scan_unit import Unit, unit


@dataclass(frozen=True, slots=True)
class Carry:
    """How a state moves on by one chunk, before the chunk's own positions are added.

    ``state = step * (state + shift * base)``; `base` is another state, None where there is nothing to add. What depends
    on a running maximum follows it besides.
    """

    step: Node = ONE
    shift: int = 0
    base: Reduction | None = None

    def renamed(self, new: Mapping[Reduction, Reduction]) -> Carry:
        """The same with the base as it is called now."""
        return self if self.base is None else replace(self, base=new[self.base])


@dataclass
class Scans:
    """The states of a program: the reductions that are carried, with their chunks and steps; in order."""

    states: dict[Reduction, tuple[Chunks, Carry]] = field(default_factory=dict)
    wholes: dict[Node, Reduction] = field(default_factory=dict)
    """What reductions were split into, and the near part of each."""
    decisions: list[Decision] = field(default_factory=list)

    def chunks(self, node: Node) -> Chunks | None:
        """The chunks of a state; None for other nodes."""
        found = self.states.get(node)  # type: ignore[call-overload]
        return found[0] if found else None

    def axes(self, program: Program) -> dict[str, AxisInfo]:
        """The program's axes and the numbers of chunks."""
        every = {c.axis: c for c, _ in self.states.values()}
        numbers = {a: AxisInfo(a, c.count(program.extent(c.outer)), "sequence") for a, c in every.items()}
        return {**program.axes, **numbers}


def split(roots: Sequence[Node], planes: Planes) -> tuple[list[Node], Scans]:
    """Split every reduction that can be, unless others of the same pass need the whole plane anyway.

    What is near is added up as it is written. Multiplied out, it would be a difference of sums: where a row sees few
    keys, those are large and what is left is small.
    """
    scans = Scans()
    every = {r: parts_of(r, planes) for r in planes.plane_reductions(roots)}
    passes: dict[tuple[Axes, Axes], list[Reduction]] = {}
    for r in every:
        passes.setdefault((planes.span(r), r.bound), []).append(r)
    found: dict[Reduction, Parts] = {}
    lengths: dict[Reduction, int] = {}
    for members in passes.values():
        parts = {r: p for r in members if (p := every[r]) is not None}
        if len(parts) == len(members):
            found |= parts
            lengths |= dict.fromkeys(members, _length(u for p in parts.values() for u in p.units.values()))
        elif parts:
            other = next(r for r in members if r not in parts)
            scans.decisions.append(left(planes, list(parts), other))
    if not lengths:
        return list(roots), scans
    memo: dict[Node, Node] = {}
    splits: dict[Chunks, list[Reduction]] = {}
    for node in postorder(roots):
        new = rebuild(node, tuple(memo[c] for c in node.children), canonical=False)
        if isinstance(node, Sum | Max) and node in lengths:
            assert isinstance(new, Sum | Max)
            near, far, whole = _split(new, found[node], lengths[node], planes, scans, memo)
            splits.setdefault(whole, []).append(node)
            new = call("maximum", near, far) if isinstance(node, Max) else add(near, far)
            scans.wholes[new] = near
        memo[node] = new
    for whole, members in splits.items():
        scans.decisions.append(carried(planes, whole, members, [r for r, (c, _) in scans.states.items() if c == whole]))
    return [memo[r] for r in roots], scans


def _split(
    node: Reduction, parts: Parts, length: int, planes: Planes, scans: Scans, memo: Mapping[Node, Node]
) -> tuple[Reduction, Node, Chunks]:
    """The near part of a reduction, its far part, and the chunks they are near to or far from.

    `node` is as it is after its children were split, `parts` as it was before; `memo` has what they have become.
    """
    new = dict(memo)
    splitters: list[_Splitter] = []
    parted: set[Node] = set()
    """What holds a unit: `memo` has the whole of it, where it is read besides."""
    for n in postorder([parts.root]):
        if n in parts.units:
            changed = rebuild(n, tuple(new[c] for c in n.children), canonical=False)
            assert isinstance(changed, Sum | Max)
            moved = unit(changed, planes)
            assert moved is not None
            place = chunks(planes.program, moved.outer, moved.inner, moved.ordering, length)
            splitters.append(_Splitter(planes, scans, moved, place))
            new[n] = splitters[-1].far(changed)
            parted.add(n)
        elif n not in new or not parted.isdisjoint(n.children):
            parted |= {n} if not parted.isdisjoint(n.children) else set()
            new[n] = rebuild(n, tuple(new[c] for c in n.children), canonical=False)
    first = splitters[0].chunks
    return _near(node, first), new[parts.root], first


def _near(node: Reduction, chunks: Chunks) -> Reduction:
    domain = [*node.domain, chunks.near]
    if isinstance(node, Max):
        found = max_over(node.bound, node.body, domain)
        assert isinstance(found, Max)
        return found
    return raw_sum(node.bound, node.factors, domain)


def _length(units: Iterable[Unit]) -> int:
    channels = any(u.product is not None and u.product.per_channel for u in units)
    return CHUNK_OF_CHANNELS if channels else CHUNK


class _Splitter:
    """The far part of one reduction."""

    def __init__(self, planes: Planes, scans: Scans, unit: Unit, chunks: Chunks) -> None:
        self.planes, self.scans, self.unit, self.chunks = planes, scans, unit, chunks

    def far(self, node: Reduction) -> Node:
        """What is far, of the reduction this was made for."""
        return self._largest(node.body) if isinstance(node, Max) else self._far()

    def _state(self, node: Reduction, carry: Carry) -> Reduction:
        return self.scans.states.setdefault(node, (self.chunks, carry)) and node

    def _largest(self, body: Node) -> Reduction:
        """The largest value at a far position."""
        found = max_over({self.chunks.inner}, body, [*self.unit.alone, self.chunks.far])
        assert isinstance(found, Max)
        return self._state(found, Carry())

    def _far(self) -> Node:
        found = self.unit.product
        assert found is not None
        chunks = self.chunks
        parts = apart(found, axis(chunks.outer), axis(chunks.inner), chunks.edge, self._largest)
        moved = chunks.length if chunks.forward else -chunks.length
        step = parts.step(const(moved))
        base = self._sum(parts.inner, Carry(step))
        if not parts.sign:
            return self._read(base, parts)
        distance = mul(const(parts.sign), sub(axis(chunks.inner), chunks.edge))
        more = self._sum([*parts.inner, distance], Carry(step, -parts.sign * moved, base))
        return add(product([parts.remaining, self._read(base, parts)]), self._read(more, parts))

    def _sum(self, factors: Sequence[Node], carry: Carry) -> Reduction:
        node = raw_sum({self.chunks.inner}, factors, [*self.unit.alone, self.chunks.far])
        return self._state(node, carry)

    @staticmethod
    def _read(state: Node, parts: Apart) -> Node:
        """What a state contributes to one outer position."""
        value = state
        for channel, outer in parts.sides:
            factors = [*outer, value]
            value = product(factors) if channel is None else raw_sum({channel}, factors)
        return value


def lost(state: Node) -> Node:
    """What rounding has taken from a state."""
    return call("lost", state)


def with_chunks(program: Program, scans: Scans) -> Program:
    """The program with the axes of chunks."""
    return replace(program, axes=scans.axes(program)) if scans.states else program
