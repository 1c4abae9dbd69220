"""Choosing configurations: the space, the static model's ranking, measuring on a device that is not there, tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from attnc import driver
from attnc.cli.app import app
from attnc.codegen.tile import Kernel
from attnc.codegen.triton import table
from attnc.codegen.triton.configuration import MOST, Configuration, candidates, space
from attnc.codegen.triton.table import Entry, bucket, kernel_class
from attnc.runtime.triton_backend import TritonKernel
from attnc.runtime.tuning import CudaClock, Session, Trial, recall, remember
from attnc.runtime.worker import Worker
from attnc.settings import Settings
from attnc.testing.model import Cycles
from attnc.testing.tuning import promising, ranked, recorded
from tests.codegen.kernels import softmax_columns, softmax_forward

EXAMPLES = Path(__file__).parents[2] / "examples"
KERNEL = softmax_forward(causal=True, dtype="bf16")
SIZES = {"B": 2, "H": 2, "M": 500, "N": 500, "D": 64, "E": 64, "q_start": 0}
CHANNELS = {"D": 64, "E": 64}


def choice(i: int, j: int, warps: int = 4) -> Configuration:
    return Configuration({"i": i, "j": j}, warps, 2)


@pytest.fixture(scope="module")
def device() -> Iterator[Worker]:
    """A process whose GPU is not there."""
    worker = Worker("tests.codegen.mock_device", "tune_and_launch", {"TRITON_INTERPRET": None})
    yield worker
    worker.close()


def tuned(
    device: Worker, kernel: Kernel, tmp_path: Path, spills: list[int], wanted: int
) -> tuple[Trial, list[dict[str, int]], int]:
    """The trial of four configurations; blocks and grid of a launch afterwards."""
    q, k, v, o = (torch.empty(2, 2, 500, 64, dtype=torch.bfloat16) for _ in range(4))
    tensors = {"q": q, "k": k, "v": v, "o": o, "lse": torch.empty(2, 2, 500)}
    choices = [choice(128, 32, 8), choice(64, 32), choice(32, 32), choice(16, 32)]
    trial, after = device.ask((kernel, tensors, SIZES, spills, choices, wanted, str(tmp_path)))
    plain, bound = after.passed
    assert plain == bound  # the launch itself, and one made ready for tensors like these
    assert len(plain) > 10
    turns = len(choices) - len(trial.refused)
    assert after.progress == [(k + 1, turns) for k in range(turns)]
    return trial, after.blocks, after.launched[0][0]


def test_the_fastest_is_kept_and_comes_first_later(device: Worker, tmp_path: Path) -> None:
    """Grids of 16, 32, 64 and 128 programs; the clock wants 63."""
    trial, blocks, grid = tuned(device, KERNEL, tmp_path, [0], 63)
    assert trial.best == 2
    assert [len(trial.samples[n]) for n in range(4)] == [2, 2, 2, 2]
    assert trial.seconds(2) == pytest.approx(2e-3)
    assert blocks == [{"i": 32, "j": 32}]
    assert grid == 64
    (kept,) = (json.loads(p.read_text()) for p in (tmp_path / "tuned").glob("*.json"))
    assert set(kept) == {"short"}
    assert len(kept["short"]["tried"]) == 4


def test_what_spills_is_not_measured(device: Worker, tmp_path: Path) -> None:
    """The clock wants the grid of the third, which spills."""
    full = softmax_forward(causal=False, dtype="bf16")
    trial, blocks, _ = tuned(device, full, tmp_path, [0, 0, 9, 0], 64)
    assert trial.refused == {2}
    assert trial.best == 1
    assert blocks == [{"i": 64, "j": 32}]


def test_at_most_eight_are_measured() -> None:
    listed = [choice(16 * n, 16) for n in range(1, 13)]
    opened = Session(lambda kernel, sizes, target: listed, CudaClock())
    opened.configuration(("key",), KERNEL, "", "sm_90", CHANNELS, lambda c: 0)
    assert len(opened.trials["key",].choices) == opened.turns == MOST == 8


def test_few_are_compiled_at_a_first_call() -> None:
    for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
        for kernel in (KERNEL, softmax_columns(dtype="bf16")):
            assert 1 <= len(candidates(kernel, {**SIZES, "N": 100_000}, target)) <= MOST


@pytest.mark.parametrize("spec", ["cosformer", "gla", "music", "watched"])
def test_few_are_compiled_whatever_was_measured(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels with the longest lists of candidates: loops over single channels, chunks, many vectors."""
    source = driver.read(EXAMPLES / f"{spec}.attn")
    program = driver.lower(driver.definition(source), source)
    for dtype in ("bf16", "f32"):
        for kernel in driver.all_kernels(program, dtype, 64, "gpu"):
            launched = TritonKernel(kernel, "")
            rare = Configuration(dict.fromkeys(candidates(kernel, {}, "sm_90")[0].blocks, 16), 1, 4)
            for measured in (None, rare):
                monkeypatch.setattr("attnc.runtime.tuning.recall", lambda *_, measured=measured: measured)
                for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
                    listed = launched._choices(target, {})
                    assert 1 <= len(listed) <= 8
                    assert measured is None or listed[0].num_warps == 1


