"""Environment variables as typed settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnc.diagnostics.diagnostic import CallError
from attnc.settings import Settings


def test_defaults() -> None:
    found = Settings.read({})
    assert found.cache_dir.name == "attnc"
    assert (found.threads, found.dump, found.override, found.backend, found.cxx) == (0, None, None, "auto", None)


def test_everything_set() -> None:
    names = {"CACHE_DIR": "/c", "THREADS": "3", "DUMP": "/d", "OVERRIDE": "/o", "BACKEND": "tiled", "CXX": "clang++"}
    names["PAIRS"] = "never"
    found = Settings.read({f"ATTNC_{k}": v for k, v in names.items()})
    assert found == Settings(Path("/c"), 3, Path("/d"), Path("/o"), "tiled", "clang++", "never")


def test_empty_means_unset() -> None:
    names = ("CACHE_DIR", "THREADS", "DUMP", "OVERRIDE", "BACKEND", "CXX", "PAIRS")
    assert Settings.read({f"ATTNC_{k}": "" for k in names}) == Settings.read({})


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert Settings.read({"ATTNC_CACHE_DIR": "~/kernels"}).cache_dir == Path("/home/someone/kernels")


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("ATTNC_PAIRS", "yes", "`auto`, `always` or `never`"),
        *(("ATTNC_THREADS", text, "a number of threads") for text in ("two", "-1", "1.5", "²")),
    ],
)
def test_values_that_cannot_be_understood(name: str, text: str, allowed: str) -> None:
    with pytest.raises(CallError) as caught:
        Settings.read({name: text})
    assert isinstance(caught.value, ValueError)
    (found,) = caught.value.diagnostics
    assert found.code == "E222"
    assert f"{name} is {text!r}" in found.message and allowed in found.message
    assert found.remedy is not None and f"set {name} to {allowed}" in found.remedy
