"""Identities of probes, perturbed scores, prompts, halos and routed heads."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.gallery.calls import HEADS, operands, run


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_efficient_probing_concatenates_slices_of_one_value_matrix() -> None:
    """y = concat_m sum_n softmax_n(u_m . x_n / sqrt(D)) (W x_n)[slice m], one key head for all."""
    x, u, w = normal(2, 9, 8), normal(HEADS, 8, seed=1), normal(8, HEADS * 3, seed=2)
    slices = (x @ w).unflatten(-1, (HEADS, 3)).transpose(1, 2)
    unread = torch.zeros(2, HEADS, 1, 8, dtype=torch.float64)
    found = run("gallery/efficient_probing", unread, unread.expand(-1, -1, 9, -1).contiguous(), slices, u=u, x=x)
    weights = torch.softmax(torch.einsum("md,bnd->bmn", u, x) / 8**0.5, -1)
    expected = torch.cat([(weights[:, m, :, None] * (x @ w[:, 3 * m : 3 * m + 3])).sum(1) for m in range(HEADS)], -1)
    torch.testing.assert_close(found[:, :, 0].flatten(1), expected)


def test_lama_is_a_bilinear_score_of_rank_one_normalised_across_heads() -> None:
    """f_hj = tanh(c^T p_h q_h^T x_j); each token's scores have norm 1 over the heads, and padding gets nothing."""
    c, p, projection, x = normal(2, 8), normal(8, HEADS, seed=1), normal(8, HEADS, seed=2), normal(2, 9, 8, seed=3)
    valid = torch.arange(9) < torch.tensor([[9], [5]])
    unread = torch.zeros(2, HEADS, 1, 8, dtype=torch.float64)
    f = torch.stack(
        [torch.tanh((c @ torch.outer(p[:, h], projection[:, h]))[:, None] @ x.mT)[:, 0] for h in range(4)], 1
    )
    s = f / f.norm(dim=1, keepdim=True)
    torch.testing.assert_close((s**2).sum(1), torch.ones(2, 9, dtype=torch.float64))
    sentence = torch.softmax(s.masked_fill(~valid[:, None], -1e9), -1) @ x
    values = x[:, None].expand(-1, HEADS, -1, -1).contiguous()
    tensors = {"context": c @ p, "token": (x @ projection).mT.contiguous(), "valid": valid}
    found = run("gallery/lama", unread, torch.zeros_like(values), values, **tensors)
    torch.testing.assert_close(found[:, :, 0], sentence, atol=1e-6, rtol=1e-6)  # context and token are f32


def test_a_perturbation_along_the_gradient_raises_the_loss_by_its_norm() -> None:
    """s + eps g / |g| with g the gradient of the loss at s: to first order the loss grows by eps |g|."""
    q, k, v = operands(8)
    target = normal(*q.shape, seed=5)

    def loss(r: Tensor, eps: float) -> Tensor:
        return ((run("gallery/score_perturbation", q, k, v, consts={"eps": eps}, r=r) - target) ** 2).mean()

    r = torch.zeros(2, HEADS, 8, 8, dtype=torch.float64, requires_grad=True)
    base = loss(r, 1.0)
    (g,) = torch.autograd.grad(base, [r])
    grown = loss(g / g.norm(), 1e-4) - base
    torch.testing.assert_close(grown, 1e-4 * g.norm(), rtol=1e-3, atol=0.0)


def test_prompts_of_other_groups_are_dropped_and_not_made_up_for() -> None:
    q, k, _ = operands(9)
    ones = torch.ones_like(k)
    group = torch.tensor([-1, 0, 0, 1, 1, 2, 2, -1, -1], dtype=torch.int32)
    chosen = torch.rand(2, 9, 3, generator=torch.Generator().manual_seed(2)) < 0.5
    kept = run("gallery/tcpa", q, k, ones, group=group, chosen=chosen)
    p = torch.softmax(q @ k.mT / 4, -1)
    lost = sum((p * (group == n)).sum(-1) * ~chosen[:, None, :, n] for n in range(3))
    torch.testing.assert_close(kept[..., 0], 1 - lost)
    whole = run("gallery/tcpa", q, k, ones, group=group, chosen=torch.ones_like(chosen))
    torch.testing.assert_close(whole, torch.ones_like(whole))


def test_templates_do_not_see_the_search_region() -> None:
    q, k, v = operands(12)
    other_k, other_v = k.clone(), v.clone()
    other_k[:, :, 5:] += 1
    other_v[:, :, 5:] -= 1
    one = run("gallery/mixformer", q, k, v, consts={"templates": 5})
    two = run("gallery/mixformer", q, other_k, other_v, consts={"templates": 5})
    torch.testing.assert_close(one[:, :, :5], two[:, :, :5], atol=0.0, rtol=0.0)
    assert ((one - two)[:, :, 5:].abs().amax(-1) > 0).all()


def test_the_halo_beyond_the_border_takes_part() -> None:
    """Equal scores, values 1 on the grid and 0 in the padding: a block's share of its window that lies on the grid."""
    rows = cols = 6
    inside = torch.zeros(rows + 2, cols + 2, dtype=torch.float64)
    inside[1:-1, 1:-1] = 1
    q = torch.zeros(1, 1, rows * cols, 4, dtype=torch.float64)
    k = torch.zeros(1, 1, inside.numel(), 4, dtype=torch.float64)
    table = torch.zeros(7, 4, dtype=torch.float64)
    v = inside.flatten()[None, None, :, None].expand(-1, -1, -1, 4).contiguous()
    consts = {"cols": cols, "block": 2, "halo": 1}
    o = run("gallery/halonet", q, k, v, consts=consts, rel_row=table, rel_col=table)[0, 0, :, 0].unflatten(0, (6, 6))
    expected = torch.tensor([[9, 12, 9], [12, 16, 12], [9, 12, 9]], dtype=torch.float64) / 16
    torch.testing.assert_close(o, expected.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_gates_of_mixed_heads_share_what_their_kind_has() -> None:
    """Shared gates sum to side_0 * shared, routed ones to side_1 * routed, or to 0 where no routed head is kept."""
    q = torch.zeros(1, HEADS, 6, 4, dtype=torch.float64)
    ones = torch.ones_like(q)
    logits, balance = normal(1, 6, HEADS).float(), normal(1, 6, 2, seed=1).float()
    kept = torch.zeros(1, 6, HEADS, dtype=torch.bool)
    kept[:, 2:, 2], kept[:, 4:, 3] = True, True
    consts = {"shared": 2, "routed": 2}
    gate = run("gallery/moh", q, q, ones, consts=consts, logits=logits, kept=kept, balance=balance)[0, :, :, 0]
    side = 2 * torch.softmax(balance.double(), -1)[0].T
    torch.testing.assert_close(gate[:2].sum(0), 2 * side[0])
    torch.testing.assert_close(gate[2:].sum(0), 2 * side[1] * torch.tensor([0, 0, 1, 1, 1, 1]))
    assert (gate[3, 2:4] == 0).all() and (gate[3, 4:] > 0).all()
