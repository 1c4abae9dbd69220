"""Printed expressions: code with the lanes it is spread over and how tightly it binds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

COMPARE, OR, AND, SUM, FLOOR, TERM, SIGN, ATOM = range(1, 9)


@dataclass(frozen=True, slots=True)
class Text:
    """`code` has one dimension per entry of `axes`, in layout order; a scalar has none."""

    code: str
    axes: tuple[str, ...] = ()
    binds: int = ATOM

    def within(self, strength: int) -> str:
        """The code, bracketed if it binds less tightly than `strength`."""
        return self.code if self.binds >= strength else f"({self.code})"

    def rated(self, binds: int) -> Text:
        return Text(self.code, self.axes, binds)


class Layout:
    """The order of lanes, and what follows from it."""

    def __init__(self, order: Sequence[str]) -> None:
        self.order = tuple(order)

    def sort(self, axes: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(set(axes), key=self.order.index))

    def union(self, texts: Iterable[Text]) -> tuple[str, ...]:
        return self.sort(a for t in texts for a in t.axes)

    def spread(self, text: Text, axes: tuple[str, ...]) -> Text:
        """`text` with a dimension of length 1 for every axis it lacks; scalars broadcast as they are."""
        if not text.axes or text.axes == axes:
            return text
        subscript = ", ".join(":" if a in text.axes else "None" for a in axes)
        return Text(f"{text.within(ATOM)}[{subscript}]", axes)

    def call(self, function: str, *args: Text) -> Text:
        axes = self.union(args)
        return Text(f"{function}({', '.join(self.spread(a, axes).code for a in args)})", axes)

    def infix(self, operator: str, parts: Sequence[Text], binds: int) -> Text:
        """Parts joined by an operator; all but the first are bracketed unless they bind more tightly."""
        if len(parts) == 1:
            return parts[0]
        axes = self.union(parts)
        first, *rest = (self.spread(p, axes) for p in parts)
        codes = [first.within(binds), *(p.within(binds + 1) for p in rest)]
        return Text(f" {operator} ".join(codes), axes, binds)


def number(value: float | int | bool) -> Text:
    """A literal. Reals are limited to what f32 holds, so that no f64 constant widens a computation."""
    if isinstance(value, bool | int):
        return Text(repr(value), binds=ATOM if value >= 0 else SIGN)
    if value != value or abs(value) > 3.4028234e38:
        return Text('float("nan")' if value != value else 'float("inf")' if value > 0 else 'float("-inf")')
    if abs(value) < 1.1754944e-38:
        value = 0.0
    return Text(repr(float(value)), binds=ATOM if value >= 0 else SIGN)
