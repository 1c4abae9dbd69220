"""``attnc list``: what there is to use and to begin from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "attnc list functions"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
KINDS = ("examples", "normalisers", "functions", "templates")


def listing(
    kinds: Annotated[list[str] | None, typer.Argument(help="Any of: " + ", ".join(KINDS) + ".")] = None,
    examples: Annotated[Path, typer.Option(help="Where the example specs are.")] = EXAMPLES,
) -> None:
    """List examples, normalisers, functions and templates.

    Of an example: its paper, the sections it sets, and how many passes over the plane and how many kernels it compiles
    to, forward + backward.
    """
    from attnc.cli import report

    for kind in kinds or ():
        if kind not in KINDS:
            raise report.usage(f"nothing to list under {kind!r}", "choose from: " + ", ".join(KINDS))
    made = {
        "normalisers": _normalisers,
        "functions": _functions,
        "templates": _templates,
    }
    for kind in kinds or KINDS:
        if kind == "examples":
            _examples(examples)
        else:
            _table(kind, made[kind]())


def _table(title: str, rows: list[tuple[str, str]]) -> None:
    from rich.table import Table

    from attnc.cli import report

    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 0)
    )
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, what in rows:
        table.add_row(_plain(name), _plain(what))
    out = report.console()
    out.print(table)
    out.print()


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _first_doc(path: Path) -> str:
    """The docstring of the first definition in a file."""
    from attnc.diagnostics.diagnostic import SpecError
    from attnc.grammar.load import load
    from attnc.grammar.parser import parse

    try:
        definition = parse(load(path)).definitions[0]
    except SpecError:
        return "(does not parse)"
    return definition.doc or ""


def _examples(folder: Path) -> None:
    from rich.table import Table

    from attnc.cli import report
    from attnc.cli.summary import summarise
    from attnc.diagnostics.diagnostic import SpecError

    if not folder.is_dir():
        _table("examples", [("(none here)", "the specs come with the source; name their folder with --examples")])
        return
    table = Table(title="examples", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True, style="cyan")
    for title in ("", "sections"):
        table.add_column(title, overflow="fold")
    for title in ("passes", "kernels"):
        table.add_column(title, justify="right", no_wrap=True)
    with report.console(error=True).status("planning"):
        for path in sorted(folder.rglob("*.attn")):
            try:
                s = summarise(path, folder)
            except SpecError as problem:
                table.add_row(_plain(path.stem), _plain(str(problem).splitlines()[0]), "", "", "")
                continue
            counts = ("{} + {}".format(*pair) for pair in (s.passes, s.kernels))
            table.add_row(_plain(s.name), _plain(s.doc), " ".join(s.sections), *counts)
    out = report.console()
    out.print(table)
    out.print()


def _templates() -> list[tuple[str, str]]:
    from attnc.cli.new import TEMPLATES, template_names

    return [(name, _first_doc(TEMPLATES / f"{name}.attn")) for name in template_names()]


def _normalisers() -> list[tuple[str, str]]:
    from attnc.grammar.parser import parse_prelude, prelude_source

    text = prelude_source().text
    rows = []
    for definition in parse_prelude().defs:
        if definition.is_normaliser:
            parameters = ", ".join(p.id for p in definition.params[1:])
            name = f"{definition.name.id}({parameters})" if parameters else definition.name.id
            rows.append((name, comment_above(text, definition.span.start)))
    return rows


def comment_above(text: str, offset: int) -> str:
    """The comment lines directly above a place, joined."""
    above = text[: text.rfind("\n", 0, offset) + 1].splitlines()
    found: list[str] = []
    while above and above[-1].lstrip().startswith("#"):
        found.append(re.sub(r"^\s*#+\s?", "", above.pop()))
    return " ".join(reversed(found))


def _functions() -> list[tuple[str, str]]:
    from attnc.ir.functions import FUNCTIONS
    from attnc.lowering.names import POINTWISE

    reductions = [
        ("sum[j](x)", "sum over an index; over queries and keys, over the allowed pairs"),
        ("mean[j](x)", "the sum divided by the number of terms"),
        ("max[j](x)", "largest value over an index"),
        ("min[j](x)", "smallest value over an index"),
        ("dot(x, y)", "sum[d](x[d] * y[d])"),
        ("max(x, y)", "the larger of two values, or of more"),
        ("min(x, y)", "the smaller of two values, or of more"),
    ]
    spelt = {"clamp": "clamp(x, low, high)", "where": "where(condition, a, b)"}
    return reductions + [
        (spelt.get(name, f"{name}({', '.join('xyz'[: FUNCTIONS[name].arity])})"), FUNCTIONS[name].doc)
        for name in sorted(POINTWISE)
    ]
