"""A definition of the syntax tree to a program in index notation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from attnc.diagnostics.diagnostic import Diagnostic, SpecError
from attnc.diagnostics.source import Source, Span
from attnc.grammar.parser import parse_prelude, prelude_source
from attnc.grammar.tree import ConstDecl, Def, Definition, Expr, IndexDecl, Let, Name, Section, SizeDecl, TensorDecl
from attnc.ir.construct import call, const, iverson, mul, size
from attnc.ir.node import Const, Max, Node, Size, Sum
from attnc.ir.program import AxisInfo, AxisRole, Output, Program, Tensor
from attnc.ir.walk import base_axis, postorder
from attnc.lowering import checks, lookup, stages
from attnc.lowering.defaults import default_axes, default_of
from attnc.lowering.expressions import lower_expression
from attnc.lowering.masks import check_filling, mask, taking_part
from attnc.lowering.names import INDEX_EXTENTS, OPERANDS, REWRITES, Names, collect
from attnc.lowering.ranges import Ranges
from attnc.lowering.report import Report
from attnc.lowering.sizes import bind_sizes, declare_extents, evaluate_consts
from attnc.lowering.state import Lowering, is_plane
from attnc.lowering.value import PLAIN, POISON, Mode, Scope, Value

CHANNEL_LIMIT = 16
"""Declared indices of a fixed extent up to this live whole inside a tile."""
SUMMED_LIMIT = 256
"""And up to this where a plane sums over them, as scores do over d: a loop over them would be over a volume."""

GIVEN_ROLES: dict[str, AxisRole] = {
    **dict.fromkeys("bhg", "batch"),
    **dict.fromkeys("ij", "sequence"),
    **dict.fromkeys("de", "channel"),
}
STAGE_OF = {"score": "s", "bias": "s", "mask_value": "s", "normaliser": "p", "weight": "w"}


def lower(
    definition: Definition,
    source: Source,
    consts: Mapping[str, float | int] | None = None,
    *,
    provided: frozenset[str] | None = None,
) -> Program:
    """The program of a definition.

    Args:
        consts: values for `const`s, instead of those written in the spec.
        provided: names of the optional tensors the caller gives (None: all); the others become their defaults.

    Raises:
        SpecError: with every mistake found.
    """
    return lower_with_warnings(definition, source, consts, provided=provided)[0]


def lower_with_warnings(
    definition: Definition,
    source: Source,
    consts: Mapping[str, float | int] | None = None,
    *,
    provided: frozenset[str] | None = None,
) -> tuple[Program, list[Diagnostic]]:
    """As `lower`, with the warnings: names that are never used, sections that have no effect."""
    report = Report()
    scope = Scope(source, PLAIN)
    names = collect(definition, report, scope)
    state = _state(source, names, report, provided)
    try:
        evaluate_consts(state, scope, consts or {})
        declare_extents(state, scope)
        state.ranges = Ranges(names.extents, _unsigned(names))
        sizes = bind_sizes(state, scope)
        outputs = _outputs(state)
        tensors = _tensors(state)
        check_filling(state)
        _look_at_the_rest(state)
    except RecursionError:
        message = f"the definitions of `{definition.name.id}` are nested too deeply"
        report.error("E127", scope, definition.name.span, message, "use fewer definitions that build on each other")
        raise SpecError(report.errors) from None
    report.stop_on_errors()
    state.require(
        call("eq", call("mod", size("H"), size("G")), const(0)),
        "the number of query heads must be a multiple of the number of key heads",
        None,
    )
    program = Program(
        name=definition.name.id,
        tensors=tensors,
        outputs=outputs,
        axes=_axes(names, outputs),
        sizes=sizes,
        checks=tuple(state.checks.values()),
        doc=definition.doc,
        consts=dict(state.consts),
        notes=state.notes,
        source=source,
        observed=tuple(names.observations),
        lines={n: source.position(s.span.start)[0] for n, s in (names.sections | names.observations).items()},
    )
    _warn_of_unused(state, scope)
    return program, report.warnings


def _state(source: Source, names: Names, report: Report, provided: frozenset[str] | None) -> Lowering:
    def expression(tree: Expr, scope: Scope) -> Value:
        return lower_expression(state, tree, scope)

    def named(name: Name, scope: Scope) -> Value:
        return lookup.named(state, name, scope)

    state = Lowering(
        source=source,
        names=names,
        report=report,
        ranges=Ranges(names.extents),
        prelude_source=prelude_source(),
        prelude=prelude(),
        provided=provided,
        expression=expression,
        named=named,
    )
    return state


@lru_cache(maxsize=1)
def prelude() -> dict[str, list[Def]]:
    """The prelude's definitions by name, overloads together."""
    table: dict[str, list[Def]] = {}
    for definition in parse_prelude().defs:
        table.setdefault(definition.name.id, []).append(definition)
    return table


def _unsigned(names: Names) -> frozenset[str]:
    tensors = (d for d in names.values.values() if isinstance(d, TensorDecl))
    return frozenset(t.name.id for t in tensors if t.dtype is not None and t.dtype.id == "u8")


# ------------------------------------------------------------------------------------------------------------- outputs


