"""Launching printed Triton kernels: their arguments, offsets and configurations.

On a GPU kernels are compiled; CPU tensors go through Triton's interpreter, in this process or in a second one
(`attnc.runtime.triton_module`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attnc.codegen.tile import Kernel
from attnc.codegen.triton.configuration import (
    LONGEST_BLOCK,
    MOST,
    Configuration,
    candidates,
    capped,
    default_configuration,
    preferred,
    without_descriptors,
)
from attnc.codegen.triton.descriptors import ALIGNED, complies, described
from attnc.codegen.triton.parameters import counts, evaluate, padded, parameters, programs, values
from attnc.codegen.triton.printer import print_module
from attnc.codegen.triton.table import bucket
from attnc.runtime import tuning
from attnc.runtime.exact_sums import added
from attnc.runtime.triton_module import function, interpreting, is_interpreted, load
from attnc.settings import Settings


def build(kernels: Sequence[Kernel], settings: Settings | None = None) -> list[TritonKernel]:
    """The kernels of one variant, in one module. Nothing is compiled before the first launch."""
    if not kernels:
        return []
    settings = settings or Settings.read()
    source = _overridden(kernels[0].name, print_module(kernels), settings)
    return [TritonKernel(k, source, settings.cache_dir / "triton") for k in kernels]


def _overridden(name: str, source: str, settings: Settings) -> str:
    """Write the source to ``ATTNC_DUMP`` and replace it by the file of the same name in ``ATTNC_OVERRIDE``, if any."""
    file = f"{name}.py"
    if settings.dump is not None:
        settings.dump.mkdir(parents=True, exist_ok=True)
        Path(settings.dump, file).write_text(source, encoding="utf-8")
    if settings.override is not None and Path(settings.override, file).is_file():
        return Path(settings.override, file).read_text(encoding="utf-8")
    return source


class Call:
    """Puts together what a launch passes; made once per kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.extents = tuple(p.of for p in parameters(kernel) if p.role == "extent")
        self._sizes = tuple(p.of for p in parameters(kernel) if p.role == "size")
        self._fixed: dict[tuple[int, ...], tuple[int, ...]] = {}
        with_descriptors = described(kernel)
        self.described = tuple(k for k, a in enumerate(kernel.arguments) if a.name in with_descriptors)

    def arguments(self, tensors: Sequence[Tensor], sizes: Mapping[str, int], configuration: Configuration) -> list[Any]:
        """The values of `parameters`, in order. Dimensions of length 1 broadcast, where no descriptor is made."""
        kept = self.described if configuration.descriptors else ()
        strides = [
            0 if n == 1 and k not in kept else s
            for k, t in enumerate(tensors)
            for n, s in zip(t.shape, t.stride(), strict=True)
        ]
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
        self.bound(called, tensors, sizes, configuration)(tensors)

    def bound(
        self, called: Any, tensors: Sequence[Tensor], sizes: Mapping[str, int], configuration: Configuration
    ) -> Callable[[Sequence[Tensor]], None]:
        """A launch over the whole grid, for tensors of the shapes and strides of these."""
        count = programs(self.kernel, sizes, configuration.blocks)
        if count == 0:
            return lambda tensors: None
        integers = self.arguments(tensors, sizes, configuration)[len(tensors) :]
        ready = called[(count,)]
        if is_interpreted(called):
            return lambda tensors: ready(*tensors, *integers)
        options = _options(configuration)
        if configuration.descriptors:
            return lambda tensors: copy_context().run(_with_scratch, partial(ready, *tensors, *integers, **options))
        return lambda tensors: ready(*tensors, *integers, **options)


def _options(configuration: Configuration) -> dict[str, int]:
    return {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}


def _with_scratch(launch: Callable[[], object]) -> None:
    """Launch a kernel that makes descriptors, with memory to make them in. Runs in a copy of the caller's context,
    whose allocator stays what it was."""
    import triton

    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
    launch()


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
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return nullcontext()
    return torch.cuda.device(device)


def _target(device: torch.device) -> str:
    """The architecture of a device, as `attnc.runtime.triton_aot` names them."""
    if device.type != "cuda":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def multiplies_tf32(target: str) -> bool:
    """Whether a device's tensor cores multiply TF32: of AMD's, those of one generation do."""
    return not target.startswith("gfx") or target == "gfx942"


