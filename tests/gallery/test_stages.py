"""Identities of the gallery's stages and scores: transport, aliases, finite mask values, transposed reductions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import attnc
from tests.formulas import scores
from tests.gallery.stages import plan, transport_plan

GALLERY = Path(__file__).parents[2] / "examples" / "gallery"


def operands(n: int = 9, d: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, n, d, generator=generator, dtype=torch.float64) for _ in range(3)]


def test_the_plan_has_its_marginals_and_is_the_one_of_the_log_domain() -> None:
    q, k, _ = operands(7)
    mu = torch.softmax(torch.randn(2, 7, dtype=torch.float64), -1)[:, None, :, None]
    nu = torch.softmax(torch.randn(2, 7, dtype=torch.float64), -1)[:, None, None, :]
    s = scores(q, k)
    g = torch.zeros_like(nu)
    for _ in range(60):
        f = mu.log() - torch.logsumexp(s + g, -1, keepdim=True)
        g = nu.log() - torch.logsumexp(s + f, -2, keepdim=True)
    exact = torch.exp(s + f + g)
    torch.testing.assert_close(plan(s, mu, nu, 60), exact, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(exact.sum(-2, keepdim=True), nu.expand(2, 2, 1, 7), atol=1e-10, rtol=1e-8)


def test_more_steps_of_the_plan() -> None:
    """Gradients too, in float64: in float32 the rounding of every step would hide what is compared."""
    q, k, v = (x.requires_grad_() for x in operands(7))
    mu, nu = torch.softmax(torch.randn(2, 2, 7, dtype=torch.float64), -1).unbind(1)
    op = attnc.compile(GALLERY / "transport_plan.attn", backend="tiled", steps=4)
    found, expected = op(q, k, v, mu=mu, nu=nu), transport_plan(q, k, v, mu, nu, steps=4)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    gradients = (torch.autograd.grad(o.square().sum(), [q, k, v]) for o in (found, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_one_step_of_sinkhorn_is_softmax() -> None:
    q, k, v = operands()
    one = attnc.compile("attention one\nnormaliser = sinkhorn(1)", backend="tiled")
    assert torch.equal(one(q, k, v), attnc.compile("attention two", backend="tiled")(q, k, v))


@pytest.mark.parametrize("name", ["collapsed_similarity", "symmetric_similarity"])
def test_one_tensor_given_three_times_gathers_its_gradients(name: str) -> None:
    """The gradient of x in f(x, x, x) is the sum of the three, also where keys or values are x itself."""
    op = attnc.compile(GALLERY / f"{name}.attn", backend="tiled")
    x = operands()[0].requires_grad_()
    matrix: dict[str, Any] = {"W" if name.startswith("c") else "T": torch.randn(2, 4, 4, dtype=torch.float64)}
    (whole,) = torch.autograd.grad(op(x, x, x, **matrix).square().sum(), x)
    parts = [x.detach().clone().requires_grad_() for _ in range(3)]
    three = torch.autograd.grad(op(*parts, **matrix).square().sum(), parts)
    torch.testing.assert_close(whole, sum(three, torch.zeros_like(x)))


def test_symmetric_scores_are_symmetric() -> None:
    op = attnc.compile((GALLERY / "symmetric_similarity.attn").read_text() + "observe plane = s\n", backend="tiled")
    x = operands()[0]
    _, seen = op(x, x, x, T=torch.randn(2, 4, 4, dtype=torch.float64), observe=True)
    torch.testing.assert_close(seen["plane"], seen["plane"].transpose(-1, -2), rtol=0, atol=1e-12)


def test_reversed_attention_is_the_transpose() -> None:
    q, k, v = operands()
    op = attnc.compile(GALLERY / "dependency_vit.attn", backend="tiled")
    ones = torch.ones(2, 2, 9, dtype=torch.float64), torch.ones(2, 9, dtype=torch.float64)
    o, seen = op(q, k, v, head_choice=ones[0], message=ones[1], observe=True)
    p = torch.softmax(scores(q, k), -1)
    torch.testing.assert_close(o, p.transpose(-1, -2) @ v)
    torch.testing.assert_close(seen["mass"].sum(-1), torch.full((2,), 18.0, dtype=seen["mass"].dtype))


def test_the_score_of_the_key_alone_is_a_running_mean() -> None:
    """A score of 0 everywhere gives the mean of the values so far; the query is not read."""
    q, k, v = operands()
    op = attnc.compile(GALLERY / "key_only.attn", backend="tiled")
    o = op(q, k, v, a=torch.zeros(2, 2, 9, 4, dtype=torch.float64))
    counts = torch.arange(1, 10, dtype=torch.float64)[:, None]
    torch.testing.assert_close(o, v.cumsum(2) / counts)


@pytest.mark.parametrize("backend", ["cpp", "tiled"])
def test_sasrec_spreads_masked_rows_over_all_keys(backend: str) -> None:
    """Padding at the start: a row without a valid key weighs all keys alike, later ones too, before its own gate."""
    text = (GALLERY / "sasrec.attn").read_text().replace("gate = 1 if valid[b, i] else 0\n", "output = w\n")
    q, k, v = operands()
    valid = (torch.arange(9) >= 3).repeat(2, 1)
    w = attnc.compile(text, backend=backend)(q, k, v, valid=valid)
    torch.testing.assert_close(w[:, :, :3], torch.full((2, 2, 3, 9), 1 / 9, dtype=w.dtype))
    assert (w[:, :, 4, :3] == 0).all()
    whole = attnc.compile(GALLERY / "sasrec.attn", backend=backend)(q, k, v, valid=valid)
    assert (whole[:, :, :3] == 0).all()


def test_a_small_mask_value_leaks() -> None:
    """With a mask value of -1 masked keys keep e^-1 / (1 + e^-1) of the weight beside one key of score 0."""
    op = attnc.compile("attention leak\nscore = 0\nmask = j == 0\nmask_value = -1\noutput = w", backend="tiled")
    w = op(*(torch.zeros(1, 1, 2, 1) for _ in range(3)))
    assert float(w[0, 0, 0, 1]) == pytest.approx(math.exp(-1) / (1 + math.exp(-1)))


def test_uniform_empty_rows() -> None:
    q, k, v = operands()
    spec = "attention rows\nmask = j <= i - 2"
    o = attnc.compile(f"{spec}\nempty_rows = uniform", backend="tiled")(q, k, v)
    torch.testing.assert_close(o[:, :, :2], v.mean(2, keepdim=True).expand(-1, -1, 2, -1))
    zero = attnc.compile(spec, backend="tiled")(q, k, v)
    torch.testing.assert_close(o[:, :, 2:], zero[:, :, 2:])
    assert (zero[:, :, :2] == 0).all()


def test_entropy_is_at_most_the_logarithm_of_the_length_and_has_a_gradient() -> None:
    op = attnc.compile(GALLERY / "entropy.attn", backend="tiled")
    q, k, v = (x.requires_grad_() for x in operands())
    _, seen = op(q, k, v, observe=True)
    entropy = seen["row_entropy"]
    assert (entropy <= math.log(9) + 1e-9).all()
    s = scores(q, k)
    p = torch.softmax(s, -1)
    derivative = -p * (p.log() + entropy.detach()[..., None])
    (expected,) = torch.autograd.grad(s, q, derivative.detach())
    (found,) = torch.autograd.grad(entropy.sum(), q)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
