"""Masks, windows, neighbourhoods and position logits of the gallery, as dense formulas from their papers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.formulas import GALLERY, Dims, Random, Spec, attend, per_query_head, positions, scores, softmax


def mixformer(q: Tensor, k: Tensor, v: Tensor, templates: int, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    return attend(softmax(scores(q, k), (i >= templates) | (j < templates)), v)


def ee_mllm(q: Tensor, k: Tensor, v: Tensor, visual: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    sees = visual[:, None, :] | (j <= i)
    alone = visual[:, i[:, 0], None]
    return attend(softmax(scores(q, k), ((alone & (i == j)) | (~alone & sees))[:, None]), v)


def meta_tokens(q: Tensor, k: Tensor, v: Tensor, meta: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    mask = (j <= i) & meta[:, i[:, 0], None] & meta[:, None, :]
    return attend(softmax(scores(q, k), mask[:, None]), v)


def x_pool(q: Tensor, k: Tensor, v: Tensor, text: Tensor, q_start: int = 0) -> Tensor:
    logits = torch.einsum("hid,bhjd->bhij", text, per_query_head(k, q)) / math.sqrt(q.shape[-1])
    return attend(torch.softmax(logits, -1), v)


def tcpa(q: Tensor, k: Tensor, v: Tensor, group: Tensor, chosen: Tensor, q_start: int = 0) -> Tensor:
    prompt = group.long() >= 0
    keep = chosen[:, :, group.long().clamp(min=0)] | ~prompt
    return attend(torch.softmax(scores(q, k), -1) * keep[:, None], v)


def halonet(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_row: Tensor,
    rel_col: Tensor,
    cols: int,
    block: int,
    halo: int,
    q_start: int = 0,
) -> Tensor:
    """Query by query: unfold the window of its block out of the padded map and attend to all of it."""
    k, v = per_query_head(k, q), per_query_head(v, q)
    window, wide = block + 2 * halo, cols + 2 * halo
    cell = torch.arange(window)
    out = []
    for i in range(q.shape[2]):
        y, x = i // cols, i % cols
        top, left = y // block * block, x // block * block
        place = ((top + cell)[:, None] * wide + (left + cell)[None, :]).flatten()
        by_row = q[:, :, i] @ rel_row[cell - y % block + window - 1].T
        by_col = q[:, :, i] @ rel_col[cell - x % block + window - 1].T
        s = torch.einsum("bhd,bhjd->bhj", q[:, :, i], k[:, :, place]) / math.sqrt(q.shape[-1])
        s = s + (by_row[..., :, None] + by_col[..., None, :]).flatten(-2)
        out.append(torch.einsum("bhj,bhje->bhe", torch.softmax(s, -1), v[:, :, place]))
    return torch.stack(out, 2)


# ------------------------------------------------------------------------------------------------- neighbourhoods


def inward(x: Tensor, n: int, reach: int) -> tuple[Tensor, Tensor]:
    """First and last position of a window that is moved, not cut, at the border."""
    return x - reach - (x + reach - n + 1).clamp(min=0), x + reach + (reach - x).clamp(min=0)


def free_swim(
    q: Tensor, k: Tensor, v: Tensor, height: int, width: int, reach_y: int, reach_x: int, q_start: int = 0
) -> Tensor:
    i, j = positions(q, k, q_start)
    low_y, high_y = inward(i // width % height, height, reach_y)
    low_x, high_x = inward(i % width, width, reach_x)
    y, x = j // width % height, j % width
    return attend(softmax(scores(q, k), (low_y <= y) & (y <= high_y) & (low_x <= x) & (x <= high_x)), v)


def neighbours(x: int, n: int, window: int, stride: int = 1, dilation: int = 1, causal: bool = False) -> list[int]:
    """The keys of one query on an axis of n positions, in generalised neighbourhood attention."""
    group, y = x % dilation, x // dilation
    length = n // dilation + (1 if group < n % dilation else 0)
    if causal:
        leader = min(y // stride * stride + stride - 1, length - 1)
        keys = range(max(leader - window + 1, 0), y + 1)
    else:
        left = window // 2
        right = window - 1 - left
        leader = min(y // stride * stride + stride // 2, length - 1)
        centre = min(max(leader, left), length - 1 - right)
        keys = range(centre - left, centre + right + 1)
    return [z * dilation + group for z in keys]


def axis_mask(n: int, window: int, stride: int = 1, dilation: int = 1, causal: bool = False) -> Tensor:
    """[n, n]: which keys each position of one axis attends to."""
    mask = torch.zeros(n, n, dtype=torch.bool)
    for x in range(n):
        mask[x, neighbours(x, n, window, stride, dilation, causal)] = True
    return mask


def grid_mask(*axes: Tensor) -> Tensor:
    """The masks of the axes of a grid, slowest first, as one mask over flattened positions."""
    whole = torch.ones(1, 1, dtype=torch.bool)
    for mask in axes:
        whole = (whole[:, None, :, None] & mask[None, :, None, :]).flatten(2).flatten(0, 1)
    return whole


def natten_1d(q: Tensor, k: Tensor, v: Tensor, k_size: int, stride: int, dilation: int, q_start: int = 0) -> Tensor:
    return attend(softmax(scores(q, k), axis_mask(k.shape[2], k_size, stride, dilation)), v)


def natten_1d_causal(
    q: Tensor, k: Tensor, v: Tensor, k_size: int, stride: int, dilation: int, q_start: int = 0
) -> Tensor:
    return attend(softmax(scores(q, k), axis_mask(k.shape[2], k_size, stride, dilation, causal=True)), v)


def natten_2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: int,
    cols: int,
    k_size: int,
    stride: int,
    dilation: int,
    q_start: int = 0,
) -> Tensor:
    axes = (axis_mask(n, k_size, stride, dilation) for n in (rows, cols))
    return attend(softmax(scores(q, k), grid_mask(*axes)), v)


def natten_3d(
    q: Tensor, k: Tensor, v: Tensor, rows: int, cols: int, k_time: int, k_space: int, q_start: int = 0
) -> Tensor:
    time = axis_mask(k.shape[2] // (rows * cols), k_time, causal=True)
    mask = grid_mask(time, axis_mask(rows, k_space), axis_mask(cols, k_space))
    return attend(softmax(scores(q, k), mask), v)


def nat_bias(q: Tensor, k: Tensor, v: Tensor, table: Tensor, rows: int, cols: int, r: int, q_start: int = 0) -> Tensor:
    """Query by query over its full window, with table[h, dy + 2 r, dx + 2 r]."""
    k, v = per_query_head(k, q), per_query_head(v, q)
    out = []
    for i in range(q.shape[2]):
        pairs = [(y, x) for y in neighbours(i // cols, rows, 2 * r + 1) for x in neighbours(i % cols, cols, 2 * r + 1)]
        y, x = (torch.tensor(part) for part in zip(*pairs, strict=True))
        place = y * cols + x
        s = torch.einsum("bhd,bhjd->bhj", q[:, :, i], k[:, :, place]) / math.sqrt(q.shape[-1])
        s = s + table[:, y - i // cols + 2 * r, x - i % cols + 2 * r]
        out.append(torch.einsum("bhj,bhje->bhe", torch.softmax(s, -1).to(v.dtype), v[:, :, place]))
    return torch.stack(out, 2)


# ---------------------------------------------------------------------------------------------------- bands, trees


def radial_mask(n_queries: int, n_keys: int, tokens: int, q_start: int = 0) -> Tensor:
    mask = torch.zeros(n_queries, n_keys, dtype=torch.bool)
    for m in range(n_queries):
        for n in range(n_keys):
            (i, x), (j, y) = divmod(m + q_start, tokens), divmod(n, tokens)
            reach = 2 ** math.floor(math.log2(max(abs(i - j), 1)))
            near = reach <= tokens and (abs(x - y) + 1) * reach <= tokens
            far = abs(i - j) % math.ceil(reach / tokens) == 0 and x == y
            mask[m, n] = near or far or j == 0
    return mask


def radial(q: Tensor, k: Tensor, v: Tensor, tokens: int, q_start: int = 0) -> Tensor:
    return attend(softmax(scores(q, k), radial_mask(q.shape[2], k.shape[2], tokens, q_start)), v)


def power_attention(q: Tensor, k: Tensor, v: Tensor, block: int, window: int, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    apart = i // block - j // block
    power = torch.zeros_like(apart, dtype=torch.bool)
    for n in range(20):
        power |= apart == 2**n
    return attend(softmax(scores(q, k), (j <= i) & ((apart < window) | power | (j // block == 0))), v)


def block_diffusion_mask(length: int, block: int) -> Tensor:
    """The three parts of the mask over [noised, clean]: block diagonal, offset block causal, block causal."""
    number = torch.arange(length) // block
    same = number[:, None] == number[None, :]
    earlier = number[:, None] > number[None, :]
    upper = torch.cat([same, earlier], 1)
    lower = torch.cat([torch.zeros_like(same), earlier | same], 1)
    return torch.cat([upper, lower], 0)


def block_diffusion(q: Tensor, k: Tensor, v: Tensor, block: int, q_start: int = 0) -> Tensor:
    return attend(softmax(scores(q, k), block_diffusion_mask(k.shape[2] // 2, block)), v)


def shared_prefix(q: Tensor, k: Tensor, v: Tensor, branch: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    own = branch[:, i[:, 0], None] == branch[:, None, :]
    return attend(softmax(scores(q, k), ((j <= i) & (own | (branch == 0)[:, None, :]))[:, None]), v)


def token_tree(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor, q_start: int = 0) -> Tensor:
    """Each node follows its parents up; the parent is the closest earlier node whose subtree holds it."""
    mask = torch.zeros(q.shape[0], q.shape[2], k.shape[2], dtype=torch.bool)
    for b in range(q.shape[0]):
        for m in range(q.shape[2]):
            for n in range(k.shape[2]):
                node = int(first[b, m + q_start])
                mask[b, m, n] = node in range(int(first[b, n]), int(last[b, n]) + 1)
    return attend(softmax(scores(q, k), mask[:, None]), v)


# -------------------------------------------------------------------------------------------------------- tensors


def flags(r: Random, *shape: int) -> Tensor:
    return r.integers(*shape, high=2).bool()


def groups(r: Random) -> dict[str, Tensor]:
    return {"group": r.integers(r.dims.N, high=5) - 1, "chosen": flags(r, r.dims.B, r.dims.M, 4)}


def halves(r: Random) -> dict[str, Tensor]:
    return {"rel_row": r.normal(7, r.dims.D), "rel_col": r.normal(7, r.dims.D)}


def tree(r: Random) -> dict[str, Tensor]:
    """A random tree of drafts per sequence in order of making: node n hangs below a random earlier node."""
    parents = [[int(r.integers(1, high=max(n, 1))) for n in range(r.dims.N)] for _ in range(r.dims.B)]
    first = torch.zeros(r.dims.B, r.dims.N, dtype=torch.int32)
    last = torch.zeros_like(first)
    for b, above in enumerate(parents):
        count = 0
        stack = [(0, False)]
        while stack:
            node, done = stack.pop()
            if done:
                last[b, node] = count - 1
                continue
            first[b, node] = count
            count += 1
            stack += [(node, True), *((n, False) for n in range(1, r.dims.N) if above[n] == node)]
    return {"first": first, "last": last}


def branches(dims: Dims) -> Tensor:
    third = max(dims.N // 3, 1)
    return (torch.arange(dims.N) // third).clamp(max=3).to(torch.int32).repeat(dims.B, 1)


GALLERY.update(
    {
        "gallery/mixformer": Spec(mixformer, consts={"templates": 5}),
        "gallery/ee_mllm": Spec(ee_mllm, lambda r: {"visual": flags(r, r.dims.B, r.dims.N)}, queries_within_keys=True),
        "gallery/meta_tokens": Spec(
            meta_tokens, lambda r: {"meta": flags(r, r.dims.B, r.dims.N)}, queries_within_keys=True
        ),
        "gallery/x_pool": Spec(x_pool, lambda r: {"text": r.normal(r.dims.H, r.dims.M, r.dims.D)}),
        "gallery/tcpa": Spec(tcpa, groups),
        "gallery/halonet": Spec(
            halonet, halves, {"cols": 6, "block": 2, "halo": 1}, costly=True, lengths=((24, 48), (12, 32))
        ),
        "gallery/free_swim": Spec(
            free_swim, consts={"height": 5, "width": 7, "reach_y": 1, "reach_x": 2}, lengths=((105, 105), (35, 35))
        ),
        "gallery/radial": Spec(radial, consts={"tokens": 9}, lengths=((130, 130), (63, 63), (1, 9))),
        "gallery/power_attention": Spec(power_attention, consts={"block": 5, "window": 2}),
        "gallery/natten_1d": Spec(
            natten_1d, consts={"k_size": 6, "stride": 2, "dilation": 3}, lengths=((63, 63), (130, 130), (19, 19))
        ),
        "gallery/natten_1d_causal": Spec(
            natten_1d_causal, consts={"k_size": 5, "stride": 3, "dilation": 2}, lengths=((63, 63), (130, 130), (7, 7))
        ),
        "gallery/natten_2d": Spec(
            natten_2d,
            consts={"rows": 9, "cols": 13, "k_size": 4, "stride": 2, "dilation": 2},
            lengths=((117, 117),),
        ),
        "gallery/natten_3d": Spec(
            natten_3d, consts={"rows": 4, "cols": 5, "k_time": 2, "k_space": 3}, lengths=((100, 100), (20, 20))
        ),
        "gallery/nat_bias": Spec(
            nat_bias,
            lambda r: {"table": r.normal(r.dims.H, 9, 9, dtype=r.f32)},
            {"rows": 7, "cols": 9, "r": 2},
            lengths=((63, 63),),
        ),
        "gallery/block_diffusion": Spec(block_diffusion, consts={"block": 4}, lengths=((130, 130), (14, 14))),
        "gallery/shared_prefix": Spec(shared_prefix, lambda r: {"branch": branches(r.dims)}, queries_within_keys=True),
        "gallery/token_tree": Spec(token_tree, tree, queries_within_keys=True),
    }
)
