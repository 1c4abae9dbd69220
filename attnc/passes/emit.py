"""Emission of tile statements for one pass: every value is computed once, in the outermost block where it can be.

Blocks nest: the kernel's prologue, the loop over the inner axis, loops over single channels (`Each`), and the epilogue
after the loop. A value lives in the innermost block that binds one of its axes or owns a reduction it mentions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from attnc.codegen.tile import Accumulate, AccumulateAt, Assign, Each, Scatter, Stmt
from attnc.ir.functions import is_block
from attnc.ir.node import (
    NO_AXES,
    ZERO,
    Add,
    Axes,
    Axis,
    Call,
    Const,
    Iverson,
    Load,
    Max,
    Node,
    Prod,
    Size,
    Sum,
    Var,
    call,
    const,
    factors_of,
    free_axes,
    iverson,
    load,
    max_over,
    raw_add,
    raw_call,
    raw_prod,
    raw_sum,
    size,
    var,
)
from attnc.ir.node import (
    axis as axis_node,
)
from attnc.ir.program import Note, Program
from attnc.ir.walk import postorder
from attnc.ir.walk import replace as replace_nodes
from attnc.passes.exponents import unit_and_terms


@dataclass(eq=False)
class Block:
    """A list of statements under construction, the values named in it, and the axis it binds (None: prologue)."""

    axis: str | None
    body: list[Stmt] = field(default_factory=list)
    values: dict[Node, Node] = field(default_factory=dict)


@dataclass
class Emitter:
    """Emission state of one kernel.

    `lanes` are the axes tile values may spread over; `sums` are the sums of the pass; `names` are default names of
    values; `running` maps each reduction of the pass to the variable that holds it at the current point and `held` are
    the variables that hold them between blocks; `uses` counts how often each node is read; `ordered` are the sums and
    products that every pass rounds alike (see `scores_below`).
    """

    program: Program
    lanes: tuple[str, ...]
    inner: str | None
    uses: dict[Node, int]
    sums: tuple[Add, ...] = ()
    names: dict[Node, str] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=lambda: [Block(None)])
    running: dict[Node, Node] = field(default_factory=dict)
    held: frozenset[Node] = frozenset()
    taken: set[str] = field(default_factory=set)
    loop_names: set[str] = field(default_factory=set)
    all_loop_names: set[str] = field(default_factory=set)
    depends: dict[Node, bool] = field(default_factory=dict)
    scores: set[Node] = field(default_factory=set)
    ordered: set[Node] = field(default_factory=set)
    others: dict[str, list[str]] = field(default_factory=dict)
    """Further names of axes, for reductions inside a loop over the axis."""

    # ------------------------------------------------------------------------------------------------- names

    def name(self, node: Node, default: str, *, inside: bool = False) -> str:
        """A fresh identifier. Copies of the loop may repeat each other's names; nothing outside them may."""
        note = self.program.notes.get(node)
        stem = re.sub(r"\W", "_", note.name if isinstance(note, Note) else self.names.get(node, default))
        used = self.taken | self.loop_names | self.reserved()
        if not inside:
            used |= self.all_loop_names
        k, candidate = 1, stem
        while candidate in used:
            k += 1
            candidate = f"{stem}_{k}"
        (self.loop_names if inside else self.taken).add(candidate)
        return candidate

    def enter_loop(self) -> None:
        self.loop_names = set()

    def leave_loop(self) -> None:
        self.all_loop_names |= self.loop_names
        self.loop_names = set()

    def is_inside(self, home: Block) -> bool:
        """Whether a block is the inner loop or nested in it."""
        place = next((k for k, b in enumerate(self.blocks) if b.axis == self.inner), len(self.blocks))
        return home in self.blocks[place:] or home not in self.blocks

    def from_seed(self, node: Node) -> bool:
        """Whether a value depends on an incoming gradient."""
        seeds = {t.name for t in self.program.tensors if t.role == "seed"}
        return any(isinstance(n, Load) and n.tensor in seeds for n in postorder([node]))

    def reserved(self) -> frozenset[str]:
        tensors = {t.name for t in self.program.tensors}
        return frozenset({*self.program.axes, *(s.name for s in self.program.sizes), "q_start"} - tensors)

    def note(self, node: Node) -> str | None:
        note = self.program.notes.get(node)
        return f"line {note.line}: {note.name}" if isinstance(note, Note) and note.line is not None else None

    # ------------------------------------------------------------------------------------------------ blocks

    def spread(self, node: Node) -> Axes:
        """The lanes of a value here: its axes, less those an enclosing `Each` has fixed."""
        fixed = {b.axis for b in self.blocks if b.axis != self.inner}
        return frozenset(a for a in node.axes if a in self.lanes and a not in fixed)

    def mentions_running(self, node: Node) -> bool:
        if not self.running:
            return False
        if node in self.depends:
            return self.depends[node]
        for n in postorder([node]):
            if n not in self.depends:
                moving = n in self.running or n in self.held
                self.depends[n] = moving or any(self.depends[c] for c in n.children)
        return self.depends[node]

    def home(self, node: Node) -> Block:
        """The block a value belongs to."""
        chosen = self.blocks[0]
        for block in self.blocks[1:]:
            if block.axis in node.axes or (block.axis in (self.inner, "") and self.mentions_running(node)):
                chosen = block
        return chosen

    def assign(self, node: Node, value: Node, default: str, home: Block | None = None) -> Var:
        home = home or self.home(node)
        lanes = self.spread(node) | self.spread_of(value)
        kind = value.kind if node.kind == "i" and not isinstance(value, Const) else node.kind
        target = var(self.name(node, default, inside=self.is_inside(home)), lanes, kind)
        home.body.append(Assign(target, value, self.note(node)))
        home.values[node] = target
        return target

    def spread_of(self, value: Node) -> Axes:
        return self.spread(value) if not isinstance(value, Sum | Max) else NO_AXES

    # ------------------------------------------------------------------------------------------------ values

    def value(self, node: Node) -> Node:
        """A pointwise expression for `node`, over variables assigned so far."""
        if isinstance(node, Const | Axis | Size | Var):
            return node
        if node in self.running:
            return self.running[node]
        home = self.home(node)
        if node in home.values:
            return home.values[node]
        keep = self.blocks
        self.blocks = keep[: keep.index(home) + 1]
        try:
            return self._compute(node, home, hoisted=home is not keep[-1])
        finally:
            self.blocks = keep

    def _compute(self, node: Node, home: Block, *, hoisted: bool) -> Node:
        if isinstance(node, Load):
            return self._load(node, home)
        if isinstance(node, Sum | Max):
            return self._contraction(node, home)
        if isinstance(node, Call) and is_block(node):
            return self._in_block(node, home)
        built = self._pointwise(node)
        shared = self.uses.get(node, 1) > 1 and bool(self.spread(node))
        if shared or hoisted or node in self.program.notes:
            return self.assign(node, built, self._default(node), home)
        home.values[node] = built
        return built

    def _default(self, node: Node) -> str:
        lanes = self.spread(node)
        if isinstance(node, Call) and node.fn == "exp2" and len(lanes) > 1:
            return "p"
        if isinstance(node, Call) and node.fn == "finite_or_zero":
            return "shift"
        if node.kind == "b":
            return "allowed"
        if node.kind == "i":
            return f"{next(iter(lanes))}_pos" if len(lanes) == 1 else "index"
        return "x" if lanes else "scale"

    def variable(self, node: Node, default: str = "x") -> Var:
        """`node` as a variable, assigned if it is not one yet."""
        value = self.value(node)
        if isinstance(value, Var) and self.spread(value) == self.spread(node):
            return value
        return self.assign(node, value, default)

    def _whole(self, node: Node) -> Node:
        """The value of an integer; a count over the plane, which is kept and saved as a real, is one again."""
        value = self.value(node)
        return raw_call("floor", (value,), "i") if value.kind == "f" else value

    def _pointwise(self, node: Node) -> Node:
        match node:
            case Call():
                whole = node.kind == "i" and node.fn != "floor"
                args = [self._whole(a) if whole else self.value(a) for a in node.args]
                return raw_call(node.fn, args, node.kind)
            case Iverson():
                return iverson(self.value(node.condition))
            case Add() | Prod():
                return self._grouped(node)
            case _:
                raise TypeError(type(node).__name__)

    def _grouped(self, node: Add | Prod) -> Node:
        """Children that live further out are combined there, so that the loop multiplies by one number."""
        build = raw_add if isinstance(node, Add) else raw_prod
        late = [t for t in node.terms if _is_late(t)] if isinstance(node, Add) else []
        if late and len(late) < len(node.children):
            first = [t for t in node.children if t not in late]
            start = raw_add(first) if len(first) > 1 else first[0]
            if node in self.ordered and len(first) > 1:
                self.ordered.add(start)
            return raw_add([self.value(start), *(self._signed(_unmarked(t)) for t in late)])
        if node in self.ordered:
            return self._in_order(node)
        home = self.home(node)
        outer: dict[int, list[Node]] = {}
        here: list[Node] = []
        for c in self._with_partial_sum(node) if isinstance(node, Add) else node.children:
            if isinstance(c, Iverson):
                here.append(c)
                continue
            place = self.home(c)
            (outer.setdefault(id(place), []) if place is not home and not isinstance(c, Const) else here).append(c)
        constants = [c for c in here if isinstance(c, Const)]
        values: list[Node] = []
        for group in outer.values():
            if len(group) == 1 and (isinstance(node, Add) or not constants):
                values.append(self._signed(group[0]))
                continue
            combined = build([*constants, *group])
            constants = []
            values.append(self.variable(combined, "scale" if isinstance(node, Prod) else "offset"))
        values += [self.factor(c) for c in here if not isinstance(c, Const)]
        if node.kind == "f" and self._is_score(node):
            # Forward and backward must round alike, whichever product a compiler would fuse with the addition.
            values = [raw_call("rounded", (v,), "f") if self.spread(v) else v for v in values]
        return build([*constants, *values])

    def _in_order(self, node: Add | Prod) -> Node:
        """Children combined one by one, those of fewer axes first, whichever axis is the outer one."""
        build = raw_add if isinstance(node, Add) else raw_prod
        children = self._with_partial_sum(node) if isinstance(node, Add) else node.children
        *before, last = sorted(children, key=self._moving)
        start = before[0]
        for c in before[1:]:
            start = build([start, c])
            self.ordered.add(start)
        return build([self._term(c) if isinstance(node, Add) else self.value(c) for c in (last, start)])

    def _term(self, node: Node) -> Node:
        """A term of a score. A product that a compiler fuses with the addition in one kernel and not in another would
        not be the same number."""
        if isinstance(node, Prod) and len(node.factors) == 2 and node.factors[0] is const(-1.0):
            return raw_prod([node.factors[0], self.variable(node.factors[1])])
        value = self.value(node)
        return raw_call("rounded", (value,), "f") if isinstance(node, Prod) and self.spread(value) else value

    def _moving(self, node: Node) -> tuple[int, list[str]]:
        """The axes of a value other than those of the batch, how many first."""
        axes = sorted(a for a in node.axes if self.program.axis(a).role != "batch")
        return len(axes), axes

    def factor(self, node: Node) -> Node:
        """A factor of a product. A bracket stays one, whatever else reads it: as a number it would not select."""
        return iverson(self.value(node.condition)) if isinstance(node, Iverson) else self.value(node)

    def _with_partial_sum(self, node: Add) -> tuple[Node, ...]:
        """The terms of a sum, those that make up another sum of this pass (a score inside ``s - m``) taken together.

        What the forward saved comes last, for the same reason: ``s - lse`` then holds the score rounded as the forward
        rounded it. A weight recomputed from another rounding would not be the weight whose sum over the row was saved,
        and what should cancel over a row would not.
        """
        saved = [t for t in node.terms if self._is_saved(t)]
        computed = [t for t in node.terms if t not in saved]
        if saved and len(computed) > 1 and any(len(self.spread(t)) > 1 for t in computed):
            score = raw_add(computed)
            self.scores.add(score)
            if node in self.ordered:
                self.ordered.add(score)
            return (score, *saved)
        parts = [n for n in self.sums if n is not node and self._is_partial(n, node)]
        if not parts:
            return node.terms
        largest = max(parts, key=lambda n: (len(n.terms), n.digest))
        return (largest, *(t for t in node.terms if t not in largest.terms))

    def _is_partial(self, part: Add, whole: Add) -> bool:
        return len(self.spread(part)) > 1 and set(part.terms) < set(whole.terms)

    def _is_score(self, node: Node) -> bool:
        """Whether a sum is taken as a whole in another sum."""
        return node in self.scores or (isinstance(node, Add) and any(self._is_partial(node, n) for n in self.sums))

    def _is_saved(self, term: Node) -> bool:
        """Whether a term is a saved value, up to its sign."""
        value = term.factors[-1] if isinstance(term, Prod) and len(term.factors) == 2 else term
        return isinstance(value, Load) and any(
            t.role == "saved" for t in self.program.tensors if t.name == value.tensor
        )

    def _signed(self, node: Node) -> Node:
        """A term from further out; a leading minus stays here, where it costs nothing."""
        if isinstance(node, Prod) and node.factors[0] is const(-1.0) and node.kind == "f":
            rest = node.factors[1:]
            return raw_prod([node.factors[0], self.variable(raw_prod(rest) if len(rest) > 1 else next(iter(rest)))])
        return self.value(node)

    def _load(self, node: Load, home: Block) -> Var:
        dims = self.program.tensor(node.tensor).dims if node.tensor in self._tensors() else ()
        index = []
        for k, x in enumerate(node.index):
            place = self.home(x)
            if isinstance(x, Call) and not self.spread(x) and x not in place.values:
                keep, self.blocks = self.blocks, self.blocks[: self.blocks.index(place) + 1]
                self.assign(x, self._pointwise(x), self._axis_name(dims[k] if k < len(dims) else None), place)
                self.blocks = keep
            index.append(self._whole(x))
        default = node.tensor
        return self.assign(node, load(node.tensor, index, node.kind), default, home)

    def _tensors(self) -> set[str]:
        return {t.name for t in self.program.tensors}

    def _axis_name(self, extent: Node | None) -> str:
        return "kv_head" if extent is size("G") else "index"

    # ------------------------------------------------------------------------------------------ contractions

    def _in_block(self, node: Call, home: Block) -> Var:
        """A reduction over the block of an axis that this tile holds; see `Kernel.fixed`."""
        body, place, _ = node.args
        assert isinstance(place, Axis)
        neutral = const(-math.inf if node.fn == "block_max" else 0.0)
        inside = call("lt", place, self.program.extent(place.name))
        value = raw_call("where", (self.value(inside), self.value(body), neutral), "f")
        lanes = self.spread(body) | {place.name}
        whole = var(self.name(body, "x", inside=self.is_inside(home)), lanes)
        home.body.append(Assign(whole, value))
        part = max_over({place.name}, whole) if node.fn == "block_max" else raw_sum({place.name}, [whole])
        target = var(self.name(node, "block", inside=self.is_inside(home)), lanes - {place.name})
        home.body.append(Assign(target, part, self.note(node)))
        home.values[node] = target
        return target

    def _contraction(self, node: Sum | Max, home: Block) -> Node:
        """A sum or maximum over one channel, or a sum over batch axes."""
        for axis in sorted(node.bound):
            if any(b.axis == axis for b in self.blocks):
                home.values[node] = self._contraction(self._renamed(node, axis), home)
                return home.values[node]
        if isinstance(node, Sum) and any(a not in self.lanes for a in node.bound):
            return self._sum_over_batch(node, home)
        (axis,) = node.bound
        if isinstance(node, Max):
            kept = call("where", call("and", *node.domain), node.body, const(-math.inf)) if node.domain else node.body
            return self.assign(node, max_over({axis}, self.variable(kept)), "largest", home)
        factors = _selected(node)
        operands = self.operands(factors, axis)
        if operands is not None:
            plane = len(operands) == 2 and all(self.spread(o) - {axis} for o in operands)
            default = ("dp" if self.from_seed(node) else "qk") if plane else "total"
            return self.assign(node, raw_sum({axis}, operands), default, home)
        total = self.assign(node, ZERO, "total", home)
        self.each(axis, home, lambda: self._add_product(total, factors))
        return total

    def _renamed(self, node: Sum | Max, name: str) -> Sum | Max:
        """A reduction over another axis like `name`, of which an enclosing loop has fixed the position."""
        info = self.program.axis(name)
        taken = {b.axis for b in self.blocks} | node.axes | free_axes(node.children) | node.bound
        known = self.others.setdefault(name, [])
        other = next((a for a in known if a not in taken), None)
        if other is None:
            other = self.name(axis_node(name), name)
            known.append(other)
            self.program = replace(self.program, axes={**self.program.axes, other: replace(info, name=other)})
            if name in self.lanes:
                self.lanes = (*self.lanes, other)
        inside = [n for n in postorder(node.children) if isinstance(n, Sum | Max) and name in n.bound]
        mapping: dict[Node, Node] = {axis_node(name): axis_node(other), **{n: n for n in inside}}
        children = tuple(replace_nodes(node.children, mapping, canonical=False))
        bound = node.bound - {name} | {other}
        if isinstance(node, Max):
            found = max_over(bound, children[0], children[1:])
            assert isinstance(found, Max)
            return found
        factors, domain = children[: len(node.factors)], children[len(node.factors) :]
        places = domain[len(node.domain) :]
        scatter = [(a, x) for (a, _), x in zip(node.scatter, places, strict=True)]
        return raw_sum(bound, factors, domain[: len(node.domain)], scatter)

    def _sum_over_batch(self, node: Sum, home: Block) -> Node:
        """A sum over the batch, or over heads, of tiles: the gradient of a bias that they share."""
        factors = _selected(node)
        total = self.assign(node, ZERO, "total", home)

        keep, self.blocks = self.blocks, self.blocks[: self.blocks.index(home) + 1]
        self._nested(sorted(node.bound), lambda: self._add_product(total, factors))
        self.blocks = keep
        return total

    def _nested(self, axes: Sequence[str], emit: Callable[[], None]) -> None:
        """Run `emit` inside a loop over single positions of every axis."""
        if axes:
            self.each(axes[0], self.blocks[-1], lambda: self._nested(axes[1:], emit))
        else:
            emit()

    def _add_product(self, total: Var, factors: Sequence[Node]) -> None:
        self.blocks[-1].body.append(Accumulate(total, self.product(factors)))

    def each(self, axis: str, home: Block, emit: Callable[[], None]) -> None:
        """Run `emit` inside a loop over single positions of `axis`, placed in `home`."""
        keep = self.blocks
        self.blocks = [*keep[: keep.index(home) + 1], Block(axis)]
        emit()
        body = tuple(self.blocks[-1].body)
        self.blocks = keep
        home.body.append(Each(axis, const(0), self.program.extent(axis), body))

    def product(self, factors: Sequence[Node]) -> Node:
        values = [self.factor(f) for f in factors]
        return values[0] if len(values) == 1 else raw_prod(values) if values else const(1.0)

    def operands(self, factors: Sequence[Node], axis: str) -> list[Var] | None:
        """Factors multiplied into one or two variables with at most one lane besides `axis`; None if they do not
        part."""
        groups: list[tuple[set[str], list[Node]]] = []
        for f in factors:
            lanes = set(self.spread(f)) - {axis}
            touching = [g for g in groups if g[0] & lanes]
            merged: list[Node] = [f]
            for g in touching:
                lanes |= g[0]
                merged = [*g[1], *merged]
                groups.remove(g)
            groups.append((lanes, merged))
        plain = [g for g in groups if not g[0]]
        spread = [g for g in groups if g[0]]
        if any(len(g[0]) > 1 for g in spread) or len(spread) > 2:
            return None
        if plain:
            extra = [f for g in plain for f in g[1]]
            if not spread:
                return [self._operand(extra, axis)]
            spread[0] = (spread[0][0], [*spread[0][1], *extra])
        return [self._operand(g[1], axis) for g in spread]

    def _operand(self, factors: list[Node], axis: str) -> Var:
        if len(factors) == 1:
            v = self.variable(factors[0])
            if axis in self.spread(v):
                return v
        node = raw_prod(factors) if len(factors) > 1 else factors[0]
        home = self.home(node)
        lanes = self.spread(node) | {axis}
        if node in home.values and isinstance(home.values[node], Var) and home.values[node].axes >= lanes:
            found = home.values[node]
            assert isinstance(found, Var)
            return found
        target = var(self.name(node, "x", inside=self.is_inside(home)), lanes, "f")
        home.body.append(Assign(target, self.product(factors), self.note(node)))
        home.values[node] = target
        return target

    # -------------------------------------------------------------------------------------------- reductions

    def accumulate(self, node: Sum, target: Var, conditions: Sequence[Node], axis: str) -> None:
        """Add this block's part of a plane sum to its accumulator."""
        result = self.spread(target)
        by_channel = [c for c in conditions if any(self.program.axis(a).role == "channel" for a in c.axes)]
        conditions = [c for c in conditions if c not in by_channel]
        factors = [*node.factors, *(iverson(c) for c in by_channel)]
        channel = [a for a in result if self.program.axis(a).role == "channel"]
        without = [f for f in factors if not (set(channel) & f.axes)]
        with_channel = [f for f in factors if set(channel) & f.axes]
        home = self.blocks[-1]
        if not channel:
            weight = self._plane_variable(self.guarded(without, conditions), axis, result)
            home.body.append(Accumulate(target, raw_sum({axis}, [weight]), self.note(node)))
            return
        c = channel[0]
        joint = any(c in condition.axes for condition in conditions)
        if len(channel) == 1 and not joint and all(not (self.spread(f) - {axis, c}) for f in with_channel):
            weight = self._plane_variable(self.guarded(without, conditions), axis, result - {c})
            other = self._seen(self._operand(with_channel, axis), with_channel, conditions, axis)
            home.body.append(Accumulate(target, raw_sum({axis}, [weight, other]), self.note(node)))
            return
        self.each(c, home, lambda: self._accumulate_channel(target, c, without, with_channel, conditions, axis))

    def _seen(self, operand: Var, factors: Sequence[Node], conditions: Sequence[Node], axis: str) -> Var:
        """The rows of a product's operand that no lane of this block may read are taken as 0: 0 times NaN is NaN.

        Beyond the end of the axis tensors read as 0, and so does the operand unless it is computed from that.
        """
        domain = [c for c in conditions if c is not call("lt", axis_node(axis), self.program.extent(axis))]
        if not domain and not (conditions and any(_may_be_infinite(n, axis) for n in postorder(factors))):
            return operand
        block = self.blocks[-1]
        allowed = self.condition(conditions)
        across = self.spread(allowed) - {axis}
        seen: Node = allowed
        if across:
            key = raw_call("seen", (allowed,), "b")
            if key not in block.values:
                (outer,) = across
                weights = var(self.name(key, "any", inside=True), allowed.axes)
                block.body.append(Assign(weights, raw_call("where", (allowed, const(1.0), ZERO), "f")))
                some = var(self.name(key, "seen", inside=True), frozenset({axis}))
                block.body.append(Assign(some, max_over({outer}, weights)))
                block.values[key] = some
            seen = raw_call("lt", (ZERO, block.values[key]), "b")
        rows = raw_prod([operand, iverson(seen)])
        if rows not in block.values:
            target = var(self.name(rows, f"{operand.name}_seen", inside=True), operand.axes)
            block.body.append(Assign(target, rows))
            block.values[rows] = target
        found = block.values[rows]
        assert isinstance(found, Var)
        return found

    def _accumulate_channel(
        self, target: Var, c: str, without: list[Node], with_channel: list[Node], conditions: Sequence[Node], axis: str
    ) -> None:
        own = [x for x in conditions if c in x.axes]
        selected = [*without, *with_channel, *map(iverson, own)]
        plane = self.guarded(selected, [x for x in conditions if x not in own])
        block = self.blocks[-1]
        weight = self._plane_variable(plane, axis, self.spread(target) - {c})
        part = var(self.name(weight, "part", inside=True), self.spread(target) - {c})
        block.body.append(Assign(part, raw_sum({axis}, [weight])))
        block.body.append(AccumulateAt(target, c, part))

    def guarded(self, factors: Sequence[Node], conditions: Sequence[Node]) -> Node:
        """The product of `factors`, 0 where a condition fails."""
        everything = [*factors, *([iverson(self.condition(conditions))] if conditions else [])]
        if not everything:
            return const(1.0)
        return everything[0] if len(everything) == 1 else raw_prod(everything)

    def condition(self, conditions: Sequence[Node]) -> Var:
        """All conditions as one boolean variable."""
        return self.variable(call("and", *conditions), "allowed")

    def _plane_variable(self, node: Node, axis: str, result: Axes) -> Var:
        """A variable spread over the reduced axis and the lanes of the result."""
        lanes = frozenset({axis}) | result
        block = self.blocks[-1]
        found = block.values.get(node)
        if isinstance(found, Var) and found.axes == lanes:
            return found
        value = self.value(node)
        if isinstance(value, Var) and value.axes == lanes:
            return value
        target = var(self.name(node, "ds" if self.from_seed(node) else "w", inside=True), lanes)
        block.body.append(Assign(target, value, self.note(node)))
        block.values[node] = target
        return target

    def largest(self, node: Max, conditions: Sequence[Node], axis: str, result: Axes) -> Node:
        """This block's part of a plane maximum, as a form-4 expression."""
        body = self.value(node.body)
        if conditions:
            body = raw_call("where", (self.condition(conditions), body, const(-math.inf)), "f")
        lanes = frozenset({axis}) | result
        if not (isinstance(body, Var) and body.axes == lanes):
            target = var(self.name(node, "masked" if conditions else "x", inside=True), lanes)
            self.blocks[-1].body.append(Assign(target, body))
            body = target
        return max_over({axis}, body)

    def place(self, node: Sum, buffer: str, axes: Sequence[str]) -> None:
        """Add a plane value, summed over the batch, into a buffer with table axes: where it belongs along those that it
        scatters into, and at every place of the others."""
        index_of = dict(node.scatter)
        open_axes = [a for a in axes if a not in index_of and self.program.axis(a).role == "table"]

        def emit() -> None:
            index = tuple(self.value(index_of.get(a, axis_node(a))) for a in axes)
            factors = [*node.factors, *map(iverson, node.domain)]
            self.blocks[-1].body.append(Scatter(buffer, index, self.product(factors), None, self.note(node)))

        self._nested([*sorted(node.bound), *open_axes], emit)

    def scatter(self, node: Sum, buffer: str, axes: Sequence[str], conditions: Sequence[Node]) -> None:
        """Add a plane value into a table."""
        index_of = dict(node.scatter)
        block = self.blocks[-1]
        channel = [a for a in axes if self.program.axis(a).role == "channel" and a in self.lanes]
        wide = [f for f in node.factors if set(channel) & f.axes]

        def emit() -> None:
            index = tuple(self._whole(index_of[a]) if a in index_of else axis_node(a) for a in axes)
            condition = self.condition(conditions) if conditions else None
            value = self.product(list(node.factors))
            self.blocks[-1].body.append(Scatter(buffer, index, value, condition, self.note(node)))

        if channel and wide:
            self.each(channel[0], block, emit)
        else:
            emit()


