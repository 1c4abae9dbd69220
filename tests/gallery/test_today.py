"""Identities and edges of what models of today run."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.differential.compare import Shape, complaints
from tests.formulas import GALLERY
from tests.gallery.calls import HEADS, LENGTH, observed, operands, run
from tests.gallery.today import latent

close = torch.testing.assert_close


def randoms(*shapes: tuple[int, ...], seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_latent_attention_with_other_widths_of_values(backend: str) -> None:
    assert GALLERY["gallery/latent"].formula is latent
    shape = Shape(33, 70, tail=True, D=24, E=16)
    assert not complaints("gallery/latent", backend, shape, torch.float32)


def test_absorbed_latent_attention_is_the_same() -> None:
    """q W_uk against the latent, and W_uv after it, for keys and values projected from the latent."""
    rank, head, rope = 12, 16, 8
    c, up_k, up_v, q, q_rope, k_rope = randoms(
        (2, 1, LENGTH, rank), (HEADS, rank, head), (HEADS, rank, 20), (2, HEADS, LENGTH, head),
        (2, HEADS, LENGTH, rope), (2, LENGTH, rope),
    )  # fmt: skip
    c.requires_grad_()
    rotated = {"q_rope": q_rope, "k_rope": k_rope}
    plain = run("gallery/latent", q, c @ up_k, c @ up_v, consts={"R": rope}, **rotated)
    absorbed = torch.einsum("bhid,hrd->bhir", q, up_k)
    o = run("gallery/latent_absorbed", absorbed, c, c, consts={"R": rope, "head": head}, **rotated) @ up_v
    close(o, plain)
    # The latent is key and value at once and receives both gradients.
    close(*(torch.autograd.grad(x.square().sum(), c)[0] for x in (o, plain)))


def test_qk_norm_ignores_the_size_of_queries() -> None:
    q, k, v = operands()
    weights = dict(zip(("q_weight", "k_weight"), randoms((16,), (16,)), strict=True))
    close(
        run("gallery/qk_norm", q, k, v, consts={"eps": 0.0}, **weights),
        run("gallery/qk_norm", 10 * q, 0.1 * k, v, consts={"eps": 0.0}, **weights),
    )


def test_triangle_padding_is_a_mask() -> None:
    q, k, v = operands()
    pair, g = randoms((1, HEADS, LENGTH, LENGTH), (2, HEADS, LENGTH, 16))
    present = torch.arange(LENGTH) % 4 != 1
    padding = torch.where(present, 0.0, -1e9).double().expand(2, -1).contiguous()
    o = run("gallery/triangle", q, k, v, pair=pair, padding=padding, g=g)
    s = q @ k.transpose(-1, -2) / 4 + pair
    close(o, (s.masked_fill(~present, -math.inf).softmax(-1) @ v) * torch.sigmoid(g))


def test_point_attention_is_invariant() -> None:
    """A rotation and a shift of all points turn what is gathered with them and leave the output as it is."""
    q, k, v = operands(24)
    pair, query_point, key_point, value_point, raw = randoms(
        (2, HEADS, 24, 24), (2, HEADS, 24, 4, 3), (2, HEADS, 24, 4, 3), (2, HEADS, 24, 8, 3), (HEADS,)
    )
    turn = torch.linalg.qr(randoms((3, 3), seed=6)[0])[0]
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def moved(x: Tensor) -> Tensor:
        return torch.matmul(x, turn) + shift

    points = {"query_point": query_point, "key_point": key_point, "value_point": value_point}
    o, seen = observed("gallery/invariant_points", q, k, v, pair=pair, raw=raw, **points)
    there = {name: moved(x) for name, x in points.items()}
    o2, seen2 = observed("gallery/invariant_points", q, k, v, pair=pair, raw=raw, **there)
    close(o2, o)
    close(seen2["points"], moved(seen["points"]))


def test_a_closed_gate_forgets() -> None:
    """Where one gate is shut, what came before it no longer counts; open gates change nothing."""
    q, k, v = operands()
    gates = torch.full((2, HEADS, LENGTH), 60.0, dtype=torch.float64)
    close(run("gallery/forgetting", q, k, v, decay=F.logsigmoid(gates).cumsum(-1)), run("causal", q, k, v))
    gates[:, :, 15] = -80.0
    o = run("gallery/forgetting", q, k, v, decay=F.logsigmoid(gates).cumsum(-1))
    close(o[:, :, 15:], run("causal", *(x[:, :, 15:].contiguous() for x in (q, k, v))))


def test_reading_order_alone_decides() -> None:
    """Tokens stored in another order with the same ranks attend as before; without ranks and prior there is no bias."""
    q, k, v = operands()
    table, prior = randoms((HEADS, 32), (HEADS,))
    text = (torch.arange(LENGTH) % 5 != 2)[None].expand(2, -1).contiguous()
    rank = torch.arange(LENGTH, dtype=torch.int32)[None].expand(2, -1).contiguous()
    o = run("gallery/roap", q, k, v, rank=rank, table=table, text=text, prior=prior)
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(8))
    shuffled = [x[:, :, order].contiguous() for x in (q, k, v)]
    again = run(
        "gallery/roap", *shuffled, rank=rank[:, order], table=table, text=text[:, order].contiguous(), prior=prior
    )
    close(again, o[:, :, order])
    nothing = torch.full_like(rank, -1)
    bare = run("gallery/roap", q, k, v, rank=nothing, table=table, text=text, prior=torch.zeros_like(prior))
    close(bare, run("softmax", q, k, v))
