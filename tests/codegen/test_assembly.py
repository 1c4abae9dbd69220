"""What compilers make of the C++ kernels: loops full of multiply-adds keep their sums in registers of full width."""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from attnc import driver
from attnc.codegen.cpu.printer import print_unit
from attnc.runtime.toolchain import FLAGS, find
from attnc.testing import peak

EXAMPLES = Path(__file__).parents[2] / "examples"
MANY = 16
STACK = re.compile(r"\(%r[sb]p\b")
JUMP = re.compile(r"\s+j\w+\s+(\.L\d+)")
LABEL = re.compile(r"(\.L\d+):")
# Least number of accumulators per loop, and the register multiply-adds must use.
WIDTHS = {"haswell": (12, "ymm"), "x86-64-v4": (16, "zmm"), "sapphirerapids": (16, "zmm")}

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="assembly of x86")


@dataclass(frozen=True)
class Loop:
    """An innermost loop: its instructions."""

    lines: tuple[str, ...]

    @property
    def products(self) -> list[str]:
        return [x for x in self.lines if re.search(r"\s(vfn?m(add|sub)\d+p[sd]|vdpbf16ps)\s", x)]

    @property
    def on_stack(self) -> list[str]:
        return [x for x in self.lines if STACK.search(x) and re.search(r"%[xyz]mm", x)]


def innermost(assembly: str) -> list[Loop]:
    """Stretches from a label to a jump back to it, with no other such stretch inside."""
    lines = assembly.splitlines()
    labels: dict[str, int] = {}
    ranges = []
    for at, line in enumerate(lines):
        if (label := LABEL.match(line)) is not None:
            labels[label[1]] = at
        elif (jump := JUMP.match(line)) is not None and jump[1] in labels:
            ranges.append((labels[jump[1]], at))
    inside = [r for r in ranges if not any(s != r and r[0] <= s[0] and s[1] <= r[1] for s in ranges)]
    return [Loop(tuple(lines[a : b + 1])) for a, b in inside]


def assembly(source: str, machine: str, directory: Path) -> str:
    file = directory / "kernels.cpp"
    file.write_text(source)
    flags = [f for f in FLAGS if f != "-shared"]
    command = [find().path, *flags, f"-march={machine}", "-S", str(file), "-o", str(directory / "kernels.s")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:2000]
    return (directory / "kernels.s").read_text()


def test_what_the_lint_sees() -> None:
    """A loop with a stack move, one without, and a jump forwards."""
    text = """
.L1:
\tvfmadd231ps\t%zmm1, %zmm2, %zmm3
\tjne\t.L9
.L2:
\tvmovaps\t%zmm3, 64(%rsp)
\tjne\t.L2
\tjne\t.L1
.L9:
\tvfmadd231ps\t%zmm1, %zmm2, %zmm3
\tmovq\t8(%rsp), %rax
\tjne\t.L9
"""
    first, second = innermost(text)
    assert (len(first.on_stack), len(first.products)) == (1, 0)
    assert (len(second.on_stack), len(second.products)) == (0, 1)


@pytest.mark.parametrize("machine", WIDTHS)
@pytest.mark.parametrize("name", ["softmax", *(pytest.param(x, marks=pytest.mark.sweep) for x in ("alibi", "gla"))])
def test_sums_stay_in_registers(name: str, machine: str, tmp_path: Path) -> None:
    """Forward and gradient kernels; on Sapphire Rapids those for bf16, which multiply pairs."""
    least, register = WIDTHS[machine]
    pairs = machine == "sapphirerapids"
    source = driver.read(EXAMPLES / f"{name}.attn")
    program = driver.lower(driver.definition(source), source)
    kernels = driver.all_kernels(program, "bf16" if pairs else "f32", 64, "cpu")
    loops = innermost(assembly(print_unit(kernels, pairs=pairs), machine, tmp_path))
    busy = [x for x in loops if len(x.products) >= MANY]
    assert all(not x.on_stack for x in busy), [x.on_stack[:3] for x in busy if x.on_stack]
    full = [x for x in loops if len(x.products) >= least and all(f"%{register}" in p for p in x.products)]
    assert full
    if pairs and name != "gla":
        assert any("vdpbf16ps" in p for x in full for p in x.products)


@pytest.mark.parametrize(
    ("machine", "sums"), [("haswell", {12}), ("x86-64-v4", {12}), ("sapphirerapids", {12, 16})], ids=str
)
def test_peaks_are_measured_with_separate_sums(machine: str, sums: set[int], tmp_path: Path) -> None:
    """A compiler that sees equal sums keeps one of them, and its loop runs at the latency of an addition."""
    found = innermost(assembly(peak.SOURCE, machine, tmp_path))
    assert {len(x.products) for x in found if x.products} == sums
    assert not any(x.on_stack for x in found if x.products)
