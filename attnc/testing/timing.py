"""Timing of several callables side by side: interleaved rounds, so that whatever else the machine does hits all of
them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per call over the rounds."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""
    rounds: int


def summarise(samples: list[float]) -> Timing:
    """Median and quartiles of samples in seconds."""
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0], 1)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high, len(samples))


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 5, budget: float = 10.0, warmup: int = 1
) -> dict[str, Timing]:
    """Time each callable once per round, in turn, on the CPU.

    Args:
        calls: what to time, by name.
        rounds: at most this many rounds; at least two are run.
        budget: seconds after which no further round is begun.
        warmup: untimed calls of each before the first round.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    for done in range(rounds):
        if done >= 2 and time.perf_counter() - begun > budget:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
    return {name: summarise(taken) for name, taken in samples.items()}


def interleaved_cuda(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 20, budget: float = 2.0, warmup: int = 3
) -> dict[str, Timing]:
    """As `interleaved`, on the current CUDA device, with events and a cache flush before every sample."""
    import torch

    flush = torch.empty(2**28, dtype=torch.int8, device="cuda")
    for call in calls.values():
        for _ in range(warmup):
            call()
    torch.cuda.synchronize()
    pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    begun = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begun > budget:
            break
        for name, call in calls.items():
            flush.zero_()
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            stop.record()
            pairs[name].append((start, stop))
        torch.cuda.synchronize()
    return {name: summarise([a.elapsed_time(b) / 1e3 for a, b in taken]) for name, taken in pairs.items()}


def spell(seconds: float) -> str:
    """A duration for people: three figures and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
