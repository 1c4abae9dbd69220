"""Kernels that follow tables of runs: values and gradients, when tables are made, and how long they are kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attnc
from attnc import driver
from attnc.codegen.triton.printer import print_module
from attnc.runtime import planner, runs
from attnc.runtime.planner import Table
from attnc.runtime.tiles import Mask
from attnc.runtime.triton_aot import aot
from attnc.testing.compare import dense, output_seeds, run_op
from attnc.testing.inputs import complete_sizes, make_inputs
from tests.masks import FAMILIES

DOCUMENTS = "attention packed\ntensor doc: i32[B, N]\nmask = j <= i and doc[b, i] == doc[b, j]\n"
NEIGHBOURS = f"attention near\n{FAMILIES['neighbourhood 2-D, wrapped'].text}\n"  # a table without ranges
PER_HEAD = "attention per_head\ntensor reach: i32[H]\nmask = abs(i - j) < reach[h] and i & 21 == j & 21\n"
DENSE = DOCUMENTS.replace("j <= i", "allowed[i, j]").replace("mask", "tensor allowed: bool[M, N]\nmask")
OPAQUE = DENSE.replace("allowed[i, j]", "allowed[i, j // 2]")
PEAK = DOCUMENTS + "observe peak = max[j](s)\n"
OVER_QUERIES = DOCUMENTS + "normaliser = softmax(axis = i)\n"


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Mask]]:
    """Every mask a table is made for, however short the call; nothing is kept from before."""
    made: list[Mask] = []

    def recorded(mask: Mask, blocks: tuple[int, int]) -> Table:
        made.append(mask)
        return planner.plan(mask, blocks)

    monkeypatch.setattr(runs, "WORTH", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr(runs, "plan", recorded)
    monkeypatch.setattr(runs, "_tables", type(runs._tables)())
    yield made


def wrong(
    spec: str, backend: str, dtype: torch.dtype, sizes: dict[str, int], disable: tuple[str, ...] = ()
) -> list[str]:
    """Outputs and gradients that differ from the dense evaluator's."""
    op = attnc.compile(spec, backend=backend, disable=disable)
    complete = complete_sizes(op.program, {"B": 2, "H": 4, "G": 2, "D": 8, "E": 6, **sizes})
    tensors = make_inputs(op.program, complete, dtype)
    if "reach" in tensors:
        tensors["reach"] = torch.tensor([0, 3, 40, 90], dtype=torch.int32)
    seeds = output_seeds(op.program, tensors)
    found, exact = run_op(op, tensors, seeds), dense(op.program, tensors, seeds, torch.float64)
    limit = 1e-9 if dtype is torch.float64 else 2e-5
    bad = []
    for got, values in ((found.outputs, exact.outputs), (found.gradients, exact.gradients)):
        bad += [n for n, v in values.items() if not (got[n] - v).abs().max() <= limit * max(1.0, float(v.abs().max()))]
    return bad


LONG = {"M": 170, "N": 200, "q_start": 13}
GRID = {"M": 260, "N": 260}


@pytest.mark.parametrize("backend", ["tiled", "cpp"])
@pytest.mark.parametrize("spec", [DOCUMENTS, NEIGHBOURS, PER_HEAD, PEAK, OVER_QUERIES, DENSE])
def test_values(spec: str, backend: str, planned: list[Mask]) -> None:
    grid = spec is NEIGHBOURS
    assert not wrong(spec, backend, torch.float64, GRID if grid else LONG, disable=("bounds",) if grid else ())
    assert {m.inner for m in planned} == {"i", "j"}


def test_what_cannot_be_analysed_is_guarded_everywhere(planned: list[Mask]) -> None:
    assert not wrong(OPAQUE, "tiled", torch.float64, LONG)
    assert planned
    assert not any(m.whole for m in planned)


@pytest.mark.parametrize("sizes", [{"M": 1, "N": 1}, {"M": 7, "N": 7}, {"M": 63, "N": 257}, {"M": 65, "N": 64}])
def test_odd_lengths(sizes: dict[str, int], planned: list[Mask]) -> None:
    assert not wrong(PER_HEAD, "cpp", torch.float32, sizes)


