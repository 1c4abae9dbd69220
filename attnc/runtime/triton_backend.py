"""Loading and launching printed Triton kernels. Triton is imported on first use."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from attnc.codegen.tile import Kernel
from attnc.codegen.triton.configuration import Configuration, default_configuration
from attnc.codegen.triton.names import identifier
from attnc.codegen.triton.parameters import parameters, programs, values

_modules: dict[tuple[str, Path], ModuleType] = {}
_lock = threading.Lock()


def cache_directory() -> Path:
    """Where generated modules are kept."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("attnc")) / "triton"


def load(source: str, directory: Path | None = None) -> ModuleType:
    """The module with this source. It is written to a file, because Triton reads its functions' source back.

    The file is named by the hash of its contents and written atomically, so processes may share a directory.
    """
    directory = directory or cache_directory()
    digest = hashlib.sha256(source.encode()).hexdigest()[:24]
    with _lock:
        found = _modules.get((digest, directory))
        if found is None:
            path = directory / f"attnc_{digest}.py"
            _write(path, source)
            found = _modules[digest, directory] = _import(path)
        return found


def _write(path: Path, source: str) -> None:
    """Write unless an intact copy exists."""
    try:
        if path.read_text() == source:
            return
    except (OSError, UnicodeDecodeError):
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(source)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function(kernel: Kernel, module: ModuleType) -> Any:
    """The Triton function of a kernel."""
    return getattr(module, identifier(kernel.name))


def arguments(kernel: Kernel, tensors: Mapping[str, Any], constants: Mapping[str, int]) -> dict[str, Any]:
    """Every parameter by name. `tensors` maps argument names to tensors (or anything with ``stride(dim)``)."""
    out: dict[str, Any] = {}
    for p in parameters(kernel):
        match p.role:
            case "pointer":
                out[p.name] = tensors[p.of]
            case "stride":
                out[p.name] = tensors[p.of].stride(p.dim)
            case _:
                out[p.name] = constants[p.name]
    return out


def launch(
    kernel: Kernel,
    module: ModuleType,
    tensors: Mapping[str, torch.Tensor],
    sizes: Mapping[str, int],
    configuration: Configuration | None = None,
) -> None:
    """Run a kernel on the tensors' device.

    Args:
        kernel: the kernel the module was printed from.
        module: from `load`.
        tensors: one per `Kernel.arguments`, any strides (0 broadcasts). ``out`` tensors are written, ``add`` tensors added
            to: zero them first.
        sizes: every symbol in `Kernel.sizes` and in channel extents.
        configuration: blocks, warps and stages; a static rule picks them by default.

    Raises:
        RuntimeError: for CPU tensors outside Triton's interpreter (set ``TRITON_INTERPRET=1`` before Triton is imported).
    """
    chosen = configuration or default_configuration(kernel, sizes)
    count = programs(kernel, sizes, chosen.blocks)
    if count == 0:
        return
    called = function(kernel, module)
    device = next(iter(tensors.values())).device
    passed = arguments(kernel, tensors, values(kernel, sizes, chosen.blocks))
    if device.type == "cuda":
        with torch.cuda.device(device):
            called[(count,)](**passed, num_warps=chosen.num_warps, num_stages=chosen.num_stages)
    elif _interpreted(called):
        called[(count,)](**passed)
    else:
        raise RuntimeError("CPU tensors need Triton's interpreter: set TRITON_INTERPRET=1 before Triton is imported")


def _interpreted(called: Any) -> bool:
    return type(called).__name__ == "InterpretedFunction"
