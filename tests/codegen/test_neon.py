"""C++ for ARM: kernels compiled for NEON run under emulation, inside whole ops, against the oracle.

It takes a cross compiler and an emulator (`apt install g++-aarch64-linux-gnu qemu-user`) and is skipped without them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import attnc
from attnc.codegen.cpu.printer import block_lengths, print_unit
from attnc.codegen.tile import Kernel
from attnc.runtime import cpu
from attnc.runtime.toolchain import FLAGS
from attnc.testing.compare import agreements
from attnc.testing.inputs import complete_sizes, grid_length, make_inputs

EXAMPLES = Path(__file__).parents[2] / "examples"
COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
pytestmark = pytest.mark.skipif(not (COMPILER and EMULATOR), reason="no compiler for aarch64, or no emulator of it")

DRIVER = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef int Entry(void *const *, const int64_t *, const int64_t *, int);
DECLARATIONS
// The file holds counts, strides, sizes, and for each tensor its length, offset and memory, which is written back.
int main(int, char **arguments) {
    Entry *entry = nullptr;
    CHOICE
    FILE *file = fopen(arguments[2], "r+b");
    int64_t counts[3];
    fread(counts, 8, 3, file);
    int64_t *strides = (int64_t *)malloc(8 * counts[1] + 8), *sizes = (int64_t *)malloc(8 * counts[2] + 8);
    fread(strides, 8, counts[1], file);
    fread(sizes, 8, counts[2], file);
    void **tensors = (void **)malloc(8 * counts[0] + 8);
    char **memory = (char **)malloc(8 * counts[0] + 8);
    long *places = (long *)malloc(8 * counts[0] + 8);
    int64_t (*spans)[2] = (int64_t (*)[2])malloc(16 * counts[0] + 16);
    for (int k = 0; k < counts[0]; ++k) {
        fread(spans[k], 8, 2, file);
        places[k] = ftell(file);
        memory[k] = (char *)aligned_alloc(64, (spans[k][0] + 127) / 64 * 64);
        fread(memory[k], 1, spans[k][0], file);
        tensors[k] = memory[k] + spans[k][1];
    }
    const int status = entry(tensors, strides, sizes, 2);
    for (int k = 0; k < counts[0]; ++k) {
        fseek(file, places[k], SEEK_SET);
        fwrite(memory[k], 1, spans[k][0], file);
    }
    fclose(file);
    return status;
}
"""


class Emulated:
    """A kernel of a program for another processor."""

    def __init__(self, kernel: Kernel, program: Path) -> None:
        self.kernel = kernel
        self.program = program

    def blocks(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Mapping[str, int]:
        return block_lengths(self.kernel)

    def __call__(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        strides = [0 if n == 1 else s for t in tensors for n, s in zip(t.shape, t.stride(), strict=True)]
        lengths = [sizes[n] for n in self.kernel.sizes]
        file = self.program.with_suffix(".tensors")
        with file.open("wb") as out:
            for numbers in ([len(tensors), len(strides), len(lengths)], strides, lengths):
                out.write(torch.tensor(numbers, dtype=torch.int64).numpy().tobytes())
            places = []
            for t in tensors:
                storage = t.untyped_storage()
                span = [storage.nbytes(), t.data_ptr() - storage.data_ptr()]
                out.write(torch.tensor(span, dtype=torch.int64).numpy().tobytes())
                places.append(out.tell())
                out.write(ctypes.string_at(storage.data_ptr(), storage.nbytes()))
        assert EMULATOR is not None
        waiting = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        subprocess.run([EMULATOR, self.program, self.kernel.name, file], check=True, env=waiting)
        found = file.read_bytes()
        for t, argument, place in zip(tensors, self.kernel.arguments, places, strict=True):
            if argument.mode != "in":
                storage = t.untyped_storage()
                ctypes.memmove(storage.data_ptr(), found[place : place + storage.nbytes()], storage.nbytes())


@pytest.fixture
def emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has the backend cpp build for aarch64; the names of the kernels it was asked for."""
    built: list[str] = []

    def build(kernels: Sequence[Kernel]) -> list[Emulated]:
        if not kernels:
            return []
        program = tmp_path / f"unit_{len(built)}"
        unit, driver = program.with_suffix(".cpp"), tmp_path / f"driver_{len(built)}.cpp"
        unit.write_text(print_unit(kernels))
        names = [k.name for k in kernels]
        choice = "\n".join(f'    if (!strcmp(arguments[1], "{n}")) entry = {n};' for n in names)
        declarations = "\n".join(f'extern "C" Entry {n};' for n in names)
        driver.write_text(DRIVER.replace("DECLARATIONS", declarations).replace("    CHOICE", choice))
        flags = [f for f in FLAGS if f not in ("-fPIC", "-shared")]
        assert COMPILER is not None
        subprocess.run([COMPILER, *flags, "-static", "-fopenmp", unit, driver, "-o", program], check=True)
        built.extend(names)
        return [Emulated(k, program) for k in kernels]

    monkeypatch.setattr(cpu, "build", build)
    return built


SPECS = ["causal", "alibi", "softcap_alibi", "relative_table", "document_causal", "sinks", "music", "retention", "urpe"]
SPECS += ["neighborhood_2d", "sigmoid_attention", "gla", "spatial", "user_normaliser", "pointer"]
USUAL = {("alibi", "f32"), ("causal", "bf16")}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(n, d, marks=[] if (n, d) in USUAL else pytest.mark.sweep)
        for n in SPECS
        for d in (DTYPES if n in ("causal", "relative_table") else ("f32", "bf16"))
    ],
)
def test_values_and_gradients(name: str, dtype: str, emulated: list[str]) -> None:
    text = (EXAMPLES / f"{name}.attn").read_text().replace("attention ", "attention neon_", 1)
    op = attnc.compile(text, backend="cpp")
    lengths = {} if grid_length(op.program) else {"M": 71, "N": 71}
    sizes = complete_sizes(op.program, {"B": 1, "H": 4, "G": 2, "D": 24, "E": 20, **lengths})
    tensors = make_inputs(op.program, sizes, DTYPES[dtype], contiguous=False)
    found = agreements(op, tensors, backward=True)
    assert emulated
    assert [a for a in found if a.error > a.limit] == []


@pytest.mark.parametrize(
    "rows", [pytest.param(1, marks=pytest.mark.sweep), 4, pytest.param(9, marks=pytest.mark.sweep)]
)
def test_few_queries(rows: int, emulated: list[str]) -> None:
    op = attnc.compile(f"attention neon_few_{rows}\nmask = j <= i\n", backend="cpp")
    sizes = complete_sizes(op.program, {"B": 1, "H": 2, "G": 2, "M": rows, "N": 600, "D": 16, "E": 16})
    tensors = make_inputs(op.program, sizes, torch.bfloat16)
    found = agreements(op, tensors, q_start=600 - rows, backward=False)
    assert any("part" in name for name in emulated) == (rows < 9)
    assert [a for a in found if a.error > a.limit] == []
