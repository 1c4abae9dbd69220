"""Streaming: a causal program as one that takes what came before as a state, and returns the state after.

Where every reduction over keys can be split into near and far (`attnc.passes.scan`), a call may cover a piece of the
sequence: keys of earlier pieces are far, and act through the state alone. The result is a program like any other, with
states as further inputs and outputs, so that gradients flow through a carried state without a rule of their own.

o[i] = sum_j[j <= i](w[i, j] * v[j])   becomes   o[i] = sum_j[j <= i](w[i, j] * v[j]) + q'[i] * state
                                                 state_after = decay * state + sum_j(k'[j] * v[j])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from attnc.ir.construct import add, axis, call, const, load, max_over, mul, neg, size, sub, sum_over
from attnc.ir.node import Axis, Load, Max, Node, Size, Sum
from attnc.ir.program import Check, Output, Program, Tensor
from attnc.ir.walk import postorder, rebuild
from attnc.passes.associate import associate
from attnc.passes.multiply_out import multiply_out
from attnc.passes.planes import Planes
from attnc.passes.reuse import ordered
from attnc.passes.scan_factors import Apart, apart
from attnc.passes.scan_unit import Unit, unit

SUFFIX = "_after"


class NotStreamable(Exception):
    """Says what of a program needs more of the past than a state."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A state: its name as an input, and the value it has before the first position."""

    name: str
    dims: tuple[Node, ...]
    initial: float


@dataclass(frozen=True, slots=True)
class Streaming:
    """A program over a piece of the sequence; its last outputs are the states after it, in the order of `states`."""

    program: Program
    states: tuple[Carried, ...]


def streaming(program: Program) -> Streaming:
    """The program that takes and returns states. Positions of a piece begin at ``q_start``, and it has M = N.

    Raises:
        NotStreamable: if a reduction needs all keys, or positions beyond the piece.
    """
    return _Streams(program).streamed()


