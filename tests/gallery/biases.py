"""Biases of positions, tables, factors and points, as dense PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.formulas import (
    GALLERY,
    Random,
    Spec,
    alibi_slopes,
    attend,
    heads,
    per_query_head,
    positions,
    scores,
    softmax,
)

# -------------------------------------------------------------------------------------------------------- FlashBias


def alibi_symmetric(q: Tensor, k: Tensor, v: Tensor, slope: Tensor | None = None, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    slope = alibi_slopes(q.shape[1], q) if slope is None else slope
    return attend(softmax(scores(q, k) - heads(slope) * (i - j).abs()), v)


def alibi_keys(q: Tensor, k: Tensor, v: Tensor, slope: Tensor | None = None, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    slope = alibi_slopes(q.shape[1], q) if slope is None else slope
    return attend(softmax(scores(q, k) + heads(slope) * j, j <= i), v)


def alibi_factors(q: Tensor, k: Tensor, v: Tensor, slope: Tensor | None = None, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    slope = alibi_slopes(q.shape[1], q) if slope is None else slope
    left = -heads(slope) * torch.cat([torch.ones_like(i), i], -1)
    right = torch.stack([-j[0], torch.ones_like(j[0])], -1).to(left.dtype)
    return attend(softmax(scores(q, k) + left @ right.T, j <= i), v)


def low_rank_bias(
    q: Tensor, k: Tensor, v: Tensor, query_factor: Tensor, key_factor: Tensor, R: int = 16, q_start: int = 0
) -> Tensor:
    """Queries and keys widened by the factors: softmax([q / sqrt(D), f] [k, g]^T) v."""
    wide_q = torch.cat([q / math.sqrt(q.shape[-1]), query_factor], -1)
    wide_k = torch.cat([per_query_head(k, q), key_factor], -1)
    return attend(softmax(wide_q @ wide_k.transpose(-1, -2)), v)


def dense_bias(q: Tensor, k: Tensor, v: Tensor, table: Tensor, q_start: int = 0) -> Tensor:
    return attend(softmax(scores(q, k) + table), v)


def squared_distance(q: Tensor, k: Tensor, v: Tensor, x: Tensor, w: Tensor, space: int = 3, q_start: int = 0) -> Tensor:
    rows = x[:, q_start : q_start + q.shape[2]]
    squared = ((rows[:, :, None] - x[:, None]) ** 2).sum(-1)
    return attend(softmax(scores(q, k) - w[..., None] * squared[:, None]), v)


def cosine_bias(q: Tensor, k: Tensor, v: Tensor, frequency: Tensor, strength: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    return attend(softmax(scores(q, k) + heads(strength) * torch.cos(heads(frequency) * (i - j))), v)


def polynomial_bias(q: Tensor, k: Tensor, v: Tensor, coefficient: Tensor, q_start: int = 0) -> Tensor:
    """By Horner's rule."""
    i, j = positions(q, k, q_start)
    x = ((i - j) / k.shape[2]).to(coefficient.dtype)
    first, second, third = coefficient[:, :, None, None].unbind(1)
    return attend(softmax(scores(q, k) + x * (first + x * (second + x * third))), v)


def multiplicative_bias(
    q: Tensor, k: Tensor, v: Tensor, query_factor: Tensor, key_factor: Tensor, R: int = 4, q_start: int = 0
) -> Tensor:
    """The widened form: channels times rank, q_d U_r against k_d V_r."""
    wide_q = (q[..., :, None] * query_factor[..., None, :]).flatten(-2)
    wide_k = (per_query_head(k, q)[..., :, None] * key_factor[..., None, :]).flatten(-2)
    return attend(softmax(wide_q @ wide_k.transpose(-1, -2) / math.sqrt(q.shape[-1])), v)


def pair_bias_factors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_factor: Tensor,
    key_factor: Tensor,
    present: Tensor,
    R: int = 96,
    q_start: int = 0,
) -> Tensor:
    bias = torch.einsum("xhir,xhjr->xhij", query_factor, key_factor)
    return attend(softmax(scores(q, k) + bias, present[:, None, None].expand(-1, 1, q.shape[2], -1)), v)


# --------------------------------------------------------------------------------------------------------- windows


