"""Statistics of the attention matrix that the gallery observes, as dense formulas from their papers."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.formulas import GALLERY, Spec, attend, positions, scores, softmax

Seen = tuple[Tensor, dict[str, Tensor]]


def causal_weights(q: Tensor, k: Tensor, q_start: int) -> Tensor:
    i, j = positions(q, k, q_start)
    return softmax(scores(q, k), j <= i)


def entropy(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Seen:
    """lse - sum p s."""
    s = scores(q, k)
    p = torch.softmax(s, -1)
    return attend(p, v), {"row_entropy": torch.logsumexp(s, -1) - (p * s).sum(-1)}


def column_mass(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Seen:
    p = causal_weights(q, k, q_start)
    viewers = torch.arange(k.shape[2], 0, -1)
    return attend(p, v), {"received": p.sum((1, 2)), "per_viewer": p.sum(2) / viewers}


def windowed_distance(q: Tensor, k: Tensor, v: Tensor, window: int, q_start: int = 0) -> Seen:
    i, j = positions(q, k, q_start)
    p = causal_weights(q, k, q_start)
    waad = (p * (i - j).clamp(max=window)).sum(-1)
    return attend(p, v), {"waad": waad, "distance": (p * (i - j)).sum(-1).mean(-1)}


def future_influence(q: Tensor, k: Tensor, v: Tensor, near: int, far: int, q_start: int = 0) -> Seen:
    p = causal_weights(q, k, q_start)
    columns = []
    for j in range(k.shape[2]):
        rows = [i for i in range(q.shape[2]) if j + near <= i + q_start <= j + far]
        columns.append(p[:, :, rows, j].mean(-1) if rows else torch.zeros_like(p[:, :, 0, 0]))
    return attend(p, v), {"influence": torch.stack(columns, -1)}


def cumulative_importance(
    q: Tensor, k: Tensor, v: Tensor, token_before: Tensor, head_before: Tensor, q_start: int = 0
) -> Seen:
    p = causal_weights(q, k, q_start)
    o = attend(p, v)
    seen = {
        "token": token_before + p.sum((1, 2)),
        "head": head_before + o.abs().sum((0, 2, 3)),
        "peak": p.amax(-1),
    }
    return o, seen


def spikiness(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Seen:
    i, _ = positions(q, k, q_start)
    p = causal_weights(q, k, q_start)
    return attend(p, v), {"spread": 1 / ((i[:, 0] + 1) * (p * p).sum(-1))}


def attention_rollout(q: Tensor, k: Tensor, v: Tensor, row: Tensor, q_start: int = 0) -> Seen:
    """r (0.5 S + 0.5 I), with S the mean over heads."""
    p = torch.softmax(scores(q, k), -1)
    mixed = 0.5 * p.mean(1) + 0.5 * torch.eye(k.shape[2], dtype=p.dtype)
    return attend(p, v), {"next_row": torch.einsum("bi,bij->bj", row.to(p.dtype), mixed)}


SQUARE = ((7, 7), (130, 130))

GALLERY.update(
    {
        "gallery/entropy": Spec(entropy, observed=True),
        "gallery/column_mass": Spec(column_mass, observed=True, lengths=SQUARE),
        "gallery/windowed_distance": Spec(windowed_distance, consts={"window": 10}, observed=True),
        "gallery/future_influence": Spec(future_influence, consts={"near": 3, "far": 20}, observed=True),
        "gallery/cumulative_importance": Spec(
            cumulative_importance,
            lambda r: {
                "token_before": r.normal(r.dims.B, r.dims.N, dtype=r.f32),
                "head_before": r.normal(r.dims.H, dtype=r.f32),
            },
            observed=True,
        ),
        "gallery/spikiness": Spec(spikiness, observed=True),
        "gallery/attention_rollout": Spec(
            attention_rollout,
            lambda r: {"row": r.uniform(r.dims.B, r.dims.M, low=0.0, high=1.0)},
            observed=True,
            lengths=SQUARE,
        ),
    }
)
