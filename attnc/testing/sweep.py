"""The cases of ``attnc verify`` and of the differential tests: shapes that leave nothing aligned, one call each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attnc.ir.program import Program
from attnc.testing.compare import Agreement, Op, agreements
from attnc.testing.inputs import complete_sizes, make_inputs, relations_hold

if TYPE_CHECKING:
    import torch

LENGTHS = (1, 7, 63, 257)


@dataclass(frozen=True, slots=True)
class Case:
    """One call: its sizes and the layout of its inputs."""

    sizes: dict[str, int]
    contiguous: bool

    @property
    def label(self) -> str:
        s = self.sizes
        heads = f"H{s['H']}" if s["H"] == s["G"] else f"H{s['H']}/{s['G']}"
        return f"{heads} M{s['M']} N{s['N']} D{s['D']}/{s['E']}" + ("" if self.contiguous else " strided")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case: rows of comparisons, or the problem that kept it from running."""

    case: Case
    rows: list[Agreement] = field(default_factory=list)
    problem: str | None = None

    @property
    def agrees(self) -> bool:
        return self.problem is None and all(r.agrees for r in self.rows)

    @property
    def worst(self) -> float:
        """The largest error as a fraction of what is allowed."""
        return max((r.error / r.limit if r.limit else float(r.error > 0) for r in self.rows), default=0.0)


def cases(program: Program, lengths: Sequence[int] = LENGTHS, *, full: bool = True) -> Iterator[Case]:
    """For every length a square case; grouped heads and strided inputs take turns. Then M unlike N.

    Equal and unequal channels take turns too if `full`; kernels are compiled for their channels, and otherwise all
    cases have the same. A spec that relates M to N keeps only the cases its relation allows.
    """
    for k, n in enumerate(lengths):
        wide = 16 if full and k % 2 == 0 else 24
        base = {"B": 2 if n < 100 else 1, "H": 4, "G": (4, 2, 1)[k % 3], "M": n, "N": n, "D": 16, "E": wide}
        yield Case(complete_sizes(program, base), contiguous=k % 2 == 0)
    longest = max(lengths)
    for m, n in ((max(1, longest // 9), longest), (longest, max(1, longest // 5))):
        sizes = complete_sizes(program, {"B": 1, "H": 2, "G": 2, "N": n, "D": 16, "E": 16 if full else 24}) | {"M": m}
        if relations_hold(program, sizes) and m != n:
            yield Case(sizes, contiguous=False)


def attempt(op: Op, case: Case, dtype: torch.dtype, *, device: str = "cpu", backward: bool = True) -> Outcome:
    """Run one case; what goes wrong is recorded, not raised."""
    try:
        tensors: dict[str, Any] = make_inputs(op.program, case.sizes, dtype, device=device, contiguous=case.contiguous)
        return Outcome(case, agreements(op, tensors, q_start=case.sizes["q_start"], backward=backward))
    except Exception as problem:  # every failure of one case is a result of the sweep
        first = (str(problem).strip().splitlines() or [""])[0]
        return Outcome(case, problem=f"{type(problem).__name__}: {first}")
