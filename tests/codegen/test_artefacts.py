"""Gates on machine code: loops, sizes of matrix instructions, and kernels that pass."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import triton
from filelock import FileLock

from attnc import driver
from attnc.codegen.triton.configuration import Configuration, candidates, preferred, space
from attnc.codegen.triton.pressure import load_of
from attnc.codegen.triton.printer import print_module
from attnc.passes.split import split
from attnc.runtime.triton_aot import aot
from attnc.testing.artefacts import instruction_flops, report
from attnc.testing.listing import loops
from tests.codegen.kernels import softmax_columns, softmax_forward

EXAMPLES = Path(__file__).parents[2] / "examples"
BUDGETS = Path(__file__).parent / "budgets.json"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")

SASS = """\
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
.L_x_2:
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0030*/               @P0 BRA `(.L_x_2) ;
        /*0040*/              @!P1 BRA `(.L_x_1) ;
        /*0050*/                   BRA.U UP2, `(.L_x_4) ;
.L_x_3:
        /*0060*/                   EXIT ;
.L_x_4:
        /*0070*/                   BRA `(.L_x_3) ;
"""
LEFT_BY_CALLS = """\
.L_x_1:
        /*0000*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
.L_x_2:
        /*0010*/                   FADD R2, R2, R3 ;
        /*0020*/              @!P0 CALL.REL.NOINC `(.L_x_3) ;
        /*0030*/                   BRA `(.L_x_2) ;
