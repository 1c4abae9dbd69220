"""What masks cost and what they save on this CPU, as a table and as JSON.

    python benchmarks/masks.py [--out benchmarks/results/masks.json]

First, planning: the time to find the blocks of 64 x 64 that a mask leaves, and the memory on top of what was held
before, for the table of a row pass and of a column pass, beside PyTorch's `create_block_mask` for the same mask at a
length that it finishes in seconds. Masks with loop bounds or ranges in closed form plan nothing; for some of them the
table is made anyway (``disable="bounds"``), to show what it would cost. Each number is from a process of its own on one
thread; times are processor time, the least of several rounds, since other programs on the machine only add to it.

Second, a 256-key window beside full attention at the same length, medians of interleaved rounds: how much of the
skipped work shows in time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).resolve().parent
WINDOW, RADIUS, DOCUMENT = 1024, 3, 1000
BLOCK = 64
LONGEST = 4.0
"""Seconds after which no further round begins."""
SIDE, FRAME = 1024, 1024
GRID = f"""const side = {SIDE}
let y = clamp(i // side, {RADIUS}, side - 1 - {RADIUS})
let x = clamp(i % side, {RADIUS}, side - 1 - {RADIUS})
"""
VOLUME = f"""const width = 128
const height = 64
let z = i // (width * height)
let y = clamp(i // width % height, {RADIUS}, height - 1 - {RADIUS})
let x = clamp(i % width, {RADIUS}, width - 1 - {RADIUS})
"""
DILATED = 2
SPECS = {
    "causal": "mask = j <= i",
    "window": f"mask = 0 <= i - j < {WINDOW}",
    "dilated": f"mask = 0 <= i - j < {WINDOW} and (i - j) % 4 == 0",
    "strided": "mask = j <= i and (i - j < 128 or j % 128 == 127)",
    "power-of-two distances": "let t = i // 64 - j // 64\nmask = j <= i and (t < 5 or t & (t - 1) == 0 or j < 64)",
    "radial": f"""const s = {FRAME}
let t = abs(i // s - j // s)
let reach = 1 << floor_log2(max(t, 1))
let away = abs(i % s - j % s)
mask = (away + 1) * reach <= s or (t % ((reach + s - 1) // s) == 0 and away == 0) or j < s""",
    "2-D neighbourhood": f"{GRID}mask = abs(j // side - y) <= {RADIUS} and abs(j % side - x) <= {RADIUS}",
    "dilated 2-D neighbourhood": f"""{GRID}
let near = abs(j // side - y) <= {RADIUS * DILATED} and abs(j % side - x) <= {RADIUS * DILATED}
mask = near and (i // side - j // side) % {DILATED} == 0 and (i % side - j % side) % {DILATED} == 0""",
    "3-D neighbourhood": f"""{VOLUME}
let near = abs(j // width % height - y) <= {RADIUS} and abs(j % width - x) <= {RADIUS}
mask = 0 <= z - j // (width * height) <= {RADIUS} and near""",
    "2-D neighbourhood, dilated by 32": f"""const side = {SIDE}
const step = 32
let near_y = abs(j // side // step - clamp(i // side // step, {RADIUS}, side // step - 1 - {RADIUS})) <= {RADIUS}
let near_x = abs(j % side // step - clamp(i % side // step, {RADIUS}, side // step - 1 - {RADIUS})) <= {RADIUS}
let same = i // side % step == j // side % step and i % side % step == j % side % step
mask = near_y and near_x and same""",
    "2-D torus": f"""const side = {SIDE}
let y = abs(i // side - j // side)
let x = abs(i % side - j % side)
mask = min(y, side - y) <= {RADIUS} and min(x, side - x) <= {RADIUS}""",
    "documents": "tensor doc: i32[B, N]\nmask = j <= i and doc[b, i] == doc[b, j]",
}

PLANNED = ("causal", "window", "2-D neighbourhood", "documents")
"""Masks whose table is made; the tables of some others take seconds or minutes."""


def documents(length: int) -> Tensor:
    """Ascending document numbers, about `DOCUMENT` tokens each."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return (torch.rand(1, length, generator=generator) < 1 / DOCUMENT).cumsum(1).to(torch.int32)


def memory(entry: str) -> float:
    """Memory of this process in MB: ``VmRSS`` now, ``VmHWM`` at most."""
    status = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) for row in status.splitlines() if row.startswith(entry)) / 1024


def timed(run: Callable[[], object], rounds: int) -> dict[str, float]:
    """The most memory of the first call on top of what was held before, and the least time of all; of those that begin
    in the first seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what is held now
    before = memory("VmRSS")
    times = []
    extra = 0.0
    for k in range(rounds):
        begun = time.process_time()
        run()
        times.append(time.process_time() - begun)
        if k == 0:
            extra = memory("VmHWM") - before
        if sum(times) > LONGEST:
            break
    return {"seconds": min(times), "megabytes": extra}


def visited_by(name: str) -> dict[str, Any]:
    """How the loops of the passes follow a mask."""
    import attnc
    from attnc import driver

    program = attnc.compile(f"attention masked\n{SPECS[name]}\n").program
    kernels = driver.all_kernels(program)
    closed = all(k.runs is None for k in kernels)
    text = "\n".join(str(d) for p in driver.plans(program) for d in p.decisions)
    return {"closed": closed, "ranges": closed and "ranges of blocks in closed form" in text}


def plan_once(name: str, inner: str, length: int, rounds: int) -> dict[str, Any]:
    """Planning a mask for passes that loop over `inner`."""
    import torch

    import attnc
    from attnc import driver
    from attnc.runtime.planner import plan
    from attnc.runtime.tiles import Mask

    torch.set_num_threads(1)
    text = f"attention masked\n{SPECS[name]}\n"
    kernels = driver.all_kernels(attnc.compile(text, disable="bounds").program)
    table = next(k.runs for k in kernels if k.runs is not None and k.runs.inner == inner)
    batch = tuple(a for a, _ in table.batch)

    def run(positions: int) -> int:
        tensors = {"doc": doc[:, :positions]} if "doc" in SPECS[name] else {}
        sizes = {"B": 1, "H": 1, "M": positions, "N": positions, "q_start": 0}
        extents = {"i": positions, "j": positions, "b": 1, "h": 1}
        made = Mask(table.condition, table.outer, inner, batch, extents, tensors, sizes, torch.device("cpu"))
        return len(plan(made, (BLOCK, BLOCK)).runs)

    doc = documents(length)
    run(4096)
    return {"length": length, **timed(lambda: run(length), rounds), "runs": run(length)}


def block_mask_once(name: str, length: int, rounds: int) -> dict[str, Any]:
    """PyTorch's eager block mask for the same mask (forward and transposed in one)."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask

    torch.set_num_threads(1)
    doc = documents(length)[0]
    side = 64

    def allowed(b: Any, h: Any, i: Any, j: Any) -> Any:
        if name == "causal":
            return j <= i
        if name == "window":
            return (i - j >= 0) & (i - j < WINDOW)
        if name == "documents":
            return (j <= i) & (doc[i] == doc[j])
        y = (i // side).clamp(RADIUS, length // side - 1 - RADIUS)
        x = (i % side).clamp(RADIUS, side - 1 - RADIUS)
        return ((j // side - y).abs() <= RADIUS) & ((j % side - x).abs() <= RADIUS)

    def run(positions: int) -> None:
        create_block_mask(allowed, 1, 1, positions, positions, device="cpu", BLOCK_SIZE=BLOCK)

    run(min(512, length))
    return {**timed(lambda: run(length), rounds), "length": length}


def window_once(window: int, length: int, rounds: int) -> dict[str, Any]:
    """A window of `window` keys, and all keys: forward, and forward with backward."""
    import torch

    import attnc

    torch.set_num_threads(1)
    ops = {
        "window": attnc.compile(f"attention window\nmask = 0 <= i - j < {window}\n"),
        "full": attnc.compile("attention full\n"),
    }
    row: dict[str, Any] = {"length": length, "window": window}
    q, k, v = (torch.randn(1, 1, length, 64, requires_grad=True) for _ in range(3))

    def forward(op: attnc.Op) -> Tensor:
        with torch.no_grad():
            return op(q, k, v)  # type: ignore[no-any-return]

    def both(op: attnc.Op) -> object:
        return torch.autograd.grad(op(q, k, v).sum(), (q, k, v))

    for op in ops.values():
        compiled(op)
    for what, run in (("forward", forward), ("both", both)):
        times: dict[str, list[float]] = {name: [] for name in ops}
        for _ in range(rounds):
            for name, op in ops.items():
                begun = time.process_time()
                run(op)
                times[name].append(time.process_time() - begun)
        medians = {name: statistics.median(t) for name, t in times.items()}
        row[what] = {**medians, "ratio": medians["full"] / medians["window"]}
    return row


def compiled(op: Any) -> None:
    """Have the kernels of an op compiled, in a short call."""
    import torch

    small = [torch.randn(1, 1, 64, 64, requires_grad=True) for _ in range(3)]
    torch.autograd.grad(op(*small).sum(), small)


def in_process(*arguments: Any) -> dict[str, Any]:
    """One measurement by this file in a process of its own."""
    command = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measure(what: str, *arguments: Any) -> dict[str, Any]:
    runners: dict[str, Callable[..., dict[str, Any]]]
    runners = {"plan": plan_once, "block_mask": block_mask_once, "window": window_once}
    return runners[what](*arguments)


def line(name: str, row: dict[str, Any]) -> str:
    form = row["form"]
    parts = [f"| {name} | {'ranges' if form['ranges'] else 'loop bounds' if form['closed'] else 'table'} "]
    if "forward" not in row:
        return parts[0] + "| " * 8 + "|"
    for direction in ("forward", "transposed"):
        got = row[direction]
        parts.append(f"| {got['seconds'] * 1e3:.0f} ms | {got['megabytes']:.0f} MB | {got['runs']:,} ")
    peer = row["create_block_mask"]
    parts.append(f"| {peer['seconds'] * 1e3:,.0f} ms | {peer['megabytes']:,.0f} MB |")
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", default=",".join(SPECS), help="which, with commas")
    parser.add_argument("--length", type=int, default=1 << 20, help="positions to plan for")
    parser.add_argument("--peer-length", type=int, default=8192, help="positions for create_block_mask")
    parser.add_argument("--window-length", type=int, default=16384, help="positions of the timed window")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "masks.json")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*json.loads(given.measure))))
        return
    import torch

    from attnc.testing.machine import processor

    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    result: dict[str, Any] = {"machine": machine, "block": BLOCK, "planning": {}}

    def keep() -> None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")

    machine_line = f"{machine['processor']}, {machine['cores']} cores, one thread, torch {machine['torch']}"
    print(f"{machine_line}; blocks of {BLOCK} x {BLOCK}\n")
    print(f"Planning {given.length:,} tokens; create_block_mask at {given.peer_length:,}\n")
    print("| mask | visited by | forward | memory | runs | transposed | memory | runs | create_block_mask | memory |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in given.masks.split(","):
        row = {"form": visited_by(name)}
        if name in PLANNED:
            row["forward"] = in_process("plan", name, "j", given.length, given.rounds)
            row["transposed"] = in_process("plan", name, "i", given.length, given.rounds)
            row["create_block_mask"] = in_process("block_mask", name, given.peer_length, min(3, given.rounds))
        result["planning"][name] = row
        keep()
        print(line(name, row), flush=True)
    window = in_process("window", 256, given.window_length, min(3, given.rounds))
    result["window"] = window
    keep()
    print(f"\nA window of 256 keys at N = {window['length']:,}, f32, B1 H1 D64\n")
    print("| | window | full attention | ratio |")
    print("|---|--:|--:|--:|")
    for what, title in (("forward", "forward"), ("both", "forward and backward")):
        row = window[what]
        print(f"| {title} | {row['window'] * 1e3:.1f} ms | {row['full'] * 1e3:,.0f} ms | 1/{row['ratio']:.0f} |")
    print(f"\nwritten to {given.out}")


if __name__ == "__main__":
    main()
