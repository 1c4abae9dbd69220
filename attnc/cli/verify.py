"""``attnc verify``: sweep shapes, dtypes and backends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnc.cli.compiling import Disable

if TYPE_CHECKING:
    from attnc.testing.sweep import Outcome

EXAMPLE = "attnc verify examples/alibi.attn --backends cpp,triton --dtypes f32,bf16"


def verify(
    files: Annotated[list[Path] | None, typer.Argument(help="Specs, or directories of them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every example spec.")] = False,
    backends: Annotated[str, typer.Option(help="Which of cpp, triton, tiled, dense and auto, with commas.")] = "auto",
    dtypes: Annotated[str, typer.Option(help="Which of f32, bf16, f16, f64, with commas.")] = "f32",
    lengths: Annotated[str, typer.Option(help="Sequence lengths, with commas.")] = "1,7,63,257",
    full: Annotated[bool, typer.Option("--full", help="Also equal and unequal channels: twice the compiling.")] = False,
    backward: Annotated[bool, typer.Option("--backward/--no-backward", help="Compare gradients too.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    disable: Disable = None,
) -> None:
    """Sweep shapes, dtypes and backends.

    Every output and gradient is compared with the float64 oracle, at lengths that align with nothing, with grouped
    heads, strided inputs, and M unlike N.
    """
    from attnc.cli import report, specs
    from attnc.cli.compiling import dtype_named, interpret_triton
    from attnc.cli.files import expand
    from attnc.cli.listing import EXAMPLES
    from attnc.ir.options import options
    from attnc.runtime.backends import requested

    paths = expand([*(files or ()), *([EXAMPLES] if every else [])])
    if not paths:
        raise report.usage("nothing to verify", "name specs, or give --all for every example")
    for word in _words(dtypes):
        dtype_named(word)
    counts = numbers(lengths)
    interpret_triton(_words(backends))
    for word in _words(backends):
        requested(word)
    named = [(path, item.program.name) for path in paths for item in specs.lower_all(specs.read(path), {})]
    off = options(disable or ()).disabled
    jobs = [Job(path, name, b, d, off) for path, name in named for b in _words(backends) for d in _words(dtypes)]
    _sweep(jobs, counts, backward, device, full)
    out = report.console()
    out.print(_summary(jobs))
    failures = [(job, o) for job in jobs for o in job.outcomes if not o.agrees]
    for job, outcome in failures[:20]:
        out.print(_failure(job, outcome), markup=False)
    if failures or any(job.problem for job in jobs):
        raise typer.Exit(report.WRONG)


@dataclass
class Job:
    """One spec on one backend in one dtype, without the rewrites in `disabled`."""

    path: Path
    name: str
    backend: str
    dtype: str
    disabled: frozenset[str] = frozenset()
    outcomes: list[Outcome] = field(default_factory=list)
    problem: str | None = None

    @property
    def agrees(self) -> bool:
        return not self.problem and all(o.agrees for o in self.outcomes)

    @property
    def verdict(self) -> str:
        return "agrees" if self.agrees else "disagrees"


def _words(text: str) -> list[str]:
    return [w.strip() for w in text.split(",") if w.strip()]


def numbers(text: str) -> list[int]:
    from attnc.cli import report

    words = _words(text)
    if not words or not all(w.isdigit() and int(w) > 0 for w in words):
        raise report.usage(f"--lengths {text}: not a list of lengths", "for example: --lengths 1,7,63,257")
    return [int(w) for w in words]


def _sweep(jobs: list[Job], lengths: list[int], backward: bool, device: str, full: bool) -> None:
    """Run every case of every job, with a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from attnc.cli import report

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=report.console(error=True), transient=True) as progress:
        task = progress.add_task("verifying", total=len(jobs) * (len(lengths) + 2))
        for job in jobs:
            progress.update(task, description=f"{job.name} {job.backend} {job.dtype}")
            done = 0
            for outcome in _outcomes(job, lengths, backward, device, full):
                job.outcomes.append(outcome)
                done += 1
                progress.advance(task)
            progress.advance(task, len(lengths) + 2 - done)
            if not progress.console.is_terminal:
                progress.console.print(f"{job.name} {job.backend} {job.dtype}: {job.verdict}", markup=False)


def _outcomes(job: Job, lengths: list[int], backward: bool, device: str, full: bool) -> Iterator[Outcome]:
    import attnc
    from attnc.cli.compiling import dtype_named
    from attnc.diagnostics.diagnostic import AttncError
    from attnc.testing.sweep import attempt, cases

    try:
        op = attnc.compile(job.path, name=job.name, backend=job.backend, disable=job.disabled)
    except AttncError as wrong:
        job.problem = str(wrong)
        return
    for case in cases(op.program, lengths, full=full):
        yield attempt(op, case, dtype_named(job.dtype), device=device, backward=backward)


def _summary(jobs: list[Job]) -> object:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("spec", "backend", "dtype"):
        table.add_column(title)
    for title in ("calls", "values compared", "worst error / limit"):
        table.add_column(title, justify="right")
    table.add_column("")
    for job in jobs:
        worst = max((o.worst for o in job.outcomes), default=0.0)
        compared = sum(len(o.rows) for o in job.outcomes)
        verdict = f"[{'green' if job.agrees else 'bold red'}]{job.verdict}[/]"
        table.add_row(job.name, job.backend, job.dtype, str(len(job.outcomes)), str(compared), f"{worst:.2f}", verdict)
        if job.problem:
            table.add_row("", "", "", "", "", "", job.problem.splitlines()[0])
    return table


def _failure(job: Job, outcome: Outcome) -> str:
    where = f"{job.name} {job.backend} {job.dtype} {outcome.case.label}"
    if outcome.problem:
        return f"{where}: {outcome.problem}"
    wrong = [f"{r.label} is off by {r.error:.2e}, allowed {r.limit:.2e}" for r in outcome.rows if not r.agrees]
    return f"{where}: {'; '.join(wrong)}"
