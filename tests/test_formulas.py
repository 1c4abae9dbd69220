"""The dense formulas of tests/formulas.py against loops over single numbers, in float64 at tiny sizes.

The loops are a second, separate reading of the papers: one score, one permission and one weight at a time, in plain
Python. They know nothing of broadcasting, gathers or matrix products, which is where dense formulas go wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.formulas import SPECS, Dims, Inputs, evaluate, make_inputs, to_dtype

Row = list[float]
EXAMPLES = Path(__file__).parent.parent / "examples"


class Loops:
    """One call seen one number at a time: the score of a pair, whether it is allowed, and the weights of a row."""

    def __init__(self, inputs: Inputs) -> None:
        self.q, self.k, self.v = inputs.q, inputs.k, inputs.v
        self.t, self.c, self.q_start = inputs.tensors, inputs.consts, inputs.q_start
        self.B, self.H, self.M, self.D = self.q.shape
        self.G, self.N, self.E = self.v.shape[1], self.v.shape[2], self.v.shape[3]

    def at(self, tensor: str, *index: int) -> float:
        return float(self.t[tensor][index])

    def key(self, b: int, h: int, j: int, d: int) -> float:
        return float(self.k[b, h // (self.H // self.G), j, d])

    def dot(self, b: int, h: int, m: int, j: int) -> float:
        return sum(float(self.q[b, h, m, d]) * self.key(b, h, j, d) for d in range(self.D))

    def score(self, b: int, h: int, m: int, j: int) -> float:
        return self.dot(b, h, m, j) / math.sqrt(self.D)

    def allowed(self, b: int, i: int, j: int) -> bool:
        return True

    def normalise(self, b: int, h: int, m: int, row: dict[int, float]) -> dict[int, float]:
        """The weights of one row from the scores of its allowed keys."""
        total = sum(math.exp(s) for s in row.values())
        return {j: math.exp(s) / total for j, s in row.items()}

    def edit(self, b: int, h: int, m: int, j: int, p: float) -> float:
        return p

    def row(self, b: int, h: int, m: int) -> dict[int, float]:
        i = m + self.q_start
        open_keys = {j: self.score(b, h, m, j) for j in range(self.N) if self.allowed(b, i, j)}
        return {j: self.edit(b, h, m, j, p) for j, p in self.normalise(b, h, m, open_keys).items()}

    def output(self) -> Tensor:
        o = torch.zeros(self.B, self.H, self.M, self.E, dtype=torch.float64)
        for b in range(self.B):
            for h in range(self.H):
                for m in range(self.M):
                    for j, w in self.row(b, h, m).items():
                        for e in range(self.E):
                            o[b, h, m, e] += w * float(self.v[b, h // (self.H // self.G), j, e])
        return o


class Causal(Loops):
    def allowed(self, b: int, i: int, j: int) -> bool:
        return j <= i


class Alibi(Causal):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        return super().score(b, h, m, j) - self.at("slope", h) * (m + self.q_start - j)


class SoftcapAlibi(Causal):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        cap = self.c["cap"]
        return cap * math.tanh(super().score(b, h, m, j) / cap) - self.at("slope", h) * (m + self.q_start - j)


class Window(Loops):
    def allowed(self, b: int, i: int, j: int) -> bool:
        return 0 <= i - j < self.c["window"]


class Gemma2(Window):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        return self.c["cap"] * math.tanh(super().score(b, h, m, j) / self.c["cap"])


class Dilated(Loops):
    def allowed(self, b: int, i: int, j: int) -> bool:
        return j in range(i, i - int(self.c["window"]), -int(self.c["step"]))


class Sinks(Window):
    def normalise(self, b: int, h: int, m: int, row: dict[int, float]) -> dict[int, float]:
        total = math.exp(self.at("sink", h)) + sum(math.exp(s) for s in row.values())
        return {j: math.exp(s) / total for j, s in row.items()}


class Softmax1(Causal):
    def normalise(self, b: int, h: int, m: int, row: dict[int, float]) -> dict[int, float]:
        total = 1 + sum(math.exp(s) for s in row.values())
        return {j: math.exp(s) / total for j, s in row.items()}


class RelativeTable(Loops):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        reach = int(self.c["R"])
        return super().score(b, h, m, j) + self.at("table", h, max(-reach, min(reach, m + self.q_start - j)) + reach)


class Urpe(Causal):
    def edit(self, b: int, h: int, m: int, j: int, p: float) -> float:
        reach = int(self.c["R"])
        return p * self.at("table", h, min(reach, m + self.q_start - j) + reach)


class DocumentCausal(Loops):
    def allowed(self, b: int, i: int, j: int) -> bool:
        return j <= i and self.at("doc", b, i) == self.at("doc", b, j)


class PrefixLm(Loops):
    def allowed(self, b: int, i: int, j: int) -> bool:
        return j < max(i + 1, self.at("prefix", b))


class Music(Causal):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        r = max(0, self.t["rel"].shape[1] - 1 - abs(m + self.q_start - j))
        relative = sum(float(self.q[b, h, m, d]) * self.at("rel", h, r, d) for d in range(self.D))
        return (self.dot(b, h, m, j) + relative) / math.sqrt(self.D)


class Spatial(Loops):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        distance = math.dist([self.at("x", b, m, c) for c in range(3)], [self.at("y", b, j, c) for c in range(3)])
        return super().score(b, h, m, j) - self.at("strength", h) * distance**2


class SigmoidAttention(Loops):
    def normalise(self, b: int, h: int, m: int, row: dict[int, float]) -> dict[int, float]:
        return {j: 1 / (1 + self.N * math.exp(-s)) for j, s in row.items()}


class Gated(Causal):
    def output(self) -> Tensor:
        o = super().output()
        for index in torch.cartesian_prod(*(torch.arange(n) for n in o.shape)).tolist():
            o[tuple(index)] /= 1 + math.exp(-self.at("g", *index))
        return o


class Manhattan(Loops):
    def edit(self, b: int, h: int, m: int, j: int, p: float) -> float:
        (y, x), (y2, x2) = divmod(m + self.q_start, 14), divmod(j, 14)
        return p * self.at("gamma", h) ** (abs(y - y2) + abs(x - x2))


class Neighborhood2d(Loops):
    def allowed(self, b: int, i: int, j: int) -> bool:
        rows, cols, r = (int(self.c[name]) for name in ("rows", "cols", "r"))

        def window(x: int, n: int) -> range:
            first = max(0, min(x - r, n - 2 * r - 1))
            return range(first, first + 2 * r + 1)

        return j // cols in window(i // cols, rows) and j % cols in window(i % cols, cols)


class Retention(Causal):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        return self.dot(b, h, m, j) * self.at("gamma", h) ** (m + self.q_start - j)

    def normalise(self, b: int, h: int, m: int, row: dict[int, float]) -> dict[int, float]:
        return row


class Shares(Loops):
    """Nonnegative scores over their sum."""

    def normalise(self, b: int, h: int, m: int, row: dict[int, float]) -> dict[int, float]:
        total = sum(row.values())
        return {j: s / total if total else 0.0 for j, s in row.items()}


class LinearBidirectional(Shares):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        def feature(x: float) -> float:
            return x + 1 if x > 0 else math.exp(x)

        return sum(feature(float(self.q[b, h, m, d])) * feature(self.key(b, h, j, d)) for d in range(self.D))


class LinearAttention(LinearBidirectional, Causal):
    pass


class Cosformer(Shares, Causal):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        near = math.cos(math.pi / 2 * (m + self.q_start - j) / self.c.get("longest", 4096))
        return near * sum(max(0.0, float(self.q[b, h, m, d])) * max(0.0, self.key(b, h, j, d)) for d in range(self.D))


class Lightning(Retention):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        return self.dot(b, h, m, j) * math.exp(-self.at("slope", h) * (m + self.q_start - j))


class ScalarDecay(Retention):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        steps = range(j + 1, m + self.q_start + 1)
        return Loops.score(self, b, h, m, j) * math.prod(math.exp(self.at("g", b, h, t)) for t in steps)


class Gla(Retention):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        def term(d: int) -> float:
            steps = range(j + 1, m + self.q_start + 1)
            decay = math.prod(math.exp(self.at("g", b, h, t, d)) for t in steps)
            return float(self.q[b, h, m, d]) * self.key(b, h, j, d) * decay

        return sum(term(d) for d in range(self.D)) / math.sqrt(self.D)


class Aaren(Causal):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        return sum(self.at("u", h, d) * self.key(b, h, j, d) for d in range(self.D)) / math.sqrt(self.D)


class Reversed(Loops):
    def row(self, b: int, h: int, m: int) -> dict[int, float]:
        def share(j: int) -> float:
            return math.exp(self.score(b, h, m, j)) / sum(math.exp(self.score(b, h, x, j)) for x in range(self.M))

        return {j: share(j) for j in range(self.N)}


class Lssa(Causal):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        lengths = [
            math.sqrt(sum(x * x for x in row))
            for row in (self.q[b, h, m].tolist(), self.k[b, h // (self.H // self.G), j].tolist())
        ]
        cosine = self.dot(b, h, m, j) / lengths[0] / lengths[1]
        return math.log(self.D) * math.log(m + self.q_start + 1) * cosine

    def normalise(self, b: int, h: int, m: int, row: dict[int, float]) -> dict[int, float]:
        soft = {j: math.log(1 + math.exp(s)) for j, s in row.items()}
        return {j: x / sum(soft.values()) for j, x in soft.items()}


class UserNormaliser(Lssa):
    score = Loops.score


class Pointer(Loops):
    def score(self, b: int, h: int, m: int, j: int) -> float:
        terms = (self.at("u", d) * math.tanh(float(self.q[b, h, m, d]) + self.key(b, h, j, d)) for d in range(self.D))
        return sum(terms)

    def output(self) -> Tensor:
        rows = [[[self.row(b, h, m) for m in range(self.M)] for h in range(self.H)] for b in range(self.B)]
        return torch.tensor(
            [[[[w[j] for j in range(self.N)] for w in per_head] for per_head in per_batch] for per_batch in rows],
            dtype=torch.float64,
        )


class Agent(Loops):
    def output(self) -> Tensor:
        agents = self.t["agent"]
        first = Loops(Inputs(agents, self.k, self.v, {}, {}))
        return Loops(Inputs(self.q, agents, first.output(), {}, {})).output()


class Differential(Causal):
    def half(self, b: int, h: int, m: int, j: int, first: int) -> float:
        channels = range(first, first + self.D // 2)
        dot = sum(float(self.q[b, h, m, d]) * self.key(b, h, j, d) for d in channels)
        return dot / math.sqrt(self.D // 2)

    def score(self, b: int, h: int, m: int, j: int) -> float:
        return self.half(b, h, m, j, 0)

    def edit(self, b: int, h: int, m: int, j: int, p: float) -> float:
        keys = range(min(self.N, m + self.q_start + 1))
        noise = self.normalise(b, h, m, {x: self.half(b, h, m, x, self.D // 2) for x in keys})
        return p - self.at("lam", h) * noise[j]


class Rope(Causal):
    def dot(self, b: int, h: int, m: int, j: int) -> float:
        """Pairs of channels as complex numbers, turned by their positions."""
        half, total = self.D // 2, 0.0
        for d in range(half):
            angle = 10000 ** (-2 * d / self.D)
            turn_q = complex(math.cos((m + self.q_start) * angle), math.sin((m + self.q_start) * angle))
            turn_k = complex(math.cos(j * angle), math.sin(j * angle))
            z = complex(float(self.q[b, h, m, d]), float(self.q[b, h, m, d + half])) * turn_q
            y = complex(self.key(b, h, j, d), self.key(b, h, j, d + half)) * turn_k
            total += (z * y.conjugate()).real
        return total


LOOPS: dict[str, type[Loops]] = {
    "softmax": Loops,
    "causal": Causal,
    "alibi": Alibi,
    "softcap_alibi": SoftcapAlibi,
    "gemma2": Gemma2,
    "sliding_window": Window,
    "dilated": Dilated,
    "sinks": Sinks,
    "softmax1": Softmax1,
    "relative_table": RelativeTable,
    "urpe": Urpe,
    "document_causal": DocumentCausal,
    "prefix_lm": PrefixLm,
    "music": Music,
    "spatial": Spatial,
    "sigmoid_attention": SigmoidAttention,
    "gated": Gated,
    "manhattan": Manhattan,
    "neighborhood_2d": Neighborhood2d,
    "retention": Retention,
    "linear_attention": LinearAttention,
    "linear_bidirectional": LinearBidirectional,
    "lightning": Lightning,
    "scalar_decay": ScalarDecay,
    "gla": Gla,
    "cosformer": Cosformer,
    "aaren": Aaren,
    "reversed": Reversed,
    "watched": Causal,
    "pointer": Pointer,
    "agent": Agent,
    "lssa": Lssa,
    "user_normaliser": UserNormaliser,
    "differential": Differential,
    "rope": Rope,
}
SMALL_CONSTS: dict[str, dict[str, int | float]] = {
    "sinks": {"window": 3},
    "sliding_window": {"window": 3},
    "gemma2": {"window": 3, "cap": 1.5},
    "dilated": {"window": 5, "step": 2},
    "relative_table": {"R": 2},
    "urpe": {"R": 2},
    "cosformer": {"longest": 16},
    "neighborhood_2d": {"rows": 3, "cols": 4, "r": 1},
}
SMALL_TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "table": lambda t: t[:, :5].contiguous(),
    "rel": lambda t: t[:, :4].contiguous(),
}
# M < N with an offset, a square, and more queries than keys.
SHAPES = [(5, 8, 3), (6, 6, 0), (9, 4, 0)]


def tiny(name: str, m: int, n: int, q_start: int) -> Inputs:
    inputs = make_inputs(name, Dims(B=2, H=4, G=2, M=m, N=n, D=4, E=3), seed=m, q_start=q_start)
    tensors = {t: SMALL_TENSORS[t](x) if t in SMALL_TENSORS else x for t, x in inputs.tensors.items()}
    consts = {**inputs.consts, **SMALL_CONSTS.get(name, {})}
    return Inputs(inputs.q, inputs.k, inputs.v, tensors, consts, q_start)


@pytest.mark.parametrize(("m", "n", "q_start"), SHAPES)
@pytest.mark.parametrize("name", sorted(SPECS))
def test_formula_equals_loops(name: str, m: int, n: int, q_start: int) -> None:
    if SPECS[name].queries_within_keys and m + q_start > n:
        m = n - q_start
    inputs = tiny(name, m, n, q_start)
    torch.testing.assert_close(evaluate(name, inputs)["o"], LOOPS[name](inputs).output(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("m", "n", "q_start"), SHAPES)
def test_observations_equal_loops(m: int, n: int, q_start: int) -> None:
    inputs = tiny("watched", m, n, q_start)
    loops, seen = Causal(inputs), evaluate("watched", inputs)
    for b in range(2):
        for h in range(4):
            rows = [loops.row(b, h, x) for x in range(m)]
            for x, row in enumerate(rows):
                entropy = -sum(p * math.log(p) for p in row.values())
                distance = sum(p * abs(x + q_start - j) for j, p in row.items())
                assert float(seen["entropy"][b, h, x]) == pytest.approx(entropy, abs=1e-12)
                assert float(seen["distance"][b, h, x]) == pytest.approx(distance, abs=1e-12)
            mass = [sum(row.get(j, 0.0) for row in rows) for j in range(n)]
            assert seen["importance"][b, h].tolist() == pytest.approx(mass, abs=1e-12)


def test_defaults_are_the_specs_own() -> None:
    """Slopes and decays left out are the ones the spec writes."""
    for name, tensor, values in [
        ("alibi", "slope", [2 ** (-8 * (h + 1) / 4) for h in range(4)]),
        ("softcap_alibi", "slope", [2 ** (-8 * (h + 1) / 4) for h in range(4)]),
        ("retention", "gamma", [1 - 2 ** (-5 - h) for h in range(4)]),
        ("lightning", "slope", [2 ** (-8 * (h + 1) / 4) for h in range(4)]),
    ]:
        inputs = tiny(name, 6, 6, 0)
        bare = Inputs(inputs.q, inputs.k, inputs.v, {}, inputs.consts)
        full = Inputs(inputs.q, inputs.k, inputs.v, {tensor: torch.tensor(values).double()}, inputs.consts)
        torch.testing.assert_close(evaluate(name, bare)["o"], evaluate(name, full)["o"], rtol=1e-7, atol=1e-8)


def test_against_pytorch() -> None:
    """Where PyTorch has the variant itself, it agrees."""
    inputs = make_inputs("causal", Dims(B=2, H=4, G=2, M=33, N=33))
    expected = F.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(evaluate("causal", inputs)["o"], expected)
    expected = F.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, enable_gqa=True)
    torch.testing.assert_close(evaluate("softmax", inputs)["o"], expected)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_gradients_are_finite_and_reach_every_input(name: str) -> None:
    """Also in rows without a key: q_start before the first key leaves causal rows empty."""
    inputs = tiny(name, 6, 6, 0 if SPECS[name].queries_within_keys else -2)
    if name in ("lssa", "urpe"):  # log(i + 1) and a table indexed by i - j need i >= 0
        inputs = tiny(name, 6, 6, 0)
    leaves = {n: x.requires_grad_() for n, x in inputs.real().items()}
    results = evaluate(name, inputs)
    for value in results.values():
        assert torch.isfinite(value).all()
    losses = [r.square().sum() for r in results.values()]
    gradients = torch.autograd.grad(losses, list(leaves.values()), allow_unused=True)
    for (leaf, _), gradient in zip(leaves.items(), gradients, strict=True):
        if (name, leaf) in {("pointer", "v"), ("aaren", "q")}:
            assert gradient is None
            continue
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", sorted(SPECS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_formula_keeps_the_dtype(name: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(name, Dims(M=7, N=7), dtype)
    assert evaluate(name, inputs)["o"].dtype == dtype
    exact = evaluate(name, to_dtype(inputs, torch.float64))["o"]
    error = (evaluate(name, inputs)["o"].double() - exact).abs().max()
    assert error < 30 * torch.finfo(dtype).eps * max(1.0, float(exact.abs().max()))


def test_every_example_has_a_formula() -> None:
    assert sorted(SPECS) == sorted(p.stem for p in EXAMPLES.glob("*.attn"))
    assert sorted(LOOPS) == sorted(SPECS)
