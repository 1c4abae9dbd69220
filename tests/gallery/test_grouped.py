"""Edges and identities of landmark attention (Mohtashami and Jaggi 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.gallery.calls import operands, run, weights_of
from tests.gallery.grouped import landmark_weights

close = torch.testing.assert_close
SIZE = 16
CONSTS: dict[str, int | float] = {"size": SIZE}


def weights(q: Tensor, k: Tensor) -> Tensor:
    """[B, H, M, N], read off values that are unit vectors."""
    n = k.shape[2]
    one_hot = torch.eye(n, dtype=q.dtype).expand(*k.shape[:2], n, n).contiguous()
    return run("gallery/landmark", q, k, one_hot, consts=CONSTS)


def test_rows_sum_to_one_and_landmarks_get_nothing() -> None:
    q, k, _ = operands()
    p = weights(q, k)
    close(p.sum(-1), torch.ones_like(p.sum(-1)))
    assert p[..., SIZE - 1 :: SIZE].abs().max() == 0


def test_within_a_block_the_first_queries_are_plain_causal_attention() -> None:
    q, k, v = operands()
    close(run("gallery/landmark", q, k, v, consts=CONSTS)[:, :, : SIZE - 1], run("causal", q, k, v)[:, :, : SIZE - 1])


def test_equal_keys_share_by_blocks() -> None:
    """Query 35 sees four keys of its own block and two landmarks: a sixth each; 15 keys share that of a landmark."""
    row = weights_of("gallery/landmark", 40, CONSTS)[35]
    expected = torch.zeros(40, dtype=torch.float64)
    expected[:15] = expected[16:31] = 1 / 6 / 15
    expected[32:36] = 1 / 6
    close(row, expected)


def test_gradients_are_those_of_the_two_levels() -> None:
    """Local keys and landmarks: ds = g (G - delta), with G of a landmark the mean of its block's. Inside a block B:
    ds = g_B w (G - mean_B G)."""
    q, k, v = operands()
    q.requires_grad_()
    do = torch.randn_like(v)
    (dq,) = torch.autograd.grad(run("gallery/landmark", q, k, v, consts=CONSTS), q, do)
    p = landmark_weights(q, k, SIZE, 0)
    gain = do @ v.transpose(-1, -2)
    delta = (p * gain).sum(-1, keepdim=True)
    ds = torch.zeros_like(p)
    i = torch.arange(q.shape[2])[:, None]
    for first in range(0, k.shape[2], SIZE):
        keys = slice(first, min(first + SIZE, k.shape[2]))
        here, there = p[..., keys], gain[..., keys]
        past = i // SIZE > first // SIZE
        whole = here.sum(-1, keepdim=True)
        mean = (here * there).sum(-1, keepdim=True) / torch.where(whole == 0, 1, whole)
        ds[..., keys] = torch.where(past, here * (there - mean), here * (there - delta))
        if first + SIZE <= k.shape[2]:
            ds[..., first + SIZE - 1] = torch.where(past, whole * (mean - delta), 0)[..., 0]
    close(dq, ds @ k / q.shape[-1] ** 0.5)
