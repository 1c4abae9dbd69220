"""Factors fitted to a bias that depends on data: ``bias[i, j] ~ left(inputs_i)[i] . right(inputs_j)[j]``.

Two small networks, one of the features of queries and one of those of keys, are trained on the squared error of their
product, as Wu et al. do for AlphaFold's pair bias (FlashBias, 2025, arXiv:2505.12044): three linear layers with tanh
between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnc.diagnostics.diagnostic import CallError, Diagnostic

BATCH = 512
"""Rows and columns of the bias that one step sees at most."""
LEARNING_RATE = 3e-3
REPORTED = 50
"""Steps between two updates of the progress bar."""


class FactorNetwork(nn.Module):
    """Features [.., L, F] to factors: [.., heads, L, rank], or [.., L, rank] without heads."""

    def __init__(self, features: int, hidden: int, rank: int, heads: int | None) -> None:
        super().__init__()
        self.rank, self.heads = rank, heads
        self.mean: Tensor
        self.deviation: Tensor
        self.scale: Tensor
        for name in ("mean", "deviation"):
            self.register_buffer(name, torch.zeros(features))
        self.register_buffer("scale", torch.ones(()))
        self.layers = nn.Sequential(
            nn.Linear(features, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, rank * (heads or 1)),
        )

    def prepare(self, features: Tensor, scale: Tensor) -> None:
        """Take the statistics of the features, and how large a factor is."""
        flat = features.flatten(0, -2)
        self.mean.copy_(flat.mean(0))
        self.deviation.copy_(flat.std(0, correction=0).clamp_min(1e-6))
        self.scale.copy_(scale)

    def forward(self, features: Tensor) -> Tensor:
        """The factors, in f32: bf16 would round what their product cancels."""
        found: Tensor = self.layers((features.float() - self.mean) / self.deviation) * self.scale
        return found if self.heads is None else found.unflatten(-1, (self.heads, self.rank)).movedim(-2, -3)


@dataclass(frozen=True, slots=True)
class BiasFactors:
    """A fitted factorisation of a bias.

    Attributes:
        left: makes the factors of queries, [.., H, M, rank], from their features [.., M, F].
        right: makes the factors of keys, [.., H, N, rank].
        error: of their product on the whole bias, relative, in the Frobenius norm.
        largest: the largest absolute error of one element.
    """

    left: FactorNetwork
    right: FactorNetwork
    error: float
    largest: float

    def __str__(self) -> str:
        rank = self.left.rank
        return f"factors of rank {rank}: relative error {self.error:.3g} (Frobenius), largest error {self.largest:.3g}"


def fit_bias_factors(
    bias: Tensor,
    inputs_i: Tensor,
    inputs_j: Tensor,
    rank: int,
    *,
    hidden: int = 128,
    steps: int = 2000,
    seed: int = 0,
    progress: bool = True,
) -> BiasFactors:
    """Fit factors to a bias computed from features of queries and of keys.

    The factors are tensors of a spec whose bias is their product::

        const rank = 16
        index r: rank
        tensor left: f32[B, H, M, rank]
        tensor right: f32[B, H, N, rank]
        bias = sum[r](left[b, h, i, r] * right[b, h, j, r])

    Args:
        bias: [.., H, M, N] or [.., M, N], real; the values to fit.
        inputs_i: features of queries, [.., M, F], with the leading dimensions of `bias` before H.
        inputs_j: features of keys, [.., N, F'].
        rank: channels of the factors.
        hidden: width of the networks.
        steps: steps of Adam, each on at most 512 queries and keys.
        seed: of the first weights and of the choice of queries and keys.
        progress: show a progress bar on standard error.

    Returns:
        Two modules and the error of their product; the modules can be trained further.

    Raises:
        CallError: E240, if the shapes do not fit, the rank is below 1, or the bias holds inf or NaN.
    """
    heads = _checked(bias, inputs_i, inputs_j, rank, hidden, steps)
    device = bias.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        sides = [FactorNetwork(x.shape[-1], hidden, rank, heads).to(device) for x in (inputs_i, inputs_j)]
        left, right = sides
        target = bias.detach().float()
        scale = (target.std(correction=0).clamp_min(1e-12) / math.sqrt(rank)).sqrt()
        features = [x.detach().float() for x in (inputs_i, inputs_j)]
        for side, x in zip(sides, features, strict=True):
            side.prepare(x, scale)
        _train(sides, features, target, steps, progress)
    with torch.no_grad():
        product = left(features[0]) @ right(features[1]).mT
        difference = product - target
        error = float(difference.norm() / target.norm().clamp_min(1e-30))
    return BiasFactors(left, right, error, float(difference.abs().max()))


def _train(
    sides: Sequence[FactorNetwork], features: Sequence[Tensor], target: Tensor, steps: int, progress: bool
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    optimiser = torch.optim.Adam([p for s in sides for p in s.parameters()], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    size = target.square().mean().clamp_min(1e-30)
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar, torch.enable_grad():
        task = bar.add_task("fitting factors", total=steps)
        for step in range(steps):
            rows, columns_ = (_some(x.shape[-2], x.device) for x in features)
            factors = [s(x[..., at, :]) for s, x, at in zip(sides, features, (rows, columns_), strict=True)]
            loss = (factors[0] @ factors[1].mT - target[..., rows, :][..., columns_]).square().mean() / size
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % REPORTED == 0 or step == steps - 1:
                description = f"fitting factors, relative error {math.sqrt(float(loss.detach())):.2e}"
                bar.update(task, completed=step + 1, description=description)


def _some(count: int, device: torch.device) -> Tensor:
    """All positions, or as many as one step sees, drawn at random."""
    if count <= BATCH:
        return torch.arange(count, device=device)
    return torch.randperm(count, device=device)[:BATCH]


def _checked(bias: Any, inputs_i: Any, inputs_j: Any, rank: Any, hidden: Any, steps: Any) -> int | None:
    """The number of heads, None if the bias has none."""
    named = {"bias": bias, "inputs_i": inputs_i, "inputs_j": inputs_j}
    for name, x in named.items():
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or x.numel() == 0:
            raise _wrong(f"`{name}` must be a real tensor of at least two dimensions, none of them empty", _LAYOUT)
    for name, count in (("rank", rank), ("hidden", hidden), ("steps", steps)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise _wrong(f"{name} = {count!r} is no number of at least 1", f"for example {name}=16")
    lead = inputs_i.shape[:-2]
    shapes = f"bias {list(bias.shape)}, inputs_i {list(inputs_i.shape)}, inputs_j {list(inputs_j.shape)}"
    lengths = (inputs_i.shape[-2], inputs_j.shape[-2])
    extra = bias.dim() - len(lead) - 2
    if (
        inputs_j.shape[:-2] != lead
        or bias.shape[-2:] != lengths
        or extra not in (0, 1)
        or bias.shape[: len(lead)] != lead
    ):
        raise _wrong(f"the shapes do not fit: {shapes}", _LAYOUT)
    if len({x.device for x in named.values()}) > 1:
        raise _wrong("the tensors are on different devices", "move them to one")
    if not all(bool(torch.isfinite(x).all()) for x in named.values()):
        raise _wrong("the tensors hold inf or NaN", "leave masking to the spec's mask, and give finite values")
    return int(bias.shape[-3]) if extra else None


_LAYOUT = "give bias [.., H, M, N], inputs_i [.., M, F] and inputs_j [.., N, F'] with the same leading dimensions"


def _wrong(message: str, remedy: str) -> CallError:
    return CallError(Diagnostic("E240", message, remedy=remedy)).with_traceback(None)
