"""Block lengths, warps and pipeline stages of a kernel.

A static rule, fitted to the registers and spills that the NVIDIA and AMD assemblers report for forward, row and column
kernels with 64, 128 and 256 channels. It bounds what a thread holds and takes the first rung of a ladder, largest tiles
first, within the bound. Kernels vary, so `candidates` names further rungs: compile in order, keep the first that fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnc.codegen.tile import Accumulate, AccumulateAt, Kernel, Lane, Loop, statements
from attnc.codegen.triton.parameters import evaluate, padded, paddings
from attnc.ir.node import Sum, Var


@dataclass(frozen=True, slots=True)
class Configuration:
    """How a kernel is cut up: lanes per blocked axis, warps per program, stages of the load pipeline."""

    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2


@dataclass(frozen=True, slots=True)
class _Budget:
    """What a target offers.

    Attributes:
        elements: of accumulators and tiles per thread; `wide` applies above 128 channels.
        tile: elements of one tile per thread.
        shared: bytes of shared memory per program.
        stages: of the load pipeline, where shared memory suffices.
        rows: of the outer axis that one warp multiplies at a time; with fewer per warp, warps repeat each other's work.
        warps: that multiply matrices together, at least.
    """

    elements: int
    wide: int
    tile: int
    shared: int
    stages: int = 3
    rows: int = 16
    warps: int = 1


LADDER = (
    (128, 128, 8), (128, 64, 8), (128, 64, 4), (64, 64, 4), (128, 32, 8), (128, 32, 4), (64, 32, 8), (64, 64, 2),
    (64, 32, 4), (64, 32, 2), (128, 16, 8), (64, 16, 4), (64, 16, 2), (32, 64, 4), (32, 32, 4), (32, 32, 2),
    (32, 32, 8), (32, 16, 8), (32, 16, 4), (32, 16, 2), (16, 64, 4), (16, 32, 4), (16, 16, 4), (16, 16, 1),
)  # fmt: skip
"""Lanes of the outer and the inner axis, and warps."""
FEW = (64, 32)
"""Lanes of the inner axis where a loop serves few rows: it waits for memory, so several programs shall fit."""
LONGEST_BLOCK = max(max(outer, inner) for outer, inner, _ in LADDER)
BUDGETS = {
    "sm_80": _Budget(96, 73, 32, 163 * 1024),
    "sm_86": _Budget(96, 73, 32, 99 * 1024),
    "sm_89": _Budget(96, 73, 32, 99 * 1024),
    "sm_90": _Budget(130, 75, 64, 227 * 1024, warps=4),
    "sm_100": _Budget(100, 58, 64, 227 * 1024, warps=4),
    "sm_120": _Budget(96, 73, 32, 99 * 1024),
    "gfx942": _Budget(100, 60, 32, 64 * 1024, 2, 32),
    "gfx950": _Budget(100, 60, 32, 160 * 1024, 2, 32),
}
FALLBACK = BUDGETS["sm_80"]
EXACT = 24
"""Operand elements per thread and channel of f32 products, which are taken without tensor cores, from registers."""
CHOICES = 4
HARMLESS = 32
BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2}


def default_configuration(kernel: Kernel, sizes: Mapping[str, int], target: str) -> Configuration:
    """The first of `candidates`."""
    return candidates(kernel, sizes, target)[0]


def candidates(kernel: Kernel, sizes: Mapping[str, int], target: str) -> tuple[Configuration, ...]:
    """Configurations to try in order, most promising first.

    Args:
        sizes: channel extents, and other sizes as far as they are known: no block is much longer than its axis.
        target: ``sm_90``, ``gfx942``, ...; the interpreter takes any.
    """
    if target == "interpreter":
        wanted = {x.axis: _interpreted(kernel, x, sizes) for x in kernel.lanes if x.role != "channel"}
        return (Configuration(_capped(kernel, sizes, wanted)),)
    budget = BUDGETS.get(target, FALLBACK)
    if _has_few_rows(kernel, sizes):
        few = [_capped(kernel, sizes, {x.axis: n for x in kernel.lanes}) for n in FEW]
        return tuple(Configuration(b, 4, budget.stages) for b in few)
    lanes = 64 if target.startswith("gfx") else 32
    load = _load(kernel, sizes)
    found: list[tuple[float, Configuration]] = []
    fixed = {x.role: kernel.fixed[x.axis] for x in kernel.lanes if x.axis in kernel.fixed}
    for outer, inner, warps in LADDER:
        outer, inner = fixed.get("outer", outer), fixed.get("inner", inner)
        blocks = _capped(kernel, sizes, {x.axis: outer if x.role == "outer" else inner for x in kernel.lanes})
        deep = load.shared(outer, inner, budget.stages) <= budget.shared
        choice = Configuration(blocks, warps, budget.stages if deep else 2)
        if target.startswith("gfx") and warps > 4 and load.products > 1:
            continue  # waves of such programs have half the registers
        if warps < budget.warps or load.repeats(outer, inner, warps, budget):
            continue
        if all(c.blocks != blocks or pressure > 1 for pressure, c in found):
            found.append((load.pressure(outer, inner, lanes * warps, budget), choice))
    fitting = [c for pressure, c in found if pressure <= 1]
    if not fitting:
        fitting = [c for _, c in sorted(found, key=lambda x: x[0])]
    return tuple(fitting[:CHOICES]) or (
        Configuration(_capped(kernel, sizes, {x.axis: 16 for x in kernel.lanes}), 4, 1),
    )


def _has_few_rows(kernel: Kernel, sizes: Mapping[str, int]) -> bool:
    """Whether the rows of a loop are known to fit the smallest matrix product."""
    known = {**kernel.constants, **sizes}
    if kernel.outer is None or not any(isinstance(s, Loop) for s in kernel.body):
        return False
    try:
        return evaluate(kernel.lane(kernel.outer).extent, known) <= 16
    except KeyError:
        return False


def preferred(spills: Sequence[int]) -> int:
    """Which of several candidates to keep, given how many bytes each spills: the first that hardly spills more than the
    best, because a few registers put aside around a loop cost less than small tiles."""
    return next(k for k, n in enumerate(spills) if n <= min(spills) + HARMLESS)


def _interpreted(kernel: Kernel, lane: Lane, sizes: Mapping[str, int]) -> int:
    """A block length for the interpreter, which takes as long for a small tile as for a large one."""
    try:
        return 256 if evaluate(lane.extent, {**kernel.constants, **sizes}) > 512 else 64
    except KeyError:
        return 64


def _capped(kernel: Kernel, sizes: Mapping[str, int], wanted: Mapping[str, int]) -> dict[str, int]:
    """Block lengths, no longer than it takes to cover an axis whose extent is known."""
    known = {**kernel.constants, **sizes}
    blocks = {}
    for lane in kernel.lanes:
        if lane.role == "channel":
            continue
        blocks[lane.axis] = min(wanted[lane.axis], kernel.longest or wanted[lane.axis])
        if lane.axis in kernel.fixed:
            blocks[lane.axis] = kernel.fixed[lane.axis]
            continue
        try:
            extent = evaluate(lane.extent, known)
        except KeyError:
            continue
        blocks[lane.axis] = min(blocks[lane.axis], padded(extent, 16))
    return blocks


@dataclass(frozen=True, slots=True)
class _Load:
    """What a program holds.

    Attributes:
        width: the longest channel axis.
        accumulated: channels of all accumulators.
        products: matrix products over the plane in one loop.
        outer_bytes, inner_bytes: loaded per position.
        exact: whether products are taken in f32.
        rows: of the matrix products in the loop: a role of lanes, or a number of channels.
    """

    width: int
    accumulated: int
    products: int
    outer_bytes: int
    inner_bytes: int
    exact: bool
    rows: frozenset[str | int]

    def repeats(self, outer: int, inner: int, warps: int, budget: _Budget) -> bool:
        """Whether warps would compute the same rows of a matrix product."""
        lanes = {"outer": outer, "inner": inner}
        rows = [lanes[r] if isinstance(r, str) else r for r in self.rows]
        return not self.exact and any(n < budget.rows * warps for n in rows)

    def shared(self, outer: int, inner: int, stages: int) -> int:
        return outer * self.outer_bytes + stages * inner * self.inner_bytes

    def pressure(self, outer: int, inner: int, threads: int, budget: _Budget) -> float:
        """How much a program holds, relative to what the target offers: it fits with 1 or less."""
        elements = (outer * self.accumulated + self.products * outer * inner) / threads
        return max(
            (outer + inner) * self.width / (EXACT * threads) if self.exact else 0.0,
            outer * inner / (budget.tile * threads),
            elements / (budget.elements if self.width <= 128 else budget.wide),
            self.shared(outer, inner, 2) / budget.shared,
        )


def _load(kernel: Kernel, sizes: Mapping[str, int]) -> _Load:
    known = {**kernel.constants, **sizes}
    width = {a: padded(evaluate(kernel.lane(a).extent, known), p.least) for a, p in paddings(kernel).items()}
    roles = {x.axis: x.role for x in kernel.lanes}
    accumulated: dict[Var, int] = {}
    products = 0
    rows: set[str | int] = set()
    for s in statements(kernel.body):
        if isinstance(s, Accumulate | AccumulateAt):
            accumulated[s.target] = sum(width.get(a, 0) for a in s.target.axes)
        if isinstance(s, Loop):
            products = max(products, sum(_is_plane_product(t, roles) for t in statements(s.body)))
            rows |= {r for t in statements(s.body) for r in _rows(kernel, t, width)}
    loaded = _loaded(kernel, width)
    return _Load(
        max(width.values(), default=1),
        sum(accumulated.values()),
        max(1, products),
        loaded.get("outer", 0),
        loaded.get("inner", 0),
        exact=not any(a.dtype in ("f16", "bf16") for a in kernel.arguments),
        rows=frozenset(rows),
    )


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
