"""The mask, and the reductions it restricts."""

from __future__ import annotations

from attnc.ir.node import TRUE, Axes, Node, conjuncts, const, iverson
from attnc.lowering import checks
from attnc.lowering.names import PLANE
from attnc.lowering.state import Lowering, is_plane
from attnc.lowering.value import POISON, Mode, Value

SCORE_AXES = frozenset("bhij")


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
    value = mask(state)
    return () if value.poisoned else conjuncts(value.node)


def allowed(state: Lowering, mode: Mode) -> Node:
    return iverson(mask(state).node) if mode.masked else const(1.0)
