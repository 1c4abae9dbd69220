"""Reads `.attn` files; every way a file can be unreadable becomes a diagnostic."""

from __future__ import annotations

import difflib
import os
import stat
from pathlib import Path

from attnc.diagnostics.diagnostic import Diagnostic, SpecError
from attnc.diagnostics.source import Source
from attnc.grammar.parser import LONGEST_TEXT

_LARGEST_FILE = 4 * LONGEST_TEXT


def load(path: str | os.PathLike[str]) -> Source:
    """The text of a spec file, decoded from UTF-8; line ends are kept as they are.

    Raises:
        SpecError: the file is missing, a directory, too large, unreadable or not UTF-8.
    """
    name = os.fspath(path)
    try:
        information = Path(name).stat()
        if stat.S_ISDIR(information.st_mode):
            raise SpecError([_is_directory(Path(name))])
        if not stat.S_ISREG(information.st_mode):
            raise _error("E304", f"`{name}` is not an ordinary file", "give the path of a `.attn` file")
        if information.st_size > _LARGEST_FILE:
            message = f"`{name}` is {information.st_size / 1e6:,.0f} MB large; a spec is a few lines"
            raise _error("E008", message, "check that this is the file you meant")
        data = Path(name).read_bytes()
    except FileNotFoundError:
        raise SpecError([_missing(Path(name))]) from None
    except ValueError:
        raise _error("E301", "the path holds a null character", "give the path of a `.attn` file") from None
    except OSError as problem:
        reason = (problem.strerror or "unknown reason").lower()
        raise _error("E304", f"`{name}` cannot be read: {reason}", "check the path and its permissions") from None
    return _decode(name, data)


def _decode(name: str, data: bytes) -> Source:
    try:
        return Source(name, data.decode("utf-8"))
    except UnicodeDecodeError as problem:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise _error("E303", f"`{name}` is UTF-16 text", "save it as UTF-8") from None
        line = data.count(b"\n", 0, problem.start) + 1
        message = f"`{name}` is not UTF-8 text: byte 0x{data[problem.start]:02x} on line {line}"
        raise _error("E303", message, "save the file as UTF-8, or delete that character") from None


def _error(code: str, message: str, remedy: str) -> SpecError:
    return SpecError([Diagnostic(code, message, remedy=remedy)])


def _is_directory(path: Path) -> Diagnostic:
    try:
        specs = sorted(p.name for p in path.iterdir() if p.suffix == ".attn")
    except OSError:
        specs = []
    remedy = f"name a file in it, such as `{path / specs[0]}`" if specs else "give the path of a `.attn` file"
    return Diagnostic("E302", f"`{path}` is a directory", remedy=remedy)


def _missing(path: Path) -> Diagnostic:
    remedy = "check the spelling, and the directory you are in"
    try:
        names = [p.name for p in path.parent.iterdir() if p.suffix == ".attn"]
    except OSError:
        names = []
        if path.parent != Path():
            remedy = f"the directory `{path.parent}` does not exist either"
    close = difflib.get_close_matches(path.name, names + [Path(n).stem for n in names], n=1)
    if close:
        found = close[0] if close[0].endswith(".attn") else close[0] + ".attn"
        remedy = f"did you mean `{path.parent / found}`?"
    return Diagnostic("E301", f"there is no file `{path}`", remedy=remedy)
