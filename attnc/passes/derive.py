"""Reverse-mode differentiation of a program; the result is a program again, so it can be differentiated again.

The gradient of a maximum goes to the first position that attains it. Adjoints are propagated through the DAG with the
derivative rules of `attnc.ir.functions`. A sum of products has sums of products as adjoints; a gather has an indexed
sum, and an indexed sum a gather. Restrictions travel as Iverson factors, so the gradient of a masked pair is never
formed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from attnc.ir.construct import ZERO, add, axis, call, first_attained, is_const, iverson, load, mul, sum_over
from attnc.ir.functions import FUNCTIONS
from attnc.ir.node import NO_AXES, Add, Axes, Axis, Call, Load, Max, Node, Prod, Size, Sum
from attnc.ir.program import AxisInfo, Output, Program, Tensor
from attnc.ir.walk import postorder, substitute


def seed_of(output: Output) -> Tensor:
    """The incoming gradient of an output, a tensor of the output's shape."""
    return Tensor(f"grad_{output.name}", output.dims, output.dtype, "seed")


def gradient_program(program: Program, needs: Iterable[str] | None = None) -> Program:
    """The program that maps inputs and incoming gradients to the gradients of `needs`.

    Args:
        program: any program, itself possibly a gradient.
        needs: names of the real tensors wanted; None means all of them.

    Returns:
        A program with the tensors of `program` and one seed ``grad_X`` per output X, whose outputs are ``grad_T``.
    """
    wanted = [t for t in program.tensors if t.is_real and (needs is None or t.name in set(needs))]
    seeds = tuple(seed_of(out) for out in program.outputs)
    loads = _load_adjoints(program, {t.name for t in wanted})
    axes = dict(program.axes)
    outputs = []
    for tensor in wanted:
        parts = _parts(program, tensor, loads.get(tensor.name, {}), axes)
        outputs.append(Output(f"grad_{tensor.name}", parts, tensor.dims, tensor.dtype, of=tensor.name))
    return replace(
        program,
        name=f"{program.name}_gradient",
        tensors=(*program.tensors, *seeds),
        outputs=tuple(outputs),
        axes=axes,
        observed=(),
    )


def _load_adjoints(program: Program, names: set[str]) -> dict[str, dict[Load, Node]]:
    """The adjoint of every load of the named tensors."""
    roots = program.roots()
    copies = _copies(program, postorder(roots))
    order = postorder([*(original for original, _, _ in copies.values()), *roots])
    reaches = _reaching(order, names)
    adjoint: dict[Node, list[Node]] = {}
    for out in program.outputs:
        for axes, node in out.parts:
            if node in reaches:
                seed = load(f"grad_{out.name}", [axis(a) for a in axes])
                adjoint.setdefault(node, []).append(_reduce(program, seed, node))
    found: dict[str, dict[Load, Node]] = {}
    for node in reversed(order):
        if node not in adjoint or node not in reaches:
            continue
        g = _combined(program, adjoint.pop(node), node)
        if isinstance(node, Load):
            found.setdefault(node.tensor, {})[node] = g
            continue
        if node in copies:
            original, name, place = copies[node]
            arriving = sum_over(node.axes - original.axes, [g], (), [(name, place)])
            adjoint.setdefault(original, []).append(_reduce(program, arriving, original))
            continue
        for child, contribution, bound in _contributions(node, g, reaches):
            deferred = _deferred(program, child, contribution)
            reduced = _reduce(program, contribution, child, _kept(node) | bound, deferred)
            adjoint.setdefault(child, []).append(reduced)
    return found


def _copies(program: Program, order: list[Node]) -> dict[Node, tuple[Node, str, Node]]:
    """Exponentials ``exp(s[j] - max(s))`` that are read at a position of their own axis as well: the copy's adjoint is
    the original's, at that position.

    Derived apart, the weight that a query reads and the sum that divides it would send s two gradients that cancel, and
    of which each is as large as the weight's slope. Sent to one place they are a weight times a difference.
    """
    exponentials = [n for n in order if isinstance(n, Call) and n.fn == "exp"]
    found: dict[Node, tuple[Node, str, Node]] = {}
    for original in exponentials:
        name = _stabilised_over(program, original, order)
        if name is None:
            continue
        for copy in exponentials:
            place = _place(original, copy, name)
            if place is not None and substitute(original, {name: place}) is copy:
                found[copy] = (original, name, place)
    return found


def _stabilised_over(program: Program, node: Node, order: list[Node]) -> str | None:
    """The one sequence axis of an exponential that has its maximum over that axis taken away, and is summed over it."""
    axes = [a for a in node.axes if program.axis(a).role == "sequence"]
    if len(axes) != 1 or not any(isinstance(n, Max) and axes[0] in n.bound for n in postorder([node])):
        return None
    summed = any(isinstance(n, Sum) and axes[0] in n.bound and node in n.factors for n in order)
    return axes[0] if summed else None


def _place(original: Node, copy: Node, name: str) -> Node | None:
    """What stands in a copy where the original reads a tensor at an axis."""
    wanted = axis(name)
    if copy is original or name in copy.axes:
        return None
    loads = [n for n in postorder([original]) if isinstance(n, Load) and wanted in n.index]
    for n in postorder([copy]):
        for like in loads:
            k = like.index.index(wanted)
            if (
                isinstance(n, Load)
                and n.tensor == like.tensor
                and len(n.index[k].axes) == 1
                and n.index[k] is not wanted
            ):
                return n.index[k]
    return None


