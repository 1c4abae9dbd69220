"""Python names for what a tile program names."""

from __future__ import annotations

import keyword
import re

RESERVED = frozenset({"tl", "triton", "range", "float", "pid", "batch"})


def identifier(name: str) -> str:
    """`name` as a Python identifier; primes become ``_prime``."""
    text = re.sub(r"\W", "_", name.replace("'", "_prime"))
    if not text or text[0].isdigit():
        text = "_" + text
    return text + "_" if keyword.iskeyword(text) else text


class Names:
    """Hands out unique identifiers, one per (family, name)."""

    def __init__(self, reserved: frozenset[str]) -> None:
        self._taken: set[str] = set(RESERVED | reserved)
        self._given: dict[tuple[str, str], str] = {}

    def get(self, family: str, name: str, wish: str | None = None) -> str:
        """The identifier of `name`; the first request fixes it, as close to `wish` as is free."""
        key = (family, name)
        if key not in self._given:
            stem = identifier(wish or name)
            text, count = stem, 1
            while text in self._taken:
                count += 1
                text = f"{stem}_{count}"
            self._taken.add(text)
            self._given[key] = text
        return self._given[key]

    def fresh(self, wish: str) -> str:
        """An identifier that belongs to nothing yet."""
        return self.get("fresh", str(len(self._given)), wish)
