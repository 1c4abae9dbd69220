"""Random inputs for any program: sizes that fit its checks, and tensors whose values suit the way the spec uses
them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attnc.ir.construct import const, is_const
from attnc.ir.node import Call, Const, Load, Node, Size
from attnc.ir.program import Program, Tensor
from attnc.ir.walk import postorder, replace

if TYPE_CHECKING:
    import torch

GRID_CONSTANTS = (("rows", "cols"), ("depth", "rows", "cols"), ("frames", "rows", "cols"), ("height", "width"))
"""Constants whose product is the number of positions of a spec on a grid."""


def integer(node: Node, sizes: Mapping[str, int]) -> int | None:
    """The value of an integer expression over sizes; None if it needs a size that is not given."""
    named: dict[Node, Node] = {
        n: const(sizes[n.name]) for n in postorder([node]) if isinstance(n, Size) and n.name in sizes
    }
    (value,) = replace([node], named)
    if not isinstance(value, Const):
        return None
    return int(value.value)


def dims_of(tensor: Tensor, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape of a tensor at these sizes; None if a size it needs is not given."""
    dims = tuple(integer(d, sizes) for d in tensor.dims)
    return None if any(d is None for d in dims) else tuple(d for d in dims if d is not None)


def grid_length(program: Program) -> int | None:
    """The number of positions of a spec on a grid (``rows * cols``), None for a spec on a line."""
    best: int | None = None
    for names in GRID_CONSTANTS:
        if all(isinstance(program.consts.get(n), int) for n in names):
            best = math.prod(int(program.consts[n]) for n in names)
    return best


def complete_sizes(program: Program, given: Mapping[str, int]) -> dict[str, int]:
    """Every size of a program, from the few that matter.

    Missing ones: B = 1, H = 4, G = H, N from the spec's grid or 256, M = N, D = 64, E = D, and for a size the spec
    declares itself 16, or N where the spec's own relations need more. Where its relations (``M + q_start <= N``) fail
    at M > N, M is lowered to N.
    """
    n = given.get("N", given.get("M", grid_length(program) or 256))
    sizes = {"B": 1, "H": 4, "N": n, "M": n, "D": 64, "q_start": 0} | dict(given)
    sizes.setdefault("G", sizes["H"])
    sizes.setdefault("E", sizes["D"])
    own = [s.name for s in program.sizes if s.name not in sizes]
    sizes |= dict.fromkeys(own, min(16, max(1, n)))
    if own and not relations_hold(program, sizes) and relations_hold(program, sizes | dict.fromkeys(own, n)):
        sizes |= dict.fromkeys(own, n)
    if sizes["M"] > sizes["N"] and not relations_hold(program, sizes):
        sizes["M"] = sizes["N"]
    return sizes


def relations_hold(program: Program, sizes: Mapping[str, int]) -> bool:
    """Whether every relation between sizes that the compiler derived from the spec holds."""
    return all(integer(c.relation, sizes) == 1 for c in program.checks)


def positive_tensors(program: Program) -> frozenset[str]:
    """Tensors that are the base of a power or under a logarithm or a root: their values must be positive."""
    found: set[str] = set()
    for node in postorder(program.roots()):
        if isinstance(node, Call) and node.fn in ("pow", "log", "log2", "sqrt", "rsqrt") and not is_const(node.args[0]):
            found |= {n.tensor for n in postorder([node.args[0]]) if isinstance(n, Load)}
    return frozenset(found) - {"q", "k", "v"}


def make_inputs(
    program: Program,
    sizes: Mapping[str, int],
    dtype: torch.dtype,
    *,
    seed: int = 0,
    device: str = "cpu",
    requires_grad: bool = False,
    contiguous: bool = True,
    drawn_there: bool = False,
) -> dict[str, torch.Tensor]:
    """Random values for every operand of a program.

    Args:
        program: the spec in index notation.
        sizes: all its sizes, see `complete_sizes`.
        dtype: of q, k, v and every tensor declared without a dtype.
        seed: fixes the values, whatever the device.
        device: where the tensors are put.
        requires_grad: whether real tensors ask for gradients.
        drawn_there: draw on the device, which is faster for large tensors and gives other values.
        contiguous: if not, q, k and v are laid out as [B, N, H, D] and other real tensors with a gap after each row.

    Returns:
        Name to tensor, optional ones at their defaults. Integer tensors hold ascending document numbers along their
        last dimension, booleans are mostly true.
    """
    import torch

    from attnc.ir.dense import with_defaults

    generator = torch.Generator(device if drawn_there else "cpu").manual_seed(seed)
    positive = positive_tensors(program)
    values: dict[str, torch.Tensor] = {}
    for tensor in program.tensors:
        if tensor.role != "operand" or tensor.default is not None:
            continue
        shape = dims_of(tensor, sizes)
        if shape is None:
            raise ValueError(f"tensor {tensor.name!r} needs a size that was not given")
        values[tensor.name] = _values(tensor, shape, dtype, generator, tensor.name in positive)
    values = with_defaults(program, values, sizes)
    for tensor in program.tensors:
        value = values[tensor.name]
        if not contiguous:
            value = _scattered(value)
        value = value.to(device)
        values[tensor.name] = value.requires_grad_() if requires_grad and tensor.is_real else value
    return values


def storage_dtype(name: str, query: torch.dtype) -> torch.dtype:
    """The torch dtype of a `Tensor.dtype` name when the query has dtype `query`."""
    from attnc.ir.dtypes import resolve

    return resolve(name, query)


def _values(
    tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, positive: bool
) -> torch.Tensor:
    import torch

    kind = storage_dtype(tensor.dtype, dtype)
    if tensor.dtype == "bool":
        return torch.rand(shape, generator=generator, device=generator.device) < 0.8
    if not tensor.is_real:
        length = shape[-1] if shape else 1
        step = torch.rand((*shape, 1)[: max(1, len(shape))], generator=generator, device=generator.device) < 3 / max(
            3, length
        )
        return torch.cumsum(step.to(torch.int64), dim=-1).to(kind).reshape(shape)
    if positive:
        return (0.8 + 0.19 * torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)).to(
            kind
        )
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64).to(kind)


def _scattered(value: torch.Tensor) -> torch.Tensor:
    """The same values in a layout that is not contiguous; gaps hold NaN, which nobody may read."""
    import torch

    if value.dim() == 4:
        return value.transpose(1, 2).contiguous().transpose(1, 2)
    if value.dim() == 0:
        return value
    gap = torch.nan if value.is_floating_point() else 0
    wide = torch.full((*value.shape[:-1], 2 * value.shape[-1]), gap, dtype=value.dtype)
    wide[..., ::2] = value
    return wide[..., ::2]
