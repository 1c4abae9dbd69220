"""Every contract spec on a GPU: right first, then how fast beside its peers.

    python benchmarks/gpu.py                 # on a CUDA device; under nine minutes on an H200
    python benchmarks/gpu.py --dry-run       # the same path on a CPU, tiny, through Triton's interpreter

First every spec of the language's contract in bf16 and f16: outputs and all gradients against the float64 oracle
(`pytest -m gpu` is this part alone). Then medians and quartiles of the forward, and of the forward and backward, beside
the backends of `scaled_dot_product_attention`, compiled `flex_attention` and eager PyTorch on the same inputs in the
same rounds, where these can express a case and agree with attnc's output: plain attention over lengths and channels,
grouped heads, the variants, decoding. Last what a call costs on the host, and how long a first result takes.

Checks, and compiling what will be timed, run in several processes side by side; timings in one. A process that dies or
hangs costs the case it was at. The JSON file is rewritten after every case, so what was measured is kept. The rate of
a case counts two products over the pairs that its mask allows (five more for the backward), whatever an algorithm does.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnc.testing.gpu.cases import Suite
    from attnc.testing.gpu.record import Record

HERE = Path(__file__).resolve().parent
DEADLINES = {"cuda": 520.0, "cpu": 300.0}
"""Seconds after which nothing new is begun, and what still runs is stopped."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU, through Triton's interpreter")
    parser.add_argument("--out", type=Path, default=None, help="the JSON file; table and picture go beside it")
    parser.add_argument("--specs", default="", help="which, with commas; all by default")
    parser.add_argument("--stages", default="check,race,calls,starts", help="which, with commas")
    parser.add_argument("--deadline", type=float, default=None, help="seconds after which everything is stopped")
    parser.add_argument("--work", nargs=2, metavar=("JOBS", "FILE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def run(suite: Suite, record: Record, given: argparse.Namespace, folder: Path) -> None:
    """All stages, what matters most first."""
    from attnc.testing.gpu.jobs import Pool, jobs

    command = [sys.executable, str(Path(__file__).resolve()), *(["--dry-run"] if given.dry_run else []), "--work"]
    deadline = record.begun + (DEADLINES[suite.device] if given.deadline is None else given.deadline)
    pool = Pool(command, folder, suite, deadline, record.add)
    stages, specs = given.stages.split(","), [s for s in given.specs.split(",") if s]
    record.note_clocks("before")
    if "check" in stages:
        pool.run(jobs(suite, "check", specs), suite.processes)
    alone = [job for stage in ("race", "calls", "starts") if stage in stages for job in jobs(suite, stage, specs)]
    if "race" in stages:
        prepared = jobs(suite, "prepare", specs)
        if suite.device == "cuda":
            pool.run(prepared, suite.processes)
        else:
            alone = [*prepared[:1], *alone]  # one is enough to walk the path
    record.note_clocks("before the races")
    pool.run(alone, 1)
    record.note_clocks("after the races")


def main() -> int:
    """Exit code 0 when everything ran and agreed, 1 when something did not, 2 without a device."""
    given = arguments()
    if given.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from attnc.testing.gpu.cases import dry_run, on_gpu
    from attnc.testing.gpu.jobs import work
    from attnc.testing.gpu.record import Record

    if not given.dry_run and not torch.cuda.is_available():
        print("no CUDA device here; python benchmarks/gpu.py --dry-run walks the same path on a CPU")
        return 2
    suite = dry_run() if given.dry_run else on_gpu()
    if given.work:
        keys, out = given.work
        return work(keys.split(","), suite, Path(out))
    device = "" if given.dry_run else torch.cuda.get_device_name(0).lower().replace(" ", "_").replace("/", "_")
    out = given.out or HERE / "results" / ("dry_run.json" if given.dry_run else f"gpu_{device}.json")
    record = Record(suite, out, lambda line: print(line, flush=True))
    with tempfile.TemporaryDirectory() as folder:
        run(suite, record, given, Path(folder))
    return 0 if record.finish() else 1


if __name__ == "__main__":
    raise SystemExit(main())
