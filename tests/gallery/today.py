"""What models of today run beside their plain softmax, as dense PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.formulas import GALLERY, Random, Spec, attend, heads, per_query_head, positions, scores, softmax
from tests.gallery.biases import bucket_table, some


def roap(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rank: Tensor,
    table: Tensor,
    text: Tensor,
    prior: Tensor,
    side: int = 16,
    farthest: int = 128,
    q_start: int = 0,
) -> Tensor:
    i, _ = positions(q, k, q_start)
    rank = rank.long()
    step = rank[:, None, :] - rank[:, i[:, 0], None]
    near = bucket_table(int(step.abs().max()) + 1, side // 2, side, farthest)[step.abs()]
    ordered = (rank[:, None, :] >= 0) & (rank[:, i[:, 0], None] >= 0)
    both = text[:, None, :] & text[:, i[:, 0], None]
    reading = table[:, near + side * (step > 0)].transpose(0, 1) * ordered[:, None]
    return attend(softmax(scores(q, k) + reading + heads(prior) * both[:, None]), v)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def rotate_halves(x: Tensor, position: Tensor, base: float) -> Tensor:
    """Channel d turns with channel d + D/2."""
    half = x.shape[-1] // 2
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    theta = base ** -(torch.arange(half, dtype=dtype) / half)
    turn = torch.polar(torch.ones(1, dtype=dtype), position.to(dtype) * theta)
    turned = torch.complex(x[..., :half].to(dtype), x[..., half:].to(dtype)) * turn
    return torch.cat([turned.real, turned.imag], -1).to(x.dtype)


def qk_norm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    base: float = 10000,
    eps: float = 1e-6,
    q_start: int = 0,
) -> Tensor:
    i, j = positions(q, k, q_start)
    warm_q = rotate_halves(rms_norm(q, q_weight, eps), i, base)
    warm_k = rotate_halves(rms_norm(k, k_weight, eps), j.T, base)
    return attend(softmax(scores(warm_q, warm_k), j <= i), v)


def latent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_rope: Tensor,
    k_rope: Tensor,
    R: int = 64,
    head: int | None = None,
    q_start: int = 0,
) -> Tensor:
    """Channels side by side: [q, q_rope] · [k, k_rope], the latter repeated to every head."""
    i, j = positions(q, k, q_start)
    every = k_rope[:, None].expand(-1, q.shape[1], -1, -1)
    wide_q, wide_k = torch.cat([q, q_rope], -1), torch.cat([per_query_head(k, q), every], -1)
    width = (q.shape[-1] if head is None else head) + R
    return attend(softmax(wide_q @ wide_k.transpose(-1, -2) / math.sqrt(width), j <= i), v)


def triangle(q: Tensor, k: Tensor, v: Tensor, pair: Tensor, padding: Tensor, g: Tensor, q_start: int = 0) -> Tensor:
    return attend(softmax(scores(q, k) + pair + padding[:, None, None]), v) * torch.sigmoid(g)


def invariant_points(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pair: Tensor,
    query_point: Tensor,
    key_point: Tensor,
    value_point: Tensor,
    raw: Tensor,
    P: int = 4,
    V: int = 8,
    q_start: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """w_L (q·k / sqrt(D) + b - gamma w_C / 2 sum of squares), with w_L = sqrt(1/3) and w_C = sqrt(2 / (9 P))."""
    squares = (query_point[:, :, :, None] - key_point[:, :, None]).square().sum((-1, -2))
    weight = F.softplus(raw) * math.sqrt(2 / (9 * P)) / 2
    s = math.sqrt(1 / 3) * (scores(q, k) + pair - heads(weight) * squares)
    p = softmax(s)
    return attend(p, v), {"points": torch.einsum("bhij,bhjtc->bhitc", p.to(value_point.dtype), value_point)}


def forgetting(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    rows = decay[:, :, i[:, 0]]
    return attend(softmax(scores(q, k) + rows[..., None] - decay[:, :, None], j <= i), v)


# ---------------------------------------------------------------------------------------------------------- inputs


def _document(r: Random) -> dict[str, Tensor]:
    """A page whose tokens are stored out of reading order, a third of them images without a rank."""
    d = r.dims
    rank = torch.stack([torch.randperm(d.N, generator=r.generator) for _ in range(d.B)]).to(torch.int32)
    text = some(r, d.B, d.N)
    return {
        "rank": torch.where(text, rank, -1),
        "table": r.normal(d.H, 32, dtype=r.f32),
        "text": text,
        "prior": r.normal(d.H, dtype=r.f32),
    }


def _rotated(r: Random, width: int) -> dict[str, Tensor]:
    return {
        "q_rope": r.normal(r.dims.B, r.dims.H, r.dims.M, width),
        "k_rope": r.normal(r.dims.B, r.dims.N, width),
    }


def _points(r: Random) -> dict[str, Tensor]:
    d = r.dims
    return {
        "pair": r.normal(d.B, d.H, d.M, d.N),
        "query_point": r.normal(d.B, d.H, d.M, 4, 3, dtype=r.f32),
        "key_point": r.normal(d.B, d.H, d.N, 4, 3, dtype=r.f32),
        "value_point": r.normal(d.B, d.H, d.N, 5, 3, dtype=r.f32),
        "raw": r.normal(d.H, dtype=r.f32),
    }


def _decays(r: Random) -> dict[str, Tensor]:
    gates = F.logsigmoid(r.normal(r.dims.B, r.dims.H, r.dims.N, dtype=torch.float64) + 2)
    return {"decay": gates.cumsum(-1).to(r.f32)}


def _pairs(r: Random) -> dict[str, Tensor]:
    d = r.dims
    absent = ~some(r, d.B, d.N)
    return {
        "pair": r.normal(1, d.H, d.M, d.N),
        "padding": -1e9 * absent.to(r.f32),
        "g": r.normal(d.B, d.H, d.M, d.E),
    }


GALLERY |= {
    "gallery/roap": Spec(roap, _document, queries_within_keys=True),
    "gallery/qk_norm": Spec(qk_norm, lambda r: {"q_weight": r.normal(r.dims.D), "k_weight": r.normal(r.dims.D)}),
    "gallery/latent": Spec(latent, lambda r: _rotated(r, 8), {"R": 8}),
    "gallery/latent_absorbed": Spec(latent, lambda r: _rotated(r, 24), {"R": 24, "head": 12}),
    "gallery/triangle": Spec(triangle, _pairs),
    "gallery/invariant_points": Spec(invariant_points, _points, {"V": 5}, costly=True, observed=True),
    "gallery/forgetting": Spec(forgetting, _decays, queries_within_keys=True),
}