@pytest.mark.parametrize("name", ["causal", "window", "prefix", "block diagonal", "lengths"])
def test_closed_masks_from_tables_too(name: str, planned: list[Mask]) -> None:
    assert not wrong(f"attention closed\n{FAMILIES[name].text}\n", "cpp", torch.float64, LONG, ("bounds",))
    assert planned


def test_without_tables(planned: list[Mask]) -> None:
    assert not wrong(DOCUMENTS, "cpp", torch.float64, LONG, ("runs",))
    assert not planned


@pytest.mark.parametrize("spec", [DOCUMENTS, PER_HEAD])
def test_triton_interpreted(spec: str, planned: list[Mask]) -> None:
    program = attnc.compile(spec).program
    kernel = driver.all_kernels(program, "f32", 16)[0]
    assert kernel.runs is not None
    op = attnc.compile(spec, backend="tiled")
    sizes = complete_sizes(program, {"B": 2, "H": 4, "G": 2, "M": 130, "N": 150, "D": 16, "E": 16, "q_start": 5})
    tensors = make_inputs(program, sizes, torch.float32)
    if "reach" in tensors:
        tensors["reach"] = torch.tensor([0, 3, 40, 90], dtype=torch.int32)
    from attnc.runtime.triton_backend import TritonKernel

    launch = runs.Planned(kernel, kernel.runs, TritonKernel(kernel, print_module([kernel])))
    stored = {"o": torch.full((2, 4, 130, 16), torch.nan), "lse": torch.full((2, 4, 130), torch.nan)}
    launch([tensors.get(a.name, stored.get(a.name)) for a in runs.operands(kernel)], sizes)  # type: ignore[misc]
    given: dict[str, Any] = {"q_start": 5, **tensors}
    expected = op(**given)
    torch.testing.assert_close(stored["o"], expected, atol=2e-6, rtol=1e-5)
    assert len(planned) == 2  # in blocks of 64 and of 256 positions


def test_triton_compiled(tmp_path: Path) -> None:
    kernel = driver.all_kernels(attnc.compile(DOCUMENTS).program, "bf16", 64)[0]
    assert kernel.runs is not None
    assert aot(kernel, print_module([kernel]), "sm_90", {"D": 64, "E": 64}, directory=tmp_path).fits


