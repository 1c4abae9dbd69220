"""Every code a diagnostic can carry. E0xx syntax, E1xx meaning, E2xx calls, E3xx files and the command line."""

from __future__ import annotations

from attnc.diagnostics import codes_calls, codes_files, codes_meaning, codes_syntax
from attnc.diagnostics.entry import Entry

CATALOGUE: dict[str, Entry] = {
    **codes_syntax.ENTRIES,
    **codes_meaning.ENTRIES,
    **codes_calls.ENTRIES,
    **codes_files.ENTRIES,
}
