"""Block lengths, warps and pipeline stages of a kernel.

What was measured for kernels of the same class comes first (`attnc.codegen.triton.table`). Then a static rule: it
bounds what a thread holds (`attnc.codegen.triton.pressure`) and takes the first rung of a ladder, largest tiles first,
within the bound. Kernels vary, so `candidates` names further rungs: compile in order, keep the first that fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from attnc.codegen.tile import Each, Kernel, Lane, Loop, statements
from attnc.codegen.triton.descriptors import can_describe
from attnc.codegen.triton.parameters import evaluate, padded
from attnc.codegen.triton.pressure import BUDGETS, FALLBACK, Budget, Load, load_of
from attnc.codegen.triton.sinking import is_unrolled
from attnc.codegen.triton.table import Entry, committed


@dataclass(frozen=True, slots=True)
class Configuration:
    """How a kernel is cut up: lanes per blocked axis, warps per program, stages of the load pipeline; and whether it
    loads blocks through tensor descriptors (`attnc.codegen.triton.descriptors`)."""

    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2
    descriptors: bool = False


LADDER = (
    (128, 128, 8), (128, 64, 8), (128, 64, 4), (64, 64, 4), (128, 32, 8), (128, 32, 4), (64, 32, 8), (64, 64, 2),
    (64, 32, 4), (64, 32, 2), (128, 16, 8), (64, 16, 8), (64, 16, 4), (64, 16, 2), (32, 64, 4), (32, 32, 4),
    (32, 32, 2), (32, 32, 8), (32, 16, 8), (32, 16, 4), (32, 16, 2), (16, 64, 4), (16, 32, 4), (16, 16, 4), (16, 16, 1),
    (16, 16, 8),
)  # fmt: skip
"""Lanes of the outer and the inner axis, and warps."""
FEW = (64, 32)
"""Lanes of the inner axis where a loop serves few rows: it waits for memory, so several programs shall fit."""
LONGEST_BLOCK = max(max(outer, inner) for outer, inner, _ in LADDER)
CHOICES = 4
MOST = 8
"""Candidates that the first call of a kernel compiles, at most."""
DESCRIBED = 3
"""How many of the candidates tuning looks at with descriptors too."""
HARMLESS = 32
"""Bytes that a thread may spill."""
CROWDED = 1.2
"""The pressure up to which tuning looks at a configuration: the static rule errs on both sides."""


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
        return (Configuration(capped(kernel, sizes, wanted)),)
    budget = BUDGETS.get(target, FALLBACK)
    if _has_few_rows(kernel, sizes):
        few = [capped(kernel, sizes, {x.axis: n for x in kernel.lanes}) for n in FEW]
        return tuple(Configuration(b, 4, budget.stages) for b in few)
    load = load_of(kernel, sizes)
    found: list[tuple[float, Configuration]] = []
    rungs = list(_rungs(kernel, sizes, target, load, budget))
    for pressure, choice, repeats in rungs:
        if not repeats and all(c.blocks != choice.blocks or held > 1 for held, c in found):
            found.append((pressure, choice))
    fitting = [c for pressure, c in found if pressure <= 1]
    if not fitting:
        fitting = [c for _, c in sorted(found, key=lambda x: x[0])]
    measured = committed(kernel, sizes, target)
    first = [] if measured is None else [_measured(kernel, sizes, measured)]
    listed = _distinct([*first, *fitting[: _count(kernel)], *_last(kernel, load, fitting, rungs)])
    return tuple(listed) or (Configuration(capped(kernel, sizes, {x.axis: 16 for x in kernel.lanes}), 4, 1),)


def _count(kernel: Kernel) -> int:
    """How many fitting candidates to try: more where loops walk over channels, since the rule does not see what they
    hold."""
    return MOST - 2 if _walks(kernel) else CHOICES


Rung = tuple[float, Configuration, bool]
"""How much a configuration holds, the configuration, and whether warps would repeat each other's work."""


def _last(kernel: Kernel, load: Load, fitting: Sequence[Configuration], rungs: Sequence[Rung]) -> list[Configuration]:
    """What is tried if all else spills. Operands in f32 stay in registers, and the rule says little of how many; where
    blocks are kept short, a few warps may have to hold what more could share."""
    held = [c for pressure, c, _ in rungs if pressure <= 1]
    return [*(held[-1:] if load.exact else []), *(_shared_rows(fitting, rungs) if kernel.longest else [])]


def _walks(kernel: Kernel) -> bool:
    """Whether a loop over blocks holds a loop over single channels."""
    inside = (t for s in statements(kernel.body) if isinstance(s, Loop) for t in statements(s.body))
    return any(isinstance(t, Each) and not is_unrolled(t) for t in inside)


