"""A static model of a hot loop: what its instructions cost a multiprocessor, from the listing alone.

Cycles per turn of the loop, if every unit were busy all the time: tensor cores by their floating-point operations, the
special function units by MUFU instructions, the schedulers by all instructions. Triton's loops wait for matrix products
before they go on, so a loop takes about the sum of tensor and issue cycles, and ``tensor / (tensor + issue)`` of a
device's peak is what to expect at best. It is good for comparing kernels and for rejecting configurations, and no
substitute for a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnc.testing.listing import Loop

TENSOR = {"sm_80": 2048, "sm_90": 4096, "sm_100": 8192}
"""Half-precision floating-point operations of a multiprocessor's tensor cores per cycle."""
SPECIAL = 16
"""Results of a multiprocessor's special function units per cycle."""
SCHEDULERS = 4
KINDS = {
    "matrix": ("HMMA", "HGMMA", "QGMMA", "UTCHMMA", "UTCQMMA", "v_mfma"),
    "special": ("MUFU", "v_exp", "v_log", "v_rcp", "v_sqrt", "v_rsq", "v_sin", "v_cos"),
    "arithmetic": (
        "FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "FSETP", "FSET", "HADD2", "HMUL2", "HFMA2", "F2F", "I2F", "F2I",
        "v_add_f", "v_sub_f", "v_mul_f", "v_fma", "v_pk", "v_max", "v_min", "v_cvt",
    ),
    "memory": (
        "LDG", "STG", "LDS", "STS", "LDSM", "STSM", "LDGSTS", "UTMALDG", "LDTM", "STTM", "ds_", "global_", "buffer_",
    ),
}  # fmt: skip
"""Kinds of instructions, by how their names begin; all others are integers, control and moves."""


@dataclass(frozen=True, slots=True)
class Cycles:
    """Cycles of one multiprocessor per turn of a loop, by what they keep busy."""

    tensor: float
    special: float
    issue: float

    @property
    def share(self) -> float:
        """The share of the tensor cores' peak to expect."""
        return self.tensor / max(self.tensor + self.issue, self.special)

    def of_turn(self, programs: int) -> float:
        """Cycles between two turns where so many programs share a multiprocessor: one waits while others compute."""
        return max(self.tensor, self.issue, self.special, (self.tensor + self.issue) / max(1, programs))


def mix(loop: Loop) -> Mapping[str, int]:
    """Instructions of a loop by kind, in the order of `KINDS`; ``other`` last."""
    counts = dict.fromkeys((*KINDS, "other"), 0)
    for name, n in loop.names.items():
        counts[next((k for k, prefixes in KINDS.items() if name.startswith(prefixes)), "other")] += n
    return counts


def cycles(loop: Loop, target: str, warps: int, flops: int) -> Cycles | None:
    """What a turn of the loop costs; None on AMD, whose instructions take different numbers of cycles.

    Args:
        warps: of a program.
        flops: floating-point operations of the matrix products of one turn.
    """
    if target not in TENSOR:
        return None
    special = mix(loop)["special"] * 32 * warps / SPECIAL
    return Cycles(flops / TENSOR[target], special, loop.length * warps / SCHEDULERS)
