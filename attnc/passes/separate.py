"""A bias that separates becomes a product of factors: ``b(i, j) = sum_r f_r(i) g_r(j)`` (FlashBias, arXiv:2505.12044).

A program whose score has such a bias is split in two. The first computes the factors, tensors of one position and
`rank` channels, in reals; the second is the program with a product of the factors in place of the bias. Both are
ordinary programs, so gradients flow through the factors to the original tensors by the usual derivation. A bias can
also stay what it is, computed in registers, or be computed first as a dense tensor and loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from attnc.ir.construct import (
    ONE,
    ZERO,
    add,
    axis,
    call,
    coefficient,
    conjuncts,
    const,
    factors_of,
    free_axes,
    iverson,
    load,
    mul,
    size,
    sum_over,
)
from attnc.ir.node import Add, Axes, Const, Iverson, Load, Max, Node, Prod, Sum
from attnc.ir.program import AxisInfo, Note, Output, Program, SizeBinding, Tensor
from attnc.ir.walk import postorder, rebuild, rewrite
from attnc.ir.walk import replace as replace_nodes
from attnc.passes.planes import Planes
from attnc.passes.reuse import ordered
from attnc.passes.separable import Expansion, Inseparable, Pair, under

HIGHEST_RANK = 64
"""Factors of more channels than a head has do not pay anywhere."""


@dataclass(frozen=True, slots=True)
class Bias:
    """The part of a score that reads neither queries nor keys but depends on both positions.

    Attributes:
        terms: terms of the score, in its order.
        row: the axis of queries.
        column: the axis of keys.
        conditions: what holds wherever the bias is seen.
        line: of the spec it came from, 1-based.
    """

    terms: tuple[Node, ...]
    row: str
    column: str
    conditions: frozenset[Node]
    line: int | None

    @property
    def value(self) -> Node:
        return add(*self.terms)


@dataclass(frozen=True, slots=True)
class Factors:
    """A bias as ``scale * sum_r left[.., r] right[.., r]``, the `pairs` side by side in `rank` channels.

    `scale` has no position; it stays outside where the pairs are integers, whose products and sums are exact. `cancels`
    tells that reals of one position are added to products of both, as in ``|x|^2 - 2 x y + |y|^2``: these may be larger
    than the bias, and rounding leaves more of them than of the bias itself.
    """

    pairs: tuple[Pair, ...]
    scale: Node
    rank: int
    cancels: bool


@dataclass(frozen=True, slots=True)
class Split:
    """A program in two stages.

    Attributes:
        attention: the program that reads what the first stage computes; the whole program where `first` is None.
        first: computes the tensors `made`, its outputs, which are operands of `attention` by the same names.
        made: names of those tensors.
        tables: those of `made` that pay only where pairs are many, each with the elements per pair up to which it does.
        instead: what serves the other calls.
        rewrite: what made them: ``tables`` or ``toeplitz``.
    """

    attention: Program
    first: Program | None = None
    made: tuple[str, ...] = ()
    tables: tuple[tuple[str, float], ...] = ()
    instead: Split | None = None
    rewrite: str = ""

    @property
    def fixed(self) -> tuple[str, ...]:
        """Those of `made` that come from positions alone, and need no gradient."""
        if self.first is None:
            return ()
        read = {n.tensor for n in postorder(self.first.roots()) if isinstance(n, Load)}
        return () if any(t.is_real and t.name in read for t in self.first.tensors) else self.made


@dataclass(frozen=True, slots=True)
class ByRank:
    """A program whose bias is replaced by factors made at call time from the bias itself.

    Attributes:
        attention: reads the factors `left` [.., i, r] and `right` [.., j, r].
        table: computes the bias as a dense tensor, its one output; its last two dimensions are those of the positions.
        project: computes `left` from `right`, ``left[i, r] = sum_j bias(i, j) right[j, r]``.
        left: the name of the factor of queries.
        right: the name of the factor of keys.
    """

    attention: Program
    table: Program
    project: Program
    left: str
    right: str


# -------------------------------------------------------------------------------------------------------- finding


def find_bias(program: Program) -> Bias | None:
    """The bias of a program's score: terms of a sum that also has a term of queries and keys. None if there is none."""
    planes = Planes(program)
    lines = {n: note for n, note in program.notes.items() if note.line is not None}
    found: dict[tuple[Node, ...], tuple[Axes, list[Node]]] = {}
    for node in _values(program.roots()):
        if not isinstance(node, Add) or node.kind != "f":
            continue
        pair = planes.sequences(node.axes)
        wide = [t for t in node.terms if planes.sequences(t.axes) == pair]
        terms = tuple(t for t in wide if not _reads_content(t) and not planes.direct(t))
        if len(pair) == 2 and terms and any(_reads_content(t) for t in wide):
            found.setdefault(terms, (pair, []))[1].append(node)
    if len(found) != 1:
        return None
    ((terms, (pair, places)),) = found.items()
    column = "j" if "j" in pair else sorted(pair - {"i"})[-1]
    held = guaranteed(program.roots())
    conditions = frozenset.intersection(*(held[p] for p in places))
    noted = [lines[n].line for t in terms for n in postorder([t]) if n in lines]
    (row,) = pair - {column}
    return Bias(terms, row, column, conditions, noted[-1] if noted else None)