def offsets(i: Tensor, j: Tensor, width: int, reach: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of a (2 reach + 1)² table of relative positions on a grid."""
    down = (i // width - j // width).clamp(-reach, reach) + reach
    return down, (i % width - j % width).clamp(-reach, reach) + reach


def swin_v2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit_scale: Tensor,
    table: Tensor,
    region: Tensor,
    window: int = 24,
    q_start: int = 0,
) -> Tensor:
    i, j = positions(q, k, q_start)
    cosine = F.normalize(q, dim=-1) @ F.normalize(per_query_head(k, q), dim=-1).transpose(-1, -2)
    bias = 16 * torch.sigmoid(table[(slice(None), *offsets(i, j, window, window - 1))])
    apart = region[:, i[:, 0], None] != region[:, None, :]
    s = cosine * heads(logit_scale.clamp(max=math.log(100)).exp()) + bias - 100.0 * apart[:, None].to(q.dtype)
    return attend(torch.softmax(s, -1), v)


def swin(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, width: int = 56, window: int = 7, shift: int = 3, q_start: int = 0
) -> Tensor:
    """Cyclic: the grid rolled by `shift`, cut into windows, and -inf between what the roll brought together."""
    i, j = positions(q, k, q_start)
    height = k.shape[2] // width
    y, x = torch.arange(height), torch.arange(width)
    rolled_y, rolled_x = (y - shift) % height, (x - shift) % width
    # One code per window and, inside it, per side of the seam.
    code_y = (rolled_y // window) * 2 + (y < shift)
    code_x = (rolled_x // window) * 2 + (x < shift)
    code = (code_y[:, None] * 4 * (width + 1) + code_x).flatten()
    mask = code[i] == code[j]
    bias = table[(slice(None), *offsets(i, j, width, window - 1))]
    return attend(softmax(scores(q, k) + bias, mask), v)


# ------------------------------------------------------------------------------------------------ tables and buckets


def log_bucket(n: int, exact: int, count: int, farthest: int) -> int:
    """T5's bucket of a distance, in exact integers: n, then exact + k where (n / exact)^s >= (farthest / exact)^k."""
    if n < exact:
        return n
    s, k = count - exact, 0
    while k < s and n**s * exact ** (k + 1) >= farthest ** (k + 1) * exact**s:
        k += 1
    return min(exact + k, count - 1)


def bucket_table(length: int, exact: int, count: int, farthest: int) -> Tensor:
    return torch.tensor([log_bucket(n, exact, count, farthest) for n in range(length)])


def two_sided(i: Tensor, j: Tensor, side: int, farthest: int) -> Tensor:
    distance = (j - i).abs()
    near = bucket_table(int(distance.max()) + 1, side // 2, side, farthest)[distance]
    return near + side * (j > i)


def t5(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, buckets: int = 32, farthest: int = 128, q_start: int = 0
) -> Tensor:
    i, j = positions(q, k, q_start)
    return attend(softmax(scores(q, k, 1.0) + table[:, two_sided(i, j, buckets // 2, farthest)]), v)


def t5_decoder(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, buckets: int = 32, farthest: int = 128, q_start: int = 0
) -> Tensor:
    i, j = positions(q, k, q_start)
    distance = (i - j).clamp(min=0)
    bucket = bucket_table(int(distance.max()) + 1, buckets // 2, buckets, farthest)[distance]
    return attend(softmax(scores(q, k, 1.0) + table[:, bucket], j <= i), v)


def urpe_buckets(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inside: Tensor,
    after: Tensor,
    side: int = 32,
    farthest: int = 128,
    q_start: int = 0,
) -> Tensor:
    i, j = positions(q, k, q_start)
    bucket = two_sided(i, j, side, farthest)
    return attend(softmax(scores(q, k) + inside[:, bucket]) * after[:, bucket], v)


def urpe_tables(
    q: Tensor, k: Tensor, v: Tensor, inside: Tensor, after: Tensor, present: Tensor, T: int = 512, q_start: int = 0
) -> Tensor:
    """Padding as released: a bias of -inf, a factor of 0."""
    i, j = positions(q, k, q_start)
    r = (j - i).clamp(1 - T, T - 1) + T - 1
    keys = present[:, None, None].expand(-1, 1, q.shape[2], -1)
    return attend(softmax(scores(q, k) + inside[:, r], keys) * (after[:, r] * keys), v)


def deberta_bucket(x: int, mid: int, farthest: int) -> int:
    """x within mid, else sign(x) (mid + k), k the least with (|x| / mid)^(mid - 1) <= ((farthest - 1) / mid)^k."""
    n, k = abs(x), 0
    if n <= mid:
        return x
    while n ** (mid - 1) * mid**k > (farthest - 1) ** k * mid ** (mid - 1):
        k += 1
    return (mid + k) * (1 if x > 0 else -1)


def deberta_v2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    of_key: Tensor,
    of_query: Tensor,
    span: int = 256,
    farthest: int = 512,
    q_start: int = 0,
) -> Tensor:
    i, j = positions(q, k, q_start)
    reach = max(int((i - j).max()), int((j - i).max()), 0)
    codes = torch.tensor([deberta_bucket(x, span // 2, farthest) for x in range(-reach, reach + 1)])
    there = (codes[i - j + reach] + span).clamp(0, 2 * span - 1)
    back = (codes[j - i + reach] + span).clamp(0, 2 * span - 1)
    to_position = torch.einsum("bhid,hijd->bhij", q, of_key[:, there])
    from_position = torch.einsum("bhjd,hijd->bhij", per_query_head(k, q), of_query[:, back])
    return attend(softmax((scores(q, k, 1.0) + to_position + from_position) / math.sqrt(3 * q.shape[-1])), v)


# ------------------------------------------------------------------------------------------------- RMT, local music


def rmt_gamma(n_heads: int, like: Tensor) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return 1 - 2.0 ** (-(2 + 4 * torch.arange(n_heads, dtype=dtype) / n_heads))


def rotate_pairs(x: Tensor, position: Tensor, base: float) -> Tensor:
    """Neighbouring channels turn together; theta runs from 1 to 1 / base inclusive, each taken twice."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    theta = base ** -torch.linspace(0, 1, x.shape[-1] // 2, dtype=dtype).repeat_interleave(2)
    angle = position.to(dtype) * theta
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * angle.cos().to(x.dtype) + turned * angle.sin().to(x.dtype)


def manhattan_inside(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: Tensor | None = None,
    width: int = 14,
    base: float = 10000,
    q_start: int = 0,
) -> Tensor:
    i, j = positions(q, k, q_start)
    gamma = rmt_gamma(q.shape[1], q) if gamma is None else gamma
    distance = (i // width - j // width).abs() + (i % width - j % width).abs()
    s = scores(rotate_pairs(q, i, base), rotate_pairs(k * q.shape[-1] ** -0.5, j.T, base), 1.0)
    return attend(softmax(s + heads(gamma).log() * distance), v)


def manhattan_rows(
    q: Tensor, k: Tensor, v: Tensor, gamma: Tensor | None = None, width: int = 14, q_start: int = 0
) -> Tensor:
    i, j = positions(q, k, q_start)
    gamma = rmt_gamma(q.shape[1], q) if gamma is None else gamma
    distance = (i % width - j % width).abs()
    return attend(softmax(scores(q, k) + heads(gamma).log() * distance, i // width == j // width), v)


def manhattan_columns(
    q: Tensor, k: Tensor, v: Tensor, gamma: Tensor | None = None, width: int = 14, q_start: int = 0
) -> Tensor:
    i, j = positions(q, k, q_start)
    gamma = rmt_gamma(q.shape[1], q) if gamma is None else gamma
    distance = (i // width - j // width).abs()
    return attend(softmax(scores(q, k) + heads(gamma).log() * distance, i % width == j % width), v)


def music_local(q: Tensor, k: Tensor, v: Tensor, rel: Tensor, block: int = 512, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    mask = (j <= i) & ((j // block == i // block) | (j // block == i // block - 1))
    relative = rel[:, (j - i + 2 * block - 1).clamp(0, 2 * block - 1)]
    s = (scores(q, k, 1.0) + torch.einsum("bhid,hijd->bhij", q, relative)) / math.sqrt(q.shape[-1])
    return attend(softmax(s, mask), v)


# ---------------------------------------------------------------------------------------------------------- inputs


def _factors(r: Random, rank: int) -> dict[str, Tensor]:
    d = r.dims
    return {"query_factor": r.normal(d.B, d.H, d.M, rank), "key_factor": r.normal(d.B, d.H, d.N, rank)}


def _shared_factors(r: Random, rank: int) -> dict[str, Tensor]:
    d = r.dims
    scale = rank**-0.5
    factors = {"query_factor": r.normal(1, d.H, d.M, rank) * scale, "key_factor": r.normal(1, d.H, d.N, rank)}
    return {**factors, "present": some(r, d.B, d.N)}


def some(r: Random, *shape: int) -> Tensor:
    """Booleans, three of four true, and the first of each row."""
    flags = r.integers(*shape, high=4) > 0
    flags[..., 0] = True
    return flags


def _slopes(r: Random) -> dict[str, Tensor]:
    return {"slope": r.uniform(r.dims.H, low=0.02, high=0.5)}


def _decay(r: Random) -> dict[str, Tensor]:
    return {"gamma": r.uniform(r.dims.H, low=0.7, high=0.99)}


GALLERY |= {
    "gallery/alibi_symmetric": Spec(alibi_symmetric, _slopes),
    "gallery/alibi_keys": Spec(alibi_keys, _slopes),
    "gallery/alibi_factors": Spec(alibi_factors, _slopes),
    "gallery/low_rank_bias": Spec(low_rank_bias, lambda r: _factors(r, 5), {"R": 5}),
    "gallery/dense_bias": Spec(dense_bias, lambda r: {"table": r.normal(r.dims.H, r.dims.M, r.dims.N, dtype=r.f32)}),
    "gallery/squared_distance": Spec(
        squared_distance,
        lambda r: {
            "x": r.normal(r.dims.B, r.dims.N, 3, dtype=r.f32),
            "w": r.normal(r.dims.B, r.dims.H, r.dims.M, dtype=r.f32),
        },
        queries_within_keys=True,
    ),
    "gallery/cosine_bias": Spec(
        cosine_bias,
        lambda r: {
            "frequency": r.uniform(r.dims.H, low=0.05, high=1.5),
            "strength": r.uniform(r.dims.H, low=0.5, high=2),
        },
    ),
    "gallery/polynomial_bias": Spec(polynomial_bias, lambda r: {"coefficient": r.normal(r.dims.H, 3, dtype=r.f32)}),
    "gallery/multiplicative_bias": Spec(multiplicative_bias, lambda r: _factors(r, 3), {"R": 3}, costly=True),
    "gallery/pair_bias_factors": Spec(pair_bias_factors, lambda r: _shared_factors(r, 96), costly=True),
    "gallery/swin_v2": Spec(
        swin_v2,
        lambda r: {
            "logit_scale": math.log(10) + r.normal(r.dims.H, dtype=r.f32),
            "table": r.normal(r.dims.H, 13, 13, dtype=r.f32),
            "region": r.integers(r.dims.B, r.dims.N, high=3),
        },
        {"window": 7},
        lengths=((49, 49),),
    ),
    "gallery/swin": Spec(
        swin,
        lambda r: {"table": r.normal(r.dims.H, 7, 7, dtype=r.f32)},
        {"width": 12, "window": 4, "shift": 2},
        lengths=((96, 96), (144, 144)),
    ),
    "gallery/urpe_tables": Spec(
        urpe_tables,
        lambda r: {
            "inside": r.normal(r.dims.H, 39, dtype=r.f32),
            "after": r.normal(r.dims.H, 39, dtype=r.f32),
            "present": some(r, r.dims.B, r.dims.N),
        },
        {"T": 20},
    ),
    "gallery/urpe_buckets": Spec(
        urpe_buckets,
        lambda r: {"inside": r.normal(r.dims.H, 64, dtype=r.f32), "after": r.normal(r.dims.H, 64, dtype=r.f32)},
    ),
    "gallery/t5": Spec(t5, lambda r: {"table": r.normal(r.dims.H, 32, dtype=r.f32)}),
    "gallery/t5_decoder": Spec(t5_decoder, lambda r: {"table": r.normal(r.dims.H, 32, dtype=r.f32)}),
    "gallery/deberta_v2": Spec(
        deberta_v2,
        lambda r: {"of_key": r.normal(r.dims.H, 32, r.dims.D), "of_query": r.normal(r.dims.H, 32, r.dims.D)},
        {"span": 16},
        costly=True,
    ),
    "gallery/manhattan_inside": Spec(manhattan_inside, _decay, {"width": 9}),
    "gallery/manhattan_rows": Spec(manhattan_rows, _decay, {"width": 9}),
    "gallery/manhattan_columns": Spec(manhattan_columns, _decay, {"width": 9}),
    "gallery/music_local": Spec(
        music_local, lambda r: {"rel": r.normal(r.dims.H, 18, r.dims.D)}, {"block": 9}, costly=True
    ),
}
