"""Gates on compiled kernels: what machine code must have and must not have, checked without a GPU.

A kernel is compiled ahead of time (`attnc.runtime.triton_aot`) and its assembly read. The hot loop is the loop
with matrix products that is shortest: the one over full blocks, which evaluates no mask.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from attnc.codegen.tile import Accumulate, Assign, Each, Kernel, Stmt, statements
from attnc.codegen.tile import Loop as TileLoop
from attnc.codegen.triton.configuration import HARMLESS
from attnc.codegen.triton.facts import NARROW, SPECIAL, precision
from attnc.codegen.triton.parameters import evaluate, padded, paddings
from attnc.codegen.triton.sinking import is_unrolled
from attnc.ir.node import Call, Sum
from attnc.ir.walk import postorder
from attnc.runtime.triton_aot import SHARED_LIMITS, Artefact
from attnc.testing.listing import Loop, loops
from attnc.testing.model import Cycles, cycles, mix

TENSOR_CORES = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
"""The instruction that multiplies matrices. Blocks of fewer than `ROWS` rows take sm_80's on later devices too."""
ROWS = 64
ASYNCHRONOUS = {"sm_80": ("LDGSTS",), "sm_90": ("LDGSTS", "UTMALDG"), "sm_100": ("LDGSTS", "UTMALDG")}
"""Instructions that copy from global to shared memory without waiting."""
THREADS = {"HMMA": 32, "HGMMA": 128, "QGMMA": 128, "v_mfma": 64}
"""Threads that issue one matrix product together."""
SPILLS = ("STL", "LDL", "scratch_")
"""Instructions that move registers to and from the stack. Around a loop a few of them, up to `HARMLESS` bytes, cost
less than the smaller tiles that would avoid them; inside it none are accepted."""
INSTRUCTIONS = {"sigmoid": 2, "tanh": 2, "softplus": 3, "pow": 3, "sqrt": 2, "erf": 2}
"""Special instructions that a function takes, if more than one."""
DIVISIONS = frozenset(("reciprocal", "reciprocal_or_zero"))
MORE = 1.05
"""How many times the special instructions of its tile program a loop may have."""
LARGEST_REGISTERS = 65536
LONGER = 1.05
"""How much a hot loop may grow over its recorded number of instructions."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the assembly of one kernel says.

    Attributes:
        kernel, target: what was compiled and for which device.
        registers: per thread.
        spilled: see `Artefact.spilled`.
        shared: bytes of shared memory per program.
        programs: programs that fit one multiprocessor by registers, shared memory and threads; None on AMD.
        loop: the hot loop, if there is one with matrix products.
        work: floating-point operations of the loop's matrix instructions over those of the tile program's products;
            None where instructions do not tell their size, or there are no products.
        cycles: of a turn of the loop, by the static model (`attnc.testing.model`); None where it says nothing.
        problems: gates that fail, in words.
    """

    kernel: str
    target: str
    registers: int
    spilled: int
    shared: int
    programs: int | None
    loop: Loop | None
    work: float | None
    cycles: Cycles | None
    problems: tuple[str, ...]

    @property
    def share(self) -> float | None:
        """Of the tensor cores' peak that the static model expects."""
        return self.cycles.share if self.cycles else None


def report(kernel: Kernel, artefact: Artefact, budget: int | None = None) -> Report:
    """Read one compiled kernel.

    Args:
        kernel: the tile program.
        artefact: what `attnc.runtime.triton_aot.aot` made of it.
        budget: recorded instructions of the hot loop.
    """
    loop = hot_loop(artefact, matrix_instruction(kernel, artefact))
    work = _work(kernel, artefact, loop) if loop else None
    problems = [*_problems(kernel, artefact, loop)]
    if work is not None and abs(work - 1) > 0.01:
        problems.append(f"matrix instructions do {work:.2f} times the work of the products")
    special = special_work(kernel, artefact, loop) if loop else None
    if special is not None and special > MORE:
        problems.append(f"special functions are evaluated {special:.2f} times")
    if budget is not None and loop is not None and loop.length > LONGER * budget:
        problems.append(f"the hot loop has {loop.length} instructions, {budget} were recorded")
    programs = _programs(artefact) if artefact.target.startswith("sm_") else None
    flops = _loop_flops(kernel, artefact)
    model = cycles(loop, artefact.target, artefact.configuration.num_warps, flops) if loop and flops else None
    return Report(
        kernel.name,
        artefact.target,
        artefact.registers,
        artefact.spilled,
        artefact.shared,
        programs,
        loop,
        work,
        model,
        tuple(problems),
    )


