"""Time per token, memory, and the price of visiting all pairs, for specs that run in linear time.

    python benchmarks/linear.py [--specs retention,gla] [--lengths 2048,8192] [--out benchmarks/results/linear.json]

Times are CPU time of one thread, so that what else the machine does counts less. Every call covers the same number of
tokens, that of the longest length, in as many sequences as it takes, so that all lengths use as much memory; lengths
take turns within a round, rounds go on for some seconds, and each length's least time is printed. Memory is the peak of
a process that runs one sequence of each length, shortest first. The peer is the same spec with `disable="scan"`, one
sequence a call, in the same rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"
SPECS = "linear_attention,retention,lightning,scalar_decay,gla,cosformer,aaren"
LENGTHS = "2048,16384,131072"
HEADS, CHANNELS = 1, 64
ROUNDS = 2
"""At the least."""
KINDS = {"forward": "forward", "both": "with backward"}


def inputs(spec: str, length: int, batch: int) -> dict[str, Any]:
    """Seeded tensors of a spec; decays are between 0.75 and 1."""
    import torch

    import attnc
    from attnc.testing.inputs import complete_sizes, make_inputs

    program = attnc.compile(EXAMPLES / f"{spec}.attn").program
    sizes = complete_sizes(program, {"B": batch, "H": HEADS, "G": HEADS, "N": length, "D": CHANNELS})
    tensors = make_inputs(program, sizes, torch.float32)
    if "g" in tensors:
        tensors["g"] = -0.3 * torch.rand_like(tensors["g"])
    return tensors


def calls(spec: str, length: int, batch: int = 1, disable: str = "") -> dict[str, Callable[[], object]]:
    """The forward, and the forward with the backward, of one spec at one length."""
    import attnc
    from attnc.testing import race

    op = attnc.compile(EXAMPLES / f"{spec}.attn", disable=disable or ())
    runner = race.of_op(op, inputs(spec, length, batch))
    return {"forward": runner.forward, "both": runner.both}


def per_token(call: Callable[[], object], tokens: int) -> float:
    """Microseconds of CPU time per token and head."""
    start = time.process_time()
    call()
    return (time.process_time() - start) / tokens / HEADS * 1e6


def times(spec: str, lengths: list[int], quadratic: list[int], seconds: float) -> list[dict[str, Any]]:
    """Least times per length, for states and for all pairs; every contestant takes its turn in every round."""
    rows = []
    for kind in KINDS:
        batches = {("states", n): max(lengths) // n for n in lengths} | {("all pairs", n): 1 for n in quadratic}
        contestants = {
            (way, n): calls(spec, n, batch, "" if way == "states" else "scan")[kind]
            for (way, n), batch in batches.items()
        }
        samples: dict[tuple[str, int], list[float]] = {key: [] for key in contestants}
        for call in contestants.values():
            call()
        end, rounds = time.monotonic() + seconds, 0
        while rounds < ROUNDS or time.monotonic() < end:
            rounds += 1
            for key, call in contestants.items():
                samples[key].append(per_token(call, key[1] * batches[key]))
        found = {way: {n: min(samples[way, n]) for w, n in samples if w == way} for way, _ in samples}
        states = found["states"]
        spread = max(states.values()) / min(states.values()) - 1
        pairs = found.get("all pairs", {})
        ratios = {n: pairs[n] / states[n] for n in pairs if n in states}
        rows.append({"spec": spec, "kind": kind, **found, "spread": spread, "ratios": ratios, "rounds": rounds})
    return rows


def peak() -> float:
    """Peak memory of this process in megabytes. What `getrusage` says would include its parent's on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(x.split()[1]) / 1024 for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_peaks(spec: str, lengths: list[int]) -> None:
    import torch

    torch.set_num_threads(1)
    for n in lengths:
        calls(spec, n)["both"]()
        print(peak())


def memory(spec: str, lengths: list[int]) -> dict[str, Any]:
    """Peak memory in megabytes by length, and by how much each further thousand tokens raises it."""
    script = str(Path(__file__).resolve())
    command = [sys.executable, script, "--specs", spec, "--lengths", ",".join(map(str, lengths)), "--peaks"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peaks = dict(zip(lengths, map(float, done.stdout.split()), strict=True))
    growth = {b: (peaks[b] - peaks[a]) / (b - a) * 1000 for a, b in itertools.pairwise(lengths)}
    return {"spec": spec, "peak_mb": peaks, "mb_per_1000_tokens": growth}


def time_line(row: dict[str, Any]) -> str:
    states = "".join(f"{t:9.2f}" for t in row["states"].values())
    ratios = ", ".join(f"{r:.1f}x at {n}" for n, r in row["ratios"].items())
    return f"{row['spec']:18}{KINDS[row['kind']]:14}{states}{row['spread']:9.0%}   {ratios}"


def memory_line(row: dict[str, Any]) -> str:
    peaks = "".join(f"{m:9.0f}" for m in row["peak_mb"].values())
    growth = ", ".join(f"{m:.2f}" for m in row["mb_per_1000_tokens"].values())
    return f"{row['spec']:18}{'':14}{peaks}            {growth}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--specs", default=SPECS, help="which, with commas")
    parser.add_argument("--lengths", default=LENGTHS, help="which, with commas")
    parser.add_argument("--quadratic", default="2048", help="lengths for all pairs, with commas")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row of times (%(default)s)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "linear.json")
    parser.add_argument("--peaks", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    lengths, quadratic = ([int(n) for n in text.split(",")] for text in (given.lengths, given.quadratic))
    if given.peaks:
        print_peaks(given.specs, lengths)
        return
    import torch

    from attnc.testing.machine import processor

    torch.set_num_threads(1)
    if not set(quadratic) <= set(lengths):
        parser.error("--quadratic names lengths that --lengths does not")
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sizes": {"H": HEADS, "D": CHANNELS, "E": CHANNELS},
        "dtype": "f32",
    }
    report: dict[str, Any] = {"machine": machine, "times": [], "memory": []}
    print(f"{machine['processor']}, one thread, torch {machine['torch']}, f32, H{HEADS} D{CHANNELS}")
    head = "".join(f"{n:9d}" for n in lengths)
    print(f"\nmicroseconds of CPU time per token and head\n{'spec':18}{'':14}{head}   spread   all pairs take")
    for spec in given.specs.split(","):
        for row in times(spec, lengths, quadratic, given.seconds):
            report["times"].append(row)
            print(time_line(row), flush=True)
    print(f"\npeak memory, MB, forward and backward\n{'spec':18}{'':14}{head}            MB per 1000 further tokens")
    for spec in given.specs.split(","):
        report["memory"].append(memory(spec, lengths))
        print(memory_line(report["memory"][-1]), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {given.out}")


if __name__ == "__main__":
    main()
