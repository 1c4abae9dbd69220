"""Trees to programs: names, expressions, sections, normalisers, ranges and sizes."""

from attnc.lowering.lower import lower, lower_with_warnings

__all__ = ["lower", "lower_with_warnings"]
