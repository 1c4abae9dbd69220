"""Calls of eager code on tensors of its own, which need no dispatcher.

A custom op called through `torch.ops` crosses from Python to C++ and back once per dispatch key. Where no mode, tracer,
transform or profiler is there to see the op, running it is all that a call means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from attnc.runtime.computation import Computation

KINDS = (Tensor, torch.nn.Parameter)
DEVICES = ("cpu", "cuda")


def plain(tensors: Sequence[Any]) -> bool:
    """Whether these are tensors on one kind of device, values as stored, and nothing watches what is called."""
    for t in tensors:
        if type(t) not in KINDS or t.is_neg():
            return False
    return tensors[0].device.type in DEVICES and not watched()


def watched() -> bool:
    """Whether a mode, a tracer, a transform or a profiler may want to see each op."""
    return (
        active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_torch_function_mode_enabled()
        or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
        or torch._C._get_tracing_state() is not None  # pyright: ignore[reportUnnecessaryComparison]
    )


def active() -> bool:
    """Whether a functorch transform or a forward-mode level is running."""
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def differentiated(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd would record a call."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t.requires_grad:
                return True
    return False


class Recorded(torch.autograd.Function):
    """A computation in autograd's graph, as its custom op would be."""

    @staticmethod
    def forward(ctx: Any, computation: Computation, q_start: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Compute the results and keep what the gradients read."""
        kind = (ctx.needs_input_grad, tensors[0].dtype, tensors[0].shape[-1])
        if kind not in computation.ahead:
            computation.ahead.add(kind)
            computation.compile_ahead(tensors, q_start, ctx.needs_input_grad[2:])
        results = computation.run(*tensors, q_start)
        ctx.computation = computation
        computation.remember(ctx, (*tensors, q_start), results)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Gradients of the tensors, themselves recorded where autograd asks for that."""
        computation, q_start = ctx.computation, ctx.q_start
        wanted = ctx.needs_input_grad[2:]
        return (None, None, *computation.gradients(ctx.saved_tensors, grads, wanted, lambda c, t: c.call(t, q_start)))