def matrix_instruction(kernel: Kernel, artefact: Artefact) -> str:
    """The instruction that a kernel's matrix products should be."""
    name = TENSOR_CORES[artefact.target]
    if name == "HGMMA" and any(a.dtype == "f8" for a in kernel.arguments):
        name = "QGMMA"
    rows = artefact.configuration.blocks.get(kernel.outer or "", ROWS)
    return TENSOR_CORES["sm_80"] if name.startswith(("HG", "QG", "UTC")) and rows < ROWS else name


def hot_loop(artefact: Artefact, wanted: str) -> Loop | None:
    """The shortest loop with matrix products that has no other such loop inside."""
    found = [x for x in loops(artefact.assembly) if x.count(wanted)]
    deepest = max((x.depth for x in found), default=0)
    return min((x for x in found if x.depth == deepest), key=lambda x: x.length, default=None)


def _problems(kernel: Kernel, artefact: Artefact, loop: Loop | None) -> list[str]:
    found = []
    if loop is not None and loop.count(*SPILLS):
        found.append("registers are spilled in the hot loop")
    if artefact.spilled > HARMLESS:
        found.append(f"{artefact.spilled} bytes of registers are spilled")
    limit = SHARED_LIMITS[artefact.target]
    if artefact.shared > limit:
        found.append(f"{artefact.shared} bytes of shared memory, {limit} are there")
    if not uses_tensor_cores(kernel):
        return found
    if loop is None:
        found.append(f"no loop with {matrix_instruction(kernel, artefact)}")
    elif is_pipelined(kernel) and artefact.target in ASYNCHRONOUS and not loop.count(*ASYNCHRONOUS[artefact.target]):
        found.append("no asynchronous copies in the hot loop")
    return found


def uses_tensor_cores(kernel: Kernel) -> bool:
    """Whether a kernel multiplies matrices of half-precision or TF32 tensors in a loop."""
    narrow = any(precision(a) in NARROW for a in kernel.arguments)
    return narrow and any(_products(s.body, kernel) for s in statements(kernel.body) if isinstance(s, TileLoop))


def is_pipelined(kernel: Kernel) -> bool:
    """Whether Triton can overlap loads with products: it pipelines loops that hold no other loop."""
    inside = [t for s in statements(kernel.body) if isinstance(s, TileLoop) for t in statements(s.body)]
    return all(is_unrolled(t) for t in inside if isinstance(t, Each))


def _products(body: tuple[Stmt, ...], kernel: Kernel) -> list[Sum]:
    """The matrix products of a loop: sums of two values that share the summed axis and nothing else."""
    found = []
    for s in statements(body):
        value = s.value if isinstance(s, Assign | Accumulate) else None
        if isinstance(value, Sum) and len(value.factors) == 2:
            a, b = (f.axes & {x.axis for x in kernel.lanes} for f in value.factors)
            if a & b == value.bound and a - b and b - a:
                found.append(value)
    return found


