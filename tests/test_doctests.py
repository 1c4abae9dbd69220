"""Examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"attnc": ROOT / "attnc", "attnc.grammar": ROOT / "grammar", "attnc.codegen": ROOT / "codegen"}


def modules() -> list[str]:
    """Every module with a prompt in it, by its import name."""
    found = []
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            if ">>> " in path.read_text():
                parts = path.relative_to(folder).with_suffix("").parts
                found.append(".".join([package, *(p for p in parts if p != "__init__")]))
    return sorted(found)


@pytest.mark.parametrize("name", modules())
def test_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
