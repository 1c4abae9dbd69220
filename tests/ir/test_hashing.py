"""Counter-based random numbers: the scalar and the tensor form agree, and the numbers look random."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from attnc.ir import hashing, hashing_torch

words = st.integers(-(2**31), 2**31 - 1)


@given(words, words)
def test_tensors_hash_as_integers_do(x: int, y: int) -> None:
    assert int(hashing_torch.mixed(torch.tensor(x), torch.tensor(y))) == hashing.mixed(x, y)


@given(words, words)
def test_a_hash_makes_a_number_below_one(x: int, y: int) -> None:
    value = hashing.unit(hashing.mixed(x, y))
    assert 0 <= value < 1
    assert float(torch.tensor(value, dtype=torch.float32)) == value


def numbers(seed: int, rows: int, columns: int) -> torch.Tensor:
    row = hashing_torch.mixed(torch.tensor(seed), torch.arange(rows))
    hashes = hashing_torch.mixed(row[:, None], torch.arange(columns))
    return hashing_torch.unit(hashes, torch.float64)


def test_numbers_are_uniform() -> None:
    u = numbers(1, 512, 512)
    counts = torch.histc(u, 64, 0, 1)
    expected = u.numel() / 64
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 63 + 5 * math.sqrt(2 * 63)  # five standard deviations, of a fixed draw


def test_neighbours_are_unrelated() -> None:
    u = numbers(2, 512, 512) - 0.5
    for other in (u.roll(1, 0), u.roll(1, 1), numbers(3, 512, 512) - 0.5):
        correlation = float((u * other).mean() / (u * u).mean())
        assert abs(correlation) < 5 / 512  # one over the root of 512 * 512 is a standard deviation
