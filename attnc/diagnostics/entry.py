"""What the catalogue says about one code."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import fill, indent


@dataclass(frozen=True, slots=True)
class Entry:
    """A code at length. `wrong` draws the diagnostic and `right` does not; both are specs, calls or commands."""

    code: str
    title: str
    explanation: str
    wrong: str
    right: str

    def __str__(self) -> str:
        text = "\n\n".join(fill(paragraph, 90) for paragraph in self.explanation.split("\n\n"))
        wrong, right = (indent(example.strip("\n"), "    ") for example in (self.wrong, self.right))
        return f"{self.code}: {self.title}\n\n{text}\n\nWrong:\n\n{wrong}\n\nRight:\n\n{right}"


def listed(*entries: Entry) -> dict[str, Entry]:
    """Entries by code."""
    return {entry.code: entry for entry in entries}
