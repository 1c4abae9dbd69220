"""Loading and launching printed Triton kernels. Triton is imported on first use.

On a GPU kernels are compiled; CPU tensors go through Triton's interpreter. Which of the two a process does is fixed
when it imports Triton, so a process that compiles interprets in a second one (`attnc.runtime.triton_interpreter`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from attnc.codegen.tile import Kernel
from attnc.codegen.triton.configuration import (
    LONGEST_BLOCK,
    Configuration,
    candidates,
    default_configuration,
    preferred,
)
from attnc.codegen.triton.names import identifier
from attnc.codegen.triton.parameters import evaluate, padded, parameters, programs, values
from attnc.codegen.triton.printer import print_module
from attnc.runtime.exact_sums import added
from attnc.settings import Settings

_modules: dict[tuple[str, Path], ModuleType] = {}
_lock = threading.Lock()


def build(kernels: Sequence[Kernel], settings: Settings | None = None) -> list[TritonKernel]:
    """The kernels of one variant, in one module. Nothing is compiled before the first launch."""
    if not kernels:
        return []
    settings = settings or Settings.read()
    source = _overridden(kernels[0].name, print_module(kernels), settings)
    return [TritonKernel(k, source, settings.cache_dir / "triton") for k in kernels]


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
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(source)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _overridden(name: str, source: str, settings: Settings) -> str:
    """Write the source to ``ATTNC_DUMP`` and replace it by the file of the same name in ``ATTNC_OVERRIDE``, if any."""
    file = f"{name}.py"
    if settings.dump is not None:
        settings.dump.mkdir(parents=True, exist_ok=True)
        Path(settings.dump, file).write_text(source, encoding="utf-8")
    if settings.override is not None and Path(settings.override, file).is_file():
        return Path(settings.override, file).read_text(encoding="utf-8")
    return source


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


class Call:
    """Puts together what a launch passes; made once per kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.extents = tuple(p.of for p in parameters(kernel) if p.role == "extent")
        self._sizes = tuple(p.of for p in parameters(kernel) if p.role == "size")
        self._fixed: dict[tuple[int, ...], tuple[int, ...]] = {}

    def arguments(self, tensors: Sequence[Tensor], sizes: Mapping[str, int], configuration: Configuration) -> list[Any]:
        """The values of `parameters`, in order. Dimensions of length 1 broadcast."""
        strides = [0 if n == 1 else s for t in tensors for n, s in zip(t.shape, t.stride(), strict=True)]
        return [*tensors, *strides, *(sizes[s] for s in self._sizes), *self._constants(sizes, configuration)]

    def _constants(self, sizes: Mapping[str, int], configuration: Configuration) -> tuple[int, ...]:
        key = (*(sizes[s] for s in self.extents), *configuration.blocks.values())
        if key not in self._fixed:
            constant = [p for p in parameters(self.kernel) if p.constant]
            self._fixed[key] = tuple(values(self.kernel, constant, sizes, configuration.blocks).values())
        return self._fixed[key]

    def __call__(
        self, called: Any, tensors: Sequence[Tensor], sizes: Mapping[str, int], configuration: Configuration
    ) -> None:
        """Launch a Triton function over the whole grid."""
        count = programs(self.kernel, sizes, configuration.blocks)
        if count == 0:
            return
        passed = self.arguments(tensors, sizes, configuration)
        if is_interpreted(called):
            called[(count,)](*passed)
        else:
            called[(count,)](*passed, num_warps=configuration.num_warps, num_stages=configuration.num_stages)


def launch(
    kernel: Kernel,
    module: ModuleType,
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    configuration: Configuration | None = None,
) -> None:
    """Run a kernel once; to run it often, keep a `TritonKernel`.

    Args:
        kernel: the kernel `module` was printed from.
        module: from `load`.
        tensors: one per `Kernel.arguments`, any strides; a dimension of length 1 broadcasts. ``out`` tensors are
            written, ``add`` tensors must hold zeros.
        sizes: every symbol in `Kernel.sizes` and in channel extents.
        configuration: blocks, warps and stages; a static rule picks them by default.

    Raises:
        RuntimeError: for CPU tensors outside Triton's interpreter.
    """
    called = function(kernel, module)
    ordered = [tensors[a.name] for a in kernel.arguments]
    device = ordered[0].device
    if device.type == "cpu" and not is_interpreted(called):
        raise RuntimeError("CPU tensors need Triton's interpreter: set TRITON_INTERPRET=1 before Triton is imported")
    chosen = configuration or default_configuration(kernel, sizes, _target(device))
    with _current(device):
        added(kernel, ordered, sizes, lambda given, known: Call(kernel)(called, given, known, chosen))


