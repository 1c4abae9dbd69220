"""Consts, sizes, extents of indices, dimensions of tensors, and where a call binds each size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real

from attnc.diagnostics.diagnostic import Diagnostic
from attnc.grammar.tree import ConstDecl, Expr, IndexDecl, Name, SizeDecl, TensorDecl
from attnc.ir.construct import call, const, size
from attnc.ir.node import Const, Node
from attnc.ir.program import SizeBinding
from attnc.ir.walk import postorder
from attnc.lowering import arithmetic, checks
from attnc.lowering.forms import is_fixed
from attnc.lowering.names import DTYPES, OPERANDS, SIZES
from attnc.lowering.report import did_you_mean
from attnc.lowering.state import Dim, Lowering
from attnc.lowering.value import Scope

OTHER_SPELLINGS = {
    "float": "f32",
    "half": "f16",
    "double": "f64",
    "int": "i32",
    "long": "i64",
    "byte": "u8",
    "boolean": "bool",
    "float32": "f32",
    "float16": "f16",
    "float64": "f64",
    "bfloat16": "bf16",
    "int32": "i32",
    "int64": "i64",
}


def evaluate_consts(state: Lowering, scope: Scope, given: Mapping[str, float | int]) -> None:
    """Give every const its value, the caller's where there is one."""
    declared = [d for d in state.names.values.values() if isinstance(d, ConstDecl)]
    for name in given:
        if name not in {d.name.id for d in declared}:
            _unknown_const(state, name, [d.name.id for d in declared])
    for declaration in declared:
        value = _const_value(state, declaration, scope)
        if value is not None and declaration.name.id in given:
            value = _overridden(state, declaration, value, given[declaration.name.id])
        if value is not None:
            state.consts[declaration.name.id] = value


def _unknown_const(state: Lowering, name: str, known: list[str]) -> None:
    remedy = did_you_mean(name, known) or (f"it has {', '.join(known)}" if known else "it has no consts")
    state.report.add(Diagnostic("E116", f"the spec has no const `{name}`", state.source, None, remedy))


def _const_value(state: Lowering, declaration: ConstDecl, scope: Scope) -> float | int | None:
    value = state.expression(declaration.value, scope)
    if value.poisoned:
        return None
    if not isinstance(value.node, Const) or value.node.kind == "b":
        message = f"the const `{declaration.name.id}` is not a number known when the spec is compiled"
        remedy = f"write a number; a value that depends on sizes or indices is a `let`: `let {declaration.name.id} = …`"
        state.error("E117", scope, declaration.value.span, message, remedy)
        return None
    return value.node.value


def _overridden(state: Lowering, declaration: ConstDecl, own: float | int, given: object) -> float | int | None:
    name = declaration.name.id
    if not isinstance(given, bool) and isinstance(given, Real) and math.isfinite(given):
        if isinstance(own, float):
            return float(given)
        if float(given).is_integer() and abs(int(float(given))) <= arithmetic.LARGEST_INT:
            return int(str(given)) if isinstance(given, Integral) else int(float(given))
    wanted = "an integer" if isinstance(own, int) else "a number"
    message = f"the const `{name}` is {wanted}, and {given!r} was given for it"
    remedy = f"give {wanted}" + (
        f", or write `const {name} = {float(own)}` in the spec" if isinstance(own, int) else ""
    )
    state.report.add(Diagnostic("E116", message, state.source, declaration.span, remedy))
    return None


# --------------------------------------------------------------------------------------------- extents and dimensions


def declare_extents(state: Lowering, scope: Scope) -> None:
    """Extents of the declared indices, and the dimensions of every tensor."""
    for declaration in state.names.values.values():
        if isinstance(declaration, IndexDecl):
            extent = _extent(state, declaration.extent, scope, f"the extent of `{declaration.name.id}`")
            if extent is not None:
                state.names.extents[declaration.name.id] = extent
    for declaration in state.names.values.values():
        if isinstance(declaration, TensorDecl):
            _check_dtype(state, declaration, scope)
            what = f"a dimension of `{declaration.name.id}`"
            extents = [_extent(state, d, scope, what) for d in declaration.dims]
            if None not in extents:
                dims = tuple(Dim(e, _natural(state, e, extents)) for e in extents if e is not None)
                state.dims[declaration.name.id] = dims


