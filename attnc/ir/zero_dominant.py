"""Torch operations in which a zero gradient stays zero, whatever it is multiplied by.

A lane outside a reduction's domain may hold inf or NaN. Selecting with `torch.where` hides the value, and its gradient
there is exactly 0; but the ordinary derivatives upstream would compute ``0 * inf``. Every operation here multiplies an
incoming gradient by a derivative through `scaled`, for which ``0 * inf == 0``. Backward formulas are written with the
same operations, so they can be differentiated again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LN2 = math.log(2.0)


def _is_finite(t: Tensor) -> bool:
    return bool(torch.isfinite(t.detach().sum()))


def scaled(g: Tensor, d: Tensor) -> Tensor:
    """``g * d`` elementwise (broadcasting), 0 where g is 0 even if d is not finite."""
    product = g * d
    if _is_finite(product):
        return product
    return g * torch.where((g == 0) & ~torch.isfinite(d), torch.zeros_like(d), d)


class _Unary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        y = _VALUES[name](x)
        ctx.save_for_backward(x, y)
        ctx.name = name
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (g,) = grad_outputs
        x, y = ctx.saved_tensors
        return scaled(g, _DERIVATIVES[ctx.name](x, y)), None


def unary(name: str, x: Tensor) -> Tensor:
    """A real function of one tensor, by its name in `attnc.ir.functions`."""
    if x.requires_grad and name in _DERIVATIVES:
        result: Tensor = _Unary.apply(x, name)  # type: ignore[no-untyped-call]
        return result
    return _VALUES[name](x)


def _reciprocal_or_zero(x: Tensor) -> Tensor:
    return torch.where(x == 0, torch.zeros_like(x), torch.reciprocal(x))


def _finite_or_zero(x: Tensor) -> Tensor:
    return torch.where(x == -math.inf, torch.zeros_like(x), x)


_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "log": torch.log,
    "log2": torch.log2,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "reciprocal_or_zero": _reciprocal_or_zero,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "abs": torch.abs,
    "sign": lambda x: torch.sign(x.detach()),
    "finite_or_zero": _finite_or_zero,
    "rounded": lambda x: x,
    "lost": torch.zeros_like,
    "detach": torch.detach,
}

_DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "exp": lambda x, y: y,
    "exp2": lambda x, y: LN2 * y,
    "log": lambda x, y: unary("reciprocal", x),
    "log2": lambda x, y: unary("reciprocal", x) / LN2,
    "sqrt": lambda x, y: 0.5 * unary("reciprocal", y),
    "rsqrt": lambda x, y: -0.5 * multiply(y, multiply(y, y)),
    "reciprocal": lambda x, y: -multiply(y, y),
    "reciprocal_or_zero": lambda x, y: -multiply(y, y),
    "tanh": lambda x, y: 1 - multiply(y, y),
    "sigmoid": lambda x, y: multiply(y, 1 - y),
    "softplus": lambda x, y: unary("sigmoid", x),
    "erf": lambda x, y: (2 / math.sqrt(math.pi)) * unary("exp", -multiply(x, x)),
    "sin": lambda x, y: unary("cos", x),
    "cos": lambda x, y: -unary("sin", x),
    "abs": lambda x, y: torch.sign(x.detach()),
}


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, Tensor | None]:
        (g,) = grad_outputs
        a, b = ctx.saved_tensors
        ga = scaled(g, b).sum_to_size(a.shape) if ctx.needs_input_grad[0] else None
        gb = scaled(g, a).sum_to_size(b.shape) if ctx.needs_input_grad[1] else None
        return ga, gb


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """``a * b`` with broadcasting; values as in IEEE arithmetic, gradients zero-dominant."""
    if a.requires_grad or b.requires_grad:
        result: Tensor = _Multiply.apply(a, b)  # type: ignore[no-untyped-call]
        return result
    return a * b


class _Power(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return torch.pow(x, y)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, Tensor | None]:
        (g,) = grad_outputs
        x, y = ctx.saved_tensors
        gx = gy = None
        zero = torch.zeros_like(g)
        if ctx.needs_input_grad[0]:
            lower = torch.where(y == 0, zero, multiply(y.to(x.dtype), power(x, y - 1)))
            gx = scaled(g, lower).sum_to_size(x.shape)
        if ctx.needs_input_grad[1]:
            grown = torch.where((x == 0) & (y >= 0), zero, multiply(power(x, y), unary("log", x)))
            gy = scaled(g, grown).sum_to_size(y.shape)
        return gx, gy


def power(x: Tensor, y: Tensor) -> Tensor:
    """``x ** y``; y may hold integers, which take no gradient."""
    if x.requires_grad or y.requires_grad:
        result: Tensor = _Power.apply(x, y)  # type: ignore[no-untyped-call]
        return result
    return torch.pow(x, y)


class _Contract(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, ia: str, ib: str, out: str) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.indices = ia, ib, out
        return _einsum(a, b, f"{ia},{ib}->{out}")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (g,) = grad_outputs
        a, b = ctx.saved_tensors
        ia, ib, out = ctx.indices
        ga = contract(g, b, out, ib, ia) if ctx.needs_input_grad[0] else None
        gb = contract(g, a, out, ia, ib) if ctx.needs_input_grad[1] else None
        return ga, gb, None, None, None


def contract(a: Tensor, b: Tensor, ia: str, ib: str, out: str) -> Tensor:
    """``einsum('ia,ib->out')`` of two tensors where ``0 * inf`` and ``0 * NaN`` count as 0.

    Every index must occur in two of the three (sum the others out first).
    """
    if a.requires_grad or b.requires_grad:
        result: Tensor = _Contract.apply(a, b, ia, ib, out)  # type: ignore[no-untyped-call]
        return result
    return _einsum(a, b, f"{ia},{ib}->{out}")


def _einsum(a: Tensor, b: Tensor, spec: str) -> Tensor:
    result: Tensor = torch.einsum(spec, a, b)
    return result if _is_finite(result) else _einsum_with_infinities(a, b, spec)


def _einsum_with_infinities(a: Tensor, b: Tensor, spec: str) -> Tensor:
    """Finite products are summed as usual; infinite and undefined ones are counted by sign and decide the outcome."""

    def count(x: Tensor, y: Tensor) -> Tensor:
        total: Tensor = torch.einsum(spec, x.to(a.dtype), y.to(a.dtype))
        return total

    zero = a.new_zeros(())
    finite = torch.einsum(spec, torch.where(a.isfinite(), a, zero), torch.where(b.isfinite(), b, zero))
    sign_a, sign_b = a.nan_to_num(nan=0.0).sign(), b.nan_to_num(nan=0.0).sign()
    b_finite = b.isfinite()
    infinite = count(sign_a.abs(), b.isinf()) + count(a.isinf(), sign_b.abs() * b_finite)
    net = count(sign_a, sign_b * b.isinf()) + count(sign_a * a.isinf(), sign_b * b_finite)
    undefined = count(a.isnan(), b != 0) + count(a != 0, b.isnan())
    result = torch.where(infinite > 0, torch.where(net.abs() == infinite, net * math.inf, math.nan), finite)
    return torch.where(undefined > 0, math.nan, result)
