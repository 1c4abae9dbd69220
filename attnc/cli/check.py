"""``attnc check``: is this spec right?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "attnc check examples/alibi.attn"


def check(
    files: Annotated[list[Path], typer.Argument(help="Specs, or directories of them; - is the standard input.")],
    const: Annotated[list[str] | None, typer.Option("--const", help="NAME=VALUE, in place of the spec's own.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")] = False,
) -> None:
    """Find every mistake in specs.

    Names, index sets, shapes, dtypes, and subscripts that can leave their tensors. Needs neither torch nor a compiler.
    """
    from attnc.cli import files as reading
    from attnc.cli import report, specs
    from attnc.diagnostics.diagnostic import SpecError

    consts = specs.constants(const)
    out = report.console()
    failed = False
    for path in reading.expand(files):
        try:
            source = specs.read(path)
            lowered = specs.lower_all(source, consts)
        except SpecError as wrong:
            if report.debugging.get():
                raise
            report.show(wrong.diagnostics)
            failed = True
            continue
        warnings = [w for item in lowered for w in item.warnings]
        report.show(warnings)
        failed |= strict and bool(warnings)
        names = ", ".join(item.program.name for item in lowered)
        out.print(f"{source.name}: ok ({names})", markup=False)
    if failed:
        raise typer.Exit(report.WRONG)
