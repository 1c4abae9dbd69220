"""Everything attnc reads from the environment, in one place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attnc.diagnostics.diagnostic import CallError, Diagnostic

Pairs = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Environment variables as values.

    Attributes:
        cache_dir: ``ATTNC_CACHE_DIR``: where compiled kernels are kept; by default the user's cache directory.
        threads: ``ATTNC_THREADS``: CPU threads per kernel; 0 for PyTorch's number.
        dump: ``ATTNC_DUMP``: a directory that gets every generated source.
        override: ``ATTNC_OVERRIDE``: a directory whose sources replace generated ones of the same file name.
        backend: ``ATTNC_BACKEND``: the backend where a call does not name one; ``auto`` by default.
        cxx: ``ATTNC_CXX``: the C++ compiler; ``none`` to behave as if there were none.
        pairs: ``ATTNC_PAIRS``: whether bf16 is multiplied by instructions for pairs of bf16 where the processor has
            them: ``always``, ``never``, or ``auto``, if they are the faster ones here.
    """

    cache_dir: Path
    threads: int = 0
    dump: Path | None = None
    override: Path | None = None
    backend: str = "auto"
    cxx: str | None = None
    pairs: Pairs = "auto"

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """The settings now. Variables that are set but empty count as unset.

        Raises:
            CallError: E222, if ``ATTNC_THREADS`` is not a number from 0 upward, or ``ATTNC_PAIRS`` none of its values.
        """
        env = os.environ if environment is None else environment

        def path(name: str) -> Path | None:
            text = env.get(name, "")
            return Path(text).expanduser() if text else None

        return cls(
            cache_dir=path("ATTNC_CACHE_DIR") or _user_cache(),
            threads=_count("ATTNC_THREADS", env.get("ATTNC_THREADS", "")),
            dump=path("ATTNC_DUMP"),
            override=path("ATTNC_OVERRIDE"),
            backend=env.get("ATTNC_BACKEND", "") or "auto",
            cxx=env.get("ATTNC_CXX", "") or None,
            pairs=_pairs(env.get("ATTNC_PAIRS", "")),
        )


def _user_cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("attnc"))


def _pairs(text: str) -> Pairs:
    match text:
        case "always" | "never" | "auto":
            return text
        case "":
            return "auto"
        case _:
            raise _refused("ATTNC_PAIRS", text, "`auto`, `always` or `never`")


def _count(name: str, text: str) -> int:
    if not text:
        return 0
    if not text.isdecimal():
        raise _refused(name, text, "a number of threads, or 0 for as many as PyTorch uses")
    return int(text)


def _refused(name: str, text: str, allowed: str) -> CallError:
    message = f"the environment variable {name} is {text!r}; it must be {allowed}"
    return CallError(Diagnostic("E222", message, remedy=f"set {name} to {allowed}, or unset it"))
