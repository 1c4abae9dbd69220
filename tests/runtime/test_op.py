"""The op object: how it is made, chosen, shown, copied."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import attnc
from tests.runtime.specs import ALIBI, CAUSAL, SINKS, WATCHED, qkv, textbook


def test_text_and_path_mean_the_same(tmp_path: Path) -> None:
    path = tmp_path / "causal.attn"
    path.write_text(CAUSAL)
    inputs = qkv()
    from_text = attnc.compile(CAUSAL, backend="dense")(*inputs)
    assert torch.equal(from_text, attnc.compile(path, backend="dense")(*inputs))
    assert torch.equal(from_text, attnc.compile(str(path), backend="dense")(*inputs))


def test_one_line_of_text() -> None:
    assert attnc.compile("attention plain", backend="dense").name == "plain"


def test_a_missing_file_is_a_diagnostic() -> None:
    with pytest.raises(attnc.SpecError, match="E301"):
        attnc.compile("nowhere.attn")


def test_several_definitions() -> None:
    both = CAUSAL + ALIBI
    assert attnc.compile(both, name="alibi").name == "alibi"
    with pytest.raises(attnc.SpecError, match="holds 2 definitions: causal, alibi"):
        attnc.compile(both)
    with pytest.raises(attnc.SpecError, match="did you mean `causal`"):
        attnc.compile(both, name="casual")


def test_unknown_backend() -> None:
    with pytest.raises(attnc.CallError, match="did you mean `cpp`"):
        attnc.compile(CAUSAL, backend="cp")


@pytest.mark.skipif("sys.platform != 'linux'", reason="Triton is for Linux")
def test_triton_refuses_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    unseen = "attention unseen\nmask = j <= i + 17\n"  # no other test has it ready to run
    with pytest.raises(attnc.CallError, match="the backend triton runs on CUDA devices"):
        attnc.compile(unseen, backend="triton")(*qkv(dtype=torch.float32))


def test_the_environment_chooses_where_the_call_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNC_BACKEND", "dense")
    assert attnc.compile(CAUSAL).backend == "dense"
    assert attnc.compile(CAUSAL, backend="tiled").backend == "tiled"


def test_constants_are_overridden() -> None:
    q, k, v = qkv(m=7)
    sink = torch.full((4,), -torch.inf, dtype=torch.float64)
    wide = attnc.compile(SINKS, backend="dense", window=100)(q, k, v, sink=sink)
    torch.testing.assert_close(wide, textbook(q, k, v))
    assert not torch.allclose(wide, attnc.compile(SINKS, backend="dense", window=2)(q, k, v, sink=sink))


def test_optional_tensors_default() -> None:
    op = attnc.compile(ALIBI, backend="dense")
    q, k, v = qkv()
    slope = 2 ** (-8 * (torch.arange(4, dtype=torch.float64) + 1) / 4)
    torch.testing.assert_close(op(q, k, v), op(q, k, v, slope=slope))
    torch.testing.assert_close(op(q, k, v), textbook(q, k, v, slope))


def test_observations() -> None:
    op = attnc.compile(WATCHED, backend="dense")
    q, k, v = qkv()
    o, seen = op(q, k, v, observe=True)
    assert torch.equal(o, op(q, k, v))
    assert list(seen) == ["entropy", "importance"]
    assert seen["entropy"].shape == (2, 4, 5)
    assert seen["importance"].shape == (2, 4, 7)
    torch.testing.assert_close(seen["importance"].sum(-1), torch.full((2, 4), 5.0, dtype=torch.float64))
    plain = attnc.compile(CAUSAL, backend="dense")
    assert plain(q, k, v, observe=True)[1] == {}


def test_reference_is_the_formula() -> None:
    op = attnc.compile(ALIBI)
    q, k, v = qkv(dtype=torch.float32)
    slope = torch.rand(4)
    found = op.reference(q, k, v, slope=slope, q_start=2)
    assert found.dtype is torch.float64
    expected = textbook(q.double(), k.double(), v.double(), slope.double(), q_start=2)
    torch.testing.assert_close(found, expected)


def test_repr_names_the_spec() -> None:
    op = attnc.compile(SINKS, backend="dense", window=3)
    assert repr(op) == "<attnc op sinks from <text>, window=3, backend dense>"


def test_pickle_and_copy() -> None:
    op = attnc.compile(SINKS, backend="dense", window=3)
    inputs = qkv()
    sink = torch.rand(4)
    assert copy.deepcopy(op) is op
    again = pickle.loads(pickle.dumps(op))
    assert torch.equal(again(*inputs, sink=sink), op(*inputs, sink=sink))


def test_compiling_twice_shares_the_custom_op() -> None:
    first, second = (attnc.compile(CAUSAL, backend="dense").variant().computation for _ in range(2))
    assert first is second


def test_sources_and_explanation() -> None:
    op = attnc.compile(ALIBI)
    assert "float" in op.source("cpp")
    assert "@triton.jit" in op.source("triton")
    assert "forward: 1 pass" in op.explain()
    assert "backward: 2 passes" in op.explain()
    for ask in (op.explain, op.source):
        with pytest.raises(attnc.CallError, match=r"E221.*`float32`"):
            ask(dtype="float32")


def test_importing_attnc_loads_nothing_heavy() -> None:
    program = "import sys, attnc; print([m for m in ('torch', 'sympy', 'triton', 'numpy', 'lark') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