.L_x_3:
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/                   EXIT ;
"""
ROTATED = """\
\ts_cbranch_vccz .LBB0_2
.LBB0_1:
\ts_cbranch_execnz .LBB0_3
.LBB0_2:
\tv_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], v[0:15]
\ts_cbranch_execz .LBB0_1
.LBB0_3:
\ts_endpgm
"""
AMD = """\
\ts_mov_b32 s0, 0
.LBB0_1:
\tv_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], v[0:15]
\ts_cbranch_scc1 .LBB0_1
\ts_endpgm
"""


def test_loops_are_what_control_goes_round_in() -> None:
    outer, inner = loops(SASS)
    assert (outer.length, outer.depth) == (4, 1)
    assert (inner.length, inner.depth) == (2, 2)
    assert inner.count("HMMA") == 1


def test_a_jump_back_from_behind_the_end_makes_no_loop() -> None:
    """The stub at .L_x_4 jumps back to .L_x_3, from where nothing leads to it again."""
    assert all("EXIT" not in loop.names for loop in loops(SASS))


def test_a_loop_may_have_two_entries() -> None:
    (loop,) = loops(ROTATED)
    assert loop.length == 3


def test_loops_may_be_left_by_calls() -> None:
    """What ptxas makes of a jump out of a long loop; without it nothing would lead from the inner to the outer loop."""
    outer, inner = loops(LEFT_BY_CALLS)
    assert (outer.length, outer.depth, outer.count("HMMA")) == (5, 1, 1)
    assert (inner.length, inner.depth) == (3, 2)


def test_amd_loops() -> None:
    (loop,) = loops(AMD)
    assert loop.names == {"v_mfma_f32_32x32x8_bf16": 1, "s_cbranch_scc1": 1}


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("HMMA.16816.F32.BF16", 2 * 16 * 8 * 16),
        ("HMMA.1688.F32", 2 * 16 * 8 * 8),
        ("HGMMA.64x128x16.F32.BF16", 2 * 64 * 128 * 16),
        ("v_mfma_f32_32x32x8_bf16", 2 * 32 * 32 * 8),
    ],
)
def test_sizes_of_matrix_instructions(name: str, flops: int) -> None:
    assert instruction_flops(name) == flops


Budgets = dict[str, dict[str, dict[str, int]]]
"""Instructions of hot loops by version of Triton, target and kernel."""


def gated(spec: str, target: str, budgets: dict[str, int]) -> tuple[dict[str, int], list[str]]:
    """Instructions of the hot loops by kernel, and every gate that fails."""
    source = driver.read(EXAMPLES / f"{spec}.attn")
    program = driver.lower(driver.definition(source), source)
    sizes = dict.fromkeys(driver.channel_sizes(program), 64)
    lengths, problems = {}, []
    for kernel in driver.all_kernels(program, "bf16", 64, "gpu"):
        found = report(kernel, aot(kernel, None, target, sizes), budgets.get(kernel.name))
        problems += [f"{kernel.name}: {p}" for p in found.problems]
        if found.loop is not None:
            lengths[kernel.name] = found.loop.length
    return lengths, problems


def _record(version: str, target: str, lengths: dict[str, int]) -> None:
    """Add to the budgets what was found now; other workers may be doing the same."""
    with FileLock(Path(tempfile.gettempdir()) / "attnc_budgets.lock"):
        recorded: Budgets = json.loads(BUDGETS.read_text())
        recorded.setdefault(version, {}).setdefault(target, {}).update(lengths)
        BUDGETS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


@pytest.fixture
def within_budget(request: pytest.FixtureRequest) -> Callable[[str, str], list[str]]:
    """The gates that a spec fails on a target, hot loops held to what is recorded for this version of Triton, if it is.

    With --update-goldens they are recorded.
    """
    version = ".".join(triton.__version__.split(".")[:2])

    def check(spec: str, target: str) -> list[str]:
        recorded: Budgets = json.loads(BUDGETS.read_text())
        update = request.config.getoption("--update-goldens")
        lengths, problems = gated(spec, target, {} if update else recorded.get(version, {}).get(target, {}))
        if update:
            _record(version, target, lengths)
        return problems

    return check


@pytest.mark.parametrize("target", [pytest.param("sm_80", marks=pytest.mark.sweep), "sm_90"])
def test_alibi_passes_the_gates(target: str, within_budget: Callable[[str, str], list[str]]) -> None:
    """Forward and backward."""
    assert not within_budget("alibi", target)


@pytest.mark.parametrize("target", ["sm_90", pytest.param("gfx942", marks=pytest.mark.sweep)])
def test_few_queries_pass_the_gates(target: str) -> None:
    """The parts of a split loop, the rows of eight query heads packed; on AMD the smallest product has 32 rows."""
    source = driver.read(EXAMPLES / "causal.attn")
    plan = driver.plans(driver.lower(driver.definition(source), source), "gpu")[0]
    two = split(plan, plan.passes[0], "packed")
    declared = [*((t.name, t.dtype) for t in two.plan.program.tensors), *((b.name, b.dtype) for b in two.plan.buffers)]
    dtypes = {name: {"q": "bf16", "real": "f32"}.get(d, d) for name, d in declared}
    channels = {"D": 128, "E": 128}
    sizes = {**channels, "B": 1, "H": 32, "G": 4, "M": 1, "N": 32768, "PARTS": 16, "q_start": 32767}
    parts, merge = driver.split_kernels(two, dtypes, "f32", channels, 64)
    found = [report(k, aot(k, None, target, sizes)) for k in (parts, merge)]
    assert found[0].loop is not None and found[0].loop.count("HMMA", "v_mfma")
    if target == "sm_90":
        assert not [p for r in found for p in r.problems]
        assert (found[0].programs or 0) >= 2
    else:
        assert all(not r.spilled for r in found)


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_operands_are_computed_once(target: str) -> None:
    """Not by each of the warps that multiply them: a gate, exp2 and a reciprocal per query and channel, is no more work
    than the weights, one exp2 per pair."""
    source = driver.read(EXAMPLES / "gated.attn")
    program = driver.lower(driver.definition(source), source)
    (kernel,) = (k for k in driver.all_kernels(program, "bf16", 64, "gpu") if "column" in k.name)
    blocks = Configuration({"j": 128, "i": 32}, 8 if target == "sm_80" else 4, 2)
    once = print_module([kernel])
    often = once.replace("tl.where((i < M)[:, None], sigmoid(g_2), 0.0)", "sigmoid(g_2)")
    assert often != once
    found = [report(kernel, aot(kernel, text, target, {"D": 64, "E": 64}, blocks)) for text in (once, often)]
    assert not [p for p in found[0].problems if "special" in p]
    assert [p for p in found[1].problems if p.startswith("special functions are evaluated")]


def test_several_warps_share_few_rows_where_they_do_not_multiply() -> None:
    kernel = softmax_forward(causal=True, dtype="bf16")
    for target, fits in (("sm_90", False), ("sm_100", True)):
        rungs = [(c.blocks["i"], c.num_warps) for c in space(kernel, {"D": 64, "E": 64}, target)]
        assert ((64, 8) in rungs) is fits


def test_vectors_of_the_loop_take_registers() -> None:
    """Entropy, mass and distance observed: eight numbers per query, each of them in every fourth thread of a row."""
    source = driver.read(EXAMPLES / "watched.attn")
    program = driver.lower(driver.definition(source), source)
    (kernel,) = (k for k in driver.all_kernels(program, "bf16", 64, "gpu") if "gradient_column" in k.name)
    load, plain = load_of(kernel, {}), load_of(softmax_columns(dtype="bf16"), {"D": 64, "E": 64})
    assert (load.vectors, plain.vectors) == (8, 2)
    assert (load.accumulated, load.products) == (plain.accumulated, plain.products)
    for target in ("sm_80", "sm_90", "sm_100"):
        assert max(c.blocks["i"] for c in candidates(kernel, {}, target)) <= 32
    assert candidates(softmax_columns(dtype="bf16"), {"D": 64, "E": 64}, "sm_90")[0].blocks == {"j": 128, "i": 64}


@pytest.mark.parametrize(
    ("spills", "kept"), [([48, 56, 32, 32], 2), ([90, 80, 1, 60], 2), ([8, 300], 0), ([100, 300, 90], 0)]
)
def test_what_hardly_spills_is_kept(spills: list[int], kept: int) -> None:
    assert preferred(spills) == kept


KNOWN = {
    (
        "cosformer",
        "sm_90",
    ): "behind the loop over a chunk, the gradients of two states meet both accumulators, all of 64 × 64: four "
    "warps spill 14 and 36 registers there, and eight repeat some of the work of 64 rows",
}
"""Gates that fail, and why."""


def examples() -> Iterator[object]:
    for spec in sorted(p.stem for p in EXAMPLES.glob("*.attn")):
        for target in TARGETS:
            reason = KNOWN.get((spec, target))
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            yield pytest.param(spec, target, marks=marks)


@pytest.mark.sweep
@pytest.mark.parametrize(("spec", "target"), list(examples()))
def test_examples_pass_the_gates(spec: str, target: str, within_budget: Callable[[str, str], list[str]]) -> None:
    assert not within_budget(spec, target)
