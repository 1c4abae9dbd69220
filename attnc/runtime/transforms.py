"""Forward mode and `torch.func`: what a chain of custom ops cannot give, because there tangents would silently be zero.

Under a functorch transform or a forward-mode level the op is applied through one `torch.autograd.Function` with rules
for gradients, tangents and batching; it applies itself recursively, and at the bottom calls the custom op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attnc.ir.construct import size
from attnc.ir.node import Axis, Load, Size
from attnc.ir.walk import postorder
from attnc.runtime.computation import Computation


def functional(computation: Computation, tensors: Sequence[Tensor], q_start: Any) -> tuple[Tensor, ...]:
    """The op's results, differentiable by transforms in either mode."""
    results: tuple[Tensor, ...] = Functional.apply(computation, q_start, *tensors)  # type: ignore[no-untyped-call]
    return results


class Functional(torch.autograd.Function):
    """A computation under transforms."""

    @staticmethod
    def forward(computation: Computation, q_start: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The custom op itself."""
        return tuple(computation.op(*tensors, q_start))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep arguments and results."""
        computation, q_start, *tensors = inputs
        ctx.computation = computation
        computation.remember(ctx, (*tensors, q_start), output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Gradients, themselves differentiable by transforms."""
        found = ctx.computation.gradients(ctx.saved_tensors, grads, ctx.needs_input_grad[2:], _through(ctx.q_start))
        return (None, None, *found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Tangents of the results."""
        return tuple(ctx.computation.tangents(ctx.saved_tensors, tangents[2:], _through(ctx.q_start)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        """One call on a larger batch where that means the same, else one call per example."""
        computation, q_start, *tensors = arguments
        dims = in_dims[2:]
        run = _folded if folds(computation, [d is not None for d in dims]) else _looped
        results = run(computation, q_start, tensors, dims, info.batch_size)
        return results, (0,) * len(results)


def _through(q_start: Any) -> Callable[[Computation, list[Tensor]], Sequence[Tensor]]:
    return lambda computation, tensors: functional(computation, tensors, q_start)


def folds(computation: Computation, batched: Sequence[bool]) -> bool:
    """Whether mapping over the marked arguments is one call with the mapped dimension merged into the batch.

    That is so if every result and every mapped argument has the batch as its first dimension, every other argument that
    has it can be repeated, and the batch index is only ever used to subscript that dimension.
    """
    batch = size("B")
    if any(not r.dims or r.dims[0] is not batch for r in computation.results):
        return False
    if any(b and (not t.dims or t.dims[0] is not batch) for b, t in zip(batched, computation.arguments, strict=True)):
        return False
    for node in postorder(computation.program.roots()):
        if node is batch:
            return False
        indexed = node.index[1:] if isinstance(node, Load) else node.children
        if any(isinstance(c, Axis) and c.name.rstrip("'") == "b" for c in indexed):
            return False
        if isinstance(node, Size) and node.name == "B":
            return False
    return True


def _folded(
    computation: Computation, q_start: Any, tensors: Sequence[Tensor], dims: Sequence[int | None], count: int
) -> tuple[Tensor, ...]:
    batch = size("B")
    merged = []
    for t, dim, declared in zip(tensors, dims, computation.arguments, strict=True):
        if dim is not None:
            merged.append(t.movedim(dim, 0).flatten(0, 1))
        elif declared.dims and declared.dims[0] is batch:
            merged.append(t.expand(count, *t.shape).flatten(0, 1))
        else:
            merged.append(t)
    return tuple(r.unflatten(0, (count, -1)) for r in functional(computation, merged, q_start))


def _looped(
    computation: Computation, q_start: Any, tensors: Sequence[Tensor], dims: Sequence[int | None], count: int
) -> tuple[Tensor, ...]:
    calls = []
    for n in range(count):
        one = [t if dim is None else t.select(dim, n) for t, dim in zip(tensors, dims, strict=True)]
        calls.append(functional(computation, one, q_start))
    return tuple(torch.stack(results) for results in zip(*calls, strict=True))
