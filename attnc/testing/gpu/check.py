"""A spec on a device against the float64 oracle."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from attnc.testing.gpu.cases import EXAMPLES, TEXTS, Check, torch_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attnc.runtime.op import Op


def compiled(spec: str, consts: Mapping[str, int], options: Mapping[str, Any] | None = None) -> Op:
    """The op of an example, or of a text in `TEXTS`, for Triton."""
    import attnc

    source = TEXTS.get(spec) or EXAMPLES / f"{spec}.attn"
    given: dict[str, Any] = {**consts, **(options or {})}
    return attnc.compile(source, backend="triton", **given)


def checked(case: Check, device: str) -> list[dict[str, Any]]:
    """One row per output and gradient and call: its error, what is allowed, and whether it agrees.

    Args:
        device: ``cuda``, or ``cpu`` where Triton interprets.
    """
    from attnc.testing.compare import agreements
    from attnc.testing.inputs import complete_sizes, grid_length, make_inputs

    rows = []
    for k, given in enumerate(case.sizes):
        op = compiled(case.spec, case.consts)
        length = grid_length(op.program)
        if length is not None and k == 0:
            given = {**given, "M": length, "N": length}
        sizes = complete_sizes(op.program, given)
        tensors = make_inputs(op.program, sizes, torch_dtype(case.dtype), device=device)
        rows += [asdict(row) | {"N": sizes["N"], "agrees": row.agrees} for row in agreements(op, tensors)]
    return rows
