"""Compiling printed Triton kernels ahead of time, for devices this machine may not have."""

from __future__ import annotations

import atexit
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from attnc.codegen.tile import Kernel
from attnc.codegen.triton.configuration import Configuration, candidates, preferred, without_descriptors
from attnc.codegen.triton.parameters import COUNTER, parameters, values
from attnc.codegen.triton.printer import print_module
from attnc.runtime.triton_module import function, interpreting, load
from attnc.runtime.worker import Worker

TRITON_TYPES = {
    "f64": "fp64",
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "f8": "fp8e4nv",
    "i64": "i64",
    "i32": "i32",
    "i16": "i16",
    "i8": "i8",
    "u8": "u8",
    "bool": "i1",
}
SHARED_LIMITS = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
    "gfx942": 64 * 1024,
    "gfx950": 160 * 1024,
}
"""Bytes of shared memory (LDS) one program may use."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """What a compiler made of one kernel.

    Attributes:
        target: as given to `aot`.
        configuration: blocks, warps and stages it was compiled with.
        registers: per thread (vector registers on AMD).
        spilled: bytes of stack per thread, or the number of spilled registers on AMD; 0 when nothing spills.
        shared: bytes of shared memory per program.
        listings: text by name: ``ttir``, ``ttgir``, ``llir``, and ``ptx``, ``sass`` or ``amdgcn``.
    """

    target: str
    configuration: Configuration
    registers: int
    spilled: int
    shared: int
    listings: Mapping[str, str]

    @property
    def assembly(self) -> str:
        """SASS or AMD assembly."""
        return self.listings["amdgcn" if self.target.startswith("gfx") else "sass"]

    @property
    def fits(self) -> bool:
        """Whether nothing spills and shared memory is within the device's limit."""
        return self.spilled == 0 and self.shared <= SHARED_LIMITS[self.target]


def aot(
    kernel: Kernel,
    source: str | None,
    target: str,
    sizes: Mapping[str, int],
    configuration: Configuration | None = None,
    *,
    directory: Path | None = None,
) -> Artefact:
    """Compile a kernel as a launch on contiguous, 16-byte aligned tensors would.

    Args:
        kernel: the kernel `source` was printed from.
        source: by default the kernel is printed for the configuration.
        target: ``sm_80``, ``sm_90``, ``sm_100``, ``gfx942``, ...
        sizes: the channel extents (D, E, ...); other sizes stay runtime arguments.
        configuration: blocks, warps and stages; by default the first candidate that fits the device without spilling,
            or one that hardly spills.
        directory: where the module is written.

    Raises:
        RuntimeError: if Triton cannot compile it, in a process that interprets; elsewhere Triton's own errors.
    """
    choices = (configuration,) if configuration else candidates(kernel, sizes, target)
    if source is not None and configuration is None:
        choices = without_descriptors(choices)
    found: list[Artefact] = []
    for choice in choices:
        text = source or print_module([kernel], descriptors=choice.descriptors)
        request = (kernel, text, target, dict(sizes), choice, directory)
        found.append(_compiler().ask(request) if interpreting() else compile_request(request))
        if found[-1].fits:
            return found[-1]
    return found[preferred([a.spilled + (1 << 30) * (a.shared > SHARED_LIMITS[target]) for a in found])]


@cache
def _compiler() -> Worker:
    """A process that compiles, for one that interprets."""
    made = Worker(__name__, "compile_request", {"TRITON_INTERPRET": None})
    atexit.register(made.close)
    return made


def compile_request(request: Any) -> Artefact:
    """`aot` in this process, which must not interpret; the arguments as one tuple."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, source, target, sizes, chosen, directory = request
    called = function(kernel, load(source, directory))
    described = _describe(kernel, {**dict.fromkeys((*kernel.sizes, COUNTER), 0), **sizes}, chosen)
    ast = ASTSource(called, described.signature, constexprs=described.constants, attrs=described.hints)
    gpu = GPUTarget("hip", target, 64) if target.startswith("gfx") else GPUTarget("cuda", int(target[3:]), 32)
    options = {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages}
    compiled = triton.compile(ast, target=gpu, options=options)
    return _artefact(target, chosen, compiled)


@dataclass(frozen=True, slots=True)
class _Description:
    signature: dict[str, str]
    constants: dict[str, int]
    hints: dict[tuple[int, ...], list[list[Any]]]


def _describe(kernel: Kernel, sizes: Mapping[str, int], configuration: Configuration) -> _Description:
    """Types, constants and alignment of every parameter; the stride of the last dimension is 1."""
    listed = parameters(kernel)
    fixed = values(kernel, listed, sizes, configuration.blocks)
    signature: dict[str, str] = {}
    constants: dict[str, int] = {}
    hints: dict[tuple[int, ...], list[list[Any]]] = {}
    for k, p in enumerate(listed):
        if p.role == "stride" and p.dim == len(kernel.argument(p.of).dims) - 1:
            signature[p.name], constants[p.name] = "constexpr", 1
        elif p.constant:
            signature[p.name], constants[p.name] = "constexpr", fixed[p.name]
        elif p.role == "pointer":
            argument = kernel.argument(p.of)
            counted = kernel.exact and argument.mode == "add"
            signature[p.name] = "*" + ("i64" if counted else TRITON_TYPES[argument.dtype])
            hints[k,] = [["tt.divisibility", 16]]
        else:
            signature[p.name] = "i32"
            if p.role == "stride":
                hints[k,] = [["tt.divisibility", 16]]
    return _Description(signature, constants, hints)


def _artefact(target: str, chosen: Configuration, compiled: Any) -> Artefact:
    shared = int(compiled.metadata.shared)
    wanted = ("ttir", "ttgir", "llir", *(("amdgcn",) if target.startswith("gfx") else ("ptx",)))
    listings = {name: str(compiled.asm[name]) for name in wanted}
    if target.startswith("gfx"):
        registers, spilled = (_amd_field(listings["amdgcn"], f) for f in ("vgpr_count", "vgpr_spill_count"))
        return Artefact(target, chosen, registers, spilled, shared, listings)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        registers, spilled = _resources(file.name)
        listings["sass"] = _nvidia_tool("nvdisasm", "-c", file.name)
    return Artefact(target, chosen, registers, spilled, shared, listings)


def _amd_field(text: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s*(\d+)", text)
    assert found is not None, f"no {name} in the AMD metadata"
    return int(found[1])


def _resources(cubin: str) -> tuple[int, int]:
    """Registers and bytes of stack per thread."""
    text = _nvidia_tool("cuobjdump", "-res-usage", cubin)
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    assert registers is not None and stack is not None, text
    return int(registers[1]), int(stack[1])


def _nvidia_tool(name: str, *arguments: str) -> str:
    import triton.backends.nvidia as nvidia

    tool = Path(nvidia.__path__[0]) / "bin" / name
    return subprocess.run([str(tool), *arguments], check=True, capture_output=True, text=True).stdout
