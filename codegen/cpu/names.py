"""C++ names for what a tile program names."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

from attnc.codegen.cpu.sections import defined

_KEYWORDS = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl const constexpr
const_cast continue decltype default delete do double dynamic_cast else enum explicit export extern false float
for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private
protected public register reinterpret_cast return short signed sizeof static static_assert static_cast struct
switch template this thread_local throw true try typedef typeid typename union unsigned using virtual void
volatile wchar_t while xor xor_eq
"""

_OWN = """
W vec ivec uvec wide real integer load store splat mask select strided least most larger round_up positions
infinity lane_numbers take give take_lanes give_lanes inside both Span read_tile write_tile add_tile
transpose_tile rows_of_weights all_above_zero
product Workspace bf16 f16 exp exp2 log log2 sigmoid tanh softplus erf sin cos pow sqrt rsqrt floor floor_real
floordiv mod sign absolute maximum minimum finite_or_zero reciprocal_or_zero to_real narrow widen mantissa turns
tensors strides sizes threads workspace task main int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t
uint64_t f32 f64 dot dots four sum_across largest_across lane unix linux real_division
memory failed tasks blocks rest measure tiles rounded hash unit narrow_bits
floor_log2 power_of_two pairs pack_rows pack_pairs product_of_pairs Tiles registers exp2_of_weight scaled
Left left_operand Ahead next_block next_rows view_tile half Lanes sum_of_lanes largest_of_lanes has_tiles Square
transpose_square product_of_row below equal gather gather_apart larger_of smaller_of
"""

RESERVED = frozenset(_KEYWORDS.split()) | frozenset(_OWN.split())


def identifier(name: str) -> str:
    """`name` as a C++ identifier; primes become ``_prime``."""
    text = re.sub(r"\W", "_", name.replace("'", "_prime"), flags=re.ASCII)
    text = re.sub(r"__+", "_", text).strip("_") or "x"
    return f"x{text}" if text[0].isdigit() else text


class Names:
    """Hands out unique identifiers, one per (family, name)."""

    def __init__(self) -> None:
        self._taken: set[str] = {*RESERVED, *defined()}
        self._given: dict[tuple[str, str], str] = {}

    def get(self, family: str, name: str, wish: str | None = None) -> str:
        """The identifier of `name`; the first request fixes it, as close to `wish` as is free."""
        key = (family, name)
        if key not in self._given:
            self._given[key] = self.fresh(wish or name)
        return self._given[key]

    def fresh(self, wish: str) -> str:
        """An identifier nothing else has."""
        stem = identifier(wish)
        text, count = stem, 1
        while text in self._taken:
            count += 1
            text = f"{stem}_{count}"
        self._taken.add(text)
        return text

    @contextmanager
    def scope(self) -> Generator[None]:
        """A block of C++: names first given inside it are free again after it."""
        before = set(self._taken)
        yield
        self._taken = before
