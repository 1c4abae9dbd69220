"""What a caller may ask of the optimiser. Options travel with the program, so that every pass sees them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

from attnc.diagnostics.diagnostic import Diagnostic, SpecError

REWRITES = {
    "online": "reductions that can follow a running maximum share its loop",
    "reuse": "the gradient reads reductions that the forward saved",
    "balance": "row terms of gradients are made to cancel where their rounding would add up",
    "expand": "sums are multiplied out where their parts can follow online",
    "group": "the query heads of a key head are summed inside one kernel",
    "separate": "a bias that is a sum of products of one position each becomes factors where that costs less",
    "toeplitz": "costly values that depend on the distance of two positions alone are computed once per distance",
    "tables": "products with rows of a table that both positions choose are computed once per row, not once per pair",
    "scan": "causal sums whose weights separate carry a state instead of visiting all pairs",
    "bounds": "loops run over the blocks that the mask leaves, and full blocks do not evaluate it",
    "split": "few queries share out the keys: parts of a loop run side by side, and a second kernel merges them",
    "fuse": "two passes of a gradient over the same pairs are one where programs run in order, as on CPUs",
    "runs": "masks without such bounds are planned at launch: loops follow a table of the runs of blocks they leave",
}
"""Rewrites that can be turned off, each with what it does. Results are the same without any of them."""


BiasForm = Literal["auto", "registers", "factors", "dense"]
BIAS_FORMS: dict[BiasForm, str] = {
    "auto": "what the cost model finds cheapest on the device",
    "registers": "computed for each pair of positions where it is used",
    "factors": "a product of factors of one position each, as further channels of the score",
    "dense": "computed first as a tensor of both positions, and loaded",
}
"""How a bias can be computed."""

Rank = int | Literal["auto"] | None


@dataclass(frozen=True, slots=True)
class Options:
    """Choices of the caller.

    Attributes:
        disabled: names of rewrites, keys of `REWRITES`, that are not applied.
        bias: how a bias is computed, a key of `BIAS_FORMS`.
        rank: channels of the factors that stand for a bias with no exact ones; None: it has no factors.
        rtol: with rank ``"auto"``, the relative error in the Frobenius norm that they may have in each head.
        deterministic: whether gradients of gathered tensors are the same bits on every run, also on GPUs.
        tf32: whether GPUs may round to TF32 what they multiply in products of f32 queries, keys and values.
    """

    disabled: frozenset[str] = frozenset()
    bias: BiasForm = "auto"
    rank: Rank = None
    rtol: float = 1e-3
    deterministic: bool = True
    tf32: bool = False

    @property
    def key(self) -> str:
        """The same text for the same options, in every process."""
        exact = f"{self.deterministic};{self.tf32}"
        return f"{','.join(sorted(self.disabled))};{self.bias};{self.rank};{self.rtol!r};{exact}"

    def applies(self, rewrite: str) -> bool:
        """Whether a rewrite is on."""
        assert rewrite in REWRITES, rewrite
        return rewrite not in self.disabled


DEFAULT = Options()


def options(
    disable: str | Iterable[str] = (),
    bias: str = "auto",
    rank: int | str | None = None,
    rtol: float = 1e-3,
    deterministic: bool = True,
    tf32: bool = False,
) -> Options:
    """Options from what a caller gives.

    Args:
        disable: one name of `REWRITES`, or several.
        bias: a name of `BIAS_FORMS`.
        rank: a number of channels, or ``"auto"``.
        rtol: a relative error between 0 and 1.
        deterministic, tf32: see `Options`.

    Raises:
        SpecError: E320, if there is no such rewrite; E330 or E332, if the bias, rank or error is none that can be asked
            for.
    """
    names = (disable,) if isinstance(disable, str) else tuple(disable)
    for name in names:
        if name not in REWRITES:
            raise _unknown("E320", f"there is no rewrite `{name}` to disable", name, REWRITES)
    if bias not in BIAS_FORMS:
        raise _unknown("E330", f"there is no way `{bias}` to compute a bias", bias, BIAS_FORMS)
    whole = isinstance(rank, int) and not isinstance(rank, bool)
    if not (rank is None or rank == "auto" or (whole and cast("int", rank) >= 1)):
        remedy = 'give a number of channels of at least 1, or rank="auto"'
        raise SpecError([Diagnostic("E332", f"rank = {rank!r} is no rank", remedy=remedy)])
    if not (isinstance(cast("object", rtol), float | int) and 0 < rtol < 1):
        remedy = "give the relative error the factors may have, for example rtol=1e-3"
        raise SpecError([Diagnostic("E332", f"rtol = {rtol!r} is no tolerance between 0 and 1", remedy=remedy)])
    if rank is not None and bias in ("registers", "dense"):
        message = f"a rank asks for factors, and bias = {bias!r} rules them out"
        raise SpecError([Diagnostic("E332", message, remedy="leave out one of the two")])
    return Options(frozenset(names), bias, cast("Rank", rank), float(rtol), bool(deterministic), bool(tf32))


def _unknown(code: str, message: str, name: object, known: Iterable[str]) -> SpecError:
    close = difflib.get_close_matches(str(name), known, 1)
    remedy = f"did you mean `{close[0]}`?" if close else f"choose from {', '.join(known)}"
    return SpecError([Diagnostic(code, message, remedy=remedy)])
