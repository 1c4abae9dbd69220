"""The oracle's outputs and gradients against PyTorch's own attention, and block by block against all at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnc.ir import staged
from attnc.ir.construct import axis, call, const, load, max_over, mul, raw_call, raw_sum, size, sum_over
from attnc.ir.contraction import axis_order
from attnc.ir.dense import axis_extents, bind_sizes, evaluate, evaluate_nodes
from attnc.ir.node import Max
from attnc.ir.oracle import Reverse, oracle
from attnc.ir.program import AxisInfo, Output, Program, SizeBinding
from attnc.ir.program import Tensor as Input
from tests.ir import expressions as ex
from tests.ir.programs import at, attention, causal, dims, score, softmax_program, value, weights

TENSORS = ex.make_tensors()


def inputs(m: int = 11, n: int = 11, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def real(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {
        "q": real(2, 4, m, 3),
        "k": real(2, 2, n, 3),
        "v": real(2, 2, n, 5),
        "seen": torch.rand(2, n, generator=g) < 0.7,
    }


@pytest.fixture(params=["whole", "blocks", "single rows"])
def budget(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    limit, target = {"whole": (10**9, 10**9), "blocks": (100, 100), "single rows": (1, 1)}[request.param]
    monkeypatch.setattr(staged, "WHOLE_LIMIT", limit)
    monkeypatch.setattr(staged, "BLOCK_TARGET", target)
    yield


@pytest.mark.usefixtures("budget")
def test_causal_softmax_is_scaled_dot_product_attention() -> None:
    given_tensors = inputs()
    q, k, v = (given_tensors[n].requires_grad_() for n in "qkv")
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    seed = torch.randn(expected.shape, dtype=torch.float64)
    expected_grads = torch.autograd.grad(expected, (q, k, v), seed)
    outputs, grads = oracle(softmax_program(), given_tensors, grads={"o": seed})
    torch.testing.assert_close(outputs["o"], expected.detach(), rtol=1e-12, atol=1e-12)
    for name, g in zip("qkv", expected_grads, strict=True):
        torch.testing.assert_close(grads[name], g, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("budget")
def test_queries_after_the_first_keys() -> None:
    tensors = inputs(m=4, n=11)
    mask = torch.arange(11)[None, :] <= torch.arange(4)[:, None] + 7
    q, k, v = (tensors[n] for n in "qkv")
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    outputs, grads = oracle(softmax_program(), tensors, q_start=7)
    assert not grads
    torch.testing.assert_close(outputs["o"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("budget")
def test_softmax_over_queries_and_column_sums() -> None:
    s = score()
    o = sum_over({"j"}, [weights(s, "i", [causal()]), value()], [causal()])
    mass = sum_over({"i"}, [weights(s, "j", [causal()])], [causal()])
    parts = (Output("o", ((tuple("bhie"), o),), dims("BHME")), Output("mass", ((tuple("bhj"), mass),), dims("BHN")))
    tensors = inputs()
    q, k, v = (tensors[n].requires_grad_() for n in "qkv")
    scores = q @ k.repeat_interleave(2, 1).mT / 3**0.5
    scores = scores.masked_fill(torch.ones(11, 11, dtype=torch.bool).triu(1), -torch.inf)
    expected = {"o": scores.softmax(2) @ v.repeat_interleave(2, 1), "mass": scores.softmax(3).sum(2)}
    seeds = {n: torch.randn(x.shape, dtype=torch.float64) for n, x in expected.items()}
    expected_grads = torch.autograd.grad(list(expected.values()), (q, k, v), list(seeds.values()))
    outputs, grads = oracle(attention("reversed", parts), tensors, grads=seeds)
    for name, x in expected.items():
        torch.testing.assert_close(outputs[name], x.detach(), rtol=1e-12, atol=1e-12)
    for name, g in zip("qkv", expected_grads, strict=True):
        torch.testing.assert_close(grads[name], g, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("budget")
def test_the_first_of_equals_has_the_gradient_of_a_maximum() -> None:
    x = load("x", at("i"))
    axes = {"i": AxisInfo("i", size("M"), "sequence")}
    peak = mul(const(2.0), max_over({"i"}, x))
    program = Program(
        "peak", (Input("x", dims("M"), "f64"),), (Output("m", (((), peak),), ()),), axes, (SizeBinding("M", "x", 0),)
    )
    given_x = torch.tensor([1.0, 5.0, 0.0, 5.0, 5.0], dtype=torch.float64)
    outputs, grads = oracle(program, {"x": given_x}, grads={"m": torch.tensor(3.0)})
    assert outputs["m"].item() == 10
    torch.testing.assert_close(grads["x"], torch.tensor([0.0, 6.0, 0.0, 0.0, 0.0], dtype=torch.float64))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    ex.reals(),
    st.dictionaries(st.sampled_from(["b", "i", "j", "d", "r"]), st.integers(1, 3), max_size=3),
    st.booleans(),
)
def test_gradients_do_not_depend_on_blocks(recipe: ex.Recipe, blocks: dict[str, int], canonical: bool) -> None:
    node = ex.build(recipe, canonical)
    leaves = {n: t.clone().requires_grad_() if ex.KINDS[n] == "f" else t for n, t in TENSORS.items()}
    wanted = [n for n in leaves if ex.KINDS[n] == "f"]
    (value,) = evaluate_nodes([node], ex.EXTENTS, leaves, ex.SIZES, dtype=torch.float64, order=ex.ORDER)
    seed = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).reshape(value.shape)
    expected: tuple[Tensor | None, ...] = tuple(None for _ in wanted)
    if value.requires_grad:
        expected = torch.autograd.grad(value, [leaves[n] for n in wanted], seed, allow_unused=True)
    with torch.no_grad():
        reverse = Reverse([node], ex.ORDER, ex.EXTENTS, blocks, TENSORS, ex.SIZES, torch.float64)
        reverse.run()
    found = reverse.gradients({node: seed}, wanted) if node.kind == "f" else {}
    for name, g in zip(wanted, expected, strict=True):
        actual = found.get(name, torch.zeros_like(TENSORS[name]))
        g = torch.zeros_like(actual) if g is None else g
        scale = 1 + float(g.abs().max())
        torch.testing.assert_close(actual / scale, g / scale, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [None, 1, 4, 100])
def test_rows_change_nothing(rows: int | None) -> None:
    tensors = inputs()
    program = softmax_program()
    whole = evaluate(program, tensors, bind_sizes(program, tensors))["o"]
    torch.testing.assert_close(evaluate(program, tensors, bind_sizes(program, tensors), rows=rows)["o"], whole)


def test_evaluation_in_blocks_is_differentiable() -> None:
    tensors = inputs()
    q = tensors["q"].requires_grad_()
    program = softmax_program(over="i")
    sizes = bind_sizes(program, tensors)
    whole = torch.autograd.grad(evaluate(program, tensors, sizes)["o"].sum(), q)[0]
    blocks = torch.autograd.grad(evaluate(program, tensors, sizes, rows=3)["o"].sum(), q)[0]
    torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-12)


def test_long_sequences_are_cut_until_a_plane_fits() -> None:
    program = softmax_program()
    sizes = {"B": 2, "H": 8, "G": 2, "M": 8192, "N": 8192, "D": 64, "E": 64}
    blocks = staged.choose_blocks(program, program.roots(), axis_extents(program, sizes))
    assert blocks["b"] == blocks["h"] == 1
    assert blocks["i"] * 8192 <= staged.BLOCK_TARGET < 2 * blocks["i"] * 8192
    small = axis_extents(program, {**sizes, "M": 64, "N": 64})
    assert staged.choose_blocks(program, program.roots(), small) == {}


def test_dtype_of_the_evaluation() -> None:
    program = softmax_program()
    tensors = {n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in inputs().items()}
    sizes = bind_sizes(program, tensors)
    assert evaluate(program, tensors, sizes, dtype=torch.float32)["o"].dtype == torch.float32
    assert evaluate(program, tensors, sizes)["o"].dtype == torch.float64


def test_a_missing_tensor_takes_its_default() -> None:
    slope = Input("slope", dims("H"), "f32", default=call("exp2", mul(const(-1.5), axis("h"))), default_axes=("h",))
    base = attention("slopes", (Output("o", ((("h",), load("slope", at("h"))),), dims("H")),))
    program = Program("slopes", (*base.tensors, slope), base.outputs, base.axes, base.sizes)
    tensors = inputs()
    found = evaluate(program, tensors, bind_sizes(program, tensors))["o"]
    expected = torch.exp2(-1.5 * torch.arange(4, dtype=torch.float64)).float().double()
    assert torch.equal(found, expected)
    own = torch.arange(4.0)
    assert torch.equal(evaluate(program, {**tensors, "slope": own}, bind_sizes(program, tensors))["o"], own.double())


def test_an_output_adds_its_parts_along_their_own_axes() -> None:
    ones = sum_over({"d"}, [load("q", at("bhid"))])
    swapped = load("q", (axis("b"), axis("h"), axis("i'"), const(0)))
    out = Output("x", ((tuple("bhi"), ones), (("b", "h", "i'"), swapped), (tuple("bhi"), const(1.0))), dims("BHM"))
    program = attention("parts", (out,))
    tensors = inputs()
    found = evaluate(program, tensors, bind_sizes(program, tensors))["x"]
    torch.testing.assert_close(found, tensors["q"].sum(-1) + tensors["q"][..., 0] + 1)


def test_restricted_axes_and_known_values() -> None:
    q = load("q", at("bid"))
    total = sum_over({"i"}, [q])
    args = (ex.EXTENTS, TENSORS, ex.SIZES)
    (part,) = evaluate_nodes([total], *args, dtype=torch.float64, order=ex.ORDER, fixed={"i": range(1, 3), "b": 1})
    torch.testing.assert_close(part, TENSORS["q"][1:, 1:3].sum(1))
    twice = mul(const(2.0), total)
    known = torch.ones(2, 2, dtype=torch.float64)
    (value,) = evaluate_nodes([twice], *args, dtype=torch.float64, order=ex.ORDER, given={total: known})
    assert torch.equal(value, 2 * known)
    scattered = raw_sum(["j"], [const(1.0)], (), [("r", call("mod", axis("j"), const(3)))])
    (counts,) = evaluate_nodes([scattered], *args, dtype=torch.float64, order=ex.ORDER, fixed={"r": range(1, 4)})
    assert counts.tolist() == [1, 1, 0]


def test_integer_division_by_zero_outside_a_domain() -> None:
    mark = load("mark", at("j"), "i")
    quotient = raw_call("floordiv", (const(7), mark), "i")
    node = sum_over({"j"}, [quotient], [call("lt", const(0), mark)])
    (value,) = evaluate_nodes([node], ex.EXTENTS, TENSORS, ex.SIZES, dtype=torch.float64, order=ex.ORDER)
    assert value.item() == 7 + 3 + 7


def test_maximum_over_nothing() -> None:
    empty = Max.intern((frozenset("j"), load("k", at("bjd")), (call("lt", axis("j"), const(0)),)), frozenset("bd"), "f")
    (value,) = evaluate_nodes([empty], ex.EXTENTS, TENSORS, ex.SIZES, dtype=torch.float64, order=ex.ORDER)
    assert value.shape == (2, 2)
    assert torch.isneginf(value).all()
    (none,) = evaluate_nodes(
        [max_over({"j"}, load("k", at("bjd")))],
        {**ex.EXTENTS, "j": 0},
        TENSORS,
        {},
        dtype=torch.float64,
        order=ex.ORDER,
    )
    assert torch.isneginf(none).all()


def test_canonical_order_of_axes() -> None:
    assert axis_order(["b", "i", "j"])(["j'", "z", "i", "j", "i''", "b"]) == ("b", "i", "i''", "j", "j'", "z")