def inputs(length: int = 96) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(1, 2, length, 8, dtype=torch.float64) for _ in range(3))
    return q, k, v, (torch.arange(length)[None] // 20).to(torch.int32)


def agrees(op: attnc.Op, q: Tensor, k: Tensor, v: Tensor, doc: Tensor) -> bool:
    return torch.allclose(op(q, k, v, doc=doc), op.reference(q, k, v, doc=doc))


def test_a_table_is_made_once_while_its_tensor_is_unchanged(planned: list[Mask]) -> None:
    op = attnc.compile(DOCUMENTS, backend="cpp")
    q, k, v, doc = inputs()
    for _ in range(3):
        assert agrees(op, q, k, v, doc)
    assert len(planned) == 1
    doc[0, 50:] = 0
    assert agrees(op, q, k, v, doc)
    assert len(planned) == 2
    for _ in range(3):
        doc = torch.randint(0, 3, doc.shape, dtype=torch.int32)
        assert agrees(op, q, k, v, doc)
    assert len(planned) == 5


def test_forward_and_backward_share_tables(planned: list[Mask]) -> None:
    op = attnc.compile(DOCUMENTS, backend="cpp")
    q, k, v, doc = inputs()
    q.requires_grad_()
    k.requires_grad_()
    for _ in range(2):
        op(q, k, v, doc=doc).sum().backward()
    assert [m.inner for m in planned] == ["j", "i"]


def test_tables_of_positions_alone_depend_on_lengths(planned: list[Mask]) -> None:
    op = attnc.compile(PER_HEAD.replace("< reach[h]", "< 30").replace("tensor reach: i32[H]\n", ""), backend="cpp")
    for length in (64, 80, 64, 80):
        q, k, v, _ = inputs(length)
        torch.testing.assert_close(op(q, k, v), op.reference(q, k, v))
    assert len(planned) == 2


def test_contents_are_copied_only_where_writes_leave_no_trace(planned: list[Mask]) -> None:
    op = attnc.compile(DOCUMENTS, backend="cpp")
    q, k, v, doc = inputs()
    op(q, k, v, doc=doc)
    assert [s.contents for t in runs._tables.values() for s in t.sources] == [None]
    custom = op.variant("doc").computation.op
    custom(q, k, v, doc, 0)
    assert [s.contents is not None for t in runs._tables.values() for s in t.sources] == [True]
    assert len(planned) == 2
    op(q, k, v, doc=doc)
    assert len(planned) == 2


def test_blocks_that_a_dense_mask_allows_wholly_are_full(planned: list[Mask]) -> None:
    """Also where the tensor has NaN beyond what may be attended: blocks without an allowed pair are not visited."""
    op = attnc.compile("attention pairs\ntensor allowed: bool[M, N]\nmask = allowed[i, j]\n", backend="cpp")
    q, k, v = (torch.randn(1, 2, 320, 8, dtype=torch.float64) for _ in range(3))
    allowed = torch.zeros(320, 320, dtype=torch.bool)
    allowed[:200, :256] = True
    found = op(q, k, v, allowed=allowed)
    torch.testing.assert_close(found, op.reference(q, k, v, allowed=allowed))
    (table,) = (t.table for k, t in runs._tables.items() if k[0] != "everything")
    full = (table.runs[:, 2] - table.runs[:, 1]).tolist()
    assert sum(full) > 0
    assert int(table.runs[:, 2].max()) == 256
    k[:, :, 256:] = torch.nan
    torch.testing.assert_close(op(q, k, v, allowed=allowed), found)


def test_tensors_are_not_kept_alive(planned: list[Mask]) -> None:
    op = attnc.compile(DOCUMENTS, backend="cpp")
    q, k, v, doc = inputs()
    seen = weakref.ref(doc)
    op(q, k, v, doc=doc)
    planned.clear()
    del doc
    gc.collect()
    assert seen() is None


def test_writes_that_leave_no_trace_are_seen_by_compiled_code(planned: list[Mask]) -> None:
    """Compiled code writes into memory it has used before, and the version does not change; nor does it here."""
    op = attnc.compile(DOCUMENTS, backend="cpp")
    q, k, v, doc = inputs()
    custom = op.variant("doc").computation.op
    before = custom(q, k, v, doc, 0)[0]
    torch.testing.assert_close(before, op.reference(q, k, v, doc=doc))
    custom(q, k, v, doc, 0)
    assert len(planned) == 1
    doc.data[0, 10:] = 7
    torch.testing.assert_close(custom(q, k, v, doc, 0)[0], op.reference(q, k, v, doc=doc))
    assert len(planned) == 2


def test_inference_mode(planned: list[Mask]) -> None:
    op = attnc.compile(DOCUMENTS, backend="cpp")
    with torch.inference_mode():
        q, k, v, doc = inputs()
        assert agrees(op, q, k, v, doc)
        doc[0, 50:] = 0
        assert agrees(op, q, k, v, doc)


def test_torch_compile_sees_one_op(planned: list[Mask]) -> None:
    op = attnc.compile(DOCUMENTS, backend="cpp")
    q, k, v, doc = inputs()

    def twice(q: Tensor, k: Tensor, v: Tensor, doc: Tensor) -> Tensor:
        total: Tensor = op(q, k, v, doc=doc) + op(q, k, v, doc=doc // 2)
        return total

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v, doc), twice(q, k, v, doc))


def test_short_calls_make_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "plan", None)
    op = attnc.compile(DOCUMENTS, backend="cpp")
    assert agrees(op, *inputs())


def test_rows_without_keys_are_zero(planned: list[Mask]) -> None:
    op = attnc.compile("attention flags\ntensor valid: bool[B, N]\nmask = valid[b, j]\n", backend="cpp")
    q, k, v = (torch.randn(2, 2, 70, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    valid = torch.ones(2, 70, dtype=torch.bool)
    valid[1] = False
    with torch.no_grad():
        k[1], v[1] = torch.nan, torch.nan
    o = op(q, k, v, valid=valid)
    gradients = torch.autograd.grad(o.sum(), (q, k, v))
    for x in (o, *gradients):
        assert x[0].isfinite().all()
        assert (x[1] == 0).all()
