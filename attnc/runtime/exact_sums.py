"""Sums of f32 numbers that do not depend on the order of additions, for atomics on GPUs.

A finite f32 number is ``m * 2**(place - 149)`` with an integer m of 24 bits and a place from 0 to 253. Each entry of a
sum has a counter of 64 bits for every ``2**shift`` places, to which ``m << place % 2**shift`` is added: integers, so
the additions commute, and nothing is rounded. A last counter counts what is not finite. At the end the counters are
added up in f64, smallest places first. The idea is that of long accumulators (Kulisch 1971; Collange, Defour, Graillat
and Iakymchuk 2015, "Numerical reproducibility for the parallel reduction on multi- and many-core architectures").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from attnc.codegen.tile import Kernel
from attnc.codegen.triton.parameters import COUNTER, counts, evaluate
from attnc.diagnostics.diagnostic import CallError, Diagnostic

MANTISSA, WORD = 24, 63
PLACES = 254
HEADS = 7
"""Bits for additions that a kernel makes to one entry beyond the pairs of positions: over the heads of a group."""


def shift_for(additions: int) -> int:
    """How many places may share a counter, as a power of two, so that this many additions cannot overflow one.

    Raises:
        CallError: (E230) if they could overflow a counter of a single place.
    """
    free = WORD - MANTISSA - additions.bit_length() - HEADS
    if free < 0:
        message = f"{additions} pairs of positions are more than the exact sum of a tensor's gradient can count"
        raise CallError(Diagnostic("E230", message, remedy="split the call, or compile with `deterministic=False`"))
    return min(4, (free + 1).bit_length() - 1)


def counters(like: Tensor, shift: int) -> Tensor:
    """Counters at 0 for a tensor of sums: int64 [*shape, counters]."""
    return torch.zeros(*like.shape, ((PLACES - 1) >> shift) + 2, dtype=torch.int64, device=like.device)


def total(counted: Tensor, shift: int) -> Tensor:
    """The sums: f64 [*shape]; NaN where anything was not finite."""
    whole = torch.zeros(counted.shape[:-1], dtype=torch.float64, device=counted.device)
    for k in range(counted.shape[-1] - 1):
        whole += counted[..., k].double() * 2.0 ** ((k << shift) - 149)
    return whole.masked_fill_(counted[..., -1] != 0, float("nan"))


def added(
    kernel: Kernel,
    tensors: Sequence[Tensor],
    sizes: Mapping[str, int],
    launch: Callable[[Sequence[Tensor], Mapping[str, int]], None],
) -> None:
    """Launch a kernel; what it scatters into goes to counters first, if it adds exactly."""
    if not counts(kernel):
        launch(tensors, sizes)
        return
    known = {**kernel.constants, **sizes}
    pairs = 1
    for lane in kernel.lanes:
        pairs *= evaluate(lane.extent, known) if lane.role != "channel" else 1
    shift = shift_for(pairs)
    made = {k: counters(tensors[k], shift) for k, a in enumerate(kernel.arguments) if a.mode == "add"}
    given = [made[k][..., 0] if k in made else t for k, t in enumerate(tensors)]
    launch(given, {**sizes, COUNTER: shift})
    for k, counted in made.items():
        tensors[k].copy_(total(counted, shift))
