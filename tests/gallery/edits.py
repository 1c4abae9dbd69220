"""Edits of scores and weights: second normalisations, sinks, images, maps; as dense PyTorch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.formulas import GALLERY, Random, Spec, attend, per_query_head, positions, scores, softmax


def lssar(q: Tensor, k: Tensor, v: Tensor, power: int = 15, eps: float = 1e-8, q_start: int = 0) -> Tensor:
    """The two normalisations, the second by u / max(u), which is what u itself would give."""
    i, j = positions(q, k, q_start)
    rows = (i + 1).to(q.dtype)
    cosine = F.normalize(q, dim=-1) @ F.normalize(per_query_head(k, q), dim=-1).transpose(-1, -2)
    f = F.softplus(math.log(q.shape[-1]) * rows.log() * cosine) * (j <= i)
    a = f / (eps + f.sum(-1, keepdim=True))
    u = torch.relu(rows * a - (i >= 3).to(q.dtype))
    top = u.amax(-1, keepdim=True).detach()
    flat = top == 0
    x = (u / torch.where(flat, torch.ones_like(top), top)) ** power
    drowned = eps * torch.where(flat, torch.ones_like(top), top) ** -power
    return attend(x / (drowned + x.sum(-1, keepdim=True)), v)


def visual_redistribution(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kind: Tensor,
    start: Tensor,
    keep: float = 0.6,
    most: float = 0.5,
    least: float = 0.2,
    q_start: int = 0,
) -> Tensor:
    """By classes: text sinks, image sinks, the rest of the image; selected rows redistribute."""
    i, j = positions(q, k, q_start)
    p = softmax(scores(q, k), j <= i)
    visible = (j <= i).to(q.dtype)
    text_sink, image_sink, rest = (((kind == n)[:, None, None] * visible) for n in (1, 2, 3))
    image = image_sink + rest

    def total(x: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True)

    all_image = total((p + 1e-6) * image)
    portion = total(p * image_sink) / torch.where(all_image == 0, torch.ones_like(all_image), all_image)
    selected = (portion <= most) & (total(p * image) >= least) & (total(image_sink) > 0)
    selected = selected & (i >= start[:, None, None, None])
    budget = (1 - keep) * total(p * (text_sink + image_sink))
    of_rest = total(p * rest)
    given = budget * p * rest / torch.where(of_rest == 0, torch.ones_like(of_rest), of_rest)
    edited = p - (1 - keep) * p * (text_sink + image_sink) + given
    return attend(torch.where(selected, edited, p), v)


def act_sinks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    calibrated: Tensor,
    alpha: float = 0.1,
    beta: float = 0.4,
    q_start: int = 0,
) -> Tensor:
    i, j = positions(q, k, q_start)
    p = softmax(scores(q, k), j <= i)
    seen = p.sum(-2) / (k.shape[2] - j)
    sink = (seen > alpha) & ((seen > alpha).cumsum(-1) > 1)
    sink = sink[:, :, None] & (j <= i)
    on_sinks = (p * sink).sum(-1, keepdim=True)
    others = (p * ~sink).sum(-1, keepdim=True)
    more = p * (1 + (1 - beta) * on_sinks / torch.where(others == 0, torch.ones_like(others), others))
    edited = torch.where(sink, beta * p, more)
    return attend(torch.where(calibrated[:, None, None], edited, p), v)


def image_boost(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kind: Tensor,
    local_share: float = 0.7,
    summary_share: float = 0.4,
    q_start: int = 0,
) -> Tensor:
    i, j = positions(q, k, q_start)
    s = scores(q, k)
    share = (local_share * (kind == 1) + summary_share * (kind == 2)).to(q.dtype)[:, None, None]
    boosted = torch.where(i == k.shape[2] - 1, s + share * s.abs(), s)
    return attend(softmax(boosted, j <= i), v)


def contrastive_map(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    general_q: Tensor,
    general_k: Tensor,
    little: float = 0.01,
    first: int = 0,
    q_start: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    i, j = positions(q, k, q_start)
    p = softmax(scores(q, k), j <= i)
    contrast = p / (softmax(scores(general_q, general_k), j <= i) + little)
    later = (i - first + 1).clamp(min=0).to(q.dtype)
    logarithm = torch.where(p > 0, p, torch.ones_like(p)).log()
    return contrast, {"focus": (later * contrast).sum(-2), "entropy": -(p * logarithm).sum(-1)}


def refam(q: Tensor, k: Tensor, v: Tensor, stop: Tensor, q_start: int = 0) -> Tensor:
    p = softmax(scores(q, k)) * ~stop[:, None, None]
    return p / p.sum(-1, keepdim=True)


# ---------------------------------------------------------------------------------------------------------- inputs


def _kinds(r: Random) -> dict[str, Tensor]:
    return {"kind": r.integers(r.dims.B, r.dims.N, high=3)}


def _image(r: Random) -> dict[str, Tensor]:
    """An image of sinks and other tokens in the first half, text around it."""
    n = r.dims.N
    kind = r.integers(r.dims.B, n, high=2)
    kind[:, 1 : n // 2] += 2
    return {"kind": kind, "start": r.integers(r.dims.B, high=n // 2 + 1)}


def _stop_words(r: Random) -> dict[str, Tensor]:
    stop = r.integers(r.dims.B, r.dims.N, high=3) == 0
    stop[:, 0] = False
    return {"stop": stop}


def _two_runs(r: Random) -> dict[str, Tensor]:
    d = r.dims
    return {"general_q": r.normal(d.B, d.H, d.M, d.D), "general_k": r.normal(d.B, d.G, d.N, d.D)}


SQUARE: dict[str, Any] = {"lengths": ((7, 7), (63, 63), (130, 130))}

GALLERY |= {
    "gallery/lssar": Spec(lssar, consts={"power": 3}),
    "gallery/visual_redistribution": Spec(visual_redistribution, _image),
    "gallery/act_sinks": Spec(
        act_sinks, lambda r: {"calibrated": torch.arange(r.dims.H) != 1}, {"alpha": 0.05}, **SQUARE
    ),
    "gallery/image_boost": Spec(image_boost, _kinds),
    "gallery/contrastive_map": Spec(contrastive_map, _two_runs, plane_output=True, observed=True, costly=True),
    "gallery/refam": Spec(refam, _stop_words, plane_output=True),
}
