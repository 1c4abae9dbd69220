"""From a path on the command line to a lowered spec. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnc.diagnostics.diagnostic import Diagnostic
    from attnc.diagnostics.source import Source
    from attnc.ir.program import Program

Consts = Mapping[str, float | int]


@dataclass(frozen=True, slots=True)
class Lowered:
    """One definition of a file in index notation, and what the compiler warns about."""

    program: Program
    warnings: Sequence[Diagnostic]


def read(path: Path) -> Source:
    """The text of a spec; "-" is the standard input.

    Raises:
        SpecError: the file cannot be read.
    """
    from attnc.cli.files import read_stdin
    from attnc.grammar.load import load

    return read_stdin() if str(path) == "-" else load(path)


def constants(given: Sequence[str] | None) -> dict[str, float | int]:
    """``["W=512", "cap=30.0"]`` as a mapping; a mistake ends the command with a usage error."""
    from attnc.cli import report

    found: dict[str, float | int] = {}
    for text in given or ():
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=\s*(\S+)\s*", text)
        value = None if match is None else number(match[2])
        if match is None or value is None:
            raise report.usage(f"--const {text}: not of the form NAME=NUMBER", "for example: --const window=512")
        found[match[1]] = value
    return found


def number(text: str) -> float | int | None:
    """An integer or a real, or None."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def lower_all(source: Source, consts: Consts) -> list[Lowered]:
    """Every definition of a file, lowered.

    Raises:
        SpecError: with what is wrong in any of them.
    """
    from attnc.diagnostics.diagnostic import SpecError
    from attnc.grammar.parser import parse
    from attnc.lowering import lower_with_warnings
    from attnc.passes import pipeline

    found: list[Lowered] = []
    wrong: list[Diagnostic] = []
    for definition in parse(source).definitions:
        try:
            lowered = Lowered(*lower_with_warnings(definition, source, consts))
            gradient = pipeline.gradient(lowered.program)
            pipeline.plan_saving(lowered.program, gradient.saved)
            pipeline.finish(gradient.program)
            found.append(lowered)
        except SpecError as error:
            wrong += error.diagnostics
    if wrong:
        raise SpecError(wrong)
    return found