def _natural(state: Lowering, extent: Node, extents: list[Node | None]) -> str | None:
    """The index that stands for a dimension when none is written; none where two dimensions would share it."""
    return state.natural(extent) if extents.count(extent) == 1 else None


def _extent(state: Lowering, tree: Expr, scope: Scope, what: str) -> Node | None:
    if isinstance(tree, Name) and tree.id not in state.names.visible:
        remedy = did_you_mean(tree.id, [*SIZES, *state.names.values]) or f"declare it: `size {tree.id}`"
        state.error("E101", scope, tree.span, f"there is no size `{tree.id}`", remedy)
        return None
    value = state.expression(tree, scope)
    if not checks.want_integer(state, value, tree, scope, what):
        return None
    if not is_fixed(value.node):
        message = f"{what} must be known before the call starts, and this depends on an index or on data"
        state.error("E125", scope, tree.span, message, "write it with sizes, consts and numbers")
        return None
    if isinstance(value.node, Const) and value.node.value < 1:
        message = f"{what} must be at least 1, and this is {value.node.value}"
        state.error("E125", scope, tree.span, message, "use a positive number or a size")
        return None
    return value.node


def _check_dtype(state: Lowering, declaration: TensorDecl, scope: Scope) -> None:
    if declaration.dtype is None or declaration.dtype.id in DTYPES:
        return
    name = declaration.dtype.id
    remedy = f"did you mean `{OTHER_SPELLINGS[name]}`?" if name in OTHER_SPELLINGS else did_you_mean(name, DTYPES)
    remedy = remedy or f"use one of {', '.join(DTYPES)}, or none for that of q"
    state.error("E119", scope, declaration.dtype.span, f"there is no dtype `{name}`", remedy)


# ------------------------------------------------------------------------------------------------------------- binding


_BOUND = {*(("q", n) for n in "BHMD"), *(("k", n) for n in "GN"), ("v", "E")}


def bind_sizes(state: Lowering, scope: Scope) -> tuple[SizeBinding, ...]:
    """Where each size symbol is read off: the given ones from q, k and v, the others from tensors."""
    out = [
        SizeBinding(name, tensor, k)
        for tensor, extents in OPERANDS.items()
        for k, name in enumerate(extents)
        if (tensor, name) in _BOUND
    ]
    tensors = [d for d in state.names.values.values() if isinstance(d, TensorDecl)]
    required = [t for t in tensors if t.default is None]
    optional = [t for t in tensors if t.default is not None]
    given = [t for t in optional if state.provided is None or t.name.id in state.provided]
    for declaration in state.names.values.values():
        if not isinstance(declaration, SizeDecl):
            continue
        name = declaration.name.id
        places = [(t.name.id, k) for t in (*required, *given) for k in _dims_of(state, t.name.id, size(name))]
        if places:
            out.append(SizeBinding(name, *places[0]))
            state.require(call("le", const(1), size(name)), f"the size {name} must be at least 1", declaration.span)
        else:
            _never_bound(state, declaration, [t for t in optional if t not in given], scope)
    return tuple(out)


def _dims_of(state: Lowering, tensor: str, extent: Node) -> list[int]:
    return [k for k, d in enumerate(state.dims.get(tensor, ())) if d.extent is extent]


def _never_bound(state: Lowering, declaration: SizeDecl, absent: list[TensorDecl], scope: Scope) -> None:
    name = declaration.name.id
    if any(t.name.id not in state.dims for t in state.names.values.values() if isinstance(t, TensorDecl)):
        return
    for tensor in absent:
        if _dims_of(state, tensor.name.id, size(name)):
            message = f"the size `{name}` is the size of `{tensor.name.id}`, and that was not given"
            state.error("E107", scope, declaration.name.span, message, f"give `{tensor.name.id}`")
            return
    message = f"the size `{name}` is never bound"
    remedy = f"give a tensor a dimension that is `{name}` alone, as in `tensor x: f32[{name}]`"
    inside = [t for t, dims in state.dims.items() if any(size(name) in postorder([d.extent]) for d in dims)]
    if inside:
        message += f": in `{inside[0]}` it is only part of a dimension"
    state.error("E107", scope, declaration.name.span, message, remedy)
