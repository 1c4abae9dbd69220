"""What the optimiser found and chose, with what each choice would have moved and computed."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.ir.node import Node


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to do it, and its predicted cost per call: memory traffic in bytes and floating-point operations, integer
    expressions over sizes."""

    name: str
    bytes: Node
    flops: Node


@dataclass(frozen=True, slots=True)
class Decision:
    """A rewrite that applied, or that was considered and left.

    Attributes:
        rewrite: its name, a key of `attnc.ir.options.REWRITES`.
        found: what was recognised in the spec.
        chosen: what is done about it.
        alternatives: the ways that were compared, the chosen one first; none where there was nothing to weigh.
        line: of the spec it came from, 1-based.
    """

    rewrite: str
    found: str
    chosen: str
    alternatives: tuple[Alternative, ...] = ()
    line: int | None = None