def _reads_content(node: Node) -> bool:
    return any(isinstance(n, Load) and n.tensor in ("q", "k", "v") for n in postorder([node]))


def _values(roots: Iterable[Node]) -> list[Node]:
    """Nodes reached without entering a condition or a subscript: what a condition compares stays exact."""
    seen: dict[Node, None] = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen or node.kind == "b" or isinstance(node, Iverson):
            continue
        seen[node] = None
        match node:
            case Sum():
                stack += node.factors
            case Max():
                stack.append(node.body)
            case Load():
                pass
            case _:
                stack += node.children
    return list(seen)


def guaranteed(roots: Iterable[Node]) -> dict[Node, frozenset[Node]]:
    """For every node, the conditions that hold wherever it is seen: domains and brackets on every path to it."""
    roots = list(roots)
    held: dict[Node, frozenset[Node]] = {r: frozenset() for r in roots}
    for node in reversed(postorder(roots)):
        here = held[node]
        if isinstance(node, Sum | Max):
            here = here - {c for c in here if c.axes & node.bound} | set(node.domain)
        if isinstance(node, Prod):
            here |= {c for f in node.factors if isinstance(f, Iverson) for c in conjuncts(f.condition)}
        for child in node.children:
            arriving = here if not isinstance(node, Iverson) else frozenset[Node]()
            held[child] = held[child] & arriving if child in held else arriving
    return held


# ---------------------------------------------------------------------------------------------------- factorising


def factorise(program: Program, bias: Bias) -> Factors:
    """The bias as a product of factors.

    Raises:
        Inseparable: if no exact product is found, or its rank is not known at compile time or beyond `HIGHEST_RANK`.
    """
    expansion = Expansion(program, bias.row, bias.column)
    value = under(bias.value, bias.conditions)
    scale, rest = _scale(value, bias)
    pairs = expansion.pairs(rest)
    exact = all(p.exact for p in pairs)
    alone = [bias.row not in p.left.axes or bias.column not in p.right.axes for p in pairs]
    if not exact:
        pairs, scale = [replace(p, left=mul(scale, p.left)) for p in pairs], ONE
    extents = [program.extent(a) for p in pairs for a in p.along]
    if not all(isinstance(e, Const) for e in extents):
        raise Inseparable("the number of its channels is not known when it is compiled")
    rank = sum(_width(program, p) for p in pairs)
    if rank > HIGHEST_RANK:
        raise Inseparable(f"its factors have {rank} channels, and more than {HIGHEST_RANK} do not pay")
    return Factors(tuple(pairs), scale, rank, cancels=not exact and any(alone) and not all(alone))


def _scale(value: Node, bias: Bias) -> tuple[Node, Node]:
    """A value as the product of what has no position and the rest, without their number."""
    c, factors = coefficient(value)
    positions = {bias.row, bias.column}
    outside = [f for f in factors if not f.axes & positions]
    inside = [f for f in factors if f.axes & positions]
    return mul(const(c), *outside), mul(*inside)


def _width(program: Program, pair: Pair) -> int:
    extents = [program.extent(a) for a in pair.along]
    return math.prod(int(e.value) for e in extents if isinstance(e, Const))


# ------------------------------------------------------------------------------------------------------ splitting


