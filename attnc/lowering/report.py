"""Collects the findings of one lowering."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from attnc.diagnostics.diagnostic import Diagnostic, SpecError
from attnc.diagnostics.source import Span
from attnc.lowering.value import POISON, Scope, Value


class Report:
    """Errors and warnings in the order found; the same finding at the same place is kept once."""

    def __init__(self) -> None:
        self.found: list[Diagnostic] = []

    def add(self, diagnostic: Diagnostic) -> None:
        if diagnostic not in self.found:
            self.found.append(diagnostic)

    def error(self, code: str, scope: Scope, span: Span, message: str, remedy: str | None = None) -> Value:
        """Report, and return the poison value to go on with."""
        source, where = scope.at(span)
        self.add(Diagnostic(code, message, source, where, remedy))
        return POISON

    def warning(self, code: str, scope: Scope, span: Span, message: str, remedy: str | None = None) -> None:
        source, where = scope.at(span)
        self.add(Diagnostic(code, message, source, where, remedy, severity="warning"))

    @property
    def errors(self) -> list[Diagnostic]:
        found = [d for d in self.found if d.severity == "error"]
        return sorted(found, key=lambda d: d.span.start if d.span else -1)

    @property
    def warnings(self) -> list[Diagnostic]:
        found = [d for d in self.found if d.severity == "warning"]
        return sorted(found, key=lambda d: d.span.start if d.span else -1)

    def stop_on_errors(self) -> None:
        """Raises:
        SpecError: with every error found so far.
        """
        if self.errors:
            raise SpecError(self.errors)


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """`did you mean 'slope'?`, or None when nothing is close."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        close = [k for k in known if k.lower() == name.lower()][:1]
    return f"did you mean `{close[0]}`?" if close else None
