"""How far an output is from the float64 oracle, and how much of the plane a variant attends to, at sizes whose whole
plane no oracle can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attnc.ir.construct import call
from attnc.ir.node import Load, Max, Node, Size, Sum
from attnc.ir.walk import postorder
from attnc.testing.compare import FACTOR, ROUNDINGS, dense
from attnc.testing.pointwise import NotPointwise, python_function, with_sizes

if TYPE_CHECKING:
    import torch

    from attnc.ir.program import Program

    Tensors = Mapping[str, torch.Tensor]

ROWS = 64
"""Last queries of the first batch entry that are compared; rows of the mask that are counted."""


def last_rows(program: Program, tensors: Tensors) -> tuple[dict[str, torch.Tensor], int]:
    """Views of the tensors for the last queries of the first batch entry, and the position of the first of them."""
    total = tensors["q"].shape[2]
    kept = min(ROWS, total)
    cut: dict[str, torch.Tensor] = {}
    for tensor in program.tensors:
        value = tensors[tensor.name].detach()
        for k, dim in enumerate(tensor.dims):
            if isinstance(dim, Size) and dim.name == "B":
                value = value.narrow(k, 0, 1)
            if isinstance(dim, Size) and dim.name == "M":
                value = value.narrow(k, total - kept, kept)
        cut[tensor.name] = value
    return cut, total - kept


def error(program: Program, tensors: Tensors, output: torch.Tensor) -> dict[str, float]:
    """The largest error of the last rows of an output, relative to their largest exact value.

    Returns:
        ``error``; ``dense``, that of the dense formula in the same dtype; ``allowed``, as in `attnc.testing.compare`.
    """
    import torch

    cut, start = last_rows(program, tensors)
    exact = dense(program, cut, None, torch.float64, q_start=start).outputs["o"]
    plain = dense(program, cut, None, output.dtype, q_start=start).outputs["o"].to(output.dtype)
    got = output.detach()[:1, :, -exact.shape[2] :]
    scale = float(exact.abs().max()) or 1.0
    own, other = (float((x.double() - exact).abs().max()) / scale for x in (got, plain))
    allowed = FACTOR * other + ROUNDINGS * torch.finfo(output.dtype).eps
    return {"error": own, "dense": other, "allowed": allowed}


def share(program: Program, tensors: Tensors, sizes: Mapping[str, int]) -> float | None:
    """The share of pairs of positions that a variant attends to, from rows spread over the sequence; None if its mask
    is no function of single elements."""
    import torch

    domain = _domain(program)
    if not domain:
        return 1.0
    device = tensors["q"].device
    rows = torch.linspace(0, sizes["M"] - 1, min(ROWS, sizes["M"])).round().long()
    whole = [torch.arange(sizes[n]) for n in ("B", "H", "N")]
    positions = (whole[0], whole[1], rows, whole[2])
    grid = [x.to(device).reshape([-1 if k == n else 1 for k in range(4)]) for n, x in enumerate(positions)]
    condition = with_sizes(call("and", *domain), {**sizes, "q_start": 0})
    axes = {a: a for a in "bhij"}
    try:
        found = python_function(condition, "mask", ("b", "h", "i", "j"), axes, tensors)(*grid)
    except (NotPointwise, KeyError):
        return None
    return float(torch.as_tensor(found).double().mean())  # what it does not depend on has length 1


def _domain(program: Program) -> tuple[Node, ...]:
    """The mask under which values are summed: the domain of the sum over keys that reads v."""
    for node in postorder(program.roots()):
        if isinstance(node, Sum) and "j" in node.bound and any(_reads_v(f) for f in node.factors):
            return node.domain
        if isinstance(node, Max) and "j" in node.bound and node.domain:
            return node.domain
    return ()


def _reads_v(node: Node) -> bool:
    return isinstance(node, Load) and node.tensor == "v"
