"""Functions: the pointwise ones, and the expansion of `def`s and normalisers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from attnc.grammar.tree import Apply, Blocks, Def, Expr, Name, Subscript
from attnc.ir.construct import call
from attnc.ir.functions import FUNCTIONS
from attnc.ir.node import Const, Node
from attnc.lowering import arithmetic, checks, reductions
from attnc.lowering.names import BUILT_IN, EXTREMES, POINTWISE
from attnc.lowering.report import did_you_mean
from attnc.lowering.state import MOST_EXPANSIONS, Lowering
from attnc.lowering.value import POISON, Scope, Value

MOST_REPEATS = 64


def is_pointwise(name: str) -> bool:
    return name in POINTWISE or name in EXTREMES


def pointwise(state: Lowering, tree: Apply, scope: Scope) -> Value:
    """A function applied element by element."""
    name = tree.fn.id
    if tree.axes or tree.keywords:
        what = "no index in brackets" if tree.axes else "no arguments by name"
        return state.error("E103", scope, tree.span, f"`{name}` takes {what}", f"write `{name}(…)`")
    values = [state.expression(a, scope) for a in tree.args]
    wanted = FUNCTIONS[EXTREMES.get(name, name)].arity
    if len(values) < 2 if name in EXTREMES else len(values) != wanted:
        return _wrong_count(state, tree, scope, len(values), wanted)
    fine = [checks.want_number(state, v, t, scope) for v, t in zip(values, tree.args, strict=True)]
    if not all(fine):
        return POISON
    if name == "floor_log2":
        return arithmetic.floor_log2(state, tree, values[0], scope)
    nodes = [v.node for v in values]
    return arithmetic.built(state, scope, tree.span, values, lambda: _build(name, nodes))


def _build(name: str, nodes: Sequence[Node]) -> Node:
    if name not in EXTREMES:
        return call(name, *nodes)
    result = nodes[0]
    for node in nodes[1:]:
        result = call(EXTREMES[name], result, node)
    return result


def _wrong_count(state: Lowering, tree: Apply, scope: Scope, given: int, wanted: int) -> Value:
    name = tree.fn.id
    if name in EXTREMES:
        message = f"`{name}` without an index takes two values or more, and {given} were given"
        return state.error("E103", scope, tree.span, message, f"write `{name}[j](x)`, or `{name}(x, y)`")
    parameters = {1: "x", 2: "x, y", 3: "x, low, high"}[wanted] if name != "where" else "condition, x, y"
    message = f"`{name}` takes {_count(wanted, 'value')}, and {given} {'was' if given == 1 else 'were'} given"
    return state.error("E103", scope, tree.span, message, f"write `{name}({parameters})`")


def _count(n: int, noun: str) -> str:
    return f"{'no' if n == 0 else n} {noun}{'' if n == 1 else 's'}"


# -------------------------------------------------------------------------------------------------- definitions


def candidates(state: Lowering, name: str, scope: Scope, *, normalisers_first: bool = False) -> list[tuple[Def, bool]]:
    """Definitions of this name, each with whether it is the prelude's. A spec's own definition hides the prelude's."""
    own = [] if scope.prelude else state.names.functions.get(name, [])
    if own:
        state.names.used.add(name)
    found = [(d, False) for d in own] or [(d, True) for d in state.prelude.get(name, [])]
    return sorted(found, key=lambda f: f[0].is_normaliser != normalisers_first)


def is_callable(state: Lowering, name: str) -> bool:
    return name in known_functions(state)


def known_functions(state: Lowering) -> tuple[str, ...]:
    return (*BUILT_IN, *state.names.functions, *state.prelude)


def expand(state: Lowering, tree: Apply, scope: Scope) -> Value:
    """A call of a `def`, or of a normaliser as a function of a value: `softmax[a](x)`."""
    found = candidates(state, tree.fn.id, scope)
    if not found:
        return unknown_function(state, tree.fn, scope)
    keywords = {name.id: value for name, value in tree.keywords}
    axes = tree.axes
    if not axes and found[0][0].axes and isinstance(keywords.get("axis"), Name):
        axis = keywords.pop("axis")
        assert isinstance(axis, Name)
        axes = (axis,)
    return instantiate(state, tree, found, list(tree.args), keywords, axes, scope)


