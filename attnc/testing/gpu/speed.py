"""Timings of a spec beside its peers on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from attnc.testing.gpu.cases import Race, Suite, torch_dtype
from attnc.testing.gpu.check import compiled
from attnc.testing.gpu.peers import peer

if TYPE_CHECKING:
    import torch

    from attnc.ir.program import Program
    from attnc.runtime.op import Op
    from attnc.testing.race import Runner
    from attnc.testing.timing import Timing

    Tensors = dict[str, torch.Tensor]

OWN = "attnc"
SAME = 0.05
"""Largest difference between a peer's output and attnc's, relative to the largest value: above, it computes something
else."""
BACKWARD = 2.5
"""Floating-point operations of a backward over those of its forward: five products for two."""


def inputs(case: Race, program: Program, device: str) -> tuple[Tensors, dict[str, int]]:
    """Random tensors of a race, and all its sizes."""
    from attnc.testing.inputs import complete_sizes, make_inputs

    sizes = complete_sizes(program, case.sizes)
    tensors = make_inputs(program, sizes, torch_dtype("bf16"), device=device, drawn_there=True)
    if case.smooth:
        tensors = {n: _smoothed(t) if n not in "qkv" and t.dim() == 3 else t for n, t in tensors.items()}
    return tensors, sizes


def _smoothed(like: torch.Tensor) -> torch.Tensor:
    """A table of this shape made of six waves per head, which has rank 12, and noise of a thousandth."""
    import torch

    device = like.device
    generator = torch.Generator(device).manual_seed(2)
    heads, rows, columns = like.shape
    size = torch.randn(heads, 6, generator=generator, device=device)
    difference = torch.arange(rows, device=device)[:, None] / rows - torch.arange(columns, device=device) / columns
    table = torch.randn(like.shape, generator=generator, device=device) * 1e-3
    for k in range(6):
        table += size[:, k, None, None] * torch.cos((k + 1) * torch.pi * difference)
    return table.to(like.dtype)


def prepared(case: Race, suite: Suite) -> dict[str, Any]:
    """Run a case once, so that its kernels, and those of FlexAttention, are in the caches on disk."""
    from attnc.testing import race
    from attnc.testing.softmax_form import NotExpressible

    op = compiled(case.spec, case.consts, case.options)
    tensors, sizes = inputs(case, op.program, suite.device)
    own = race.of_op(op, tensors)
    if case.both:
        own.both()
    notes: list[str] = []
    if "flex" in case.peers:
        try:
            found = peer("flex", op.program, tensors, sizes, compiled=suite.device == "cuda")
            if not isinstance(found, NotExpressible):
                runner = race.of_peer(found, tensors)
                if case.both:
                    runner.both()
        except Exception as problem:
            notes.append(f"flex failed: {_short(problem)}")
    return {"notes": notes}


def raced(case: Race, suite: Suite) -> dict[str, Any]:
    """Time a case.

    Returns:
        ``timings`` in milliseconds, ``tflops`` and ``ratios`` (peers' times as multiples of attnc's), each by what was
        timed and by name; ``share`` of the pairs; ``accuracy`` and ``deviation`` of the outputs; ``notes``.
    """
    from attnc.testing import race
    from attnc.testing.gpu import accuracy

    op = compiled(case.spec, case.consts, case.options)
    tensors, sizes = inputs(case, op.program, suite.device)
    own = race.of_op(op, tensors)
    output = _first(own.forward())
    notes: list[str] = []
    if "rank" in case.options:
        notes += [line for line in op.explain().splitlines() if line.startswith("at the latest call")]
    found: dict[str, Any] = {"notes": notes, "sizes": sizes, "deviation": {}}
    found["share"] = accuracy.share(op.program, tensors, sizes)
    try:
        found["accuracy"] = accuracy.error(op.program, tensors, output)
    except Exception as problem:  # the check of the same spec at a length whose plane fits says whether it is right
        notes.append(f"no oracle: {_short(problem)}")
    runners = [own, *_peers(case, suite, op, tensors, sizes, output, found)]
    products = 2 * sizes["B"] * sizes["H"] * sizes["M"] * sizes["N"] * (sizes["D"] + sizes["E"])
    flops = {"forward": products * (found["share"] or 1.0)}
    calls = {"forward": {r.name: r.forward for r in runners}}
    if case.both:
        flops["both"] = flops["forward"] * (1 + BACKWARD)
        calls["both"] = {r.name: r.both for r in runners}
    for part in ("timings", "tflops", "ratios"):
        found[part] = {}
    for what, each in calls.items():
        timings = _timed(each, suite, case.graph, what, notes)
        own_time = timings[OWN].median
        found["timings"][what] = {n: _milliseconds(t) for n, t in timings.items()}
        found["tflops"][what] = {n: round(flops[what] / t.median / 1e12, 2) for n, t in timings.items()}
        found["ratios"][what] = {n: round(t.median / own_time, 3) for n, t in timings.items() if n != OWN}
    return found


def _peers(
    case: Race,
    suite: Suite,
    op: Op,
    tensors: Tensors,
    sizes: Mapping[str, int],
    output: torch.Tensor,
    found: dict[str, Any],
) -> list[Runner]:
    """The peers that can say the case and compute what attnc computes; why others are missing goes to the notes."""
    from attnc.testing import race
    from attnc.testing.softmax_form import NotExpressible

    runners = []
    for name in case.peers:
        try:
            made = peer(name, op.program, tensors, sizes, compiled=suite.device == "cuda")
            if isinstance(made, NotExpressible):
                found["notes"].append(f"{name}: {made.reason}")
                continue
            runner = race.of_peer(made, tensors)
            other = _first(runner.forward())
            deviation = float((other.float() - output.float()).abs().max() / output.float().abs().max())
            found["deviation"][name] = deviation
            if not deviation <= SAME:
                found["notes"].append(f"{name}: left out, its output differs by {deviation:.2g}")
                continue
            found["notes"].append(f"{name}: {made.note}")
            runners.append(race.Runner(name, runner.forward, runner.both))
        except Exception as problem:  # a peer that fails must not hide the op's own time
            found["notes"].append(f"{name} failed: {_short(problem)}")
    return runners


def _timed(
    calls: Mapping[str, Callable[[], object]], suite: Suite, graph: bool, what: str, notes: list[str]
) -> dict[str, Timing]:
    """Interleaved timings of the calls that work."""
    from attnc.testing.timing import interleaved, interleaved_cuda

    working: dict[str, Callable[[], object]] = {}
    for name, call in calls.items():
        try:
            call()
            working[name] = call
        except Exception as problem:
            if name == OWN:
                raise
            notes.append(f"{name}, {what}: {_short(problem)}")
    if suite.device != "cuda":
        return interleaved(working, rounds=suite.rounds, budget=suite.seconds, warmup=0)
    if graph:
        working = {name: _captured(call, name, notes) for name, call in working.items()}
    return interleaved_cuda(working, rounds=suite.rounds, budget=suite.seconds)


def _captured(call: Callable[[], object], name: str, notes: list[str]) -> Callable[[], object]:
    """The replay of a CUDA graph of a call; the call itself where it cannot be captured."""
    import torch

    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graph.replay()
        torch.cuda.synchronize()
    except Exception as problem:
        notes.append(f"{name}: timed without a graph: {_short(problem)}")
        return call
    return graph.replay


def _first(returned: object) -> torch.Tensor:
    """The output of a forward, which may come with observations."""
    import torch

    value = returned[0] if isinstance(returned, list | tuple) else returned
    assert isinstance(value, torch.Tensor)
    return value


def _milliseconds(timing: Timing) -> dict[str, float]:
    return {
        "median_ms": timing.median * 1e3,
        "iqr_ms": (timing.high - timing.low) * 1e3,
        "low_ms": timing.low * 1e3,
        "high_ms": timing.high * 1e3,
        "rounds": timing.rounds,
    }


def _short(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines() or [""]
    return f"{type(problem).__name__}: {lines[0][:200]}"
