"""Choosing configurations of Triton kernels by measuring them, and remembering what was chosen.

Within `session`, every kernel that is launched runs with each of its choices in turn and is timed. What proved fastest
is kept on disk by `remember`, one file per kernel and target, and comes first when the kernel is launched later
(`recall`): it is still compiled and refused if it spills, so a file of another version of Triton costs some time only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from attnc.codegen.tile import Kernel
from attnc.codegen.triton.configuration import MOST, Configuration
from attnc.codegen.triton.table import bucket
from attnc.runtime.cache import locked, replace_file
from attnc.settings import Settings

Choose = Callable[[Kernel, Mapping[str, int], str], Sequence[Configuration]]
"""Configurations worth measuring, for a kernel, its sizes and a target."""
Key = tuple[Any, ...]


class Clock(Protocol):
    """Times work on a device."""

    def timed(self, call: Callable[[], None]) -> Callable[[], float]:
        """Run `call`; what is returned waits for it and says its seconds."""
        ...


class CudaClock:
    """Events on the current stream."""

    def timed(self, call: Callable[[], None]) -> Callable[[], float]:
        """As in `Clock`."""
        import torch

        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        call()
        ended.record()

        def seconds() -> float:
            ended.synchronize()
            return float(begun.elapsed_time(ended)) / 1e3

        return seconds


@dataclass
class Trial:
    """A kernel at one size, and what was found of it.

    Attributes:
        choices: configurations to measure.
        samples: seconds of each launch, by the number of the choice.
        refused: numbers of choices that spill or do not fit.
    """

    kernel: Kernel
    source: str
    target: str
    bucket: str
    choices: tuple[Configuration, ...]
    samples: dict[int, list[float]] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)

    def seconds(self, number: int) -> float | None:
        """The median of a choice; None if it was not measured."""
        return statistics.median(self.samples[number]) if self.samples.get(number) else None

    @property
    def best(self) -> int | None:
        """The number of the fastest choice."""
        measured = {n: s for n in range(len(self.choices)) if (s := self.seconds(n)) is not None}
        return min(measured, key=measured.__getitem__) if measured else None


class Session:
    """Kernels launched while it is open, each with choice number `turn`."""

    def __init__(self, choose: Choose, clock: Clock) -> None:
        """`choose` is asked once per kernel and size; at most `MOST` of what it says are taken."""
        self.turn = 0
        self.recording = False
        self.trials: dict[Key, Trial] = {}
        self._choose, self._clock = choose, clock
        self._pending: list[tuple[Trial, int, Callable[[], float]]] = []

    def configuration(
        self,
        key: Key,
        kernel: Kernel,
        source: str,
        target: str,
        sizes: Mapping[str, int],
        spilled: Callable[[Configuration], int],
    ) -> Configuration:
        """What a launch takes now. A choice that spills counts as refused, and the first that does not runs instead."""
        trial = self.trials.get(key)
        if trial is None:
            choices = tuple(self._choose(kernel, sizes, target))[:MOST]
            trial = self.trials[key] = Trial(kernel, source, target, bucket(kernel, sizes), choices)
            trial.refused = {n for n, c in enumerate(choices) if spilled(c) > 0}
        return trial.choices[self._number(trial)]

    def _number(self, trial: Trial) -> int:
        fitting = [n for n in range(len(trial.choices)) if n not in trial.refused] or [0]
        return fitting[self.turn % len(fitting)]

    def launch(self, key: Key, call: Callable[[], None]) -> None:
        """Run a launch, timed if the session records."""
        trial = self.trials.get(key)
        if trial is None or not self.recording:
            call()
            return
        self._pending.append((trial, self._number(trial), self._clock.timed(call)))

    def settle(self) -> None:
        """Wait for the launches so far and keep their times."""
        for trial, number, seconds in self._pending:
            trial.samples.setdefault(number, []).append(seconds())
        self._pending.clear()

    @property
    def turns(self) -> int:
        """How many turns it takes until every kernel known so far has tried all its choices."""
        return max((len(t.choices) - len(t.refused) for t in self.trials.values()), default=0)


_open: list[Session] = []


@contextlib.contextmanager
def session(choose: Choose, clock: Clock) -> Generator[Session]:
    """A session for the kernels that are launched within, from any thread."""
    made = Session(choose, clock)
    _open.append(made)
    try:
        yield made
    finally:
        _open.remove(made)


def current() -> Session | None:
    """The session that is open, if one is."""
    return _open[-1] if _open else None


# ------------------------------------------------------------------------------------------------------- on disk


def _path(source: str, target: str, settings: Settings) -> Path:
    digest = hashlib.sha256(source.encode()).hexdigest()[:32]
    return settings.cache_dir / "tuned" / f"{digest}_{target}.json"


def recall(source: str, target: str, length: str, settings: Settings | None = None) -> Configuration | None:
    """What was measured to be fastest for a kernel's source, target and bucket of lengths; None if nothing was."""
    try:
        held = json.loads(_path(source, target, settings or Settings.read()).read_text(encoding="utf-8"))
        line = held[length]
        blocks = {str(a): int(n) for a, n in line["blocks"].items()}
        return Configuration(blocks, int(line["num_warps"]), int(line["num_stages"]), bool(line.get("descriptors")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(trial: Trial, device: str, settings: Settings | None = None) -> Path | None:
    """Write down the fastest choice of a trial; None if nothing was measured."""
    best = trial.best
    if best is None:
        return None
    path = _path(trial.source, trial.target, settings or Settings.read())
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            held = {}
        held[trial.bucket] = asdict(trial.choices[best]) | {
            "kernel": trial.kernel.name,
            "seconds": trial.seconds(best),
            "device": device,
            "tried": [asdict(c) | {"seconds": trial.seconds(n)} for n, c in enumerate(trial.choices)],
        }
        replace_file(path, lambda other: other.write_text(json.dumps(held, indent=1), encoding="utf-8"))
    return path
