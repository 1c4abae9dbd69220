"""Timing beside other work: rounds that other processes disturbed are told apart, and memory is watched."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

MOST_OTHER = 0.06
"""Share of the machine that other processes may use during a round that counts."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds per call of several callables, timed in the same rounds.

    Attributes:
        samples: per callable, one per round that counts.
        discarded: rounds that other processes disturbed.
        quiet: whether the rounds that count were undisturbed. False if there were too few of those: then all count.
    """

    samples: Mapping[str, list[float]]
    discarded: int
    quiet: bool

    def median(self, name: str) -> float:
        """Seconds per call of one of them."""
        return statistics.median(self.samples[name])

    def ratio(self, name: str, to: str) -> float:
        """The median over rounds of how many times as long `name` takes as `to`."""
        pairs = zip(self.samples[name], self.samples[to], strict=True)
        return statistics.median(a / b for a, b in pairs)


def round_robin(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 5,
    least: float = 0.1,
    budget: float = 20.0,
) -> Measured:
    """Time callables in turn, each for at least `least` seconds per round.

    Args:
        calls: what to time, by name.
        rounds: undisturbed rounds to end with.
        least: seconds each callable runs per round; short ones run several times.
        budget: seconds after which no further round is begun.
    """
    repeats = {name: _repeats(call, least) for name, call in calls.items()}
    kept: list[dict[str, float]] = []
    disturbed: list[dict[str, float]] = []
    begun = time.perf_counter()
    while len(kept) < rounds and (time.perf_counter() - begun < budget or (not kept and not disturbed)):
        before = _clocks()
        one: dict[str, float] = {}
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            one[name] = (time.perf_counter() - start) / repeats[name]
        (kept if _others(before, _clocks()) <= MOST_OTHER else disturbed).append(one)
    quiet = len(kept) >= min(2, rounds)
    counted = kept if quiet else kept + disturbed
    return Measured({name: [r[name] for r in counted] for name in calls}, len(disturbed) if quiet else 0, quiet)


def _repeats(call: Callable[[], object], least: float) -> int:
    call()
    start = time.perf_counter()
    call()
    return max(1, round(least / max(time.perf_counter() - start, 1e-7)))


def _clocks() -> tuple[float, float, float]:
    """Wall clock, and the processor seconds of the machine and of this process."""
    import psutil

    machine = psutil.cpu_times()
    busy = machine.user + machine.system + getattr(machine, "nice", 0.0) + getattr(machine, "steal", 0.0)
    return time.perf_counter(), busy, time.process_time()


def _others(before: tuple[float, float, float], after: tuple[float, float, float]) -> float:
    """The share of the machine that other processes used."""
    wall, busy, own = (b - a for a, b in zip(before, after, strict=True))
    return max(0.0, busy - own) / (wall * (os.cpu_count() or 1))


def peak_memory(call: Callable[[], object]) -> int | None:
    """Bytes by which a call raises the memory of this process at its peak; None where the system does not say."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        clear.write_text("5")
        before = _kilobytes(status, "VmRSS")
        call()
        return max(0, _kilobytes(status, "VmHWM") - before) * 1024
    except (OSError, ValueError):
        return None


def _kilobytes(status: Path, name: str) -> int:
    line = next(x for x in status.read_text().splitlines() if x.startswith(name))
    return int(line.split()[1])
