"""Computations as ops of a `torch.library`: kernels, fake kernels and autograd."""

from __future__ import annotations

import keyword
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from attnc.runtime.computation import Computation

NAMESPACE = "attnc"

_lock = threading.Lock()
_library: list[torch.library.Library] = []


def register(computation: Computation, name: str) -> Callable[..., tuple[Tensor, ...]]:
    """Define the op `name` of a computation and return a function that calls it through the dispatcher."""
    library = _fragment()
    arguments = ", ".join(f"Tensor {_spelled(n)}" for n in computation.names)
    returns = ", ".join("Tensor" for _ in computation.results)
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)
    library.define(f"{name}({arguments}, SymInt q_start) -> ({returns})", tags=tags)
    single = len(computation.results) == 1
    for key in ("CPU", "CUDA"):
        library.impl(name, _first(computation.run) if single else computation.run, key)
    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, _first(computation.shapes) if single else computation.shapes, lib=library)
    torch.library.register_autograd(qualified, computation.backward, setup_context=computation.remember, lib=library)
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default
    return _tupled(overload) if single else cast("Callable[..., tuple[Tensor, ...]]", overload)


def _fragment() -> torch.library.Library:
    with _lock:
        if not _library:
            _library.append(torch.library.Library(NAMESPACE, "FRAGMENT"))
        return _library[0]


def _spelled(name: str) -> str:
    """An argument name that torch's schema parser accepts."""
    return f"{name}_" if keyword.iskeyword(name) else name


def _first(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    return lambda *args: function(*args)[0]


def _tupled(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *args: (function(*args),)
