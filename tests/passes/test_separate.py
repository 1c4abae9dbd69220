"""Biases that separate: what is found, what is refused, and that factors give the values and gradients of the spec."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import attnc
from attnc import driver
from attnc.ir.dense import bind_sizes, evaluate
from attnc.ir.options import options
from attnc.ir.program import Program
from attnc.passes.bias_form import TargetName
from attnc.passes.separable import Inseparable
from attnc.passes.separate import factorise, find_bias, with_factors
from attnc.testing.compare import dense, output_seeds, run_op
from attnc.testing.inputs import complete_sizes, make_inputs


@dataclass(frozen=True)
class Case:
    """A bias, the rank its factors must have, and what else its spec states."""

    bias: str
    rank: int
    head: str = ""
    mask: str = "j <= i + 9"
    extra: str = field(default="")

    @property
    def text(self) -> str:
        mask = f"mask = {self.mask}\n" if self.mask else ""
        return f"attention case\n{self.head}bias = {self.bias}\n{mask}{self.extra}"


POINTS = "tensor x: f32[B, M, 3]\ntensor y: f32[B, N, 3]\nindex c: 3\n"
SLOPE = "tensor slope: f32[H]\n"
WIDE = "tensor u: f32[M, 9]\ntensor w: f32[N, 9]\nindex a: 9\nindex c: 9\n"
CASES = {
    "alibi": Case("-slope[h] * (i - j)", 2, SLOPE),
    "alibi of the absolute distance": Case("-slope[h] * abs(i - j)", 2, SLOPE, "j <= i"),
    "a larger distance": Case("-slope[h] * max(i - j, 0)", 2, SLOPE, "j < i + 1"),
    "square": Case("-0.01 * (i - j) ** 2", 3),
    "cube": Case("-0.001 * slope[h] * (i - j) ** 3", 4, SLOPE),
    "cosine": Case("slope[h] * cos(0.3 * (i - j))", 2, SLOPE),
    "sine of data": Case("sin(x[b, i, 0] - 2 * y[b, j, 1])", 2, POINTS),
    "spatial": Case("-slope[h] * sum[c]((x[b, i, c] - y[b, j, c]) ** 2)", 5, SLOPE + POINTS),
    "weights per query": Case(
        "w[b, h, i] * sum[c]((x[b, i, c] - y[b, j, c]) ** 2)", 5, POINTS + "tensor w: f32[B, H, M]\n"
    ),
    "product": Case("cos(0.1 * (i - j)) * (i - j) * slope[h]", 4, SLOPE),
    "bounded exponential": Case("exp(tanh(x[b, i, 0]) - 3 * sigmoid(y[b, j, 0]))", 1, POINTS),
    "choice": Case("slope[h] * (x[b, i, 0] * y[b, j, 0] if j % 2 == 0 else 0.5 * y[b, j, 1] * i)", 2, SLOPE + POINTS),
    "two terms": Case("x[b, i, 0] * y[b, j, 0] - slope[h] * x[b, i, 1] * y[b, j, 0]", 1, SLOPE + POINTS),
    "one position": Case("x[b, i, 0] * y[b, j, 0] + y[b, j, 1]", 1, POINTS),
    "observed": Case(
        "-slope[h] * (i - j)",
        2,
        SLOPE,
        "j <= i",
        "observe entropy = -sum[j](xlogy(p, p))\nobserve far = sum[j](p * (i - j))\n",
    ),
    "capped": Case("0", 2, SLOPE, "j <= i", ""),
}
CASES["capped"] = Case("0", 2, SLOPE + "score = 5 * tanh((dot(q, k) - slope[h] * (i - j)) / 5)\n", "j <= i")


def program_of(text: str) -> Program:
    source = driver.read(text)
    return driver.lower(driver.definition(source), source)


def inputs_of(program: Program, dtype: torch.dtype, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    found = complete_sizes(program, {"B": 2, "H": 4, "G": 2, "M": 7, "N": 63, "D": 8, "E": 6} | sizes)
    return make_inputs(program, found, dtype, seed=seed)


def expanded(text: str) -> tuple[Tensor, Tensor, int] | None:
    """The product of the factors of a bias, the bias itself, both [.., M, N], and the rank; None if it has none."""
    program = program_of(text)
    bias = find_bias(program)
    if bias is None:
        return None
    try:
        factors = factorise(program, bias)
    except Inseparable:
        return None
    split = with_factors(program, bias, factors)
    assert split.first is not None
    tensors = inputs_of(program, torch.float64)
    sizes = bind_sizes(program, tensors, 3)
    made = evaluate(split.first, {t.name: tensors[t.name] for t in split.first.tensors}, sizes)
    (axes, right_axes), product = (o.parts[0][0] for o in split.first.outputs), factors.scale
    whole = {"left": (made[split.made[0]], axes), "right": (made[split.made[1]], right_axes)}
    letters = {a: chr(97 + k) for k, a in enumerate(dict.fromkeys((*axes, *right_axes, "b", "h", "i", "j")))}
    spelled = ["".join(letters[a] for a in names) for _, names in whole.values()]
    kept = [a for a in ("b", "h", "i", "j") if a in bias.value.axes or a in axes or a in right_axes]
    target = "".join(letters[a] for a in kept)
    scale = evaluate(replace_output(program, product, ()), tensors, sizes)["bias"]
    scaled = "".join(letters[a] for a in ("b", "h") if a in product.axes)
    kept_all = [a for a in ("b", "h", "i", "j") if a in kept or a in product.axes]
    target = "".join(letters[a] for a in kept_all)
    found = torch.einsum(f"{spelled[0]},{spelled[1]},{scaled}->{target}", whole["left"][0], whole["right"][0], scale)
    exact = evaluate(replace_output(program, bias.value, tuple(kept_all)), tensors, sizes)["bias"]
    return found, exact, factors.rank


@pytest.mark.parametrize("name", CASES)
def test_factors_multiply_to_the_bias(name: str) -> None:
    made = expanded(CASES[name].text)
    assert made is not None
    product, exact, rank = made
    assert rank == CASES[name].rank
    if "abs" in CASES[name].bias or "max" in CASES[name].bias:
        seen = torch.arange(63)[None] <= torch.arange(7)[:, None] + 3
        product, exact = product * seen, exact * seen
    torch.testing.assert_close(product.expand(exact.shape), exact, rtol=1e-10, atol=1e-10)


LEAVES = st.sampled_from(
    ["x[b, i, 0]", "y[b, j, 1]", "(x[b, i, 2] - y[b, j, 0])", "(i - j)", "slope[h]", "0.3", "w[b, h, i]", "(j % 3)"]
)
BIASES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: f"({t[0]} + {t[1]})"),
        st.tuples(inner, inner).map(lambda t: f"({t[0]} * {t[1]})"),
        inner.map(lambda t: f"cos({t})"),
        inner.map(lambda t: f"sin({t})"),
        inner.map(lambda t: f"({t}) ** 2"),
        inner.map(lambda t: f"exp(0.1 * tanh({t}))"),
        inner.map(lambda t: f"({t} if j < 9 else 0.5)"),
    ),
    max_leaves=5,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(BIASES)
def test_any_expansion_is_exact(bias: str) -> None:
    head = SLOPE + POINTS + "tensor w: f32[B, H, M]\n"
    made = expanded(f"attention case\n{head}bias = slope[h] * x[b, i, 0] * y[b, j, 0] * ({bias})\n")
    if made is not None:
        product, exact, _ = made
        scale = exact.abs().max().item() + 1
        torch.testing.assert_close(product, exact, rtol=0, atol=1e-9 * scale)


def replace_output(program: Program, value: object, positions: tuple[str, ...]) -> Program:
    """A program whose one output is `value`."""
    from attnc.ir.node import Node
    from attnc.ir.program import Output
    from attnc.passes.reuse import ordered

    assert isinstance(value, Node)
    axes = ordered(value.axes | set(positions))
    dims = tuple(program.extent(a) for a in axes)
    return program.with_outputs((Output("bias", ((axes, value),), dims, "real"),))


RUNS = [(name, "factors", backend) for name in CASES for backend in ("tiled", "cpp")]
RUNS += [(name, "dense", "tiled") for name in CASES]
RUNS += [(name, "dense", "cpp") for name in ("spatial", "observed")]


@pytest.mark.parametrize(("name", "form", "backend"), RUNS)
def test_values_and_gradients_are_those_of_the_spec(name: str, form: str, backend: str) -> None:
    op = attnc.compile(CASES[name].text, bias=form, backend=backend)
    tensors = inputs_of(op.program, torch.float64)
    seeds = output_seeds(op.program, tensors)
    found, exact = run_op(op, tensors, seeds), dense(op.program, tensors, seeds, torch.float64)
    for got, values in ((found.outputs, exact.outputs), (found.gradients, exact.gradients)):
        for key, value in values.items():
            rounding = max(1e-9, 4 * torch.finfo(got[key].dtype).eps)  # gradients of f32 tensors are stored in f32
            torch.testing.assert_close(
                got[key].double(),
                value,
                rtol=0,
                atol=rounding * value.abs().max().item() + 1e-10,
                msg=key,
            )


@pytest.mark.parametrize(("M", "N"), [(1, 1), (63, 63), (257, 130), (1, 257)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_are_as_accurate_as_registers(M: int, N: int, dtype: torch.dtype) -> None:
    """By the largest error of several draws: that of a slope, one number a head, may be tiny by luck.

    As accurate as registers, or as plain PyTorch in the same dtype; a gradient that is 0 because its terms cancel is
    held to the size of the terms, as everywhere.
    """
    ops = {f: attnc.compile(CASES["spatial"].text, bias=f) for f in ("registers", "factors")}
    program = ops["factors"].program
    worst: dict[str, dict[str, float]] = {}
    for draw in range(4):
        tensors = inputs_of(program, dtype, draw, M=M, N=N)
        seeds = output_seeds(program, tensors, seed=1 + draw)
        exact = dense(program, tensors, seeds, torch.float64)
        runs = {f: run_op(op, tensors, seeds) for f, op in ops.items()}
        runs["dense"] = dense(program, tensors, seeds, dtype)
        values = [*exact.outputs.values(), *exact.gradients.values()]
        terms = max(x.abs().max().item() for x in values) * max(x.abs().max().item() for x in tensors.values()) ** 2
        for kind in ("outputs", "gradients"):
            for key, value in getattr(exact, kind).items():
                found = {f: (getattr(r, kind)[key].double() - value).abs().max().item() for f, r in runs.items()}
                largest = value.abs().max().item()
                found["floor"] = 8 * torch.finfo(dtype).eps * (largest if largest > 1e-12 * terms else terms)
                before = worst.setdefault(key, found)
                worst[key] = {f: max(found[f], before[f]) for f in found}
    for key, error in worst.items():
        allowed = max(4 * error["registers"], 2 * error["dense"]) + error["floor"]
        assert error["factors"] <= allowed, key


def test_points_far_from_the_origin_are_centred() -> None:
    """Uncentred, |x|^2 - 2xy + |y|^2 would lose 8 digits of distances near 1."""
    op = attnc.compile(CASES["spatial"].text, bias="factors")
    tensors = inputs_of(op.program, torch.float32, M=63)
    tensors = {n: t + 4096 if n in ("x", "y") else t for n, t in tensors.items()}
    seeds = output_seeds(op.program, tensors)
    found, exact = run_op(op, tensors, seeds), dense(op.program, tensors, seeds, torch.float64)
    for got, values in ((found.outputs, exact.outputs), (found.gradients, exact.gradients)):
        for key, value in values.items():
            assert (got[key].double() - value).abs().max() <= 2e-5 * value.abs().max(), key


@pytest.mark.parametrize("backend", ["tiled", "cpp"])
def test_what_masked_keys_hold_is_never_seen(backend: str) -> None:
    text = CASES["spatial"].text.replace("mask = j <= i + 9", "mask = j < 40")
    op = attnc.compile(text, bias="factors", backend=backend)
    tensors = inputs_of(op.program, torch.float32, M=63)
    seeds = output_seeds(op.program, tensors)
    clean = run_op(op, tensors, seeds)
    dirty = {n: t.clone() for n, t in tensors.items()}
    dirty["y"][:, 40:] = torch.nan
    found = run_op(op, dirty, seeds)
    for got, values in ((found.outputs, clean.outputs), (found.gradients, clean.gradients)):
        for key, value in values.items():
            torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize(
    ("bias", "reason"),
    [
        ("-0.1 * abs(i - j)", "abs"),
        ("exp(0.1 * (i - j))", "may overflow"),
        ("exp(x[b, i, 0] - y[b, j, 0])", "may overflow"),
        ("tanh(x[b, i, 0] - y[b, j, 0])", "tanh"),
        ("1.0 if i < j else 2.0", "chooses by both positions"),
        ("0.1 * ((i - j) // 3)", "//"),
        ("sum[c]((x[b, i, c] - y[b, j, c]) ** 2) ** 2", "same channels"),
        ("sum[a](u[i, a] * w[j, a]) * sum[c](u[i, c] * w[j, c])", "more than 64"),
    ],
)
def test_what_has_no_exact_factors_is_refused(bias: str, reason: str) -> None:
    head = POINTS if "[b" in bias else WIDE if "u[" in bias else ""
    text = f"attention case\n{head}bias = {bias}\n"
    program = program_of(text)
    found = find_bias(program)
    assert found is not None
    with pytest.raises(Inseparable, match=re.escape(reason)):
        factorise(program, found)
    with pytest.raises(attnc.SpecError, match="E331"):
        attnc.compile(text, bias="factors")


def test_conditions_keep_what_they_compare() -> None:
    """A mask is exact: the sum it compares is not taken for a bias, even where it looks like one."""
    program = program_of("attention near\nlet far = 0.01 * (i - j) ** 2\nbias = -far\nmask = dot(q, k) - far <= 3\n")
    bias = find_bias(program)
    assert bias is not None
    split = with_factors(program, bias, factorise(program, bias))
    before, after = (
        {c for n in roots for c in getattr(n, "domain", ())} for roots in (_nodes(program), _nodes(split.attention))
    )
    assert before == after


def _nodes(program: Program) -> list[object]:
    from attnc.ir.walk import postorder

    return [*postorder(program.roots())]


CHOICES: list[tuple[str, TargetName, str, str]] = [
    ("alibi", "cpu", "registers", "registers"),
    ("cosine", "cpu", "factors", "factors"),
    ("cosine", "gpu", "registers", "registers"),
    ("spatial", "cpu", "registers", "factors"),  # its squares cancel
    ("weights per query", "cpu", "registers", "factors"),
    ("spatial", "gpu", "registers", "registers"),
    ("one position", "cpu", "registers", "registers"),
]


@pytest.mark.parametrize(("name", "target", "full", "half"), CHOICES)
def test_the_cheapest_form_is_chosen(name: str, target: TargetName, full: str, half: str) -> None:
    program = program_of(CASES[name].text)
    for form, dtypes in ((full, ("f32", "f64")), (half, ("bf16", "f16"))):
        for dtype in dtypes:
            assert driver.choose(program, target, dtype).form == form
    off = replace(program, options=options("separate"))
    assert all(driver.choose(off, target, dtype).form == "registers" for dtype in ("f32", "bf16"))


@pytest.mark.parametrize("backend", ["tiled", "cpp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_choice_follows_the_dtype_of_each_call(dtype: torch.dtype, backend: str) -> None:
    """To the bit: one op runs the form that is chosen for what it is given, forward and backward."""
    text = CASES["spatial"].text
    op = attnc.compile(text, backend=backend)
    other = inputs_of(op.program, torch.float32 if dtype is torch.bfloat16 else torch.bfloat16)
    run_op(op, other, output_seeds(op.program, other))
    chosen = attnc.compile(text, bias="registers" if dtype is torch.float32 else "factors", backend=backend)
    tensors = inputs_of(op.program, dtype)
    seeds = output_seeds(op.program, tensors)
    found, expected = run_op(op, tensors, seeds), run_op(chosen, tensors, seeds)
    for got, values in ((found.outputs, expected.outputs), (found.gradients, expected.gradients)):
        assert values.keys() == got.keys()
        for key, value in values.items():
            assert torch.equal(got[key], value), key


@pytest.mark.parametrize("length", [63, 257])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
def test_half_precision_hides_what_factors_round(spread: float, dtype: torch.dtype, length: int) -> None:
    """Outputs and all gradients, with the choice on and off, within twice the error of the dense formula."""
    text = CASES["spatial"].text
    ops = {"on": attnc.compile(text), "off": attnc.compile(text, disable="separate")}
    tensors = inputs_of(ops["on"].program, dtype, M=length, N=length)
    tensors = {n: t * spread if n in ("x", "y") else t.abs() if n == "slope" else t for n, t in tensors.items()}
    seeds = output_seeds(ops["on"].program, tensors)
    exact = dense(ops["on"].program, tensors, seeds, torch.float64)
    plain = dense(ops["on"].program, tensors, seeds, dtype)
    for name, op in ops.items():
        run = run_op(op, tensors, seeds)
        for kind in ("outputs", "gradients"):
            for key, value in getattr(exact, kind).items():
                error = (getattr(run, kind)[key].double() - value).abs().max().item()
                allowed = 2 * (getattr(plain, kind)[key].double() - value).abs().max().item()
                assert error <= allowed + torch.finfo(dtype).eps * value.abs().max().item(), (name, key)


def test_a_bias_that_is_a_product_already_stays() -> None:
    text = (
        "attention given\ntensor left: f32[H, M, 8]\ntensor right: f32[H, N, 8]\nindex r: 8\n"
        "bias = sum[r](left[h, i, r] * right[h, j, r])\n"
    )
    assert driver.choose(program_of(text)).form == "registers"


def test_the_decision_tells_dtypes_apart() -> None:
    program = program_of(CASES["spatial"].text)
    for dtype, first in (("f32", "registers"), ("bf16", "factors")):
        forward, gradient = driver.explained_plans(program, dtype=dtype)
        (decision,) = (d for d in forward.decisions if d.rewrite == "separate")
        full, half = "registers in f32 and f64", "factors in bf16 and f16"
        listed = f"{full}, {half}" if first == "registers" else f"{half}, {full}"
        assert decision.chosen.startswith(f"on a cpu {listed} (")
        assert "registers on a gpu (" in decision.chosen
        assert "the terms of factors cancel: in f32 and f64 they round more" in decision.chosen
        assert decision.alternatives[0].name == first
        assert any(o.name == "grad_bias_j" for o in gradient.program.outputs) == (first == "factors")


@pytest.mark.parametrize("name", ["spatial", "cosine"])
def test_plans_show_the_factors(name: str) -> None:
    from attnc.cli.stages import plan_text

    program = program_of(CASES[name].text)
    program = replace(program, options=options(bias="factors"))
    text = "\n".join(plan_text(p) for p in (*driver.bias_plans(program), *driver.explained_plans(program)))
    assert re.search(r"output bias_i: real\[.*, M, \d\]", text)
    assert "sum[r](" in text and "grad_bias_j" in text


def test_the_decision_weighs_all_forms() -> None:
    forward, _ = driver.explained_plans(program_of(CASES["cosine"].text))
    (decision,) = (d for d in forward.decisions if d.rewrite == "separate")
    assert [a.name for a in decision.alternatives] == ["factors", "registers", "dense bias"]
    assert "2 products" in decision.found
    assert "factors on a cpu" in decision.chosen
    assert "registers on a gpu" in decision.chosen
    assert decision.line == 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"bias": "factor"}, "E330"),
        ({"rank": 0}, "E332"),
        ({"rank": "most"}, "E332"),
        ({"rank": True}, "E332"),
        ({"rank": "auto", "rtol": 0.0}, "E332"),
        ({"rank": 4, "bias": "dense"}, "E332"),
        ({"bias": "factors"}, "E331"),
        ({"rank": 4}, "E331"),
    ],
)
def test_what_cannot_be_asked_for_is_reported(arguments: dict[str, object], code: str) -> None:
    with pytest.raises(attnc.SpecError, match=code):
        attnc.compile("attention causal\nmask = j <= i", **arguments)  # type: ignore[arg-type]
