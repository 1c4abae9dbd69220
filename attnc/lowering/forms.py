"""Integer expressions as polynomials, so that bounds cancel: `(M - 1) * N + N - 1` is `M * N - 1`.

The atoms of a polynomial are axes, sizes, and whatever integer expression is no sum or product (`i // 7`, `doc[b, j]`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from attnc.ir.construct import add, const, mul
from attnc.ir.node import Add, Axis, Call, Const, Node, Prod, Size
from attnc.ir.walk import postorder

Monomial = tuple[Node, ...]
LONGEST = 64


@dataclass(frozen=True, slots=True)
class Form:
    """A polynomial with integer coefficients; no coefficient is 0 and atoms within a monomial are in node order."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Form) -> Form:
        return _form([*self.terms, *other.terms])

    def __sub__(self, other: Form) -> Form:
        return self + other.scaled(-1)

    def __mul__(self, other: Form) -> Form:
        return _form((_monomial((*m, *n)), a * b) for m, a in self.terms for n, b in other.terms)

    def scaled(self, factor: int) -> Form:
        return _form((m, factor * c) for m, c in self.terms)

    def shifted(self, by: int) -> Form:
        return self + number(by)

    @property
    def constant(self) -> int:
        return next((c for m, c in self.terms if not m), 0)

    @property
    def is_constant(self) -> bool:
        return all(not m for m, _ in self.terms)

    @property
    def atoms(self) -> tuple[Node, ...]:
        return tuple(sorted({a for m, _ in self.terms for a in m}, key=lambda n: n.order))

    def split(self, atom: Node) -> tuple[Form, Form]:
        """``(c, r)`` with ``self = atom * c + r`` and `atom` not in r; c may hold further powers of it."""
        factor, rest = [], []
        for monomial, c in self.terms:
            if atom in monomial:
                left = list(monomial)
                left.remove(atom)
                factor.append((tuple(left), c))
            else:
                rest.append((monomial, c))
        return _form(factor), _form(rest)

    def degree(self, atom: Node) -> int:
        return max((m.count(atom) for m, _ in self.terms), default=0)

    def node(self) -> Node:
        return add(const(0), *(mul(const(c), *m) for m, c in self.terms))


def _monomial(atoms: Iterable[Node]) -> Monomial:
    return tuple(sorted(atoms, key=lambda n: n.order))


def _form(terms: Iterable[tuple[Monomial, int]]) -> Form:
    collected: dict[Monomial, int] = {}
    for m, c in terms:
        collected[m] = collected.get(m, 0) + c
    kept = [(m, c) for m, c in collected.items() if c]
    return Form(tuple(sorted(kept, key=lambda t: (len(t[0]), [a.order for a in t[0]]))))


def number(value: int) -> Form:
    return Form((((), value),)) if value else Form(())


def atom(node: Node) -> Form:
    return Form((((node,), 1),))


def form_of(node: Node) -> Form:
    """The polynomial of an integer node."""
    match node:
        case Const():
            return number(int(node.value))
        case Add():
            total = number(0)
            for term in node.terms:
                total += form_of(term)
            return total
        case Prod():
            product = number(1)
            for factor in node.factors:
                product *= form_of(factor)
                if len(product.terms) > LONGEST:
                    return atom(node)
            return product
        case _:
            return atom(node)


def is_fixed(node: Node) -> bool:
    """Whether the node is made of sizes and numbers alone, so that a call knows its value before any kernel runs."""
    return not node.axes and all(isinstance(n, Const | Size | Add | Prod | Call) for n in postorder([node]))


_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "minimum": min,
    "maximum": max,
    "bitand": operator.and_,
    "bitor": operator.or_,
    "bitxor": operator.xor,
}
_OF_ONE: dict[str, Callable[[int], int]] = {
    "abs": abs,
    "floor_log2": lambda x: x.bit_length() - 1,
    "power_of_two": lambda n: 2**n,
}


def value_of(node: Node, sizes: dict[str, int]) -> int:
    """The value of an integer expression over sizes.

    Raises:
        ZeroDivisionError: it divides by zero there.
        LookupError: it is made of something else.
    """
    match node:
        case Const():
            return int(node.value)
        case Size():
            return sizes[node.name]
        case Add():
            return sum(value_of(t, sizes) for t in node.terms)
        case Prod():
            product = 1
            for f in node.factors:
                product *= value_of(f, sizes)
            return product
        case Call() if node.fn in _OPERATORS:
            a, b = (value_of(x, sizes) for x in node.args)
            return _OPERATORS[node.fn](a, b)
        case Call() if node.fn in _OF_ONE:
            return _OF_ONE[node.fn](value_of(node.args[0], sizes))
        case _:
            raise LookupError(type(node).__name__)


_INFIX = {"floordiv": "//", "mod": "%", "bitand": "&", "bitor": "|", "bitxor": "^"}
_FUNCTIONS = {"minimum": "min", "maximum": "max"}


def spell(form: Form) -> str:
    """The form as a person writes it: `2 * L - 1`."""
    if not form.terms:
        return "0"
    text = ""
    for monomial, c in _by_reading_order(form):
        sign = " - " if c < 0 else " + " if text else ""
        if c < 0 and not text:
            sign = "-"
        scaled = len(monomial) > 1 or abs(c) != 1
        names = [_spell_node(a, tight=scaled) for a in monomial]
        if abs(c) != 1 or not names:
            names.insert(0, str(abs(c)))
        text += sign + " * ".join(names)
    return text


def _by_reading_order(form: Form) -> Iterator[tuple[Monomial, int]]:
    """Positive terms first, the constant last."""
    return iter(sorted(form.terms, key=lambda t: (not t[0], t[1] < 0, -len(t[0]), [_spell_node(a) for a in t[0]])))


def _spell_node(node: Node, tight: bool = False) -> str:
    match node:
        case Size() | Axis():
            return node.name
        case Call() if node.fn in _INFIX:
            text = f" {_INFIX[node.fn]} ".join(_spell_node(a, tight=True) for a in node.args)
            return f"({text})" if tight else text
        case Call():
            return f"{_FUNCTIONS.get(node.fn, node.fn)}({', '.join(_spell_node(a) for a in node.args)})"
        case Add() | Prod() | Const():
            form = form_of(node)
            text = spell(form)
            return f"({text})" if tight and len(form.terms) > 1 else text
        case _:
            return repr(node)
