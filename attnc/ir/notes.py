"""Names that follow nodes through rewrites, so that generated code and diagnostics speak the spec's language."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_notes: ContextVar[dict[Any, Any] | None] = ContextVar("attnc_notes", default=None)


@contextmanager
def tracking(notes: dict[Any, Any]) -> Generator[dict[Any, Any]]:
    """Within the block, every rewrite copies the note of a node to what it becomes, into `notes`."""
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def carry(old: object, new: object) -> None:
    """`new` is what `old` has become."""
    notes = _notes.get()
    if notes is not None and old is not new and old in notes:
        notes.setdefault(new, notes[old])


def suggest(node: object, note: object) -> None:
    """Give a node made by a pass a name, unless it has one."""
    notes = _notes.get()
    if notes is not None:
        notes.setdefault(node, note)
