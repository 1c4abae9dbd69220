"""Elements at computed positions inside a loop nest: read for all lanes at once, added to one lane at a time."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnc.codegen.cpu.bounds import within
from attnc.codegen.cpu.expression import UNARY, Value
from attnc.codegen.cpu.layout import C_SCALAR, C_VECTOR, Element
from attnc.codegen.tile import Scatter, Store
from attnc.ir.node import Axis, Load, Node

if TYPE_CHECKING:
    from attnc.codegen.cpu.nest import Nest


def gather(nest: Nest, node: Load) -> Value:
    """``tensor[index]``; 0 where the index lies outside the tensor."""
    layout, out = nest.layout, nest.out
    nest.needs.add("element_types")
    element: Element = node.kind
    if element == "i" and layout.reach(node) > 2**31 - 1 and layout.kernel.real == "f32":
        element = "w"
    name = layout.names.fresh(node.tensor)
    address, conditions, varying = _address(nest, node.tensor, node.index)
    zero = {"f": "real()", "w": "int64_t()"}.get(element, "integer()")
    if element == "b":
        fetch = f"-integer(take({address}, integer()) != 0)"
    else:
        fetch = f"take({address}, {zero})"
    if not varying:
        scalar = "int64_t" if element in ("i", "w") else C_SCALAR[element]
        picked = f"{' && '.join(conditions)} ? {fetch} : {zero}" if conditions else fetch
        out.line(f"const {scalar} {name} = {picked};")
        value = Value(name, "i" if element == "w" else element, False)
        return value if nest.vector is None else nest.expressions.spread(value)
    if element == "w":
        nest.needs.add("wide")
    out.line(f"{C_VECTOR[element]} {name} = {{}};")
    with ExitStack() as branches:
        if element != "w":
            _gather_near(nest, node, name, varying, element)
            branches.enter_context(out.block("else"))
        with out.block("for (int lane = 0; lane < W; ++lane)"):
            guard = f"if ({' && '.join(conditions)}) " if conditions else ""
            out.line(f"{guard}{name}[lane] = {fetch};")
    return Value(name, element, True)


def _gather_near(nest: Nest, node: Load, name: str, varying: list[Varying], element: Element) -> None:
    """All lanes at once, where offsets along them fit in 32 bits."""
    near = _near(nest, node.tensor, node.index, varying)
    with nest.out.block(f"if ({near.guard})"):
        if element == "f":
            nest.out.line(f"{name} = gather({near.base}, {near.place}, {near.there});")
        else:
            nest.needs.add("gather_integers")
            whole = f"gather_integers({near.base}, {near.place}, {near.there})"
            nest.out.line(f"{name} = {whole} != 0;" if element == "b" else f"{name} = {whole};")


@dataclass(frozen=True, slots=True)
class Near:
    """C++ for elements at 32-bit offsets: the condition for that, where offsets start, the offsets, and which lanes
    have an element."""

    guard: str
    base: str
    place: str
    there: str


def _near(nest: Nest, tensor: str, index: tuple[Node, ...], varying: list[Varying]) -> Near:
    layout = nest.layout
    nest.needs.add("gather_wide" if any(v.element == "w" for v in varying) else "gather")
    strides = {v.dim: layout.stride(tensor, v.dim) for v in varying}
    reach = " + ".join(f"{v.limit} * absolute({strides[v.dim]})" for v in varying)
    narrowed = {v.dim: f"narrow({v.name})" if v.element == "w" else v.name for v in varying}
    place = " + ".join(f"{narrowed[v.dim]} * integer({strides[v.dim]})" for v in varying)
    there = " & ".join(f"below({v.name}, {v.limit})" for v in varying)
    fixed = [layout.tensor(tensor)]
    for k, (entry, extent) in enumerate(zip(index, layout.kernel.argument(tensor).dims, strict=True)):
        if k not in strides:
            position = nest.expressions.show(entry).at(UNARY)
            fixed.append(f"{position} * {layout.stride(tensor, k)}")
            if not _surely_inside(nest, entry, extent):
                limit = nest.expressions.show(extent).at(UNARY)
                there = f"{there} & mask({position} >= 0 && {position} < {limit})"
    return Near(f"{reach} < INT32_MAX / 2", " + ".join(fixed), place, there)


def scatter(nest: Nest, s: Scatter | Store) -> None:
    """``tensor[index] += value`` (or ``=`` for a `Store`) in lane order."""
    layout, out = nest.layout, nest.out
    nest.needs.add("element_types")
    value = nest.expressions.real(nest.expressions.show(s.value))
    if not value.lanes:
        value = Value(f"real({value.code})", "f", False)
    address, conditions, varying = _address(nest, s.tensor, s.index)
    limited: list[str] = []
    if isinstance(s, Scatter) and s.condition is not None:
        where = nest.expressions.show(s.condition)
        if where.lanes:
            name = layout.names.fresh("where")
            out.line(f"const ivec {name} = {where.code};")
            conditions.insert(0, f"{name}[lane]")
            limited.append(name)
        else:
            conditions.insert(0, where.at(UNARY))
            limited.append(f"mask({where.code})")
    guard = f"if ({' && '.join(conditions)}) " if conditions else ""
    target = layout.names.fresh("target")
    held = "double()" if layout.kernel.argument(s.tensor).dtype == "f64" else "real()"
    before = f"take({target}, {held}) + " if isinstance(s, Scatter) else ""
    if nest.vector is None:
        with out.block(guard.rstrip()):
            out.line(f"auto *{target} = {address};")
            out.line(f"give({target}, {before}{value.at(UNARY)});")
        return
    amount = value.at(UNARY)
    if value.lanes:
        amount = layout.names.fresh("value")
        out.line(f"const vec {amount} = {value.code};")
    start = layout.axis(nest.vector)
    count = f"{layout.count(nest.vector)} - {start}"
    branches = ExitStack()
    if isinstance(s, Scatter) and value.lanes and varying:
        nest.needs |= {"scatter_lanes", "lane_numbers"}
        near = _near(nest, s.tensor, s.index, varying)
        there = " & ".join([near.there, *limited, f"below(load(lane_numbers.at), {count})"])
        with out.block(f"if ({near.guard})"):
            out.line(f"scatter_lanes({near.base}, {near.place}, {there}, {amount});")
        branches.enter_context(out.block("else"))
    if value.lanes:
        amount += "[lane]"
    with branches, out.block(f"for (int64_t lane = 0; lane < least(W, {count}); ++lane)"):
        if guard:
            out.line(f"if (!({' && '.join(conditions)})) continue;")
        out.line(f"auto *{target} = {address};")
        out.line(f"give({target}, {before}{amount});")


@dataclass(frozen=True, slots=True)
class Varying:
    """A subscript that differs between lanes: its dimension, the C++ vector that holds it, and the extent."""

    dim: int
    name: str
    element: Element
    limit: str


def _address(nest: Nest, tensor: str, index: tuple[Node, ...]) -> tuple[str, list[str], list[Varying]]:
    """The address of an element, the conditions for it to exist, and the subscripts that differ between lanes."""
    layout = nest.layout
    argument = layout.kernel.argument(tensor)
    base = layout.tensor(tensor)
    parts, conditions = [base], []
    varying = []
    for k, (entry, extent) in enumerate(zip(index, argument.dims, strict=True)):
        value = nest.expressions.show(entry)
        position = value.at(UNARY)
        if value.lanes:
            name = layout.names.fresh("at")
            varying.append(Varying(k, name, value.element, nest.expressions.show(extent).at(UNARY)))
            nest.out.line(f"const {value.type} {name} = {value.code};")
            position = f"int64_t({name}[lane])"
        parts.append(f"{position} * {layout.stride(tensor, k)}")
        if not _surely_inside(nest, entry, extent):
            limit = nest.expressions.show(extent).at(UNARY)
            conditions.append(f"{position} >= 0 && {position} < {limit}")
    return " + ".join(parts), conditions, varying


def _surely_inside(nest: Nest, entry: Node, extent: Node) -> bool:
    """Grid positions and scalar lanes are inside their own extents; vectors may hang over the end."""
    if not nest.layout.kernel.layout(entry.axes - nest.scalars) and within(nest.layout.kernel, entry, extent):
        return True
    return isinstance(entry, Axis) and entry.name != nest.vector and nest.layout.extent(entry.name) is extent
