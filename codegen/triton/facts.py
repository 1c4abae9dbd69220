"""What the printer remembers about tile variables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from attnc.codegen.tile import Accumulate, AccumulateAt, Argument, Assign, Kernel, is_pointwise, statements
from attnc.ir.node import Add, Axis, Call, Const, Iverson, Load, Node, Prod, Sum, Var
from attnc.ir.walk import postorder

HALF = frozenset({"f16", "bf16", "f8"})
"""Dtypes that matrices are multiplied in as they are stored: of two bytes, or of one."""
NARROW = HALF | {"tf32"}
"""Precisions that tensor cores multiply in; TF32 is stored as f32."""

SPECIAL = frozenset(
    ("exp", "exp2", "log", "log2", "tanh", "sigmoid", "sin", "cos", "erf", "softplus", "pow", "rsqrt", "sqrt")
)
"""Functions that take special function units, or several instructions."""


def precision(argument: Argument) -> str:
    """What products may round a tensor to: its dtype, or TF32."""
    return "tf32" if argument.tf32 else argument.dtype


@dataclass(frozen=True, slots=True)
class Fact:
    """A variable: its lanes, how it is kept, and what its padded lanes hold.

    Attributes:
        axes: the lanes it was declared over, in layout order.
        storage: the dtype it is kept in; reals are ``f32`` unless loaded as they are for a matrix product; ``tf32`` is
            f32 that a matrix product may round.
        zero: channel axes on whose padded lanes it is 0.
        sources: `precision` of the real tensors it was computed from.
    """

    axes: tuple[str, ...]
    storage: str = "f32"
    zero: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()


@dataclass
class Usage:
    """How a kernel uses its variables."""

    multiplied: set[Var] = field(default_factory=set)
    """Variables that are operands of a matrix product."""
    computed: set[Var] = field(default_factory=set)
    """Variables that are assigned something else than a load."""
    selected: dict[Var, Var | None] = field(default_factory=dict)
    """Variables that only ever are one other variable where some condition holds, and 0 elsewhere; else None."""
    changing: set[Var] = field(default_factory=set)
    """Variables that are assigned more than once, or accumulated."""


def usage(kernel: Kernel) -> Usage:
    out = Usage()
    seen: set[Var] = set()
    for s in statements(kernel.body):
        match s:
            case Assign() | Accumulate() | AccumulateAt():
                (out.changing if s.target in seen else seen).add(s.target)
                source = selection(s.value) if isinstance(s, Assign) else None
                out.selected[s.target] = source if out.selected.get(s.target, source) is source else None
                if not (isinstance(s, Assign) and isinstance(s.value, Load)):
                    out.computed.add(s.target)
                if isinstance(s.value, Sum) and len(s.value.factors) == 2:
                    out.multiplied |= {f for f in s.value.factors if isinstance(f, Var)}
            case _:
                pass
    return out


def selection(node: Node) -> Var | None:
    """The variable of a product of brackets and one variable."""
    rest = [f for f in node.factors if not isinstance(f, Iverson)] if isinstance(node, Prod) else []
    return rest[0] if len(rest) == 1 and isinstance(rest[0], Var) and rest[0].kind == "f" else None


def scalar_definitions(kernel: Kernel, *, loops: bool = False) -> dict[Var, Node]:
    """Integer scalars that have one value, outside all loops or (`loops`) anywhere, and that value; in order."""
    values: dict[Var, set[Node | None]] = {}
    for s in statements(kernel.body):
        if isinstance(s, Assign | Accumulate | AccumulateAt):
            values.setdefault(s.target, set()).add(s.value if isinstance(s, Assign) else None)
    return {
        s.target: s.value
        for s in (statements(kernel.body) if loops else kernel.body)
        if isinstance(s, Assign)
        and len(values[s.target]) == 1
        and s.target.kind == "i"
        and not s.target.axes
        and is_pointwise(s.value)
    }


def computes_much(kernel: Kernel, node: Node) -> bool:
    """Whether a pointwise `node` applies a special function to each element of a matrix over the inner axis and a
    channel that depends on memory alone."""
    roles = {x.axis: x.role for x in kernel.lanes}
    if not is_pointwise(node) or any(isinstance(n, Axis) and roles.get(n.name) == "inner" for n in postorder([node])):
        return False
    found = (n for n in postorder([node]) if isinstance(n, Call) and n.fn in SPECIAL)
    return any({roles.get(a) for a in n.axes} >= {"inner", "channel"} for n in found)


def sources(node: Node, facts: dict[Var, Fact]) -> frozenset[str]:
    """`precision` of the real tensors that `node` depends on through variables."""
    return frozenset().union(*(facts[n].sources for n in postorder([node]) if isinstance(n, Var) and n in facts))


def zero_lanes(node: Node, facts: dict[Var, Fact]) -> frozenset[str]:
    """Channel axes on whose padded lanes a pointwise `node` is certainly 0."""
    match node:
        case Var():
            return facts[node].zero if node in facts else frozenset()
        case Prod() if all(isinstance(f, Const | Var) for f in node.factors):
            varying = [f for f in node.factors if isinstance(f, Var)]
            common = frozenset.intersection(*(zero_lanes(f, facts) for f in varying)) if varying else frozenset()
            return common if len({f.axes for f in varying}) <= 1 else frozenset()
        case Add():
            return frozenset.intersection(*(zero_lanes(t, facts) for t in node.terms))
        case _:
            return frozenset()


def has_shared(nodes: Iterable[Node]) -> dict[Node, int]:
    """How often each inner node below `nodes` is used."""
    counts: dict[Node, int] = {}
    for n in postorder(nodes):
        for c in n.children:
            if c.children:
                counts[c] = counts.get(c, 0) + 1
    return counts
