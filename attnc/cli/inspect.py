"""``attnc inspect``: every stage between the text and the machine code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnc.cli.compiling import Disable
from attnc.ir.options import BIAS_FORMS

if TYPE_CHECKING:
    from attnc.ir.program import Program

EXAMPLE = "attnc inspect examples/alibi.attn --emit ptx --target sm_90 --resources"
STAGES = ("tree", "ir", "backward", "plan", "tile", "triton", "cpp", "ptx", "sass")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def inspect(
    file: Annotated[Path, typer.Argument(help="The spec.")],
    emit: Annotated[str, typer.Option(help="One of " + ", ".join(STAGES) + ".")] = "triton",
    target: Annotated[str, typer.Option(help="For ptx and sass: one of " + ", ".join(TARGETS) + ".")] = "sm_90",
    dtype: Annotated[str, typer.Option(help="Of q, k and v: f16, bf16, f32 or f64.")] = "f32",
    channels: Annotated[int, typer.Option(min=1, help="Extent of d and e.")] = 64,
    name: Annotated[str | None, typer.Option(help="Which definition of a file that holds several.")] = None,
    const: Annotated[list[str] | None, typer.Option("--const", help="NAME=VALUE, in place of the spec's own.")] = None,
    disable: Disable = None,
    bias: Annotated[str, typer.Option(help="How a bias is computed: " + ", ".join(BIAS_FORMS) + ".")] = "auto",
    resources: Annotated[
        bool,
        typer.Option("--resources", help="Registers, spills and shared memory per kernel, compiled for the target."),
    ] = False,
) -> None:
    """Print one stage of the compiler.

    The syntax tree, the index notation, its derivative, the plan of passes, the tile programs, the generated Triton
    or C++, or machine code compiled ahead of time for a GPU that need not be there.
    """
    from attnc.cli import report
    from attnc.cli.compiling import dtype_named

    if emit not in STAGES:
        raise report.usage(f"there is no stage {emit!r}", "choose one of: " + ", ".join(STAGES))
    if target not in TARGETS:
        raise report.usage(f"there is no target {target!r}", "choose one of: " + ", ".join(TARGETS))
    dtype_named(dtype)
    if resources:
        from attnc.cli.machine import resource_table

        report.console().print(resource_table(_program(file, name, const, disable, bias), target, dtype, channels))
        return
    text = (
        _tree(file, name)
        if emit == "tree"
        else stage_text(_program(file, name, const, disable, bias), emit, target, dtype, channels)
    )
    _print(text, {"triton": "python", "cpp": "cpp"}.get(emit))


def _print(text: str, language: str | None) -> None:
    """Text as it is; with colours when a terminal shows source code."""
    from attnc.cli import report

    out = report.console()
    if language and out.is_terminal:
        from rich.syntax import Syntax

        out.print(Syntax(text, language, background_color="default"))
    else:
        typer.echo(text.rstrip("\n"))


def _tree(file: Path, name: str | None) -> str:
    from attnc import driver
    from attnc.cli import specs
    from attnc.cli.stages import tree_text

    return tree_text(driver.definition(specs.read(file), name))


def _program(file: Path, name: str | None, const: list[str] | None, disable: list[str] | None, bias: str) -> Program:
    from attnc import driver
    from attnc.cli import specs
    from attnc.ir.options import options

    chosen = options(disable or (), bias=bias)
    source = specs.read(file)
    return driver.lower(driver.definition(source, name), source, specs.constants(const), options=chosen)


def stage_text(program: Program, emit: str, target: str, dtype: str, channels: int) -> str:
    """The text of any stage after the syntax tree."""
    from attnc import driver
    from attnc.cli import stages
    from attnc.passes.derive import gradient_program

    match emit:
        case "ir":
            return stages.program_text(program)
        case "backward":
            return stages.program_text(gradient_program(program))
        case "plan":
            return "\n\n".join(_plans(program, dtype))
        case "tile":
            kernels = driver.all_kernels(program, dtype, channels)
            return "\n\n".join(stages.kernel_text(k) for k in kernels)
        case "triton" | "cpp":
            return driver.text(program, emit, dtype, channels)
        case _:
            from attnc.cli.machine import listing

            return listing(program, emit, target, dtype, channels)


def _plans(program: Program, dtype: str) -> Iterator[str]:
    """The plans of a program for queries of `dtype`, each as it is on a CPU too where that differs."""
    from attnc import driver
    from attnc.cli import stages

    for plan in (*driver.bias_plans(program, dtype=dtype), *driver.explained_plans(program, dtype=dtype)):
        yield stages.plan_text(plan)
        here = driver.on_target(plan, "cpu")
        if here is not plan:
            yield stages.plan_text(replace(here, decisions=()), " on a CPU")
