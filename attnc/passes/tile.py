"""From a pass to a tile program: prologue, loops over the inner axis, epilogue.

One function serves every direction: a column pass is a row pass with the axes exchanged. The inner loop is split where
the mask allows: blocks known to be full run without guards.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from attnc.codegen.tile import (
    Accumulate,
    AddTo,
    Argument,
    Assign,
    Each,
    Kernel,
    Lane,
    Loop,
    Runs,
    Scatter,
    Stmt,
    Store,
    statements,
    verify,
)
from attnc.ir.construct import (
    add,
    axis,
    call,
    const,
    factors_of,
    is_const,
    load,
    max_over,
    mul,
    neg,
    position_of,
    raw_call,
    raw_prod,
    raw_sum,
    size,
    terms_of,
    var,
)
from attnc.ir.functions import is_block
from attnc.ir.node import NO_AXES, Add, Axes, Axis, Call, Const, Iverson, Load, Max, Node, Prod, Size, Sum, Var
from attnc.ir.notes import tracking
from attnc.ir.program import Program
from attnc.ir.walk import postorder, replace, rewrite
from attnc.passes.associate import is_group_condition
from attnc.passes.block_list import TURN, BlockList
from attnc.passes.bounds import Range, first
from attnc.passes.chunks import Chunks, numbered
from attnc.passes.coverage import Coverage, coverage
from attnc.passes.emit import Emitter
from attnc.passes.exponents import with_unit
from attnc.passes.plan import Pass, Plan
from attnc.passes.planes import Planes
from attnc.passes.quiet import is_quiet
from attnc.passes.scope import Block
from attnc.passes.values import count_uses, scores_below

Reduction = Sum | Max
DEFAULT_BLOCK = 64


def lower_pass(
    plan: Plan,
    item: Pass,
    *,
    dtypes: Mapping[str, str],
    real: str = "f32",
    constants: Mapping[str, int] | None = None,
    blocks: Mapping[str, int] | None = None,
    name: str | None = None,
) -> Kernel:
    """The tile program of one pass.

    Args:
        plan: the plan the pass belongs to.
        item: the pass.
        dtypes: concrete dtype of every tensor and buffer the pass touches (f32, bf16, i32, ...).
        real: type of reals inside the kernel, f32 or f64.
        constants: sizes fixed at compile time (D, E, ...).
        blocks: block length per sequence axis; 64 where missing.
        name: C identifier; by default the program's and the pass's names.
    """
    return Lowering(plan, item, dtypes, real, dict(constants or {}), dict(blocks or {})).kernel(name)


class Lowering:
    """Lowers one pass."""

    def __init__(
        self,
        plan: Plan,
        item: Pass,
        dtypes: Mapping[str, str],
        real: str,
        constants: dict[str, int],
        blocks: dict[str, int],
    ) -> None:
        if not item.carries:
            item = _within_chunks(plan.program, item)
        self.plan, self.item, self.dtypes, self.real = plan, item, dtypes, real
        self.constants = constants
        self.program = plan.program
        self.planes = Planes(self.program)
        self.outer, self.inner = item.outer, item.inner
        self.longest = min((c.length for c in item.chunks), default=None)
        self.reductions: list[Reduction] = [r for r in item.reductions if isinstance(r, Sum | Max)]
        self.roots = [*self.reductions, *(n for _, _, n in (*item.stores, *item.adds))]
        self.fixed = block_lengths(self.roots)
        lengths = {a: blocks.get(a, DEFAULT_BLOCK) for a in (self.outer, self.inner) if a is not None}
        self.blocks = {a: self.fixed.get(a, min(n, self.longest or n)) for a, n in lengths.items()}
        mentioned = {a for n in postorder(self.roots) for a in self._axes_of(n)}
        mentioned.update(a for _, axes, _ in (*item.stores, *item.adds) for a in axes)
        channels = sorted(a for a in mentioned if self.planes.role(a) == "channel")
        self.lanes = tuple(a for a in (self.outer, self.inner) if a is not None) + tuple(channels)
        sums = tuple(n for n in postorder(self.roots) if isinstance(n, Add))
        self.emitter = Emitter(
            self.program, self.lanes, self.inner, self._names(), uses=count_uses(self.roots), sums=sums
        )
        self.emitter.ordered |= scores_below(self.roots)
        self.plane_stores = [s for s in item.stores if self.inner is not None and self._is_plane_store(s)]
        stored = {a for _, axes, _ in item.stores for a in axes}
        self.tables = frozenset(a for a in stored if self.planes.role(a) == "table" and not self._is_single(a))
        self.found: dict[Node, tuple[Max, Var]] = {}
        self.runs: Runs | None = None
        self.scatters = [r for r in self.reductions if isinstance(r, Sum) and r.scatter]

    def _names(self) -> dict[Node, str]:
        """What reductions and stored values are called in the field: l for a denominator, dk for grad_k, delta."""
        names: dict[Node, str] = {}
        for n in postorder(self.roots):
            if isinstance(n, Call) and n.fn == "reciprocal_or_zero":
                names |= {t: "l" for t in terms_of(n.args[0]) if t in self.reductions}
        for store, _, node in self.item.stores if self.item.part is None else ():
            stem = re.sub("^grad_", "d", store)
            if not isinstance(node, Load | Const):
                names.setdefault(node, stem)
            own = [r for r in self.planes.direct(node) if r in self.reductions and self.planes.channels(r.axes)]
            if len(own) == 1 and stem != store:
                names.setdefault(own[0], stem)
        return names

    @staticmethod
    def _axes_of(node: Node) -> Axes:
        return node.axes | (node.bound if isinstance(node, Sum | Max) else frozenset())

    def _is_plane_store(self, store: tuple[str, tuple[str, ...], Node]) -> bool:
        return {self.outer, self.inner} <= set(store[1])

    # ------------------------------------------------------------------------------------------------ kernel

    def kernel(self, name: str | None) -> Kernel:
        emitter = self.emitter
        prologue = emitter.blocks[0]
        for chunks in self.item.chunks:
            number = call("floordiv", first(chunks.outer), const(chunks.length))
            prologue.body.append(Assign(_chunk(chunks), number))
        loops: list[Stmt] = []
        if self.inner is not None:
            for a, _, _ in self.item.groups:
                emitter.blocks.append(Block(a))
            loops = self._loops(self.inner)
            for (a, start, stop), block in reversed(list(zip(self.item.groups, emitter.blocks[1:], strict=True))):
                loops = [Each(a, start, stop, (*block.body, *loops), "the query heads of this key head")]
        elif self.reductions:
            loops = [self._totals()]
        epilogue = Block("")
        emitter.blocks = [prologue, epilogue]
        self._stores(epilogue)
        body = (*prologue.body, *loops, *epilogue.body)
        return self._kernel(name, body, self.outer)

    def _kernel(self, name: str | None, body: tuple[Stmt, ...], outer: str | None) -> Kernel:
        """The tile program of a body, with what it reads and where it runs."""
        arguments = self._arguments(body)
        kernel = Kernel(
            name=name or f"{self.program.name}_{self.item.name}",
            doc=self._doc(),
            arguments=arguments,
            sizes=self._sizes(body, arguments),
            grid=self.item.grid,
            grid_extents=tuple(self.program.extent(a) for a in self.item.grid),
            outer=outer,
            lanes=self._lanes(),
            blocks=self.blocks,
            body=body,
            real=self.real,
            constants=self.constants,
            serial=(self.outer,) if (self.scatters or self.item.adds) and self.outer is not None else (),
            shares=self.item.grid[-1] if self.item.adds else None,
            runs=self.runs,
            longest=self.longest,
            fixed=self.fixed,
            exact=self.program.options.deterministic,
        )
        verify(kernel)
        return kernel

    def _lanes(self) -> tuple[Lane, ...]:
        lanes = []
        for a in self.emitter.lanes:
            role = "outer" if a == self.outer else "inner" if a == self.inner else "channel"
            lanes.append(Lane(a, role, self.emitter.program.extent(a)))  # type: ignore[arg-type]
        return tuple(lanes)

    def _doc(self) -> str:
        writes = ", ".join(n for n, _, _ in self.item.stores)
        title = self.program.doc or self.program.name
        if self.inner is None:
            return f"{title}\n{writes} for one block of {self.outer}"
        return f"{title}\n{writes}: a loop over {self.inner} for one block of {self.outer}"

    def _arguments(self, body: Sequence[Stmt]) -> tuple[Argument, ...]:
        reads: dict[str, None] = {}
        for s in statements(tuple(body)):
            values = [s.value] if isinstance(s, Assign | Accumulate) else []
            reads |= {n.tensor: None for v in values for n in postorder([v]) if isinstance(n, Load)}
        arguments = []
        tables = () if self.runs is None else (self.runs.spans, self.runs.table)
        for tensor in (t for t in reads if t not in tables):
            given = next((t for t in self.program.tensors if t.name == tensor), None)
            dims = self.plan.buffer(tensor).dims if given is None else given.dims
            made = given is None or given.role == "saved"
            declared = self.plan.buffer(tensor).dtype if given is None else given.dtype
            tf32 = self.program.options.tf32 and (declared, self.dtypes[tensor]) == ("q", "f32")
            arguments.append(Argument(tensor, self.dtypes[tensor], dims, made=made, tf32=tf32))
        added = {s.tensor for s in statements(tuple(body)) if isinstance(s, Scatter | AddTo)}
        for buffer, _, _ in (*self.item.stores, *self.item.adds):
            mode = "add" if buffer in added else "out"
            arguments.append(Argument(buffer, self.dtypes[buffer], self.plan.buffer(buffer).dims, mode))  # type: ignore[arg-type]
        arguments += [Argument(t, "i32", self._table_dims(t)) for t in tables]
        return tuple(arguments)

    def _table_dims(self, tensor: str) -> tuple[Node, ...]:
        runs = self.runs
        assert runs is not None
        if tensor == runs.table:
            return (size(runs.count), const(3))
        extent, block = self.program.extent(runs.outer), size(f"BLOCK_{runs.outer.upper()}")
        return (*(n for _, n in runs.batch), neg(call("floordiv", neg(extent), block)), const(2))

    def _sizes(self, body: Sequence[Stmt], arguments: Sequence[Argument]) -> tuple[str, ...]:
        nodes: list[Node] = [d for a in arguments for d in a.dims]
        nodes += [self.emitter.program.extent(a) for a in (*self.item.grid, *self.emitter.lanes)]
        for s in statements(tuple(body)):
            match s:
                case Loop() | Each():
                    nodes += [s.start, s.stop]
                case Store() | Scatter() | AddTo():
                    nodes += [*s.index, s.value]
                    nodes += [s.condition] if isinstance(s, Scatter) and s.condition is not None else []
                case Assign() | Accumulate():
                    nodes.append(s.value)
                case _:
                    pass
        names = {n.name for n in postorder(nodes) if isinstance(n, Size)}
        return tuple(sorted(n for n in names if not n.startswith("BLOCK_")))

    # ------------------------------------------------------------------------------------------------- loops

    def _loops(self, inner: str) -> list[Stmt]:
        cover = coverage(self.program, self.item)
        emitter = self.emitter
        emitter.running = {r: self._accumulator(r) for r in self.reductions if not getattr(r, "scatter", ())}
        if cover.ranges is not None and self.item.part is None:
            return self._ranges(inner, cover, cover.ranges)
        start, stop = self._outside(inner, cover.bounds)
        if self.item.part is not None:
            start, stop = self._share(inner, self.item.part, start, stop)
        if cover.ranges is not None:
            return self._ranges(inner, cover, cover.ranges, (start, stop))
        if cover.runs is not None:
            return self._runs(inner, cover, start, stop)
        bounds, conditions = cover.bounds, cover.conditions
        if bounds.full_low is None or bounds.full_high is None:
            return [self._loop(inner, start, stop, conditions, masked=True)]
        block = size(f"BLOCK_{inner.upper()}")
        full_start = start
        if bounds.full_low is not const(0):
            rounded = mul(neg(call("floordiv", neg(bounds.full_low), block)), block)
            full_start = self._bound(call("maximum", rounded, start), f"{inner}_full")
        inside = call("minimum", bounds.full_high, stop)
        full_stop = self._bound(mul(call("floordiv", inside, block), block), f"{inner}_tail")
        loops: list[Stmt] = []
        if full_start is not start:
            loops.append(self._loop(inner, start, call("minimum", full_start, stop), conditions, masked=True))
        loops.append(self._loop(inner, full_start, full_stop, conditions, masked=False))
        tail = call("maximum", full_start, full_stop)
        loops.append(self._loop(inner, tail, stop, conditions, masked=True))
        return loops

    def _outside(self, inner: str, bounds: Range) -> tuple[Node, Node]:
        """Where the loop starts and stops at the latest."""
        extent = self.program.extent(inner)
        block = size(f"BLOCK_{inner.upper()}")
        start = mul(call("floordiv", bounds.low, block), block)
        if bounds.low is not const(0):
            start = self._bound(start, f"{inner}_start")
        return start, self._bound(bounds.high, f"{inner}_stop") if bounds.high is not extent else extent

    def _share(self, inner: str, part: str, start: Node, stop: Node) -> tuple[Node, Node]:
        """Where the loop of one part starts and stops: whole blocks of what there is, shared out evenly."""
        block, parts = size(f"BLOCK_{inner.upper()}"), self.program.extent(part)
        length = call("maximum", add(stop, neg(start)), const(0))
        blocks = neg(call("floordiv", neg(length), mul(block, parts)))
        share = self._bound(mul(block, blocks), f"{inner}_share")
        low = self._bound(add(start, mul(axis(part), share)), f"{inner}_start")
        return low, self._bound(call("minimum", add(low, share), stop), f"{inner}_stop")

    def _bound(self, node: Node, name: str) -> Node:
        """A bound as a variable, where it is worth one."""
        node = self._load_scalars(node)
        if not isinstance(node, Call) and not node.children:
            return node
        return self._scalar(node, name, self.emitter.home(node))

    def _scalar(self, node: Node, name: str, home: Block) -> Var:
        target = var(self.emitter.name(node, name), (), "i")
        home.body.append(Assign(target, node))
        return target

    def _runs(self, inner: str, cover: Coverage, start: Node, stop: Node) -> list[Stmt]:
        """The loop over the runs of this block: the partly allowed blocks of each, then its full ones."""
        assert self.outer is not None
        emitter = self.emitter
        runs = self.runs = self._table(inner, cover)
        where = [
            *(axis(a) for a in cover.batch),
            call("floordiv", first(self.outer), size(f"BLOCK_{self.outer.upper()}")),
        ]
        ends = [load(runs.spans, [*where, const(k)], "i") for k in (0, 1)]
        homes = [emitter.home(x) for x in ends]
        begin, end = (self._scalar(x, n, h) for x, n, h in zip(ends, ("run_first", "run_stop"), homes, strict=True))
        here = Block(self._fresh("run"))
        assert here.axis is not None
        low, turn, high = (
            self._scalar(load(runs.table, [axis(here.axis), const(k)], "i"), f"{inner}_{name}", here)
            for k, name in enumerate(("low", "turn", "high"))
        )
        emitter.blocks.append(here)
        partial = self._loop(
            inner, call("maximum", low, start), call("minimum", turn, stop), cover.conditions, masked=True
        )
        span: tuple[Node, Node] = turn, high
        if self.item.part is not None:
            span = call("maximum", turn, start), call("minimum", high, stop)
        full = self._loop(inner, *span, cover.conditions, masked=False)
        emitter.blocks.pop()
        note = f"runs of blocks that the mask leaves to this block of {self.outer}"
        return [Each(here.axis, begin, end, (*here.body, partial, full), note)]

    def _ranges(
        self, inner: str, cover: Coverage, ranges: BlockList, share: tuple[Node, Node] | None = None
    ) -> list[Stmt]:
        """The loop over ranges in closed form, or what of them lies in a share: the partly allowed blocks of each, then
        its full ones."""
        emitter = self.emitter
        here = Block(self._fresh(f"{inner}_range"))
        assert here.axis is not None
        names: dict[Node, Node] = {TURN: axis(here.axis)}
        home = emitter.blocks[-1]
        for block, values in ((home, ranges.before), (here, ranges.each)):
            for v, value in values:
                (renamed,) = replace([self._load_scalars(value)], names, canonical=False)
                if v not in names:
                    names[v] = self._scalar(renamed, f"{inner}_{v.name}", block)
                else:
                    block.body.append(Assign(as_var(names[v]), renamed))
        count, low, turn, high = replace([ranges.count, ranges.low, ranges.turn, ranges.high], names, canonical=False)
        emitter.blocks.append(here)
        spans = [(low, turn), (turn, high)]
        if share is not None:
            spans = [(call("maximum", a, share[0]), call("minimum", b, share[1])) for a, b in spans]
        loops = [self._loop(inner, *spans[0], cover.conditions, masked=True)]
        if turn is not high:
            loops.append(self._loop(inner, *spans[1], cover.conditions, masked=False))
        emitter.blocks.pop()
        note = f"ranges of blocks that the mask leaves to this block of {self.outer}"
        return [Each(here.axis, const(0), count, (*here.body, *loops), note)]

    def _table(self, inner: str, cover: Coverage) -> Runs:
        assert self.outer is not None and cover.runs is not None
        spans, table, count = (self._fresh(f"{inner}_{x}") for x in ("spans", "runs", "run_count"))
        batch = tuple((a, self.program.extent(a)) for a in cover.batch)
        return Runs(spans, table, count, self.outer, inner, cover.runs, batch, cover.whole)

    def _fresh(self, name: str) -> str:
        """A name that no axis, size, tensor or buffer has."""
        taken = self.emitter.reserved() | {t.name for t in self.program.tensors} | {b.name for b in self.plan.buffers}
        while name in taken:
            name += "_"
        return name

    def _load_scalars(self, node: Node) -> Node:
        """Loads inside a bound (a prefix length per batch) become variables."""
        emitter = self.emitter
        return rewrite([node], lambda n: emitter.value(n) if isinstance(n, Load) else None, canonical=False)[0]

    def _accumulator(self, r: Reduction) -> Var:
        emitter = self.emitter
        lanes = emitter.spread(r)
        default = "m" if isinstance(r, Max) else "acc" if len(lanes) > 1 else "total"
        target = var(emitter.name(r, default), lanes, "f")  # a count is a real too
        emitter.blocks[0].body.append(Assign(target, const(-math.inf if isinstance(r, Max) else 0.0)))
        return target

    def _loop(self, inner: str, start: Node, stop: Node, common: Sequence[Node], *, masked: bool) -> Loop:
        emitter = self.emitter
        block = Block(inner)
        around = emitter.blocks
        accumulators = dict(emitter.running)
        emitter.enter_loop()
        emitter.blocks = [*around, block]
        emitter.depends = {}
        emitter.held = frozenset(accumulators.values())
        for r in self._leaders():
            if position_of(r) is None:
                self._lead(r, block, accumulators[r], inner, common, masked)
        for r in self._leaders():
            maximum = position_of(r)
            if maximum is not None:
                self._locate(r, maximum, block, accumulators, inner)
        for r in self.reductions:
            if isinstance(r, Sum) and r not in self._leaders():
                conditions = self._conditions(r, inner, common, masked)
                if r.scatter:
                    self._scatter(r, conditions)
                    continue
                target = accumulators[r]
                assert isinstance(target, Var)
                self._follow(r, target, block, accumulators)
                emitter.accumulate(r, target, conditions, inner)
        for r in self._leaders():
            block.body.append(Assign(as_var(accumulators[r]), emitter.running[r]))
        for name, axes, node in self.item.adds:
            assert isinstance(node, Sum)
            self._add_to_memory(name, axes, node, block, self._conditions(node, inner, common, masked))
        for name, axes, node in self.plane_stores:
            if any(a in self.tables for a in axes):
                for term in terms_of(node):
                    emitter.place(placed(term, self.tables), name, axes)
            else:
                block.body.append(Store(name, self._place(axes), emitter.value(node)))
        emitter.blocks = around
        emitter.running = accumulators
        emitter.leave_loop()
        note = "blocks the mask cuts" if masked and common else "the last, partial block" if masked else "full blocks"
        joint = not masked and self.longest is None and inner not in self.fixed
        return Loop(inner, start, stop, masked, tuple(block.body), note, joint)

    def _add_to_memory(
        self, name: str, axes: tuple[str, ...], node: Sum, block: Block, conditions: Sequence[Node]
    ) -> None:
        """This block's part of a sum over the outer axis, added to memory."""
        emitter = self.emitter
        assert self.outer is not None
        part = var(emitter.name(node, "part", inside=True), emitter.spread(node), "f")
        at = len(block.body)
        block.body.append(Assign(part, const(0.0)))
        emitter.accumulate(node, part, conditions, self.outer)
        last = block.body[-1]
        if isinstance(last, Accumulate) and last.target is part:
            del block.body[at]
            block.body[-1] = Assign(part, last.value, last.note)
        block.body.append(AddTo(name, self._place(axes), part))

    def _totals(self) -> Each:
        """Sums over parts that earlier passes left in memory, one part after another."""
        ((a, start, stop),) = self.item.groups
        emitter = self.emitter
        accumulators: dict[Node, Node] = {r: self._accumulator(r) for r in self.reductions}
        emitter.blocks.append(Block(a))
        for r, total in accumulators.items():
            assert isinstance(r, Sum) and isinstance(total, Var)
            (value,) = r.factors
            here = emitter.variable(value, "here")
            emitter.blocks[-1].body.append(Accumulate(total, here))
        emitter.running = accumulators
        return Each(a, start, stop, tuple(emitter.blocks.pop().body), "what the parts of the loop before found")

    def _conditions(self, r: Reduction, inner: str, common: Sequence[Node], masked: bool) -> list[Node]:
        """What must hold for a pair to count, beyond what the loop already guarantees."""
        extra = [c for c in r.domain if c not in common and not self._groups(c)]
        if not masked:
            return extra
        inside = call("lt", axis(inner), self.program.extent(inner))
        return [inside, *(c for c in r.domain if not self._groups(c))]

    def _groups(self, condition: Node) -> bool:
        return is_group_condition(condition, frozenset(a for a, _, _ in self.item.groups))

    def _leaders(self) -> list[Reduction]:
        """Running maxima that other reductions of this pass follow, and maxima in general."""
        return [r for r in self.reductions if isinstance(r, Max)]

    def _lead(self, r: Reduction, block: Block, old: Node, inner: str, common: Sequence[Node], masked: bool) -> None:
        assert isinstance(r, Max)
        emitter = self.emitter
        accumulator = as_var(old)
        located = any(position_of(other) is r for other in self._leaders())
        conditions = self._conditions(r, inner, common, masked)
        part, scale = emitter.largest(r, conditions, inner, accumulator.axes, scaled=not located)
        here = var(emitter.name(r, "block_max", inside=True), accumulator.axes)
        block.body.append(Assign(here, part, quiet=not located and is_quiet(r, self.item, self.plan)))
        moved = var(emitter.name(r, "m_new", inside=True), accumulator.axes)
        largest = here if scale is None else raw_prod([scale, here])
        block.body.append(Assign(moved, raw_call("maximum", (accumulator, largest), "f")))
        emitter.running[r] = moved
        self.found[r] = (part, here)

    def _locate(self, r: Node, maximum: Max, block: Block, accumulators: Mapping[Node, Node], inner: str) -> None:
        """Where this block's maximum is, if it is larger than every earlier one."""
        emitter = self.emitter
        accumulator = as_var(accumulators[r])
        part, largest = self.found[maximum]
        hit = raw_call("eq", (part.body, largest), "b")
        place = raw_prod([const(-1.0), axis(inner)])
        at = var(emitter.name(r, "at", inside=True), part.body.axes)
        block.body.append(Assign(at, raw_call("where", (hit, place, const(-math.inf)), "f")))
        first = var(emitter.name(r, "block_at", inside=True), accumulator.axes)
        block.body.append(Assign(first, max_over({inner}, at)))
        larger = raw_call("lt", (accumulators[maximum], largest), "b")
        moved = var(emitter.name(r, "at_new", inside=True), accumulator.axes)
        block.body.append(Assign(moved, raw_call("where", (larger, first, accumulator), "f")))
        emitter.running[r] = moved

    def _follow(self, r: Sum, target: Var, block: Block, accumulators: Mapping[Node, Node]) -> None:
        """Rescale an accumulator whose running reductions have moved in this block."""
        change = self._change(r)
        if change is None:
            return
        emitter = self.emitter
        old = rewrite([change], lambda n: unguarded(n, accumulators), canonical=True)[0]
        new = guarded(change, self._leaders())
        moved = with_unit(add(new, neg(old)))
        factor = raw_call("exp2", (moved,), "f")
        if factor not in block.values:
            alpha = var(emitter.name(factor, "alpha", inside=True), emitter.spread(factor))
            value = raw_call("exp2", (emitter.value(moved),), "f")
            block.body.append(Assign(alpha, value, "how far the running maximum moved"))
            block.values[factor] = alpha
        block.body.append(Assign(target, raw_prod([target, block.values[factor]])))

    def _change(self, r: Sum) -> Node | None:
        """The exponent by which a sum follows the running reductions of this pass; None if it follows none."""
        moving: list[Node] = []
        for leader in self._leaders():
            if self.planes.mentions(r, leader) and position_of(leader) is None:
                change = self.planes.rescale(r, leader)
                assert change is not None, "the scheduler put a reduction into a pass it cannot follow"
                moving.append(change)
        return add(*dict.fromkeys(moving)) if moving else None

    def _scatter(self, r: Sum, conditions: list[Node]) -> None:
        for name, axes, node in self.item.stores:
            if node is r:
                self.emitter.scatter(r, name, axes, conditions)

    # ----------------------------------------------------------------------------------------------- epilogue

    def _stores(self, block: Block) -> None:
        emitter = self.emitter
        emitter.depends = {}
        for name, axes, node in self.item.stores:
            if (name, axes, node) in self.plane_stores or node in self.scatters:
                continue
            value = emitter.value(node)
            block.body.append(Store(name, self._place(axes), value, emitter.note(node)))

    def _place(self, axes: tuple[str, ...]) -> tuple[Node, ...]:
        """Where a value is stored: a dimension of one place, which no lane runs over, at 0."""
        return tuple(const(0) if self._is_single(a) else axis(a) for a in axes)

    def _is_single(self, a: str) -> bool:
        return self.planes.role(a) == "table" and is_const(self.planes.program.extent(a), 1)


