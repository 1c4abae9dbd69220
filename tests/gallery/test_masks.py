"""Edges and identities that the papers' code fixes: borders, first rows, empty rows, even windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attnc
from tests.gallery.masks import axis_mask, block_diffusion_mask, inward, neighbours, radial_mask

GALLERY = Path(__file__).parents[2] / "examples" / "gallery"


def allowed(name: str, n: int, **consts: Any) -> Tensor:
    """Which pairs a compiled spec lets attend, [n, n]: equal scores, read off the weights."""
    text = (GALLERY / f"{name}.attn").read_text() + "output = w\n"
    x = torch.zeros(1, 1, n, 1)
    weights: Tensor = attnc.compile(text, backend="tiled", **consts)(x, x, x)
    return weights[0, 0] > 0


CONFIGURATIONS = [(19, 6, 2, 3), (30, 2, 1, 1), (30, 7, 7, 1), (29, 4, 3, 7), (28, 5, 2, 2), (21, 7, 1, 3)]


@pytest.mark.parametrize(("n", "k_size", "stride", "dilation"), CONFIGURATIONS)
def test_neighbourhoods(n: int, k_size: int, stride: int, dilation: int) -> None:
    """Every query has k_size keys, at the border too; a causal one has fewer near the start, and itself always."""
    consts = {"k_size": k_size, "stride": stride, "dilation": dilation}
    both = allowed("natten_1d", n, **consts)
    assert torch.equal(both, axis_mask(n, k_size, stride, dilation))
    assert (both.sum(-1) == k_size).all()
    past = allowed("natten_1d_causal", n, **consts)
    assert torch.equal(past, axis_mask(n, k_size, stride, dilation, causal=True))
    assert past.diagonal().all()
    assert not past.triu(1).any()


def test_an_even_window_is_one_longer_to_the_left() -> None:
    assert neighbours(10, 20, 4) == [8, 9, 10, 11]
    assert allowed("natten_1d", 20, k_size=4, stride=1, dilation=1)[10].nonzero().flatten().tolist() == [8, 9, 10, 11]


def test_an_inward_window_is_a_neighbourhood() -> None:
    """FreeSwim's window is a neighbourhood of 2 d + 1 keys with stride 1, at every distance from the border."""
    for n in range(5, 12):
        low, high = inward(torch.arange(n), n, 2)
        for x in range(n):
            assert list(range(max(int(low[x]), 0), min(int(high[x]) + 1, n))) == neighbours(x, n, 5)


def test_radial_bands() -> None:
    """Frames 0 and 1 apart are dense, the first frame is seen by all, and far frames keep the same place alone."""
    tokens, frames = 4, 20
    n = tokens * frames
    mask = allowed("radial", n, tokens=tokens)
    assert torch.equal(mask, radial_mask(n, n, tokens))
    blocks = mask.view(frames, tokens, frames, tokens).transpose(1, 2)
    for i in range(frames):
        for j in range(frames):
            if abs(i - j) <= 1 or j == 0:
                assert blocks[i, j].all()
            elif abs(i - j) >= 2 * tokens and blocks[i, j].any():
                assert torch.equal(blocks[i, j], torch.eye(tokens, dtype=torch.bool))


def test_power_distances() -> None:
    mask = allowed("power_attention", 32, block=1, window=2)
    distances = (31 - mask[31].nonzero().flatten()).tolist()
    assert sorted(distances) == [0, 1, 2, 4, 8, 16, 31]  # 31 is the sink


def test_block_diffusion_never_sees_what_it_must_predict() -> None:
    """A noised block sees no clean block that is its own or later, and no other noised block."""
    length, block = 16, 4
    mask = allowed("block_diffusion", 2 * length, block=block)
    assert torch.equal(mask, block_diffusion_mask(length, block))
    assert not mask[length:, :length].any()
    assert mask[:length, :length].sum() == length * block


def test_rows_without_meta_tokens_are_zero() -> None:
    op = attnc.compile(GALLERY / "meta_tokens.attn", backend="tiled")
    q, k, v = (torch.randn(1, 2, 9, 4, requires_grad=True) for _ in range(3))
    meta = torch.tensor([[0, 0, 1, 0, 1, 0, 0, 1, 0]]).bool()
    o = op(q, k, v, meta=meta)
    assert (o[:, :, ~meta[0]] == 0).all()
    assert torch.equal(o[:, :, 2], v[:, :, 2])
    (grad,) = torch.autograd.grad(o.sum(), q)
    assert (grad[:, :, ~meta[0]] == 0).all()


def test_an_image_token_returns_its_own_value() -> None:
    op = attnc.compile(GALLERY / "ee_mllm.attn", backend="tiled")
    q, k, v = (torch.randn(1, 1, 8, 4) for _ in range(3))
    visual = torch.arange(8)[None] < 5
    assert torch.allclose(op(q, k, v, visual=visual)[:, :, :5], v[:, :, :5])
