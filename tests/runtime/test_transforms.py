"""`torch.func` and forward mode give what they give for the formula, never silent zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves

import attnc
from tests.runtime.specs import ALIBI, leaf, qkv, textbook

Function = Callable[..., torch.Tensor]


@pytest.fixture(scope="module", params=["dense", "tiled"])
def call(request: pytest.FixtureRequest) -> Function:
    op = attnc.compile(ALIBI, backend=request.param)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        o: torch.Tensor = op(q, k, v, slope=slope, q_start=2)
        return o

    return run


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return textbook(q, k, v, slope, q_start=2)


def tensors(**sizes: int) -> tuple[torch.Tensor, ...]:
    chosen: dict[str, Any] = {"m": 3, "n": 5, "d": 4, "e": 3, **sizes}
    q, k, v = qkv(**chosen)
    return q, k, v, leaf(q.shape[1]).detach()


def same(found: Any, expected: Any) -> None:
    for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b)


def energy(f: Function) -> Function:
    return lambda *xs: f(*xs).square().sum()


def test_jvp(call: Function) -> None:
    x, t = tensors(), tuple(torch.randn_like(x) for x in tensors())
    found = jvp(call, x, t)
    assert found[1].abs().max() > 0
    same(found, jvp(formula, x, t))


def test_dual_numbers(call: Function) -> None:
    q, k, v, slope = tensors()
    t = torch.randn_like(q)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(call(forward_ad.make_dual(q, t), k, v, slope))
        expected = forward_ad.unpack_dual(formula(forward_ad.make_dual(q, t), k, v, slope))
        same(tuple(found), tuple(expected))


def test_grad(call: Function) -> None:
    x = tensors()
    same(grad(energy(call), (0, 1, 2, 3))(*x), grad(energy(formula), (0, 1, 2, 3))(*x))


def test_forward_over_reverse_and_reverse_over_forward(call: Function) -> None:
    x, t = tensors(), tuple(torch.randn_like(x) for x in tensors())
    same(jvp(grad(energy(call), (0, 3)), x, t), jvp(grad(energy(formula), (0, 3)), x, t))

    def along(f: Function) -> Function:
        return lambda *xs: jvp(f, xs, t)[1].sum()

    same(grad(along(call), (0, 2))(*x), grad(along(formula), (0, 2))(*x))


def test_vmap_over_examples_is_one_larger_batch(call: Function) -> None:
    q, k, v, slope = tensors()
    dims = (0, 0, None, None)
    x = (q[:, None], k[:, None], v[:1], slope)
    same(vmap(call, dims)(*x), vmap(formula, dims)(*x))


def test_vmap_over_parameters(call: Function) -> None:
    q, k, v, slope = tensors()
    dims = (None, None, None, 0)
    slopes = torch.stack([slope, 2 * slope])
    same(vmap(call, dims)(q, k, v, slopes), vmap(formula, dims)(q, k, v, slopes))


def test_gradients_per_example(call: Function) -> None:
    q, k, v, slope = tensors()
    dims = (0, 0, 0, None)
    x = (q[:, None], k[:, None], v[:, None], slope)
    same(vmap(grad(energy(call), (0, 3)), dims)(*x), vmap(grad(energy(formula), (0, 3)), dims)(*x))


def test_jacobians_and_hessian(call: Function) -> None:
    x = tensors(b=1, h=2, g=1, m=2, n=3, d=2, e=2)
    same(jacrev(call)(*x), jacrev(formula)(*x))
    same(jacfwd(call)(*x), jacrev(formula)(*x))
    same(hessian(energy(call))(*x), jacrev(jacrev(energy(formula)))(*x))


def test_third_order_is_refused(call: Function) -> None:
    q, k, v, slope = tensors(b=1, h=2, g=1, m=2, n=2)

    def first(q: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = grad(energy(call))(q, k, v, slope)
        return found.sum()

    with pytest.raises(attnc.CallError, match="E212"):
        grad(lambda q: grad(first)(q).sum())(q)


def test_vmap_does_not_fold_specs_that_use_the_batch_index() -> None:
    op = attnc.compile("attention graded\nbias = -b * abs(i - j)\n", backend="dense")
    q, k, v = qkv(m=7)

    def one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o: torch.Tensor = op(q[None], k[None], v[None])
        return o.squeeze(0)

    expected = torch.cat([op(q[n : n + 1], k[n : n + 1], v[n : n + 1]) for n in range(2)])
    torch.testing.assert_close(vmap(one)(q, k, v), expected)
