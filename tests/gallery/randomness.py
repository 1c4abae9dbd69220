"""Dropout, with the random numbers computed one by one."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from tests.formulas import GALLERY, Random, Spec, attend, positions, scores, softmax


def lowbias32(z: int) -> int:
    """Wellons 2018: two rounds of xor-shift and multiply on 32 bits."""
    z = (z ^ z >> 16) * 0x7FEB352D % 2**32
    z = (z ^ z >> 15) * 0x846CA68B % 2**32
    return z ^ z >> 16


def chained(seed: int, *counters: int) -> float:
    """A number in [0, 1): counters mixed in one after the other, 31 bits kept each time, 24 of them at the end."""
    for c in counters:
        seed = lowbias32(((seed + 0x6A09E667) ^ c * 0x9E3779B9) % 2**32) % 2**31
    return seed // 128 / 2**24


def dropout(q: Tensor, k: Tensor, v: Tensor, seed: Tensor, rate: float, q_start: int) -> Tensor:
    i, j = positions(q, k, q_start)
    p = softmax(scores(q, k), j <= i)
    first = int(seed[0])
    u = torch.empty(*q.shape[:2], q.shape[2], k.shape[2], dtype=torch.float64)
    for b, h, m, n in product(*(range(size) for size in u.shape)):
        u[b, h, m, n] = chained(first, b, h, m + q_start, n)
    return attend(torch.where(u < rate, torch.zeros_like(p), p / (1 - rate)), v)


def _seed(r: Random) -> dict[str, Tensor]:
    return {"seed": r.integers(1, high=2**31 - 1)}


GALLERY["gallery/dropout"] = Spec(dropout, _seed, {"rate": 0.3})
