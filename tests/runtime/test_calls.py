"""Calls that do not fit their spec end in one diagnostic that says what was declared, what was given and what to do."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

import attnc
from tests.runtime.specs import CAUSAL, qkv

DEMO = """attention demo
const W = 4
size L
tensor slope: f32[H]
tensor rel: [H, L, D]
tensor doc: i32[B, N]
tensor extra: f32[H, 2 * W + 1] = 0 * h
score = dot(q, k) - slope[h] * abs(i - j) + dot(q, rel[h, clamp(i - j, 0, L - 1)]) + extra[h, clamp(i - j, -W, W) + W]
mask = doc[b, i] == doc[b, j]
"""


@pytest.fixture(scope="module")
def op() -> Any:
    return attnc.compile(DEMO, backend="dense")


def good() -> dict[str, Any]:
    q, k, v = qkv(dtype=torch.float32)
    doc = torch.zeros(2, 7, dtype=torch.int32)
    return {"q": q, "k": k, "v": v, "slope": torch.full((4,), 0.5), "rel": torch.ones(4, 3, 8), "doc": doc}


def message(op: Any, **changes: Any) -> str:
    """What the call says with some arguments changed; None removes one."""
    arguments = {n: x for n, x in {**good(), **changes}.items() if x is not None}
    with pytest.raises(attnc.CallError) as caught:
        op(**arguments)
    return str(caught.value)


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "rank of q": (
        {"q": torch.randn(4, 5, 8)},
        """error[E201]: `q` has 3 dimensions, [4, 5, 8]; the spec declares 4, [B, H, M, D]
help: the layout is [batch, heads, length, channels]; add or merge dimensions with unsqueeze or reshape""",
    ),
    "rank of a tensor": (
        {"slope": torch.rand(4, 1)},
        """error[E201]: `slope` has 2 dimensions, [4, 1]; the spec declares 1, f32[H]
 --> <text>:4:8
4 | tensor slope: f32[H]
  |        ^^^^^
help: reshape slope; a dimension of extent 1 broadcasts""",
    ),
    "dtype of q": (
        {"q": torch.zeros(2, 4, 5, 8, dtype=torch.int32)},
        """error[E202]: `q` has dtype torch.int32; attention runs on f16, bf16, f32, f64, f8
help: convert q, k and v, for example q.to(torch.float32)""",
    ),
    "mixed dtypes": (
        {"k": torch.randn(2, 2, 7, 8).half()},
        """error[E202]: `k` has dtype torch.float16; the spec declares [B, G, N, D], so it must be q's, torch.float32
help: pass k.to(torch.float32)""",
    ),
    "dtype of an integer tensor": (
        {"doc": torch.zeros(2, 7, dtype=torch.int64)},
        """error[E202]: `doc` has dtype torch.int64; the spec declares i32[B, N], so it must be torch.int32
 --> <text>:6:8
6 | tensor doc: i32[B, N]
  |        ^^^
help: pass doc.to(torch.int32)""",
    ),
    "device": (
        {"slope": torch.rand(4, device="meta")},
        """error[E203]: `slope` is on meta, but `q` is on cpu
 --> <text>:4:8
4 | tensor slope: f32[H]
  |        ^^^^^
help: pass slope.to(q.device)""",
    ),
    "heads": (
        {"k": torch.randn(2, 3, 7, 8), "v": torch.randn(2, 3, 7, 6)},
        """error[E204]: q has 4 heads and k has 3: query heads must be a multiple of key heads
help: key head g serves query heads g * H / G and following""",
    ),
    "missing tensors": (
        {"slope": None, "doc": None},
        """error[E205]: the tensors `slope`, `doc` are missing: the spec declares slope: f32[H]
 --> <text>:4:8
4 | tensor slope: f32[H]
  |        ^^^^^
help: call op(q, k, v, slope=..., doc=...)""",
    ),
    "misspelt tensor": (
        {"slop": torch.rand(4)},
        """error[E206]: the spec `demo` has no tensor `slop`
help: did you mean `slope`?""",
    ),
    "constant at call time": (
        {"W": 3},
        """error[E206]: the spec `demo` has no tensor `W`
help: `W` is a constant of the spec; set it with attnc.compile(spec, W=...)""",
    ),
    "shape of a tensor": (
        {"slope": torch.rand(5)},
        """error[E207]: `slope` has shape [5]; the spec declares f32[H], here [4]
 --> <text>:4:8
4 | tensor slope: f32[H]
  |        ^^^^^
help: H = 4 comes from dimension 1 of `q`""",
    ),
    "shape of a constant extent": (
        {"extra": torch.zeros(4, 8)},
        """error[E207]: `extra` has shape [4, 8]; the spec declares f32[H, 9], here [4, 9]
 --> <text>:7:8
7 | tensor extra: f32[H, 2 * W + 1] = 0 * h
  |        ^^^^^
