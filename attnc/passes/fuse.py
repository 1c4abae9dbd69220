"""A row pass and a column pass over the same plane as one loop, where programs of a target run in order.

The two passes of a gradient evaluate the same scores and weights, one for each row and one for each column: seven
matrix products for softmax where five would do. In one pass, the *host*, everything stays as it is; the sums of the
other, the *guest*, run over the host's outer axis, so each block of it adds its part to memory (`Pass.adds`). That is
done where

1. neither pass reads what the other's reductions make, and neither keeps maxima, scatters, scans or stores a plane;
2. both run over the same heads, or the host loops over those that share a key head.

What the guest stores besides its reductions (softmax's ``delta``), and any sum over channels that it needs per
position, is computed by a pass over vectors before; what it makes of its reductions, by one after.

Blocks of the host's outer axis that add to the same memory run in order. So that threads have something to do where
there are few heads, the blocks of each are dealt out to at most `MOST` programs, each with sums of its own, which the
pass over vectors adds up in order. How many depends on sizes and on the machine's cores, never on the number of threads
that run: for any of those, results are the same bits. Addition to memory from many programs at once would need atomics
on a GPU, so GPUs keep two passes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations

from attnc.ir.construct import axis, call, const, load, mul, raw_add, raw_prod, raw_sum
from attnc.ir.node import Add, Axis, Call, Const, Load, Node, Prod, Sum
from attnc.ir.notes import tracking
from attnc.ir.program import AxisInfo
from attnc.ir.sizes import evaluator
from attnc.ir.walk import postorder, rebuild
from attnc.ir.walk import replace as replace_nodes
from attnc.passes.cost import Cost, plan_cost
from attnc.passes.decision import Alternative, Decision
from attnc.passes.plan import Buffer, Finish, Pass, Plan, expressions
from attnc.passes.planes import Planes
from attnc.passes.reuse import ordered

Store = tuple[str, tuple[str, ...], Node]
"""What a pass writes: the buffer, the axes of its dimensions, and the value."""

FEWEST = 8
"""Programs in all that even a machine of few cores has."""
LEAST = 512
"""Positions of the outer axis that each program has at least."""
MOST = 6
"""Programs among which the blocks of one head are dealt out, at most: the sums of each are as large as the result."""
INTENSITY = 8
"""Operations a core does in the time it reads or writes one byte of a cache."""
NOMINAL = {"B": 1, "H": 8, "G": 8, "M": 4096, "N": 4096, "D": 64, "E": 64, "q_start": 0}
"""The call that costs are compared for; other sizes are 64."""


@cache
def tasks() -> int:
    """Programs in all from which on blocks are not dealt out further: two or more for each core of the machine."""
    return max(FEWEST, 2 << ((os.cpu_count() or 1) - 1).bit_length())


def fused(plan: Plan, programs: int | None = None) -> Plan:
    """The plan with every such pair of passes as one that costs less so; the plan itself if there is none.

    Args:
        programs: from how many programs in all blocks are not dealt out further; `tasks` if not given.
    """
    if not plan.program.options.applies("fuse"):
        return plan
    with tracking(plan.program.notes):
        while True:
            found = _cheaper(plan, programs or tasks())
            if found is None:
                return plan
            plan = found


def decisions(plan: Plan) -> tuple[Decision, ...]:
    """That passes of a plan can be one: one decision, the same on every machine.

    It takes as long as planning, so it is for explanations.
    """
    one = fused(plan, FEWEST)
    if one is plan:
        return ()
    joint = [s for s in one.passes if s.adds]
    pairs = "; ".join(f"{_listed(s.stores)} and the sums behind {_listed(s.adds)}" for s in joint)
    said = "on a CPU one loop makes both, and adds the latter up in memory; on a GPU each has its own"
    ways = (_alternative("in one loop", one), _alternative("in a loop each", plan))
    return (Decision("fuse", f"{pairs} come of the same pairs of positions", said, ways),)


def _listed(stores: Iterable[Store]) -> str:
    return ", ".join(dict.fromkeys(name for name, _, _ in stores))


def _alternative(name: str, plan: Plan) -> Alternative:
    cost = plan_cost(plan)
    return Alternative(name, cost.bytes, cost.flops)


# ------------------------------------------------------------------------------------------------- where it applies


@dataclass(frozen=True, slots=True)
class Pair:
    """Two passes, by their places in the plan, and ``h // n`` in the guest's terms with the host's axis for it."""

    guest: int
    host: int
    shared: tuple[Node, Node] | None


def _pairs(plan: Plan) -> Iterator[Pair]:
    """The pairs of passes that can be one; guests in row passes first, since a host keeps the heads of a group."""
    steps = list(enumerate(plan.steps))
    loops = [(k, s) for k, s in steps if isinstance(s, Pass) and s.inner is not None and s.outer is not None]
    for (k, guest), (n, host) in sorted(permutations(loops, 2), key=lambda p: p[0][1].direction != "row"):
        if (guest.outer, guest.inner) != (host.inner, host.outer) or guest.groups:
            continue
        if not _is_plain(plan, guest) or not _is_plain(plan, host) or not _are_independent(plan, k, n):
            continue
        shared = _shared(host)
        heads = {shared[1].name if shared and a in _looped(host) else a for a in guest.grid}
        if heads == set(host.grid) and set(guest.grid) - set(host.grid) == _looped(host):
            yield Pair(k, n, shared)


