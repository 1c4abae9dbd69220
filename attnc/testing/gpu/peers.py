"""Peers on a GPU: every backend of PyTorch's own attention, FlexAttention, eager PyTorch, flash-linear-attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from attnc.testing.peers import Peer
from attnc.testing.softmax_form import NotExpressible

if TYPE_CHECKING:
    import torch

    from attnc.ir.program import Program

    Tensors = Mapping[str, torch.Tensor]

BACKENDS = {"cuDNN": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}


def peer(
    name: str, program: Program, tensors: Tensors, sizes: Mapping[str, int], *, compiled: bool
) -> Peer | NotExpressible:
    """The peer of that name on these inputs, or why it cannot say the variant.

    Args:
        name: a key of `BACKENDS`, ``flex``, ``eager`` or ``fla``.
        compiled: whether FlexAttention goes through `torch.compile`.
    """
    from attnc.testing import peers
    from attnc.testing.plain import plain

    match name:
        case "flex":
            return peers.flex(program, tensors, sizes, compiled=compiled)
        case "eager":
            return plain(program, tensors, sizes)
        case "fla":
            return retention(sizes)
        case _:
            found = peers.sdpa(program, tensors, sizes)
            return found if isinstance(found, NotExpressible) else with_backend(found, name)


def with_backend(peer: Peer, name: str) -> Peer:
    """`scaled_dot_product_attention` held to one of its backends."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = getattr(SDPBackend, BACKENDS[name])

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        with sdpa_kernel(backend):
            return peer.run(q, k, v)

    return Peer(name, run, f"{peer.name}: {peer.note}")


def retention(sizes: Mapping[str, int]) -> Peer | NotExpressible:
    """Chunked retention of flash-linear-attention, whose decays are those a retention has by default."""
    try:
        from fla.ops.retention import chunk_retention  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return NotExpressible("flash-linear-attention is not installed")
    call: Callable[..., Any] = chunk_retention

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return call(q, k, v, scale=1.0)[0].transpose(1, 2)

    return Peer("fla", run, "chunked; decays are constants")
