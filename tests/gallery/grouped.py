"""Normalisers in two levels, as loops over blocks of keys."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.formulas import GALLERY, Spec, attend, positions, scores, softmax


def landmark_weights(q: Tensor, k: Tensor, size: int, q_start: int) -> Tensor:
    """A softmax over the own block's keys and the landmarks before it; a landmark's share goes to its block's keys.

    A block that ends before its landmark is as the own block, also to queries beyond it.
    """
    i, j = positions(q, k, q_start)
    s = scores(q, k)
    is_landmark = j % size == size - 1
    own = (j // size == i // size) | (j // size == k.shape[2] // size)
    local = own & (j <= i) & ~is_landmark
    g = softmax(s, local | (is_landmark & (j // size < i // size)))
    blocks = []
    for first in range(0, k.shape[2], size):
        keys = slice(first, min(first + size, k.shape[2]))
        weights = torch.where(local[:, keys], g[..., keys], 0)
        if first + size <= k.shape[2]:
            inner = softmax(s[..., first : first + size - 1])
            past = (first // size < i // size).to(s.dtype)
            shared = g[..., first + size - 1 : first + size] * torch.nn.functional.pad(inner, (0, 1))
            weights = weights + past * shared
        blocks.append(weights)
    return torch.cat(blocks, -1)


def landmark(q: Tensor, k: Tensor, v: Tensor, size: int = 64, q_start: int = 0) -> Tensor:
    return attend(landmark_weights(q, k, size, q_start), v)


GALLERY["gallery/landmark"] = Spec(landmark, consts={"size": 16})
