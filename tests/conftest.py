"""One thread per worker, so that `pytest -n 2` on two cores runs two tests, not four threads of each; goldens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Before torch starts its pool; generated kernels read it too.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write what came out as what is expected")
    parser.addoption("--interpreted", action="store_true", help="run the tests marked gpu, tiny, on the CPU")


def pytest_configure(config: pytest.Config) -> None:
    # Before Triton is imported, which settles whether it interprets or compiles. What compiles has a process of its
    # own, but for tests on a GPU, which are run alone.
    if config.option.markexpr != "gpu" or config.getoption("--interpreted"):
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Compares a text with a file, or writes the file under --update-goldens."""

    def check(path: Path, text: str) -> None:
        if request.config.getoption("--update-goldens"):
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path.name} is missing: run pytest with --update-goldens"
        assert text == path.read_text(encoding="utf-8")

    return check
