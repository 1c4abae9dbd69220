"""The commands, in the order in which help lists them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from attnc.cli import bench, check, explain, fmt, inspect, listing, new, plot, report, run, tune, verify

app = typer.Typer(
    name="attnc",
    cls=report.DebugAnywhere,
    help="A compiler for attention variants: a few equations in, fused forward and backward kernels out.",
    epilog="Start with: attnc new mine.attn, then attnc run mine.attn",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"attnc {version('attnc')}")
        except PackageNotFoundError:
            typer.echo("attnc, run from a source tree that is not installed")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of whatever goes wrong.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of every command."""
    report.debugging.set(debug)


COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("new", new.new, new.EXAMPLE),
    ("check", check.check, check.EXAMPLE),
    ("fmt", fmt.fmt, fmt.EXAMPLE),
    ("run", run.run, run.EXAMPLE),
    ("verify", verify.verify, verify.EXAMPLE),
    ("explain", explain.explain, explain.EXAMPLE),
    ("inspect", inspect.inspect, inspect.EXAMPLE),
    ("plot", plot.plot, plot.EXAMPLE),
    ("bench", bench.bench, bench.EXAMPLE),
    ("tune", tune.tune, tune.EXAMPLE),
    ("list", listing.listing, listing.EXAMPLE),
)


def _register(name: str, command: Callable[..., None], example: str) -> None:
    app.command(name, epilog=f"Example: {example}")(report.reported(command))


for _entry in COMMANDS:
    _register(*_entry)
