"""What is known about integer expressions without running them: enough to leave out needless checks and corrections."""

from __future__ import annotations

from attnc.ir.construct import add, const, mul
from attnc.ir.node import Add, Axis, Call, Const, Node, Prod, Size, Var


def low(node: Node) -> int | None:
    """A number that `node` is never below, or None. Axes and sizes are never negative."""
    match node:
        case Const() if node.kind == "i":
            return int(node.value)
        case Axis() | Size():
            return 0
        case Var() if node.name.endswith(("_first", "_last")):
            return 0
        case Add():
            return _total([low(t) for t in node.terms])
        case Prod():
            return _product([low(f) for f in node.factors])
        case Call():
            return _low_call(node)
        case _:
            return None


def _total(parts: list[int | None]) -> int | None:
    known = [p for p in parts if p is not None]
    return sum(known) if len(known) == len(parts) else None


def _product(parts: list[int | None]) -> int | None:
    out = 1
    for p in parts:
        if p is None or p < 0:
            return None
        out *= p
    return out


def _low_call(node: Call) -> int | None:
    lows = [low(a) for a in node.args]
    known = [x for x in lows if x is not None]
    match node.fn:
        case "maximum":
            return max(known, default=None)
        case "minimum":
            return min(known) if len(known) == len(lows) else None
        case "where":
            return min(known[-2:]) if None not in lows[-2:] else None
        case "abs" | "floor_log2":
            return 0
        case "power_of_two":
            return 1
        case "bitand" if any(x >= 0 for x in known):
            return 0
        case "bitor" | "bitxor" if all(x is not None and x >= 0 for x in lows):
            return 0
        case "mod":
            return 0 if lows[1] is not None and lows[1] >= 0 else None
        case "floordiv" if all(x is not None and x >= 0 for x in lows):
            return 0
        case _:
            return None


def ceilings(node: Node) -> set[Node]:
    """Expressions that `node` is never above."""
    out = {node}
    match node:
        case Call() if node.fn == "minimum":
            for a in node.args:
                out |= ceilings(a)
        case Call() if node.fn == "maximum":
            left, right = (ceilings(a) for a in node.args)
            out |= {x if _at_least(x, y) else y for x in left for y in right if _at_least(x, y) or _at_least(y, x)}
        case Call() if node.fn == "mod" and never_negative(node.args[1]):
            out.add(add(node.args[1], const(-1)))
        case Add():
            for k, term in enumerate(node.terms):
                rest = [t for n, t in enumerate(node.terms) if n != k]
                out |= {add(c, *rest) for c in ceilings(term) if c is not term}
        case _:
            pass
    return out


def _minus(a: Node, b: Node) -> Node:
    return add(a, mul(const(-1), b))


def _at_least(a: Node, b: Node) -> bool:
    bound = low(_minus(a, b))
    return bound is not None and bound >= 0


def never_negative(node: Node) -> bool:
    bound = low(node)
    return bound is not None and bound >= 0


def below(node: Node, extent: Node) -> bool:
    """Whether ``node < extent`` is certain."""
    if _grouped_head(node, extent):
        return True
    one = const(1)
    return any(_at_least(extent, add(c, one)) for c in ceilings(node))


def _grouped_head(node: Node, extent: Node) -> bool:
    """``h // (H // G) < G``; calls check that G divides H."""
    match node:
        case Call(fn="floordiv", args=(Axis(), Call(fn="floordiv", args=(Size(), heads)))):
            return heads is extent
        case _:
            return False
