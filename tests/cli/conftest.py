"""Running the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from attnc.cli.app import app

Attnc = Callable[..., Result]


@pytest.fixture
def attnc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attnc:
    """Runs ``attnc`` with arguments in an empty directory, with a wide terminal and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    runner = CliRunner()

    def run(*arguments: object, stdin: str | None = None) -> Result:
        return runner.invoke(app, [str(a) for a in arguments], input=stdin)

    return run
