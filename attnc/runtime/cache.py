"""Compiled libraries on disk, shared by processes.

An entry is three files named by a key: source, library and the library's checksum. Each appears by an atomic rename,
the checksum last. An entry that does not match its checksum, or does not load, is built again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock

import attnc
from attnc.runtime.toolchain import CompilerFailed, Toolchain
from attnc.settings import Settings


def key_of(source: str, toolchain: Toolchain) -> str:
    """The name of the entry for this source, compiler, machine and version of attnc."""
    text = "\n".join([attnc.__version__, toolchain.identity, source])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def library(source: str, toolchain: Toolchain, settings: Settings | None = None) -> ctypes.CDLL:
    """The loaded library of a C++ source, from the cache or compiled now.

    Raises:
        CompilerFailed: if the compiler rejects the source; its log is kept beside it.
    """
    found = begin(source, toolchain, settings)
    return found if isinstance(found, ctypes.CDLL) else found()


def begin(
    source: str, toolchain: Toolchain, settings: Settings | None = None, apart: Sequence[str] = ()
) -> ctypes.CDLL | Compiling:
    """The library if the cache has it, else its compilation, which has begun in another thread.

    `apart` are the sources of sections that `source` has too, see `attnc.codegen.cpu.sections.apart`: they are compiled
    once for all libraries.
    """
    key = key_of(source, toolchain)
    directory = _directory((settings or Settings.read()).cache_dir)
    found = _load(directory / f"{key}.so")
    if found is not None:
        return found
    directory = _writable(directory)

    def make() -> ctypes.CDLL:
        with locked(directory / f"{key}.lock"):
            return _load(directory / f"{key}.so") or _build(directory, key, source, toolchain, apart)

    return Compiling(make)


class Compiling:
    """A library that is being compiled; calling it waits and returns the library.

    What goes wrong is raised by the call, which tries once more; so it is in a process forked meanwhile, where the
    thread is gone.
    """

    def __init__(self, make: Callable[[], ctypes.CDLL]) -> None:
        self._make = make
        self._found: ctypes.CDLL | None = None
        self._thread = threading.Thread(target=self._run, name="attnc compiler")
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(Exception):
            self._found = self._make()

    def __call__(self) -> ctypes.CDLL:
        self._thread.join()
        if self._found is None:
            self._found = self._make()
        return self._found


def _directory(base: Path) -> Path:
    return base / "cpp"


def _load(path: Path) -> ctypes.CDLL | None:
    """The library if it is complete and intact."""
    try:
        return ctypes.CDLL(str(path)) if _is_intact(path) else None
    except OSError:
        return None


def _is_intact(path: Path) -> bool:
    try:
        data, expected = path.read_bytes(), path.with_suffix(".sha256").read_text()
    except (OSError, UnicodeDecodeError):
        return False
    return hashlib.sha256(data).hexdigest() == expected.strip()


def _build(directory: Path, key: str, source: str, toolchain: Toolchain, apart: Sequence[str]) -> ctypes.CDLL:
    target = directory / f"{key}.so"
    try:
        _compile(target, source, lambda text, path: _link(directory, text, path, toolchain, apart))
    except CompilerFailed:
        if not apart:
            raise
        _compile(target, source, toolchain.compile)
    return ctypes.CDLL(str(target))


def _link(directory: Path, source: Path, target: Path, toolchain: Toolchain, apart: Sequence[str]) -> None:
    """Make a library of a translation unit and of sections apart; what is missing is compiled side by side."""
    objects = [directory / f"{key_of(text, toolchain)}.o" for text in apart]
    if all(map(_is_intact, objects)):
        toolchain.compile(source, target, objects)
        return
    with tempfile.TemporaryDirectory(dir=directory) as place, ThreadPoolExecutor() as pool:
        made = [pool.submit(_object, path, text, toolchain) for path, text in zip(objects, apart, strict=True)]
        unit = Path(place, source.with_suffix(".o").name)
        toolchain.compile(source, unit, None)
        for each in made:
            each.result()
        toolchain.compile(unit, target, objects)


def _object(target: Path, source: str, toolchain: Toolchain) -> None:
    """Have the object of a section that is compiled apart."""
    with locked(target.with_suffix(".lock")):
        if not _is_intact(target):
            _compile(target, source, lambda text, path: toolchain.compile(text, path, None))


def _compile(target: Path, source: str, compiler: Callable[[Path, Path], object]) -> None:
    """Have `target` made of `source`, with its checksum beside it."""
    text = target.with_suffix(".cpp")
    replace_file(text, lambda path: path.write_text(source))
    sums: list[str] = []

    def compile_to(path: Path) -> None:
        try:
            compiler(text, path)
        except CompilerFailed as error:
            log = target.with_suffix(".log")
            log.write_text(error.log)
            raise CompilerFailed(f"{error} (full log: {log})", error.log) from None
        sums.append(hashlib.sha256(path.read_bytes()).hexdigest())

    replace_file(target, compile_to)
    replace_file(target.with_suffix(".sha256"), lambda path: path.write_text(sums[-1] + "\n"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have `path` written under another name and renamed, so that no reader ever sees part of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=f".tmp{path.suffix}")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(path: Path) -> Generator[None]:
    """One process at a time, by a lock file."""
    with filelock.FileLock(path):
        yield


def _writable(directory: Path) -> Path:
    """The directory, or a temporary one for this process if nothing can be written there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError as error:
        return _temporary(directory, str(error))


@functools.cache
def _temporary(instead_of: Path, reason: str) -> Path:
    """One fallback per process; it is removed when the process ends."""
    import atexit
    import shutil

    fallback = Path(tempfile.mkdtemp(prefix="attnc-"))
    atexit.register(shutil.rmtree, fallback, ignore_errors=True)
    warnings.warn(
        f"compiled kernels cannot be kept in {instead_of} ({reason}); they go to a temporary directory and will be "
        "compiled again next time. Set ATTNC_CACHE_DIR to a directory that can be written.",
        UserWarning,
        stacklevel=2,
    )
    return fallback
