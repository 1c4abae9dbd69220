"""A variant through PyTorch's own attention gives what the dense formula gives, or a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attnc import driver
from attnc.ir.dense import bind_sizes, evaluate
from attnc.ir.program import Program
from attnc.testing.inputs import complete_sizes, make_inputs
from attnc.testing.peers import Peer, flex, sdpa
from attnc.testing.plain import plain
from attnc.testing.softmax_form import NotExpressible
from tests import formulas

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {"B": 2, "H": 4, "G": 2, "N": 24, "M": 24, "D": 8}
IN_SDPA = [
    "alibi", "causal", "dilated", "document_causal", "gated", "neighborhood_2d", "relative_table", "softmax", "spatial",
]  # fmt: skip
IN_FLEX = [*IN_SDPA, "gemma2", "sinks", "softcap_alibi", "softmax1"]


def program(name: str) -> Program:
    source = driver.read(EXAMPLES / f"{name}.attn")
    consts = {"rows": 4, "cols": 6, "r": 1} if name == "neighborhood_2d" else {}
    return driver.lower(driver.definition(source), source, consts)


def check(peer: Peer | NotExpressible, p: Program, tensors: dict[str, torch.Tensor], sizes: dict[str, int]) -> None:
    assert isinstance(peer, Peer)
    right = evaluate(p, tensors, sizes)["o"]
    torch.testing.assert_close(peer.run(*(tensors[n] for n in "qkv")), right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", IN_SDPA)
def test_sdpa(name: str) -> None:
    p = program(name)
    sizes = complete_sizes(p, SIZES)
    tensors = make_inputs(p, sizes, torch.float64)
    tensors = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    check(sdpa(p, tensors, sizes), p, tensors, sizes)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", IN_FLEX)
def test_flex(name: str) -> None:
    p = program(name)
    sizes = complete_sizes(p, SIZES)
    tensors = make_inputs(p, sizes, torch.float64)
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    peer = flex(p, tensors, sizes, compiled=False)
    assert isinstance(peer, Peer)
    right = evaluate(p, tensors, sizes)["o"].float()
    torch.testing.assert_close(peer.run(*(tensors[n] for n in "qkv")), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sigmoid_attention", "not a softmax"),
        ("retention", "not a softmax"),
        ("reversed", "not a softmax"),
        ("sinks", "log-sum-exp"),
        ("urpe", "more than a softmax"),
        ("agent", "more than a softmax"),
        ("music", "not computed from single elements"),
        ("gemma2", "scale * dot"),
    ],
)
def test_why_not(name: str, words: str) -> None:
    p = program(name)
    sizes = complete_sizes(p, SIZES)
    peer = sdpa(p, make_inputs(p, sizes, torch.float64), sizes)
    assert isinstance(peer, NotExpressible)
    assert words in peer.reason


def test_the_causal_mask_needs_no_tensor() -> None:
    p = program("causal")
    sizes = complete_sizes(p, SIZES)
    peer = sdpa(p, make_inputs(p, sizes, torch.float32), sizes)
    assert isinstance(peer, Peer)
    assert peer.name == "SDPA, is_causal"


@pytest.mark.parametrize("name", ["sinks", "sigmoid_attention", "retention", "gated", "music"])
def test_what_is_no_softmax_runs_eagerly_as_its_formula(name: str) -> None:
    inputs = formulas.make_inputs(name, formulas.Dims(2, 4, 2, 24, 24, 8, 8), torch.float64, seed=0)
    source = driver.read(EXAMPLES / f"{name}.attn")
    p = driver.lower(driver.definition(source), source, inputs.consts)
    tensors = {"q": inputs.q, "k": inputs.k, "v": inputs.v, **inputs.tensors}
    peer = plain(p, tensors, bind_sizes(p, tensors))
    right = formulas.evaluate(name, inputs)["o"]
    leaves = [tensors[n].clone().requires_grad_() for n in "qkv"]
    found = peer.run(*leaves)
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(found.sum(), leaves))
