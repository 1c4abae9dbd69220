"""Folders import below, never above; code generation knows neither torch nor triton; every folder has a place."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter import cli as importlinter_cli

ROOT = Path(__file__).parent.parent
FORBIDDEN_IN_CODEGEN = {"torch", "triton"}


def contracts() -> list[dict[str, object]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[dict[str, object]] = settings["tool"]["importlinter"]["contracts"]
    return found


def imported(path: Path) -> Iterator[str]:
    """Top-level names of every module a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


def test_contracts_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert importlinter_cli.lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def test_every_folder_is_in_a_layer() -> None:
    layers = contracts()[0]["layers"]
    assert isinstance(layers, list)
    listed = {name.strip(" ()") for layer in layers for name in layer.split("|")}
    present = {
        f"attnc.{p.stem}" for p in (ROOT / "attnc").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert present - {"attnc.__init__"} <= listed


@pytest.mark.parametrize("path", sorted((ROOT / "codegen").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_codegen_imports_no_runtime(path: Path) -> None:
    assert not FORBIDDEN_IN_CODEGEN & set(imported(path))


def test_nothing_imports_the_linked_folders_by_their_own_names() -> None:
    files = [
        p for folder in ("attnc", "grammar", "codegen", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py")
    ]
    wrong = [str(p.relative_to(ROOT)) for p in files if {"grammar", "codegen"} & set(imported(p))]
    assert not wrong
