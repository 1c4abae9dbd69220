"""Interval analysis of index expressions and masks over a tile: a range of query positions times a range of key
positions.

A number is bounded by a least and a greatest value, a mask by whether any and whether all pairs of the tile are
allowed. Each rule is written once, over an `Arithmetic`: on tensors it classifies many tiles at a time, on z3's
integers it is proved. Besides bounds the rules carry witnesses: where both ends of an interval are values that occur, a
comparison that may hold does hold somewhere, so a tile is known to be neither empty nor full without looking at its
pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

Number = Any
"""A value of an `Arithmetic`, or a Python number."""
Flag = Any
"""A truth value of an `Arithmetic`, or a Python bool."""


class Arithmetic(Protocol):
    """What the rules need of numbers besides ``+ - * <= < ==``."""

    def minimum(self, a: Number, b: Number) -> Number: ...
    def maximum(self, a: Number, b: Number) -> Number: ...
    def where(self, c: Flag, a: Number, b: Number) -> Number: ...
    def floordiv(self, a: Number, b: Number) -> Number: ...
    def common_bits(self, low: Number, high: Number) -> tuple[Number, Number]:
        """For ``low <= high`` of the same sign: the leading bits that all numbers between have in common, with zeros
        and with ones for the rest."""
        ...

    def bitand(self, a: Number, b: Number) -> Number: ...
    def bitor(self, a: Number, b: Number) -> Number: ...
    def bitxor(self, a: Number, b: Number) -> Number: ...
    def floor_log2(self, a: Number) -> Number:
        """The number of the highest set bit; 0 for numbers below 1."""
        ...

    def power_of_two(self, a: Number) -> Number:
        """``2 ** a``; 1 for negative numbers."""
        ...

    def both(self, a: Flag, b: Flag) -> Flag: ...
    def either(self, a: Flag, b: Flag) -> Flag: ...
    def no(self, a: Flag) -> Flag: ...
    def always(self, a: Flag) -> bool:
        """Whether a flag is True everywhere."""
        ...

    def real(self, name: str, a: Number) -> Number:
        """A function of one real, by its name in the IR."""
        ...

    def ends(self, low: Number, high: Number) -> tuple[Number, Number]:
        """The ends of an interval of reals, where an end that is no number bounds nothing."""
        ...


@dataclass(slots=True)
class Interval:
    """Values of an expression over a tile.

    Attributes:
        low, high: no value lies outside.
        attained: both ends are values at some pair.
        solid: every integer between the ends is a value at some pair.
        space: what the tensors run over; used by whoever walks.
    """

    low: Number
    high: Number
    attained: Flag = False
    solid: Flag = False
    space: int = 0


@dataclass(slots=True)
class Truth:
    """Values of a condition over a tile.

    Attributes:
        may: False where no pair fulfils it.
        every: True where all pairs do.
        some, lacking: True where a pair that fulfils it, or one that does not, is known to exist.
        space: as in `Interval`.
    """

    may: Flag
    every: Flag
    some: Flag = False
    lacking: Flag = False
    space: int = 0


UNKNOWN = Truth(True, False)
