"""Triton kernels interpreted on a CPU, in a process of their own.

Whether Triton compiles or interprets is fixed when it is imported, so a process that also compiles needs a second one to
interpret.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from attnc.codegen.tile import Kernel
from attnc.codegen.triton.configuration import Configuration
from attnc.runtime.triton_backend import launch, load


class Interpreter:
    """A worker process with ``TRITON_INTERPRET=1``. Use as a context manager, or `close` it."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        command = [sys.executable, "-m", "attnc.runtime.triton_interpreter"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def run(
        self,
        kernel: Kernel,
        source: str,
        tensors: Mapping[str, torch.Tensor],
        sizes: Mapping[str, int],
        configuration: Configuration | None = None,
    ) -> dict[str, torch.Tensor]:
        """Launch a kernel on copies of CPU tensors; its ``out`` and ``add`` tensors afterwards.

        Raises RuntimeError with the worker's traceback if the kernel fails.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        _send(self._process.stdin, (kernel, source, dict(tensors), dict(sizes), configuration, self._directory))
        reply = _receive(self._process.stdout)
        if isinstance(reply, str):
            raise RuntimeError(reply)
        return reply  # type: ignore[no-any-return]

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _send(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message)
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError("the interpreter process ended")
    return pickle.loads(stream.read(int.from_bytes(head, "little")))


def _answer(request: Any) -> Any:
    kernel, source, tensors, sizes, configuration, directory = request
    try:
        launch(kernel, load(source, directory), tensors, sizes, configuration)
    except Exception:
        return traceback.format_exc()
    return {a.name: tensors[a.name] for a in kernel.arguments if a.mode != "in"}


def serve() -> None:
    """Answer requests on standard input until it closes; prints go to standard error."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    while True:
        try:
            request = _receive(sys.stdin.buffer)
        except EOFError:
            return
        _send(replies, _answer(request))


if __name__ == "__main__":
    serve()
