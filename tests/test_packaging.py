"""What a wheel holds: `attnc` alone at the top level, with copies of the linked folders and their data files."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a freshly built wheel."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = target.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_top_level_is_attnc_alone(wheel: list[str]) -> None:
    assert {name.split("/")[0] for name in wheel} == {"attnc", next(n for n in wheel if "dist-info" in n).split("/")[0]}


def test_everything_that_belongs_is_there(wheel: list[str]) -> None:
    expected = {"attnc/py.typed"}
    for folder, inside in (("attnc", "attnc"), ("grammar", "attnc/grammar"), ("codegen", "attnc/codegen")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                expected.add(f"{inside}/{path.relative_to(ROOT / folder)}")
    assert expected <= set(wheel)
    assert {"attnc/grammar/attn.lark", "attnc/grammar/prelude.attn"} <= expected


def test_nothing_else_is_there(wheel: list[str]) -> None:
    assert not [name for name in wheel if name.endswith((".pyc", ".orig", "~")) or "__pycache__" in name]


def test_links_point_at_the_folders() -> None:
    for name in ("grammar", "codegen"):
        link = ROOT / "attnc" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name


def test_the_entry_point_exists() -> None:
    from attnc.cli import main

    assert callable(main)
