"""Identities and edges of the biases: factors against tables, borders of windows, masks that are finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.formulas import attend, positions, scores, softmax
from tests.gallery.biases import rmt_gamma
from tests.gallery.calls import HEADS, LENGTH, operands, run, weights_of


def test_alibi_in_three_forms() -> None:
    qkv = operands()
    expected = run("alibi", *qkv)
    assert_close(run("gallery/alibi_keys", *qkv), expected)
    assert_close(run("gallery/alibi_factors", *qkv), expected)


def test_alibi_prefers_what_is_near() -> None:
    """Factors of the wrong sign, as one released script has them, would give the first value."""
    q, k, v = operands()
    steep = torch.full((HEADS,), 60.0, dtype=torch.float64)
    for name in ("alibi_keys", "alibi_factors", "alibi_symmetric"):
        assert_close(run(f"gallery/{name}", q, k, v, slope=steep), v, rtol=0, atol=1e-6)


def test_squared_distance_has_rank_five() -> None:
    q, k, v = operands()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, LENGTH, 3, generator=generator, dtype=torch.float64)
    w = torch.randn(2, HEADS, LENGTH, generator=generator, dtype=torch.float64)
    size, one = x.square().sum(-1, keepdim=True), torch.ones(2, LENGTH, 1, dtype=torch.float64)
    left = w[..., None] * torch.cat([2 * x, -size, one], -1)[:, None]
    right = torch.cat([x, one, -size], -1)[:, None].expand(-1, HEADS, -1, -1)
    factors = {"query_factor": left, "key_factor": right.contiguous()}
    assert_close(
        run("gallery/squared_distance", q, k, v, x=x, w=w),
        run("gallery/low_rank_bias", q, k, v, consts={"R": 5}, **factors),
    )


def test_a_cosine_has_rank_two() -> None:
    q, k, v = operands()
    frequency = torch.linspace(0.1, 1.0, HEADS, dtype=torch.float64)
    strength = torch.linspace(-1.0, 2.0, HEADS, dtype=torch.float64)
    angle = frequency[:, None] * torch.arange(LENGTH)
    wave = torch.stack([angle.cos(), angle.sin()], -1).expand(2, -1, -1, -1)
    factors = {"query_factor": strength[:, None, None] * wave, "key_factor": wave.contiguous()}
    assert_close(
        run("gallery/cosine_bias", q, k, v, frequency=frequency, strength=strength),
        run("gallery/low_rank_bias", q, k, v, consts={"R": 2}, **factors),
    )


def test_svd_of_a_table_gives_the_table() -> None:
    q, k, v = operands(batch=1)
    generator = torch.Generator().manual_seed(2)
    table = torch.randn(HEADS, LENGTH, 6, generator=generator, dtype=torch.float64) @ torch.randn(
        HEADS, 6, LENGTH, generator=generator, dtype=torch.float64
    )
    u, s, vt = torch.linalg.svd(table)
    root = s[:, None, :6].sqrt()
    factors = {"query_factor": (u[..., :6] * root)[None], "key_factor": (vt.transpose(1, 2)[..., :6] * root)[None]}
    assert_close(
        run("gallery/low_rank_bias", q, k, v, consts={"R": 6}, **factors),
        run("gallery/dense_bias", q, k, v, table=table),
    )


def swin_v2_inputs(logit_scale: float) -> dict[str, Tensor]:
    region = torch.zeros(1, 49, dtype=torch.int32)
    region[:, 21:] = 1
    table = torch.full((1, 13, 13), -40.0, dtype=torch.float64)  # 16 sigmoid(-40) is 0
    return {"logit_scale": torch.tensor([logit_scale], dtype=torch.float64), "table": table, "region": region}


def test_swin_v2_limits_its_scale() -> None:
    q, k, v = (x[:1, :1] for x in operands(49))
    clamped, limit = (
        run("gallery/swin_v2", q, k, v, consts={"window": 7}, **swin_v2_inputs(x)) for x in (9.0, math.log(100))
    )
    assert_close(clamped, limit)


def test_swin_v2_leaks_through_its_finite_mask() -> None:
    """With every key of its region opposite to the query, and the others along it, -100 + 100 beats -100."""
    q = torch.ones(1, 1, 49, 4, dtype=torch.float64)
    k = torch.where(torch.arange(49)[:, None] < 21, -q, q)
    v = torch.arange(49.0, dtype=torch.float64)[None, None, :, None].expand(1, 1, 49, 4).contiguous()
    o = run("gallery/swin_v2", q, k, v, consts={"window": 7}, **swin_v2_inputs(9.0))
    # Scores: -100 in the first region (its own keys), 100 - 100 = 0 in the second; from the second, 100 to itself.
    assert_close(o[0, 0, 0], v[0, 0, 21:].mean(0))
    assert_close(o[0, 0, 48], v[0, 0, 21:].mean(0))


def test_shifted_windows_are_smaller_at_the_border() -> None:
    consts: dict[str, int | float] = {"width": 12, "window": 4, "shift": 2}
    table = torch.zeros(1, 7, 7, dtype=torch.float64)
    p = weights_of("gallery/swin", 144, consts, table=table).view(12, 12, 12, 12)
    corner = torch.zeros(12, 12, dtype=torch.float64)
    corner[:2, :2] = 1 / 4
    assert_close(p[0, 0], corner)
    assert_close(p[1, 1], corner)
    inner = torch.zeros(12, 12, dtype=torch.float64)
    inner[2:6, 6:10] = 1 / 16
    assert_close(p[5, 7], inner)


def test_urpe_starts_as_plain_relative_attention_and_is_not_renormalised() -> None:
    q, k, v = operands()
    generator = torch.Generator().manual_seed(3)
    inside = torch.randn(HEADS, 39, generator=generator, dtype=torch.float64)
    present = torch.ones(2, LENGTH, dtype=torch.bool)
    present[:, -5:] = False
    consts: dict[str, int | float] = {"T": 20}
    i, j = positions(q, k, 0)
    bias = inside[:, (j - i).clamp(-19, 19) + 19]
    plain = attend(softmax(scores(q, k) + bias, present[:, None, None].expand(-1, 1, LENGTH, -1)), v)
    for factor in (1.0, -2.0):
        after = torch.full((HEADS, 39), factor, dtype=torch.float64)
        o = run("gallery/urpe_tables", q, k, v, consts=consts, inside=inside, after=after, present=present)
        assert_close(o, factor * plain)


@pytest.mark.parametrize("name", ["t5", "t5_decoder"])
def test_t5_buckets_where_they_change(name: str) -> None:
    """The published boundaries: 8, 12, 16, 23, 32, 46, 64, 91 in both directions; twice as fine when causal."""
    last = 150
    table = torch.arange(32, dtype=torch.float64)[None] / 4
    p = weights_of(f"gallery/{name}", last, {}, table=table)
    row = p[-1].log()
    bucket = ((row - row[-1]) * 4).round().to(torch.int64).flip(0).tolist()
    starts = [n for n in range(1, last) if bucket[n] != bucket[n - 1]]
    if name == "t5":
        assert starts == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    else:
        assert starts == [*range(1, 17), 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]


def per_axis(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """Attention along the last grid axis: [B, H, rows, length, C], decay inside the softmax."""
    n = torch.arange(q.shape[3])
    s = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + gamma.log()[:, None, None, None] * (n[:, None] - n).abs()
    return s.softmax(-1) @ v


def test_manhattan_decomposes_into_rows_and_columns() -> None:
    q, k, v = operands(63)
    consts: dict[str, int | float] = {"width": 9}
    between = run("gallery/manhattan_rows", q, k, v, consts=consts)
    found = run("gallery/manhattan_columns", q, k, between, consts=consts)
    gamma = rmt_gamma(HEADS, q)
    by_row, k_by_row, v_by_row = (x.unflatten(2, (7, 9)) for x in (q, k, v))
    across = per_axis(by_row, k_by_row, v_by_row, gamma)
    down = per_axis(by_row.transpose(2, 3), k_by_row.transpose(2, 3), across.transpose(2, 3), gamma)
    expected = down.transpose(2, 3).flatten(2, 3)
    assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_manhattan_inside_and_outside_the_softmax_differ() -> None:
    q, k, v = operands(63)
    gamma = torch.full((HEADS,), 0.8, dtype=torch.float64)
    consts: dict[str, int | float] = {"width": 9}
    one = torch.ones_like(gamma)
    inside, outside = (run(n, q, k, v, consts=consts, gamma=gamma) for n in ("gallery/manhattan_inside", "manhattan"))
    assert (inside - outside).abs().max() > 0.1
    assert_close(run("manhattan", q, k, v, consts=consts, gamma=one), run("softmax", q, k, v))


def test_local_music_sees_its_block_and_the_one_before() -> None:
    rel = torch.zeros(1, 18, 60, dtype=torch.float64)
    p = weights_of("gallery/music_local", 60, {"block": 9}, rel=rel)
    for i in (0, 8, 9, 17, 18, 26, 59):
        first = max(0, 9 * (i // 9 - 1))
        expected = torch.zeros(60, dtype=torch.float64)
        expected[first : i + 1] = 1 / (i + 1 - first)
        assert_close(p[i], expected)


def test_a_polynomial_has_one_rank_more_than_its_degree() -> None:
    """Without its constant term, which cancels over a row: x^n = ((i - j) / N)^n by the binomial theorem."""
    q, k, v = operands()
    coefficient = torch.randn(HEADS, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    place = torch.arange(LENGTH, dtype=torch.float64) / LENGTH
    left = [torch.zeros(HEADS, LENGTH, dtype=torch.float64) for _ in range(4)]
    for n in (1, 2, 3):
        for r in range(n + 1):
            left[r] += coefficient[:, n - 1, None] * math.comb(n, r) * (-1) ** r * place ** (n - r)
    factors = torch.stack(left, -1).expand(2, -1, -1, -1).contiguous()
    powers = torch.stack([place**r for r in range(4)], -1).expand(2, HEADS, -1, -1).contiguous()
    o = run("gallery/polynomial_bias", q, k, v, coefficient=coefficient)
    assert_close(o, run("gallery/low_rank_bias", q, k, v, consts={"R": 4}, query_factor=factors, key_factor=powers))


def test_a_multiplied_bias_is_a_product_of_two_scores() -> None:
    q, k, v = operands()
    u, w = torch.randn(2, 2, HEADS, LENGTH, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    s = (q @ k.mT) * (u @ w.mT) / 4
    o = run("gallery/multiplicative_bias", q, k, v, consts={"R": 3}, query_factor=u, key_factor=w)
    assert_close(o, torch.softmax(s, -1) @ v)


def test_a_gathered_embedding_is_the_skewed_product() -> None:
    """Q E^T with what lies before the sequence cleared, a column put before it, and the rows cut anew (Music
    Transformer, section 3.4.1)."""
    q, k, v = operands()
    rel = torch.randn(HEADS, LENGTH, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    n = LENGTH
    against = q @ rel.mT
    against = against * (torch.arange(n) >= n - 1 - torch.arange(n)[:, None])
    skewed = torch.nn.functional.pad(against, (1, 0)).reshape(2, HEADS, n + 1, n)[:, :, 1:]
    s = (q @ k.mT + skewed) / 4
    s = s.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -math.inf)
    assert_close(run("music", q, k, v, rel=rel), torch.softmax(s, -1) @ v)
