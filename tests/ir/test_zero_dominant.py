"""Nothing outside a domain is seen, forward or backward, once or twice differentiated."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from attnc.ir import zero_dominant as zd
from attnc.ir.construct import axis, call, const, load, mul, sum_over
from attnc.ir.dense import bind_sizes, evaluate, evaluate_nodes
from attnc.ir.functions import FUNCTIONS
from attnc.ir.node import Node
from attnc.ir.oracle import oracle
from attnc.ir.program import Program
from tests.ir.programs import at, causal, softmax_program
from tests.ir.test_oracle import inputs

SMOOTH = ["exp", "exp2", "log", "log2", "sqrt", "rsqrt", "reciprocal", "reciprocal_or_zero", "tanh", "sigmoid"]
SMOOTH += ["softplus", "erf", "sin", "cos", "finite_or_zero", "abs"]


def positive(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(3)
    return (torch.rand(*shape, generator=g, dtype=torch.float64) + 0.5).requires_grad_()


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_of_functions(name: str) -> None:
    def f(x: Tensor) -> Tensor:
        return zd.unary(name, x)

    assert gradcheck(f, positive(5))
    assert gradgradcheck(f, positive(5))


@pytest.mark.parametrize(
    ("f", "shapes"),
    [
        (zd.multiply, ((3, 1), (3, 4))),
        (zd.power, ((3, 1), (3, 4))),
        (lambda a, b: zd.contract(a, b, "ij", "kj", "ik"), ((3, 4), (2, 4))),
        (lambda a, b: zd.contract(a, b, "bij", "bj", "bi"), ((2, 3, 4), (2, 4))),
    ],
)
def test_derivatives_of_products(f: Callable[..., Tensor], shapes: tuple[tuple[int, ...], ...]) -> None:
    args = tuple(positive(*s) for s in shapes)
    assert gradcheck(f, args)
    assert gradgradcheck(f, args)


def test_power_of_zero() -> None:
    x = torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    gx, gy = torch.autograd.grad(zd.power(x, y).sum(), (x, y))
    assert gx.tolist() == [0, 1, 12]
    assert gy.tolist() == pytest.approx([0, 0, 8 * math.log(2)])


SPECIAL = [0.0, 1.5, -2.0, math.inf, -math.inf, math.nan]


def test_contraction_of_infinite_values_term_by_term() -> None:
    generator = torch.Generator().manual_seed(5)
    choice = torch.tensor(SPECIAL, dtype=torch.float64)
    for _ in range(50):
        a = choice[torch.randint(6, (3, 4), generator=generator)]
        b = choice[torch.randint(6, (2, 4), generator=generator)]
        found = zd.contract(a, b, "ij", "kj", "ik")
        terms = a[:, None, :] * b[None, :, :]
        expected = torch.where((a[:, None, :] == 0) | (b[None, :, :] == 0), 0.0, terms).sum(-1)
        torch.testing.assert_close(found, expected, equal_nan=True)


def gradients(node: Node, tensors: dict[str, Tensor], extents: dict[str, int]) -> dict[str, Tensor]:
    leaves = {n: t.clone().requires_grad_() for n, t in tensors.items()}
    (value,) = evaluate_nodes([node], extents, leaves, {}, dtype=torch.float64, order="ijd")
    assert value.isfinite().all()
    found = torch.autograd.grad(value.sum(), list(leaves.values()), create_graph=True)
    again = torch.autograd.grad(
        torch.stack([g.square().sum() for g in found]).sum(), list(leaves.values()), allow_unused=True
    )
    assert all(g is None or g.isfinite().all() for g in again)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_values_outside_a_domain_are_never_seen(name: str, outside: float) -> None:
    x = torch.tensor([1.0, 2.0, outside, 0.5], dtype=torch.float64)
    y = torch.tensor([1.0, 2.0, math.nan, 0.5], dtype=torch.float64)
    inner = call(name, mul(load("x", at("j")), load("x", at("j"))))
    node = sum_over({"j"}, [inner, call("exp", load("x", at("j"))), load("y", at("j"))], [visible()])
    found = gradients(node, {"x": x, "y": y}, {"j": 4})
    expected = gradients(node, {"x": x.where(VISIBLE, 1.0), "y": y.where(VISIBLE, 1.0)}, {"j": 4})
    for n in found:
        assert found[n][2] == 0
        torch.testing.assert_close(found[n], expected[n])


VISIBLE = torch.tensor([True, True, False, True])


def visible() -> Node:
    return call("not", call("eq", axis("j"), const(2)))


def test_a_bracket_hides_what_it_multiplies() -> None:
    bracket = mul(call("where", visible(), const(1.0), const(0.0)), call("log", load("x", at("j"))))
    found = gradients(
        sum_over({"d"}, [bracket]), {"x": torch.tensor([1.0, 2.0, 0.0, 4.0], dtype=torch.float64)}, {"j": 4, "d": 2}
    )
    assert found["x"].tolist() == [2, 1, 0, 0.5]


def test_decay_overflowing_above_the_diagonal() -> None:
    distance = mul(const(600.0), call("maximum", load("x", at("j")), const(1.0)), axis("j"))
    grown = call("exp", distance)
    node = sum_over({"i", "j"}, [grown, load("y", at("i"))], [call("le", axis("j"), const(0))])
    found = gradients(
        node, {"x": torch.ones(4, dtype=torch.float64), "y": torch.ones(3, dtype=torch.float64)}, {"i": 3, "j": 4}
    )
    assert found["x"].tolist() == [0, 0, 0, 0]
    assert found["y"].tolist() == [1, 1, 1]


def hidden_program() -> Program:
    return softmax_program([causal(), load("seen", at("bj"), "b")])


def test_padded_keys_may_hold_anything() -> None:
    tensors = inputs()
    clean = {n: t.clone() for n, t in tensors.items()}
    hidden = ~tensors["seen"][:, None, :, None]
    assert hidden.any()
    tensors["k"] = torch.where(hidden, math.nan, tensors["k"])
    tensors["v"] = torch.where(hidden, math.inf, tensors["v"])
    seed = {"o": torch.randn(2, 4, 11, 5, dtype=torch.float64)}
    dirty, clean_result = (oracle(hidden_program(), t, grads=seed) for t in (tensors, clean))
    torch.testing.assert_close(dirty[0]["o"], clean_result[0]["o"])
    for name in "qkv":
        torch.testing.assert_close(dirty[1][name], clean_result[1][name])
        assert not dirty[1][name].isnan().any()


def test_rows_without_keys_are_zero_twice_differentiated() -> None:
    tensors = inputs()
    tensors["seen"][1] = False
    tensors["seen"][0, :3] = False
    leaves = {n: t.clone().requires_grad_() if t.is_floating_point() else t for n, t in tensors.items()}
    program = hidden_program()
    o = evaluate(program, leaves, bind_sizes(program, leaves))["o"]
    assert (o[1] == 0).all()
    assert (o[0, :, :3] == 0).all()
    assert (o[0, :, 3:] != 0).all()
    names = ["q", "k", "v"]
    first = torch.autograd.grad(o.square().sum(), [leaves[n] for n in names], create_graph=True)
    second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), [leaves[n] for n in names])
    for g in (*first, *second):
        assert g.isfinite().all()
        assert (g[1] == 0).all()
    assert (first[0][0, :, :3] == 0).all()


def test_every_primitive_function_is_evaluated() -> None:
    x = torch.tensor([0.5, 2.0], dtype=torch.float64)
    done = set()
    for f in FUNCTIONS.values():
        if not f.primitive or f.name in ("and", "or", "not", "where"):
            continue
        arity = f.arity
        arg = load("x", at("j"))
        other = call("sin", arg)
        blocks = f.name.startswith("block_")
        node = call(f.name, *([arg, axis("j"), const(16)] if blocks else [arg, other][:arity]))
        (value,) = evaluate_nodes([node], {"j": 2}, {"x": x}, {}, dtype=torch.float64, order="j")
        assert value.shape == (2,)
        assert value.to(torch.float64).isfinite().all()
        done.add(f.name)
    assert {
        *SMOOTH,
        "pow",
        "floor",
        "floordiv",
        "mod",
        "maximum",
        "minimum",
        "lt",
        "le",
        "eq",
        "sign",
        "detach",
    } <= done
