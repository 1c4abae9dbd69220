"""What a bias costs in each of its forms, per pair of positions, forward and backward together.

The forms differ in what they do on the plane (Wu et al. 2025, arXiv:2505.12044): registers recompute every operation of
the bias for each pair in each of the three passes, and reduce its gradient channel by channel; factors add matrix
products of `rank` channels, two more of them for gradients; a dense bias is read by each pass and its gradient written.
What is linear in the length does not count.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import Literal

from attnc.ir.construct import axis
from attnc.ir.node import Axes, Axis, Call, Const, Iverson, Load, Node, Prod, Size, Sum
from attnc.ir.program import Program
from attnc.ir.walk import postorder

Form = Literal["registers", "factors", "dense"]
FORMS: tuple[Form, ...] = ("registers", "factors", "dense")

PASSES = 3
"""Passes over the plane that evaluate the score: one forward, two backward."""
NOMINAL_CHANNELS = 64
"""Channels of an axis whose extent is not known at compile time."""
OPERATIONS: dict[str, int] = {
    name: count
    for count, names in (
        (4, ("sqrt", "rsqrt", "reciprocal")),
        (6, ("exp", "exp2")),
        (10, ("log", "log2", "tanh", "sigmoid", "softplus", "floordiv", "mod")),
        (20, ("erf", "pow")),
        (25, ("sin", "cos")),
    )
    for name in names
}
"""Pointwise functions in units of one addition; others count as one."""


@dataclass(frozen=True, slots=True)
class Target:
    """Nanoseconds of one core or one device, per pair: measured on a CPU with AVX-512, from data sheets for an H200,
    where products of f32 factors run at full precision and so without tensor cores.

    Attributes:
        operation: one pointwise operation.
        product: one matrix product, besides its channels.
        channel: one channel of a matrix product.
        reduction: adding one channel of a plane gradient up without a matrix product.
        byte: reading or writing one byte per pair that no other pair shares.
        gather: loading one element per pair from where its subscripts say.
        least: channels that a matrix product has at least.
    """

    name: str
    operation: float
    product: float
    channel: float
    reduction: float
    byte: float
    gather: float
    least: int


CPU = Target("cpu", 0.035, 0.085, 0.0155, 0.1, 0.1, 1.5, 1)
GPU = Target("gpu", 2e-5, 0.0, 3e-5, 2e-5, 2.1e-4, 2e-4, 16)
TARGETS = {"cpu": CPU, "gpu": GPU}


def registers(target: Target, program: Program, value: Node, plane: Axes) -> float:
    """A bias computed where it is used."""
    learned = trained(program, value)
    products = {n for n in postorder([value]) if isinstance(n, Sum) and _is_product(n, plane)}
    total = sum(factors(target, _channels(program, n.bound), trained=learned) for n in products)
    reached = _above(value, products)
    loads = [n for n in reached if isinstance(n, Load)]
    gathered = [n for n in loads if plane <= n.axes]
    whole = [n for n in gathered if {axis(a) for a in plane} <= set(n.index)]
    reduced = sum(_channels(program, n.axes) for n in loads if program.tensor(n.tensor).is_real)
    memory = len(gathered) * target.gather + len(whole) * 4 * target.byte
    computed = sum(operations(program, n) for n in reached if plane <= n.axes or _inside(n, plane))
    return total + PASSES * (computed * target.operation + memory) + reduced * target.reduction


def _is_product(node: Sum, plane: Axes) -> bool:
    """Whether a sum over channels is a matrix product already: no factor has both positions, and each has some."""
    return plane <= node.axes and all(len(f.axes & plane) == 1 for f in node.factors if f.axes & node.bound)


def _above(value: Node, stops: Collection[Node]) -> list[Node]:
    """Nodes reached without entering those of `stops`."""
    seen: dict[Node, None] = {}
    stack = [value]
    while stack:
        node = stack.pop()
        if node not in seen and node not in stops:
            seen[node] = None
            stack += node.children
    return list(seen)


def factors(target: Target, rank: int, *, trained: bool) -> float:
    """A bias as a product of `rank` channels, with gradients of both factors where they come from tensors."""
    products = PASSES + (2 if trained else 0)
    return products * (target.product + max(rank, target.least) * target.channel)


def dense(target: Target, *, trained: bool) -> float:
    """A bias in memory, in reals."""
    times = 2 if trained else 1
    return times * PASSES * (4 * target.byte + target.gather)


def trained(program: Program, value: Node) -> bool:
    """Whether a bias reads tensors that may want a gradient."""
    return any(isinstance(n, Load) and program.tensor(n.tensor).is_real for n in postorder([value]))


def _inside(node: Node, plane: Axes) -> bool:
    return isinstance(node, Sum) and any(plane <= f.axes for f in node.factors)


def _channels(program: Program, axes: Axes) -> int:
    extents = [program.extent(a) for a in axes if program.axis(a).role == "channel"]
    return prod(int(e.value) if isinstance(e, Const) else NOMINAL_CHANNELS for e in extents)


def operations(program: Program, node: Node) -> int:
    """Operations of one node per pair, its channels counted."""
    match node:
        case Const() | Axis() | Size() | Load() | Iverson():
            return 0
        case Sum():
            channels = _channels(program, node.bound | node.axes)
            return channels * len(node.factors)
        case Call():
            return OPERATIONS.get(node.fn, 1) * _channels(program, node.axes)
        case _:
            signs = sum(isinstance(f, Const) and f.value == -1 for f in node.children) if isinstance(node, Prod) else 0
            return max(0, len(node.children) - 1 - signs) * _channels(program, node.axes)
