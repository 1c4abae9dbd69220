"""Every example lowers to a program that computes its formula, at several starting positions."""

from __future__ import annotations

import pytest
import torch

from attnc.ir.dense import evaluate, with_defaults
from tests import formulas
from tests.formulas import SPECS, Dims
from tests.lowering.specs import example, lowered

LONG_ENOUGH = {"neighborhood_2d": Dims(H=4, G=2, M=18, N=288, D=6, E=3)}


@pytest.mark.parametrize("q_start", [0, 4])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_example_computes_its_formula(name: str, q_start: int) -> None:
    dims = LONG_ENOUGH.get(name, Dims(B=2, H=4, G=2, M=5, N=11, D=6, E=6 if name == "pointer" else 3))
    inputs = formulas.make_inputs(name, dims, q_start=q_start)
    program = lowered(example(name), inputs.consts)
    given = {"q": inputs.q, "k": inputs.k, "v": inputs.v, **inputs.tensors}
    sizes = {b.name: given[b.tensor].shape[b.dim] for b in program.sizes} | {"q_start": q_start}
    found = evaluate(program, with_defaults(program, given, sizes), sizes)
    expected = formulas.evaluate(name, inputs)
    assert found.keys() == expected.keys()
    for output, value in expected.items():
        torch.testing.assert_close(found[output], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["alibi", "retention", "softcap_alibi"])
def test_tensors_not_given_become_their_defaults(name: str) -> None:
    inputs = formulas.make_inputs(name, Dims(B=2, H=4, G=2, M=9, N=9, D=6, E=3))
    program = lowered(example(name), inputs.consts, provided=frozenset())
    assert [t.name for t in program.tensors] == ["q", "k", "v"]
    given = {"q": inputs.q, "k": inputs.k, "v": inputs.v}
    sizes = {b.name: given[b.tensor].shape[b.dim] for b in program.sizes} | {"q_start": 0}
    expected = SPECS[name].formula(**given, **inputs.consts)
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(evaluate(program, given, sizes)["o"], expected, rtol=1e-9, atol=1e-11)
