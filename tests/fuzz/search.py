"""Generated specs checked in batches; what fails is made as small as possible."""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.check import Disagreement, check
from tests.fuzz.specs import Case, cases

BATCH = 20
"""Specs per seed: few, because hypothesis varies what it drew before, and a new seed starts afresh."""


@dataclass
class Failure:
    """The smallest case found that fails, and how."""

    case: Case
    error: Exception

    @property
    def origin(self) -> str:
        """What kind of failure this is: the same for cases that fail in the same place."""
        if isinstance(self.error, Disagreement):
            return re.sub(r"\d[\d.e+-]*|\[.*?\]", "", str(self.error))
        frame = traceback.extract_tb(self.error.__traceback__)[-1]
        return f"{type(self.error).__name__} in {Path(frame.filename).name}, {frame.name}"

    def write(self, folder: Path) -> Path:
        """Write the case as a file that `tests/fuzz/test_regressions.py` runs."""
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(self.case.text.encode()).hexdigest()[:8]
        path = folder / f"found_{name}.attn"
        path.write_text(f"# {self.origin}\n{self.case}", encoding="utf-8")
        return path


@dataclass
class Batch:
    """What a batch came to: how many specs had which verdict, and the first failure."""

    verdicts: dict[str, int] = field(default_factory=dict)
    failure: Failure | None = None


def search(
    start: int, backends: Sequence[str] = ("tiled",), count: int = BATCH, told: Callable[[], None] = lambda: None
) -> Batch:
    """Check `count` different specs drawn from one seed.

    Args:
        start: the seed. The same seed draws the same specs.
        backends: see `tests.fuzz.check.check`.
        count: how many specs.
        told: called after each.
    """
    batch = Batch()
    passed: set[str] = set()

    @seed(start)
    @settings(
        max_examples=2 * count,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def run(case: Case) -> None:
        if str(case) in passed or (len(passed) >= count and batch.failure is None):
            return
        try:
            verdict = check(case, backends)
        except Exception as error:
            batch.failure = Failure(case, error)
            raise
        passed.add(str(case))
        if batch.failure is None:
            batch.verdicts[verdict] = batch.verdicts.get(verdict, 0) + 1
            told()

    try:
        run()
    except Exception as error:
        if batch.failure is None:
            raise
        if type(error) is not type(batch.failure.error):  # it failed once and not again
            batch.failure.error.add_note("not reproducible: it did not fail again on the same spec")
    return batch
