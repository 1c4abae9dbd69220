"""From the merge of a split pass to a tile program: one loop over the parts, for each block of rows.

for each part, in order:
    the maxima move on to this part's, where that is larger
    sums follow the maxima; this part's sums follow them too, and are added
what the pass stores is made from the accumulators, as after its own loop
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from attnc.codegen.tile import Accumulate, Assign, Each, Kernel
from attnc.ir.construct import add, axis, const, load, neg, position_of, raw_call, raw_prod, var
from attnc.ir.node import Node, Sum, Var
from attnc.ir.walk import rewrite
from attnc.passes.exponents import with_unit
from attnc.passes.scope import Block
from attnc.passes.split import Split
from attnc.passes.tile import Lowering, Reduction, as_var, guarded, unguarded


def lower_merge(
    split: Split,
    *,
    dtypes: Mapping[str, str],
    real: str = "f32",
    constants: Mapping[str, int] | None = None,
    blocks: Mapping[str, int] | None = None,
) -> Kernel:
    """The tile program of a merge; the arguments are those of `attnc.passes.tile.lower_pass`."""
    return MergeLowering(split, dtypes, real, dict(constants or {}), dict(blocks or {})).kernel(None)


class MergeLowering(Lowering):
    """Lowers one merge. The parts have no lanes: they are visited one by one, first to last."""

    def __init__(
        self, split: Split, dtypes: Mapping[str, str], real: str, constants: dict[str, int], blocks: dict[str, int]
    ) -> None:
        super().__init__(split.plan, replace(split.merge, inner=None), dtypes, real, constants, blocks)
        self.split = split
        used = {a for n in self._stored() for a in self._axes_of(n)}
        used.update(a for _, axes, _ in self.item.stores for a in axes)
        self.lanes = tuple(a for a in self.lanes if a == self.outer or a in used)
        self.emitter.lanes = self.lanes
        self.emitter.inner = split.part

    def _stored(self) -> Iterable[Node]:
        """What the stores are made of, down to the reductions."""
        pending = [n for _, _, n in self.item.stores]
        seen: set[Node] = set()
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                yield node
                pending += [] if node in self.reductions else node.children
        yield from (axis(a) for r in self.reductions for a in r.axes)

    def kernel(self, name: str | None) -> Kernel:
        """The tile program."""
        emitter = self.emitter
        prologue, visit = emitter.blocks[0], Block(self.split.part)
        accumulators: dict[Node, Node] = {r: self._accumulator(r) for r in self.reductions}
        emitter.running = dict(accumulators)
        emitter.blocks = [prologue, visit]
        emitter.depends = {}
        emitter.enter_loop()
        self._visit(visit, accumulators)
        emitter.leave_loop()
        emitter.running = accumulators
        epilogue = Block("")
        emitter.blocks = [prologue, epilogue]
        self._stores(epilogue)
        parts = self.program.extent(self.split.part)
        loop = Each(self.split.part, const(0), parts, tuple(visit.body), f"parts of the loop over {self._over}")
        body = (*prologue.body, loop, *epilogue.body)
        return self._kernel(name, body, self.outer)

    @property
    def _over(self) -> str | None:
        return self.split.merge.inner

    def _doc(self) -> str:
        title = self.program.doc or self.program.name
        writes = ", ".join(n for n, _, _ in self.item.stores)
        return f"{title}\n{writes} for one block of {self.outer}: what the parts of the loop over {self._over} found"

    def _visit(self, visit: Block, accumulators: Mapping[Node, Node]) -> None:
        emitter = self.emitter
        here: dict[Node, Node] = {r: self._load_part(r, visit) for r in self.reductions}
        emitter.held = frozenset((*accumulators.values(), *here.values()))
        for r in self._leaders():
            maximum = position_of(r)
            old = accumulators[r]
            if maximum is None:
                moved = raw_call("maximum", (old, here[r]), "f")
            else:
                larger = raw_call("lt", (accumulators[maximum], here[maximum]), "b")
                moved = raw_call("where", (larger, here[r], old), "f")
            emitter.running[r] = self._named(r, moved, "m_new", visit)
        for r in self.reductions:
            if isinstance(r, Sum):
                target = as_var(accumulators[r])
                self._follow(r, target, visit, accumulators)
                visit.body.append(Accumulate(target, self._followed(r, here), emitter.note(r)))
        for r in self._leaders():
            visit.body.append(Assign(as_var(accumulators[r]), emitter.running[r]))

    def _load_part(self, r: Reduction, visit: Block) -> Var:
        """What a part stored for a reduction."""
        buffer = self.plan.buffer(self.split.buffers[self.reductions.index(r)])
        return self._named(
            r, load(buffer.name, [self.split.places.get(a, axis(a)) for a in buffer.axes]), "here", visit
        )

    def _named(self, r: Reduction, value: Node, default: str, visit: Block) -> Var:
        found = var(self.emitter.name(r, default, inside=True), self.emitter.spread(r))
        visit.body.append(Assign(found, value))
        return found

    def _followed(self, r: Sum, here: Mapping[Node, Node]) -> Node:
        """A part's sum, by as much as the maxima of the parts before it are larger than its own."""
        change = self._change(r)
        if change is None:
            return here[r]
        own = rewrite([change], lambda n: unguarded(n, here), canonical=True)[0]
        new = guarded(change, self._leaders())
        factor = raw_call("exp2", (self.emitter.value(with_unit(add(new, neg(own)))),), "f")
        return raw_prod([here[r], factor])
