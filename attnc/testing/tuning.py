"""Tuning a kernel: configurations compiled and ranked by the static model, the best of them measured on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, prod

from attnc.codegen.tile import Kernel
from attnc.codegen.triton.configuration import HARMLESS, MOST, Configuration, space
from attnc.runtime.triton_aot import SHARED_LIMITS, aot
from attnc.runtime.tuning import Clock, Trial, session
from attnc.testing.artefacts import TENSOR_CORES, Report, report

LOOKED_AT = 12
"""Configurations of a kernel that are compiled to be ranked."""
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A configuration and what its machine code promises.

    Attributes:
        report: None where the target's code cannot be read.
        cost: cycles of a multiprocessor per pair of positions, by the static model; infinite where it says nothing.
        fits: whether it hardly spills and has the shared memory it asks for.
    """

    configuration: Configuration
    report: Report | None
    cost: float
    fits: bool


def ranked(
    kernel: Kernel, sizes: Mapping[str, int], target: str, tell: Tell | None = None, most: int = LOOKED_AT
) -> list[Ranked]:
    """Configurations of a kernel, most promising first: those that fit, by cost; then the others.

    Args:
        sizes: channel extents, and others as far as known.
        target: ``sm_90``, ...; the device need not be there.
        tell: called with a few words before each compilation.
        most: configurations that are compiled.
    """
    choices = space(kernel, sizes, target)[:most]
    if target not in TENSOR_CORES:
        return [Ranked(c, None, inf, True) for c in choices]
    found = []
    for k, choice in enumerate(choices):
        if tell:
            tell(f"{kernel.name}: compiling {k + 1} of {len(choices)}, {spell(choice)}")
        artefact = aot(kernel, None, target, sizes, choice)
        said = report(kernel, artefact)
        fits = said.spilled <= HARMLESS and said.shared <= SHARED_LIMITS[target]
        found.append(Ranked(choice, said, _cost(said, choice), fits))
    return sorted(found, key=lambda r: (not r.fits, r.cost))


def _cost(said: Report, choice: Configuration) -> float:
    if said.cycles is None or said.programs is None:
        return inf
    return said.cycles.of_turn(said.programs) / prod(choice.blocks.values())


def promising(
    kernel: Kernel, sizes: Mapping[str, int], target: str, tell: Tell | None = None, most: int = LOOKED_AT
) -> Sequence[Configuration]:
    """What is worth measuring: the best by the static model, and the first candidate, at most `MOST`."""
    listed = ranked(kernel, sizes, target, tell, most)
    first = space(kernel, sizes, target)[0]
    best = [r.configuration for r in listed if r.fits][:MOST]
    return best if first in best or not best else [*best[: MOST - 1], first]


def measured(
    run: Callable[[], object],
    clock: Clock,
    *,
    rounds: int = 10,
    choose: Callable[[Kernel, Mapping[str, int], str], Sequence[Configuration]] = promising,
    progress: Callable[[int, int], None] | None = None,
) -> list[Trial]:
    """Run what launches kernels with every promising configuration of each of them.

    Args:
        run: a forward, or a forward and backward.
        clock: times launches.
        rounds: timed runs per configuration, after one that warms up.
        choose: names the configurations.
        progress: called with turns done and turns in all.
    """
    with session(choose, clock) as opened:
        run()
        for turn in range(opened.turns):
            opened.turn = turn
            run()
            opened.recording = True
            for _ in range(rounds):
                run()
            opened.settle()
            opened.recording = False
            if progress:
                progress(turn + 1, opened.turns)
    return list(opened.trials.values())


def spell(choice: Configuration) -> str:
    """``128 i x 64 j, 8 warps, 3 stages``."""
    blocks = " × ".join(f"{n} {a}" for a, n in choice.blocks.items())
    loads = ", descriptors" if choice.descriptors else ""
    return f"{blocks}, {choice.num_warps} warps, {choice.num_stages} stages{loads}"


def recorded(table: dict[str, dict[str, dict[str, dict[str, object]]]], trial: Trial, source: str) -> bool:
    """Put the best of a trial into a table as `attnc.codegen.triton.table` reads it; whether there is a best one."""
    from attnc.codegen.triton.table import entry, kernel_class

    if trial.best is None:
        return False
    best = trial.choices[trial.best]
    line = entry(trial.kernel, best.blocks, best.num_warps, best.num_stages, source, descriptors=best.descriptors)
    name = kernel_class(trial.kernel, trial.kernel.constants)
    table.setdefault(trial.target, {}).setdefault(name, {})[trial.bucket] = asdict(line)
    return True
