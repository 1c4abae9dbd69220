"""Proves that an integer expression stays within bounds, for all sizes at once.

Bounds are polynomials over sizes. An expression is bounded by eliminating its moving parts one after another: an index
lies between 0 and its extent less 1, `x % n` between 0 and n - 1, and so on, while a fact such as ``j <= i`` lets an
index be replaced by another. Whatever cannot be bounded has no bounds, never wrong ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from attnc.ir.construct import call, conjuncts, size
from attnc.ir.hashing import LARGEST
from attnc.ir.node import Axis, Call, Load, Node, Size
from attnc.lowering.forms import Form, atom, form_of, is_fixed, number

MOST_BOUNDS = 12
DEEPEST = 12
MOST_FACTS = 8
LARGEST_LOG2 = 62

GROUP = call("floordiv", size("H"), size("G"))
"""Query heads per key head; at least 1, since every call has H a multiple of G."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Forms known to be at least 0, and how many of them may still be used along one line of argument."""

    forms: tuple[Form, ...] = ()
    left: int = 2

    def without(self, k: int) -> Facts:
        return Facts((*self.forms[:k], *self.forms[k + 1 :]), self.left - 1) if self.left > 1 else NO_FACTS

    def and_also(self, forms: tuple[Form, ...]) -> Facts:
        return Facts(tuple(dict.fromkeys((*self.forms, *forms))), self.left)


NO_FACTS = Facts()


