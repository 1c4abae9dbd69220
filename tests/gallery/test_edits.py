"""Identities and edges of what is done to scores and weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.gallery.calls import HEADS, LENGTH, observed, operands, run

close = torch.testing.assert_close


def literal_lssar(q: Tensor, k: Tensor, v: Tensor, power: int) -> Tensor:
    """Both stages as the paper writes them, powers of u itself."""
    n = torch.arange(1, q.shape[2] + 1, dtype=q.dtype)[:, None]
    cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)
    f = F.softplus(math.log(q.shape[-1]) * n.log() * cosine).tril()
    a = f / (1e-8 + f.sum(-1, keepdim=True))
    u = torch.relu(n * a - (n > 3).to(q.dtype)) ** power
    return u / (1e-8 + u.sum(-1, keepdim=True)) @ v


def test_lssar_is_what_the_powers_themselves_give() -> None:
    q, k, v = operands()
    for power in (3, 15):
        close(run("gallery/lssar", q, k, v, consts={"power": power}), literal_lssar(q, k, v, power))


def test_lssar_first_rows() -> None:
    """Row 0 has score ln 1 = 0 and attends to itself."""
    q, k, v = operands()
    close(run("gallery/lssar", q, k, v)[:, :, 0], v[:, :, 0])


def test_lssar_of_even_rows_is_zero() -> None:
    """Where all weights are equal nothing exceeds the offset, from the fourth row on."""
    q, _, v = operands()
    o = run("gallery/lssar", q, q[:, :, :1].expand(-1, -1, LENGTH, -1).contiguous(), v)
    assert o[:, :, 3:].abs().max() < 1e-6
    assert o[:, :, :3].abs().min() > 0


def test_lssar_survives_where_powers_overflow() -> None:
    """In f32, u ** 15 is infinite once a row of 600 gives most of its weight to one key."""
    direction = F.normalize(torch.ones(1, 1, 1, 64), dim=-1)
    q = direction.expand(1, 1, 600, 64).contiguous()
    k = -q.clone()
    k[:, :, 5] = q[:, :, 5]
    v = torch.randn(1, 1, 600, 8, generator=torch.Generator().manual_seed(0))
    assert not torch.isfinite(literal_lssar(q, k, v, 15)[0, 0, -1]).all()
    close(run("gallery/lssar", q, k, v)[0, 0, -1], v[0, 0, 5], rtol=1e-5, atol=1e-5)


def image_inputs() -> dict[str, Tensor]:
    kind = torch.zeros(2, LENGTH, dtype=torch.int32)
    kind[:, 0], kind[:, 2:20] = 1, 3
    kind[:, 4], kind[:, 11] = 2, 2
    return {"kind": kind, "start": torch.tensor([20, 25], dtype=torch.int32)}


def test_visual_redistribution_keeps_the_sum_of_a_row() -> None:
    q, k, v = operands()
    o = run("gallery/visual_redistribution", q, k, torch.ones_like(v), **image_inputs())
    close(o, torch.ones_like(o))


def test_visual_redistribution_leaves_rows_before_the_text_alone() -> None:
    qkv = operands()
    difference = (run("gallery/visual_redistribution", *qkv, **image_inputs()) - run("causal", *qkv)).abs()
    assert difference[0, :, :20].max() < 1e-12
    assert difference[1, :, :25].max() < 1e-12
    assert difference[:, :, 25:].max() > 1e-3


def test_visual_redistribution_without_image_sinks_changes_nothing() -> None:
    qkv = operands()
    tensors = image_inputs()
    tensors["kind"][tensors["kind"] == 2] = 3
    close(run("gallery/visual_redistribution", *qkv, **tensors), run("causal", *qkv))


def test_act_keeps_row_sums_the_first_row_and_heads_without_calibration() -> None:
    q, k, v = operands()
    calibrated = torch.tensor([True, False, True, True])
    consts: dict[str, int | float] = {"alpha": 0.03}
    even = run("gallery/act_sinks", q, k, torch.ones_like(v), consts=consts, calibrated=calibrated)
    close(even, torch.ones_like(even))
    o, plain = run("gallery/act_sinks", q, k, v, consts=consts, calibrated=calibrated), run("causal", q, k, v)
    close(o[:, :, 0], v[:, :, 0])
    close(o[:, 1], plain[:, 1])
    assert (o - plain)[:, 0].abs().max() > 1e-3


def test_act_spares_the_first_sink() -> None:
    """With one sink, at position 0, nothing is taken from it."""
    _, _, v = operands()
    q = torch.ones_like(v)
    k = torch.zeros_like(v)
    k[:, :, 0] = 1
    calibrated = torch.ones(HEADS, dtype=torch.bool)
    o = run("gallery/act_sinks", q, k, v, consts={"alpha": 0.2}, calibrated=calibrated)
    close(o, run("causal", q, k, v))


def test_image_boost_touches_the_last_query_alone() -> None:
    qkv = operands()
    kind = torch.arange(LENGTH, dtype=torch.int32)[None].expand(2, -1) % 3
    difference = (run("gallery/image_boost", *qkv, kind=kind.contiguous()) - run("causal", *qkv)).abs()
    assert difference[:, :, :-1].max() < 1e-12
    assert difference[:, :, -1].max() > 1e-3


def test_a_map_against_itself() -> None:
    """Equal runs contrast as p / (p + little)."""
    q, k, v = operands()
    contrast, seen = observed("gallery/contrastive_map", q, k, v, general_q=q, general_k=k)
    p = (q @ k.transpose(-1, -2) / 4).masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -math.inf).softmax(-1)
    close(contrast, p / (p + 0.01))
    close(seen["focus"], (torch.arange(1, LENGTH + 1)[:, None] * contrast).sum(2))


def test_maps_without_stop_words_sum_to_one() -> None:
    qkv = operands()
    stop = torch.zeros(2, LENGTH, dtype=torch.bool)
    stop[:, 1::3] = True
    p = run("gallery/refam", *qkv, stop=stop)
    assert not p[..., 1::3].any()
    close(p.sum(-1), torch.ones(2, HEADS, LENGTH, dtype=torch.float64))


def test_rollout_row_by_row_is_the_first_row_of_the_product() -> None:
    """S_2 S_1 with S = (mean over heads of p + I) / 2: from the last layer down, only one row is needed (DCAL)."""
    layers = [operands(seed=s) for s in (1, 2)]
    mixed = []
    for q, k, _ in layers:
        p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1).mean(1)
        mixed.append(0.5 * p + 0.5 * torch.eye(LENGTH, dtype=p.dtype))
    row = torch.zeros(2, LENGTH, dtype=torch.float64)
    row[:, 0] = 1
    for qkv in reversed(layers):
        row = observed("gallery/attention_rollout", *qkv, row=row)[1]["next_row"].to(row.dtype)
    close(row, (mixed[1] @ mixed[0])[:, 0])
