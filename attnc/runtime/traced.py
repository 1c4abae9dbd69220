"""Ops as dynamo sees them: one function, put into its graph without looking inside.

Importing this module imports dynamo, which takes seconds; only code that dynamo traces does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.op import Op, ops

_held: dict[str, Op] = {}
"""Ops that a graph refers to, which holds their keys alone."""


def _apply(key: str, *arguments: Any) -> tuple[Tensor, ...]:
    """Call the op of that key."""
    return _held.setdefault(key, ops[key])._call(*arguments)


apply: Callable[..., tuple[Tensor, ...]] = torch._dynamo.allow_in_graph(_apply)
"""`_apply`, opaque to dynamo."""
