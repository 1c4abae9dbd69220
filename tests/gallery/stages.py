"""Several stages, normalisers over other axes and gates of the gallery, as dense formulas from their papers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.formulas import GALLERY, Random, Spec, attend, per_query_head, positions, scores, softmax

Seen = tuple[Tensor, dict[str, Tensor]]


def dependency_vit(q: Tensor, k: Tensor, v: Tensor, head_choice: Tensor, message: Tensor, q_start: int = 0) -> Seen:
    p = torch.softmax(scores(q, k), -1)
    sent = head_choice[:, :, :, None] * message[:, None, :, None]
    mass = (p * sent.to(p.dtype)).sum((1, 2))
    return p.transpose(-1, -2).to(v.dtype) @ (sent * per_query_head(v, q)), {"mass": mass}


def plan(s: Tensor, mu: Tensor, nu: Tensor, steps: int) -> Tensor:
    """Sinkhorn's scaling of exp(s): `steps` times rows to the sums mu, in between columns to the sums nu."""
    x = torch.exp(s - s.detach().amax(-1, keepdim=True))
    for step in range(steps):
        x = x * (mu / x.sum(-1, keepdim=True))
        if step < steps - 1:
            x = x * (nu / x.sum(-2, keepdim=True))
    return x


def sinkhorn_attention(q: Tensor, k: Tensor, v: Tensor, eps: float = 0.5, q_start: int = 0) -> Tensor:
    """The plan of uniform marginals, its rows scaled to 1."""
    m, n = q.shape[2], k.shape[2]
    mu, nu = q.new_full((m, 1), 1 / m), q.new_full((1, n), 1 / n)
    return attend(m * plan(scores(q, k) / eps, mu, nu, 3), v)


def transport_plan(
    q: Tensor, k: Tensor, v: Tensor, mu: Tensor, nu: Tensor, eps: float = 0.5, steps: int = 2, q_start: int = 0
) -> Tensor:
    mass = mu[:, None, :, None]
    return attend(plan(scores(q, k) / eps, mass, nu[:, None, None, :], steps + 1) / mass, v)


def kernel_mixture(q: Tensor, k: Tensor, v: Tensor, share_of: Tensor, q_start: int = 0) -> Tensor:
    s = scores(q, k)
    one = s.new_ones(())
    kernels = (torch.softmax(s, -1), torch.softmax(s, -2), plan(s, one, one, 2))
    parts = share_of.unbind(-1)
    return sum((p[..., None] * attend(kernel, v) for p, kernel in zip(parts, kernels, strict=True)), 0 * v[:, :1, :1])


# ------------------------------------------------------------------------------------------- gates and routed heads


def moh(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logits: Tensor,
    kept: Tensor,
    balance: Tensor,
    shared: int,
    routed: int,
    q_start: int = 0,
) -> Tensor:
    own = shared * torch.softmax(logits[..., :shared], -1)
    picked = torch.softmax(logits[..., shared:], -1) * kept[..., shared:]
    total = picked.sum(-1, keepdim=True)
    picked = routed * picked / torch.where(total == 0, torch.ones_like(total), total)
    side = 2 * torch.softmax(balance, -1)
    gate = torch.cat([side[..., :1] * own, side[..., 1:] * picked], -1)
    return attend(torch.softmax(scores(q, k), -1), v) * gate.transpose(1, 2)[..., None]


def shrp(q: Tensor, k: Tensor, v: Tensor, expert: Tensor, trust: Tensor, q_start: int = 0) -> Seen:
    picked = torch.nn.functional.one_hot(expert.long(), q.shape[1]).transpose(1, 2).to(trust.dtype)
    return attend(torch.softmax(scores(q, k), -1), v) * (picked * trust)[..., None], {"usage": picked.mean(-1)}


# ------------------------------------------------------------------------------------------- queries from elsewhere


def efficient_probing(q: Tensor, k: Tensor, v: Tensor, u: Tensor, x: Tensor, q_start: int = 0) -> Tensor:
    weights = torch.softmax(torch.einsum("hd,bjd->bhj", u, x) / math.sqrt(x.shape[-1]), -1)
    return attend(weights[:, :, None].expand(-1, -1, q.shape[2], -1), v)


def lama(q: Tensor, k: Tensor, v: Tensor, context: Tensor, token: Tensor, valid: Tensor, q_start: int = 0) -> Tensor:
    f = torch.tanh(context[:, :, None] * token)
    s = torch.nn.functional.normalize(f, dim=1, eps=0.0).masked_fill(~valid[:, None], -1e9)
    return attend(torch.softmax(s, -1)[:, :, None].expand(-1, -1, q.shape[2], -1), v)


# ------------------------------------------------------------------------------------------------------ two stages


def agent_bias(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agent: Tensor,
    to_agent: Tensor,
    to_agent_row: Tensor,
    to_agent_col: Tensor,
    from_agent: Tensor,
    from_agent_row: Tensor,
    from_agent_col: Tensor,
    cols: int,
    q_start: int = 0,
) -> Tensor:
    """On the grid: the maps are [H, A, rows, cols] plus a row term [.., rows, 1] and a column term [.., 1, cols]."""
    grid = (-1, cols)
    gathering = to_agent.unflatten(-1, grid) + to_agent_row[..., None] + to_agent_col[:, :, None]
    spreading = from_agent.unflatten(1, grid) + from_agent_row[:, :, None] + from_agent_col[:, None]
    gathered = attend(torch.softmax(scores(agent, k) + gathering.flatten(-2), -1), v)
    return attend(torch.softmax(scores(q, agent) + spreading.flatten(1, 2), -1), gathered)


