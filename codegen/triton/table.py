"""Configurations that were measured, for classes of kernels: `tuned.json`, which `attnc tune --record` writes.

A class is what the choice depends on, whatever variant a kernel belongs to: the width of its channels, how much it
accumulates and loads, its products, and how much else it computes per pair of positions, in powers of two. A kernel
whose class, target or length is not in the table is left to the static rule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from attnc.codegen.tile import Kernel, Loop, statements
from attnc.codegen.triton.facts import SPECIAL
from attnc.codegen.triton.parameters import evaluate
from attnc.codegen.triton.pressure import load_of
from attnc.ir.node import Call, Node
from attnc.ir.walk import postorder

FILE = Path(__file__).with_name("tuned.json")
SHORT, MIDDLE = 1024, 8192


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the table: lanes of both axes, warps, stages, what they were measured on, and whether blocks are
    loaded through descriptors."""

    outer: int
    inner: int
    warps: int
    stages: int
    source: str
    descriptors: bool = False


def bucket(kernel: Kernel, sizes: Mapping[str, int]) -> str:
    """How long the axis is that the kernel loops over: short, middle or long. Unknown lengths are long."""
    known = {**kernel.constants, **sizes}
    for lane in kernel.lanes:
        if lane.role == "inner":
            try:
                extent = evaluate(lane.extent, known)
            except KeyError:
                return "long"
            return "short" if extent <= SHORT else "middle" if extent <= MIDDLE else "long"
    return "long"


def kernel_class(kernel: Kernel, sizes: Mapping[str, int]) -> str:
    """The class of a kernel with these channel extents."""
    load = load_of(kernel, sizes)
    kind = "f32" if load.exact else "tf32" if any(a.tf32 for a in kernel.arguments) else "half"
    special, others = _per_pair(kernel)
    scatter = " scatter" if any(type(s).__name__ == "Scatter" for s in statements(kernel.body)) else ""
    return (
        f"{kind} channels {load.width} accumulated {load.accumulated}"
        f" products {load.products} bytes {load.outer_bytes}/{load.inner_bytes}"
        f" work {special.bit_length()}/{others.bit_length()}{scatter}"
    )


def _per_pair(kernel: Kernel) -> tuple[int, int]:
    """Special functions and other calls on planes in the longest loop body that guards nothing, or in the longest."""
    axes = {x.axis for x in kernel.lanes if x.role != "channel"}
    loops = [s for s in statements(kernel.body) if isinstance(s, Loop)]
    counts = [_count(s, axes) for s in ([x for x in loops if not x.masked] or loops)]
    return max(counts, default=(0, 0))


def _count(loop: Loop, plane: set[str]) -> tuple[int, int]:
    special = others = 0
    for s in statements(loop.body):
        value = getattr(s, "value", None)
        if isinstance(value, Node):
            for n in postorder([value]):
                if plane <= n.axes and n.children:
                    if isinstance(n, Call) and n.fn in SPECIAL:
                        special += 1
                    else:
                        others += 1
    return special, others


@cache
def _table() -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def committed(kernel: Kernel, sizes: Mapping[str, int], target: str) -> Entry | None:
    """The entry for a kernel on a target, if there is one."""
    known = _table().get(target)
    if not known:
        return None
    line = known.get(kernel_class(kernel, sizes), {}).get(bucket(kernel, sizes))
    return None if line is None else Entry(**line)


def entry(
    kernel: Kernel, blocks: Mapping[str, int], warps: int, stages: int, source: str, *, descriptors: bool = False
) -> Entry:
    """The line that says a configuration of a kernel."""
    lengths = {x.role: blocks[x.axis] for x in kernel.lanes if x.axis in blocks}
    return Entry(lengths.get("outer", 16), lengths.get("inner", 16), warps, stages, source, descriptors)
