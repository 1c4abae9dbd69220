"""The parameters of a printed kernel, in order, and the integers a launch passes for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from attnc.codegen.tile import Accumulate, Argument, Assign, Kernel, Lane, statements
from attnc.codegen.triton.helpers import HELPERS
from attnc.codegen.triton.names import Names
from attnc.ir.node import Add, Call, Const, Node, Prod, Size, Sum, Var
from attnc.ir.walk import postorder

COUNTER = "COUNTER_SHIFT"
"""The size that tells how many exponents of reals share a counter: 2 to this power (`attnc.runtime.exact_sums`)."""

Role = Literal["pointer", "stride", "size", "extent", "pad", "block"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter.

    `of` is the tensor of a pointer or stride, the symbol of a size or extent, the axis of a pad or block; `dim` the
    dimension of a stride. Extents (channel sizes), pads and blocks are compile-time constants.
    """

    name: str
    role: Role
    of: str
    dim: int = 0

    @property
    def constant(self) -> bool:
        return self.role in ("extent", "pad", "block")


@dataclass(frozen=True, slots=True)
class Padding:
    """How many lanes an axis of constant extent takes. `extent` is None until sizes are known."""

    axis: str
    extent: int | None
    least: int

    @property
    def needed(self) -> bool:
        """Whether lanes may lie outside the extent."""
        return self.extent is None or padded(self.extent, self.least) != self.extent


def padded(extent: int, least: int) -> int:
    """The next power of two, at least `least`."""
    return max(least, 1 << max(extent - 1, 0).bit_length())


def counts(kernel: Kernel) -> bool:
    """Whether a kernel adds to tensors exactly, to counters in place of reals."""
    return kernel.exact and any(a.mode == "add" for a in kernel.arguments)


def stride_suffixes(argument: Argument) -> tuple[str, ...]:
    """A name per dimension: the lower-cased size symbol where that is unique, else the dimension's number."""
    symbols = [d.name if isinstance(d, Size) else "" for d in argument.dims]
    lowered = [s.lower() for s in symbols]
    return tuple(s if s and lowered.count(s) == 1 else str(k) for k, s in enumerate(lowered))


def channel_sizes(kernel: Kernel) -> tuple[str, ...]:
    """Size symbols that are compile-time constants of the kernel."""
    named = {
        n.name
        for lane in kernel.lanes
        if lane.role == "channel"
        for n in postorder([lane.extent])
        if isinstance(n, Size)
    }
    return tuple(sorted(named | set(kernel.constants)))


def paddings(kernel: Kernel) -> dict[str, Padding]:
    """The lanes of each channel axis; matrix products need at least 16."""
    multiplied: set[str] = set()
    for s in statements(kernel.body):
        if isinstance(s, Assign | Accumulate) and isinstance(s.value, Sum) and len(s.value.factors) == 2:
            multiplied |= {a for f in s.value.factors for a in f.axes}
    return {
        lane.axis: Padding(lane.axis, _known(lane, kernel.constants), 16 if lane.axis in multiplied else 1)
        for lane in kernel.lanes
        if lane.role == "channel"
    }


def _known(lane: Lane, constants: Mapping[str, int]) -> int | None:
    names = {n.name for n in postorder([lane.extent]) if isinstance(n, Size)}
    return evaluate(lane.extent, constants) if names <= constants.keys() else None


def parameters(kernel: Kernel) -> tuple[Parameter, ...]:
    """Pointers, strides, sizes, then constants."""
    names = Names(frozenset(HELPERS))
    out: list[Parameter] = []

    def give(role: Role, of: str, wish: str, dim: int = 0) -> None:
        out.append(Parameter(names.get(role, f"{of} {dim}", wish), role, of, dim))

    for a in kernel.arguments:
        give("pointer", a.name, f"{a.name}_ptr")
    for a in kernel.arguments:
        for k, suffix in enumerate(stride_suffixes(a)):
            give("stride", a.name, f"{a.name}_stride_{suffix}", k)
    constants = channel_sizes(kernel)
    for s in kernel.sizes:
        if s not in constants:
            give("size", s, s)
    if counts(kernel):
        give("size", COUNTER, COUNTER)
    for s in constants:
        give("extent", s, s)
    for p in paddings(kernel).values():
        if p.needed:
            give("pad", p.axis, f"{p.axis}_pad".upper())
    for lane in kernel.lanes:
        if lane.role != "channel":
            give("block", lane.axis, f"BLOCK_{lane.axis.upper()}")
    return tuple(out)


def values(
    kernel: Kernel, given: Iterable[Parameter], sizes: Mapping[str, int], blocks: Mapping[str, int]
) -> dict[str, int]:
    """The values of those of the kernel's `parameters` that are not pointers or strides."""
    pads = paddings(kernel)
    known = {**kernel.constants, **sizes}
    out: dict[str, int] = {}
    for p in given:
        match p.role:
            case "size" | "extent":
                out[p.name] = known[p.of]
            case "pad":
                out[p.name] = padded(evaluate(kernel.lane(p.of).extent, known), pads[p.of].least)
            case "block":
                out[p.name] = blocks[p.of]
            case _:
                pass
    return out


def programs(kernel: Kernel, sizes: Mapping[str, int], blocks: Mapping[str, int]) -> int:
    """The number of programs of a launch."""
    known = {**kernel.constants, **sizes}
    count = 1
    for extent in kernel.grid_extents:
        count *= evaluate(extent, known)
    if kernel.outer is not None:
        count *= -(-evaluate(kernel.lane(kernel.outer).extent, known) // blocks[kernel.outer])
    return count


def evaluate(node: Node, sizes: Mapping[str, int]) -> int:
    """An integer expression over sizes. Raises KeyError for an unknown size."""
    match node:
        case Const():
            return int(node.value)
        case Size():
            return sizes[node.name]
        case Add():
            return sum(evaluate(t, sizes) for t in node.terms)
        case Prod():
            out = 1
            for f in node.factors:
                out *= evaluate(f, sizes)
            return out
        case Call(fn="floordiv", args=(a, b)):
            return evaluate(a, sizes) // evaluate(b, sizes)
        case Call(fn="mod", args=(a, b)):
            return evaluate(a, sizes) % evaluate(b, sizes)
        case Call(fn="maximum", args=args):
            return max(evaluate(a, sizes) for a in args)
        case Call(fn="minimum", args=args):
            return min(evaluate(a, sizes) for a in args)
        case Var():
            raise KeyError(node.name)
        case _:
            raise ValueError(f"not an extent: {node}")