def _current(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _target(device: torch.device) -> str:
    """The architecture of a device, as `attnc.runtime.triton_aot` names them."""
    if device.type != "cuda":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


Variant = Literal["plain", "wide", "widened"]
"""Ways a kernel is printed: as shown to people; with offsets of 64 bits, for tensors that span more than 32 reach; with
products in f32, because the interpreter multiplies the bit patterns of bf16."""


def _span(tensor: Tensor) -> int:
    """Elements between the first and the last one of a tensor."""
    return sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n)


class TritonKernel:
    """One kernel, ready to launch."""

    def __init__(self, kernel: Kernel, source: str, directory: Path | None = None) -> None:
        """Bind `kernel` to the module `source` it was printed into, which is kept in `directory`."""
        self.kernel = kernel
        self.source = source
        self.directory = directory
        self._call = Call(kernel)
        self._chosen: dict[tuple[Any, ...], Configuration] = {}
        self._functions: dict[Variant, Any] = {}

    def __call__(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        """Run on one tensor per argument, in order; else as `launch`."""
        if tensors[0].device.type == "cpu" and not interpreting():
            self._elsewhere(tensors, sizes)
        else:
            added(self.kernel, tensors, sizes, self._launch)

    def _launch(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        device = tensors[0].device
        if device.type == "cuda":
            with _current(device):
                called = self._function("wide" if any(_span(t) > 2**31 for t in tensors) else "plain")
                self._call(called, tensors, sizes, self._configuration(device, called, tensors, sizes))
        else:
            configuration = default_configuration(self.kernel, sizes, "interpreter")
            self._call(self._function("widened"), tensors, sizes, configuration)

    def blocks(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Block lengths of the configuration that a call chooses."""
        device = tensors[0].device
        if device.type != "cuda":
            return default_configuration(self.kernel, sizes, "interpreter").blocks
        with _current(device):
            called = self._function("wide" if any(_span(t) > 2**31 for t in tensors) else "plain")
            return self._configuration(device, called, tensors, sizes).blocks

    def _function(self, variant: Variant) -> Any:
        if variant not in self._functions:
            wide, widen = variant == "wide", variant == "widened"
            printed = variant != "plain"
            source = print_module([self.kernel], wide=wide, widen=widen) if printed else self.source
            self._functions[variant] = function(self.kernel, load(source, self.directory))
        return self._functions[variant]

    def _elsewhere(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        """Run in the interpreter of a second process."""
        from attnc.runtime.triton_interpreter import shared_interpreter

        named = {a.name: t for a, t in zip(self.kernel.arguments, tensors, strict=True)}
        for name, value in shared_interpreter().run(self.kernel, named, sizes).items():
            named[name].copy_(value)

    def _configuration(
        self, device: torch.device, called: Any, tensors: Sequence[Tensor], sizes: Mapping[str, int]
    ) -> Configuration:
        """The first candidate that compiles without spilling registers, else one that hardly spills (`preferred`)."""
        key = (device, *(sizes[s] for s in self._call.extents), *self._lengths(sizes))
        if key not in self._chosen:
            choices = candidates(self.kernel, sizes, _target(device))
            spills: list[int] = []
            for choice in choices:
                spills.append(self._spilled(choice, called, tensors, sizes))
                if spills[-1] == 0:
                    break
            self._chosen[key] = choices[len(spills) - 1 if spills[-1] == 0 else preferred(spills)]
        return self._chosen[key]

    def _lengths(self, sizes: Mapping[str, int]) -> list[int]:
        """Extents of the blocked axes, as far as they matter to the choice of blocks."""
        blocked = [x.extent for x in self.kernel.lanes if x.role != "channel"]
        return [min(padded(evaluate(x, sizes), 16), LONGEST_BLOCK) for x in blocked]

    def _spilled(self, choice: Configuration, called: Any, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> int:
        """Bytes that spill with a configuration; very many if it does not fit the device at all."""
        from triton.runtime.errors import OutOfResources

        passed = self._call.arguments(tensors, sizes, choice)
        options = {"num_warps": choice.num_warps, "num_stages": choice.num_stages}
        try:
            compiled = called.warmup(*passed, **options, grid=(1,))
            compiled._init_handles()
        except OutOfResources:
            return 1 << 30
        return 4 * int(compiled.n_spills)