def _kept(node: Node) -> Axes:
    """The axes of a node that its operands share: all but those a scatter makes."""
    return node.axes - {a for a, _ in node.scatter} if isinstance(node, Sum) else node.axes


def _deferred(program: Program, child: Node, contribution: Node) -> Axes:
    """Batch axes a plane value lacks are summed at the leaves, so that no plane is summed over the batch."""
    sequences = [a for a in child.axes if program.axis(a).role == "sequence"]
    if isinstance(child, Sum | Max) or (len(sequences) < 2 and not isinstance(child, Load)):
        return NO_AXES
    return frozenset(a for a in contribution.axes - child.axes if program.axis(a).role == "batch")


def _combined(program: Program, contributions: list[Node], node: Node) -> Node:
    """The adjoint of a node; contributions with different axes left to sum are summed first."""
    if len({c.axes - node.axes for c in contributions}) > 1:
        contributions = [_reduce(program, c, node) for c in contributions]
    total = add(*contributions)
    return _reduce(program, total, node) if isinstance(node, Sum | Max | Load) else total


def _reaching(order: list[Node], names: set[str]) -> set[Node]:
    """Nodes through which a gradient can flow to one of the tensors."""
    reaches: set[Node] = set()
    for node in order:
        match node:
            case Load():
                hit = node.tensor in names
            case Call():
                hit = node.fn != "detach" and node.kind == "f" and any(a in reaches for a in node.args)
            case Add() | Prod():
                hit = any(c in reaches for c in node.children)
            case Sum():
                hit = any(f in reaches for f in node.factors)
            case Max():
                hit = node.body in reaches
            case _:
                hit = False
        if hit:
            reaches.add(node)
    return reaches


def _reduce(program: Program, value: Node, target: Node, reads: Axes = NO_AXES, deferred: Axes = NO_AXES) -> Node:
    """Sum `value` over every axis the target lacks, except `deferred` ones: its own, and those of what `reads` it.

    An axis that `value` does not vary along multiplies it by its extent.
    """
    extra = (value.axes | reads) - target.axes - deferred
    extents = [program.extent(a) for a in sorted(extra - value.axes)]
    return mul(*extents, sum_over(extra & value.axes, [value])) if extra else value


def _contributions(node: Node, g: Node, reaches: set[Node]) -> list[tuple[Node, Node, Axes]]:
    """For a node with adjoint g: each child, what it receives before summing, and axes besides the node's to sum it
    over."""
    match node:
        case Add():
            return [(t, g, NO_AXES) for t in node.terms if t in reaches]
        case Prod():
            return [(f, mul(g, *_others(node.factors, k)), NO_AXES) for k, f in enumerate(node.factors) if f in reaches]
        case Sum():
            arriving = substitute(g, dict(node.scatter)) if node.scatter else g
            brackets = [iverson(c) for c in node.domain]
            return [
                (f, mul(arriving, *_others(node.factors, k), *brackets), node.bound)
                for k, f in enumerate(node.factors)
                if f in reaches
            ]
        case Max():
            (x,) = node.bound
            hit = iverson(call("eq", axis(x), first_attained(node)))
            return [(node.body, mul(g, hit, *(iverson(c) for c in node.domain)), NO_AXES)]
        case Call():
            gradient = FUNCTIONS[node.fn].gradient
            assert gradient is not None, node.fn
            pairs = zip(node.args, gradient(node, g), strict=True)
            return [(a, x, NO_AXES) for a, x in pairs if x is not None and a in reaches]
        case _:
            return []


def _others(factors: tuple[Node, ...], k: int) -> tuple[Node, ...]:
    return (*factors[:k], *factors[k + 1 :])


def _parts(
    program: Program, tensor: Tensor, adjoints: dict[Load, Node], axes: dict[str, AxisInfo]
) -> tuple[tuple[tuple[str, ...], Node], ...]:
    """The gradient of a tensor, grouped by how its loads name the dimensions."""
    grouped: dict[tuple[str, ...], list[Node]] = {}
    for node, g in adjoints.items():
        names: list[str] = []
        scatter: list[tuple[str, Node]] = []
        for k, index in enumerate(node.index):
            if isinstance(index, Axis) and index.name not in names:
                names.append(index.name)
                continue
            new = _dimension_axis(tensor, k, axes, node.axes)
            names.append(new)
            if not is_const(tensor.dims[k], 1):  # else there is one place to go to
                scatter.append((new, index))
        bound = node.axes - frozenset(names)
        value = sum_over(bound, [g], (), scatter) if scatter or bound else g
        grouped.setdefault(tuple(names), []).append(value)
    if not grouped:
        names = [_dimension_axis(tensor, k, axes, frozenset()) for k in range(len(tensor.dims))]
        return ((tuple(names), ZERO),)
    return tuple((names, add(*values)) for names, values in grouped.items())


def _dimension_axis(tensor: Tensor, k: int, axes: dict[str, AxisInfo], taken: frozenset[str]) -> str:
    """An axis ranging over dimension k: the batch axis of that extent if it is free, else a new one."""
    extent = tensor.dims[k]
    for info in axes.values():
        if info.extent is extent and info.role == "batch" and isinstance(extent, Size) and info.name not in taken:
            return info.name
    name = f"{tensor.name}_{k}"
    axes.setdefault(name, AxisInfo(name, extent, "table"))
    return name
