"""The language model of the examples: the causal spec trains as PyTorch's own attention does, step by step."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console

import attnc

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def lm() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_char_lm", EXAMPLES / "train_char_lm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_char_lm"] = module
    spec.loader.exec_module(module)
    return module


def losses(lm: ModuleType, attention: str, steps: int = 6) -> list[float]:
    settings = lm.Settings(layers=2, width=32, heads=4, context=24, batch=4, steps=steps, warmup=2)
    text = lm.Text.load(EXAMPLES / "data" / "sonnets.txt")
    op = None if attention == "sdpa" else attnc.compile(EXAMPLES / f"{attention}.attn")
    make = lm.CausalSdpa if op is None else lambda: lm.SpecAttention(op, settings)
    _, found = lm.train(settings, text, make, Console(quiet=True))
    return list(found)


def test_the_causal_spec_has_the_curve_of_sdpa(lm: ModuleType) -> None:
    ours, theirs = losses(lm, "causal"), losses(lm, "sdpa")
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=2e-5, atol=0)
    assert ours[-1] < ours[0] - 0.3


def test_another_spec_has_another_curve(lm: ModuleType) -> None:
    assert losses(lm, "alibi") != losses(lm, "sdpa")


def test_tensors_without_a_default_are_learned(lm: ModuleType) -> None:
    settings = lm.Settings(width=32, heads=4, context=24)
    layer = lm.SpecAttention(attnc.compile(EXAMPLES / "sinks.attn"), settings)
    assert [tuple(p.shape) for p in layer.parameters()] == [(4,)]
    q, k, v = torch.randn(3, 2, 4, 24, 8)
    layer(q, k, v).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in layer.parameters())


def test_a_spec_that_needs_data_is_refused_in_words(lm: ModuleType) -> None:
    with pytest.raises(SystemExit, match="tensor 'doc' depends on the data"):
        lm.SpecAttention(attnc.compile(EXAMPLES / "document_causal.attn"), lm.Settings())


def test_the_text_is_what_the_readme_says() -> None:
    text = (EXAMPLES / "data" / "sonnets.txt").read_text(encoding="ascii")
    assert 90_000 < len(text) < 100_000


def test_the_command_writes_a_picture_and_the_losses(tmp_path: Path) -> None:
    script: list[str | Path] = [sys.executable, EXAMPLES / "train_char_lm.py"]
    script += ["--steps", "2", "--context", "16", "--batch", "2", "--layers", "1"]
    given: list[str | Path] = ["--plot", tmp_path / "curve.png", "--losses", tmp_path / "losses.json"]
    subprocess.run([*script, *given], check=True, capture_output=True)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "losses.json").read_text())["losses"]) == 2