help: dimension 1 must be 9""",
    ),
    "length of v": (
        {"v": torch.randn(2, 2, 6, 6)},
        """error[E207]: `v` has shape [2, 2, 6, 6]; the spec declares [B, G, N, E], here [2, 2, 7, 6]
help: N = 7 comes from dimension 2 of `k`""",
    ),
    "q, k and v do not broadcast": (
        {"k": torch.randn(1, 2, 7, 8)},
        """error[E207]: `k` has shape [1, 2, 7, 8]; the spec declares [B, G, N, D], here [2, 2, 7, 8]
help: B = 2 comes from dimension 0 of `q`""",
    ),
    "negative start": (
        {"q_start": -1},
        """error[E208]: q_start = -1 is not a position: it must be an integer >= 0
help: pass the number of keys that come before the first query""",
    ),
    "real start": (
        {"q_start": 1.5},
        """error[E208]: q_start = 1.5 is not a position: it must be an integer >= 0
help: pass the number of keys that come before the first query""",
    ),
    "empty": (
        {"q": torch.randn(2, 4, 0, 8)},
        """error[E209]: `q` is empty: it has shape [2, 4, 0, 8]
help: every dimension needs an extent of at least 1""",
    ),
    "no tensor": (
        {"slope": [1.0, 2.0]},
        """error[E210]: `slope` must be a torch.Tensor of shape f32[H], not list
 --> <text>:4:8
4 | tensor slope: f32[H]
  |        ^^^^^
help: pass torch.as_tensor(slope)""",
    ),
    "sparse": (
        {"slope": torch.rand(4).to_sparse()},
        """error[E210]: `slope` has layout torch.sparse_coo; kernels read strided tensors
 --> <text>:4:8
4 | tensor slope: f32[H]
  |        ^^^^^
help: pass slope.to_dense()""",
    ),
    "relation of sizes": (
        {"q_start": 5},
        """error[E211]: `doc[b, i]` needs M + q_start <= N
 --> <text>:9:8
9 | mask = doc[b, i] == doc[b, j]
  |        ^^^^^^^^^
help: here M = 5, N = 7, q_start = 5""",
    ),
}


@pytest.mark.parametrize(("changes", "expected"), CASES.values(), ids=CASES.keys())
def test_message(op: Any, changes: dict[str, Any], expected: str) -> None:
    found = message(op, **changes)
    assert found == expected
    assert len(found.splitlines()) <= 12


def test_the_good_call_is_good(op: Any) -> None:
    assert op(**good()).shape == (2, 4, 5, 6)


def test_every_code_is_explained() -> None:
    from attnc.diagnostics.catalogue import CATALOGUE

    codes = {expected.split("[")[1].split("]")[0] for _, expected in CASES.values()}
    assert codes <= CATALOGUE.keys()


def test_float64_runs_on_the_cpu_only() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    op = attnc.compile(CAUSAL, backend="dense")
    with FakeTensorMode():
        q = torch.empty(1, 1, 2, 4, dtype=torch.float64, device="cuda")
        with pytest.raises(attnc.CallError, match=r"E203.*float64 runs on the CPU only"):
            op(q, q, q)


def test_no_compiler_frames_in_the_traceback(op: Any) -> None:
    with pytest.raises(attnc.CallError) as caught:
        op(torch.randn(3), 1, 2)
    package = str(Path(attnc.__file__).parent)
    frames = [f.name for f in traceback.extract_tb(caught.value.__traceback__) if f.filename.startswith(package)]
    assert frames == ["__call__"]
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_positions_of_other_integer_types(op: Any) -> None:
    numpy = pytest.importorskip("numpy")
    assert torch.equal(op(**good(), q_start=numpy.int64(1)), op(**good(), q_start=torch.tensor(1)))


def test_extent_one_broadcasts_and_its_gradient_is_summed() -> None:
    op = attnc.compile(DEMO, backend="dense")
    q, k, v = qkv()
    doc = torch.zeros(2, 1, dtype=torch.int32)
    slope = torch.rand(1, dtype=torch.float64, requires_grad=True)
    rel = torch.randn(1, 3, 1, dtype=torch.float64, requires_grad=True)
    whole = [slope.detach().expand(4).clone().requires_grad_(), rel.detach().expand(4, 3, 8).clone().requires_grad_()]
    narrow = torch.autograd.grad(op(q, k, v, slope=slope, rel=rel, doc=doc).sum(), [slope, rel])
    wide = torch.autograd.grad(op(q, k, v, slope=whole[0], rel=whole[1], doc=doc.expand(2, 7)).sum(), whole)
    torch.testing.assert_close(narrow[0], wide[0].sum(0, keepdim=True))
    torch.testing.assert_close(narrow[1], wide[1].sum((0, 2), keepdim=True))
