"""What a kernel that is ready to run looks like to those who run it, whatever backend it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from attnc.codegen.tile import Kernel

if TYPE_CHECKING:
    from attnc.passes.split import Form

Bound = Callable[[Sequence[Tensor]], object]
"""A launch on tensors of known shapes and strides."""


class Launch(Protocol):
    """A kernel ready to run."""

    def __call__(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> object:
        """Run on one tensor per kernel argument; `sizes` has every size symbol."""
        ...


class KernelLaunch(Launch, Protocol):
    """A kernel ready to run in blocks."""

    def blocks(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Mapping[str, int]:
        """The block length of every blocked axis that a call with these arguments has."""
        ...


@runtime_checkable
class Bindable(Protocol):
    """A launch that can be made ready for tensors of known shapes and strides."""

    def bind(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Bound:
        """A function that runs it on tensors of the same shapes and strides as these, and the same sizes."""
        ...


class KernelBackend(Protocol):
    """Turns tile programs into launchable kernels.

    Attributes:
        blocks: block lengths of the outer and the inner axis to lower passes with.
    """

    blocks: tuple[int, int]

    def build(self, kernels: Sequence[Kernel]) -> Sequence[KernelLaunch]:
        """The kernels of one plan, compiled."""
        ...

    def form(self, rows: int, shared: int, programs: int, width: int) -> Form | None:
        """How a pass with few rows is split; None if it is not.

        Args:
            rows: positions of its outer axis.
            shared: query heads that share a key head and may be packed.
            programs: blocks of rows, over the whole grid.
            width: bytes of a number that it reads.
        """
        ...

    def processors(self, device: torch.device) -> int:
        """How many programs run side by side."""
        ...


def bind(launch: Launch, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Bound:
    """A function that launches on tensors of the same shapes and strides as these, and the same sizes."""
    if isinstance(launch, Bindable):
        return launch.bind(tensors, sizes)
    return lambda tensors: launch(tensors, sizes)