def with_factors(program: Program, bias: Bias, factors: Factors) -> Split:
    """The program split at the factors of its bias."""
    channel = fresh_axis(program, "r")
    axes = program.axes | {channel: AxisInfo(channel, const(factors.rank), "channel")}
    program = replace(program, axes=axes)
    sides = (_side(program, factors, channel, left=True), _side(program, factors, channel, left=False))
    names = [fresh_tensor(program, f"bias_{a}") for a in (bias.row, bias.column)]
    outputs, reads = [], []
    for name, side, position in zip(names, sides, (bias.row, bias.column), strict=True):
        output = _output(program, name, side, {position, channel})
        outputs.append(output)
        reads.append(load(name, [axis(a) for a in output.parts[0][0]]))
    value = mul(factors.scale, sum_over({channel}, reads))
    return _split(program, bias, outputs, value)


def with_dense_bias(program: Program, bias: Bias) -> Split:
    """The program split at its bias as a tensor of both positions."""
    name = fresh_tensor(program, "bias")
    output = _output(program, name, bias.value, {bias.row, bias.column})
    return _split(program, bias, [output], load(name, [axis(a) for a in output.parts[0][0]]))


def with_rank(program: Program, bias: Bias) -> ByRank:
    """The program over factors whose rank is a size that each call tells."""
    channel, size_name = fresh_axis(program, "r"), _fresh_size(program, "R")
    left, right = (fresh_tensor(program, f"bias_{a}") for a in (bias.row, bias.column))
    batch = bias.value.axes - {bias.row, bias.column}
    names = {a: (*ordered(batch), a, channel) for a in (bias.row, bias.column)}
    info = AxisInfo(channel, size(size_name), "channel")
    base = replace(
        program,
        axes=program.axes | {channel: info},
        sizes=(*program.sizes, SizeBinding(size_name, right, len(batch) + 1)),
    )
    at_row, at_column = (load(n, [axis(a) for a in names[p]]) for n, p in ((left, bias.row), (right, bias.column)))
    dims = {a: tuple(base.extent(x) for x in names[a]) for a in names}
    given = Tensor(right, dims[bias.column], "real")
    projected = sum_over({bias.column}, [bias.value, at_column])
    output = Output(left, ((names[bias.row], projected),), dims[bias.row], "real")
    project = _first(base, [output], (given,))
    attention = _attention(
        base, bias, sum_over({channel}, [at_row, at_column]), (Tensor(left, dims[bias.row], "real"), given)
    )
    dense = _output(program, fresh_tensor(program, "bias"), bias.value, {bias.row, bias.column})
    return ByRank(attention, _first(program, [dense]), project, left, right)


def _side(program: Program, factors: Factors, channel: str, *, left: bool) -> Node:
    """All left or all right sides of the pairs in one value with a channel axis: each pair fills its own channels."""
    parts: list[Node] = []
    first = 0
    for pair in factors.pairs:
        side = pair.left if left else pair.right
        at: Node = const(first)
        stride = 1
        for a in sorted(pair.along):
            at = add(at, mul(const(stride), axis(a)))
            stride *= int(program.extent(a).value)  # type: ignore[attr-defined]
        here = iverson(call("eq", axis(channel), at))
        parts.append(sum_over(pair.along, [here, side]) if pair.along else mul(here, side))
        first += _width(program, pair)
    return rewrite([add(ZERO, *parts)], _guarded)[0]


def _guarded(node: Node) -> Node | None:
    """A number read from a tensor, whose gradient is 0 where it is inf or NaN: keys the mask hides may hold those, and
    the gradient 0 that arrives would be multiplied by them."""
    if not isinstance(node, Load) or node.kind != "f":
        return None
    finite = call("lt", call("abs", node), const(math.inf))
    return call("where", finite, node, call("detach", node))


def _output(program: Program, name: str, value: Node, kept: set[str]) -> Output:
    axes = ordered(value.axes | kept)
    return Output(name, ((axes, value),), tuple(program.extent(a) for a in axes), "real")


def _split(program: Program, bias: Bias, outputs: Sequence[Output], value: Node) -> Split:
    made = tuple(Tensor(o.name, o.dims, o.dtype) for o in outputs)
    return Split(_attention(program, bias, value, made), _first(program, outputs), tuple(t.name for t in made))


