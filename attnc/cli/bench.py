"""``attnc bench``: one spec over several lengths, beside PyTorch's own attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnc.cli.compiling import Disable

if TYPE_CHECKING:
    from rich.table import Table

    from attnc.testing.race import Tensors
    from attnc.testing.timing import Timing

EXAMPLE = "attnc bench examples/causal.attn --lengths 512,1024,2048 --json causal.json"


def bench(
    file: Annotated[Path, typer.Argument(help="The spec.")],
    lengths: Annotated[str, typer.Option(help="Sequence lengths, with commas.")] = "512,1024,2048",
    size: Annotated[list[str] | None, typer.Option("--size", help="Other sizes, as B=1,H=8,D=64.")] = None,
    dtype: Annotated[str, typer.Option(help="f32, bf16, f16 or f64.")] = "f32",
    backend: Annotated[str, typer.Option(help="auto, cpp, triton, tiled or dense.")] = "auto",
    name: Annotated[str | None, typer.Option(help="Which definition of a file that holds several.")] = None,
    const: Annotated[list[str] | None, typer.Option("--const", help="NAME=VALUE, in place of the spec's own.")] = None,
    disable: Disable = None,
    rounds: Annotated[int, typer.Option(min=2, help="Timing rounds.")] = 9,
    flex: Annotated[
        bool, typer.Option("--flex", help="Time compiled FlexAttention too (its CPU backward does not exist).")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here too.")] = None,
) -> None:
    """Time a spec over several lengths.

    Beside scaled_dot_product_attention, and FlexAttention if asked, in interleaved rounds. Times only: run and verify
    are what compares numbers.
    """
    from attnc.cli import report
    from attnc.cli.compiling import checked_sizes, compiled, dtype_named, sizes_given
    from attnc.cli.files import write_atomically
    from attnc.cli.verify import numbers
    from attnc.testing.inputs import make_inputs

    kind = dtype_named(dtype)
    given = sizes_given(size)
    op = compiled(file, const, backend, name, disable)
    found: list[dict[str, object]] = []
    for n in numbers(lengths):
        sizes = checked_sizes(op, {"H": 4, "D": 64} | given | {"N": n})
        tensors = make_inputs(op.program, sizes, kind)
        measured, notes = race_at(op, tensors, sizes, rounds, flex)
        report.console().print(_table(measured, n))
        for note in notes:
            report.console().print(note, style="dim", markup=False)
        found.append({"sizes": sizes, "dtype": dtype, "seconds": _plain(measured), "notes": notes})
    if json_file is not None:
        import json

        write_atomically(json_file, json.dumps({"spec": op.program.name, "results": found}, indent=1) + "\n")


Measured = dict[str, dict[str, "Timing"]]


def race_at(op: object, tensors: Tensors, sizes: dict[str, int], rounds: int, flex: bool) -> tuple[Measured, list[str]]:
    """Timings of the op and its peers at one size, and remarks about the peers."""
    from typing import Any, cast

    from attnc.testing import peers, race
    from attnc.testing.timing import interleaved

    compiled = cast("Any", op)
    contestants = [race.of_op(compiled, tensors)]
    notes: list[str] = []
    for make, name in ((peers.sdpa, "SDPA"), *(((peers.flex, "FlexAttention"),) if flex else ())):
        peer = make(compiled.program, tensors, sizes)
        if not isinstance(peer, peers.Peer):
            notes.append(f"not timed beside {name}: {peer.reason}")
        else:
            contestants.append(race.of_peer(peer, tensors))
            notes.append(f"{peer.name}: {peer.note}")
    forward = interleaved({c.name: c.forward for c in contestants}, rounds=rounds)
    training = {c.name: c.both for c in contestants if c.name != "FlexAttention"}
    return {"forward": forward, "forward and backward": interleaved(training, rounds=rounds)}, notes


def _table(measured: Measured, length: int) -> Table:
    from attnc.cli.run import timing_table

    table = timing_table(measured)
    table.title = f"N = {length}"
    table.title_justify = "left"
    return table


def _plain(measured: Measured) -> dict[str, dict[str, dict[str, float]]]:
    from dataclasses import asdict

    return {what: {name: asdict(t) for name, t in timings.items()} for what, timings in measured.items()}
