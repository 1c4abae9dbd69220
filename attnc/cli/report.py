"""How the command line speaks: diagnostics, and what it says when attnc itself is at fault. Never a traceback unless
asked for.

Exit codes: 0 for success, 1 when a spec, a call or a result is wrong, 2 for a command line that cannot be understood,
3 for a bug in attnc.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from rich.console import Console

    from attnc.diagnostics.diagnostic import Diagnostic

WRONG, USAGE, BUG = 1, 2, 3
WIDTH = 120
"""Columns of tables in files and pipes."""

P = ParamSpec("P")
R = TypeVar("R")

debugging: contextvars.ContextVar[bool] = contextvars.ContextVar("debugging", default=False)


class DebugAnywhere(TyperGroup):
    """Accepts ``--debug`` after the command's name too."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        end = args.index("--") if "--" in args else len(args)
        if "--debug" in args[:end]:
            args = ["--debug", *(a for a in args[:end] if a != "--debug"), *args[end:]]
        return super().parse_args(ctx, args)


def console(*, error: bool = False) -> Console:
    """A console on the standard output or error as they are now (tests replace them)."""
    from rich.console import Console

    out = Console(stderr=error, highlight=False, soft_wrap=True)
    if not out.is_terminal:
        out.width = max(out.width, WIDTH)
    return out


def show(diagnostics: Iterable[Diagnostic]) -> None:
    """Print diagnostics on the standard error, in colour on a terminal."""
    from attnc.diagnostics.render import render_rich

    out = console(error=True)
    for k, diagnostic in enumerate(diagnostics):
        if k:
            out.print()
        out.print(render_rich(diagnostic))


def usage(message: str, remedy: str | None = None) -> typer.Exit:
    """Print a mistake in the command line itself; raise what this returns."""
    out = console(error=True)
    out.print("error:", style="bold red", end=" ")
    out.print(message, markup=False)
    if remedy:
        out.print("help:", style="bold cyan", end=" ")
        out.print(remedy, markup=False)
    return typer.Exit(USAGE)


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """The command, with every exception turned into a message and an exit code."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        from attnc.diagnostics.diagnostic import CallError, SpecError

        try:
            return command(*args, **kwargs)
        except (SpecError, CallError) as wrong:
            if debugging.get():
                raise
            show(wrong.diagnostics)
            raise typer.Exit(WRONG) from None
        except (typer.Exit, typer.Abort, typer.BadParameter, KeyboardInterrupt, BrokenPipeError):
            raise
        except Exception as problem:
            if debugging.get():
                raise
            _bug(problem)
            raise typer.Exit(BUG) from None

    return guarded


def _bug(problem: Exception) -> None:
    import traceback

    frames = traceback.extract_tb(problem.__traceback__)
    place = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    first = (str(problem).strip().splitlines() or [""])[0][:200]
    out = console(error=True)
    out.print("this is a bug in attnc, not in your spec", style="bold red")
    out.print(f"  {type(problem).__name__}: {first}{place}", markup=False)
    out.print(
        "help: run the command again with --debug and report what it prints, together with the spec", markup=False
    )
