"""From a scan to a tile program: one loop over chunks, each state carried from one chunk to the next.

for each chunk, in order:
    the states move on by one chunk (`Carry`)
    for blocks of the positions that are far from here on: they are added
    the states are stored
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from attnc.codegen.tile import Accumulate, Assign, Each, Kernel, Loop, Stmt, Store
from attnc.ir.construct import ONE, add, axis, call, const, iverson, mul, raw_add, raw_prod, raw_sum, size, sub, var
from attnc.ir.node import Call, Node, Sum, Var
from attnc.passes.chunks import numbered
from attnc.passes.plan import Pass, Plan
from attnc.passes.scan import Carry
from attnc.passes.scope import Block
from attnc.passes.tile import Lowering, Reduction


def lower_scan(
    plan: Plan,
    item: Pass,
    *,
    dtypes: Mapping[str, str],
    real: str = "f32",
    constants: Mapping[str, int] | None = None,
    blocks: Mapping[str, int] | None = None,
    name: str | None = None,
) -> Kernel:
    """The tile program of a scan; the arguments are those of `attnc.passes.tile.lower_pass`."""
    return ScanLowering(plan, item, dtypes, real, dict(constants or {}), dict(blocks or {})).kernel(name)


class ScanLowering(Lowering):
    """Lowers one scan. The chunked axis has no lanes: its chunks are visited one by one."""

    def __init__(
        self,
        plan: Plan,
        item: Pass,
        dtypes: Mapping[str, str],
        real: str,
        constants: dict[str, int],
        blocks: dict[str, int],
    ) -> None:
        super().__init__(plan, replace(item, outer=None), dtypes, real, constants, blocks)
        assert item.inner is not None and item.outer is not None
        (self.chunks,) = item.chunks
        self.over: str = item.inner
        self.count = self.chunks.count(self.program.extent(item.outer))
        self.stop: Node = const(0)
        self.lost: dict[Reduction, Var] = {}
        (self.far,) = numbered([self.chunks.far], self.chunks, self.chunks.visited(self.program))

    def kernel(self, name: str | None) -> Kernel:
        """The tile program."""
        emitter = self.emitter
        prologue, visit = emitter.blocks[0], Block(self.chunks.axis)
        emitter.running = {r: self._accumulator(r) for r in self.reductions}
        self.lost = {r: self._lost(r, prologue) for r in self.reductions if self._only_grows(r)}
        emitter.blocks = [prologue, visit]
        self._advance(visit)
        visit.body += self._far_loops()
        emitter.depends = {}
        for buffer, axes, node in self.item.stores:
            visit.body.append(Store(buffer, self._place(axes), self._stored(node)))
        body = (*prologue.body, Each(self.chunks.axis, const(0), self.count, tuple(visit.body), self._note()))
        return self._kernel(name, body, None)

    def _stored(self, node: Node) -> Node:
        """A state, or what rounding has taken from it."""
        if not (isinstance(node, Call) and node.fn == "lost"):
            return self.emitter.value(node)
        return next((x for r, x in self.lost.items() if r is node.args[0]), const(0.0))

    def _only_grows(self, r: Reduction) -> bool:
        """Whether a state is a plain running sum of numbers, which has every position's rounding error in it."""
        carry = self.item.carries[self.item.reductions.index(r)]
        follows = any(self.planes.mentions(r, leader) for leader in self._leaders())
        narrow = len(self.planes.channels(r.axes)) < 2
        return isinstance(r, Sum) and carry.step is ONE and carry.base is None and not follows and narrow

    def _lost(self, r: Reduction, prologue: Block) -> Var:
        lost = var(self.emitter.name(r, "lost"), self.emitter.spread(r))
        prologue.body.append(Assign(lost, const(0.0)))
        return lost

    def _doc(self) -> str:
        title = self.program.doc or self.program.name
        writes = ", ".join(n for n, _, _ in self.item.stores)
        order = "earlier" if self.chunks.forward else "later"
        return f"{title}\n{writes}: what all {order} {self.over} add up to, before each chunk of {self.chunks.outer}"

    def _note(self) -> str:
        return f"chunks of {self.chunks.length} {self.chunks.outer}, {'first' if self.chunks.forward else 'last'} first"

    def _place(self, axes: Sequence[str]) -> tuple[Node, ...]:
        return tuple(self.chunks.visited(self.program) if a == self.chunks.axis else axis(a) for a in axes)

    def _advance(self, visit: Block) -> None:
        """Move the states on by one chunk; what is made from another state before that state."""
        emitter = self.emitter
        pairs = list(zip(self.reductions, self.item.carries, strict=True))
        for r, carry in sorted(pairs, key=lambda p: p[1].base is None):
            moved = self._moved(r, carry)
            target = emitter.running[r]
            if moved is not target:
                assert isinstance(target, Var)
                visit.body.append(Assign(target, moved))

    def _moved(self, r: Reduction, carry: Carry) -> Node:
        emitter = self.emitter
        value = emitter.running[r]
        if carry.base is not None:
            value = raw_add([value, raw_prod([const(float(carry.shift)), emitter.running[carry.base]])])
        step = emitter.value(carry.step)
        return value if step is const(1.0) else raw_prod([step, value])

    def _far_loops(self) -> list[Stmt]:
        """Loops over the positions that became far with this chunk: whole blocks, then the rest."""
        block = size(f"BLOCK_{self.over.upper()}")
        start, stop = self._range()
        whole = self._bound(add(start, mul(block, call("floordiv", sub(stop, start), block))), f"{self.over}_tail")
        self.stop = stop
        return [self._blocks(start, whole, masked=False), self._blocks(whole, stop, masked=True)]

    def _range(self) -> tuple[Node, Node]:
        """The positions between the cut of this chunk and that of the one before in the order of visits."""
        extent = self.program.extent(self.over)
        place, number = axis(self.chunks.axis), self.chunks.visited(self.program)

        def cut(at: Node) -> Node:
            (found,) = numbered([self.chunks.cut], self.chunks, at)
            return call("minimum", call("maximum", found, const(0)), extent)

        begins = call("eq", place, const(0))
        if self.chunks.forward:
            low, high = call("where", begins, const(0), cut(sub(number, const(1)))), cut(number)
        else:
            low, high = cut(number), call("where", begins, extent, cut(add(number, const(1))))
        start = self._bound(low, f"{self.over}_start")
        return start, self._bound(call("maximum", high, start), f"{self.over}_stop")

    def _bound(self, node: Node, name: str) -> Node:
        emitter = self.emitter
        node = self._load_scalars(node)
        if not node.children:
            return node
        target = var(emitter.name(node, name), (), "i")
        emitter.blocks[-1].body.append(Assign(target, node))
        return target

    def _blocks(self, start: Node, stop: Node, *, masked: bool) -> Loop:
        emitter = self.emitter
        block = Block(self.over)
        around, accumulators = emitter.blocks, dict(emitter.running)
        emitter.enter_loop()
        emitter.blocks = [*around, block]
        emitter.depends = {}
        emitter.held = frozenset(accumulators.values())
        for r in self._leaders():
            self._lead(r, block, accumulators[r], self.over, [], masked)
        for r in self.reductions:
            if isinstance(r, Sum):
                target = accumulators[r]
                assert isinstance(target, Var)
                self._follow(r, target, block, accumulators)
                self._add(r, target, block, self._conditions(r, self.over, [], masked))
        for r in self._leaders():
            target = accumulators[r]
            assert isinstance(target, Var)
            block.body.append(Assign(target, emitter.running[r]))
        emitter.blocks = around
        emitter.running = dict(accumulators)
        emitter.leave_loop()
        return Loop(self.over, start, stop, masked, tuple(block.body), "the rest" if masked else "whole blocks")

    def _conditions(self, r: Reduction, inner: str, common: Sequence[Node], masked: bool) -> list[Node]:
        """What must hold for a position to count, beyond what the loop's range guarantees."""
        inside = [call("lt", axis(inner), self.stop)] if masked else []
        return [*inside, *(c for c in r.domain if c is not self.far)]

    def _add(self, r: Sum, target: Var, block: Block, conditions: Sequence[Node]) -> None:
        """Add this block's part of a state: a product of two operands, each spread over one of its channels."""
        emitter = self.emitter
        guard = [iverson(emitter.condition(conditions))] if conditions else []
        channels = sorted(self.planes.channels(r.axes))
        groups: list[list[Node]] = [[f for f in r.factors if c in f.axes] for c in channels] or [[]]
        groups[0] += [f for f in r.factors if not self.planes.channels(f.axes)]
        operands: list[Var] = []
        for group in groups:
            found = emitter.operands([*group, *guard], self.over)
            assert found is not None and len(found) == 1
            operands += found
        part = raw_sum({self.over}, operands)
        if r in self.lost:
            self._add_exactly(target, self.lost[r], part, block)
        else:
            block.body.append(Accumulate(target, part, emitter.note(r)))

    def _add_exactly(self, target: Var, lost: Var, part: Node, block: Block) -> None:
        """Add to a running sum without losing what its last digit cannot hold (Kahan 1965)."""
        emitter = self.emitter

        def named(value: Node, default: str) -> Var:
            found = var(emitter.name(value, default, inside=True), target.axes)
            block.body.append(Assign(found, value))
            return found

        here = named(part, "here")
        more = named(raw_add([here, lost]), "more")
        total = named(raw_add([target, more]), "total")
        taken = named(raw_add([total, raw_prod([const(-1.0), target])]), "taken")
        block.body.append(Assign(lost, raw_add([more, raw_prod([const(-1.0), taken])])))
        block.body.append(Assign(target, total))
