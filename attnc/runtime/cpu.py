"""Kernels compiled for the CPU, ready to launch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from attnc.codegen.cpu.printer import block_lengths, print_unit
from attnc.codegen.cpu.sections import apart
from attnc.codegen.tile import Kernel
from attnc.diagnostics.diagnostic import CallError, Diagnostic
from attnc.runtime import cache
from attnc.runtime.toolchain import Toolchain, find
from attnc.runtime.units import pairs_are_faster
from attnc.settings import Settings

KEPT = 64
"""Calls remembered per kernel."""


class CompiledKernel:
    """One kernel of a loaded library. Calling it costs some microseconds beside the kernel's own time."""

    def __init__(self, kernel: Kernel, library: ctypes.CDLL | cache.Compiling, threads: int = 0) -> None:
        """Bind `kernel` to its entry point; `threads` 0 follows `torch.get_num_threads`."""
        self.kernel = kernel
        self.threads = threads
        self.library = library
        count = sum(len(a.dims) for a in kernel.arguments)
        self._pointers = ctypes.c_void_p * len(kernel.arguments)
        self._strides = ctypes.c_int64 * count
        self._sizes = ctypes.c_int64 * len(kernel.sizes)
        self._bound: dict[tuple[object, ...], Callable[[Sequence[Tensor]], None]] = {}

    def blocks(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Block lengths, which are those it was compiled with."""
        return block_lengths(self.kernel)

    def __call__(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        """Run on one tensor per argument.

        Args:
            tensors: in the order of `Kernel.arguments`, any strides; a dimension of length 1 broadcasts. ``out``
                tensors are written, ``add`` tensors must hold zeros.
            sizes: every symbol in `Kernel.sizes`.

        Raises:
            CallError: (E230) if a size is beyond what kernels address.
            MemoryError: if there is no room for the tiles.
        """
        key = (*[t.shape for t in tensors], *[t.stride() for t in tensors], *[sizes[n] for n in self.kernel.sizes])
        bound = self._bound.get(key)
        if bound is None:
            if len(self._bound) >= KEPT:
                self._bound.clear()
            bound = self._bound[key] = self.bind(tensors, sizes)
        bound(tensors)

    def bind(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Callable[[Sequence[Tensor]], None]:
        """A function that runs the kernel on tensors of the same shapes and strides as these, and the same sizes."""
        known = [0 if n == 1 else s for t in tensors for n, s in zip(t.shape, t.stride(), strict=True)]
        strides = self._strides(*known)
        lengths = self._sizes(*[sizes[n] for n in self.kernel.sizes])
        entry, pointers, fixed = self._entry(), self._pointers, self.threads

        def run(tensors: Sequence[Tensor]) -> None:
            status = entry(
                pointers(*[t.data_ptr() for t in tensors]), strides, lengths, fixed or torch.get_num_threads()
            )
            if status:
                self._refuse(status, sizes)

        return run

    def _entry(self) -> Callable[..., int]:
        if isinstance(self.library, cache.Compiling):
            self.library = self.library()
        entry = self.library[self.kernel.name]
        entry.restype = ctypes.c_int
        return entry

    def _refuse(self, status: int, sizes: Mapping[str, int]) -> None:
        if status == 1:
            raise MemoryError(f"no memory for the tiles of kernel {self.kernel.name}")
        message = f"a size of this call is negative or above 2**26: {dict(sizes)}"
        raise CallError(Diagnostic("E230", message, remedy="split the call into shorter ones"))


def build(
    kernels: Sequence[Kernel], *, toolchain: Toolchain | None = None, settings: Settings | None = None
) -> list[CompiledKernel]:
    """Have kernels of one variant compiled into one library, or find it in the cache.

    A kernel that is still being compiled is waited for when it is first launched; that raises CompilerFailed if the
    compiler rejects the generated source.

    Raises:
        CompilerMissing: if there is no C++ compiler.
    """
    if not kernels:
        return []
    settings = settings or Settings.read()
    toolchain = toolchain or find(settings)
    half = any(a.dtype == "bf16" for k in kernels for a in k.arguments)
    text = print_unit(kernels, pairs=half and _takes_pairs(toolchain, settings))
    source = _overridden(kernels[0].name, text, settings)
    shared = apart(text, kernels[0].real) if source == text else ()
    library = cache.begin(source, toolchain, settings, shared)
    return [CompiledKernel(k, library, settings.threads) for k in kernels]


def _takes_pairs(toolchain: Toolchain, settings: Settings) -> bool:
    """Whether bf16 is multiplied as it is, in pairs, and not widened to f32 first."""
    if settings.pairs == "never" or not toolchain.multiplies_pairs():
        return False
    return settings.pairs == "always" or toolchain.multiplies_tiles() or pairs_are_faster(toolchain)


def launch(
    kernel: Kernel, library: ctypes.CDLL, tensors: Mapping[str, Tensor], sizes: Mapping[str, int], threads: int = 0
) -> None:
    """Run a kernel once, tensors by argument name; to run it often, keep a `CompiledKernel`."""
    CompiledKernel(kernel, library, threads)([tensors[a.name] for a in kernel.arguments], sizes)


def _overridden(name: str, source: str, settings: Settings) -> str:
    """Write the source to ``ATTNC_DUMP`` and replace it by the file of the same name in ``ATTNC_OVERRIDE``, if any."""
    file = f"{name}.cpp"
    if settings.dump is not None:
        settings.dump.mkdir(parents=True, exist_ok=True)
        Path(settings.dump, file).write_text(source)
    if settings.override is not None and Path(settings.override, file).is_file():
        return Path(settings.override, file).read_text()
    return source
