"""Jobs in processes that fail, die and hang."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from attnc.testing.gpu import jobs as module
from attnc.testing.gpu.cases import dry_run, on_gpu
from attnc.testing.gpu.jobs import Found, Job, Pool

WORKER = """
import json, os, sys, time
keys, out = sys.argv[1:]
with open(out, "a") as file:
    for key in keys.split(","):
        file.write(json.dumps({"begun": key}) + "\\n")
        file.flush()
        if key == "check:1":
            print("Segmentation fault")
            file.flush()
            os._exit(11)
        if key == "check:3":
            time.sleep(60)
        file.write(json.dumps({"done": key, "name": "n" + key, "pid": os.getpid()}) + "\\n")
        file.flush()
"""


def ran(tmp_path: Path, worker: str, count: int, processes: int = 1, seconds: float = 30.0) -> dict[str, Found]:
    found: dict[str, Found] = {}
    pool = Pool(
        [sys.executable, "-c", worker],
        tmp_path,
        dry_run(),
        time.perf_counter() + seconds,
        lambda job, content: found.__setitem__(job.key, content),
    )
    pool.run([Job("check", n) for n in range(count)], processes)
    return found


def test_a_process_that_dies_costs_the_job_it_was_at(tmp_path: Path) -> None:
    found = ran(tmp_path, WORKER, 3)
    assert "code 11" in found["check:1"]["problem"]
    assert "Segmentation fault" in found["check:1"]["problem"]
    assert found["check:0"]["name"] == "ncheck:0"
    assert found["check:2"]["pid"] != found["check:0"]["pid"]


def test_a_job_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", 1.0)
    found = ran(tmp_path, WORKER.replace("check:1", "none"), 5)
    assert "hung" in found["check:3"]["problem"]
    assert "problem" not in found["check:4"]


def test_a_process_that_never_begins_is_not_started_for_ever(tmp_path: Path) -> None:
    found = ran(tmp_path, "raise SystemExit(7)", 2)
    assert all("code 7" in f["problem"] for f in found.values())
    assert len(found) == 2


def test_jobs_are_dealt_to_processes(tmp_path: Path) -> None:
    found = ran(tmp_path, WORKER.replace("check:1", "none").replace("check:3", "none"), 4, processes=2)
    assert found["check:0"]["pid"] == found["check:2"]["pid"] != found["check:1"]["pid"]


def test_every_race_of_the_gpu_is_walked_in_the_dry_run() -> None:
    """With every peer it has there."""
    tried: dict[str, set[str]] = {}
    for race in dry_run().races:
        tried.setdefault(race.spec, set()).update(race.peers)
    assert all(set(r.peers) <= tried[r.spec] for r in on_gpu().races)
    assert {c.spec for c in on_gpu().checks} == {c.spec for c in dry_run().checks}
    assert len({r.name for r in on_gpu().races}) == len(on_gpu().races)
