"""Passes with few rows, their loops in parts: the same values as in one piece, whatever the loop keeps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import attnc
from attnc import driver
from attnc.codegen.tile import Kernel
from attnc.passes.plan import Pass
from attnc.passes.split import Form, is_splittable
from attnc.runtime import backends, split
from attnc.runtime.launch import Bound, KernelLaunch
from attnc.runtime.toolchain import Toolchain
from attnc.testing.compare import dense, output_seeds, run_op
from attnc.testing.inputs import complete_sizes, make_inputs

EXAMPLES = Path(__file__).parents[2] / "examples"
BACKENDS = {"tiled": backends.TiledBackend, "cpp": backends.CppBackend, "triton": backends.TritonBackend}
SPECS = ("causal", "gemma2", "watched", "sinks", "sigmoid_attention", "user_normaliser", "differential", "reversed")
MASKS = ("sliding_window", "document_causal", "prefix_lm", "dilated")
LARGEST = "attention first\nobserve same = max[j](s + v[j, 0])\nobserve mean = sum[j](p * s)\n"


KERNEL = Kernel("none", "", (), (), (), (), None, (), {}, ())


PROCESSORS = itertools.count(96)
"""Another number for every test: calls decide again when it changes."""


class Splits:
    """Counts the launches that were split, and forces how."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, backend: str, form: Form) -> None:
        self.count = 0
        parts = split.SplitLaunch._parts

        def counted(own: split.SplitLaunch, *args: Any) -> Bound:
            self.count += 1
            return parts(own, *args)

        monkeypatch.setattr(split, "LEAST", 32)
        monkeypatch.setattr(split.SplitLaunch, "_parts", counted)
        monkeypatch.setattr(BACKENDS[backend], "form", lambda *_: form)
        processors = next(PROCESSORS)
        monkeypatch.setattr(BACKENDS[backend], "processors", lambda *_: processors)


def check(
    spec: str, backend: str, dtype: torch.dtype, keys: int, tolerance: float, *, rows: int = 3, backward: bool = True
) -> None:
    """Outputs and all gradients against the dense float64 evaluator, relative to the largest value of each."""
    op = attnc.compile(spec if "\n" in spec else EXAMPLES / f"{spec}.attn", backend=backend)
    sizes = complete_sizes(op.program, {"B": 2, "H": 2, "G": 1, "M": rows, "N": keys, "D": 8, "E": 6})
    tensors = make_inputs(op.program, sizes, dtype)
    seeds = output_seeds(op.program, tensors, keys - rows) if backward else None
    found = run_op(op, tensors, seeds, q_start=keys - rows)
    exact = dense(op.program, tensors, seeds, torch.float64, q_start=keys - rows)
    for got, values in ((found.outputs, exact.outputs), (found.gradients, exact.gradients)):
        for name, value in values.items():
            largest = value.abs().max().item()
            rounding = max(tolerance, torch.finfo(got[name].dtype).eps)
            assert (got[name] - value).abs().max().item() <= rounding * largest + 1e-12, name


