"""What attnc says to people about their specs and calls: typed findings, their catalogue, and how they are printed."""

from attnc.diagnostics.diagnostic import AttncError, CallError, Diagnostic, InternalError, SpecError
from attnc.diagnostics.render import render_plain, render_rich
from attnc.diagnostics.source import Source, Span

__all__ = [
    "AttncError",
    "CallError",
    "Diagnostic",
    "InternalError",
    "Source",
    "Span",
    "SpecError",
    "render_plain",
    "render_rich",
]
