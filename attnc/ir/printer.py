"""IR to text. Shared nodes of a program print once, as `%n = ...` lines; `show` prints one expression inline."""

from __future__ import annotations

from attnc.ir.node import Add, Axis, Call, Const, Iverson, Load, Max, Node, Prod, Size, Sum, Var


def show(node: Node, names: dict[Node, str] | None = None) -> str:
    """One expression, fully parenthesised where needed."""
    names = names or {}

    def go(n: Node, top: bool = False) -> str:
        if n in names and not top:
            return names[n]
        match n:
            case Const():
                return repr(n.value)
            case Axis() | Size() | Var():
                return n.name
            case Load():
                return f"{n.tensor}[{', '.join(go(x) for x in n.index)}]"
            case Call():
                return f"{n.fn}({', '.join(go(x) for x in n.args)})"
            case Iverson():
                return f"[{go(n.condition)}]"
            case Add():
                return "(" + " + ".join(go(x) for x in n.terms) + ")"
            case Prod():
                return "(" + " * ".join(go(x) for x in n.factors) + ")"
            case Sum() | Max():
                return _reduction(n, go)
            case _:
                raise TypeError(type(n).__name__)

    return go(node, True)


def _reduction(n: Sum | Max, go: object) -> str:
    assert callable(go)
    head = ", ".join(sorted(n.bound))
    if n.domain:
        head += " | " + " & ".join(go(c) for c in n.domain)
    if isinstance(n, Max):
        return f"max[{head}]({go(n.body)})"
    if n.scatter:
        head += " -> " + ", ".join(f"{a} = {go(x)}" for a, x in n.scatter)
    return f"sum[{head}]({' * '.join(go(f) for f in n.factors)})"