def block_lengths(roots: Sequence[Node]) -> dict[str, int]:
    """The axes that reductions within blocks run along, with the lengths of their blocks."""
    found: dict[str, int] = {}
    for n in postorder(roots):
        if is_block(n):
            _, place, length = n.children
            assert isinstance(place, Axis) and isinstance(length, Const)
            found[place.name] = int(length.value)
    return found


def placed(node: Node, tables: Axes) -> Sum:
    """A plane value as a sum that scatters into table axes.

    A factor ``[r == f(i, j)]`` puts the value at f(i, j) of the table axis r; a sum over the batch may scatter already.
    """
    rest: list[Node] = []
    domain: list[Node] = []
    bound: Axes = NO_AXES
    scatter: dict[str, Node] = {}
    for f in _flat(node):
        place = _table_place(f, tables)
        if place is not None and place[0] not in scatter:
            scatter[place[0]] = place[1]
        elif isinstance(f, Sum) and f.scatter and not bound:
            bound, domain = f.bound, [*domain, *f.domain]
            rest += f.factors
            scatter |= dict(f.scatter)
        else:
            rest.append(f)
    return raw_sum(bound, rest, domain, list(scatter.items()))


def _flat(node: Node) -> Iterator[Node]:
    """The factors of a product of products."""
    for f in factors_of(node):
        if isinstance(f, Prod):
            yield from _flat(f)
        else:
            yield f


