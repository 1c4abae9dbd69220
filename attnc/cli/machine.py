"""Machine code of a spec's kernels, compiled ahead of time for a GPU that need not be there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from attnc.codegen.tile import Kernel
    from attnc.ir.program import Program
    from attnc.runtime.triton_aot import Artefact


def compiled_kernels(program: Program, target: str, dtype: str, channels: int) -> Iterator[tuple[Kernel, Artefact]]:
    """Every kernel of the forward and backward, compiled for `target` (``sm_90``, ``gfx942``)."""
    from attnc import driver
    from attnc.cli import report
    from attnc.runtime.triton_aot import aot

    out = report.console(error=True)
    for kernel in driver.all_kernels(program, dtype, channels, "gpu"):
        sizes = dict.fromkeys(driver.channel_sizes(program), channels)
        with out.status(f"compiling {kernel.name} for {target}"):
            artefact = aot(kernel, None, target, sizes)
        yield kernel, artefact


def listing(program: Program, emit: str, target: str, dtype: str, channels: int) -> str:
    """PTX or SASS of every kernel; on AMD, where those do not exist, its assembly."""
    parts = []
    for kernel, artefact in compiled_kernels(program, target, dtype, channels):
        text = artefact.assembly if target.startswith("gfx") else artefact.listings[emit]
        parts.append(f"// {kernel.name}, {target}\n{text.strip()}\n")
    return "\n".join(parts)


def resource_table(program: Program, target: str, dtype: str, channels: int) -> Table:
    """Registers, spills, shared memory, hot loop and failed gates of every kernel (`attnc.testing.artefacts`)."""
    from rich.table import Table

    from attnc.testing.artefacts import report

    table = Table(title=f"{program.name}, {target}, {dtype}", title_justify="left", box=None, pad_edge=False)
    table.add_column("kernel")
    for title in ("registers", "spilled", "shared memory", "programs", "loop", "work"):
        table.add_column(title, justify="right", min_width=len(title) + 2)
    table.add_column("")
    for kernel, a in compiled_kernels(program, target, dtype, channels):
        r = report(kernel, a)
        verdict = f"[bold red]{'; '.join(r.problems)}[/]" if r.problems else "[green]passes[/]"
        loop = "" if r.loop is None else str(r.loop.length)
        work = "" if r.work is None else f"{r.work:.2f}"
        programs = "" if r.programs is None else str(r.programs)
        table.add_row(kernel.name, str(r.registers), str(r.spilled), f"{r.shared:,} B", programs, loop, work, verdict)
    table.caption = (
        "programs: at once on a multiprocessor. loop: instructions over full blocks. work: of the matrix instructions, "
        "over that of the products."
    )
    table.caption_justify = "left"
    return table
