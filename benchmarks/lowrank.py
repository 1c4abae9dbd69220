"""Biases of low rank against SDPA given the dense bias, on this CPU: correctness, then time and memory.

    python benchmarks/lowrank.py [--lengths 4096,8192] [--dtypes f32,bf16] [--cases alibi,spatial,table]

Every contestant is first checked at 512 positions against float64. Then forward, and forward with backward, are timed
in interleaved rounds on the same inputs, with 8 heads of 64 channels; kernels are compiled, and the singular vectors of
a table found, before. SDPA gets its bias ready made. Where the bias is trained attnc computes the gradients of
everything it is made of; SDPA computes none for it, or, with --trained, in rows of its own, that of the dense bias. At
the longest of several lengths only the way that attnc chooses is timed, not those it can be asked for. Peak memory is
that of a process of its own, beyond what it holds before the call. Ratios are SDPA's time as a multiple of that row's.
--points sets the number of points in 3-D of the last memory run, and 0 leaves it out. --spreads 1,10,100 does nothing
but compare errors where points are spread over boxes of these sides, in the units in which the strengths are 0.5 to 8.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import attnc
from attnc import driver
from attnc.testing.machine import processor
from attnc.testing.timing import interleaved, spell

HERE = Path(__file__).resolve().parent
HEADS, CHANNELS = 8, 64
CHECKED = 512
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
TOLERANCE = {"f32": 2e-5, "bf16": 5e-2, "f16": 5e-3}
"""Of outputs and gradients, relative to the largest value."""
RTOL = 1e-2

ALIBI = """attention alibi
tensor slope: f32[H]
bias = -slope[h] * (i - j)
mask = j <= i
"""
SPATIAL = """attention spatial
tensor x: f32[B, M, 3]
tensor y: f32[B, N, 3]
tensor strength: f32[H]
index c: 3
bias = -strength[h] * sum[c]((x[b, i, c] - y[b, j, c]) ** 2)
"""
TABLE = """attention table
tensor t: f32[H, M, N]
bias = t[h, i, j]
"""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A bias: its spec, the ways attnc can be asked to compute it, its tensors, and the dense bias they mean."""

    text: str
    ways: dict[str, dict[str, Any]]
    tensors: Callable[[int], Tensors]
    dense: Callable[[Tensors, int], Tensor]
    trained: bool = True


def alibi_tensors(length: int) -> Tensors:
    return {"slope": 2.0 ** (-8 * torch.arange(1, HEADS + 1) / HEADS)}


def alibi_dense(tensors: Tensors, length: int) -> Tensor:
    at = torch.arange(length)
    bias = -tensors["slope"][:, None, None] * (at[:, None] - at).to(tensors["slope"].dtype)
    return bias.masked_fill_(at > at[:, None], -torch.inf)


def spatial_tensors(length: int) -> Tensors:
    points = torch.rand(1, length, 3, generator=torch.Generator().manual_seed(1))
    return {"x": points, "y": points.clone(), "strength": torch.linspace(0.5, 8, HEADS)}


def spatial_dense(tensors: Tensors, length: int) -> Tensor:
    distance = sum((tensors["x"][0, :, None, c] - tensors["y"][0, :, c]).square() for c in range(3))
    assert isinstance(distance, Tensor)
    return -tensors["strength"][:, None, None] * distance


def table_tensors(length: int) -> Tensors:
    """A smooth table of distances, of rank 12, with noise of a thousandth: what a learned position bias looks like."""
    generator = torch.Generator().manual_seed(2)
    at = torch.arange(length) / length
    shape = torch.randn(HEADS, 6, generator=generator)
    table = torch.empty(HEADS, length, length).normal_(0, 1e-3, generator=generator)
    for k in range(6):
        wave = torch.cos((k + 1) * torch.pi * (at[:, None] - at))
        for head, size in zip(table, shape[:, k].tolist(), strict=True):
            head.add_(wave, alpha=size)
    return {"t": table}


CASES = {
    "alibi": Case(ALIBI, {"auto": {}, "factors": {"bias": "factors"}}, alibi_tensors, alibi_dense),
    "spatial": Case(
        SPATIAL,
        {"auto": {}, "factors": {"bias": "factors"}},
        spatial_tensors,
        spatial_dense,
    ),
    "table": Case(
        TABLE,
        {f"rank=auto, rtol={RTOL:g}": {"rank": "auto", "rtol": RTOL}, "loaded": {}},
        table_tensors,
        lambda tensors, length: tensors["t"],
        trained=False,
    ),
}


# ------------------------------------------------------------------------------------------------- contestants


def content(length: int, dtype: torch.dtype, channels: int = CHANNELS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, length, channels, generator=generator).to(dtype) for _ in range(3))
    return q, k, v


@dataclass(frozen=True)
class Runner:
    """A contestant on fixed inputs: its output, and its gradients of q, k, v and what else it trains."""

    forward: Callable[[], Tensor]
    both: Callable[[], tuple[Tensor, ...]]


