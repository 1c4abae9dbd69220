"""Ratios to PyTorch's `scaled_dot_product_attention` on this CPU, as a table and as JSON.

    python benchmarks/run.py [--specs causal,alibi] [--lengths 512,2048] [--out benchmarks/results/cpu.json]

Forward, and forward with backward; interleaved rounds, medians and quartiles. A ratio above 1 means attnc is faster.
Specs that SDPA cannot express are timed alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"
SPECS = "softmax,causal,alibi,sliding_window,document_causal,sinks,sigmoid_attention"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measure(spec: str, length: int, rounds: int, dtype: str) -> dict[str, Any]:
    """One line of the table."""
    import torch

    import attnc
    from attnc.testing import race
    from attnc.testing.inputs import complete_sizes, make_inputs
    from attnc.testing.peers import Peer, sdpa
    from attnc.testing.timing import interleaved

    op = attnc.compile(EXAMPLES / f"{spec}.attn")
    program = op.program
    sizes = complete_sizes(program, {"B": 1, "H": 8, "N": length, "D": 64})
    kind = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    tensors = make_inputs(program, sizes, kind)
    runners = [race.of_op(op, tensors)]
    peer = sdpa(program, tensors, sizes)
    if isinstance(peer, Peer):
        runners.append(race.of_peer(peer, tensors))
    row: dict[str, Any] = {"spec": spec, "N": length, "dtype": dtype, "sizes": sizes}
    row["peer"] = peer.name if isinstance(peer, Peer) else f"none: {peer.reason}"
    for what in ("forward", "both"):
        timings = interleaved({r.name: getattr(r, what) for r in runners}, rounds=rounds)
        row[what] = {name: asdict(t) for name, t in timings.items()}
        if isinstance(peer, Peer):
            row[f"{what}_ratio"] = timings[peer.name].median / timings["attnc"].median
    return row


def line(row: dict[str, Any]) -> str:
    def part(what: str) -> str:
        ratio = row.get(f"{what}_ratio")
        return f"{row[what]['attnc']['median'] * 1e3:9.2f} ms {'' if ratio is None else f'{ratio:6.2f}x':>8}"

    return f"{row['spec']:18} {row['N']:6d} {part('forward')} {part('both')}   {row['peer']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--specs", default=SPECS, help="which, with commas")
    parser.add_argument("--lengths", default="512,2048", help="which, with commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16", "f16"])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu.json")
    given = parser.parse_args()
    import torch

    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, {given.dtype}, B1 H8 D64")
    print(f"{'spec':18} {'N':>6} {'forward':>21} {'with backward':>21}   SDPA's time as a multiple of attnc's")
    rows: list[dict[str, Any]] = []
    for spec in given.specs.split(","):
        for length in given.lengths.split(","):
            rows.append(measure(spec, int(length), given.rounds, given.dtype))
            print(line(rows[-1]), flush=True)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
