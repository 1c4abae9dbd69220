"""Whatever a spec says, lowering gives a program that evaluates inside its tensors, or located diagnostics."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnc.diagnostics.diagnostic import SpecError
from attnc.ir.dense import evaluate
from attnc.ir.node import Const, Size
from attnc.ir.program import Program
from attnc.ir.walk import postorder, replace
from tests.lowering.specs import with_warnings

HEAD = (
    "const R = 2\nsize L\nindex a: L\nindex c: 3\ntensor t: f32[H, L]\ntensor n: i32[B, N]\ntensor x: f32[B, M, 3]\n"
    "tensor y: [L, D] = a - d\ntensor ok: bool[N]\nlet u[a, j] = a * j + t[h, a]\nlet gap = i - j\n"
    "def f(x) = x * x + gap\ndef r[z](x) = x - mean[z](x)\n"
)
NAMES = (*"bhgijdeacBHMNDELRqkvspwotnxyu", "gap", "ok", "inf", "nothing", "1", "2", "0.5", "-3", "true")
SECTIONS = ("score", "bias", "mask", "weight", "output", "gate", "query", "key", "value", "normaliser(z)", "observe m")

names = st.sampled_from(NAMES)
subscripted = st.sampled_from(("q", "k", "v", "t", "n", "x", "y", "u", "ok", "p", "o", "gap"))


def _expressions(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(("+", "-", "*", "/", "//", "%", "**", "<", "==", "and", "or"))
    return st.one_of(
        st.tuples(parts, operators, parts).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
        st.tuples(
            parts, st.sampled_from("ijdeacbhgz"), st.sampled_from(("sum", "max", "min", "mean", "r", "softmax"))
        ).map(lambda p: f"{p[2]}[{p[1]}]({p[0]})"),
        st.tuples(st.sampled_from(("exp", "tanh", "abs", "floor", "f", "sqrt", "not ", "-", "detach")), parts).map(
            lambda p: f"{p[0]}({p[1]})"
        ),
        st.tuples(st.sampled_from(("dot", "min", "max", "xlogy", "softmax")), parts, parts).map(
            lambda p: f"{p[0]}({p[1]}, {p[2]})"
        ),
        st.tuples(subscripted, st.lists(parts, min_size=1, max_size=3)).map(lambda p: f"{p[0]}[{', '.join(p[1])}]"),
        st.tuples(parts, parts, parts).map(lambda p: f"({p[0]} if {p[1]} else {p[2]})"),
        st.tuples(parts, parts, parts).map(lambda p: f"clamp({p[0]}, {p[1]}, {p[2]})"),
        st.tuples(parts, parts).map(lambda p: f"(0 <= {p[0]} < {p[1]})"),
    )


expressions = st.recursive(names, _expressions, max_leaves=8)
sections = st.dictionaries(st.sampled_from(SECTIONS), expressions, min_size=1, max_size=3)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(sections)
def test_any_spec_lowers_or_is_explained(spec: dict[str, str]) -> None:
    body = HEAD + "\n".join(f"{name} = {value}" for name, value in spec.items())
    try:
        program, _ = with_warnings(body)
    except SpecError as error:
        assert all(d.span is not None and d.remedy for d in error.diagnostics)
        return
    _evaluates(program)


def _evaluates(program: Program) -> None:
    """The dense evaluator reads nothing outside the tensors at sizes that pass the program's checks."""
    for sizes in (
        {"B": 2, "H": 2, "G": 1, "M": 3, "N": 5, "D": 4, "E": 4, "L": 2, "q_start": 0},
        {"B": 1, "H": 2, "G": 2, "M": 2, "N": 1, "D": 1, "E": 2, "L": 6, "q_start": 3},
        {"B": 1, "H": 1, "G": 1, "M": 4, "N": 4, "D": 2, "E": 3, "L": 4, "q_start": 0},
    ):
        known = {Size.intern((n,), frozenset(), "i"): Const.intern((s,), frozenset(), "i") for n, s in sizes.items()}
        relations = replace([c.relation for c in program.checks], known)
        if not all(isinstance(r, Const) and r.value for r in relations):
            continue
        tensors = {}
        for tensor in program.tensors:
            shape = [int(d.value) for d in replace(list(tensor.dims), known) if isinstance(d, Const)]
            wild = {"i32": torch.randint(-9, 9, shape), "bool": torch.rand(shape) < 0.5}
            tensors[tensor.name] = wild.get(tensor.dtype, torch.randn(shape, dtype=torch.float64))
        found = evaluate(program, tensors, sizes)
        assert {o.name for o in program.outputs} == set(found)
        assert all(n.axes <= set(program.axes) for n in postorder(program.roots()))