@dataclass
class _Streams:
    program: Program
    states: dict[Node, Carried] = field(default_factory=dict)
    """By what is added up, or whose maximum is taken."""
    after: dict[str, Node] = field(default_factory=dict)
    memo: dict[Node, Node] = field(default_factory=dict)

    def streamed(self) -> Streaming:
        program = self.program
        self.planes = Planes(program)
        self.keys = frozenset(a for a, info in program.axes.items() if info.extent is size("N"))
        # First, because cosines of positions separate for all pieces alike only as long as positions are absolute.
        roots = multiply_out(program.roots(), self.planes)
        values = iter([self._carried(self._within_piece(r)) for r in roots])
        outputs = tuple(replace(o, parts=tuple((axes, next(values)) for axes, _ in o.parts)) for o in program.outputs)
        tensors, more = [], []
        for expression, state in self.states.items():
            axes = self._axes(expression)
            tensors.append(Tensor(state.name, state.dims, "real"))
            more.append(Output(state.name + SUFFIX, ((axes, self.after[state.name]),), state.dims, "real"))
        square = Check(call("eq", size("M"), size("N")), "a call with a state covers as many queries as keys")
        checks = (square, *(replace(c, relation=_later(c.relation)) for c in program.checks))
        whole = replace(
            program,
            name=f"{program.name}_piece",
            tensors=(*program.tensors, *tensors),
            outputs=(*outputs, *more),
            checks=checks,
        )
        return Streaming(whole, tuple(self.states.values()))

    # ------------------------------------------------------------------------------------------------- positions

    def _within_piece(self, root: Node) -> Node:
        """Positions of keys count from the start of the sequence, subscripts of what a call is given from the piece."""
        memo: dict[Node, Node] = {}
        for node in postorder([root]):
            children = tuple(memo[c] for c in node.children)
            match node:
                case Axis() if node.name.rstrip("'") in self.keys:
                    memo[node] = add(node, size("q_start"))
                case Size() if node.name in ("M", "N"):
                    raise NotStreamable(f"it depends on the length {node.name}, which a piece does not know")
                case Load():
                    dims = self.program.tensor(node.tensor).dims
                    index = [self._subscript(node, x, d) for x, d in zip(children, dims, strict=True)]
                    memo[node] = load(node.tensor, index, node.kind)
                case _:
                    memo[node] = rebuild(node, children)
        return memo[root]

    def _subscript(self, node: Load, index: Node, dim: Node) -> Node:
        if dim is not size("N"):
            return index
        inside = sub(index, size("q_start"))
        if not isinstance(inside, Axis):
            raise NotStreamable(f"it reads `{node.tensor}` at other positions than those of queries and keys")
        return inside

    # ------------------------------------------------------------------------------------------------ reductions

    def _carried(self, root: Node) -> Node:
        """An expression with the past added to every reduction over positions."""
        memo = self.memo
        for node in postorder([root]):
            if node in memo:
                continue
            memo[node] = rebuild(node, tuple(memo[c] for c in node.children))
            if isinstance(node, Sum | Max) and self.planes.is_reduction(node):
                memo[node] = self._with_past(self._unit(node), memo[node])
        return memo[root]

    def _with_past(self, found: Unit, here: Node) -> Node:
        """A reduction over a piece and all before it. What is far separates as in the spec: parts of an exponent that
        cancel within a piece do not cancel between two."""
        if found.product is None:
            assert isinstance(here, Max)
            return call("maximum", here, self._largest(found, here.body)[0])
        carried = found.product.mapped(self._carried)
        alone = tuple(self._carried(c) for c in found.alone)
        return add(here, self._far(replace(found, product=carried, alone=alone)))

    def _unit(self, node: Sum | Max) -> Unit:
        (root,) = associate([node], self.planes, grouped=False)
        found = unit(root, self.planes) if isinstance(root, Sum | Max) else None
        if found is None or not found.ordering.forward:
            raise NotStreamable("a reduction over keys is not causal, or its weights do not separate")
        if found.ordering.reach not in (const(0), const(-1)) or found.inner.rstrip("'") not in self.keys:
            raise NotStreamable("its mask does not order keys by whether they come before the query")
        return found

    def _axes(self, expression: Node) -> tuple[str, ...]:
        kept = self.planes.batches(expression.axes) | self.planes.channels(expression.axes)
        return ordered(kept)

    def _state(self, expression: Node, initial: float) -> tuple[Node, Carried]:
        """The state that adds up an expression over positions: its value before the piece."""
        axes = self._axes(expression)
        if expression not in self.states:
            taken = {t.name for t in self.program.tensors} | {s.name for s in self.states.values()}
            name = next(n for k in range(len(taken) + 1) if (n := f"state_{k}") not in taken)
            dims = tuple(self.program.extent(a) for a in axes)
            self.states[expression] = Carried(name, dims, initial)
        state = self.states[expression]
        return load(state.name, [axis(a) for a in axes]), state

    def _largest(self, found: Unit, body: Node) -> tuple[Node, Node]:
        """The largest value of an expression before the piece, and after it."""
        here = max_over({found.inner}, body, found.alone)
        before, state = self._state(here, -math.inf)
        self.after.setdefault(state.name, call("maximum", before, here))
        return before, self.after[state.name]

    def _far(self, found: Unit) -> Node:
        """What earlier pieces contribute to a sum."""
        assert found.product is not None
        outer, inner = axis(found.outer), axis(found.inner)
        length = self.program.extent(found.inner)
        moved: list[Node] = []

        def before(body: Node) -> Node:
            return call("detach", self._largest(found, body)[0])

        def after(body: Node) -> Node:
            return call("detach", self._largest(found, body)[1])

        start = apart(found.product, outer, inner, const(-1), before)
        end = apart(found.product, outer, inner, sub(length, const(1)), after)
        for side in found.product.sides:
            moved += [e.of(before(e.inner), neg(call("finite_or_zero", after(e.inner)))) for e in side.exponentials]
        step = mul(end.step(length), *moved)
        base = self._sum(found, end.inner, step, lambda s: s)
        if not start.sign:
            return _read(base, start)
        distance = mul(const(end.sign), sub(inner, sub(length, const(1))))
        shift = mul(const(-end.sign), length, base)
        more = self._sum(found, [*end.inner, distance], step, lambda s: add(s, shift))
        return add(mul(start.remaining, _read(base, start)), _read(more, start))

    def _sum(self, found: Unit, factors: list[Node], step: Node, moved: Callable[[Node], Node]) -> Node:
        here = sum_over({found.inner}, factors, found.alone)
        before, state = self._state(here, 0.0)
        self.after.setdefault(state.name, add(mul(step, moved(before)), here))
        return before


def _read(state: Node, parts: Apart) -> Node:
    """What a state contributes to one position."""
    value = state
    for channel, outer in parts.sides:
        value = mul(*outer, value) if channel is None else sum_over({channel}, [*outer, value])
    return value


def _later(relation: Node) -> Node:
    """A relation between sizes where N keys are those of a whole sequence, for a piece of it."""
    memo: dict[Node, Node] = {}
    for node in postorder([relation]):
        new = rebuild(node, tuple(memo[c] for c in node.children))
        memo[node] = add(new, size("q_start")) if node is size("N") else new
    return memo[relation]
