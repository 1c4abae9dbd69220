"""The compiled-kernel cache: shared, atomic, and never trusting a damaged entry; and the search for a compiler."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from attnc.codegen.cpu.printer import print_unit
from attnc.codegen.cpu.sections import apart
from attnc.runtime import cache
from attnc.runtime.cpu import build
from attnc.runtime.toolchain import CompilerFailed, CompilerMissing, Toolchain, find
from attnc.settings import Settings
from tests.codegen.kernels import softmax_forward

SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache")


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    return find()


def entry(settings: Settings, toolchain: Toolchain, suffix: str, source: str = SOURCE) -> Path:
    return settings.cache_dir / "cpp" / f"{cache.key_of(source, toolchain)}{suffix}"


def compiled_at(settings: Settings, toolchain: Toolchain) -> int:
    return entry(settings, toolchain, ".so").stat().st_ino


def test_compiles_once(settings: Settings, toolchain: Toolchain) -> None:
    assert cache.library(SOURCE, toolchain, settings).answer() == 42
    first = compiled_at(settings, toolchain)
    assert cache.library(SOURCE, toolchain, settings).answer() == 42
    assert compiled_at(settings, toolchain) == first
    assert entry(settings, toolchain, ".cpp").read_text() == SOURCE


@pytest.mark.parametrize("damage", ["truncated", "altered", "checksum", "no checksum", "garbage of the right checksum"])
def test_damaged_entries_are_rebuilt(settings: Settings, toolchain: Toolchain, damage: str) -> None:
    directory = settings.cache_dir / "cpp"
    code = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).answer() != 42)"
    toolchain_library = entry(settings, toolchain, ".so")
    # Built by another process, so that nothing of it is mapped here while it is damaged.
    build = f"from attnc.runtime import cache, toolchain; cache.library({SOURCE!r}, toolchain.find())"
    subprocess.run(
        [sys.executable, "-c", build], check=True, env=os.environ | {"ATTNC_CACHE_DIR": str(settings.cache_dir)}
    )
    data = toolchain_library.read_bytes()
    checksum = entry(settings, toolchain, ".sha256")
    match damage:
        case "truncated":
            toolchain_library.write_bytes(data[: len(data) // 2])
        case "altered":
            toolchain_library.write_bytes(data[:-100] + bytes(100))
        case "checksum":
            checksum.write_bytes(b"\xff\xfe")
        case "no checksum":
            checksum.unlink()
        case _:
            import hashlib

            toolchain_library.write_bytes(b"not a library")
            checksum.write_text(hashlib.sha256(b"not a library").hexdigest())
    assert cache.library(SOURCE, toolchain, settings).answer() == 42
    subprocess.run([sys.executable, "-c", code, str(toolchain_library)], check=True)
    assert not list(directory.glob("*.tmp*"))


def test_processes_share_one_entry(settings: Settings, tmp_path: Path) -> None:
    """Eight processes that start together all get a working library, and leave one."""
    code = textwrap.dedent(f"""
        import pathlib, sys, time
        from attnc.runtime import cache, toolchain
        found = toolchain.find()
        go = pathlib.Path(sys.argv[1])
        while not go.exists():
            time.sleep(0.001)
        assert cache.library({SOURCE!r}, found).answer() == 42
    """)
    go = tmp_path / "go"
    env = os.environ | {"ATTNC_CACHE_DIR": str(settings.cache_dir)}
    running = [subprocess.Popen([sys.executable, "-c", code, str(go)], env=env) for _ in range(8)]
    go.touch()
    assert [p.wait(timeout=120) for p in running] == [0] * 8
    left = sorted(p.suffix for p in (settings.cache_dir / "cpp").iterdir() if p.suffix != ".lock")
    assert left == [".cpp", ".sha256", ".so"]


def test_a_directory_that_cannot_be_written(tmp_path: Path, toolchain: Toolchain) -> None:
    """A file in the way, which stops even a superuser: kernels go to a temporary directory, with one warning."""
    (tmp_path / "file").write_text("in the way")
    blocked = Settings(cache_dir=tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match="ATTNC_CACHE_DIR"):
        assert cache.library(SOURCE, toolchain, blocked).answer() == 42


def test_a_read_only_directory_is_still_read(settings: Settings, toolchain: Toolchain) -> None:
    cache.library(SOURCE, toolchain, settings)
    directory = settings.cache_dir / "cpp"
    before = sorted(directory.iterdir())
    directory.chmod(0o555)
    try:
        assert cache.library(SOURCE, toolchain, settings).answer() == 42
    finally:
        directory.chmod(0o755)
    assert sorted(directory.iterdir()) == before


def test_rejected_source(settings: Settings, toolchain: Toolchain) -> None:
    with pytest.raises(CompilerFailed, match=r"could not compile a generated kernel: .*error") as caught:
        cache.library("this is not C++", toolchain, settings)
    assert len(str(caught.value).splitlines()) == 1
    log = entry(settings, toolchain, ".log", "this is not C++")
    assert str(log) in str(caught.value)
    assert "not C++" in log.read_text()


def test_flags_are_dropped_for_compilers_that_lack_them(tmp_path: Path, toolchain: Toolchain) -> None:
    """A compiler without OpenMP still works."""
    script = tmp_path / "cxx"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *-fopenmp*) echo "error: unknown option -fopenmp" >&2; exit 1;; esac\n'
        f'exec {toolchain.path} "$@"\n'
    )
    script.chmod(0o755)
    source = tmp_path / "a.cpp"
    source.write_text(SOURCE)
    Toolchain(str(script), "test", "test").compile(source, tmp_path / "a.so")
    assert ctypes.CDLL(str(tmp_path / "a.so")).answer() == 42


def test_entries_differ_by_compiler_and_machine(toolchain: Toolchain) -> None:
    others = [
        Toolchain(toolchain.path, toolchain.version + "x", toolchain.processor),
        Toolchain(toolchain.path, toolchain.version, "another"),
        Toolchain("/other/c++", toolchain.version, toolchain.processor),
    ]
    keys = {cache.key_of(SOURCE, t) for t in (toolchain, *others)} | {cache.key_of(SOURCE + " ", toolchain)}
    assert len(keys) == 5


def test_no_compiler() -> None:
    with pytest.raises(CompilerMissing, match="apt install g"):
        find(Settings(cache_dir=Path("unused"), cxx="none"))
    with pytest.raises(CompilerMissing, match=r"`no-such-compiler` .named in ATTNC_CXX. was not found"):
        find(Settings(cache_dir=Path("unused"), cxx="no-such-compiler"))


def test_a_compiler_that_does_not_run(tmp_path: Path) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(CompilerMissing, match="does not run"):
        find(Settings(cache_dir=tmp_path, cxx=str(broken)))


def test_products_are_compiled_once(settings: Settings, toolchain: Toolchain) -> None:
    """Kernels share the object with the products; one that is damaged is made again."""
    q, k, v = (torch.randn(1, 1, 33, 64) for _ in range(3))
    exact = torch.softmax((q @ k.mT).double() / 8, -1) @ v.double()
    made: list[int] = []
    for causal in (False, True, False):
        kernel = softmax_forward(causal=causal, channels=64 if len(made) < 2 else None)
        o, lse = torch.full_like(q, math.nan), torch.full((1, 1, 33), math.nan)
        (run,) = build([kernel], toolchain=toolchain, settings=settings)
        run([q, k, v, o, lse], {"B": 1, "H": 1, "M": 33, "N": 33, "D": 64, "E": 64, "q_start": 0})
        assert torch.allclose(o[:, :, -1].double(), exact[:, :, -1], atol=1e-5)  # the last query sees every key
        (shared,) = (settings.cache_dir / "cpp").glob("*.o")
        made.append(shared.stat().st_ino)
        if causal:
            shared.write_bytes(b"not an object")
    assert made[0] == made[1] != made[2]


def test_units_are_whole_by_themselves(settings: Settings, toolchain: Toolchain) -> None:
    unit = print_unit([softmax_forward(causal=True)])
    assert len(apart(unit, "f32")) == 1
    assert cache.library(unit, toolchain, settings)[softmax_forward(causal=True).name]
    assert not list((settings.cache_dir / "cpp").glob("*.o"))