def _table_place(factor: Node, tables: Axes) -> tuple[str, Node] | None:
    """``(r, f)`` of a bracket ``[r == f]`` where r is a table axis and f is free of it."""
    if not isinstance(factor, Iverson) or not isinstance(factor.condition, Call) or factor.condition.fn != "eq":
        return None
    a, b = factor.condition.args
    for place, index in ((a, b), (b, a)):
        if isinstance(place, Axis) and place.name in tables and place.name not in index.axes:
            return place.name, index
    return None


def _chunk(chunks: Chunks) -> Var:
    """The number of the chunk that a block lies in."""
    return var(chunks.axis, (), "i")


def _within_chunks(program: Program, item: Pass) -> Pass:
    """The pass with the numbers of chunks as integers that are the same for a whole block."""
    nodes = [*item.reductions, *(n for _, _, n in item.stores)]
    with tracking(program.notes):
        for chunks in item.chunks:
            nodes = numbered(nodes, chunks, _chunk(chunks))
    count = len(item.reductions)
    stores = tuple((name, axes, n) for (name, axes, _), n in zip(item.stores, nodes[count:], strict=True))
    return dataclasses.replace(item, reductions=tuple(nodes[:count]), stores=stores)


def as_var(node: Node) -> Var:
    assert isinstance(node, Var)
    return node


def guarded(node: Node, leaders: Sequence[Node]) -> Node:
    """While no key has been seen the new maximum is -inf too: 0 in its place makes the factor exp2(-inf), not NaN."""
    guards: dict[Node, Node] = {m: call("finite_or_zero", m) for m in leaders}
    return replace([node], guards | {g: g for g in guards.values()})[0]


def unguarded(node: Node, accumulators: Mapping[Node, Node]) -> Node | None:
    """Before the first key a running maximum is -inf and must rescale by exp2(-inf) = 0, so its guard is dropped."""
    if node in accumulators:
        return accumulators[node]
    if isinstance(node, Call) and node.fn == "finite_or_zero" and _reads(node, accumulators):
        return node.args[0]
    return None


def _reads(node: Node, accumulators: Mapping[Node, Node]) -> bool:
    held = set(accumulators.values())
    return any(n in held for n in postorder([node]))
