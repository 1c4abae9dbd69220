"""What a caller may ask of the optimiser. Options travel with the program, so that every pass sees them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from attnc.diagnostics.diagnostic import Diagnostic, SpecError

REWRITES = {
    "online": "reductions that can follow a running maximum share its loop",
    "reuse": "the gradient reads reductions that the forward saved",
    "expand": "sums are multiplied out where their parts can follow online",
    "group": "the query heads of a key head are summed inside one kernel",
    "scan": "causal sums whose weights separate carry a state instead of visiting all pairs",
    "bounds": "loops run over the blocks that the mask leaves, and full blocks do not evaluate it",
}
"""Rewrites that can be turned off, each with what it does. Results are the same without any of them."""


@dataclass(frozen=True, slots=True)
class Options:
    """Choices of the caller.

    Attributes:
        disabled: names of rewrites, keys of `REWRITES`, that are not applied.
    """

    disabled: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """The same text for the same options, in every process."""
        return ",".join(sorted(self.disabled))

    def applies(self, rewrite: str) -> bool:
        """Whether a rewrite is on."""
        assert rewrite in REWRITES, rewrite
        return rewrite not in self.disabled


DEFAULT = Options()


def options(disable: str | Iterable[str] = ()) -> Options:
    """Options from what a caller gives.

    Args:
        disable: one name of `REWRITES`, or several.

    Raises:
        SpecError: E320, if there is no such rewrite.
    """
    names = (disable,) if isinstance(disable, str) else tuple(disable)
    for name in names:
        if name not in REWRITES:
            close = difflib.get_close_matches(str(name), REWRITES, 1)
            remedy = f"did you mean `{close[0]}`?" if close else f"choose from {', '.join(REWRITES)}"
            raise SpecError([Diagnostic("E320", f"there is no rewrite `{name}` to disable", remedy=remedy)])
    return Options(frozenset(names))
