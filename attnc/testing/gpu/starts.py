"""What a call costs on the host, and how long it takes from nothing to a first result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attnc.testing.gpu.cases import EXAMPLES, Suite

if TYPE_CHECKING:
    import torch

Attention = Callable[..., Any]
FRESH = """
import json, time
begun = time.perf_counter()
import torch, attnc
imported = time.perf_counter()
op = attnc.compile({path!r}, backend="triton")
made = time.perf_counter()
shape = (1, 2, 64, {channels})
q, k, v = (torch.randn(shape, device={device!r}, dtype=torch.bfloat16).requires_grad_() for _ in range(3))
def wait():
    if {device!r} == "cuda":
        torch.cuda.synchronize()
wait()
ready = time.perf_counter()
o = op(q, k, v)
wait()
forward = time.perf_counter()
o.sum().backward()
wait()
backward = time.perf_counter()
print(json.dumps({{"import": imported - begun, "compile": made - imported, "first forward": forward - ready,
                  "first backward": backward - forward}}))
"""
CACHES = ("ATTNC_CACHE_DIR", "TRITON_CACHE_DIR")


def host_times(suite: Suite) -> dict[str, float]:
    """Microseconds that calls of a small causal attention take on the host, without waiting for the device."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from attnc.testing.gpu.check import compiled

    op = compiled("causal", {})
    shape = (1, 2, 64, 64 if suite.device == "cuda" else 16)
    q, k, v = (torch.randn(shape, device=suite.device, dtype=torch.bfloat16) for _ in range(3))
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    seed = torch.randn_like(q)

    def trained(call: Attention) -> Callable[[], object]:
        return lambda: torch.autograd.grad(call(*leaves), leaves, seed)

    def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)

    own: Attention = op

    calls: dict[str, Callable[[], object]] = {
        "attnc forward": lambda: own(q, k, v),
        "SDPA forward": lambda: sdpa(q, k, v),
        "attnc both": trained(own),
        "SDPA both": trained(sdpa),
    }
    return {name: _host_time(call, suite) for name, call in calls.items()}


def _host_time(call: Callable[[], object], suite: Suite) -> float:
    import torch

    cuda = suite.device == "cuda"
    best = float("inf")
    call()
    for _ in range(5 if cuda else 1):
        if cuda:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(suite.repeats):
            call()
        best = min(best, (time.perf_counter() - begun) / suite.repeats)
    return round(best * 1e6, 1)


def first_results(suite: Suite) -> dict[str, Any]:
    """Seconds from a fresh process to a first forward and backward, with empty caches and with full ones."""
    channels = 64 if suite.device == "cuda" else 16
    text = FRESH.format(path=str(EXAMPLES / "alibi.attn"), device=suite.device, channels=channels)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as caches:
        environment = {**os.environ, **{name: f"{caches}/{name}" for name in CACHES}}
        for state in ("empty caches", "full caches"):
            done = subprocess.run(
                [sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=True, timeout=120
            )
            found[state] = {k: round(s, 3) for k, s in json.loads(done.stdout.splitlines()[-1]).items()}
    return found
