"""Long runs: ``python -m tests.fuzz --specs 100000``. What fails is shrunk and written to a folder."""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.fuzz.check import BACKENDS
from tests.fuzz.search import BATCH, Failure, search


def main() -> int:
    """Check specs until there are enough, or too many failures; the exit status says whether any failed."""
    options = _arguments()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    console = Console()
    verdicts: Counter[str] = Counter()
    failures: dict[str, Failure] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("checking", total=options.specs)
        for start in range(options.seed, options.seed + -(-options.specs // BATCH)):
            count = min(BATCH, options.specs - BATCH * (start - options.seed))
            progress.update(task, description=f"seed {start}, {len(failures)} failures")
            batch = search(start, options.backend, count, lambda: progress.advance(task))
            verdicts.update(batch.verdicts)
            progress.update(task, completed=min(options.specs, BATCH * (start - options.seed + 1)))
            if batch.failure is not None and batch.failure.origin not in failures:
                failures[batch.failure.origin] = batch.failure
                console.print(f"seed {start}: {batch.failure.origin}", markup=False)
                console.print(f"  {batch.failure.write(options.out)}", markup=False)
            if len(failures) >= options.failures:
                break
    console.print(f"{verdicts.total()} specs: {', '.join(f'{n} {v}' for v, n in verdicts.most_common())}", markup=False)
    console.print(f"{len(failures)} kinds of failure", style="bold red" if failures else "bold green")
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Check attnc on generated specs.")
    parser.add_argument("--specs", type=int, default=1000, help="how many specs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch; the same seed draws the same specs")
    parser.add_argument(
        "--backend", action="append", choices=BACKENDS, help="what runs them; may be repeated (tiled, in float64)"
    )
    parser.add_argument("--failures", type=int, default=10, help="stop after this many kinds of failure (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"), help="where failures go (%(default)s)")
    options = parser.parse_args()
    options.backend = options.backend or ["tiled"]
    return options


if __name__ == "__main__":
    raise SystemExit(main())
