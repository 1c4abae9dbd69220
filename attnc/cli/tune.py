"""``attnc tune``: block lengths, warps and stages of a spec's GPU kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnc.cli.compiling import Disable

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from attnc.ir.program import Program
    from attnc.runtime.tuning import Trial
    from attnc.testing.tuning import Ranked

EXAMPLE = "attnc tune examples/alibi.attn --size B=2,H=16,N=8192,D=128"


def tune(
    file: Annotated[Path, typer.Argument(help="The spec.")],
    size: Annotated[list[str] | None, typer.Option("--size", help="Sizes to measure at, as B=2,H=16,N=8192.")] = None,
    dtype: Annotated[str, typer.Option(help="Of q, k and v: bf16, f16 or f32.")] = "bf16",
    target: Annotated[str, typer.Option(help="Without a GPU: which one to rank for, as sm_90.")] = "sm_90",
    name: Annotated[str | None, typer.Option(help="Which definition of a file that holds several.")] = None,
    const: Annotated[list[str] | None, typer.Option("--const", help="NAME=VALUE, in place of the spec's own.")] = None,
    disable: Disable = None,
    rounds: Annotated[int, typer.Option(min=2, help="Timed runs of each configuration.")] = 10,
    looked_at: Annotated[int, typer.Option(min=1, help="Configurations of a kernel that are compiled.")] = 12,
    record: Annotated[
        Path | None, typer.Option("--record", help="Add what was measured to this table, by class of kernel.")
    ] = None,
) -> None:
    """Find the fastest configuration of every kernel.

    Configurations are compiled and ranked by a static model of the hot loop. On a GPU at most eight of each kernel, the
    most promising, are then measured in a forward and backward on random inputs, and the fastest is kept in the cache:
    later calls of the same kernel on this machine begin with it. Without a GPU the ranking is printed, and nothing is
    kept, because nothing was measured.
    """
    import torch

    from attnc.cli import report
    from attnc.cli.compiling import dtype_named
    from attnc.cli.inspect import TARGETS

    kind = dtype_named(dtype)
    if dtype == "f64":
        raise report.usage("GPU kernels compute in f32", "choose one of: bf16, f16, f32")
    if torch.cuda.is_available():
        trials = _measured(file, name, const, disable, size, kind, rounds, looked_at)
        _keep(trials, record)
        return
    if target not in TARGETS:
        raise report.usage(f"there is no target {target!r}", "choose one of: " + ", ".join(TARGETS))
    if record is not None:
        raise report.usage("--record takes measured configurations, and there is no GPU here", "leave it out")
    _rank(file, name, const, disable, size, dtype, target, looked_at)


def _rank(
    file: Path,
    name: str | None,
    const: Sequence[str] | None,
    disable: Sequence[str] | None,
    size: Sequence[str] | None,
    dtype: str,
    target: str,
    looked_at: int,
) -> None:
    """Print the static model's ranking for a device that is not there."""
    from attnc import driver
    from attnc.cli import report
    from attnc.cli.compiling import sizes_given
    from attnc.testing.tuning import ranked

    program = _program(file, name, const, disable)
    channels = sizes_given(size).get("D", 64)
    kernels = driver.all_kernels(program, dtype, channels, "gpu")
    with _progress() as bar:
        task = bar.add_task("ranking", total=len(kernels))
        for kernel in kernels:
            listed = ranked(
                kernel, kernel.constants, target, lambda words: bar.update(task, description=words), looked_at
            )
            bar.console.print(_ranking(kernel.name, listed))
            bar.advance(task)
    report.console().print(f"no GPU here: nothing was measured or kept; this is a static model of {target}")


def _program(file: Path, name: str | None, const: Sequence[str] | None, disable: Sequence[str] | None) -> Program:
    from attnc import driver
    from attnc.cli import specs
    from attnc.ir.options import options

    source = specs.read(file)
    chosen = options(disable or ())
    return driver.lower(driver.definition(source, name), source, specs.constants(const), options=chosen)


def _measured(
    file: Path,
    name: str | None,
    const: Sequence[str] | None,
    disable: Sequence[str] | None,
    size: Sequence[str] | None,
    kind: Any,
    rounds: int,
    looked_at: int,
) -> list[Trial]:
    from attnc.cli.compiling import checked_sizes, compiled, sizes_given
    from attnc.runtime.tuning import CudaClock
    from attnc.testing import race
    from attnc.testing.inputs import make_inputs
    from attnc.testing.tuning import measured, promising

    op = compiled(file, const, "triton", name, disable)
    sizes = checked_sizes(op, {"H": 16, "N": 4096, "D": 64} | sizes_given(size))
    runner = race.of_op(op, make_inputs(op.program, sizes, kind, device="cuda"))
    with _progress() as bar:
        task = bar.add_task("compiling", total=None)
        return measured(
            runner.both,
            CudaClock(),
            rounds=rounds,
            choose=lambda k, s, t: promising(k, s, t, lambda w: bar.update(task, description=w), looked_at),
            progress=lambda done, total: bar.update(task, description="measuring", completed=done, total=total),
        )


def _keep(trials: Sequence[Trial], record: Path | None) -> None:
    """Write down what was measured, and show it."""
    import json

    import torch

    from attnc.cli import report
    from attnc.cli.files import write_atomically
    from attnc.runtime.tuning import remember
    from attnc.testing.tuning import recorded

    device = torch.cuda.get_device_name(0)
    for trial in trials:
        remember(trial, device)
        report.console().print(_timings(trial))
    if record is not None:
        import triton

        table = json.loads(record.read_text()) if record.exists() else {}
        kept = [recorded(table, t, f"{device}, triton {triton.__version__}") for t in trials]
        write_atomically(record, json.dumps(table, indent=1, sort_keys=True) + "\n")
        report.console().print(f"{sum(kept)} kernels recorded in {record}")


def _progress() -> Progress:
    from rich.progress import Progress

    from attnc.cli import report

    return Progress(console=report.console(error=True), transient=True)


def _ranking(kernel: str, listed: Sequence[Ranked]) -> Table:
    from rich.table import Table

    from attnc.testing.tuning import spell

    table = Table(title=kernel, title_justify="left", box=None, pad_edge=False)
    table.add_column("configuration")
    for title in ("registers", "spilled", "shared memory", "programs", "loop", "cycles per 1000 pairs"):
        table.add_column(title, justify="right")
    for r in listed:
        said = r.report
        cells = ["", "", "", "", ""]
        if said is not None:
            loop = "" if said.loop is None else str(said.loop.length)
            cells = [str(said.registers), str(said.spilled), f"{said.shared:,}", str(said.programs or ""), loop]
        cost = "" if r.cost == float("inf") else f"{r.cost * 1000:.0f}"
        table.add_row(spell(r.configuration), *cells, cost, style=None if r.fits else "dim")
    return table


def _timings(trial: Trial) -> Table:
    from rich.table import Table

    from attnc.testing.timing import spell as seconds
    from attnc.testing.tuning import spell

    table = Table(title=f"{trial.kernel.name}, {trial.bucket}", title_justify="left", box=None, pad_edge=False)
    table.add_column("configuration")
    table.add_column("median", justify="right")
    for n, choice in enumerate(trial.choices):
        taken = trial.seconds(n)
        mark = "bold green" if n == trial.best else None
        table.add_row(spell(choice), "spills" if taken is None else seconds(taken), style=mark)
    return table
