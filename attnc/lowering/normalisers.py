"""The `normaliser` section: how scores become weights."""

from __future__ import annotations

from collections.abc import Sequence

from attnc.grammar.tree import Apply, Blocks, Def, Expr, Name
from attnc.lowering import checks
from attnc.lowering.functions import candidates, fills, instantiate
from attnc.lowering.masks import SCORE_AXES
from attnc.lowering.names import PLANE
from attnc.lowering.report import did_you_mean
from attnc.lowering.state import Lowering
from attnc.lowering.value import POISON, Mode, Scope, Value


def weights_of(state: Lowering, s: Value, mode: Mode) -> Value:
    """The weights p over the plane that the normaliser makes of the scores s."""
    scope = state.scope(mode)
    section = state.names.sections.get("normaliser")
    if section is None:
        tree: Expr = Name("softmax")
    elif section.param is not None:
        inner = Scope(scope.source, mode, params={section.param.id: s})
        return _plane_number(state, state.expression(section.value, inner), section.value, scope)
    else:
        tree = section.value
    call_ = Apply(tree, ()) if isinstance(tree, Name) else tree
    if not isinstance(call_, Apply):
        message = "a normaliser is a function of the scores"
        return state.error("E120", scope, tree.span, message, "write `normaliser = softmax` or `normaliser(s) = …`")
    call_ = Apply(call_.fn, call_.args, call_.keywords, call_.axes, span=tree.span)
    found = [f for f in candidates(state, call_.fn.id, scope, normalisers_first=True) if f[0].is_normaliser]
    if not found:
        return _unknown_normaliser(state, call_.fn, scope)
    return _plane_number(state, _normalised(state, call_, found, s, scope), tree, scope)


def _normalised(state: Lowering, tree: Apply, found: list[tuple[Def, bool]], s: Value, scope: Scope) -> Value:
    """A normaliser applied to the scores; they are its first argument unless every argument is written."""
    keywords = {n.id: v for n, v in tree.keywords}
    axes: Sequence[Name | Blocks | str] = tree.axes
    wanted = max(len(d.axes) for d, _ in found)
    axis_given = keywords.pop("axis", None) if wanted else None
    if axis_given is not None:
        if not isinstance(axis_given, Name) or axis_given.id not in PLANE:
            message = "`axis` is the index the weights are normalised over, `i` or `j`"
            return state.error("E118", scope, axis_given.span, message, "write `axis = i`")
        axes = ("i", "j")[:wanted] if axis_given.id == "i" else ("j", "i")[:wanted]
    elif not axes:
        axes = ("j", "i")[:wanted]
    complete = any(fills(d, len(tree.args), keywords) for d, _ in found)
    args: list[Expr | Value] = [*tree.args] if complete else [s, *tree.args]
    return instantiate(state, tree, found, args, keywords, axes, scope)


def _unknown_normaliser(state: Lowering, name: Name, scope: Scope) -> Value:
    known = [n for n, defs in state.prelude.items() if any(d.is_normaliser for d in defs)]
    known += [n for n, defs in state.names.functions.items() if any(d.is_normaliser for d in defs)]
    remedy = f"use one of {', '.join(sorted(known))}, or write your own: `normaliser(s) = …`"
    remedy = did_you_mean(name.id, known) or remedy
    return state.error("E120", scope, name.span, f"there is no normaliser `{name.id}`", remedy)


def _plane_number(state: Lowering, value: Value, tree: Expr, scope: Scope) -> Value:
    if not checks.want_number(state, value, tree, scope):
        return POISON
    value = checks.no_leftover(state, value, SCORE_AXES, "normaliser", tree, scope)
    return POISON if value.poisoned else Value(value.node, SCORE_AXES)
