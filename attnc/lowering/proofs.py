"""Decides what becomes of an inequality: proved, left to a check at each call, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from attnc.ir.construct import add, call, const, mul
from attnc.ir.node import Node, Size
from attnc.ir.walk import postorder
from attnc.lowering.forms import Form, form_of, spell, value_of
from attnc.lowering.ranges import NO_FACTS, Facts, Ranges

LONG = 1 << 20
_FEW = (1, 2, 8, 64)
_ANY = (1, 2, 64, LONG, 2 * LONG, LONG * LONG)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known about ``form >= 0``.

    Attributes:
        state: `proved`; `given` (proved from the facts); `check` (true in every call for which one of `relations` is at
            least 0); `refused`.
        relations: forms over sizes.
    """

    state: Literal["proved", "given", "check", "refused"]
    relations: tuple[Form, ...] = ()


def settle(ranges: Ranges, form: Form, facts: Facts = NO_FACTS) -> Verdict:
    """The weakest condition found under which ``form >= 0`` everywhere."""
    if ranges.nonnegative(form):
        return Verdict("proved")
    if facts.forms and ranges.nonnegative(form, facts):
        return Verdict("given")
    relations = tuple(b for b in ranges.bounds(form, upper=False) if may_hold(b))
    return Verdict("check", relations) if relations else Verdict("refused")


def may_hold(relation: Form) -> bool:
    """Whether ``relation >= 0`` in some call with a long sequence, M = N and ``q_start = 0``.

    A relation that caps the length of every sequence by a number is no relation between sizes but a table that is too
    small, and refused when the spec is compiled rather than in the middle of a training run.
    """
    for sizes in _plausible_calls(relation):
        try:
            if sum(c * _product(m, sizes) for m, c in relation.terms) >= 0:
                return True
        except (ZeroDivisionError, LookupError):
            continue
    return False


def _product(monomial: tuple[Node, ...], sizes: dict[str, int]) -> int:
    out = 1
    for a in monomial:
        out *= value_of(a, sizes)
    return out


def _plausible_calls(relation: Form) -> Iterator[dict[str, int]]:
    names = sorted({n.name for n in postorder(relation.atoms) if isinstance(n, Size)})
    known = {"M": LONG, "N": LONG, "q_start": 0}
    few = [n for n in names if n in ("B", "H", "G", "D", "E")]
    free = [n for n in names if n not in known and n not in few][:4]
    for small in product(_FEW, repeat=len(few)):
        for large in product(_ANY, repeat=len(free)):
            yield known | dict(zip(few, small, strict=True)) | dict(zip(free, large, strict=True))


def relation_node(relations: tuple[Form, ...]) -> Node:
    """The condition that one of the forms is at least 0, written without negative terms."""
    return call("or", *(call("le", low.node(), high.node()) for low, high in map(_sides, relations)))


def relation_text(relations: tuple[Form, ...]) -> str:
    """``M + q_start <= N``."""
    return " or ".join(f"{spell(low)} <= {spell(high)}" for low, high in map(_sides, relations))


def _sides(form: Form) -> tuple[Form, Form]:
    low = form_of(add(const(0), *(mul(const(-c), *m) for m, c in form.terms if c < 0)))
    high = form_of(add(const(0), *(mul(const(c), *m) for m, c in form.terms if c > 0)))
    return low, high
