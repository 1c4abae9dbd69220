"""Integer functions on every backend, against Python's integers: exactly equal, whatever the width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import attnc

EXPRESSIONS: dict[str, Callable[[int, int], int]] = {
    "i & n[j]": lambda i, n: i & n,
    "n[j] & -8": lambda i, n: n & -8,
    "(i - 5) | n[j]": lambda i, n: (i - 5) | n,
    "(i - 5) ^ n[j]": lambda i, n: (i - 5) ^ n,
    "floor_log2(max(n[j], 1))": lambda i, n: max(n, 1).bit_length() - 1,
    "floor_log2(i + 1)": lambda i, n: (i + 1).bit_length() - 1,
    "1 << floor_log2(max(n[j] // 2 - i, 1))": lambda i, n: 1 << (max(n // 2 - i, 1).bit_length() - 1),
    "n[j] >> clamp(i - 2, 0, 62)": lambda i, n: n >> min(max(i - 2, 0), 62),
    "n[j] >> 3": lambda i, n: n >> 3,
    "(n[j] % 7) << (i % 9)": lambda i, n: (n % 7) << (i % 9),
    "n[j] % 5 << clamp(4 * i, 0, 60)": lambda i, n: n % 5 << min(4 * i, 60),
}
EDGES = [0, 1, 2, 3, 7, 8, 9, 65535, 65536, 2**24 - 1, 2**24 + 1, 2**30 - 1, 2**30, 2**31 - 1]
LARGE = [2**31, 2**32 - 1, 2**32, 2**53 - 1, 2**53 + 1, 2**62 - 1, 2**62]
PRIME = 8191


@pytest.mark.parametrize("backend", ["cpp", "tiled", "triton"])
@pytest.mark.parametrize("dtype", ["i32", "i64"])
def test_exact(backend: str, dtype: str) -> None:
    size = torch.int32 if dtype == "i32" else torch.int64
    numbers = EDGES + [-x for x in EDGES] + (LARGE + [-x for x in LARGE] if dtype == "i64" else [])
    q, k = torch.zeros(1, 1, 17, 1), torch.zeros(1, 1, len(numbers), 1)
    for text, function in EXPRESSIONS.items():
        spec = f"attention x\ntensor n: {dtype}[N]\nscore = ({text}) % {PRIME}\nnormaliser = none\noutput = w"
        spec = spec if "n[" in text else spec.replace(f"tensor n: {dtype}[N]\n", "")
        given: dict[str, Any] = {"n": torch.tensor(numbers, dtype=size)} if "n[" in text else {}
        found = attnc.compile(spec, backend=backend)(q, k, k, **given)
        expected = [[function(i, n) % PRIME for n in numbers] for i in range(17)]
        assert torch.equal(found[0, 0], torch.tensor(expected, dtype=torch.float32)), text
