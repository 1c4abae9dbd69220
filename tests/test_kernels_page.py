"""docs/kernels.md shows the kernels as they are now. Nothing is compiled here: their sources are compared."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernels_page", DOCS / "kernels.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_record(script: ModuleType) -> None:
    assert (DOCS / "kernels.md").read_text() == script.page(), "run: python docs/kernels.py"
    assert set(json.loads(script.RECORD.read_text())["kernels"]) == set(script.SPECS)


@pytest.mark.parametrize("spec", ["softmax", "alibi"])
def test_some_kernels_are_up_to_date(script: ModuleType, spec: str) -> None:
    assert not script.stale(spec), "run: python docs/kernels.py"


@pytest.mark.sweep
def test_all_kernels_are_up_to_date(script: ModuleType) -> None:
    assert not [spec for spec in script.SPECS if script.stale(spec)], "run: python docs/kernels.py"
