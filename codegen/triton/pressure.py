"""How much of a target's registers and shared memory a kernel holds, as a static rule.

Fitted to the registers and spills that the NVIDIA and AMD assemblers report for forward, row and column kernels with
64, 128 and 256 channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnc.codegen.tile import Accumulate, AccumulateAt, Assign, Kernel, Loop, statements
from attnc.codegen.triton.facts import NARROW, precision
from attnc.codegen.triton.parameters import evaluate, padded, paddings
from attnc.ir.node import Load as Loaded
from attnc.ir.node import Sum, Var


@dataclass(frozen=True, slots=True)
class Budget:
    """What a target offers.

    Attributes:
        elements: of accumulators and tiles per thread; `wide` applies above 128 channels.
        tile: elements of one tile per thread.
        shared: bytes of shared memory per program.
        stages: of the load pipeline, where shared memory suffices.
        rows: of the outer axis that one warp has of a product at least; with fewer, warps repeat each other's work. On
            sm_100 products are no warp's, and two share out the columns of their rows.
        warps: that multiply matrices together, at least.
        sharers: threads that have parts of the same row of a product, so that each holds a part of what is known per
            column; None: one of every four warps.
    """

    elements: int
    wide: int
    tile: int
    shared: int
    stages: int = 3
    rows: int = 16
    warps: int = 1
    sharers: int | None = 4


BUDGETS = {
    "sm_80": Budget(96, 73, 32, 163 * 1024),
    "sm_86": Budget(96, 73, 32, 99 * 1024),
    "sm_89": Budget(96, 73, 32, 99 * 1024),
    "sm_90": Budget(130, 75, 64, 227 * 1024, warps=4),
    "sm_100": Budget(100, 58, 64, 227 * 1024, rows=8, warps=4, sharers=None),
    "sm_120": Budget(96, 73, 32, 99 * 1024),
    "gfx942": Budget(100, 60, 32, 64 * 1024, 2, 32, sharers=32),
    "gfx950": Budget(100, 60, 32, 160 * 1024, 2, 32, sharers=32),
}
FALLBACK = BUDGETS["sm_80"]
EXACT = 24
"""Operand elements per thread and channel of f32 products, which are taken without tensor cores, from registers."""
ROWS, TALL = 16, 64
"""Rows of a warp's product, and of the smallest product that several warps take together."""
USUAL = 2
"""Vectors over the inner axis that the elements of `Budget` leave room for."""
LATE = 1.5
"""How much more than these elements a program may hold with all its vectors, some of which are loaded late."""
BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "f8": 1}


@dataclass(frozen=True, slots=True)
class Load:
    """What a program holds.

    Attributes:
        width: the longest channel axis.
        accumulated: channels of all accumulators.
        products: matrix products over the plane in one loop.
        outer_bytes, inner_bytes: loaded per position.
        exact: whether products are taken in f32.
        rows: of the matrix products in the loop: a role of lanes, or a number of channels.
        vectors: reals that the loop loads per position of the inner axis, beside matrices.
    """

    width: int
    accumulated: int
    products: int
    outer_bytes: int
    inner_bytes: int
    exact: bool
    rows: frozenset[str | int]
    vectors: int = 0

    def repeats(self, outer: int, inner: int, warps: int, budget: Budget) -> bool:
        """Whether warps would compute the same rows of a matrix product."""
        lanes = {"outer": outer, "inner": inner}
        rows = [lanes[r] if isinstance(r, str) else r for r in self.rows]
        return not self.exact and any(n < warps * (budget.rows if n >= TALL else max(ROWS, budget.rows)) for n in rows)

    def shared(self, outer: int, inner: int, stages: int) -> int:
        """Bytes of shared memory, about."""
        return outer * self.outer_bytes + stages * inner * self.inner_bytes

    def pressure(self, outer: int, inner: int, threads: int, budget: Budget) -> float:
        """How much a program holds, relative to what the target offers: it fits with 1 or less."""
        elements = (outer * self.accumulated + self.products * outer * inner) / threads
        most = budget.elements if self.width <= 128 else budget.wide
        vectors = max(0, self.vectors - USUAL) * inner / (budget.sharers or max(1, threads // 128))
        return max(
            (outer + inner) * self.width / (EXACT * threads) if self.exact else 0.0,
            outer * inner / (budget.tile * threads),
            elements / most,
            (elements + vectors) / (LATE * most),
            self.shared(outer, inner, 2) / budget.shared,
        )


def load_of(kernel: Kernel, sizes: Mapping[str, int]) -> Load:
    """What a program of the kernel holds, for these channel extents."""
    known = {**kernel.constants, **sizes}
    width = {a: padded(evaluate(kernel.lane(a).extent, known), p.least) for a, p in paddings(kernel).items()}
    roles = {x.axis: x.role for x in kernel.lanes}
    accumulated: dict[Var, int] = {}
    products = 0
    rows: set[str | int] = set()
    vectors: set[Var] = set()
    for s in statements(kernel.body):
        if isinstance(s, Accumulate | AccumulateAt):
            accumulated[s.target] = sum(width.get(a, 0) for a in s.target.axes)
        if isinstance(s, Loop):
            products = max(products, sum(_is_plane_product(t, roles) for t in statements(s.body)))
            rows |= {r for t in statements(s.body) for r in _rows(kernel, t, width)}
            vectors |= {t.target for t in statements(s.body) if isinstance(t, Assign) and _is_vector(t, s.axis)}
    loaded = _loaded(kernel, width)
    return Load(
        max(width.values(), default=1),
        sum(accumulated.values()),
        max(1, products),
        loaded.get("outer", 0),
        loaded.get("inner", 0),
        exact=not any(precision(a) in NARROW for a in kernel.arguments),
        rows=frozenset(rows),
        vectors=len(vectors),
    )


def _is_vector(s: Assign, inner: str) -> bool:
    return isinstance(s.value, Loaded) and s.target.kind == "f" and s.target.axes == frozenset((inner,))


def _is_plane_product(s: object, roles: Mapping[str, str]) -> bool:
    value = getattr(s, "value", None)
    if not (isinstance(value, Sum) and len(value.factors) == 2):
        return False
    return {roles.get(a) for a in value.axes} >= {"outer", "inner"}


def _rows(kernel: Kernel, s: object, width: Mapping[str, int]) -> list[str | int]:
    """What the rows of a statement's matrix product run over, if it is one: the earlier of its two free axes."""
    value = getattr(s, "value", None)
    if not (isinstance(value, Sum) and len(value.factors) == 2):
        return []
    a, b = (f.axes & {x.axis for x in kernel.lanes} - value.bound for f in value.factors)
    if not a or not b or a == b:
        return []
    first = kernel.layout(a | b)[0]
    return [width[first] if first in width else kernel.lane(first).role]


def _loaded(kernel: Kernel, width: Mapping[str, int]) -> dict[str, int]:
    """Bytes loaded per position of the outer and of the inner axis, for operands spread over a channel."""
    total: dict[str, int] = {}
    seen: set[Var] = set()
    for s in statements(kernel.body):
        tensor = getattr(getattr(s, "value", None), "tensor", None)
        target = getattr(s, "target", None)
        if tensor is None or not isinstance(target, Var) or target in seen:
            continue
        seen.add(target)
        for lane in kernel.lanes:
            if lane.axis in target.axes and lane.role != "channel":
                channels = sum(width.get(a, 0) for a in target.axes)
                total[lane.role] = total.get(lane.role, 0) + channels * BYTES.get(kernel.argument(tensor).dtype, 4)
    return total
