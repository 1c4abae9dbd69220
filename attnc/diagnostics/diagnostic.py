"""Typed diagnostics. A mistake in a user's spec or call is data; rendering is apart (`attnc.diagnostics.render`)."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.diagnostics.source import Source, Span


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding.

    Attributes:
        code: ``E001``-style code, explained by ``attnc explain E001``.
        message: what is wrong, one sentence.
        source: the text it is about; None for mistakes in a call or on the command line.
        span: where in the source.
        remedy: what to do about it, one sentence.
        severity: ``"error"`` or ``"warning"``.
    """

    code: str
    message: str
    source: Source | None = None
    span: Span | None = None
    remedy: str | None = None
    severity: str = "error"


class AttncError(Exception):
    """Base of every error attnc raises because of what a user gave it."""


class SpecError(AttncError):
    """The spec is wrong; `diagnostics` holds everything found in one run."""

    def __init__(self, diagnostics: list[Diagnostic]) -> None:
        self.diagnostics = diagnostics
        from attnc.diagnostics.render import render_plain

        super().__init__("\n\n".join(render_plain(d) for d in diagnostics))


class CallError(AttncError, ValueError):
    """A compiled op was called with arguments that do not fit its spec."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        self.diagnostics = [diagnostic]
        from attnc.diagnostics.render import render_plain

        super().__init__(render_plain(diagnostic))


class InternalError(Exception):
    """A bug in attnc itself, never the user's fault."""
