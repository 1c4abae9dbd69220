"""Dtypes: the names used in programs and kernels, and torch's."""

from __future__ import annotations

import torch

BY_NAME: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8": torch.float8_e4m3fn,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
NAMES: dict[torch.dtype, str] = {v: k for k, v in BY_NAME.items()}
QUERY_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn)
FORWARD_ONLY = (torch.float8_e4m3fn,)
"""Dtypes of inputs that have no gradients, and in which nothing is written."""


def real(query: torch.dtype) -> torch.dtype:
    """What kernels compute in for queries of this dtype."""
    return torch.float64 if query is torch.float64 else torch.float32


def resolve(declared: str, query: torch.dtype) -> torch.dtype:
    """The torch dtype of a declared one: ``q`` is the query's, ``real`` what kernels compute in."""
    if declared == "q":
        return query
    return real(query) if declared == "real" else BY_NAME[declared]


def written(declared: str, query: torch.dtype) -> torch.dtype:
    """As `resolve`, for what kernels write: results of eight bits would keep three digits too few, so they are bf16."""
    return torch.bfloat16 if declared == "q" and query in FORWARD_ONLY else resolve(declared, query)


def accepted(declared: str, query: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes an argument may have. Declared reals may be float64 in a float64 call, for gradcheck."""
    exact = resolve(declared, query)
    if query is torch.float64 and exact.is_floating_point and exact is not query:
        return (exact, query)
    return (exact,)
