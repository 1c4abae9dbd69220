"""A spec in one line: what it sets, and what it compiles to. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from attnc.grammar.tree import Definition, Observe, Section
from attnc.passes.plan import Pass, Plan


@dataclass(frozen=True, slots=True)
class Summary:
    """One definition.

    Attributes:
        name: the file's name without its ending, below the folder that was listed.
        doc: the docstring, which names the paper.
        sections: what the definition sets, in the order of the language (score, bias, mask, ...).
        passes: loops over the plane, forward and backward.
        kernels: kernels launched, forward and backward.
    """

    name: str
    doc: str
    sections: tuple[str, ...]
    passes: tuple[int, int]
    kernels: tuple[int, int]


def summarise(path: Path, folder: Path) -> Summary:
    """Read, lower and plan the first definition of a file.

    Raises:
        SpecError: the file holds no spec that compiles.
    """
    from attnc import driver
    from attnc.grammar.load import load
    from attnc.grammar.parser import parse

    source = load(path)
    definition = parse(source).definitions[0]
    name = path.relative_to(folder).with_suffix("").as_posix()
    return summary(name, definition, *driver.plans(driver.lower(definition, source)))


def summary(name: str, definition: Definition, forward: Plan, backward: Plan) -> Summary:
    """The summary of a definition whose plans are at hand."""
    return Summary(
        name,
        definition.doc or "",
        sections(definition),
        (len(forward.passes), len(backward.passes)),
        (_kernels(forward), _kernels(backward)),
    )


def sections(definition: Definition) -> tuple[str, ...]:
    """The sections a definition sets, each once."""
    found: Iterable[str] = (
        "observe" if isinstance(s, Observe) else s.keyword for s in definition.body if isinstance(s, Section | Observe)
    )
    return tuple(dict.fromkeys(found))


def _kernels(plan: Plan) -> int:
    return sum(isinstance(step, Pass) for step in plan.steps)
