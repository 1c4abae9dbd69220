"""Which running maxima may pass over NaN: those that only keep exponents in range.

A maximum over the scores of a row is subtracted in exponents, and the exponentials are added up over the same pairs.
A score that is NaN makes its own exponential and so the sum NaN, whatever the maximum is. Then a printer may use the
plain instruction for maxima, which is the cheaper one on most processors.
"""

from __future__ import annotations

from collections.abc import Collection

from attnc.ir.node import Add, Call, Const, Iverson, Max, Node, Prod, Size, Sum
from attnc.ir.walk import postorder
from attnc.passes.plan import Pass, Plan


def is_quiet(r: Max, item: Pass, plan: Plan) -> bool:
    """Whether NaN among what a running maximum is taken of reaches every result of the pass without it.

    A result made of the maximum and of sums that follow it is NaN by the latter. One made of the maximum without them
    must be for later kernels only, which read it beside such a sum.
    """
    followers = {s for s in item.reductions if isinstance(s, Sum) and follows(s, r)}
    if not followers:
        return False
    shifted = {s for s in item.reductions if r in postorder([s])}
    alone = summed = False
    for name, _, value in item.stores:
        reached = _reached(value, item.reductions)
        if reached & followers:
            summed = True
        elif reached & shifted:
            if plan.buffer(name).role == "output":
                return False
            alone = True
    return summed or not alone


def follows(s: Sum, r: Max) -> bool:
    """Whether a sum adds up exponentials of what a maximum is taken of, over the same pairs."""
    if s.scatter or set(s.domain) != set(r.domain) or not r.bound <= s.bound or any(_selects(f) for f in s.factors):
        return False
    exponents = [f.args[0] for f in s.factors if isinstance(f, Call) and f.fn in ("exp", "exp2")]
    return any(_atoms(r.body) <= _atoms(x) for x in exponents)


def _selects(factor: Node) -> bool:
    return isinstance(factor, Iverson) or (isinstance(factor, Call) and factor.fn == "where")


def _atoms(node: Node) -> set[Node]:
    """What a sum of products is made of, but for numbers; guards are seen through."""
    match node:
        case Add() | Prod():
            return set[Node]().union(*map(_atoms, node.children))
        case Call(fn="finite_or_zero" | "detach" | "rounded", args=(x,)):
            return _atoms(x)
        case Const() | Size():
            return set()
        case _:
            return {node}


def _reached(value: Node, reductions: Collection[Node]) -> set[Node]:
    """The reductions that a value is made of, not those inside others."""
    found: set[Node] = set()
    seen: set[Node] = set()
    open_ = [value]
    while open_:
        node = open_.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in reductions:
            found.add(node)
        else:
            open_.extend(node.children)
    return found
