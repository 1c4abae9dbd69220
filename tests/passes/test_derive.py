"""Derived gradients against PyTorch's autograd through the dense forward, first and second order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnc.ir.dense import evaluate
from attnc.ir.node import Sum
from attnc.ir.program import Program
from attnc.ir.walk import postorder
from attnc.passes.derive import gradient_program
from tests.passes.programs import NAMES, example, inputs, real_inputs, seeds, spec

CLOSE = 1e-11


def autograd(
    program: Program, tensors: dict[str, Tensor], arriving: dict[str, Tensor], sizes: dict[str, int]
) -> dict[str, Tensor]:
    """Gradients of the dense evaluation, differentiable again."""
    names = real_inputs(program)
    outputs = evaluate(program, tensors, sizes)
    loss = torch.stack([(outputs[o.name] * arriving[f"grad_{o.name}"]).sum() for o in program.outputs]).sum()
    found = torch.autograd.grad(loss, [tensors[n] for n in names], create_graph=True, allow_unused=True)
    return {n: torch.zeros_like(tensors[n]) if g is None else g for n, g in zip(names, found, strict=True)}


def tracked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.clone().requires_grad_() if t.is_floating_point() else t for n, t in tensors.items()}


@pytest.mark.parametrize("name", NAMES)
def test_first_derivative(name: str) -> None:
    program = example(name)
    tensors, sizes = inputs(name)
    arriving = seeds(program, evaluate(program, tensors, sizes))
    expected = autograd(program, tracked(tensors), arriving, sizes)
    found = evaluate(gradient_program(program), {**tensors, **arriving}, sizes)
    for n, reference in expected.items():
        torch.testing.assert_close(
            found[f"grad_{n}"], reference.detach(), rtol=CLOSE, atol=CLOSE, msg=f"gradient of {n}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_second_derivative(name: str) -> None:
    program = example(name)
    tensors, sizes = inputs(name)
    names = real_inputs(program)
    arriving = seeds(program, evaluate(program, tensors, sizes))
    once = gradient_program(program)
    outer = seeds(once, evaluate(once, {**tensors, **arriving}, sizes))
    leaves = tracked(tensors)
    leaf_seeds = tracked(arriving)
    first = autograd(program, leaves, leaf_seeds, sizes)
    loss = torch.stack([(first[n] * outer[f"grad_grad_{n}"]).sum() for n in names]).sum()
    wanted = [*(leaves[n] for n in names), *leaf_seeds.values()]
    expected = torch.autograd.grad(loss, wanted, allow_unused=True)
    found = evaluate(gradient_program(once), {**tensors, **arriving, **outer}, sizes)
    for n, reference in zip([*names, *leaf_seeds], expected, strict=True):
        target = torch.zeros_like(found[f"grad_{n}"]) if reference is None else reference
        torch.testing.assert_close(found[f"grad_{n}"], target, rtol=CLOSE, atol=CLOSE, msg=f"gradient of {n}")


def test_gradients_only_of_what_is_needed() -> None:
    program = gradient_program(example("alibi"), {"v"})
    assert [o.name for o in program.outputs] == ["grad_v"]


def test_integer_tensors_have_no_gradient() -> None:
    assert {o.of for o in gradient_program(example("document_causal")).outputs} == {"q", "k", "v"}


def test_a_dimension_of_one_place_needs_no_scatter() -> None:
    """Its gradient is the sum over what shares it."""
    program = gradient_program(spec("attention a\ntensor pair: [1, H, M, N]\nbias = pair[0, h, i, j]\n"))
    (pair,) = (o for o in program.outputs if o.of == "pair")
    ((axes, node),) = pair.parts
    assert axes[1:] == ("h", "i", "j")
    assert not any(isinstance(n, Sum) and n.scatter for n in postorder([node]))
    assert node.axes == frozenset("hij")