def _work(kernel: Kernel, artefact: Artefact, loop: Loop) -> float | None:
    name = matrix_instruction(kernel, artefact)
    if name not in THREADS:
        return None
    threads = artefact.configuration.num_warps * (64 if name == "v_mfma" else 32)
    counted = ("QGMMA", "HGMMA") if name == "QGMMA" else name  # what was computed is multiplied in more bits
    done = (
        sum(n * instruction_flops(x) for x, n in loop.names.items() if x.startswith(counted)) * threads / THREADS[name]
    )
    wanted = _loop_flops(kernel, artefact)
    return done / wanted if wanted else None


def _loop_flops(kernel: Kernel, artefact: Artefact) -> int:
    """Floating-point operations of the products of the loop over full blocks, or of the only loop, per turn."""
    return max((_product_flops(kernel, artefact, body) for body in _bodies(kernel)), default=0)


def _bodies(kernel: Kernel) -> list[tuple[Stmt, ...]]:
    """The bodies of the loops over full blocks, or of all if there are none."""
    bodies = [s.body for s in statements(kernel.body) if isinstance(s, TileLoop)]
    full = [s.body for s in statements(kernel.body) if isinstance(s, TileLoop) and not s.masked]
    return full or bodies


def _product_flops(kernel: Kernel, artefact: Artefact, body: tuple[Stmt, ...]) -> int:
    """Floating-point operations of a loop body's matrix products on one pair of blocks."""
    lengths = _lengths(kernel, artefact)
    total = 0
    for product in _products(body, kernel):
        (summed,) = product.bound
        total += 2 * lengths[summed] * prod(lengths[a] for f in product.factors for a in f.axes - product.bound)
    return total


def _lengths(kernel: Kernel, artefact: Artefact) -> dict[str, int]:
    """Lanes of every axis."""
    lengths = dict(artefact.configuration.blocks)
    for axis, padding in paddings(kernel).items():
        lengths[axis] = padded(evaluate(kernel.lane(axis).extent, kernel.constants), padding.least)
    return lengths


def special_work(kernel: Kernel, artefact: Artefact, loop: Loop) -> float | None:
    """Special instructions of a loop over those that its tile program takes if every thread evaluates its share of
    matrices, and all of vectors; None where it takes none."""
    threads = artefact.configuration.num_warps * (64 if artefact.target.startswith("gfx") else 32)
    lengths = _lengths(kernel, artefact)
    bodies = (sum(_evaluations(n, lengths, threads) for n in _calls(body)) for body in _bodies(kernel))
    wanted = max(bodies, default=0.0)
    return mix(loop)["special"] / wanted if wanted else None


def _calls(body: tuple[Stmt, ...]) -> set[Call]:
    values = [s.value for s in statements(body) if isinstance(s, Assign | Accumulate)]
    return {n for n in postorder(values) if isinstance(n, Call) and n.fn in SPECIAL | DIVISIONS}


def _evaluations(node: Call, lengths: dict[str, int], threads: int) -> float:
    """Special instructions that one thread takes for a function; it may hold all of a vector."""
    spread = [lengths[a] for a in node.axes if a in lengths]
    return INSTRUCTIONS.get(node.fn, 1) * (prod(spread) / threads if len(spread) > 1 else prod(spread))


def instruction_flops(name: str) -> int:
    """Floating-point operations of one matrix instruction, from its name: HMMA.16816 is 16 x 8 x 16."""
    if match := re.match(r"HMMA\.16(8)(\d+)", name):
        return 2 * 16 * int(match[1]) * int(match[2])
    if match := re.search(r"(?:[HQ]GMMA\.|v_mfma_\w+?_)(\d+)x(\d+)x(\d+)", name):
        return 2 * prod(int(x) for x in match.groups())
    raise ValueError(f"a matrix instruction of unknown size: {name}")


def _programs(artefact: Artefact) -> int:
    """Programs that one multiprocessor can hold at once."""
    threads = 32 * artefact.configuration.num_warps
    registers = LARGEST_REGISTERS // (threads * max(32, -(-artefact.registers // 8) * 8))
    shared = SHARED_LIMITS[artefact.target] // max(1, artefact.shared)
    return min(registers, shared, 2048 // threads)
