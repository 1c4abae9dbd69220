"""The stages of attention: scores s, weights p, edited weights w, output o."""

from __future__ import annotations

from attnc.grammar.tree import Name
from attnc.ir.construct import add, call, const, mul, size, var
from attnc.ir.node import Axes, Node
from attnc.lowering import checks
from attnc.lowering.masks import SCORE_AXES, allowed, domain, has_uniform_rows, mask
from attnc.lowering.normalisers import weights_of
from attnc.lowering.reductions import total
from attnc.lowering.state import Lowering, is_plane
from attnc.lowering.value import POISON, Mode, Scope, Value

OUTPUT_AXES = frozenset("bhie")
STAGE_AXES = {"s": "bhij", "p": "bhij", "w": "bhij", "o": "bhie"}
LAST_STAGE = {"s": "score", "p": "normaliser", "w": "weight", "o": "output"}


def stage(state: Lowering, name: Name, scope: Scope) -> Value:
    """s, p, w or o."""
    mode = Mode(masked=scope.mode.masked)
    build = {"s": _score, "p": _probability, "w": _weight, "o": _output}[name.id]
    value = state.once("stage", name.id, mode, name.span, scope, lambda: build(state, mode))
    if value.poisoned:
        return POISON
    section = state.names.sections.get(LAST_STAGE[name.id])
    state.note(value.node, name.id, section.span if section else None)
    return value


def stage_value(state: Lowering, name: str) -> Value:
    """A stage value of the whole spec."""
    section = state.names.sections.get(LAST_STAGE[name])
    scope = state.scope(Mode())
    return stage(state, Name(name, span=section.value.span) if section else Name(name), scope)


def section_value(state: Lowering, keyword: str, indices: Axes, mode: Mode) -> Value | None:
    """The value of a section that must be a number over `indices`; None where the spec has none."""
    section = state.names.sections.get(keyword)
    if section is None:
        return None
    scope = state.scope(mode)
    value = state.expression(section.value, scope)
    if not checks.want_number(state, value, section.value, scope):
        return POISON
    return checks.no_leftover(state, value, indices, keyword, section.value, scope)


def _score(state: Lowering, mode: Mode) -> Value:
    score = section_value(state, "score", SCORE_AXES, mode)
    if score is None:
        scope = state.scope(mode)
        q, k = (state.named(Name(n), scope) for n in "qk")
        if q.poisoned or k.poisoned:
            return POISON
        scale = call("divide", const(1.0), call("sqrt", size("D")))
        score = Value(mul(total(state, frozenset("d"), mul(q.node, k.node), ()), scale), SCORE_AXES)
    bias = section_value(state, "bias", SCORE_AXES, mode)
    if score.poisoned or (bias is not None and bias.poisoned):
        return POISON
    node = score.node if bias is None else add(score.node, bias.node)
    return _filled(state, node, mode)


def _filled(state: Lowering, score: Node, mode: Mode) -> Value:
    """The score, and what stands for it at masked pairs where these take part."""
    fill = section_value(state, "mask_value", SCORE_AXES, mode)
    if fill is not None and fill.poisoned:
        return POISON
    if "mask" not in state.names.sections or (fill is None and not has_uniform_rows(state)):
        return Value(score, SCORE_AXES)
    value = mask(state)
    if value.poisoned:
        return POISON
    state.mask_used = True
    return Value(call("where", value.node, score, const(0.0) if fill is None else fill.node), SCORE_AXES)


def _probability(state: Lowering, mode: Mode) -> Value:
    section = state.names.sections.get("normaliser")
    s = stage(state, Name("s", span=section.value.span) if section else Name("s"), state.scope(mode))
    if s.poisoned:
        weights_of(state, Value(var("s", SCORE_AXES), SCORE_AXES), mode)
        return POISON
    return weights_of(state, s, mode)


def _weight(state: Lowering, mode: Mode) -> Value:
    weight = section_value(state, "weight", SCORE_AXES, mode)
    if weight is None:
        section = state.names.sections.get("normaliser")
        return stage(state, Name("p", span=section.span) if section else Name("p"), state.scope(mode))
    return POISON if weight.poisoned else Value(weight.node, SCORE_AXES)


def _output(state: Lowering, mode: Mode) -> Value:
    section = state.names.sections.get("output")
    scope = state.scope(mode)
    if section is None:
        w, v = stage(state, Name("w"), scope), state.named(Name("v"), scope)
        if w.poisoned or v.poisoned:
            return POISON
        where = domain(state, SCORE_AXES, frozenset("j"), mode)
        return Value(total(state, frozenset("j"), mul(w.node, v.node), where), OUTPUT_AXES)
    value = state.expression(section.value, scope)
    if not checks.want_number(state, value, section.value, scope):
        return POISON
    if value.axes <= SCORE_AXES and is_plane(value.axes):
        state.mask_used = True
        return Value(mul(value.node, allowed(state, mode)), SCORE_AXES)
    value = checks.no_leftover(state, value, OUTPUT_AXES, "output", section.value, scope)
    return POISON if value.poisoned else Value(value.node, OUTPUT_AXES)


def gated(state: Lowering) -> Value:
    """The output times its gate."""
    o = stage_value(state, "o")
    gate = section_value(state, "gate", OUTPUT_AXES if o.axes <= OUTPUT_AXES else SCORE_AXES, Mode())
    if gate is None or o.poisoned:
        return o
    return POISON if gate.poisoned else Value(mul(o.node, gate.node), o.axes)
