"""Block lengths, warps and pipeline stages of a kernel, by a static rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnc.codegen.tile import Kernel
from attnc.codegen.triton.parameters import evaluate, padded, paddings


@dataclass(frozen=True, slots=True)
class Configuration:
    """How a kernel is cut up: lanes per blocked axis, warps per program, stages of the load pipeline."""

    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2


def default_configuration(kernel: Kernel, sizes: Mapping[str, int], target: str = "sm_90") -> Configuration:
    """The first of `candidates`."""
    return candidates(kernel, sizes, target)[0]


def candidates(kernel: Kernel, sizes: Mapping[str, int], target: str) -> tuple[Configuration, ...]:
    return (Configuration(kernel.blocks, 4, 2),)
