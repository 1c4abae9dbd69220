"""Environment variables as typed settings."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_pairs_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="ATTNC_PAIRS is 'yes'"):
        Settings.read({"ATTNC_PAIRS": "yes"})


@pytest.mark.parametrize("text", ["two", "-1", "1.5"])
def test_threads_must_be_a_number(text: str) -> None:
    with pytest.raises(ValueError, match="ATTNC_THREADS"):
        Settings.read({"ATTNC_THREADS": text})
