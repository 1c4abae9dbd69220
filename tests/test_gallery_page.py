"""docs/gallery.md shows the specs as they are and what the compiler makes of them now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery_page", DOCS / "gallery.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STALE = "run: python docs/gallery.py"


def test_the_page_shows_every_spec_as_it_is(script: ModuleType) -> None:
    text = (DOCS / "gallery.md").read_text()
    for path in script.specs():
        section = text.split(f"\n## {script.name_of(path)}\n")[1].split("\n## ")[0]
        assert path.read_text().rstrip("\n") in section, STALE
    assert text.count("\n## ") == len(script.specs()), STALE


@pytest.mark.parametrize("turn", range(8))
def test_what_the_compiler_finds_is_up_to_date(script: ModuleType, turn: int) -> None:
    """One spec of each eighth; the sweep compares the whole page."""
    text = (DOCS / "gallery.md").read_text()
    share = len(script.specs()) // 8
    row, section = script.described(script.specs()[turn * share + share // 2])
    assert row in text.splitlines(), STALE
    assert "\n".join(section) in text, STALE


@pytest.mark.sweep
def test_the_page_is_up_to_date(script: ModuleType) -> None:
    assert (DOCS / "gallery.md").read_text() == script.page(), STALE


def test_every_spec_with_something_to_see_has_its_picture(script: ModuleType) -> None:
    for name in ("alibi", "causal", "neighborhood_2d"):
        assert (DOCS / "gallery" / f"{name}.png").stat().st_size > 100
    drawn = {p.stem for p in (DOCS / "gallery").glob("*.png")}
    assert drawn <= {
        p.relative_to(script.EXAMPLES).with_suffix("").as_posix().replace("/", "_") for p in script.specs()
    }
