"""The C++ compiler of the system, and shared libraries made with it."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnc.diagnostics.diagnostic import InternalError
from attnc.settings import Settings

CANDIDATES = ("g++", "c++", "clang++")
FLAGS = (
    "-O2",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-w",
)
"""Never -ffast-math: it would lose infinities, NaN and the rounding the polynomials rely on."""

REMEDY = "install g++ or clang++ (Debian and Ubuntu: `apt install g++`), or name a compiler in the variable ATTNC_CXX"


class CompilerMissing(Exception):
    """There is no C++ compiler; the message says what to install."""


class CompilerFailed(InternalError):
    """The compiler rejected generated code, which is a bug of attnc or of the compiler; `log` is the whole output."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A compiler and what distinguishes its output.

    Attributes:
        path: of the executable.
        version: the first line it prints about itself.
        processor: a hash of the machine's architecture and features, because code is made for exactly this machine.
    """

    path: str
    version: str
    processor: str

    def options(self) -> list[tuple[str, ...]]:
        """Flags to try in order: some compilers lack OpenMP or do not know the machine they run on."""
        native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64", "ppc64le") else "-march=native"
        return [(*FLAGS, *more) for more in ((native, "-fopenmp"), (native,), ("-fopenmp",), ())]

    @property
    def identity(self) -> str:
        """Everything of the toolchain that the compiled code depends on."""
        return "\n".join([self.path, self.version, self.processor, *(" ".join(o) for o in self.options())])

    def multiplies_pairs(self) -> bool:
        """Whether code is compiled for a processor that has instructions for pairs of bf16."""
        return self._defines("__AVX512BF16__")

    def multiplies_tiles(self) -> bool:
        """Whether code is compiled for a processor that multiplies tiles of bf16 (AMX)."""
        return self._defines("__AMX_BF16__")

    def has_wide_vectors(self) -> bool:
        """Whether code is compiled for vectors of 64 bytes (AVX-512)."""
        return self._defines("__AVX512F__")

    def _defines(self, macro: str) -> bool:
        return _defines(self.path, self.options()[0], macro)

    def compile(self, source: Path, target: Path, objects: Sequence[Path] | None = ()) -> None:
        """Make the shared library `target`, of a unit (or its object) whose sections apart are in `objects`.

        Without objects the unit is compiled whole. If `objects` is None, `target` is an object without sections apart.

        Raises:
            CompilerFailed: if every choice of flags fails.
        """
        more = ["-c"] if objects is None else list(map(str, objects))
        if more:
            more.append("-DATTNC_APART")
        first_log = ""
        for options in self.options():
            done = subprocess.run(
                [self.path, *options, str(source), *more, "-o", str(target)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0:
                return
            first_log = first_log or done.stderr
        line = next((x for x in first_log.splitlines() if "error" in x), first_log.strip()[:200])
        raise CompilerFailed(f"{Path(self.path).name} could not compile a generated kernel: {line}", first_log)


def find(settings: Settings | None = None) -> Toolchain:
    """The compiler in ``ATTNC_CXX`` or ``CXX``, or the first of g++, c++ and clang++.

    Raises:
        CompilerMissing: if there is none.
    """
    chosen = (settings or Settings.read()).cxx
    if chosen == "none":
        raise CompilerMissing(f"the C++ compiler is switched off (ATTNC_CXX is `none`); {REMEDY}")
    wanted = [chosen] if chosen else [*_from_environment(), *CANDIDATES]
    for name in wanted:
        path = shutil.which(name)
        if path is not None:
            return _describe(path)
    named = f"`{chosen}` (named in ATTNC_CXX) was not found" if chosen else "there is no C++ compiler"
    raise CompilerMissing(f"{named}; {REMEDY}")


def _from_environment() -> list[str]:
    named = os.environ.get("CXX", "").split()
    return named[:1]


@functools.cache
def _describe(path: str) -> Toolchain:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompilerMissing(f"`{path}` does not run ({error}); {REMEDY}") from error
    lines = done.stdout.splitlines()
    return Toolchain(path, lines[0] if lines else "", processor())


@functools.cache
def _defines(path: str, options: tuple[str, ...], macro: str) -> bool:
    """Whether a compiler with these options defines a macro."""
    command = [path, *options, "-dM", "-E", "-x", "c++", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"#define {macro} " in done.stdout


@functools.cache
def processor() -> str:
    """A hash of the architecture and the instruction sets of this machine."""
    features = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features", "model name", "CPU part")):
                features += line + "\n"
                if line.startswith(("flags", "Features")):
                    break
    except OSError:
        features = platform.processor()
    return hashlib.sha256(f"{platform.system()} {platform.machine()}\n{features}".encode()).hexdigest()[:16]
