"""Other scores of the gallery (of the key alone, additive, of one matrix, by distance, by angle), as dense formulas."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.formulas import GALLERY, Random, Spec, attend, l1, per_query_head, positions, scores, softmax


def taylor_softmax(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    x = scores(q, k)
    return attend(l1(1 + x + x * x / 2, j <= i), v)


def taylor_orders(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    x = scores(q, k)
    return sum((attend(l1(x**n, j <= i), v) for n in (0, 1, 2)), torch.zeros_like(q[..., :1]))


def key_only(q: Tensor, k: Tensor, v: Tensor, a: Tensor, q_start: int = 0) -> Tensor:
    """As the scan it is: running sums over the keys."""
    s = (F.silu(a) * per_query_head(k, q)).sum(-1, keepdim=True) / math.sqrt(q.shape[-1])
    e = torch.exp(s - s.detach().amax(-2, keepdim=True))
    means = (e * per_query_head(v, q)).cumsum(-2) / e.cumsum(-2)
    return means[:, :, q_start : q_start + q.shape[2]].to(v.dtype)


def static_weights(q: Tensor, k: Tensor, v: Tensor, fixed_q: Tensor, fixed_k: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    weights = softmax(scores(fixed_q[None], fixed_k[None]), j <= i)
    return attend(weights.expand(q.shape[0], -1, -1, -1), v)


def rectified(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Tensor:
    return attend(F.relu(scores(q, k)) / k.shape[2], v)


def collapsed_similarity(q: Tensor, k: Tensor, v: Tensor, W: Tensor, q_start: int = 0) -> Tensor:
    return attend(torch.softmax(scores(q @ W, k), -1), v)


def symmetric_similarity(q: Tensor, k: Tensor, v: Tensor, T: Tensor, q_start: int = 0) -> Tensor:
    T = torch.tril(T)
    return attend(torch.softmax(scores(q @ T, per_query_head(k, q) @ T), -1), v)


def additive(q: Tensor, k: Tensor, u: Tensor) -> Tensor:
    """u tanh(q + k), [B, H, M, N]; u is [D] or [H, D]."""
    hidden = torch.tanh(q[:, :, :, None] + per_query_head(k, q)[:, :, None])
    return (hidden * (u if u.dim() == 1 else u[:, None, None])).sum(-1)


def pointer_network(q: Tensor, k: Tensor, v: Tensor, u: Tensor, chosen: Tensor, q_start: int = 0) -> Tensor:
    """Log-probabilities; 0 in place of -inf for what was chosen before."""
    closed = chosen[:, None, None, :]
    s = additive(q, k, u)
    every = closed.all(-1, keepdim=True)
    return torch.log_softmax(s.masked_fill(closed & ~every, -math.inf), -1).masked_fill(closed, 0.0)


def bahdanau(q: Tensor, k: Tensor, v: Tensor, u: Tensor, length: Tensor, q_start: int = 0) -> Tensor:
    _, j = positions(q, k, q_start)
    return attend(softmax(additive(q, k, u), j < length[:, None, None, None]), v)


def oat_readout(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Tensor:
    return torch.softmax(F.pad(scores(q, k), (0, 1)), -1)[..., :-1]


def sasrec(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    least = max(float(-(2**32) + 1), torch.finfo(q.dtype).min)
    s = scores(q, k).masked_fill(~(valid[:, None, None, :] & (j <= i)), least)
    return attend(torch.softmax(s, -1), v) * valid[:, None, i[:, 0], None]


def st_link(q: Tensor, k: Tensor, v: Tensor, place: Tensor, base: float = 10000, q_start: int = 0) -> Tensor:
    """As complex numbers: channel c and channel c + D / 2 turn together."""
    i, j = positions(q, k, q_start)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    half = q.shape[-1] // 2
    theta = base ** (-2 * torch.arange(half, dtype=dtype) / q.shape[-1])

    def turned(x: Tensor, position: Tensor) -> Tensor:
        angle = (position + place[:, position.flatten().long()])[:, None, :, None] * theta
        pairs = torch.complex(x[..., :half].to(dtype), x[..., half:].to(dtype)) * torch.exp(1j * angle)
        return torch.cat([pairs.real, pairs.imag], -1).to(x.dtype)

    return attend(torch.softmax(scores(turned(q, i.T), turned(k, j)), -1), v)


def arbex_window(q: Tensor, k: Tensor, v: Tensor, table: Tensor, side: int, q_start: int = 0) -> Tensor:
    cell = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).flatten(0, 1)
    y, x = (cell[:, None] - cell[None, :] + side - 1).unbind(-1)
    return attend(torch.softmax(scores(q, k) + table[:, y, x], -1), v)


def arbex_anchors(q: Tensor, k: Tensor, v: Tensor, delta: float = 1.0, q_start: int = 0) -> Tensor:
    gap = q[:, :, :, None] - per_query_head(k, q)[:, :, None]
    return attend(torch.softmax(-gap.norm(dim=-1) / delta, -1), v)


def score_perturbation(q: Tensor, k: Tensor, v: Tensor, r: Tensor, eps: float = 1.0, q_start: int = 0) -> Tensor:
    return attend(torch.softmax(scores(q, k) + eps * r, -1), v)


def matrix(name: str) -> Spec:
    formula = {"W": collapsed_similarity, "T": symmetric_similarity}[name]
    return Spec(formula, lambda r: {name: r.normal(r.dims.H, r.dims.D, r.dims.D) / r.dims.D**0.5})


def cities(r: Random) -> dict[str, Tensor]:
    return {"u": r.normal(r.dims.D), "chosen": r.integers(r.dims.B, r.dims.N, high=3) == 0}


def encoder(r: Random) -> dict[str, Tensor]:
    return {"u": r.normal(r.dims.H, r.dims.D), "length": r.integers(r.dims.B, high=r.dims.N + 1)}


GALLERY.update(
    {
        "gallery/taylor_softmax": Spec(taylor_softmax),
        "gallery/taylor_orders": Spec(taylor_orders, positive=True),
        "gallery/key_only": Spec(
            key_only,
            lambda r: {"a": r.normal(r.dims.B, r.dims.H, r.dims.N, r.dims.D)},
            queries_within_keys=True,
            lengths=((7, 7), (63, 130), (130, 130)),
        ),
        "gallery/static_weights": Spec(
            static_weights,
            lambda r: {
                "fixed_q": r.normal(r.dims.H, r.dims.M, r.dims.D),
                "fixed_k": r.normal(r.dims.G, r.dims.N, r.dims.D),
            },
        ),
        "gallery/collapsed_similarity": matrix("W"),
        "gallery/rectified": Spec(rectified),
        "gallery/symmetric_similarity": matrix("T"),
        "gallery/pointer_network": Spec(pointer_network, cities, plane_output=True, costly=True),
        "gallery/bahdanau": Spec(bahdanau, encoder, costly=True),
        "gallery/oat_readout": Spec(oat_readout, plane_output=True),
        "gallery/sasrec": Spec(
            sasrec,
            lambda r: {"valid": r.integers(r.dims.B, r.dims.N, high=3) > 0},
            queries_within_keys=True,
        ),
        "gallery/st_link": Spec(
            st_link,
            lambda r: {"place": r.uniform(r.dims.B, r.dims.N, low=0, high=5)},
            queries_within_keys=True,
        ),
        "gallery/arbex_window": Spec(
            arbex_window,
            lambda r: {"table": r.normal(r.dims.H, 13, 13, dtype=r.f32)},
            {"side": 7},
            lengths=((49, 49),),
        ),
        "gallery/arbex_anchors": Spec(arbex_anchors, consts={"delta": 1.0}),
        "gallery/score_perturbation": Spec(
            score_perturbation, lambda r: {"r": r.normal(r.dims.B, r.dims.H, r.dims.M, r.dims.N)}
        ),
    }
)
