"""Reading specs named on the command line, and writing files so that a crash never leaves half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnc.diagnostics.source import Source


def read_stdin() -> Source:
    """The standard input as a spec."""
    import sys

    from attnc.diagnostics.source import Source

    return Source("<stdin>", sys.stdin.read())


def expand(paths: Iterable[Path]) -> list[Path]:
    """Every path given, with directories replaced by the `.attn` files below them, sorted; "-" stays as it is."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir() and str(path) != "-":
            inside = sorted(path.rglob("*.attn"))
            found += inside or [path]
        else:
            found.append(path)
    return found


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content in one step, keeping its permissions."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as out:
            out.write(text)
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o7777)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