KEPT = 1024
"""Sizes of calls that a kernel remembers."""
REACH = 2**31
"""Elements that offsets of 32 bits reach."""


def is_wide(tensors: Sequence[Tensor]) -> bool:
    """Whether some element of some tensor lies further from its first than 32 bits can say."""
    return any(_last(t) >= REACH for t in tensors)


def _last(tensor: Tensor) -> int:
    """The offset of the last element of a tensor from its first."""
    return sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n)


def _is_aligned(tensor: Tensor) -> bool:
    return tensor.data_ptr() % ALIGNED == 0


class TritonKernel:
    """One kernel, ready to launch.

    It is printed with offsets of 64 bits for tensors that span more than 32 reach, and with products in f32 for the
    interpreter, which multiplies the bit patterns of bf16, and for devices without TF32 where that was asked for.
    """

    def __init__(self, kernel: Kernel, source: str, directory: Path | None = None) -> None:
        """Bind `kernel` to the module `source` it was printed into, which is kept in `directory`."""
        self.kernel = kernel
        self.source = source
        self.directory = directory
        self._call = Call(kernel)
        self._chosen: dict[tuple[Any, ...], Configuration] = {}
        self._functions: dict[tuple[bool, ...], Any] = {}
        self._described = self._call.described
        self._compliant: dict[tuple[Any, ...], bool] = {}
        self._keys: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._printed: str | None = None

    def __call__(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        """Run on one tensor per argument, in order; else as `launch`."""
        if tensors[0].device.type == "cpu" and not interpreting():
            self._elsewhere(tensors, sizes)
        else:
            added(self.kernel, tensors, sizes, self._launch)

    def _launch(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        device = tensors[0].device
        wide = is_wide(tensors)
        if device.type != "cuda":
            configuration = default_configuration(self.kernel, sizes, "interpreter")
            descriptors = configuration.descriptors and self._can_describe(tensors, sizes)
            called = self._function(wide, widen=True, descriptors=descriptors)
            self._call(called, tensors, sizes, configuration)
            return
        with _current(device):
            configuration = self._configuration(device, wide, tensors, sizes)
            called = self._compiled(device, wide, descriptors=configuration.descriptors)
            session = tuning.current()
            if session is None:
                self._call(called, tensors, sizes, configuration)
            else:
                key = self._key(device, tensors, sizes)
                session.launch(key, lambda: self._call(called, tensors, sizes, configuration))

    def bind(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Callable[[Sequence[Tensor]], None]:
        """The kernel ready for tensors of the shapes, strides and device of these, on a GPU."""
        device = tensors[0].device
        if device.type != "cuda" or counts(self.kernel):
            return lambda tensors: self(tensors, sizes)
        with _current(device):
            wide = is_wide(tensors)
            configuration = self._configuration(device, wide, tensors, sizes)
            called = self._compiled(device, wide, descriptors=configuration.descriptors)
            launch = self._call.bound(called, tensors, sizes, configuration)
        described = self._described if configuration.descriptors else ()

        def run(tensors: Sequence[Tensor]) -> None:
            if tuning.current() is not None or not all(_is_aligned(tensors[k]) for k in described):
                self(tensors, sizes)
                return
            with _current(device):
                launch(tensors)

        return run

    def blocks(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Block lengths of the configuration that a call chooses."""
        device = tensors[0].device
        if device.type != "cuda":
            return default_configuration(self.kernel, sizes, "interpreter").blocks
        with _current(device):
            return self._configuration(device, is_wide(tensors), tensors, sizes).blocks

    def _compiled(self, device: torch.device, wide: bool, *, descriptors: bool = False) -> Any:
        """The function for a GPU."""
        rounds = any(a.tf32 for a in self.kernel.arguments)
        exact = rounds and not multiplies_tf32(_target(device))
        return self._function(wide, exact=exact, descriptors=descriptors)

    def _function(self, wide: bool, *, widen: bool = False, exact: bool = False, descriptors: bool = False) -> Any:
        key = wide, widen, exact, descriptors
        if key not in self._functions:
            kernel = self.kernel
            if exact:
                kernel = replace(kernel, arguments=tuple(replace(a, tf32=False) for a in kernel.arguments))
            source = self.source
            if any(key):
                source = print_module([kernel], wide=wide, widen=widen, descriptors=descriptors)
            self._functions[key] = function(kernel, load(source, self.directory))
        return self._functions[key]

    def _elsewhere(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        """Run in the interpreter of a second process."""
        from attnc.runtime.triton_interpreter import shared_interpreter

        named = {a.name: t for a, t in zip(self.kernel.arguments, tensors, strict=True)}
        for name, value in shared_interpreter().run(self.kernel, named, sizes).items():
            named[name].copy_(value)

    def _can_describe(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> bool:
        """Whether descriptors can be made of these tensors."""
        chosen = [tensors[k] for k in self._described]
        if not all(_is_aligned(t) for t in chosen):
            return False
        given = (*sizes.values(), *((t.shape, t.stride()) for t in chosen))
        if given not in self._compliant:
            if len(self._compliant) >= KEPT:
                self._compliant.clear()
            named = {self.kernel.arguments[k].name: tensors[k] for k in self._described}
            shapes, strides = ({n: t.shape for n, t in named.items()}, {n: t.stride() for n, t in named.items()})
            self._compliant[given] = complies(self.kernel, shapes, strides, sizes)
        return self._compliant[given]

    def _key(self, device: torch.device, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> tuple[Any, ...]:
        """What the choice of a configuration depends on, beside the kernel."""
        return (*self._class(device, sizes), self._can_describe(tensors, sizes))

    def _class(self, device: torch.device, sizes: Mapping[str, int]) -> tuple[Any, ...]:
        given = (device, *sizes.values())
        if given not in self._keys:
            if len(self._keys) >= KEPT:
                self._keys.clear()
            extents = (sizes[s] for s in self._call.extents)
            self._keys[given] = (id(self), device, bucket(self.kernel, sizes), *extents, *self._lengths(sizes))
        return self._keys[given]

    def _configuration(
        self, device: torch.device, wide: bool, tensors: Sequence[Tensor], sizes: Mapping[str, int]
    ) -> Configuration:
        """The first choice that compiles without spilling registers, else one that hardly spills (`preferred`)."""
        key = self._key(device, tensors, sizes)
        session = tuning.current()
        spilled = partial(self._spilled, device, wide, tensors, sizes)
        if session is not None:
            self._chosen.pop(key, None)  # what is being measured may be chosen afterwards
            return session.configuration(key, self.kernel, self._alone(), _target(device), sizes, spilled)
        if key not in self._chosen:
            choices = self._choices(_target(device), sizes)
            choices = choices if key[-1] else without_descriptors(choices)
            spills: list[int] = []
            for choice in choices:
                spills.append(spilled(choice))
                if spills[-1] == 0:
                    break
            self._chosen[key] = choices[len(spills) - 1 if spills[-1] == 0 else preferred(spills)]
        return self._chosen[key]

    def _choices(self, target: str, sizes: Mapping[str, int]) -> Sequence[Configuration]:
        """What was measured here, then what is known or guessed of kernels like this one."""
        measured = tuning.recall(self._alone(), target, bucket(self.kernel, sizes))
        listed = candidates(self.kernel, sizes, target)
        if measured is None or set(measured.blocks) != set(listed[0].blocks):
            return listed[:MOST]
        first = replace(measured, blocks=capped(self.kernel, sizes, measured.blocks))
        return [first, *(c for c in listed if c != first)][:MOST]

    def _alone(self) -> str:
        """The source of this kernel without the others of its module."""
        if self._printed is None:
            self._printed = print_module([self.kernel])
        return self._printed

    def _lengths(self, sizes: Mapping[str, int]) -> list[int]:
        """Extents of the blocked axes, as far as they matter to the choice of blocks."""
        blocked = [x.extent for x in self.kernel.lanes if x.role != "channel"]
        return [min(padded(evaluate(x, sizes), 16), LONGEST_BLOCK) for x in blocked]

    def _spilled(
        self,
        device: torch.device,
        wide: bool,
        tensors: Sequence[Tensor],
        sizes: Mapping[str, int],
        choice: Configuration,
    ) -> int:
        """Bytes that spill with a configuration; very many if it does not fit the device or the tensors at all."""
        from triton.runtime.errors import OutOfResources

        if choice.descriptors and not self._can_describe(tensors, sizes):
            return 1 << 30
        passed = self._call.arguments(tensors, sizes, choice)
        try:
            called = self._compiled(device, wide, descriptors=choice.descriptors)
            compiled = called.warmup(*passed, **_options(choice), grid=(1,))
            compiled._init_handles()
        except OutOfResources:
            return 1 << 30
        return 4 * int(compiled.n_spills)