@dataclass(slots=True)
class Ranges:
    """What is known about the moving parts of integer expressions.

    Attributes:
        extents: size of every index, by name.
        unsigned: names of integer tensors without negative values.
        assumed: forms over sizes that are at least 0 in every call, because the call is checked for it.
    """

    extents: Mapping[str, Node]
    unsigned: frozenset[str] = frozenset()
    assumed: tuple[Form, ...] = ()
    _memo: dict[tuple[Form, bool, Facts, bool], tuple[Form, ...]] = field(default_factory=dict)

    def assume(self, form: Form) -> None:
        self.assumed = (*self.assumed, form)
        self._memo.clear()

    def bounds(self, form: Form, *, upper: bool, facts: Facts = NO_FACTS) -> tuple[Form, ...]:
        """Forms over sizes, none of which `form` ever exceeds (or, with `upper` False, falls below)."""
        return self._bounds(form, upper, facts, False, DEEPEST)

    def nonnegative(self, form: Form, facts: Facts = NO_FACTS) -> bool:
        """Whether `form` is at least 0 for all sizes from 1 (``q_start`` from 0) and all positions."""
        return self._nonnegative(form, facts, DEEPEST)

    def _nonnegative(self, form: Form, facts: Facts, fuel: int) -> bool:
        if any(_plainly_nonnegative(b) for b in self._bounds(form, False, facts, True, fuel)):
            return True
        if fuel and any(self._by_cases(form, a, facts, fuel - 1) for a in form.atoms if isinstance(a, Call)):
            return True
        if not self.assumed:
            return False
        bounds = self._bounds(form, False, facts, False, fuel)
        return any(_plainly_nonnegative(b - known) for b in bounds for known in self.assumed)

    def _by_cases(self, form: Form, target: Call, facts: Facts, fuel: int) -> bool:
        """``r - max(a, b) >= 0`` where both ``r - a >= 0`` and ``r - b >= 0``."""
        if target.fn not in ("minimum", "maximum", "abs") or form.degree(target) != 1:
            return False
        factor, rest = form.split(target)
        if not factor.is_constant or (factor.constant > 0) != (target.fn == "minimum"):
            return False
        a = form_of(target.args[0])
        cases = (a, a.scaled(-1)) if target.fn == "abs" else (a, form_of(target.args[1]))
        return all(self._nonnegative(rest + x * factor, facts, fuel) for x in cases)

    def _bounds(self, form: Form, upper: bool, facts: Facts, plain: bool, fuel: int) -> tuple[Form, ...]:
        """With `plain`, the bounds hold nothing but size symbols: `D // 2` is itself bounded."""
        key = (form, upper, facts, plain)
        if key in self._memo:
            return self._memo[key]
        moving = [a for a in form.atoms if not (isinstance(a, Size) if plain else is_fixed(a))]
        if not moving:
            found: tuple[Form, ...] = (form,)
        elif not fuel:
            return ()
        else:
            found = tuple(dict.fromkeys(self._eliminate(form, moving, upper, facts, plain, fuel - 1)))[:MOST_BOUNDS]
        self._memo[key] = found
        return found

    def _eliminate(
        self, form: Form, moving: list[Node], upper: bool, facts: Facts, plain: bool, fuel: int
    ) -> Iterator[Form]:
        for k, fact in enumerate(facts.forms):
            for changed in _apply_fact(form, fact, upper):
                yield from self._bounds(changed, upper, facts.without(k), plain, fuel)
        compound = [a for a in moving if not isinstance(a, Axis)]
        target = max(compound or moving, key=lambda a: (form.degree(a), a.order))
        factor, rest_form = form.split(target)
        if self._nonnegative(factor, facts, fuel):
            ends = self._ends(target, upper, facts, plain, fuel)
        elif self._nonnegative(factor.scaled(-1), facts, fuel):
            ends = self._ends(target, not upper, facts, plain, fuel)
        else:
            return
        for end in ends:
            yield from self._bounds(end * factor + rest_form, upper, facts, plain, fuel)

    def _ends(self, node: Node, upper: bool, facts: Facts, plain: bool, fuel: int) -> list[Form]:
        """One-sided bounds of an atom, simpler than the atom itself but possibly still moving."""
        match node:
            case Axis():
                extent = self.extents.get(node.name.rstrip("'"))
                if extent is None:
                    return []
                return [form_of(extent).shifted(-1)] if upper else [number(0)]
            case Load():
                return [number(0)] if node.tensor in self.unsigned and not upper else []
            case Call(fn="minimum" | "maximum"):
                a, b = (form_of(x) for x in node.args)
                if (node.fn == "minimum") == upper:
                    return [a, b]
                return self._worse(a, b, upper, facts, facts, plain, fuel)
            case Call(fn="abs"):
                a = form_of(node.args[0])
                return (
                    self._worse(a, a.scaled(-1), True, facts, facts, plain, fuel)
                    if upper
                    else [number(0), a, a.scaled(-1)]
                )
            case Call(fn="where"):
                condition, x, y = node.args
                holds = facts.and_also(facts_of(condition))
                fails = facts.and_also(facts_of(call("not", condition)))
                return self._worse(form_of(x), form_of(y), upper, holds, fails, plain, fuel)
            case Call(fn="mod"):
                return self._remainder(node, upper, facts, plain, fuel)
            case Call(fn="hash"):
                return [number(LARGEST if upper else 0)]
            case Call(fn="floordiv"):
                return self._quotient(node, upper, facts, plain, fuel)
            case Call(fn="bitand" | "bitor" | "bitxor"):
                return self._bits(node, upper, facts, fuel)
            case Call(fn="floor_log2"):
                return self._log2(form_of(node.args[0]), upper, facts, fuel)
            case Call(fn="power_of_two"):
                return [] if upper else [number(1)]
            case _:
                return []

    def _worse(
        self,
        a: Form,
        b: Form,
        upper: bool,
        facts_a: Facts,
        facts_b: Facts,
        plain: bool,
        fuel: int,
    ) -> list[Form]:
        """Bounds of whichever of two values is further out."""
        out: list[Form] = []
        for x in self._bounds(a, upper, facts_a, plain, fuel)[:4]:
            for y in self._bounds(b, upper, facts_b, plain, fuel)[:4]:
                high, low = (x, y) if self._nonnegative(x - y, NO_FACTS, fuel) else (y, x)
                if self._nonnegative(high - low, NO_FACTS, fuel):
                    out.append(high if upper else low)
                elif not plain:
                    out.append(form_of(call("maximum" if upper else "minimum", x.node(), y.node())))
        return out

    def _remainder(self, node: Call, upper: bool, facts: Facts, plain: bool, fuel: int) -> list[Form]:
        a, n = (form_of(x) for x in node.args)
        if not self._nonnegative(n.shifted(-1), facts, fuel):
            return []
        if not upper:
            return [number(0)]
        return [n.shifted(-1), a] if self._nonnegative(a, facts, fuel) else [n.shifted(-1)]

    def _quotient(self, node: Call, upper: bool, facts: Facts, plain: bool, fuel: int) -> list[Form]:
        if node is GROUP:
            return [atom(size("H"))] if upper else [number(1)]
        if node.args[1] is GROUP and isinstance(node.args[0], Axis) and node.args[0].name == "h":
            return [atom(size("G")).shifted(-1)] if upper else [number(0)]
        a, n = (form_of(x) for x in node.args)
        if not self._nonnegative(n.shifted(-1), facts, fuel):
            return []
        out: list[Form] = []
        for end in self._bounds(a, upper, facts, plain, fuel)[:4]:
            divided = _divide(end, n)
            if divided is None and not plain and all(is_fixed(x) for x in n.atoms):
                divided = form_of(call("floordiv", end.node(), n.node()))
            if divided is not None:
                out.append(divided)
        if self._nonnegative(a, facts, fuel):
            out.append(a if upper else number(0))
        elif self._nonnegative(a.scaled(-1).shifted(-1), facts, fuel):
            out.append(number(-1) if upper else a)
        elif upper and self._nonnegative(a.scaled(-1), facts, fuel):
            out.append(number(0))
        return out

    def _log2(self, x: Form, upper: bool, facts: Facts, fuel: int) -> list[Form]:
        if not upper:
            return [number(0)]
        return [number(LARGEST_LOG2), x] if self._nonnegative(x, facts, fuel) else [number(LARGEST_LOG2)]

    def _bits(self, node: Call, upper: bool, facts: Facts, fuel: int) -> list[Form]:
        """Bits of two's complement: with a, b >= 0, a & b is at most either, a | b at least either and at most a + b,
        and a ^ b at most a + b; an `and` takes only one of them to be >= 0."""
        sides = [form_of(x) for x in node.args]
        known = [x for x in sides if self._nonnegative(x, facts, fuel)]
        if node.fn == "bitand":
            return known if upper else [number(0)] if known else []
        if len(known) < 2:
            return []
        if upper:
            return [sides[0] + sides[1]]
        return sides if node.fn == "bitor" else [number(0)]


