"""The numeric check passes what is right and catches what is wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import attnc
from attnc.testing import compare
from attnc.testing.inputs import complete_sizes, make_inputs, relations_hold
from attnc.testing.sweep import attempt, cases
from attnc.testing.timing import interleaved, spell

ALIBI = """attention alibi
tensor slope: f32[H] = 2 ** (-8 * (h + 1) / H)
bias = -slope[h] * (i - j)
mask = j <= i
"""


def rows(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Any, dtype: torch.dtype = torch.float32, backend: Any = "dense"
) -> dict[str, compare.Agreement]:
    """Agreements of an op one of whose results is changed."""
    op = attnc.compile(ALIBI, backend=backend)
    tensors = make_inputs(op.program, complete_sizes(op.program, {"N": 33, "H": 2, "D": 8}), dtype)
    honest = compare.run_op

    def changed(*given: Any, **rest: Any) -> compare.Results:
        got = honest(*given, **rest)
        outputs = {n: change(o) if n == name else o for n, o in got.outputs.items()}
        return compare.Results(outputs, {n: change(g) if f"d{n}" == name else g for n, g in got.gradients.items()})

    monkeypatch.setattr(compare, "run_op", changed)
    return {r.label: r for r in compare.agreements(op, tensors)}


def test_an_honest_op_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(monkeypatch, "nothing", lambda x: x)
    assert set(found) == {"o", "dq", "dk", "dv", "dslope"}
    assert all(r.agrees for r in found.values())


@pytest.mark.parametrize("name", ["o", "dq", "dk", "dv", "dslope"])
def test_one_wrong_part_in_ten_thousand_is_seen(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = rows(monkeypatch, name, lambda x: x * 1.0001)
    assert [n for n, r in found.items() if not r.agrees] == [name]


def test_results_in_double_precision_are_held_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is no more exact than they are; errors of some roundings are seen nevertheless."""
    assert all(r.agrees for r in rows(monkeypatch, "nothing", lambda x: x, torch.float64, "cpp").values())
    found = rows(monkeypatch, "dk", lambda x: x * (1 + 1e-13), torch.float64, "cpp")
    assert [n for n, r in found.items() if not r.agrees] == ["dk"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_seen(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    def spoil(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x.view(-1)[3] = value
        return x

    assert not rows(monkeypatch, "dk", spoil)["dk"].agrees


def test_inputs_are_reproducible_and_may_be_strided() -> None:
    program = attnc.compile(ALIBI, backend="dense").program
    sizes = complete_sizes(program, {"N": 9})
    plain = make_inputs(program, sizes, torch.bfloat16)
    strided = make_inputs(program, sizes, torch.bfloat16, contiguous=False)
    assert all(torch.equal(plain[n], strided[n]) for n in plain)
    assert all(t.is_contiguous() for t in plain.values())
    assert not any(t.is_contiguous() for t in strided.values())
    torch.testing.assert_close(plain["slope"], 2 ** (-8 * torch.arange(1, 5) / 4))


def test_integers_are_ascending_documents() -> None:
    op = attnc.compile("attention a\ntensor doc: i32[B, N]\nmask = doc[b, i] == doc[b, j]\n", backend="dense")
    sizes = complete_sizes(op.program, {"B": 2, "N": 50})
    doc = make_inputs(op.program, sizes, torch.float32)["doc"]
    assert doc.dtype is torch.int32
    assert bool((doc.diff(dim=1) >= 0).all())
    assert not relations_hold(op.program, sizes | {"M": 51})
    assert complete_sizes(op.program, {"M": 60, "N": 50})["M"] == 50


def test_a_case_that_fails_is_recorded() -> None:
    op = attnc.compile(ALIBI, backend="dense")
    case = next(iter(cases(op.program, (5,))))
    case.sizes["G"] = 3
    assert "CallError" in (attempt(op, case, torch.float32).problem or "")


def test_timing_takes_turns() -> None:
    order: list[str] = []
    found = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert "".join(order) == "ab" + "ababab"
    assert found["a"].rounds == 3
    assert found["a"].low <= found["a"].median <= found["a"].high


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.5e-6, "4.5 us"), (3e-8, "30 ns")]
)
def test_durations_are_spelt(seconds: float, text: str) -> None:
    assert spell(seconds) == text