def unknown_function(state: Lowering, name: Name, scope: Scope) -> Value:
    if name.id in state.names.visible or name.id in scope.params:
        message = f"`{name.id}` is no function"
        return state.error(
            "E102", scope, name.span, message, f"a subscript is written in square brackets: `{name.id}[…]`"
        )
    remedy = did_you_mean(name.id, known_functions(state)) or f"define it: `def {name.id}(x) = …`"
    return state.error("E102", scope, name.span, f"there is no function `{name.id}`", remedy)


def instantiate(
    state: Lowering,
    tree: Apply,
    found: list[tuple[Def, bool]],
    args: Sequence[Expr | Value],
    keywords: dict[str, Expr],
    axes: Sequence[Name | Blocks | str],
    scope: Scope,
) -> Value:
    """Choose the overload whose parameters the arguments fill, and expand it. An argument may be a value already."""
    fitting = [f for f in found if fills(f[0], len(args), keywords)]
    if not fitting:
        return _no_overload(state, tree, [d for d, _ in found], len(args), scope)
    definition, from_prelude = fitting[0]
    if len(axes) != len(definition.axes):
        return _wrong_axes(state, tree, definition, scope)
    bound: dict[str, str] = {}
    blocks: dict[str, int] = {}
    for parameter, name in zip(definition.axes, axes, strict=True):
        axis = name if isinstance(name, str) else reductions.resolve_axis(state, name, scope)
        length = reductions.block_length(state, name, scope)
        if axis is None or length is None:
            return POISON
        bound[parameter.id] = axis
        blocks |= {parameter.id: length} if length else {}
    params = [p.id for p in definition.params]
    given: dict[str, Expr | Value] = {**dict(zip(params, args, strict=False)), **keywords}
    values = {p: v if isinstance(v, Value) else state.expression(v, scope) for p, v in given.items()}
    if any(v.poisoned for v in values.values()):
        return POISON
    inner = replace(scope, axes=bound, blocks=blocks)
    return _body(state, tree, definition, from_prelude, values, inner)


def fills(definition: Def, positional: int, keywords: Iterable[str]) -> bool:
    """Whether this many positional arguments and these keywords give every parameter once."""
    params = [p.id for p in definition.params]
    return positional <= len(params) and sorted(params[positional:]) == sorted(keywords)


def _body(
    state: Lowering,
    tree: Apply,
    definition: Def,
    from_prelude: bool,
    values: dict[str, Value],
    scope: Scope,
) -> Value:
    """The body of a definition over these values; `scope` is that of the call, with the definition's axes."""
    key = f"{definition.name.id}({', '.join(values)})"
    if key in scope.expanding:
        path = " → ".join((*scope.expanding[scope.expanding.index(key) :], key))
        return state.error(
            "E115", scope, tree.fn.span, f"a function cannot call itself: {path}", "write it without recursion"
        )
    state.expansions += 1
    if state.expansions > MOST_EXPANSIONS + 1:
        return POISON
    if state.expansions > MOST_EXPANSIONS:
        message = f"the functions of this spec expand more than {MOST_EXPANSIONS} times"
        return state.error("E127", scope, tree.span, message, "name intermediate values with `let`")
    inner = Scope(
        source=state.prelude_source if from_prelude else state.source,
        mode=scope.mode,
        params=values,
        axes=scope.axes,
        blocks=scope.blocks,
        blame=(scope.blame or (scope.source, tree.span)) if from_prelude else scope.blame,
        expanding=(*scope.expanding, key),
        facts=scope.facts,
        prelude=from_prelude,
    )
    return state.expression(definition.body, inner)


def signature(definition: Def) -> str:
    axes = f"[{', '.join(a.id for a in definition.axes)}]" if definition.axes else ""
    return f"{definition.name.id}{axes}({', '.join(p.id for p in definition.params)})"


