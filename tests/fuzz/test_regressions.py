"""Specs that once failed, each made small: with every rewrite off in turn, and on every backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnc.ir.options import REWRITES
from tests.fuzz.check import check
from tests.fuzz.specs import Case

FILES = sorted((Path(__file__).parent / "regressions").glob("*.attn"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_values(path: Path) -> None:
    case = Case.parse(path.read_text())
    assert check(case, ("tiled",), [(), case.disabled, tuple(REWRITES)]) == "agrees"


@pytest.mark.sweep
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_values_without_each_rewrite(path: Path) -> None:
    assert check(Case.parse(path.read_text()), ("tiled",), [(name,) for name in REWRITES]) == "agrees"


@pytest.mark.parametrize("backend", ["cpp", "triton"])
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_kernels(path: Path, backend: str) -> None:
    assert check(Case.parse(path.read_text()), (backend,)) == "agrees"
