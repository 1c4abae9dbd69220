"""``attnc new``: a commented spec to begin with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "attnc new mine.attn --template window"
TEMPLATES = Path(__file__).parent / "templates"


def template_names() -> list[str]:
    """The templates that ship with attnc."""
    return sorted(p.stem for p in TEMPLATES.glob("*.attn"))


def new(
    name: Annotated[str, typer.Argument(help="The spec's name, or the file to write.")],
    template: Annotated[str, typer.Option(help="What to begin with: " + ", ".join(template_names()) + ".")] = "causal",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
) -> None:
    """Write a commented starter spec."""
    from attnc.cli import report
    from attnc.cli.files import write_atomically

    path = Path(name) if name.endswith(".attn") else Path(f"{name}.attn")
    if re.fullmatch(r"[A-Za-z_]\w*", path.stem) is None:
        raise report.usage(
            f"{path.stem!r} cannot name a spec", "use letters, digits and underscores, as in my_attention"
        )
    if template not in template_names():
        raise report.usage(f"there is no template {template!r}", "choose one of: " + ", ".join(template_names()))
    if path.exists() and not force:
        raise report.usage(f"{path} is there already", "choose another name, or replace it with --force")
    if not path.parent.is_dir():
        raise report.usage(f"the directory {path.parent} does not exist", f"make it first: mkdir -p {path.parent}")
    text = (TEMPLATES / f"{template}.attn").read_text(encoding="utf-8")
    write_atomically(path, re.sub(r"^attention \w+", f"attention {path.stem}", text, count=1, flags=re.MULTILINE))
    report.console().print(f"wrote {path}; next: attnc check {path}, then attnc run {path}", markup=False)