def _divide(form: Form, n: Form) -> Form | None:
    """``form // n`` where that is a polynomial again: n is a number dividing every coefficient but the constant's."""
    if not n.is_constant or n.constant < 1:
        return None
    d = n.constant
    if any(m and c % d for m, c in form.terms):
        return None
    return Form(tuple((m, c // d) for m, c in form.terms if c // d))


def _apply_fact(form: Form, fact: Form, upper: bool) -> Iterator[Form]:
    """Forms further out than `form` by a multiple of `fact` (at least 0) in which one moving part has gone."""
    for moving in fact.atoms:
        if is_fixed(moving):
            continue
        (c, _), (f, _) = form.split(moving), fact.split(moving)
        if not (c.is_constant and f.is_constant and c.constant and f.constant):
            continue
        times, remainder = divmod(c.constant, f.constant)
        factor = -times if upper else times
        if not remainder and factor > 0:
            yield form + fact.scaled(factor if upper else -factor)


def _plainly_nonnegative(form: Form) -> bool:
    """Whether every coefficient is nonnegative once each size is written as 1 + t (``q_start`` as t)."""
    expanded = form
    for a in form.atoms:
        if isinstance(a, Size) and a.name != "q_start":
            expanded = _substitute(expanded, a, atom(a).shifted(1))
    return all(c >= 0 and all(isinstance(a, Size) for a in m) for m, c in expanded.terms)


def _substitute(form: Form, target: Node, by: Form) -> Form:
    total = number(0)
    for monomial, c in form.terms:
        term = number(c)
        for a in monomial:
            term *= by if a is target else atom(a)
        total += term
    return total


def facts_of(condition: Node) -> tuple[Form, ...]:
    """Forms that are at least 0 wherever `condition` holds."""
    out: list[Form] = []
    for c in conjuncts(condition):
        if not (isinstance(c, Call) and c.fn in ("lt", "le", "eq")) or any(a.kind != "i" for a in c.args):
            continue
        a, b = (form_of(x) for x in c.args)
        gap = (b - a).shifted(-1 if c.fn == "lt" else 0)
        out += [gap, *_without_abs(gap)]
        if c.fn == "eq":
            out.append(a - b)
    return tuple(dict.fromkeys(out))[:MOST_FACTS]


def _without_abs(gap: Form) -> Iterable[Form]:
    """``r - |x| >= 0`` says both ``r - x >= 0`` and ``r + x >= 0``."""
    for a in gap.atoms:
        if isinstance(a, Call) and a.fn == "abs":
            factor, rest = gap.split(a)
            if factor.is_constant and factor.constant < 0:
                inner = form_of(a.args[0])
                yield rest + inner.scaled(factor.constant)
                yield rest - inner.scaled(factor.constant)
