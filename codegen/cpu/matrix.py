"""Sums of products over one axis that are matrix products, and the calls of the micro-kernel for them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from attnc.codegen.cpu.emitter import Emitter
from attnc.codegen.cpu.layout import Layout, Tile
from attnc.codegen.tile import Accumulate, Assign, Stmt
from attnc.ir.node import Const, Sum, Var


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """``target[.., m, n] (+)= sum over depth of broadcast[.., m, depth] vectors[.., depth, n]``.

    `n` is the contiguous axis of the target; `others` are looped over; `packed` tells that `vectors` is transposed
    first. Without `m` it is a vector times a matrix, which is read once, row by row.
    """

    broadcast: Tile
    vectors: Tile
    m: str | None
    n: str
    depth: str
    others: tuple[str, ...]
    packed: bool


def matrix_product(layout: Layout, s: Stmt, scalars: frozenset[str]) -> MatrixPlan | None:
    """The plan of a statement that is a matrix product; None for anything else, and for products without reuse."""
    if not isinstance(s, Assign | Accumulate) or not isinstance(s.value, Sum) or len(s.value.factors) != 2:
        return None
    (depth,) = s.value.bound
    target = layout.tiles[s.target.name]
    factors = [layout.tiles[f.name] for f in s.value.factors if isinstance(f, Var) and f.name in layout.tiles]
    if len(factors) != 2 or not target.lanes or any(t.element != "f" for t in (target, *factors)):
        return None
    n = target.lanes[-1]
    with_n = [t for t in factors if n in t.lanes]
    if len(with_n) != 1 or any(depth not in t.lanes for t in factors):
        return None
    if any(a in scalars for t in (target, *factors) for a in t.lanes):
        return None
    vectors = with_n[0]
    broadcast = factors[1] if factors[0] is vectors else factors[0]
    free = [a for a in broadcast.lanes if a != depth and a not in vectors.lanes]
    packed = vectors.lanes[-1] != n
    if not free:
        alone = broadcast.lanes == (depth,) and vectors.lanes == (depth, n) and target.lanes == (n,)
        return MatrixPlan(broadcast, vectors, None, n, depth, (), packed) if alone else None
    others = tuple(a for a in target.lanes if a not in (n, free[-1]))
    if packed and (set(vectors.lanes) != {depth, n}):
        return None
    return MatrixPlan(broadcast, vectors, free[-1], n, depth, others, packed)


class MatrixProduct:
    """Prints one matrix product."""

    def __init__(self, layout: Layout, needs: set[str], positions: dict[str, str], out: Emitter) -> None:
        self.layout = layout
        self.needs = needs
        self.positions = positions
        self.out = out

    def print(self, s: Assign | Accumulate, plan: MatrixPlan, into: tuple[str, str] | None = None) -> None:
        """The call, or calls. With `into`, an address and its step from row to row, the product is added there."""
        layout = self.layout
        self.out.note(s.note)
        if id(s) in layout.pairs_of:
            self._pairs(s, plan, into)
            return
        self.needs.add("product")
        vectors, row = plan.vectors.array, layout.step(plan.vectors, plan.depth)
        if plan.packed:
            vectors, row = self._pack(plan)
        target, adds = layout.tiles[s.target.name], into is not None or isinstance(s, Accumulate)
        with ExitStack() as loops:
            for axis in plan.others:
                lane, count = layout.axis(axis), layout.count(axis)
                loops.enter_context(self.out.block(f"for (int64_t {lane} = 0; {lane} < {count}; ++{lane})"))
            shift = {} if plan.packed else plan.others
            c = self._at(target, plan.others)
            a = self._at(plan.broadcast, plan.others)
            b = vectors if plan.packed else self._at(plan.vectors, tuple(shift))
            m, array = plan.m, plan.broadcast.array
            steps = layout.aliases.get(plan.broadcast.name, {})
            if not steps:  # a copy, whose source is fetched once
                array, steps = layout.sources.pop(array, (array, steps))
            a_step, end = layout.step(plan.broadcast, plan.depth), "true" if adds else "false"
            if m is None:
                self.needs.add("product_of_row")
                sizes = f"{layout.padded(plan.n)}, {layout.count(plan.depth)}"
                self.out.line(f"product_of_row({c}, {a}, {a_step}, {b}, {row}, {sizes}, {end});")
                return
            c, c_row = into or (c, layout.step(target, m))
            name = "product_in_runs" if self._is_declared(plan.depth) else "product"
            self.needs.add(name)
            self.out.line(
                f"{name}({c}, {c_row}, {a}, {layout.step(plan.broadcast, m)}, {a_step}, {b}, {row}, "
                f"{layout.count(m)}, {layout.padded(plan.n)}, {layout.count(plan.depth)}, "
                f"{end}{self._ahead(plan, array, steps)});"
            )

    def _is_declared(self, depth: str) -> bool:
        """Whether a sum is over an index that the spec declares, of a fixed extent.

        Such sums enter scores as they are, and what they round multiplies weights. What queries and keys round is
        divided by the root of their channels, as their product is.
        """
        return self.layout.roles[depth].role == "channel" and isinstance(self.layout.extent(depth), Const)

    def _ahead(self, plan: MatrixPlan, array: str, steps: Mapping[str, str]) -> str:
        """What the next round of the loop reads in place of the broadcast operand, if it moves with the loop."""
        layout, lanes = self.layout, plan.broadcast.lanes
        looped = layout.looped
        if looped is None or looped not in steps or len(lanes) != 2:
            return ""
        (other,) = (a for a in lanes if a != looped)
        block, length, step = layout.turn, layout.count(other), steps[looped]
        if array != plan.broadcast.array:
            return f", next_rows({array}, {block}, {length}, {step}, {steps[other]})"
        return f", next_block({array}, {block}, {step}, {length})"

    def _pairs(self, s: Assign | Accumulate, plan: MatrixPlan, into: tuple[str, str] | None) -> None:
        """A product of packed bf16 numbers."""
        layout = self.layout
        self.needs.add("product_of_pairs")
        target, m = layout.tiles[s.target.name], plan.m or ""
        a = layout.packs[plan.broadcast.name, "rows", plan.depth]
        b = layout.packs[plan.vectors.name, "pairs", plan.depth]
        c, c_row = into or (target.array, layout.step(target, m))
        adds = into is not None or isinstance(s, Accumulate)
        vectors, row = layout.in_place.get(b.array, (b.array, layout.pack_row(b)))
        self.out.line(
            f"product_of_pairs({c}, {c_row}, {layout.left(a)}, {vectors}, "
            f"{row}, {layout.count(m)}, {layout.padded(plan.n)}, {layout.count(plan.depth)}, "
            f"{'true' if adds else 'false'}{self._ahead(plan, *layout.sources.get(a.array, (a.array, {})))});"
        )

    def _pack(self, plan: MatrixPlan) -> tuple[str, str]:
        """A transposed copy of `vectors` as [depth][n]."""
        if (turned := self.layout.turned.get(plan.vectors.name)) is not None and turned.lanes == (plan.depth, plan.n):
            return turned.array, self.layout.pitch(plan.n)
        self.needs.add("transpose_tile")
        layout = self.layout
        copy = f"{plan.vectors.name} transposed"
        if copy not in layout.tiles:
            array = layout.names.get("var", copy, f"{plan.vectors.name}_transposed")
            layout.tiles[copy] = Tile(copy, "f", (plan.depth, plan.n), array)
        array, row = layout.tiles[copy].array, layout.pitch(plan.n)
        self.out.line(
            f"transpose_tile({array}, {row}, {plan.vectors.array}, {layout.step(plan.vectors, plan.n)}, "
            f"{layout.count(plan.n)}, {layout.count(plan.depth)});"
        )
        return array, row

    def _at(self, tile: Tile, axes: tuple[str, ...]) -> str:
        return " + ".join([tile.array, *self.layout.offset(tile, {a: self.layout.axis(a) for a in axes})])