def _looped(item: Pass) -> set[str]:
    return {a for a, _, _ in item.groups}


def _is_plain(plan: Plan, item: Pass) -> bool:
    """Whether a pass keeps sums alone, and stores values of its outer axis alone."""
    if item.carries or item.chunks or item.adds or item.part is not None or item.range is not None:
        return False
    stored = all(item.outer in axes and item.inner not in axes for _, axes, _ in item.stores)
    tables = any(plan.program.axis(a).role == "table" for _, axes, _ in item.stores for a in axes)
    return stored and not tables and all(isinstance(r, Sum) and not r.scatter for r in item.reductions)


def _are_independent(plan: Plan, k: int, n: int) -> bool:
    """Whether nothing from the first of two passes to the second reads what the first one's reductions make."""
    first, last = sorted((k, n))
    item = plan.steps[first]
    assert isinstance(item, Pass)
    made = {name for name, _, node in item.stores if first != k or _mentions(item, node)}
    later = (s for s in plan.steps[first + 1 : last + 1])
    read = {x.tensor for s in later for x in postorder(expressions(s)) if isinstance(x, Load)}
    return not made & read


def _mentions(item: Pass, node: Node) -> bool:
    return bool(set(item.reductions) & set(postorder([node])))


def _shared(host: Pass) -> tuple[Call, Axis] | None:
    """The key head of a query head, ``h // n``, and the axis that is in the host's terms."""
    for r in host.reductions if host.groups else ():
        for c in r.domain if isinstance(r, Sum) else ():
            for x, y in (c.children, c.children[::-1]) if isinstance(c, Call) and c.fn == "eq" else ():
                if isinstance(x, Call) and x.fn == "floordiv" and isinstance(y, Axis) and x.axes <= _looped(host):
                    return x, y
    return None


# ------------------------------------------------------------------------------------------------------ how it is done


def _cheaper(plan: Plan, programs: int) -> Plan | None:
    """The plan with the first pair of passes as one for which the model of costs finds that cheaper."""
    pairs = list(_pairs(plan))
    if not pairs:
        return None
    apart = _time(plan_cost(plan), plan)
    ways = (_Fusion(plan, pair, programs).plan() for pair in pairs)
    return next((one for one in ways if _time(plan_cost(one), plan) < apart), None)


def _time(cost: Cost, plan: Plan) -> float:
    sizes = dict.fromkeys((s.name for s in plan.program.sizes), 64) | NOMINAL
    return float(evaluator(cost.flops)(sizes) + INTENSITY * evaluator(cost.bytes)(sizes))


