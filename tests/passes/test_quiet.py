"""Maxima that pass over NaN: NaN still reaches every result it has to reach."""

from __future__ import annotations

import math

import pytest
import torch

import attnc

SPECS = {
    "softmax": ("", True),
    "scaled and masked": ("mask = j <= i\n", True),
    "a bias, whose maximum is saved": ("bias = 0.1 * (j - i)\n", True),
    "the maximum observed, in other units than the shift": ("observe top = max[j](s)\n", True),
    "a maximum that nothing follows": ("normaliser = none\nscore = dot(q, k) - max[j](dot(q, k))\n", False),
    "weights summed over other pairs": ("output = sum[j](exp(s - max[j](s)) * v[j, e] if j <= i else 0)\n", False),
}


@pytest.mark.parametrize("backend", ["cpp", "tiled"])
@pytest.mark.parametrize("name", SPECS)
def test_nan_reaches_results(name: str, backend: str) -> None:
    """A key that is NaN, which no query of the first half sees where there is a mask."""
    body, _ = SPECS[name]
    op = attnc.compile(f"attention quiet\n{body}", backend=backend)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 70, 16) for _ in range(3))
    k[:, :, 40, 3] = math.nan
    observed = bool(op.program.observed)
    found, expected = (f(q, k, v, observe=True) if observed else f(q, k, v) for f in (op, op.reference))
    pairs = [(found[0], expected[0]), (found[1]["top"], expected[1]["top"])] if observed else [(found, expected)]
    for value, exact in pairs:
        assert exact.isnan().any()
        assert torch.equal(value.isnan(), exact.isnan())


@pytest.mark.parametrize("name", SPECS)
def test_the_plain_instruction_is_taken_where_nothing_asks_for_nan(name: str) -> None:
    body, quiet = SPECS[name]
    text = attnc.compile(f"attention quiet\n{body}").source("cpp")
    text = text[: text.index("struct quiet_gradient")]  # kernels of the gradient have maxima of their own
    assert (" = larger_of(" in text) == quiet