def test_the_space_begins_with_the_candidates() -> None:
    listed = space(KERNEL, CHANNELS, "sm_90")
    first = candidates(KERNEL, CHANNELS, "sm_90")
    assert listed[: len(first)] == first
    assert len(listed) > len(first)
    assert all(listed.count(c) == 1 for c in listed)
    assert {c.num_stages for c in listed} >= {2, 3}


def test_programs_that_share_a_multiprocessor_hide_each_others_waits() -> None:
    turn = Cycles(tensor=100.0, special=60.0, issue=150.0)
    assert [turn.of_turn(n) for n in (1, 2, 8)] == [250.0, 150.0, 150.0]


def test_ranking_reads_the_machine_code() -> None:
    listed = ranked(KERNEL, CHANNELS, "sm_80", most=2)
    assert len(listed) == 2
    assert all(r.report is not None and r.report.loop is not None for r in listed)
    fitting = [r.cost for r in listed if r.fits]
    assert fitting == sorted(fitting)
    assert all(0 < cost < 10 for cost in fitting)


def test_the_first_candidate_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the model says of it."""
    from attnc.testing import tuning

    choices = space(KERNEL, CHANNELS, "sm_90")
    listed = [tuning.Ranked(c, None, float(-n), True) for n, c in enumerate(choices)]
    monkeypatch.setattr(tuning, "ranked", lambda *_: listed[::-1])
    found = promising(KERNEL, CHANNELS, "sm_90")
    assert len(found) == MOST
    assert found[-1] == choices[0]


@pytest.mark.parametrize(("length", "expected"), [(1024, "short"), (1025, "middle"), (9000, "long"), (None, "long")])
def test_buckets(length: int | None, expected: str) -> None:
    sizes = dict(SIZES) if length is None else SIZES | {"N": length}
    if length is None:
        del sizes["N"]
    assert bucket(KERNEL, sizes) == expected


def test_a_class_is_what_kernels_do_and_not_what_they_are_called() -> None:
    other = softmax_forward(causal=False, dtype="bf16")
    assert kernel_class(other, CHANNELS) == kernel_class(KERNEL, CHANNELS)
    assert kernel_class(softmax_forward(causal=True), CHANNELS) != kernel_class(KERNEL, CHANNELS)
    assert kernel_class(softmax_columns(dtype="bf16"), CHANNELS) != kernel_class(KERNEL, CHANNELS)


def test_the_table_comes_before_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    best = choice(64, 128, 4)
    trial = Trial(KERNEL, "", "sm_90", "middle", (choice(128, 64, 8), best), {0: [2.0, 3.0], 1: [1.0, 9.0, 1.5]})
    made: dict[str, dict[str, dict[str, dict[str, object]]]] = {}
    assert recorded(made, trial, "a device")
    monkeypatch.setattr(table, "_table", lambda: made)
    assert candidates(KERNEL, SIZES | {"N": 4096}, "sm_90")[0] == best
    assert candidates(KERNEL, SIZES | {"N": 4096}, "sm_80")[0] != best
    assert candidates(KERNEL, SIZES | {"N": 64}, "sm_90")[0] != best


def test_a_trial_without_times_is_not_recorded(tmp_path: Path) -> None:
    trial = Trial(KERNEL, "", "sm_90", "long", (choice(64, 64),))
    assert not recorded({}, trial, "a device")
    assert remember(trial, "a device", Settings(tmp_path)) is None


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    trial = Trial(KERNEL, "text", "sm_90", "long", (choice(64, 64),), {0: [1.0]})
    path = remember(trial, "a device", Settings(tmp_path))
    assert path is not None
    assert recall("text", "sm_90", "long", Settings(tmp_path)) == choice(64, 64)
    assert recall("text", "sm_90", "short", Settings(tmp_path)) is None
    for damage in ("{", "[]", '{"long": 3}', '{"long": {"blocks": {"i": "x"}}}'):
        path.write_text(damage)
        assert recall("text", "sm_90", "long", Settings(tmp_path)) is None


def test_the_committed_table_is_well_formed() -> None:
    held = json.loads(table.FILE.read_text())
    assert set(held) >= {"sm_80", "sm_90", "sm_100"}
    for classes in held.values():
        for lengths in classes.values():
            assert {Entry(**line).warps for line in lengths.values()} <= {1, 2, 4, 8}
            assert set(lengths) <= {"short", "middle", "long"}


def test_without_a_gpu_the_ranking_is_printed_and_nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first kernel, to save time."""
    every = driver.all_kernels
    monkeypatch.setattr(driver, "all_kernels", lambda *given: every(*given)[:1])
    spec = tmp_path / "plain.attn"
    spec.write_text("attention plain\n")
    done = CliRunner().invoke(app, ["tune", str(spec), "--target", "sm_80", "--looked-at", "1"])
    assert done.exit_code == 0, done.output
    assert "plain_row_o_lse" in done.output
    assert "nothing was measured or kept" in done.output


def test_only_what_was_measured_is_recorded(tmp_path: Path) -> None:
    spec = tmp_path / "plain.attn"
    spec.write_text("attention plain\n")
    done = CliRunner().invoke(app, ["tune", str(spec), "--record", str(tmp_path / "table.json")])
    assert done.exit_code == 2
    assert not (tmp_path / "table.json").exists()