def agent_sd(q: Tensor, k: Tensor, v: Tensor, agent: Tensor, residual: float = 0.075, q_start: int = 0) -> Tensor:
    gathered = attend(torch.softmax(scores(agent, k), -1), v)
    stage = torch.softmax(scores(q, agent, q.shape[-1] ** (-0.5 * 0.3)), -1)
    return attend(stage, gathered) + residual * per_query_head(v, q)


def mqsa(q: Tensor, k: Tensor, v: Tensor, x: Tensor, L: int = 3, alpha: float = 0.5, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    rows = [x[:, :, max(n - L + 1, 0) : n + 1].mean(2) for n in range(q_start, q_start + q.shape[2])]
    short = attend(softmax(scores(q, k), j <= i), v)
    return alpha * short + (1 - alpha) * attend(softmax(scores(torch.stack(rows, 2), k), j <= i), v)


def paired_images(q: Tensor, k: Tensor, v: Tensor, other_k: Tensor, other_v: Tensor, q_start: int = 0) -> Tensor:
    return attend(torch.softmax(scores(q, torch.cat([k, other_k], 2)), -1), torch.cat([v, other_v], 2))


# -------------------------------------------------------------------------------------------------------- tensors


def children(r: Random) -> dict[str, Tensor]:
    choice = torch.softmax(r.normal(r.dims.B, r.dims.H, r.dims.N).float(), 1).to(r.dtype)
    return {"head_choice": choice, "message": r.uniform(r.dims.B, r.dims.N, low=0.1, high=1.0).to(r.dtype)}


def marginals(r: Random) -> dict[str, Tensor]:
    mu = r.uniform(r.dims.B, r.dims.M, low=0.5, high=1.5)
    nu = r.uniform(r.dims.B, r.dims.N, low=0.5, high=1.5)
    return {"mu": mu / mu.sum(-1, keepdim=True), "nu": nu / nu.sum(-1, keepdim=True)}


def routes(r: Random) -> dict[str, Tensor]:
    shape = (r.dims.B, r.dims.M, r.dims.H)
    kept = r.integers(*shape, high=2).bool()
    return {"logits": r.normal(*shape, dtype=r.f32), "kept": kept, "balance": r.normal(*shape[:2], 2, dtype=r.f32)}


def agents(r: Random) -> dict[str, Tensor]:
    d = r.dims
    rows, cols, a = d.N // 7, 7, 5
    return {
        "agent": r.normal(d.B, d.H, a, d.D),
        "to_agent": r.normal(d.H, a, d.N),
        "to_agent_row": r.normal(d.H, a, rows),
        "to_agent_col": r.normal(d.H, a, cols),
        "from_agent": r.normal(d.H, d.M, a),
        "from_agent_row": r.normal(d.H, rows, a),
        "from_agent_col": r.normal(d.H, cols, a),
    }


GALLERY.update(
    {
        "gallery/dependency_vit": Spec(dependency_vit, children, lengths=((7, 7), (130, 130)), observed=True),
        "gallery/sinkhorn_attention": Spec(sinkhorn_attention, costly=True),
        "gallery/transport_plan": Spec(transport_plan, marginals, costly=True),
        "gallery/kernel_mixture": Spec(
            kernel_mixture,
            lambda r: {"share_of": torch.softmax(r.normal(r.dims.B, r.dims.H, r.dims.M, 3, dtype=r.f32), -1)},
            costly=True,
        ),
        "gallery/moh": Spec(moh, routes, {"shared": 1, "routed": 1}),
        "gallery/shrp": Spec(
            shrp,
            lambda r: {
                "expert": r.integers(r.dims.B, r.dims.M, high=r.dims.H),
                "trust": r.uniform(r.dims.B, r.dims.H, r.dims.M, low=0.2, high=1.0),
            },
            observed=True,
        ),
        "gallery/efficient_probing": Spec(
            efficient_probing,
            lambda r: {"u": r.normal(r.dims.H, r.dims.D), "x": r.normal(r.dims.B, r.dims.N, r.dims.D)},
            lengths=((1, 63), (1, 130)),
        ),
        "gallery/lama": Spec(
            lama,
            lambda r: {
                "context": r.normal(r.dims.B, r.dims.H, dtype=r.f32),
                "token": r.normal(r.dims.B, r.dims.H, r.dims.N, dtype=r.f32),
                "valid": r.integers(r.dims.B, r.dims.N, high=4) > 0,
            },
            lengths=((1, 7), (1, 130)),
        ),
        "gallery/agent_bias": Spec(agent_bias, agents, {"cols": 7}, costly=True, lengths=((63, 63), (21, 21))),
        "gallery/agent_sd": Spec(
            agent_sd,
            lambda r: {"agent": r.normal(r.dims.B, r.dims.H, 9, r.dims.D)},
            costly=True,
            lengths=((7, 7), (130, 130)),
        ),
        "gallery/mqsa": Spec(
            mqsa,
            lambda r: {"x": r.normal(r.dims.B, r.dims.H, r.dims.N, r.dims.D)},
            queries_within_keys=True,
            costly=True,
        ),
        "gallery/paired_images": Spec(
            paired_images,
            lambda r: {
                "other_k": r.normal(r.dims.B, r.dims.G, 19, r.dims.D),
                "other_v": r.normal(r.dims.B, r.dims.G, 19, r.dims.E),
            },
        ),
    }
)
