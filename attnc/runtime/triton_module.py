"""Printed Triton modules: written to files, imported, and their functions. Triton is imported on first use.

On a GPU kernels are compiled; CPU tensors go through Triton's interpreter. Which of the two a process does is fixed
when it imports Triton, so a process that compiles interprets in a second one (`attnc.runtime.triton_interpreter`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import threading
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from attnc.codegen.tile import Kernel
from attnc.codegen.triton.names import identifier
from attnc.runtime.cache import replace_file
from attnc.settings import Settings

_modules: dict[tuple[str, Path], ModuleType] = {}
_lock = threading.Lock()


def load(source: str, directory: Path | None = None) -> ModuleType:
    """The module with this source. It is written to a file, because Triton reads its functions' source back.

    The file is named by the hash of its contents and written atomically, so processes may share a directory.
    """
    directory = directory or Settings.read().cache_dir / "triton"
    # Products and sums become one instruction; Triton 3.9 warns unless this is said, 3.10 would not do it.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    digest = hashlib.sha256(source.encode()).hexdigest()[:24]
    with _lock:
        found = _modules.get((digest, directory))
        if found is None:
            path = directory / f"attnc_{digest}.py"
            _write(path, source)
            if interpreting():
                _accept_new_numpy()
            found = _modules[digest, directory] = _import(path)
        return found


def _write(path: Path, source: str) -> None:
    """Write unless an intact copy exists."""
    try:
        if path.read_text(encoding="utf-8") == source:
            return
    except (OSError, UnicodeDecodeError):
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda other: other.write_text(source, encoding="utf-8"))


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function(kernel: Kernel, module: ModuleType) -> Any:
    """The Triton function of a kernel."""
    return getattr(module, identifier(kernel.name))


def is_interpreted(called: Any) -> bool:
    """Whether a Triton function runs in the interpreter of this process."""
    return type(called).__name__ == "InterpretedFunction"


@cache
def _accept_new_numpy() -> None:
    """Lets loop bounds be values of a kernel. The interpreter of Triton 3.6 makes them an `int` of an array of one
    element, which NumPy refuses from 2.4 on."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def interpreting() -> bool:
    """Whether Triton interprets in this process, as ``TRITON_INTERPRET=1`` before its import asks for."""
    knobs: Any = importlib.import_module("triton.knobs")
    return bool(knobs.runtime.interpret)
