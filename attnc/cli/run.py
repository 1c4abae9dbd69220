"""``attnc run``: from a spec to kernels that agree with the oracle, and how fast they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnc.cli.compiling import Disable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from attnc.runtime.op import Op
    from attnc.testing.compare import Agreement
    from attnc.testing.race import Tensors
    from attnc.testing.timing import Timing

EXAMPLE = "attnc run examples/alibi.attn --size H=8,N=4096 --dtype bf16"
DEFAULT_SIZES = {"B": 1, "H": 8, "D": 64}
DEFAULT_LENGTH = 1024


def run(
    file: Annotated[Path, typer.Argument(help="The spec.")],
    size: Annotated[list[str] | None, typer.Option("--size", help="Sizes of the call, as B=1,H=8,N=4096,D=64.")] = None,
    dtype: Annotated[str, typer.Option(help="f32, bf16, f16 or f64.")] = "f32",
    backend: Annotated[str | None, typer.Option(help="auto, cpp, triton, tiled or dense.")] = None,
    name: Annotated[str | None, typer.Option(help="Which definition of a file that holds several.")] = None,
    const: Annotated[list[str] | None, typer.Option("--const", help="NAME=VALUE, in place of the spec's own.")] = None,
    disable: Disable = None,
    backward: Annotated[
        bool, typer.Option("--backward/--no-backward", help="Check and time the gradients too.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Timing rounds.")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the generated sources; by default the cache.")
    ] = None,
) -> None:
    """Compile a spec, check it and time it.

    Every output and gradient is compared with a float64 oracle at a real size; then the spec is timed beside PyTorch's
    scaled_dot_product_attention, where that can express it, in interleaved rounds.
    """
    from attnc.cli import report
    from attnc.cli.compiling import checked_sizes, compiled, dtype_named, sizes_given, sizes_line
    from attnc.testing.inputs import grid_length, make_inputs

    console = report.console()
    kind = dtype_named(dtype)
    given = sizes_given(size)
    op = compiled(file, const, backend, name, disable)
    length = {} if "N" in given or "M" in given or grid_length(op.program) else {"N": DEFAULT_LENGTH}
    sizes = checked_sizes(op, DEFAULT_SIZES | length | given)
    tensors = make_inputs(op.program, sizes, kind, seed=seed)
    console.print(f"[bold]{op.program.name}[/]  {sizes_line(sizes)}  {dtype}, backend {op.backend}")
    if op.program.doc:
        console.print(op.program.doc, style="dim", markup=False)
    rows = _check(op, tensors, sizes["q_start"], backward)
    console.print(agreement_table(rows, dtype))
    _race(op, tensors, sizes, backward, rounds, console)
    for path in write_sources(op, out):
        console.print(f"source: {path}", markup=False)
    wrong = [r.label for r in rows if not r.agrees]
    if wrong:
        console.print(f"disagrees with the oracle: {', '.join(wrong)}", style="bold red")
        raise typer.Exit(report.WRONG)
    console.print("agrees with the float64 oracle", style="bold green")


def _check(op: Op, tensors: Tensors, q_start: int, backward: bool) -> list[Agreement]:
    """The rows of the table; the kernels are built on the way."""
    from attnc.cli import report
    from attnc.testing.compare import agreements

    with report.console(error=True).status("checking") as status:
        return agreements(op, tensors, q_start=q_start, backward=backward, draws=2, tell=status.update)


def agreement_table(rows: list[Agreement], dtype: str) -> Table:
    """One line per output and gradient."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for title in ("largest value", "error", f"error of dense {dtype}", "limit"):
        table.add_column(title, justify="right")
    table.add_column("")
    for r in rows:
        verdict = "[green]agrees[/]" if r.agrees else "[bold red]disagrees[/]"
        table.add_row(r.label, f"{r.scale:.3g}", f"{r.error:.2e}", f"{r.dense_error:.2e}", f"{r.limit:.2e}", verdict)
    return table


def _race(op: Op, tensors: Tensors, sizes: dict[str, int], backward: bool, rounds: int, console: Console) -> None:
    from attnc.cli import report
    from attnc.testing import race
    from attnc.testing.peers import Peer, sdpa
    from attnc.testing.softmax_form import NotExpressible
    from attnc.testing.timing import interleaved

    contestants = [race.of_op(op, tensors)]
    peer = sdpa(op.program, tensors, sizes)
    if isinstance(peer, Peer):
        contestants.append(race.of_peer(peer, tensors))
    with report.console(error=True).status("timing"):
        measured = {"forward": interleaved({c.name: c.forward for c in contestants}, rounds=rounds)}
        if backward:
            measured["forward and backward"] = interleaved({c.name: c.both for c in contestants}, rounds=rounds)
    console.print(timing_table(measured))
    if isinstance(peer, NotExpressible):
        console.print(f"not timed beside SDPA: {peer.reason}", style="dim", markup=False)
    else:
        console.print(f"{peer.name}: {peer.note}", style="dim", markup=False)


def timing_table(measured: dict[str, dict[str, Timing]]) -> Table:
    """Medians, quartiles and the ratio to attnc's own time: above 1, attnc is faster."""
    from rich.table import Table

    from attnc.testing.timing import spell

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    table.add_column("")
    for title in ("median", "quartiles", "times attnc"):
        table.add_column(title, justify="right")
    for what, timings in measured.items():
        own = next(iter(timings.values())).median
        for k, (name, t) in enumerate(timings.items()):
            ratio = "" if k == 0 else f"{t.median / own:.2f}"
            table.add_row(what if k == 0 else "", name, spell(t.median), f"{spell(t.low)} to {spell(t.high)}", ratio)
    return table


def write_sources(op: Op, folder: Path | None) -> list[Path]:
    """Write the generated C++ and Triton of an op; a printer that cannot say the variant is passed over."""
    from attnc.cli.files import write_atomically
    from attnc.settings import Settings

    folder = folder or Settings.read().cache_dir / "sources" / op.program.name
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for language, ending in (("cpp", "cpp"), ("triton", "py")):
        path = folder / f"{op.program.name}.{ending}"
        write_atomically(path, op.source(language))
        written.append(path)
    return written
