"""Gates, temperatures, densities and selected keys, as dense PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.formulas import GALLERY, Random, Spec, attend, causal, per_query_head, positions, scores, softmax

# ------------------------------------------------------------------------------------------------ gated attention


def gated_headwise(q: Tensor, k: Tensor, v: Tensor, g: Tensor, q_start: int = 0) -> Tensor:
    return causal(q, k, v, q_start=q_start) * torch.sigmoid(g)[..., None]


def gated_shared(q: Tensor, k: Tensor, v: Tensor, g: Tensor, q_start: int = 0) -> Tensor:
    return causal(q, k, v, q_start=q_start) * torch.sigmoid(g)[:, None]


def gated_additive(q: Tensor, k: Tensor, v: Tensor, g: Tensor, q_start: int = 0) -> Tensor:
    return causal(q, k, v, q_start=q_start) + F.silu(g)


def gated_half(q: Tensor, k: Tensor, v: Tensor, g: Tensor, q_start: int = 0) -> Tensor:
    return causal(q, k, v, q_start=q_start) * (1 + torch.sigmoid(g)) / 2


def gated_value(q: Tensor, k: Tensor, v: Tensor, opening: Tensor, q_start: int = 0) -> Tensor:
    return causal(q, k, v * torch.sigmoid(opening), q_start=q_start)


def gated_value_headwise(q: Tensor, k: Tensor, v: Tensor, opening: Tensor, q_start: int = 0) -> Tensor:
    return causal(q, k, v * torch.sigmoid(opening)[..., None], q_start=q_start)


def gated_key(q: Tensor, k: Tensor, v: Tensor, opening: Tensor, q_start: int = 0) -> Tensor:
    return causal(q, k * torch.sigmoid(opening), v, q_start=q_start)


def gated_query(q: Tensor, k: Tensor, v: Tensor, opening: Tensor, q_start: int = 0) -> Tensor:
    return causal(q * torch.sigmoid(opening), k, v, q_start=q_start)


# ---------------------------------------------------------------------------------------------------- temperatures


def temperature(token: Tensor, alpha: Tensor, seen: Tensor) -> Tensor:
    """tanh(token) + 1 + sigmoid(alpha) ln(number of visible keys), [B, heads, length, 1]."""
    position = 1 + torch.sigmoid(alpha)[:, None] * seen.to(alpha.dtype).log()
    return (torch.tanh(token) + position).to(token.dtype)[..., None]


def selective(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_token: Tensor,
    value_token: Tensor,
    query_position: Tensor,
    value_position: Tensor,
    q_start: int = 0,
) -> Tensor:
    i, j = positions(q, k, q_start)
    warm = q * temperature(query_token, query_position, i[:, 0] + 1)
    p = softmax(scores(warm, k), j <= i)
    return attend(p, v * temperature(value_token, value_position, j[0] + 1))


def selective_position(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    sharper = 1 + torch.exp(-torch.exp(beta)) * torch.log((i + 1).to(beta.dtype))
    return attend(softmax(scores(q, k) * sharper.to(q.dtype), j <= i), v)


# ------------------------------------------------------------------------------------ densities, and selected keys


def gaussian_adaptive(
    q: Tensor, k: Tensor, v: Tensor, offset: Tensor, spread: Tensor, K: int = 4, q_start: int = 0
) -> Tensor:
    """The product of densities over its sum along the positions, in logarithms."""
    v = per_query_head(v, q)
    deviation = (v.var(2, keepdim=True) + 1e-8).sqrt()
    density = torch.zeros_like(v)
    for n in range(K):
        c = spread[:, n, None, None].to(v.dtype)
        z = (v - v.mean(2, keepdim=True) - offset[:, n, None, None].to(v.dtype)) / deviation
        density = density - z**2 / (2 * c**2) - 0.5 * torch.log(2 * torch.pi * c**2)
    return v * torch.softmax(density, 2)


def dynamic_mask(q: Tensor, k: Tensor, v: Tensor, a: Tensor, dt: Tensor, keep: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    repeats = q.shape[1] // k.shape[1]
    rows = keep if keep.dim() == 4 else keep[:, :, None]
    bias = (a[:, None] * F.softplus(dt))[:, :, None]
    mask = (j <= i) & rows.repeat_interleave(repeats, 1)
    return attend(softmax(scores(q, k) + bias.repeat_interleave(repeats, 1), mask), v)


# ---------------------------------------------------------------------------------------------------------- inputs


def _query_gate(r: Random) -> dict[str, Tensor]:
    return {"g": r.normal(r.dims.B, r.dims.H, r.dims.M, r.dims.E)}


def _mask_inputs(r: Random, per_row: bool) -> dict[str, Tensor]:
    d = r.dims
    shape = (d.B, d.G, d.M, d.N) if per_row else (d.B, d.G, d.N)
    keep = r.integers(*shape, high=3) > 0
    return {"a": r.normal(d.G, dtype=r.f32), "dt": r.normal(d.B, d.G, d.N), "keep": keep}


GALLERY |= {
    "gallery/gated_headwise": Spec(gated_headwise, lambda r: {"g": r.normal(r.dims.B, r.dims.H, r.dims.M)}),
    "gallery/gated_shared": Spec(gated_shared, lambda r: {"g": r.normal(r.dims.B, r.dims.M, r.dims.E)}),
    "gallery/gated_projection": Spec(gated_shared, lambda r: {"g": r.normal(r.dims.B, r.dims.M, r.dims.E)}),
    "gallery/gated_additive": Spec(gated_additive, _query_gate),
    "gallery/gated_half": Spec(gated_half, _query_gate),
    "gallery/gated_value": Spec(gated_value, lambda r: {"opening": r.normal(r.dims.B, r.dims.G, r.dims.N, r.dims.E)}),
    "gallery/gated_value_headwise": Spec(
        gated_value_headwise, lambda r: {"opening": r.normal(r.dims.B, r.dims.G, r.dims.N)}
    ),
    "gallery/gated_key": Spec(gated_key, lambda r: {"opening": r.normal(r.dims.B, r.dims.G, r.dims.N, r.dims.D)}),
    "gallery/gated_query": Spec(gated_query, lambda r: {"opening": r.normal(r.dims.B, r.dims.H, r.dims.M, r.dims.D)}),
    "gallery/selective": Spec(
        selective,
        lambda r: {
            "query_token": r.normal(r.dims.B, r.dims.H, r.dims.M),
            "value_token": r.normal(r.dims.B, r.dims.G, r.dims.N),
            "query_position": r.normal(r.dims.H, dtype=r.f32),
            "value_position": r.normal(r.dims.G, dtype=r.f32),
        },
    ),
    "gallery/selective_position": Spec(selective_position, lambda r: {"beta": r.uniform(1, low=-1, high=1)}),
    "gallery/gaussian_adaptive": Spec(
        gaussian_adaptive,
        lambda r: {
            "offset": r.normal(r.dims.H, 4, dtype=r.f32),
            "spread": (0.3 * r.normal(r.dims.H, 4, dtype=r.f32)).exp(),  # near 1, where training starts
        },
        lengths=((7, 7), (63, 63)),
    ),
    "gallery/dynamic_mask": Spec(dynamic_mask, lambda r: _mask_inputs(r, per_row=True)),
    "gallery/dynamic_mask_keys": Spec(dynamic_mask, lambda r: _mask_inputs(r, per_row=False)),
}
