"""``attnc fmt``: one way to lay specs out."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "attnc fmt examples --check"


def fmt(
    files: Annotated[
        list[Path], typer.Argument(help="Specs, or directories of them; - reads and writes the standard streams.")
    ],
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail if a file would change.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Change nothing; print what would change.")] = False,
) -> None:
    """Lay specs out in the one usual way.

    Comments stay. Files are rewritten only when they change.
    """
    from attnc.cli import files as reading
    from attnc.cli import report, specs
    from attnc.diagnostics.diagnostic import SpecError
    from attnc.grammar.formatter import format_source

    out = report.console()
    failed = False
    for path in reading.expand(files):
        try:
            source = specs.read(path)
            new = format_source(source)
        except SpecError as wrong:
            if report.debugging.get():
                raise
            report.show(wrong.diagnostics)
            failed = True
            continue
        changed = new != source.text
        if diff:
            _print_diff(source.text, new, source.name)
        if str(path) == "-" and not (check or diff):
            typer.echo(new, nl=False)
        elif changed and check:
            out.print(f"{source.name}: would change", markup=False)
        elif changed and not diff:
            reading.write_atomically(path, new)
            out.print(f"{source.name}: formatted", markup=False)
        failed |= changed and check
    if failed:
        raise typer.Exit(report.WRONG)


def _print_diff(old: str, new: str, name: str) -> None:
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), f"{name} (now)", f"{name} (formatted)", lineterm=""
    )
    for line in lines:
        colour = {"+": typer.colors.GREEN, "-": typer.colors.RED, "@": typer.colors.CYAN}.get(line[:1])
        typer.secho(line, fg=colour)
