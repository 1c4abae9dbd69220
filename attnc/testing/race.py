"""A compiled op and its peers, made ready to be timed on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnc.testing.compare import Op
from attnc.testing.peers import Peer

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Runner:
    """One contestant: calls that run its forward, and its forward and backward together."""

    name: str
    forward: Callable[[], object]
    both: Callable[[], object]


def of_op(op: Op, tensors: Tensors, name: str = "attnc") -> Runner:
    """The op on these inputs; the backward computes the gradient of every real tensor."""
    import torch

    extra: dict[str, Any] = {"observe": True} if op.program.observed else {}
    fixed = {n: t.detach() for n, t in tensors.items()}
    leaves = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in tensors.items()}
    wanted = [t for t in leaves.values() if t.requires_grad]

    def outputs(values: Tensors) -> list[torch.Tensor]:
        returned = op(**values, **extra)
        return [returned[0], *returned[1].values()] if extra else [returned]

    def forward() -> object:
        with torch.no_grad():
            return outputs(fixed)

    seeds = [torch.randn_like(o) for o in forward()]  # type: ignore[attr-defined]

    def both() -> object:
        made = [(o, s) for o, s in zip(outputs(leaves), seeds, strict=True) if o.requires_grad]
        return torch.autograd.grad([o for o, _ in made], wanted, [s for _, s in made], allow_unused=True)

    return Runner(name, forward, both)


def of_peer(peer: Peer, tensors: Tensors) -> Runner:
    """A peer on the same q, k and v; its backward computes their gradients, and those of captured tensors if it has
    any."""
    import torch

    fixed = [tensors[n].detach() for n in "qkv"]
    leaves = [t.clone().requires_grad_() for t in fixed]

    def forward() -> object:
        with torch.no_grad():
            return peer.run(*fixed)

    seed = torch.randn_like(forward())  # type: ignore[call-overload]

    def both() -> object:
        return torch.autograd.grad(peer.run(*leaves), leaves, seed)

    return Runner(peer.name, forward, both)
