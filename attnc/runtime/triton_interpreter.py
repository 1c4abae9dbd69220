"""Triton kernels interpreted on a CPU, in a process of their own."""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnc.codegen.tile import Kernel
from attnc.codegen.triton.configuration import Configuration
from attnc.codegen.triton.printer import print_kernel
from attnc.runtime.triton_backend import is_wide, launch
from attnc.runtime.triton_module import load
from attnc.runtime.worker import Worker


class Interpreter:
    """A worker process with ``TRITON_INTERPRET=1``. Use as a context manager, or `close` it."""

    def __init__(self, directory: Path | None = None) -> None:
        """Start the process; generated modules go to `directory`."""
        self._directory = directory
        self._worker = Worker(__name__, "interpret", {"TRITON_INTERPRET": "1"})

    def run(
        self,
        kernel: Kernel,
        tensors: Mapping[str, Tensor],
        sizes: Mapping[str, int],
        configuration: Configuration | None = None,
        source: str | None = None,
    ) -> dict[str, Tensor]:
        """Launch a kernel on copies of CPU tensors; its ``out`` and ``add`` tensors afterwards.

        Args:
            source: by default the kernel printed with f32 products, because the interpreter cannot multiply bf16.

        Raises:
            RuntimeError: with the worker's traceback, if the kernel fails.
        """
        source = source or print_kernel(kernel, widen=True, wide=is_wide(list(tensors.values())))
        given = {name: tensor.detach() for name, tensor in tensors.items()}
        found: dict[str, Tensor] = self._worker.ask(
            (kernel, source, given, dict(sizes), configuration, self._directory)
        )
        return found

    def close(self) -> None:
        """End the process."""
        self._worker.close()

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@cache
def shared_interpreter() -> Interpreter:
    """One interpreter for the whole process, started when it is first needed."""
    made = Interpreter()
    atexit.register(made.close)
    return made


def interpret(request: Any) -> dict[str, Tensor]:
    """What the worker does: launch, and return what the kernel wrote."""
    torch.set_num_threads(1)
    kernel, source, tensors, sizes, configuration, directory = request
    launch(kernel, load(source, directory), tensors, sizes, configuration)
    return {a.name: tensors[a.name] for a in kernel.arguments if a.mode != "in"}