def runner(call: Callable[..., Tensor], inputs: tuple[Tensor, ...], extra: Tensors, trained: bool) -> Runner:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    given = {n: x.detach().clone().requires_grad_() if trained else x for n, x in extra.items()}
    wanted = [*leaves, *(x for x in given.values() if x.requires_grad)]
    seed = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(3)).to(inputs[0].dtype)

    def forward() -> Tensor:
        with torch.no_grad():
            return call(*inputs, **extra)

    return Runner(forward, lambda: torch.autograd.grad(call(*leaves, **given), wanted, seed))


def attnc_runner(case: Case, way: str, inputs: tuple[Tensor, ...], tensors: Tensors) -> Runner:
    return runner(attnc.compile(case.text, **case.ways[way]), inputs, tensors, case.trained)


def sdpa_runner(inputs: tuple[Tensor, ...], bias: Tensor, trained: bool = False) -> Runner:
    return runner(scaled_dot_product_attention, inputs, {"attn_mask": bias}, trained)


# ----------------------------------------------------------------------------------------------------- checking


def check(name: str, dtype: str) -> dict[str, float]:
    """Errors at `CHECKED` positions against float64, relative to the largest value; too large a one ends the run."""
    errors = errors_of(CASES[name], CASES[name].tensors(CHECKED), dtype)
    for way, error in errors.items():
        allowed = max(TOLERANCE[dtype], 2 * RTOL if "rank" in way else 0.0)
        if way != "SDPA" and error > allowed:
            raise SystemExit(f"{name} {dtype} {way}: error {error:.2g}, allowed {allowed:.2g}")
    return errors


def errors_of(case: Case, tensors: Tensors, dtype: str) -> dict[str, float]:
    """The largest error of the output and of the gradients of q, k and v, each relative to its largest value."""
    inputs = content(CHECKED, DTYPES[dtype])
    exact_inputs = tuple(x.double() for x in inputs)
    bias = case.dense({n: x.double() for n, x in tensors.items()}, CHECKED)[None]
    exact = sdpa_runner(exact_inputs, bias)
    expected = (exact.forward(), *exact.both())
    errors: dict[str, float] = {}
    contestants = {way: attnc_runner(case, way, inputs, tensors) for way in case.ways}
    contestants["SDPA"] = sdpa_runner(inputs, bias.to(DTYPES[dtype]))
    for way, found in contestants.items():
        results = (found.forward(), *found.both()[:3])
        pairs = zip(results, expected, strict=True)
        errors[way] = max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs)
    return errors


def spread_errors(spreads: list[float], dtypes: list[str]) -> None:
    """Print the errors of spatial biases between points spread over boxes of these sides."""
    print("| points in a box of | dtype | registers | factors | SDPA |\n|---|---|--:|--:|--:|")
    for spread in spreads:
        tensors = spatial_tensors(CHECKED)
        tensors = {n: t if n == "strength" else spread * t for n, t in tensors.items()}
        for dtype in dtypes:
            case = replace(CASES["spatial"], ways={w: {"bias": w} for w in ("registers", "factors")})
            errors = errors_of(case, tensors, dtype)
            shown = " | ".join(f"{errors[way]:.0e}" for way in ("registers", "factors", "SDPA"))
            print(f"| {spread:g} | {dtype} | {shown} |", flush=True)


# ------------------------------------------------------------------------------------------------------- timing


def measure(
    name: str, tensors: Tensors, length: int, dtype: str, rounds: int, *, chosen: bool, trained: bool
) -> dict[str, Any]:
    """One case at one length: seconds of every contestant, and how often SDPA's time they take.

    Args:
        name: of the case, whose `tensors` are given.
        length: positions.
        dtype: of q, k, v and the dense bias.
        rounds: how often each contestant is timed.
        chosen: time only the first way.
        trained: also time SDPA with the gradient of its bias.
    """
    case = CASES[name]
    inputs = content(length, DTYPES[dtype])
    errors = check(name, dtype)
    ways = list(case.ways)[:1] if chosen else list(case.ways)
    contestants = {way: attnc_runner(case, way, inputs, tensors) for way in ways}
    for way in ways:
        if "rank" in case.ways[way]:
            contestants[way].forward()
    bias = case.dense(tensors, length)[None].to(DTYPES[dtype])
    contestants["SDPA"] = sdpa_runner(inputs, bias)
    if case.trained and trained:
        contestants["SDPA, trained"] = sdpa_runner(inputs, bias, trained=True)
    row: dict[str, Any] = {"case": name, "N": length, "dtype": dtype, "errors": errors}
    source = driver.read(case.text)
    program = driver.lower(driver.definition(source), source)
    row["chosen"] = driver.choose(program, "cpu", dtype).form if case.trained else "rank"
    for what in ("forward", "both"):
        calls = {n: getattr(r, what) for n, r in contestants.items()}
        timings = interleaved(calls, rounds=rounds, budget=1e9, warmup=0)
        row[what] = {n: asdict(t) for n, t in timings.items()}
        row[f"{what}_ratio"] = {n: timings["SDPA"].median / t.median for n, t in timings.items()}
    return row


