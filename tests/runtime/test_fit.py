"""Factors fitted to a bias that depends on data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnc


def smooth(points_i: Tensor, points_j: Tensor) -> Tensor:
    """[2, M, N]: two heads with kernels of different width."""
    distance = (points_i[:, None] - points_j).square().sum(-1)
    return torch.stack([torch.exp(-distance), torch.cos(distance)])


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(60, 2, generator=g), torch.rand(47, 2, generator=g)


def test_a_smooth_bias_is_fitted_and_the_report_is_true() -> None:
    x, y = inputs()
    bias = smooth(x, y)
    found = attnc.fit_bias_factors(bias, x, y, 8, hidden=64, steps=400, progress=False)
    product = found.left(x) @ found.right(y).mT
    assert found.left(x).shape == (2, 60, 8)
    assert found.error == pytest.approx(float(((product - bias).norm() / bias.norm()).detach()), rel=1e-4)
    assert found.largest == pytest.approx(float((product - bias).abs().max().detach()), rel=1e-4)
    assert found.error < 0.05
    assert "relative error" in str(found)
    new_x, new_y = inputs(1)
    unseen = (found.left(new_x) @ found.right(new_y).mT).detach()
    assert float((unseen - smooth(new_x, new_y)).norm() / smooth(new_x, new_y).norm()) < 0.1


def test_the_same_seed_gives_the_same_factors_and_leaves_the_generator_alone() -> None:
    x, y = inputs()
    before = torch.random.get_rng_state()
    one, two = (attnc.fit_bias_factors(smooth(x, y), x, y, 2, steps=5, progress=False) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.error == two.error
    assert torch.equal(one.left(x), two.left(x))


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("heads", [None, 2])
def test_leading_dimensions_and_heads(lead: tuple[int, ...], heads: int | None) -> None:
    x, y = (torch.rand(*lead, n, 4) for n in (9, 7))
    bias = torch.rand(*lead, *(() if heads is None else (heads,)), 9, 7)
    found = attnc.fit_bias_factors(bias, x, y, 3, steps=2, progress=False)
    assert found.right(y).shape == (*lead, *(() if heads is None else (heads,)), 7, 3)


def test_factors_are_tensors_of_a_spec() -> None:
    text = (
        "attention fitted\nconst rank = 4\nindex r: rank\ntensor left: f32[H, M, rank]\ntensor right: f32[H, N, rank]\n"
        "bias = sum[r](left[h, i, r] * right[h, j, r])\n"
    )
    x, y = inputs()
    found = attnc.fit_bias_factors(smooth(x, y), x, y, 4, steps=20, progress=False)
    q, k, v = torch.randn(1, 2, 60, 8), torch.randn(1, 2, 47, 8), torch.randn(1, 2, 47, 8)
    left, right = found.left(x), found.right(y)
    o = attnc.compile(text, backend="tiled")(q, k, v, left=left, right=right)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=(left @ right.mT)[None])
    torch.testing.assert_close(o, expected, rtol=1e-4, atol=1e-5)
    o.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in found.left.parameters())


def test_progress_is_shown_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = inputs()
    attnc.fit_bias_factors(smooth(x, y), x, y, 2, steps=3)
    shown = capsys.readouterr()
    assert "fitting factors" in shown.err
    assert not shown.out


BIAS = torch.zeros(2, 9, 7)
X, Y = torch.zeros(9, 3), torch.zeros(7, 3)


@pytest.mark.parametrize(
    ("bias", "x", "y", "options", "message"),
    [
        (BIAS, X.T, Y, {}, "do not fit"),
        (BIAS, X[None], Y[None], {}, "do not fit"),
        (BIAS[None, None], X, Y, {}, "do not fit"),
        (BIAS.long(), X, Y, {}, "real tensor"),
        ([[1.0]], X, Y, {}, "real tensor"),
        (BIAS, X[:0], Y, {}, "real tensor"),
        (BIAS - torch.inf, X, Y, {}, "inf or NaN"),
        (BIAS, X, Y, {"rank": 0}, "rank = 0"),
        (BIAS, X, Y, {"steps": 2.5}, "steps = 2.5"),
    ],
)
def test_wrong_inputs_are_explained(bias: Any, x: Tensor, y: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(attnc.CallError, match=message) as caught:
        attnc.fit_bias_factors(bias, x, y, **({"rank": 2, "progress": False} | options))
    assert "E240" in str(caught.value)
