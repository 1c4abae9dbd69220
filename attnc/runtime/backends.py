"""The backends, and which one a computation runs on."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch

from attnc import driver
from attnc.codegen.tile import Kernel
from attnc.diagnostics.diagnostic import CallError, Diagnostic
from attnc.passes.bias_form import TargetName
from attnc.passes.split import Form
from attnc.runtime.execute import Executor, PlanExecutor
from attnc.runtime.launch import KernelBackend, KernelLaunch

if TYPE_CHECKING:
    from attnc.runtime.computation import Computation

SINGLE = 2
"""Rows up to which a kernel in C++ takes them one by one: its vectors then run along channels."""
NARROW = 6
"""Rows up to which vectors of a kernel in C++ run along keys: as many as one micro-kernel takes."""
NAMES = ("auto", "cpp", "triton", "tiled", "dense")


def requested(name: str) -> str:
    """The backend of that name; for ``auto``, the one in the environment (`Settings.backend`) if there is one.

    Raises:
        CallError: E220, if there is no such backend.
    """
    from attnc.settings import Settings

    name = Settings.read().backend if name == "auto" else name
    if name in NAMES:
        return name
    close = difflib.get_close_matches(str(name), NAMES, 1)
    remedy = f"did you mean `{close[0]}`?" if close else f"choose one of {', '.join(NAMES)}"
    raise CallError(Diagnostic("E220", f"there is no backend `{name}`", remedy=remedy))


def is_planned(backend: str) -> bool:
    """Whether a backend runs kernels, and so needs a plan."""
    return backend != "dense"


def targets_of(backend: str) -> tuple[TargetName, ...]:
    """The kinds of device a backend may run on, the usual one first; what a bias costs differs between them."""
    match backend:
        case "triton":
            return ("gpu",)
        case "auto":
            return ("cpu", "gpu")
        case _:
            return ("cpu",)


def executor(computation: Computation, device: str) -> Executor:
    """What runs `computation` on tensors of this device type."""
    if computation.plan is None:
        from attnc.runtime.dense import DenseExecutor

        return DenseExecutor(computation)
    name = chosen(computation.backend, device)
    _check_device(name, device)
    target: TargetName = "gpu" if name == "triton" else "cpu"
    return PlanExecutor(computation, driver.on_target(computation.plan, target), kernel_backend(name))


def _check_device(name: str, device: str) -> None:
    """Raise `CallError` (E203) if a backend cannot run on this device type."""
    if name == "cpp" and device != "cpu":
        message = f"the backend cpp runs on the CPU, and the tensors are on {device}"
        raise CallError(Diagnostic("E203", message, remedy="compile with backend='auto', or move the tensors"))
    if name == "triton" and device == "cpu" and not _interprets():
        message = "the backend triton runs on CUDA devices, and the tensors are on the CPU"
        remedy = "compile with backend='auto', or set TRITON_INTERPRET=1 before Python starts to interpret the kernels"
        raise CallError(Diagnostic("E203", message, remedy=remedy))


def _interprets() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


def chosen(backend: str, device: str) -> str:
    """The backend that ``auto`` means on a device type; any other name is itself."""
    if backend != "auto":
        return backend
    if device == "cuda":
        return "triton"
    return "cpp" if has_compiler() else "tiled"


@cache
def has_compiler() -> bool:
    """Whether there is a C++ compiler; the first time it finds none, a warning says what to install."""
    from attnc.runtime.toolchain import CompilerMissing, find

    try:
        find()
    except CompilerMissing as missing:
        message = f"{missing}. Until then attention on the CPU runs block by block in PyTorch, which is slower."
        warnings.warn(message, MissingCompilerWarning, stacklevel=2)
        return False
    return True


class MissingCompilerWarning(UserWarning):
    """There is no C++ compiler, so CPU kernels are interpreted by PyTorch."""


@cache
def kernel_backend(name: str) -> KernelBackend:
    """The backend of that name."""
    match name:
        case "cpp":
            return CppBackend()
        case "triton":
            return TritonBackend()
        case _:
            return TiledBackend()


class CppBackend:
    """C++ compiled for this machine."""

    blocks: tuple[int, int] = (64, 64)

    def build(self, kernels: Sequence[Kernel]) -> Sequence[KernelLaunch]:
        """One library with all the kernels."""
        from attnc.runtime.cpu import build

        _refuse_small(kernels, "cpp")
        return build(kernels)

    def form(self, rows: int, shared: int, programs: int, width: int) -> Form | None:
        """One row per program where there are very few to a key head, or few rows with vectors along keys.

        Vectors of 32 bytes are filled by few rows: with numbers of four bytes, which need no conversion, a whole block
        then takes no longer than memory does, from two rows of one head on.
        """
        from attnc.runtime.toolchain import find

        whole = rows > NARROW or (width == 4 and shared == 1 < rows and not find().has_wide_vectors())
        if whole:
            return "block" if programs < torch.get_num_threads() else None
        if rows * shared <= SINGLE:
            return "single"
        return "narrow" if shared == 1 else "packed"

    def processors(self, device: torch.device) -> int:
        """The threads that kernels run on."""
        return torch.get_num_threads()


def _refuse_small(kernels: Sequence[Kernel], name: str) -> None:
    """Raise `CallError` (E202) if a kernel reads numbers of eight bits."""
    if any(a.dtype == "f8" for k in kernels for a in k.arguments):
        message = f"the backend {name} does not read float8_e4m3fn"
        raise CallError(Diagnostic("E202", message, remedy="use a CUDA device, or convert to float32 or bfloat16"))


class TritonBackend:
    """Triton, compiled on a GPU and interpreted on a CPU."""

    blocks: tuple[int, int] = (64, 64)

    def build(self, kernels: Sequence[Kernel]) -> Sequence[KernelLaunch]:
        """One module with all the kernels."""
        from attnc.runtime.triton_backend import build

        if any(k.real == "f64" for k in kernels):
            message = "the backend triton computes in float32, and the tensors are float64"
            raise CallError(Diagnostic("E203", message, remedy="use float32, or backend='auto' on the CPU"))
        return build(kernels)

    def form(self, rows: int, shared: int, programs: int, width: int) -> Form | None:
        """A block of rows, which a matrix product takes together: those of all heads that read the same keys."""
        return "block" if shared == 1 else "packed"

    def processors(self, device: torch.device) -> int:
        """Two programs per multiprocessor; in the interpreter, as many as on a small device."""
        return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 32


class TiledBackend:
    """Tile programs interpreted by PyTorch, in large blocks, because each statement costs Python time."""

    blocks: tuple[int, int] = (256, 256)

    def build(self, kernels: Sequence[Kernel]) -> Sequence[KernelLaunch]:
        """Interpreters of the kernels."""
        from attnc.runtime.tiled import TiledKernel

        _refuse_small(kernels, "tiled")
        return [TiledKernel(k) for k in kernels]

    def form(self, rows: int, shared: int, programs: int, width: int) -> Form | None:
        """Programs run one after another: there is nothing to gain."""
        return None

    def processors(self, device: torch.device) -> int:
        """One."""
        return 1