def lines(row: dict[str, Any]) -> list[str]:
    """The rows of the table."""
    found = []
    for way in row["forward"]:
        label = f"{way} ({row['chosen']})" if way == "auto" else way
        parts = []
        for what in ("forward", "both"):
            ratio = row[f"{what}_ratio"][way]
            parts.append(f"{spell(row[what][way]['median'])}" + ("" if way == "SDPA" else f", {ratio:.2f}x"))
        error = f"{row['errors'][way]:.0e}" if way in row["errors"] else ""
        found.append(f"| {row['case']} | {row['N']} | {row['dtype']} | {label} | {parts[0]} | {parts[1]} | {error} |")
    return found


# ------------------------------------------------------------------------------------------------------- memory


def memory_of(name: str, length: int, way: str, channels: int = CHANNELS) -> dict[str, float]:
    """Peak memory of a forward with backward in f32, in a process of its own, in MB, and its seconds."""
    command = [sys.executable, __file__, "--child", name, str(length), way, str(channels)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(name: str, length: int, way: str, channels: int) -> None:
    """What `memory_of` runs."""
    case = CASES[name]
    small = content(64, torch.float32, channels)
    inputs = content(length, torch.float32, channels)
    tensors = case.tensors(length)
    if way != "SDPA":
        few = case.tensors(64)
        attnc_runner(case, way, small, few).both()  # kernels are built before memory is looked at
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak()
    start = time.perf_counter()
    if way == "SDPA":
        ready = sdpa_runner(inputs, case.dense(tensors, length)[None])
    else:
        ready = attnc_runner(case, way, inputs, tensors)
    ready.forward()
    middle = time.perf_counter()
    ready.both()
    seconds = {"forward": middle - start, "both": time.perf_counter() - middle}
    print(json.dumps({"peak": peak(), "grown": peak() - before, **seconds}))


def peak() -> float:
    """Peak resident memory of this process, in MB, since it was last set back (Linux)."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


# --------------------------------------------------------------------------------------------------------- main


def machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="which, with commas")
    parser.add_argument("--lengths", default="4096,8192", help="which, with commas")
    parser.add_argument("--dtypes", default="f32,bf16", help="which, with commas")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trained", action="store_true", help="also SDPA with the gradient of its dense bias")
    parser.add_argument("--points", type=int, default=32186, help="points in 3-D of the memory run; 0: none")
    parser.add_argument("--spreads", help="only compare errors of points in boxes of these sides, with commas")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "lowrank.json")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        name, length, way, channels = given.child
        child(name, int(length), way, int(channels))
        return
    if given.spreads:
        spread_errors([float(x) for x in given.spreads.split(",")], given.dtypes.split(","))
        return
    found: dict[str, Any] = {"machine": machine(), "rows": [], "memory": [], "points": None}

    def write() -> None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=1) + "\n")

    begun = time.perf_counter()
    told = found["machine"]
    lengths = [int(n) for n in given.lengths.split(",")]
    print(f"{told['processor']}, {told['threads']} threads, torch {told['torch']}, B1 H8 D64")
    print("\n| bias | N | way | peak memory, forward + backward, f32 |\n|---|---|---|---|")
    for length in lengths:
        for way in ("auto", "factors", "SDPA"):
            row = {"case": "spatial", "N": length, "way": way, **memory_of("spatial", length, way)}
            found["memory"].append(row)
            print(f"| spatial | {length} | {way} | {row['grown']:.0f} MB |", flush=True)
            write()
    if given.points:
        found["points"] = {"N": given.points, "channels": 16, **memory_of("spatial", given.points, "auto", 16)}
        row, dense = found["points"], HEADS * given.points**2 * 4 / 1e9
        print(
            f"\nspatial, {given.points} points in 3-D, {HEADS} heads of 16 channels, f32: "
            f"forward {spell(row['forward'])}, forward + backward {spell(row['both'])}, "
            f"peak of the whole process {row['peak']:.0f} MB; the dense bias alone would be {dense:.0f} GB"
        )
        write()
    print("\n| bias | N | dtype | way | forward | forward + backward | error |\n|---|---|---|---|---|---|---|")
    for length in lengths:
        chosen = length == max(lengths) and len(lengths) > 1
        for name in given.cases.split(","):
            tensors = CASES[name].tensors(length)
            for dtype in given.dtypes.split(","):
                row = measure(name, tensors, length, dtype, given.rounds, chosen=chosen, trained=given.trained)
                found["rows"].append(row)
                print("\n".join(lines(row)), flush=True)
                write()
    found["seconds"] = time.perf_counter() - begun
    write()
    print(f"\n{found['seconds']:.0f} s in all")
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
