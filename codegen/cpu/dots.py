"""Products that exist only to be summed become factors of their sum, and never go through memory."""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.cpu.layout import Mentions, reads, written
from attnc.codegen.tile import Accumulate, Assign, Each, Kernel, Loop, Stmt
from attnc.ir.construct import raw_sum
from attnc.ir.node import Prod, Sum, Var


def with_dots(kernel: Kernel) -> Kernel:
    """The same kernel, with ``x = a * b; s = sum over d of x`` written ``s = sum over d of a * b``.

    Only where rows of one factor are multiplied by the other as a vector, and the axis summed is contiguous in memory.
    """
    body = _body(kernel, kernel.body, Mentions(kernel).carried)
    return kernel if body == kernel.body else replace(kernel, body=body)


def _body(kernel: Kernel, body: tuple[Stmt, ...], carried: frozenset[str]) -> tuple[Stmt, ...]:
    out: list[Stmt] = []
    for s in body:
        if isinstance(s, Loop | Each):
            out.append(replace(s, body=_body(kernel, s.body, carried)))
            continue
        if isinstance(s, Assign | Accumulate) and isinstance(s.value, Sum) and len(s.value.factors) == 1:
            (x,) = s.value.factors
            made = next((t for t in out if isinstance(t, Assign) and t.target is x), None)
            if made is not None and _is_dot(kernel, s.value, made) and _is_free(body, made, s, carried):
                assert isinstance(made.value, Prod)
                out.remove(made)
                s = replace(s, value=raw_sum(s.value.bound, made.value.factors))
        out.append(s)
    return tuple(out)


def _is_dot(kernel: Kernel, total: Sum, made: Assign) -> bool:
    """Whether a product has rows along the summed axis times a vector along it."""
    value, axes = made.value, made.target.axes
    if not isinstance(value, Prod) or len(value.factors) != 2 or kernel.outer in axes:
        return False
    factors = [f for f in value.factors if isinstance(f, Var) and f.kind == "f"]
    along = kernel.layout(axes)[-1:]
    return frozenset(along) == total.bound and len(axes) > 1 and {f.axes for f in factors} == {axes, total.bound}


def _is_free(body: tuple[Stmt, ...], made: Assign, total: Stmt, carried: frozenset[str]) -> bool:
    """Whether only `total` reads the product, and its factors do not change before that."""
    name = made.target.name
    between = body[body.index(made) + 1 : body.index(total)]
    read = [s for s in body if name in reads(s)]
    return name not in carried and read == [total] and not any(written(s) in reads(made) | {name} for s in between)
