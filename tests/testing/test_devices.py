"""Nothing is made on the default device where tensors live on another.

The other device is the CPU, and the default one has no memory at all: a tensor made there by mistake cannot be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from attnc.runtime import runs
from attnc.testing import compare
from attnc.testing.gpu import accuracy, speed
from attnc.testing.gpu.cases import dry_run, torch_dtype
from attnc.testing.gpu.check import compiled
from attnc.testing.gpu.peers import peer
from attnc.testing.inputs import complete_sizes, make_inputs
from attnc.testing.peers import Peer


@contextmanager
def elsewhere() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.fixture(autouse=True)
def seeds_are_drawn_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = compare.output_seeds

    def on_cpu(*given: object, **named: object) -> dict[str, torch.Tensor]:
        with torch.device("cpu"):
            return drawn(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(compare, "output_seeds", on_cpu)


@pytest.mark.parametrize("spec", ["document_causal", "relative_table", "retention"])
def test_kernels_tables_and_oracle(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "WORTH", {"cpu": 0})
    op = compiled(spec, {})
    tensors = make_inputs(
        op.program, complete_sizes(op.program, {"B": 1, "H": 2, "N": 20, "D": 16}), torch_dtype("bf16")
    )
    with elsewhere():
        rows = compare.agreements(op, tensors)
    assert all(r.agrees for r in rows)


def test_peers_and_errors() -> None:
    case = next(r for r in dry_run().races if r.spec == "document_causal")
    op = compiled(case.spec, case.consts)
    tensors, sizes = speed.inputs(case, op.program, "cpu")
    output = op(**tensors)  # type: ignore[arg-type]
    with elsewhere():
        assert accuracy.error(op.program, tensors, output)["error"] < 0.05
        for name in ("flash", "flex", "eager"):
            made = peer(name, op.program, tensors, sizes, compiled=False)
            assert isinstance(made, Peer)
            assert (made.run(*(tensors[n] for n in "qkv")) - output).abs().max() < 0.1
