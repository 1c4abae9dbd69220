"""attnc: attention variants written as a few equations, compiled to fused kernels."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from attnc.diagnostics.diagnostic import AttncError, CallError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attnc.runtime.fit import BiasFactors, fit_bias_factors
    from attnc.runtime.op import Op

__version__ = "0.1.0"
__all__ = ["AttncError", "BiasFactors", "CallError", "Op", "SpecError", "compile", "fit_bias_factors"]


def compile(
    spec: str | os.PathLike[str],
    *,
    name: str | None = None,
    backend: str = "auto",
    disable: str | Iterable[str] = (),
    bias: str = "auto",
    rank: int | str | None = None,
    rtol: float = 1e-3,
    deterministic: bool = True,
    tf32: bool = False,
    **consts: float,
) -> Op:
    """Compile an attention variant.

    Args:
        spec: the path of an `.attn` file, or its text: a string with a newline, or one that begins with ``attention``.
        name: which definition of a file that holds several.
        backend: ``"auto"`` (Triton for CUDA tensors; for CPU tensors C++, or tiled PyTorch where there is no compiler),
            ``"cpp"``, ``"triton"``, ``"tiled"`` or ``"dense"``.
        disable: rewrites not to apply, by name (`attnc explain --help` lists them). Results are the same without them.
        bias: how the part of the score that depends on both positions but not on q and k is computed: ``"registers"``,
            ``"factors"`` (exact products of one position each, as further channels), ``"dense"`` (a tensor, loaded),
            or ``"auto"``: what the cost model finds cheapest.
        rank: for a bias that has no exact factors (a learned table), take factors of this many channels from a
            truncated singular value decomposition made at call time; ``"auto"`` takes as many as `rtol` needs.
            Gradients of the table are then those of its projection on the factors.
        rtol: with ``rank="auto"``, the relative error in the Frobenius norm that the factors may have in each head.
        deterministic: whether gradients of tensors that a spec reads at computed positions (tables) are the same bits
            on every run. On a GPU this takes integer counters, which cost memory and some time; without them, f32
            atomics add in any order.
        tf32: for f32 queries on a GPU, let tensor cores multiply queries, keys, values and what is computed from them
            in TF32, which keeps 10 bits of each factor; sums stay in f32. Without it products are exact in f32, several
            times as slow, whatever PyTorch's own switches for its matrix products say. Other dtypes, exact factors of
            a bias, and CPUs are not affected.
        consts: values for the spec's constants.

    Returns:
        An op to call with q, k, v and the spec's tensors.

    Raises:
        SpecError: the spec cannot be read or is wrong, or has no such form; the message says where and what to do.

    Example:
        >>> import attnc, torch
        >>> op = attnc.compile("attention causal\\nmask = j <= i")
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8)
        >>> op(q, k, v).shape
        torch.Size([1, 2, 5, 8])
    """
    from attnc import driver
    from attnc.ir.options import options

    try:
        chosen = options(disable, bias, rank, rtol, deterministic, tf32)
        source = driver.read(spec)
        definition = driver.definition(source, name)
        from attnc.runtime.op import Op

        return Op(source, definition, consts, backend, chosen)
    except AttncError as error:
        raise error.with_traceback(None) from None


_LATE = {"Op": "attnc.runtime.op", "BiasFactors": "attnc.runtime.fit", "fit_bias_factors": "attnc.runtime.fit"}
"""What needs torch, and is imported when it is first asked for."""


def __getattr__(name: str) -> object:
    if name in _LATE:
        from importlib import import_module

        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module 'attnc' has no attribute {name!r}")