def _attention(program: Program, bias: Bias, value: Node, made: tuple[Tensor, ...]) -> Program:
    """The program with `value` in place of its bias, reading the tensors `made`."""
    attention = replaced(program, bias, value)
    for node in (value, *(f for f in factors_of(value) if isinstance(f, Sum))):
        attention.notes.setdefault(node, Note("bias", bias.line))
    return replace(attention, tensors=_needed(attention, (*attention.tensors, *made)))


def _first(program: Program, outputs: Sequence[Output], given: tuple[Tensor, ...] = ()) -> Program:
    """The program that computes what the attention reads."""
    doc = "What the score reads"
    first = replace(program, name=f"{program.name}_bias", doc=doc, outputs=tuple(outputs), observed=(), checks=())
    return replace(first, tensors=_needed(first, (*first.tensors, *given)))


def replaced(program: Program, bias: Bias, value: Node) -> Program:
    """The program with `value` in place of its bias wherever it is a value; what conditions compare stays."""
    gone = set(bias.terms)
    roots = program.roots()
    values = set(_values(roots))
    memo: dict[Node, Node] = {}
    for node in postorder(roots):
        new = node
        if node in values and not isinstance(node, Load):
            kept = (
                len(node.domain) + (len(node.scatter) if isinstance(node, Sum) else 0)
                if isinstance(node, Sum | Max)
                else 0
            )
            split = len(node.children) - kept
            new = rebuild(node, (*(memo[c] for c in node.children[:split]), *node.children[split:]))
        if node in values and isinstance(new, Add) and gone <= set(new.terms):
            new = add(value, *(t for t in new.terms if t not in gone))
        memo[node] = new
    outputs = tuple(replace(o, parts=tuple((axes, memo[n]) for axes, n in o.parts)) for o in program.outputs)
    notes = dict(program.notes)
    for old, note in program.notes.items():
        notes.setdefault(memo.get(old, old), note)
    return replace(program, outputs=outputs, notes=notes)


def _needed(program: Program, tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """q, k and v, the tensors that are read, and those that tell a size."""
    read = {n.tensor for n in postorder(program.roots()) if isinstance(n, Load)}
    kept = read | {s.tensor for s in program.sizes} | {"q", "k", "v"}
    return tuple(t for t in tensors if t.name in kept)


def in_two(
    rewrite: str, base: Program, split: Split, outputs: Sequence[Output], values: Mapping[Node, Node], per_pair: float
) -> Split:
    """A split program whose first stage also computes `outputs`; its attention has `values` in place of others.

    `base` is the attention with the axes and tensors of the outputs. Calls with more than `per_pair` elements of an
    output to a pair of positions are served by `split` as it was.
    """
    roots = iter(replace_nodes(base.roots(), values))
    parts = tuple(replace(o, parts=tuple((axes, next(roots)) for axes, _ in o.parts)) for o in base.outputs)
    notes = base.notes | {new: base.notes[old] for old, new in values.items() if old in base.notes}
    attention = replace(base, outputs=parts, notes=notes)
    before = split.first
    given = () if before is None else tuple(t for t in before.tensors if all(t.name != x.name for x in base.tensors))
    whole = base if before is None else replace(base, axes=base.axes | before.axes, notes=base.notes | before.notes)
    first = _first(whole, [*(before.outputs if before else ()), *outputs], given)
    attention = replace(attention, tensors=_needed(attention, attention.tensors))
    tables = (*split.tables, *((o.name, per_pair) for o in outputs))
    return Split(attention, first, (*split.made, *(o.name for o in outputs)), tables, split, rewrite)


def fresh_axis(program: Program, stem: str) -> str:
    """A name for an axis that the program does not have, made from `stem`."""
    taken = set(program.axes) | {t.name for t in program.tensors} | free_axes(program.roots())
    return next(n for n in (stem, *(f"{stem}_{k}" for k in range(2, 99))) if n not in taken)


def _fresh_size(program: Program, stem: str) -> str:
    taken = {s.name for s in program.sizes}
    return next(n for n in (stem, *(f"{stem}_{k}" for k in range(2, 99))) if n not in taken)


def fresh_tensor(program: Program, stem: str) -> str:
    """A name for a tensor that the program does not have, made from `stem`."""
    taken = {t.name for t in program.tensors} | {o.name for o in program.outputs} | set(program.axes)
    return next(n for n in (stem, *(f"{stem}_{k}" for k in range(2, 99))) if n not in taken)
