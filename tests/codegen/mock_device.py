"""A device that is not there: Triton compiles for it, loads and launches, and all of it is written down.

Runs in a process of its own (`attnc.runtime.worker`), because it replaces Triton's driver.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnc.codegen.tile import Kernel
from attnc.codegen.triton.configuration import Configuration, default_configuration
from attnc.codegen.triton.printer import print_kernel
from attnc.runtime import triton_backend, tuning
from attnc.runtime.tuning import Trial, remember
from attnc.testing.tuning import measured


@dataclass
class Record:
    """What a mock device saw: the shared memory of every loaded kernel; grid, number of values and integers of every
    launch, and whether it had scratch memory to give."""

    loaded: list[int] = field(default_factory=list)
    launched: list[tuple[int, int]] = field(default_factory=list)
    passed: list[list[int]] = field(default_factory=list)
    blocks: list[dict[str, int]] = field(default_factory=list)
    descriptors: list[bool] = field(default_factory=list)
    scratch: list[bool] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)


class OnDevice:
    """A CPU tensor that says it lives on a GPU."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.device = torch.device("cuda", 0)
        self.dtype, self.shape = tensor.dtype, tensor.shape

    def stride(self) -> tuple[int, ...]:
        return self.tensor.stride()

    def data_ptr(self) -> int:
        return self.tensor.data_ptr()


def _driver(record: Record, spills: list[int]) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime import _allocation

    class Utils:
        def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
            record.loaded.append(shared)
            return 1, 2, 255, spills[min(len(record.loaded), len(spills)) - 1], 1024

        def get_device_properties(self, device: int) -> dict[str, int]:
            return {"max_shared_mem": 227 * 1024, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}

    class Launcher:
        def __init__(self, source: object, metadata: object) -> None:
            pass

        def __call__(self, *values: Any) -> None:
            record.launched.append((values[0], len(values)))
            record.passed.append([v for v in values if isinstance(v, int)])
            record.scratch.append(type(_allocation._allocator.get()).__name__ != "NullAllocator")

    class Driver(DriverBase):  # type: ignore[misc]
        def __init__(self) -> None:
            self.utils, self.launcher_cls = Utils(), Launcher

        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, name: str) -> str:
            return name

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def get_benchmarker(self) -> None:
            return None

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int = 0) -> int:
            return 0

    return Driver()


def launch_twice(request: tuple[Kernel, dict[str, Tensor], dict[str, int], list[int], str]) -> Record:
    """Launch a kernel twice; the first, second, ... one loaded spills so many registers."""
    kernel, tensors, sizes, spills, directory = request
    from triton.runtime import driver

    record = Record()
    driver.set_active(_driver(record, spills))
    triton_backend._current = lambda device: contextlib.nullcontext()
    triton_backend._target = lambda device: "sm_90"
    ready = triton_backend.TritonKernel(kernel, print_kernel(kernel), Path(directory))
    moved: list[Any] = [OnDevice(tensors[a.name]) for a in kernel.arguments]
    for _ in range(2):
        ready(moved, sizes)
    record.blocks = [dict(c.blocks) for c in ready._chosen.values()]
    return record


class Shortest:
    """A clock by which the launch with the grid nearest to a wanted one is fastest."""

    def __init__(self, record: Record, wanted: int) -> None:
        self.record, self.wanted = record, wanted

    def timed(self, call: Callable[[], None]) -> Callable[[], float]:
        call()
        grid = self.record.launched[-1][0]
        return lambda: 1e-3 * (1 + abs(grid - self.wanted))


def tune_and_launch(
    request: tuple[Kernel, dict[str, Tensor], dict[str, int], list[int], list[Configuration], int, str],
) -> tuple[Trial, Record]:
    """Measure some configurations, of which the n-th to be loaded spills so many registers, by a clock that wants a
    grid; then launch the kernel anew. What was seen of that launch."""
    kernel, tensors, sizes, spills, choices, wanted, directory = request
    from triton.runtime import driver

    record = Record()
    driver.set_active(_driver(record, spills))
    triton_backend._current = lambda device: contextlib.nullcontext()
    triton_backend._target = lambda device: "sm_90"
    os.environ["ATTNC_CACHE_DIR"] = directory
    moved: list[Any] = [OnDevice(tensors[a.name]) for a in kernel.arguments]
    ready = triton_backend.TritonKernel(kernel, print_kernel(kernel), Path(directory))
    (trial,) = measured(
        lambda: ready(moved, sizes),
        Shortest(record, wanted),
        rounds=2,
        choose=lambda k, s, t: choices,
        progress=lambda done, total: record.progress.append((done, total)),
    )
    remember(trial, "a mock device")
    again = triton_backend.TritonKernel(kernel, print_kernel(kernel), Path(directory))
    again(moved, sizes)
    again.bind(moved, sizes)(moved)
    chosen = [dict(c.blocks) for c in again._chosen.values()]
    seen = Record(launched=record.launched[-2:], passed=record.passed[-2:], blocks=chosen, progress=record.progress)
    return trial, seen


def launch_described(request: tuple[Kernel, list[dict[str, Tensor]], dict[str, int], str]) -> Record:
    """Launch a kernel on each set of tensors, where tuning preferred descriptors; and the first two again with
    what was made ready for the first."""
    kernel, sets, sizes, directory = request
    from triton.runtime import driver

    record = Record()
    driver.set_active(_driver(record, [0]))
    triton_backend._current = lambda device: contextlib.nullcontext()
    triton_backend._target = lambda device: "sm_90"
    usual = default_configuration(kernel, sizes, "sm_90")
    tuning.recall = lambda *known: replace(usual, descriptors=True)
    ready = triton_backend.TritonKernel(kernel, print_kernel(kernel), Path(directory))
    moved: list[list[Any]] = [[OnDevice(tensors[a.name]) for a in kernel.arguments] for tensors in sets]
    for given in moved:
        ready(given, sizes)
    bound = ready.bind(moved[0], sizes)
    for given in moved[:2]:
        bound(given)
    record.descriptors = [c.descriptors for c in ready._chosen.values()]
    return record