def _outputs(state: Lowering) -> tuple[Output, ...]:
    value = stages.gated(state)
    axes = "bhie" if "e" in value.axes else "bhij"
    outputs = [] if value.poisoned else [_output(state, "o", tuple(axes), value.node, "q")]
    for name in state.names.observations:
        found = _observation(state, name)
        if not found.poisoned:
            ordered = tuple(a for a in _reading_order(state) if a in found.axes)
            state.note(found.node, name, state.names.observations[name].name.span)
            outputs.append(_output(state, name, ordered, found.node, "real"))
    return tuple(outputs)


def _reading_order(state: Lowering) -> tuple[str, ...]:
    return (*"bhij", *state.names.indices[len(INDEX_EXTENTS) :], *"de")


def _observation(state: Lowering, name: str) -> Value:
    tree = state.names.observations[name].value
    scope = state.scope(Mode())
    value = state.expression(tree, scope)
    if not checks.want_number(state, value, tree, scope):
        return POISON
    if is_plane(value.axes):
        allowed = taking_part(state)
        return POISON if allowed.poisoned else Value(mul(value.node, iverson(allowed.node)), value.axes | allowed.axes)
    return value


def _output(state: Lowering, name: str, axes: tuple[str, ...], node: Node, dtype: str) -> Output:
    return Output(name, ((axes, node),), tuple(state.names.extents[a] for a in axes), dtype)


# ---------------------------------------------------------------------------------------------------- tensors and axes


def _tensors(state: Lowering) -> tuple[Tensor, ...]:
    out = [Tensor(name, tuple(size(e) for e in extents), "q") for name, extents in OPERANDS.items()]
    for declaration in state.names.values.values():
        if not isinstance(declaration, TensorDecl) or declaration.name.id not in state.dims:
            continue
        name = declaration.name.id
        default: Node | None = None
        axes: tuple[str, ...] = ()
        if declaration.default is not None:
            default, axes = default_of(state, declaration).node, default_axes(state, name)
            if state.provided is not None and name not in state.provided:
                continue
        dtype = declaration.dtype.id if declaration.dtype else "q"
        dims = tuple(d.extent for d in state.dims[name])
        out.append(Tensor(name, dims, dtype, "operand", default, axes, declaration.name.span))
    return tuple(out)


def _axes(names: Names, outputs: tuple[Output, ...]) -> dict[str, AxisInfo]:
    roles: dict[str, AxisRole] = {name: _role(name, extent) for name, extent in names.extents.items()}
    for node in postorder([root for o in outputs for _, root in o.parts]):
        if isinstance(node, Sum | Max) and sum(roles[base_axis(a)] == "sequence" for a in node.axes) > 1:
            bound = map(base_axis, node.bound)
            roles |= dict.fromkeys((a for a in bound if _is_short(names.extents[a])), "channel")
    return {name: AxisInfo(name, extent, roles[name]) for name, extent in names.extents.items()}


def _is_short(extent: Node) -> bool:
    return isinstance(extent, Const) and extent.value <= SUMMED_LIMIT


def _role(name: str, extent: Node) -> AxisRole:
    if name in GIVEN_ROLES:
        return GIVEN_ROLES[name]
    if isinstance(extent, Const):
        return "channel" if extent.value <= CHANNEL_LIMIT else "sequence"
    sizes = {n.name for n in postorder([extent]) if isinstance(n, Size)}
    return "batch" if sizes <= set("BHG") else "channel" if sizes <= set("DE") else "sequence"


# ------------------------------------------------------------------------------------------------------------ the rest


def _look_at_the_rest(state: Lowering) -> None:
    """Lower what no output needs, for its mistakes; and say so where that is a whole section."""
    reached = {(kind, name) for kind, name, _ in state.cache}
    idle = [
        section
        for keyword, section in state.names.sections.items()
        if (keyword in STAGE_OF and ("stage", STAGE_OF[keyword]) not in reached)
        or (keyword == "mask" and not state.mask_used)
        or (keyword in REWRITES.values() and ("section", keyword) not in reached)
    ]
    failed = bool(state.report.errors)
    used = set(state.names.used)
    for statement in state.names.values.values():
        if isinstance(statement, Let) and statement.name.id not in used:
            state.named(statement.name, state.scope(Mode()))
    for section in idle:
        _look_at(state, section)
        if not failed:
            message = f"`{section.keyword}` has no effect: the output does not depend on it"
            state.report.warning("E192", state.scope(Mode()), section.span, message, "remove it")
    state.names.used = used


def _look_at(state: Lowering, section: Section) -> None:
    if section.keyword == "mask":
        mask(state)
    elif section.keyword in STAGE_OF:
        stages.stage_value(state, STAGE_OF[section.keyword])
    else:
        operand = next(o for o, keyword in REWRITES.items() if keyword == section.keyword)
        lookup.rewritten(state, operand, section, state.scope(Mode()))


def _warn_of_unused(state: Lowering, scope: Scope) -> None:
    names = state.names
    for name, declaration in names.values.items():
        if name not in names.used and not isinstance(declaration, SizeDecl):
            _warn(state, scope, name, declaration.name.span, _WHAT[type(declaration)])
    for name, overloads in names.functions.items():
        if name not in names.used:
            _warn(state, scope, name, overloads[0].name.span, "function")


_WHAT: dict[type, str] = {ConstDecl: "const", TensorDecl: "tensor", Let: "let", IndexDecl: "index"}


def _warn(state: Lowering, scope: Scope, name: str, span: Span, what: str) -> None:
    state.report.warning("E191", scope, span, f"the {what} `{name}` is never used", "remove it, or use it")