@pytest.mark.parametrize("form", ["block", "single", "packed"])
@pytest.mark.parametrize("spec", [*SPECS, *MASKS, LARGEST])
def test_parts_merge_to_the_same_values(spec: str, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    used = Splits(monkeypatch, "tiled", form)
    check(spec, "tiled", torch.float64, 600, 1e-10)
    assert used.count


@pytest.mark.parametrize(
    ("spec", "form"),
    [("sinks", "single"), ("sinks", "block"), ("gemma2", "narrow"), (LARGEST, "narrow"), (LARGEST, "packed")],
)
def test_parts_in_cpp(spec: str, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    used = Splits(monkeypatch, "cpp", form)
    check(spec, "cpp", torch.float64, 257, 1e-10, backward=False)
    assert used.count


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("form", "spec", "channels"),
    [
        ("single", "gemma2", 16), ("single", "sinks", 40), ("single", LARGEST, 64),
        ("narrow", "sinks", 64), ("narrow", LARGEST, 40), ("packed", "gemma2", 32),
    ],
)  # fmt: skip
def test_parts_of_half_precision(
    form: Form, spec: str, channels: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values are read as they are: where they lie apart, or fill no whole vectors, from a copy."""
    used = Splits(monkeypatch, "cpp", form)
    op = attnc.compile(spec if "\n" in spec else EXAMPLES / f"{spec}.attn", backend="cpp")
    sizes = complete_sizes(op.program, {"B": 2, "H": 2, "G": 1, "M": 2, "N": 257, "D": channels, "E": channels})
    tensors = make_inputs(op.program, sizes, dtype)
    exact = dense(op.program, tensors, None, torch.float64, q_start=255).outputs
    apart = {n: t.mT.contiguous().mT if t.dim() == 4 else t for n, t in tensors.items()}
    for given in (tensors, apart):
        for name, found in run_op(op, given, None, q_start=255).outputs.items():
            largest = exact[name].abs().max().item()
            assert (found - exact[name]).abs().max().item() <= torch.finfo(dtype).eps * largest, name
    assert used.count == 2


def test_parts_in_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    used = Splits(monkeypatch, "triton", "packed")
    check(LARGEST, "triton", torch.float32, 130, 2e-5, backward=False)
    assert used.count


@pytest.mark.sweep
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("backend", ["cpp", "triton"])
@pytest.mark.parametrize("form", ["block", "single", "narrow", "packed"])
@pytest.mark.parametrize("spec", [*SPECS, *MASKS, LARGEST])
def test_parts_everywhere(spec: str, form: Form, backend: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradients, on both printers; what each is limited to is f64 in C++ and f32 in Triton's interpreter."""
    used = Splits(monkeypatch, backend, form)
    dtype, tolerance = (torch.float64, 1e-10) if backend == "cpp" else (torch.float32, 2e-5)
    check(spec, backend, dtype, 257, tolerance, rows=rows)
    assert used.count


def test_parts_beyond_the_mask_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first query all keys but one are masked: most parts see none, and give nothing to the merge."""
    used = Splits(monkeypatch, "tiled", "block")
    op = attnc.compile(EXAMPLES / "causal.attn", backend="tiled")
    q, k, v = (torch.randn(1, 1, n, 8, dtype=torch.float64) for n in (2, 600, 600))
    assert torch.equal(op(q, k, v)[0, 0, 0], v[0, 0, 0])
    assert used.count == 1


def test_other_lengths_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    Splits(monkeypatch, "tiled", "block")
    built: list[int] = []
    build = backends.TiledBackend.build

    def counted(own: backends.TiledBackend, kernels: Sequence[Kernel]) -> Sequence[KernelLaunch]:
        built.append(len(kernels))
        return build(own, kernels)

    monkeypatch.setattr(backends.TiledBackend, "build", counted)
    op = attnc.compile(EXAMPLES / "softcap_alibi.attn", backend="tiled")
    for rows, keys in ((64, 64), (1, 300), (1, 900), (5, 700), (300, 300)):
        q, k, v = (torch.randn(1, 2, n, 8) for n in (rows, keys, keys))
        op(q, k, v, slope=torch.rand(2), q_start=keys - rows)
    assert built == [1, 2]


def test_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    used = Splits(monkeypatch, "tiled", "block")
    op = attnc.compile(EXAMPLES / "causal.attn", backend="tiled", disable="split")
    q, k, v = (torch.randn(1, 1, n, 8) for n in (1, 600, 600))
    op(q, k, v, q_start=599)
    assert not used.count
    assert not any(d.rewrite == "split" for p in driver.plans(op.program) for d in p.decisions)


def test_what_carries_more_than_reductions_is_left() -> None:
    """A scan carries states; dk and dv sum over query heads inside the loop."""
    for spec, splittable in (("retention", []), ("causal", ["row_o_lse", "row_grad_q_delta"])):
        source = driver.read(EXAMPLES / f"{spec}.attn")
        plans = driver.plans(driver.lower(driver.definition(source), source))
        found = [i.name for p in plans for i in p.steps if isinstance(i, Pass) and is_splittable(p, i)]
        assert found == splittable


@pytest.mark.parametrize("wide", [True, False], ids=["64 bytes", "32 bytes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_how_many_parts(wide: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as keep every processor busy, but none shorter than what pays. Few rows fill short vectors."""
    monkeypatch.setattr(Toolchain, "has_wide_vectors", lambda _: wide)
    op = attnc.compile(EXAMPLES / "causal.attn", backend="cpp")
    source = driver.plans(op.program)[0]
    (item,) = source.passes
    backend = backends.CppBackend()
    launch = split.SplitLaunch(source, item, KERNEL, lambda *_: None, backend, {"q": dtype}, {}, torch.float32)
    sizes = {"B": 1, "H": 4, "G": 4, "M": 1, "D": 8, "E": 8}
    cpu = torch.device("cpu")
    assert launch.choice(1, {**sizes, "N": 100}, cpu) is None
    many = {**sizes, "B": 64, "N": 1000}
    few = [None] * 3 if dtype == torch.float32 and not wide else [("single", 1), ("narrow", 1), ("narrow", 1)]
    assert [launch.choice(rows, many, cpu) for rows in (1, 2, 3, 6, 7)] == [("single", 1), *few, None]
    shared = {**many, "H": 32}
    assert [launch.choice(rows, shared, cpu) for rows in (1, 6, 7)] == [("packed", 1), ("packed", 1), None]
    backend.processors = lambda device: 32  # type: ignore[method-assign]
    assert launch.choice(1, {**sizes, "N": 1000}, cpu) == ("single", 3)
    assert launch.choice(1, {**sizes, "N": 100000}, cpu) == ("single", 8)
