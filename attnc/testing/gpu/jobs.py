"""The pieces of work of a run, done in processes that may die without taking the rest with them.

A part is a list of jobs that one process works through, writing a line of JSON before and after each. When it ends
early, hangs, or has lost its device (an illegal access poisons a CUDA context for good), the job it was at is recorded
as failed and another process takes the rest.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnc.testing.gpu.cases import Suite

STAGES = ("check", "prepare", "race", "calls", "starts")
LONGEST = 150.0
"""Seconds after which a job counts as hung."""
Found = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """A stage and the number of its case in the suite."""

    stage: str
    number: int

    @property
    def key(self) -> str:
        return f"{self.stage}:{self.number}"


def jobs(suite: Suite, stage: str, wanted: Sequence[str] = ()) -> list[Job]:
    """The jobs of a stage, of the wanted specs only if any are named."""
    if stage not in ("check", "race", "prepare"):
        return [Job(stage, 0)]
    specs = [c.spec for c in (suite.checks if stage == "check" else suite.races)]
    return [Job(stage, n) for n, spec in enumerate(specs) if not wanted or spec in wanted]


def label(job: Job, suite: Suite) -> str:
    """What a job is about, for people."""
    match job.stage:
        case "check":
            return suite.checks[job.number].name
        case "race" | "prepare":
            return suite.races[job.number].name
        case "calls":
            return "a call on the host"
        case _:
            return "from nothing to a first result"


def do(job: Job, suite: Suite) -> Found:
    """The result of a job."""
    from attnc.testing.gpu import check, speed, starts

    match job.stage:
        case "check":
            rows = check.checked(suite.checks[job.number], suite.device)
            return {"rows": rows, "agrees": all(r["agrees"] for r in rows)}
        case "prepare":
            return speed.prepared(suite.races[job.number], suite)
        case "race":
            return speed.raced(suite.races[job.number], suite)
        case "calls":
            return {"microseconds": starts.host_times(suite)}
        case _:
            return {"seconds": starts.first_results(suite)}


def work(keys: Sequence[str], suite: Suite, out: Path) -> int:
    """What a process does: its jobs in turn. Exit code 3: the device is lost, and the jobs after this one are left."""
    with out.open("a", encoding="utf-8") as file:

        def tell(content: Found) -> None:
            file.write(json.dumps(content) + "\n")
            file.flush()

        for key in keys:
            stage, _, number = key.partition(":")
            job = Job(stage, int(number))
            tell({"begun": key})
            begun = time.perf_counter()
            lost = False
            try:
                found = do(job, suite)
            except Exception as problem:  # recorded, and the rest goes on
                found = {"problem": described(problem)}
                lost = _device_is_lost(suite)
            tell({"done": key, "name": label(job, suite), **found, "took": round(time.perf_counter() - begun, 2)})
            if lost:
                return 3
            _free(suite)
    return 0


def described(problem: BaseException) -> str:
    """An exception with its place."""
    frames = traceback.extract_tb(problem.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(problem).__name__}{where}: {str(problem)[:500]}"


def _device_is_lost(suite: Suite) -> bool:
    import torch

    if suite.device != "cuda":
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except Exception:
        return True
    return False


def _free(suite: Suite) -> None:
    """Give memory back, and forget what was compiled: FlexAttention is one function to dynamo, which stops compiling a
    function that it has compiled a few times."""
    import sys

    import torch

    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if suite.device == "cuda":
        torch.cuda.empty_cache()


class Pool:
    """Processes that work through jobs until a deadline.

    Args:
        command: starts a process that does jobs: keys, with commas, and the file for its lines are appended.
        folder: for those files.
        deadline: by `time.perf_counter`; what is not done by then is recorded as such.
        tell: called with every result as it comes.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, suite: Suite, deadline: float, tell: Callable[[Job, Found], None]
    ) -> None:
        self.command, self.folder, self.suite = list(command), folder, suite
        self.deadline, self.tell = deadline, tell

    def run(self, listed: Sequence[Job], processes: int) -> None:
        """Do the jobs, in as many processes; each takes every n-th."""
        parts = [p for p in (list(listed[k::processes]) for k in range(processes)) if p]
        with ThreadPoolExecutor(max(1, len(parts))) as threads:
            for done in [threads.submit(self._part, part) for part in parts]:
                done.result()

    def _part(self, left: list[Job]) -> None:
        while left:
            if time.perf_counter() >= self.deadline:
                for job in left:
                    self.tell(job, {"name": label(job, self.suite), "problem": "not begun: the time was up"})
                return
            left = self._process(left)

    def _process(self, left: list[Job]) -> list[Job]:
        """Run one process over some jobs; those it leaves."""
        out = self.folder / f"{left[0].stage}_{left[0].number}_{time.monotonic_ns()}.jsonl"
        out.touch()
        log = out.with_suffix(".log")
        with log.open("w") as said:
            command = [*self.command, ",".join(j.key for j in left), str(out)]
            alone = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # the processes themselves are what runs side by side
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=alone | os.environ)
            try:
                begun, ended = self._follow(process, out, left)
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
        waiting = [j for j in left if j.key not in ended]
        if begun is not None and begun not in ended:
            job = next(j for j in left if j.key == begun)
            self.tell(job, {"name": label(job, self.suite), "problem": _ending(process.returncode, log)})
            waiting.remove(job)
        elif not ended:  # it never came to its first job
            job = waiting.pop(0)
            self.tell(job, {"name": label(job, self.suite), "problem": _ending(process.returncode, log)})
        return waiting

    def _follow(self, process: subprocess.Popen[bytes], out: Path, left: list[Job]) -> tuple[str | None, set[str]]:
        """Pass results on while a process runs; the job it began last, and those it ended."""
        begun: str | None = None
        ended: set[str] = set()
        named = {j.key: j for j in left}
        since = time.perf_counter()
        with out.open(encoding="utf-8") as lines:
            part = ""
            while True:
                over = process.poll() is not None
                while chunk := lines.readline():
                    part += chunk
                    if not part.endswith("\n"):
                        break
                    content, part = json.loads(part), ""
                    since = time.perf_counter()
                    if "begun" in content:
                        begun = content["begun"]
                    else:
                        key = content.pop("done")
                        ended.add(key)
                        self.tell(named[key], content)
                now = time.perf_counter()
                if over or now >= self.deadline or now - since > LONGEST:
                    return begun, ended
                time.sleep(0.05)


def _ending(code: int, log: Path) -> str:
    """Why a process ended before its jobs were done."""
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = f"; its last words: {said[-1][:300]}" if said else ""
    reason = "was stopped: the time was up, or the job hung" if code == -9 else f"ended with code {code}"
    return f"the process {reason}{last}"
