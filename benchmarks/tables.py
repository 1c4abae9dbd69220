"""What tables of products and of distances save, for specs with relative positions.

    OMP_NUM_THREADS=1 python benchmarks/tables.py [--specs music,gallery/t5] [--length 2048]

The peers are the same spec without these rewrites (`disable=("tables", "toeplitz")`), and plain softmax attention of
the same size, which does nothing about positions. Times are CPU time; contestants take turns, and each one's least
time counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"
SPECS = (
    "music,gallery/music_local,gallery/halonet,gallery/deberta_v2,gallery/t5,gallery/t5_decoder,gallery/urpe_buckets"
)
DISABLED = ("tables", "toeplitz")
KINDS = {"forward": "forward", "both": "with backward"}
ROUNDS = 2
"""At the least."""


def calls(spec: str, length: int, disable: tuple[str, ...] = ()) -> dict[str, Callable[[], object]]:
    """The forward, and the forward with the backward."""
    import torch

    import attnc
    from attnc.testing import race
    from attnc.testing.inputs import complete_sizes, make_inputs

    op = attnc.compile(EXAMPLES / f"{spec}.attn", disable=disable)
    sizes = complete_sizes(op.program, {"B": 1, "H": 4, "G": 4, "M": length, "N": length, "D": 64, "E": 64})
    runner = race.of_op(op, make_inputs(op.program, sizes, torch.float32))
    return {"forward": runner.forward, "both": runner.both}


def row(spec: str, kind: str, length: int, seconds: float) -> dict[str, Any]:
    """Least times in milliseconds of a spec with tables, without, and of softmax attention."""
    contestants = {
        "with": calls(spec, length)[kind],
        "without": calls(spec, length, DISABLED)[kind],
        "softmax": calls("softmax", length)[kind],
    }
    least: dict[str, float] = {}
    for call in contestants.values():
        call()
    end, rounds = time.monotonic() + seconds, 0
    while rounds < ROUNDS or time.monotonic() < end:
        rounds += 1
        for name, call in contestants.items():
            start = time.process_time()
            call()
            least[name] = min(least.get(name, float("inf")), (time.process_time() - start) * 1e3)
    return {"spec": spec, "kind": kind, "length": length, "milliseconds": least, "rounds": rounds}


def line(found: dict[str, Any]) -> str:
    """A row of the printed table."""
    least = found["milliseconds"]
    times = f"{least['with']:10.1f} ms{least['without'] / least['with']:12.1f}{least['with'] / least['softmax']:12.2f}"
    return f"{found['spec']:24}{KINDS[found['kind']]:16}{times}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--specs", default=SPECS, help="which, with commas")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each row (%(default)s)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tables.json")
    given = parser.parse_args()
    import torch

    from attnc.testing.machine import processor

    torch.set_num_threads(1)
    print(f"{'':40}{'attnc':>13}{'without, x':>12}{'softmax = 1':>12}")
    rows = []
    for spec in given.specs.split(","):
        for kind in KINDS:
            rows.append(row(spec, kind, given.length, given.seconds))
            print(line(rows[-1]), flush=True)
    machine = {"processor": processor(), "threads": 1, "torch": torch.__version__}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
