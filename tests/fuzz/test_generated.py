"""Generated specs: a few hundred, the same ones every time. Long runs: ``python -m tests.fuzz``."""

from __future__ import annotations

import pytest

from attnc.ir.options import REWRITES
from tests.fuzz import check as checking
from tests.fuzz.check import Disagreement, check
from tests.fuzz.search import BATCH, Batch, search
from tests.fuzz.specs import Case

CASE = Case("attention a\nmask = j <= i\n", (("B", 1), ("H", 2), ("G", 1), ("M", 9), ("N", 9), ("D", 2), ("E", 3)))


def explained(batch: Batch) -> str:
    failure = batch.failure
    return "" if failure is None else f"{failure.error}\n\n{failure.case}"


@pytest.mark.parametrize("seed", range(10))
def test_every_way_to_compute_a_spec_agrees(seed: int) -> None:
    batch = search(seed)
    assert not batch.failure, explained(batch)
    assert batch.verdicts.get("agrees", 0) >= 0.8 * sum(batch.verdicts.values()) >= 0.4 * BATCH


def test_compiled_kernels_agree() -> None:
    batch = search(100, ("cpp",), 8)
    assert not batch.failure, explained(batch)


def test_interpreted_triton_agrees() -> None:
    batch = search(200, ("triton",), 5)
    assert not batch.failure, explained(batch)


def test_the_same_seed_draws_the_same_specs(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def remember(case: Case, backends: object) -> str:
        drawn.append(str(case))
        return "agrees"

    monkeypatch.setattr("tests.fuzz.search.check", remember)
    search(3)
    first = list(drawn)
    drawn.clear()
    search(3)
    assert drawn == first
    assert len(set(drawn)) >= BATCH


def test_a_wrong_value_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that forgets masks is caught, and what is left of the spec is little more than a mask."""
    original = checking.run

    def unmasked(program, backend, tensors, seeds, q_start):  # type: ignore[no-untyped-def]
        found = original(program, backend, tensors, seeds, q_start)
        return found if "mask" not in program.lines else type(found)({n: o + 1 for n, o in found.outputs.items()}, {})

    monkeypatch.setattr(checking, "run", unmasked)
    failure = next(f for f in (search(s).failure for s in range(5)) if f is not None)
    assert isinstance(failure.error, Disagreement)
    assert "mask" in failure.case.text
    assert len(failure.case.text.splitlines()) <= 4


def test_refusals_are_told_apart_from_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Case("attention a\nmask = j\n", CASE.sizes)
    assert check(wrong) == "E106"

    def broken(*arguments: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(checking, "compare", broken)
    with pytest.raises(KeyError):
        check(CASE)


def test_a_written_failure_reads_back() -> None:
    case = Case(CASE.text, CASE.sizes, 4, tuple(sorted(REWRITES)))
    again = Case.parse(str(case))
    assert (again.sizes, again.seed, again.disabled) == (case.sizes, 4, case.disabled)
    assert check(again) == "agrees"
