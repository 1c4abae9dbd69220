"""Causal sums split into near and far: same values, right plans, honest decisions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import attnc
from attnc import driver
from attnc.cli.stages import plan_text
from attnc.ir.dense import bind_sizes, evaluate
from attnc.ir.options import Options
from attnc.ir.program import Program
from attnc.passes import scan
from attnc.passes.associate import associate
from attnc.passes.derive import gradient_program
from attnc.passes.pipeline import normalise
from attnc.passes.planes import Planes
from tests.formulas import Dims, make_inputs
from tests.passes.programs import example, seeds, spec

LINEAR = ("retention", "linear_attention", "lightning", "scalar_decay", "gla", "cosformer", "aaren")
SHAPES = [(9, 9, 0), (5, 11, 6), (7, 12, 2), (11, 6, 0)]


def split(program: Program) -> tuple[Program, scan.Scans]:
    """The program with its reductions split, as the scheduler does it."""
    planes = Planes(program)
    roots, scans = scan.split(associate(program.roots(), planes, grouped=False), planes)
    values = iter(roots)
    outputs = tuple(replace(o, parts=tuple((axes, next(values)) for axes, _ in o.parts)) for o in program.outputs)
    return replace(program, outputs=outputs), scans


def tensors(name: str, m: int, n: int, q_start: int) -> dict[str, Tensor]:
    dims = Dims(B=2, H=4, G=2, M=m, N=n, D=3, E=2)
    made = make_inputs(name, dims, torch.float64, q_start=q_start)
    return {"q": made.q, "k": made.k, "v": made.v, **made.tensors}


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "CHUNK", 4)
    monkeypatch.setattr(scan, "CHUNK_OF_CHANNELS", 2)


@pytest.mark.parametrize(("m", "n", "q_start"), SHAPES)
@pytest.mark.parametrize("name", LINEAR)
def test_near_and_far_add_up(name: str, m: int, n: int, q_start: int) -> None:
    """Forward and gradient, judged by the dense evaluator before and after: the algebra without any kernel."""
    if name in ("scalar_decay", "gla") and m + q_start > n:
        m = n - q_start
    program = normalise(example(name))
    given = tensors(name, m, n, q_start)
    sizes = bind_sizes(program, given, q_start)
    whole = evaluate(program, given, sizes)
    parts, scans = split(program)
    assert scans.states
    for output, value in evaluate(parts, given, sizes).items():
        torch.testing.assert_close(value, whole[output], rtol=1e-9, atol=1e-11)
    gradient = normalise(gradient_program(example(name)))
    given |= seeds(program, whole)
    whole = evaluate(gradient, given, sizes)
    parts, scans = split(gradient)
    assert scans.states
    for output, value in evaluate(parts, given, sizes).items():
        torch.testing.assert_close(value, whole[output], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", LINEAR)
def test_no_pass_visits_all_pairs(name: str) -> None:
    """Every pass over a plane lies within chunks, and the plan says what is carried."""
    for plan in driver.plans(example(name)):
        assert plan.passes
        assert all(p.chunks for p in plan.passes)
        assert "chunk scan" in plan_text(plan)
        assert all(d.alternatives[0].name.startswith("states") for d in plan.decisions if d.rewrite == "scan")


def test_states_are_read_in_the_direction_of_time() -> None:
    forward, gradient = driver.plans(example("retention"))
    directions = [(c.outer, c.forward) for p in (*forward.steps, *gradient.steps) for c in getattr(p, "chunks", ())]
    assert set(directions) == {("i", True), ("j", False)}


@pytest.mark.parametrize(
    "text",
    [
        "attention a\nmask = j <= i",
        "attention a\nscore = dot(q, k)\nmask = 0 <= i - j < 5\nnormaliser = none",
        "attention a\nscore = dot(q, k) * abs(i - j)\nmask = j <= i\nnormaliser = none",
        "attention a\nscore = tanh(dot(q, k))\nmask = j <= i\nnormaliser = none",
        "attention a\nscore = dot(q, k) ** 2\nmask = j <= i\nnormaliser = none",
        "attention a\ntensor doc: i32[B, N]\nscore = dot(q, k)\nmask = j <= i and doc[b, i] == doc[b, j]\n"
        "normaliser = none",
    ],
    ids=["softmax", "window", "distance", "tanh", "square", "documents"],
)
def test_what_does_not_separate_stays_dense(text: str) -> None:
    for plan in driver.plans(spec(text)):
        assert not any(p.chunks for p in plan.passes)
        assert not any(d.alternatives for d in plan.decisions if d.rewrite == "scan")


def test_one_that_cannot_keeps_the_others_dense() -> None:
    program = spec(
        "attention a\nscore = dot(q, k)\nmask = j <= i\nnormaliser = none\nobserve largest = max[j](abs(dot(q, k)))"
    )
    plan = driver.plan_forward(program)
    assert not any(p.chunks for p in plan.passes)
    (decision,) = [d for d in plan.decisions if d.rewrite == "scan"]
    assert "cannot" in decision.found
    assert decision.chosen.startswith("all pairs")


def test_turned_off() -> None:
    program = replace(example("retention"), options=Options(frozenset({"scan"})))
    for plan in driver.plans(program):
        assert not any(p.chunks for p in plan.passes)
        assert all(d.rewrite != "scan" for d in plan.decisions)


def test_padding_of_keys_is_part_of_the_state() -> None:
    """A condition on keys alone: hidden keys stay hidden, whatever they hold."""
    text = (
        "attention padded\ntensor used: i32[B]\nscore = dot(q, k)\nmask = j <= i and j < used[b]\nnormaliser = none\n"
    )
    op = attnc.compile(text, backend="tiled")
    q, k, v = (torch.randn(2, 2, 23, 3, dtype=torch.float64) for _ in range(3))
    used = torch.tensor([5, 14], dtype=torch.int32)
    for b, n in enumerate(used):
        k[b, :, n:] = torch.nan
    found = op(q, k, v, used=used)
    clean = torch.nan_to_num(k)
    w = (q @ clean.transpose(-1, -2)).tril() * (torch.arange(23) < used[:, None])[:, None, None]
    torch.testing.assert_close(found, w @ v)
    assert any(p.chunks for p in driver.plan_forward(op.program).passes)


def test_without_a_mask_there_is_no_plane() -> None:
    for plan in driver.plans(example("linear_bidirectional")):
        assert not plan.passes


def test_growing_weights_do_not_overflow() -> None:
    """Gates above 1 and far below: exp(-t[j]) alone would be infinite, both factors of every weight are not."""
    text = (
        "attention growing\ntensor g: f32[B, H, N]\nlet t[j] = cumsum[j](g[b, h, j])\n"
        "score = dot(q, k) * exp(t[i] - t[j])\nmask = j <= i\nnormaliser = none\n"
    )
    op = attnc.compile(text, backend="tiled")
    q, k, v = (torch.randn(1, 1, 300, 4, dtype=torch.float64) for _ in range(3))
    g = torch.cat([torch.full((1, 1, 150), -8.0), torch.full((1, 1, 150), 0.1)], -1).double()
    torch.testing.assert_close(op(q, k, v, g=g), op.reference(q, k, v, g=g), rtol=1e-9, atol=1e-9)
