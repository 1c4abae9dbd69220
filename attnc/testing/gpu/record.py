"""The results of a run: a JSON file rewritten as they come, a table, a picture."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attnc.testing.gpu.cases import Suite
from attnc.testing.gpu.jobs import Found, Job

CLOCKS = (
    "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "temperature.gpu", "power.draw", "driver_version",
)  # fmt: skip
ORDER = ("attnc", "cuDNN", "flash", "efficient", "flex", "fla", "eager")


def machine(device: str) -> dict[str, Any]:
    """Device and versions."""
    import torch

    found: dict[str, Any] = {
        "device": "cpu",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **{name: _version(name) for name in ("triton", "numpy", "attnc")},
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def clocks() -> dict[str, str]:
    """What nvidia-smi says of clocks, temperature and power now; nothing where there is none. Nothing is set."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    values = [v.strip() for v in done.stdout.strip().split(",")]
    return dict(zip(CLOCKS, values, strict=True)) if len(values) == len(CLOCKS) else {}


class Record:
    """What is known so far.

    Attributes:
        entries: one per job that was done or failed, with its ``stage``, ``number`` and ``name``.
    """

    def __init__(self, suite: Suite, out: Path, say: Callable[[str], None]) -> None:
        """Results go to `out` and beside it, and are told by `say`."""
        self.suite, self.out, self.say = suite, out, say
        self.begun = time.perf_counter()
        self.entries: list[Found] = []
        self.machine = machine(suite.device)
        self.clocks: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.begun

    def add(self, job: Job, found: Found) -> None:
        """Keep a result, write the file and say a line."""
        with self._lock:
            self.entries.append({"stage": job.stage, "number": job.number, **found})
            self._save()
            self.say(f"[{self.spent:5.0f} s] {job.stage:7} {found['name']:44} {verdict(found)}")

    def note_clocks(self, when: str) -> None:
        """Remember the clocks at a moment."""
        self.clocks[when] = clocks()

    def _save(self) -> None:
        """Rewrite the file in one step."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        suite = self.suite
        content = {
            "machine": self.machine,
            "clocks": self.clocks,
            "dry_run": suite.device != "cuda",
            "rounds": suite.rounds,
            "seconds": round(self.spent, 1),
            "races": [asdict(r) for r in suite.races],
            "entries": sorted(self.entries, key=lambda e: (e["stage"], e["number"])),
        }
        temporary = self.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(self.out)

    def finish(self) -> bool:
        """Write the table and the picture; whether everything ran and agreed."""
        with self._lock:
            self._save()
        text = table(self)
        self.out.with_suffix(".txt").write_text(text)
        self.say(text)
        drawn = draw(self.of("race"), self.machine["device"], self.out.with_suffix(".png"))
        self.say(f"{len(self.entries)} entries in {self.spent:.0f} s: {self.out}" + (f", {drawn}" if drawn else ""))
        return all("problem" not in e and e.get("agrees") is not False for e in self.entries)

    def of(self, stage: str) -> list[Found]:
        """The entries of a stage in order."""
        return sorted((e for e in self.entries if e["stage"] == stage), key=lambda e: e["number"])


def verdict(found: Mapping[str, Any]) -> str:
    """A result in a few words."""
    if "problem" in found:
        return str(found["problem"]).partition("\n")[0][:160]
    if "agrees" in found:
        return "agrees" if found["agrees"] else "DISAGREES"
    parts = []
    for what, timings in found.get("timings", {}).items():
        peers = "".join(f", {n} {found['ratios'][what][n]:.2f}x" for n in ORDER if n in found["ratios"][what])
        parts.append(f"{what} {timings['attnc']['median_ms']:.3f} ms{peers}")
    return "; ".join(parts) or "done"


def table(record: Record) -> str:
    """Everything as text: correctness first, then times."""
    m = record.machine
    lines = [f"{m['device']}, torch {m['torch']}, triton {m['triton']}, python {m['python']}"]
    lines += [
        f"{when}: " + ", ".join(f"{k} {v}" for k, v in seen.items()) for when, seen in record.clocks.items() if seen
    ]
    checks = record.of("check")
    good = sum(bool(e.get("agrees")) for e in checks)
    lines += ["", f"against the float64 oracle, outputs and all gradients: {good} of {len(checks)} agree"]
    lines += [f"    {e['name']}: {verdict(e)}" for e in checks if not e.get("agrees")]
    for what, title in (("forward", "forward"), ("both", "forward and backward")):
        lines += ["", f"{title}: TFLOP/s of the pairs attended to (milliseconds), bf16"]
        lines += _rows(record.of("race"), what)
    lines += ["", *(f"race {e['name']}: {verdict(e)}" for e in record.of("race") if "problem" in e)]
    for e in (*record.of("calls"), *record.of("starts")):
        content = e.get("microseconds") or e.get("seconds") or verdict(e)
        lines.append(f"{e['name']}: {json.dumps(content) if isinstance(content, dict) else content}")
    return "\n".join(lines) + "\n"


def _rows(races: Sequence[Found], what: str) -> list[str]:
    shown = [e for e in races if what in e.get("timings", {})]
    names = [n for n in ORDER if any(n in e["timings"][what] for e in shown)]
    lines = ["| case | " + " | ".join(names) + " | error / allowed |", "|---" * (len(names) + 2) + "|"]
    for e in shown:
        cells = []
        for n in names:
            timing = e["timings"][what].get(n)
            cells.append("" if timing is None else f"{e['tflops'][what][n]:.0f} ({timing['median_ms']:.3f})")
        accuracy = e.get("accuracy")
        cells.append("" if accuracy is None else f"{accuracy['error']:.1e} / {accuracy['allowed']:.1e}")
        lines.append(f"| {e['name']} | " + " | ".join(cells) + " |")
    return lines if shown else ["nothing was timed"]


def draw(races: Sequence[Found], title: str, path: Path) -> Path | None:
    """Rates as bars, one panel for the forward and one for both directions; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    panels = [(w, [e for e in races if w in e.get("timings", {})]) for w in ("forward", "both")]
    panels = [(w, shown) for w, shown in panels if shown]
    if not panels:
        return None
    figure = Figure(figsize=(9 * len(panels), 1.5 + 0.34 * len(panels[0][1])), layout="constrained")
    for axes, (what, shown) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        names = [n for n in ORDER if any(n in e["tflops"][what] for e in shown)]
        height = 0.85 / len(names)
        for k, name in enumerate(names):
            places = [n + k * height for n, e in enumerate(shown) if name in e["tflops"][what]]
            values = [e["tflops"][what][name] for e in shown if name in e["tflops"][what]]
            axes.barh(places, values, height, label=name)
        axes.set_yticks([n + 0.4 for n in range(len(shown))], [e["name"] for e in shown], fontsize=6)
        axes.invert_yaxis()
        axes.set_xlabel("TFLOP/s of the pairs attended to")
        axes.set_title({"forward": "forward", "both": "forward and backward"}[what])
        axes.legend()
    figure.suptitle(f"{title}, bf16", fontsize=9)
    figure.savefig(path, dpi=120)
    return path
