"""``attnc explain``: an error code at length, or what the compiler found in a spec."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from attnc.cli.compiling import Disable

EXAMPLE = "attnc explain E001, or attnc explain examples/alibi.attn"


def explain(
    what: Annotated[str, typer.Argument(help="An error code such as E001, or a spec.")],
    name: Annotated[str | None, typer.Option(help="Which definition of a file that holds several.")] = None,
    const: Annotated[list[str] | None, typer.Option("--const", help="NAME=VALUE, in place of the spec's own.")] = None,
    disable: Disable = None,
    dtype: Annotated[str, typer.Option(help="Of q, k and v: f16, bf16, f32 or f64.")] = "f32",
    backend: Annotated[str | None, typer.Option(help="The backend to explain the decisions for.")] = None,
) -> None:
    """Explain an error code, or a spec: what the compiler found and decided, and why."""
    from attnc.cli import report

    if re.fullmatch(r"[EeWw]\d{3}", what):
        _explain_code(what.upper())
        return
    from attnc.cli.compiling import compiled, dtype_named

    dtype_named(dtype)
    report.console().print(compiled(Path(what), const, backend, name, disable).explain(dtype), markup=False)


def _explain_code(code: str) -> None:
    import difflib

    from attnc.cli import report
    from attnc.diagnostics.catalogue import CATALOGUE

    entry = CATALOGUE.get(code)
    if entry is None:
        close = difflib.get_close_matches(code, CATALOGUE, n=3, cutoff=0.5)
        raise report.usage(f"there is no error {code}", f"nearby: {', '.join(close)}" if close else None)
    report.console().print(str(entry), markup=False)
