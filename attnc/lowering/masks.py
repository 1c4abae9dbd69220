"""The mask, and the reductions it restricts; `mask_value` and `empty_rows`, which let masked pairs take part."""

from __future__ import annotations

from attnc.grammar.tree import Name
from attnc.ir.construct import TRUE, call, conjuncts, const, iverson, max_over
from attnc.ir.node import Axes, Node
from attnc.lowering import checks
from attnc.lowering.names import PLANE
from attnc.lowering.state import Lowering, is_plane
from attnc.lowering.value import POISON, Mode, Value

SCORE_AXES = frozenset("bhij")
EMPTY_ROWS = ("zero", "uniform")


def mask(state: Lowering) -> Value:
    """The mask, a truth value over the plane; true without a `mask` section. Inside it nothing is restricted by it."""
    section = state.names.sections.get("mask")
    if section is None:
        return Value(TRUE)
    mode = Mode(masked=False)
    scope = state.scope(mode)

    def build() -> Value:
        value = state.expression(section.value, scope)
        if value.poisoned:
            return POISON
        if value.node.kind != "b":
            remedy = "compare it with something: `mask = valid[b, j] != 0`; a number to add belongs in `bias`"
            message = "a mask is a truth value, and this is a number"
            return state.error("E106", scope, section.value.span, message, remedy)
        return checks.no_leftover(state, value, SCORE_AXES, "mask", section.value, scope)

    return state.once("section", "mask", mode, section.span, scope, build)


def domain(state: Lowering, axes: Axes, bound: Axes, mode: Mode) -> tuple[Node, ...]:
    """The conditions that restrict a reduction over `bound` of a value with these indices."""
    if not mode.masked or not is_plane(axes) or not bound & PLANE or "mask" not in state.names.sections:
        return ()
    state.mask_used = True
    value = taking_part(state)
    return () if value.poisoned else conjuncts(value.node)


def allowed(state: Lowering, mode: Mode) -> Node:
    return iverson(taking_part(state).node) if mode.masked else const(1.0)


def taking_part(state: Lowering) -> Value:
    """The pairs that reductions run over: those the mask allows, unless `mask_value` or `empty_rows` says more."""
    if "mask_value" in state.names.sections:
        return Value(TRUE)
    value = mask(state)
    if value.poisoned or not has_uniform_rows(state):
        return value
    some = max_over(frozenset("j"), iverson(value.node)) if "j" in value.node.axes else iverson(value.node)
    return Value(call("or", value.node, call("eq", some, const(0.0))), value.axes)


def has_uniform_rows(state: Lowering) -> bool:
    section = state.names.sections.get("empty_rows")
    return section is not None and isinstance(section.value, Name) and section.value.id == "uniform"


def check_filling(state: Lowering) -> None:
    """Report `mask_value` and `empty_rows` where they are misspelt or have nothing to do."""
    sections, scope = state.names.sections, state.scope(Mode())
    rows, filled = sections.get("empty_rows"), sections.get("mask_value")
    if rows is not None and not (isinstance(rows.value, Name) and rows.value.id in EMPTY_ROWS):
        message = "`empty_rows` says what a query gets that may attend to no key"
        state.error("E131", scope, rows.value.span, message, "write `empty_rows = zero` or `empty_rows = uniform`")
    if rows is not None and filled is not None:
        message = "with a `mask_value` no row is empty: every pair takes part"
        state.error("E131", scope, rows.span, message, "keep one of `mask_value` and `empty_rows`")
    for section in (rows, filled):
        if section is not None and "mask" not in sections:
            message = f"`{section.keyword}` has no effect without a `mask`"
            state.report.warning("E192", scope, section.span, message, "remove it, or add a mask")