def _is_late(term: Node) -> bool:
    """Whether a term of a sum is small, and added after the others: these may cancel, and leave it its digits."""
    return any(isinstance(f, Call) and f.fn == "rounded" for f in factors_of(term))


def _may_be_infinite(node: Node, axis: str) -> bool:
    """Whether a function of what varies along an axis has no finite value at 0."""
    return isinstance(node, Call) and node.fn in ("reciprocal", "rsqrt", "log", "log2", "pow") and axis in node.axes


def _unmarked(term: Node) -> Node:
    parts = [f.args[0] if isinstance(f, Call) and f.fn == "rounded" else f for f in factors_of(term)]
    return raw_prod(parts) if len(parts) > 1 else parts[0]


def _selected(node: Sum) -> list[Node]:
    """The factors of a sum, with brackets for its domain and for where it scatters: here those axes are at hand."""
    places = (call("eq", axis_node(a), x) for a, x in node.scatter)
    return [*node.factors, *map(iverson, node.domain), *map(iverson, places)]


def scores_below(roots: Iterable[Node]) -> set[Node]:
    """The sums and products that make up a score: in a maximum, or in an exponent in units of the score.

    A weight is recomputed by several passes, and where scores are large a score rounded in another way is another
    weight: the last digit of a score of thousands is the fourth of the weight.
    """
    found: set[Node] = set()
    for n in postorder(roots):
        stack: list[Node] = []
        if isinstance(n, Max):
            stack = [n.body]
        elif isinstance(n, Call) and n.fn == "exp2" and unit_and_terms(n.args[0])[0] != 1:
            stack = [c for c in n.args[0].children if isinstance(c, Add)]
        while stack:
            part = stack.pop()
            if part in found or part.kind != "f" or isinstance(part, Load | Max):
                continue
            if isinstance(part, Add) or (isinstance(part, Prod) and not any(map(_is_bracket, part.factors))):
                found.add(part)
            stack += part.children
    return found


def _is_bracket(node: Node) -> bool:
    return isinstance(node, Iverson)


def count_uses(roots: Iterable[Node]) -> dict[Node, int]:
    """How many parents read each node."""
    uses: dict[Node, int] = {}
    for node in postorder(roots):
        for c in node.children:
            uses[c] = uses.get(c, 0) + 1
    return uses
