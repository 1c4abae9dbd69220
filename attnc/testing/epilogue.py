"""What surrounds the softmax of a variant, done to the output of an attention that knows nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from attnc.ir.construct import ONE, var
from attnc.ir.dense import evaluate_nodes
from attnc.ir.node import Load, Node
from attnc.ir.walk import postorder, replace
from attnc.testing.pointwise import python_function
from attnc.testing.softmax_form import SoftmaxForm

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

AXES = {"b": "B", "h": "H", "i": "M", "e": "E"}


def epilogue(form: SoftmaxForm, tensors: Tensors, sizes: Mapping[str, int]) -> Callable[..., torch.Tensor]:
    """A function of the output and, where there is a sink, of the log-sum-exp of each row. It computes sink and gate
    at every call, from tensors that have no gradient."""
    import torch

    sink = None if form.sink is None else _made(form.sink, tensors, sizes)
    gate = None if form.gate is ONE else _made(form.gate, tensors, sizes)

    def finish(o: torch.Tensor, lse: torch.Tensor | None = None) -> torch.Tensor:
        if sink is not None:
            assert lse is not None
            o = o * torch.sigmoid(lse[..., None] - sink()).to(o.dtype)
        return o if gate is None else o * gate().to(o.dtype)

    return finish


def _made(node: Node, tensors: Tensors, sizes: Mapping[str, int]) -> Callable[[], torch.Tensor]:
    """Computes `node` over b, h, i, e, lengths 1 where it does not depend on an axis; elements are read beforehand."""
    import torch

    device = tensors["q"].device
    loads = [n for n in postorder([node]) if isinstance(n, Load)]
    names: dict[Node, Node] = {n: var(f"loaded{k}", n.axes) for k, n in enumerate(loads)}
    (body,) = replace([node], names)
    extents = {a: sizes[size] for a, size in AXES.items()}
    given = {n: t.detach() for n, t in tensors.items()}
    values = [
        _spread(evaluate_nodes([n], extents, given, sizes, dtype=given[n.tensor].dtype, order=tuple(AXES))[0], n)
        for n in loads
    ]
    positions = [
        torch.arange(extents[a], device=device).reshape([-1 if a == other else 1 for other in AXES]) for a in AXES
    ]
    arguments = (*(f"loaded{k}" for k in range(len(loads))), *AXES)
    function = python_function(body, "surrounding", arguments, {a: a for a in AXES}, {})
    return lambda: torch.as_tensor(function(*values, *positions), device=device)


def _spread(value: torch.Tensor, node: Node) -> torch.Tensor:
    """With a dimension for each of b, h, i, e."""
    lengths = iter(value.shape)
    return value.reshape([next(lengths) if a in node.axes else 1 for a in AXES])
