"""A second Python process that answers requests: Triton compiles or interprets, never both in one process."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any


class Worker:
    """Calls one function in another process, with other environment variables. Threads take turns."""

    def __init__(self, module: str, function: str, environment: Mapping[str, str | None]) -> None:
        """Start a process that answers with ``module.function(request)``; a variable that is None is unset."""
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        changed = {**os.environ, "PYTHONPATH": paths, **environment}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "attnc.runtime.worker", module, function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: value for name, value in changed.items() if value is not None},
        )
        self._lock = threading.Lock()

    def ask(self, request: Any) -> Any:
        """The answer to a request, both picklable.

        Raises:
            RuntimeError: with the worker's traceback, if it failed to answer.
            EOFError: if the process has ended.
        """
        with self._lock:
            assert self._process.stdin is not None and self._process.stdout is not None
            _send(self._process.stdin, request)
            failure, answer = _receive(self._process.stdout)
        if failure:
            raise RuntimeError(failure)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def _serve(answer: Callable[[Any], Any]) -> None:
    """Answer requests on standard input until it closes; what is printed meanwhile goes to standard error."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            request = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply: tuple[str, Any] = ("", answer(request))
        except Exception:
            reply = (traceback.format_exc(), None)
        _send(replies, reply)


def _send(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message)
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError("the worker process has ended")
    return pickle.loads(stream.read(int.from_bytes(head, "little")))


if __name__ == "__main__":
    _serve(getattr(importlib.import_module(sys.argv[1]), sys.argv[2]))
