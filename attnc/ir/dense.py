"""The dense evaluator: a program's meaning in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from attnc.ir.contraction import Order, aligned, axis_order
from attnc.ir.dense_block import Block
from attnc.ir.dtypes import resolve
from attnc.ir.node import Max, Node, Sum
from attnc.ir.program import Program
from attnc.ir.sizes import evaluator
from attnc.ir.staged import Staged, choose_blocks
from attnc.ir.walk import postorder


def evaluate(
    program: Program,
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    *,
    dtype: torch.dtype = torch.float64,
    rows: int | None = None,
    whole: bool = False,
) -> dict[str, Tensor]:
    """Every output of `program`, shaped as its dims say, differentiable by torch autograd.

    Args:
        tensors: inputs by name; real ones are converted to `dtype`, integers to int64. Optional ones may be missing.
        sizes: every size symbol; ``q_start`` is 0 unless given.
        rows: block length along the query axis; by default whatever keeps the widest value within a memory budget.
        whole: evaluate everything at once, where no value is much wider than the tensors.
    """
    tensors = with_defaults(program, tensors, sizes)
    extents = axis_extents(program, sizes)
    roots = list(dict.fromkeys(program.roots()))
    blocks = {} if whole else choose_blocks(program, roots, extents, rows)
    values = Staged(roots, program.axes, extents, blocks, converted(tensors, dtype), sizes, dtype).run()
    return assemble(program, values, sizes, axis_order(list(program.axes)), dtype)


def assemble(
    program: Program,
    values: Mapping[Node, Tensor],
    sizes: Mapping[str, int],
    order: Order,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Outputs from the values of their parts: dimensions in declared order, parts added.

    A part may end before its dimension does (the gradient of a table longer than the sequence that reads it): 0 there.
    """
    outputs = {}
    for out in program.outputs:
        shape = [integer(d, sizes) for d in out.dims]
        total: Tensor | None = None
        for axes, node in out.parts:
            ordered = order(axes)
            value = aligned(values[node], order(node.axes), ordered)
            covered = [min(integer(program.extent(a), sizes), n) for a, n in zip(axes, shape, strict=True)]
            value = value.permute([ordered.index(a) for a in axes]).to(dtype).expand(covered)
            if covered != shape:
                short = (n - c for n, c in zip(reversed(shape), reversed(covered), strict=True))
                value = torch.nn.functional.pad(value, [x for n in short for x in (0, n)])
            total = value if total is None else total + value
        if total is None:
            total = torch.zeros(shape, dtype=dtype)
        outputs[out.name] = total
    return outputs


def evaluate_nodes(
    nodes: Sequence[Node],
    axes_extents: Mapping[str, int],
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    *,
    dtype: torch.dtype,
    order: Sequence[str],
    fixed: Mapping[str, range | int] | None = None,
    given: Mapping[Node, Tensor] | None = None,
) -> list[Tensor]:
    """Values of `nodes`, in one block; each has one dimension per free axis, sorted by `order` (primed after unprimed).

    Args:
        axes_extents: extent of every unprimed axis.
        fixed: restricts an axis to a range of positions or to one position (its dimension stays, with extent 1). A
            reduction over a restricted axis covers those positions only. Primed names are restricted separately.
        given: values of nodes known already, with dimensions as above.
    """
    limits = {a: r if isinstance(r, range) else range(r, r + 1) for a, r in (fixed or {}).items()}

    def ranges(name: str) -> range:
        return limits[name] if name in limits else range(axes_extents[name.rstrip("'")])

    return Block(ranges, axis_order(order), converted(tensors, dtype), sizes, dtype, given).run(nodes)


def with_defaults(program: Program, tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The inputs, with those not given filled from their defaults and rounded to their declared dtype."""
    filled = dict(tensors)
    for t in program.tensors:
        if t.name in filled or t.default is None:
            continue
        shape = {a: range(integer(d, sizes)) for a, d in zip(t.default_axes, t.dims, strict=True)}
        (value,) = evaluate_nodes([t.default], {}, {}, sizes, dtype=torch.float64, order=t.default_axes, fixed=shape)
        ordered = axis_order(t.default_axes)(shape)
        value = aligned(value, axis_order(t.default_axes)(t.default.axes), ordered)
        value = value.expand([len(shape[a]) for a in ordered]).permute([ordered.index(a) for a in t.default_axes])
        device = next((x.device for x in tensors.values()), value.device)
        filled[t.name] = value.to(
            device, resolve(t.dtype, tensors["q"].dtype if "q" in tensors else torch.float64)
        ).contiguous()
    return filled


def converted(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors with real ones in `dtype`."""
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}


def integer(node: Node, sizes: Mapping[str, int]) -> int:
    """The value of an integer expression over sizes."""
    return int(evaluator(node)({"q_start": 0, **sizes}))


def axis_extents(program: Program, sizes: Mapping[str, int]) -> dict[str, int]:
    """The extent of every axis of a program whose sizes are all known."""
    used = {a.rstrip("'") for n in postorder(program.roots()) for a in _names(n)}
    return {name: integer(info.extent, sizes) for name, info in program.axes.items() if name in used}


def _names(node: Node) -> Iterable[str]:
    return node.bound | node.axes if isinstance(node, Sum | Max) else node.axes


def bind_sizes(program: Program, tensors: Mapping[str, Tensor], q_start: int = 0) -> dict[str, int]:
    """Size symbols from the shapes of the tensors that bind them, and ``q_start``."""
    sizes = {s.name: tensors[s.tensor].shape[s.dim] for s in program.sizes if s.tensor in tensors}
    return {**sizes, "q_start": q_start}
