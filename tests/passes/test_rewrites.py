"""Every rewrite keeps the value: dense evaluation before and after."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attnc.ir.dense import evaluate
from attnc.ir.node import Call, Node
from attnc.ir.program import Output, Program
from attnc.ir.verify import verify
from attnc.ir.walk import postorder
from attnc.passes.associate import associate
from attnc.passes.derive import gradient_program
from attnc.passes.expand import expand_online
from attnc.passes.pipeline import normalise, saved_values
from attnc.passes.planes import Planes
from tests.passes.programs import NAMES, example, inputs, seeds

CLOSE = 1e-10


def with_roots(program: Program, roots: list[Node]) -> Program:
    values = iter(roots)
    outputs = tuple(replace(o, parts=tuple((a, next(values)) for a, _ in o.parts)) for o in program.outputs)
    return program.with_outputs(outputs)


def everything(name: str) -> tuple[Program, dict[str, Tensor], dict[str, int], dict[str, Tensor]]:
    """The gradient program of an example with its tensors, sizes and values."""
    program = example(name)
    tensors, sizes = inputs(name)
    gradient = gradient_program(program)
    known = {**tensors, **seeds(program, evaluate(program, tensors, sizes))}
    return gradient, known, sizes, evaluate(gradient, known, sizes)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=CLOSE, atol=CLOSE, msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_base2_keeps_values_and_leaves_no_natural_exponential(name: str) -> None:
    gradient, known, sizes, expected = everything(name)
    changed = normalise(gradient)
    verify(changed)
    assert_same(evaluate(changed, known, sizes), expected)
    assert not [n for n in postorder(changed.roots()) if isinstance(n, Call) and n.fn in ("exp", "log", "detach")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grouped", [True, False])
def test_contraction_order_keeps_values(name: str, grouped: bool) -> None:
    gradient, known, sizes, expected = everything(name)
    ordered = associate(gradient.roots(), Planes(gradient), grouped=grouped)
    changed = with_roots(gradient, list(ordered))
    assert_same(evaluate(changed, known, sizes), expected)
    planes = Planes(gradient)
    assert all(len(planes.span(u)) <= 2 for u in planes.plane_reductions(ordered))


@pytest.mark.parametrize("name", NAMES)
def test_expansion_keeps_values(name: str) -> None:
    program = normalise(example(name))
    tensors, sizes = inputs(name)
    expected = evaluate(program, tensors, sizes)
    changed = with_roots(program, list(expand_online(program.roots(), Planes(program))))
    assert_same(evaluate(changed, tensors, sizes), expected)


@pytest.mark.parametrize("name", NAMES)
def test_saved_values_keep_the_gradient(name: str) -> None:
    gradient, known, sizes, expected = everything(name)
    program = example(name)
    rewritten, saved = saved_values(program, normalise(gradient))
    verify(rewritten)
    forward = normalise(program)
    kept = tuple(
        Output(s.name, ((s.axes, s.node),), tuple(forward.extent(a) for a in s.axes), "real")
        for s in saved
        if s.name not in {o.name for o in forward.outputs}
    )
    values = evaluate(forward.with_outputs((*forward.outputs, *kept)), known, sizes)
    assert_same(evaluate(rewritten, {**known, **values}, sizes), expected)
