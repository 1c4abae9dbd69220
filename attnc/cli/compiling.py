"""Compiling a spec for a command, with a spinner while that takes long."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnc.ir.options import REWRITES

if TYPE_CHECKING:
    from attnc.runtime.op import Op

DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}


Disable = Annotated[
    list[str] | None,
    typer.Option(
        "--disable",
        metavar="NAME",
        help="Leave out a rewrite; may be given again. Results stay the same. "
        + " ".join(f"[bold]{name}[/]: {what}." for name, what in REWRITES.items()),
    ),
]
"""The option of every command that compiles."""


def compiled(
    path: Path,
    const: Sequence[str] | None,
    backend: str | None,
    name: str | None = None,
    disable: Sequence[str] | None = None,
) -> Op:
    """The op of a spec.

    Raises:
        SpecError: the spec is wrong, or cannot be read, or there is no such rewrite to disable.
    """
    from attnc.cli import report, specs
    from attnc.grammar.load import load

    consts = specs.constants(const)
    source = load(path)
    interpret_triton([backend or "auto"])
    extra: dict[str, Any] = consts if backend is None else consts | {"backend": backend}
    with report.console(error=True).status(f"compiling {source.name}"):
        import attnc

        return attnc.compile(path, name=name, disable=disable or (), **extra)


def interpret_triton(backends: Sequence[str]) -> None:
    """Let Triton interpret its kernels if it is asked for where there is no CUDA device. Must come before it is
    imported."""
    import os
    import sys

    if "triton" not in backends or "triton" in sys.modules:
        return
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def dtype_named(name: str) -> Any:
    """A torch dtype; a name that is none ends the command with a usage error."""
    import torch

    from attnc.cli import report

    if name not in DTYPES:
        raise report.usage(f"there is no dtype {name!r}", "choose one of: " + ", ".join(DTYPES))
    return getattr(torch, DTYPES[name])


def sizes_given(texts: Sequence[str] | None) -> dict[str, int]:
    """``["B=1,H=8", "N=4096"]`` as a mapping; a mistake ends the command with a usage error."""
    from attnc.cli import report

    found: dict[str, int] = {}
    for part in (p.strip() for text in texts or () for p in text.split(",") if p.strip()):
        match = re.fullmatch(r"([A-Za-z_]\w*)\s*=\s*(\d+)", part)
        if match is None or (int(match[2]) < 1 and match[1] != "q_start"):
            raise report.usage(f"--size {part}: not of the form NAME=COUNT", "for example: --size B=1,H=8,N=4096,D=64")
        found[match[1]] = int(match[2])
    return found


def checked_sizes(op: Op, given: dict[str, int]) -> dict[str, int]:
    """Every size of a call; an unknown or impossible one ends the command with a usage error."""
    from attnc.cli import report
    from attnc.testing.inputs import complete_sizes, relations_hold

    known = [s.name for s in op.program.sizes] + ["q_start"]
    for name in given:
        if name not in known:
            raise report.usage(f"{op.program.name} has no size {name!r}", "its sizes are: " + ", ".join(known))
    sizes = complete_sizes(op.program, given)
    if sizes["H"] % sizes["G"]:
        raise report.usage(f"H = {sizes['H']} is no multiple of G = {sizes['G']}", "choose G so that it divides H")
    if not relations_hold(op.program, sizes):
        messages = "; ".join(c.message for c in op.program.checks)
        raise report.usage(f"these sizes do not fit {op.program.name}: {messages}", "give other sizes with --size")
    return sizes


def sizes_line(sizes: dict[str, int]) -> str:
    """``B=1 H=4 M=2048 N=2048 D=64``, leaving out what equals its default."""
    same = {"G": "H", "E": "D"}
    shown = [
        n for n in sizes if not (n in same and sizes[n] == sizes[same[n]]) and not (n == "q_start" and not sizes[n])
    ]
    order = "BHGMNDE"
    shown.sort(key=lambda n: (order.find(n) if n in order else len(order), n))
    return " ".join(f"{n}={sizes[n]}" for n in shown)
