"""Specs as text for the tests of the lowering, and their values through the dense evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attnc.diagnostics.diagnostic import Diagnostic, SpecError
from attnc.diagnostics.source import Source
from attnc.grammar.parser import parse
from attnc.ir.dense import evaluate, with_defaults
from attnc.ir.program import Program
from attnc.lowering import lower_with_warnings

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def lowered(
    body: str, consts: Mapping[str, float | int] | None = None, *, provided: frozenset[str] | None = None
) -> Program:
    """The program of a spec, given without or with its first line; nothing in it may be worth a warning."""
    program, warnings = with_warnings(body, consts, provided=provided)
    assert not warnings
    return program


def with_warnings(
    body: str, consts: Mapping[str, float | int] | None = None, *, provided: frozenset[str] | None = None
) -> tuple[Program, list[Diagnostic]]:
    source = Source("spec.attn", body if body.startswith("attention") else "attention test\n" + body)
    return lower_with_warnings(parse(source).definitions[0], source, consts, provided=provided)


def mistakes(body: str, consts: Mapping[str, float | int] | None = None) -> list[Diagnostic]:
    """What lowering the spec reports."""
    with pytest.raises(SpecError) as raised:
        with_warnings(body, consts)
    return raised.value.diagnostics


def codes(body: str) -> list[str]:
    return [d.code for d in mistakes(body)]


def example(name: str) -> str:
    return (EXAMPLES / f"{name}.attn").read_text(encoding="utf-8")


class Call:
    """Seeded float64 operands: q [B, H, M, D], k [B, G, N, D], v [B, G, N, E]."""

    def __init__(self, B: int = 2, H: int = 4, G: int = 2, M: int = 5, N: int = 7, D: int = 6, E: int = 3) -> None:
        self.sizes = {"B": B, "H": H, "G": G, "M": M, "N": N, "D": D, "E": E}
        self.generator = torch.Generator().manual_seed(7)
        self.q, self.k, self.v = self.normal(B, H, M, D), self.normal(B, G, N, D), self.normal(B, G, N, E)
        self.kh, self.vh = (x.repeat_interleave(H // G, 1) for x in (self.k, self.v))
        self.i = torch.arange(M, dtype=torch.float64)[:, None]
        self.j = torch.arange(N, dtype=torch.float64)[None, :]
        self.s = self.q @ self.kh.transpose(-1, -2) / D**0.5

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def run(
        self,
        body: str,
        consts: Mapping[str, float | int] | None = None,
        *,
        q_start: int = 0,
        provided: frozenset[str] | None = None,
        **tensors: Tensor,
    ) -> dict[str, Tensor]:
        """Every output of the spec on these operands."""
        program = lowered(body, consts, provided=provided)
        given = {"q": self.q, "k": self.k, "v": self.v, **tensors}
        sizes = {b.name: given[b.tensor].shape[b.dim] for b in program.sizes} | {"q_start": q_start}
        return evaluate(program, with_defaults(program, given, sizes), sizes)

    def close(self, body: str, expected: Tensor, output: str = "o", **options: object) -> None:
        """Assert that an output of the spec equals a formula."""
        found = self.run(body, **options)[output]  # type: ignore[arg-type]
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