def _no_overload(state: Lowering, tree: Apply, found: list[Def], positional: int, scope: Scope) -> Value:
    name = tree.fn.id
    given = {keyword.id for keyword, _ in tree.keywords} - {"axis"}
    known = " or ".join(f"`{signature(d)}`" for d in found)
    parameters = {p.id for d in found for p in d.params}
    for keyword, _ in tree.keywords:
        if keyword.id in given - parameters:
            remedy = did_you_mean(keyword.id, parameters) or f"it is {known}"
            return state.error("E103", scope, keyword.span, f"`{name}` has no argument `{keyword.id}`", remedy)
    for definition in found:
        missing = [p.id for p in definition.params[positional:] if p.id not in given]
        if missing and len(found) == 1:
            message = f"`{name}` also needs {' and '.join(f'`{m}`' for m in missing)}"
            return state.error("E103", scope, tree.span, message, f"it is {known}")
    message = f"`{name}` does not take {_count(positional + len(given), 'argument')}"
    return state.error("E103", scope, tree.span, message + (" this way" if given else ""), f"it is {known}")


def _wrong_axes(state: Lowering, tree: Apply, definition: Def, scope: Scope) -> Value:
    name = tree.fn.id
    if not definition.axes:
        message = f"`{name}` takes no index in brackets"
        return state.error("E118", scope, tree.fn.span, message, f"write `{name}(…)`")
    message = f"`{name}` needs to know over which {'index' if len(definition.axes) == 1 else 'indices'}"
    sample = ", ".join("ji"[: len(definition.axes)])
    return state.error("E118", scope, tree.fn.span, message, f"write `{name}[{sample}](…)`")


def repeat(state: Lowering, tree: Apply, scope: Scope) -> Value:
    """``repeat(n, f, x)``: f applied n times to x, written out when the spec is compiled; f may be ``f[j, i]``."""
    function = tree.args[1] if len(tree.args) == 3 else None
    if not isinstance(function, Name | Subscript) or tree.keywords or tree.axes:
        message = "`repeat` takes a number, a function and a value"
        return state.error("E103", scope, tree.span, message, "write `repeat(3, f, x)`")
    times, _, start = tree.args
    count, value = state.expression(times, scope), state.expression(start, scope)
    if count.poisoned or value.poisoned:
        return POISON
    if not isinstance(count.node, Const) or count.node.kind != "i" or not 0 <= count.node.value <= MOST_REPEATS:
        message = "the number of repetitions must be known when the spec is compiled"
        return state.error("E117", scope, times.span, message, f"write an integer from 0 to {MOST_REPEATS}, or a const")
    name, index = (function.base, function.index) if isinstance(function, Subscript) else (function, ())
    axes = tuple(a for a in index if isinstance(a, Name))
    found = candidates(state, name.id, scope)
    if not found or len(axes) != len(index):
        return unknown_function(state, name, scope)
    step = replace(tree, fn=name, args=(start,))
    for _ in range(int(count.node.value)):
        value = instantiate(state, step, found, [value], {}, axes, scope)
        if value.poisoned:
            return POISON
    return value


def uniform(state: Lowering, tree: Apply, scope: Scope) -> Value:
    """``uniform(seed, x, ...)``: a random number in [0, 1), the same for the same integers (`attnc.ir.hashing`)."""
    if len(tree.args) < 2 or tree.keywords or tree.axes:
        message = "`uniform` takes a seed and the integers that tell one number from another"
        return state.error("E103", scope, tree.span, message, "write `uniform(seed[0], b, h, i, j)`")
    values = [state.expression(a, scope) for a in tree.args]
    what = "an argument of `uniform`"
    fine = [checks.want_integer(state, v, t, scope, what) for v, t in zip(values, tree.args, strict=True)]
    if not all(fine):
        return POISON
    mixed = values[0].node
    for v in values[1:]:
        mixed = call("hash", mixed, v.node)
    return arithmetic.built(state, scope, tree.span, values, lambda: call("unit", mixed))