def _shared_rows(fitting: Sequence[Configuration], rungs: Sequence[Rung]) -> list[Configuration]:
    """The largest and the smallest tile of as many rows, where short blocks leave room for few warps and more of them
    would share those rows: repeating some work costs less than spilling what is accumulated."""
    most = max((c.num_warps for c in fitting), default=0)
    found = [c for pressure, c, repeats in rungs if repeats and pressure <= 1 and c.num_warps > most]
    rows = [c for c in found if list(c.blocks.values())[:1] == list(found[0].blocks.values())[:1]]
    return [*rows[:1], *rows[-1:]]


def space(kernel: Kernel, sizes: Mapping[str, int], target: str) -> tuple[Configuration, ...]:
    """What tuning may try: the candidates, with and without descriptors, every rung that is not far too crowded, and
    other depths of the pipeline.

    The order is that of promise: all blocks with the usual depth come before other depths.
    """
    first = candidates(kernel, sizes, target)
    if target == "interpreter":
        return first
    if can_describe(kernel, sizes, target):
        first = (*first, *(replace(c, descriptors=True) for c in first[:DESCRIBED]))
    budget = BUDGETS.get(target, FALLBACK)
    if _has_few_rows(kernel, sizes):
        return first
    load = load_of(kernel, sizes)
    rungs = _rungs(kernel, sizes, target, load, budget)
    usual = [c for pressure, c, repeats in rungs if pressure <= CROWDED and not repeats]
    deeper = [replace(c, num_stages=n) for n in (2, 3, 4) for c in usual if _is_held(kernel, c, load, n, budget)]
    return tuple(_distinct([*first, *usual, *deeper]))


def without_descriptors(choices: Iterable[Configuration]) -> tuple[Configuration, ...]:
    """The same choices for tensors that no descriptor describes."""
    return tuple(_distinct(replace(c, descriptors=False) for c in choices))


def _distinct(choices: Iterable[Configuration]) -> list[Configuration]:
    found: list[Configuration] = []
    for c in choices:
        if c not in found:
            found.append(c)
    return found


def _is_held(kernel: Kernel, c: Configuration, load: Load, stages: int, budget: Budget) -> bool:
    """Whether so many stages of loads fit shared memory."""
    return load.shared(*_lengths(kernel, c.blocks, 1, 1), stages) <= budget.shared


def _lengths(kernel: Kernel, blocks: Mapping[str, int], outer: int, inner: int) -> tuple[int, int]:
    """Lanes of the outer and of the inner axis; as given for one that the kernel does not have."""
    found = {x.role: blocks[x.axis] for x in kernel.lanes if x.axis in blocks}
    return found.get("outer", outer), found.get("inner", inner)


def _rungs(kernel: Kernel, sizes: Mapping[str, int], target: str, load: Load, budget: Budget) -> Iterator[Rung]:
    """Every rung of the ladder."""
    lanes = 64 if target.startswith("gfx") else 32
    fixed = {x.role: kernel.fixed[x.axis] for x in kernel.lanes if x.axis in kernel.fixed}
    for outer, inner, warps in LADDER:
        outer, inner = fixed.get("outer", outer), fixed.get("inner", inner)
        blocks = capped(kernel, sizes, {x.axis: outer if x.role == "outer" else inner for x in kernel.lanes})
        outer, inner = _lengths(kernel, blocks, outer, inner)
        deep = load.shared(outer, inner, budget.stages) <= budget.shared
        if target.startswith("gfx") and warps > 4 and load.products > 1:
            continue  # waves of such programs have half the registers
        if warps < budget.warps:
            continue
        pressure = load.pressure(outer, inner, lanes * warps, budget)
        choice = Configuration(blocks, warps, budget.stages if deep else 2)
        yield pressure, choice, load.repeats(outer, inner, warps, budget)


def _measured(kernel: Kernel, sizes: Mapping[str, int], entry: Entry) -> Configuration:
    wanted = {x.axis: entry.outer if x.role == "outer" else entry.inner for x in kernel.lanes}
    return Configuration(capped(kernel, sizes, wanted), entry.warps, entry.stages, entry.descriptors)


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
    """Which of several candidates to keep, given how many bytes each spills: the first that hardly spills, because a
    few registers put aside around a loop cost less than small tiles; where all spill more, the first that hardly
    spills more than the best."""
    least = min(spills)
    return next(k for k, n in enumerate(spills) if n <= (HARMLESS if least <= HARMLESS else least + HARMLESS))


def _interpreted(kernel: Kernel, lane: Lane, sizes: Mapping[str, int]) -> int:
    """A block length for the interpreter, which takes as long for a small tile as for a large one."""
    try:
        return 256 if evaluate(lane.extent, {**kernel.constants, **sizes}) > 512 else 64
    except KeyError:
        return 64


def capped(kernel: Kernel, sizes: Mapping[str, int], wanted: Mapping[str, int]) -> dict[str, int]:
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