class _Fusion:
    """One pair of passes on the way to one."""

    def __init__(self, whole: Plan, pair: Pair, programs: int) -> None:
        self.whole, self.pair, self.programs = whole, pair, programs
        guest, host = whole.steps[pair.guest], whole.steps[pair.host]
        assert isinstance(guest, Pass) and isinstance(host, Pass) and guest.outer is not None
        self.guest, self.host, self.rows = guest, host, guest.outer
        self.program = whole.program
        self.planes = Planes(self.program)
        self.taken = {*self.program.axes, *(t.name for t in self.program.tensors), *(b.name for b in whole.buffers)}
        self.buffers = list(whole.buffers)
        self.part = self._fresh(f"{host.outer}_part")

    def plan(self) -> Plan:
        before = [s for s in self.guest.stores if not _mentions(self.guest, s[2])]
        after = [s for s in self.guest.stores if s not in before]
        parts = self._parts()
        self.program = replace(self.program, axes={**self.program.axes, self.part: AxisInfo(self.part, parts, "batch")})
        rows = self._row_values(before)
        before += rows
        known = {n: load(name, [axis(a) for a in axes]) for name, axes, n in before if not isinstance(n, Load | Const)}
        adds, totals = self._adds(known, after)
        loop = replace(
            self.host,
            name=f"fused_{self.host.name}",
            grid=(*self.host.grid, self.part),
            adds=adds,
            reads=tuple(sorted({*self.host.reads, *(self.guest.reads), *(name for name, _, _ in before)})),
        )
        steps: list[Pass | Finish | None] = list(self.whole.steps)
        steps[self.pair.guest] = self._vectors(before, {}) if before else None
        last = max(self.pair.guest, self.pair.host)
        steps[self.pair.host] = None
        steps[last : last + 1] = [steps[last], loop, self._vectors(after, {**known, **totals})]
        kept = tuple(s for s in steps if s is not None)
        return replace(self.whole, program=self.program, steps=kept, buffers=tuple(self.buffers))

    def _parts(self) -> Node:
        """How many programs share out the blocks of a head."""
        program, host = self.program, self.host
        assert host.outer is not None
        heads = call("maximum", mul(const(1), *(program.extent(a) for a in host.grid)), const(1))
        wanted = call("floordiv", _plus(heads, self.programs - 1), heads)
        enough = call("floordiv", program.extent(host.outer), const(LEAST))
        return call("maximum", call("minimum", call("minimum", wanted, enough), const(MOST)), const(1))

    def _row_values(self, stored: Sequence[Store]) -> list[Store]:
        """Sums over channels that the guest needs per position: in the host they would be summed for every block."""
        planes, known = self.planes, {node for _, _, node in stored}
        out: list[Store] = []
        for node in postorder(self.guest.reductions):
            if not isinstance(node, Sum) or node in known or planes.sequences(node.axes) != frozenset({self.rows}):
                continue
            if planes.sequences(node.bound) or planes.channels(node.axes) or node in self.guest.reductions:
                continue
            name = self._buffer(self._fresh("row_sum"), ordered(node.axes))
            out.append((name, ordered(node.axes), node))
        return out

    def _adds(self, known: Mapping[Node, Node], after: Sequence[Store]) -> tuple[tuple[Store, ...], dict[Node, Node]]:
        """The guest's reductions in the host's terms with the buffers they add to, and their totals over all parts."""
        nodes = replace_nodes(self.guest.reductions, known, canonical=False)
        if self.pair.shared is not None:
            index, key_head = self.pair.shared
            nodes = replace_nodes(nodes, {index: key_head}, canonical=False)
        nodes = _in_terms_of(nodes, self.host.reductions)
        adds, totals = [], dict[Node, Node]()
        for r, node in zip(self.guest.reductions, nodes, strict=True):
            stem = next((name for name, _, n in after if r in postorder([n])), "sum")
            channels = ordered(a for a in r.axes if self.planes.role(a) == "channel")
            axes = (self.part, *self.guest.grid, self.rows, *channels)
            name = self._buffer(self._fresh(f"{stem}_parts"), axes)
            adds.append((name, axes, node))
            totals[r] = raw_sum({self.part}, [load(name, [axis(a) for a in axes])])
        return tuple(adds), totals

    def _vectors(self, stores: Sequence[Store], known: Mapping[Node, Node]) -> Pass:
        """A pass over vectors that stores what the guest did."""
        values = replace_nodes([node for _, _, node in stores], known, canonical=False)
        sums = dict.fromkeys(n for n in postorder(values) if isinstance(n, Sum) and n.bound == frozenset({self.part}))
        read = {n.tensor for n in postorder(values) if isinstance(n, Load)} & {b.name for b in self.buffers}
        return Pass(
            "_".join(["vector", *(name for name, _, _ in stores[:2])]),
            "vector",
            self.guest.grid,
            self.rows,
            None,
            tuple(sums),
            tuple((name, axes, n) for (name, axes, _), n in zip(stores, values, strict=True)),
            tuple(sorted(read)),
            ((self.part, const(0), self.program.extent(self.part)),) if sums else (),
        )

    def _buffer(self, name: str, axes: tuple[str, ...]) -> str:
        dims = tuple(self.program.extent(a) for a in axes)
        self.buffers.append(Buffer(name, axes, dims, "real", "scratch"))
        return name

    def _fresh(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name


def _plus(node: Node, number: int) -> Node:
    return raw_add([node, const(number)])


def _in_terms_of(nodes: Sequence[Node], others: Sequence[Node]) -> list[Node]:
    """The same values, made of the very nodes that `others` are made of where only the order of operands differs."""
    memo: dict[Node, Node] = {}
    known: dict[Node, Node] = {}
    for n in postorder(others):
        known.setdefault(_sorted(n, memo), n)
    out: dict[Node, Node] = {}
    for n in postorder(nodes):
        new = rebuild(n, tuple(out[c] for c in n.children), canonical=False)
        out[n] = known.get(_sorted(n, memo), new)
    return [out[n] for n in nodes]


def _sorted(node: Node, memo: dict[Node, Node]) -> Node:
    """A node with the operands of sums and products in one order, whatever order they came in."""
    for n in postorder([node]):
        if n in memo:
            continue
        children = tuple(memo[c] for c in n.children)
        match n:
            case Add():
                memo[n] = raw_add(sorted(children, key=lambda c: c.digest))
            case Prod():
                memo[n] = raw_prod(sorted(children, key=lambda c: c.digest))
            case Sum():
                k, m = len(n.factors), len(n.domain)
                factors, domain = (sorted(x, key=lambda c: c.digest) for x in (children[:k], children[k : k + m]))
                scatter = [(a, c) for (a, _), c in zip(n.scatter, children[k + m :], strict=True)]
                memo[n] = raw_sum(n.bound, factors, domain, scatter)
            case _:
                memo[n] = rebuild(n, children, canonical=False)
    return memo[node]
