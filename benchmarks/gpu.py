"""Every contract spec on a GPU: right first, then how fast beside PyTorch's own attention.

    python benchmarks/gpu.py                 # on a CUDA device; under nine minutes on an H200
    python benchmarks/gpu.py --dry-run       # the same path on a CPU, tiny, through Triton's interpreter

For each spec of the language's contract, in bf16 and f16: outputs and all gradients against the float64 oracle, then
medians and interquartile ranges of the forward, and of the forward and backward, beside
`scaled_dot_product_attention` and compiled `flex_attention` where those can express the variant. One case that fails
is recorded and the rest goes on; the JSON file is rewritten after every case, so whatever was measured before a crash
or the time limit is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from attnc.testing.timing import Timing

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"
SPECS = (
    "alibi", "gemma2", "sinks", "relative_table", "document_causal", "music", "spatial", "sigmoid_attention", "gated",
    "manhattan", "neighborhood_2d", "retention", "reversed", "watched", "pointer", "agent", "causal", "softmax",
)  # fmt: skip
DTYPES = ("bf16", "f16")


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    check: dict[str, int]
    odd: dict[str, int]
    race: dict[str, int]
    race_consts: dict[str, dict[str, int]]
    rounds: int
    seconds_per_race: float
    deadline: float


ON_GPU = Scale(
    check={"B": 2, "H": 4, "G": 2, "N": 1024, "M": 1024, "D": 64},
    odd={"B": 1, "H": 2, "G": 1, "N": 333, "M": 333, "D": 64},
    race={"B": 4, "H": 16, "N": 4096, "M": 4096, "D": 64},
    race_consts={"neighborhood_2d": {"rows": 64, "cols": 64}, "gemma2": {"window": 1024}},
    rounds=20,
    seconds_per_race=0.5,
    deadline=520.0,
)
DRY = Scale(
    check={"B": 1, "H": 2, "G": 1, "N": 33, "M": 33, "D": 16},
    odd={"B": 1, "H": 2, "G": 2, "N": 7, "M": 7, "D": 16},
    race={"B": 1, "H": 2, "N": 32, "M": 32, "D": 16},
    race_consts={"neighborhood_2d": {"rows": 4, "cols": 8, "r": 1}},
    rounds=2,
    seconds_per_race=0.1,
    deadline=110.0,
)
CHECK_CONSTS = {"neighborhood_2d": {"rows": 4, "cols": 8, "r": 1}}
"""In a dry run the grid of a spec on a grid is made to fit the tiny length."""


@dataclass
class Entry:
    """What is known of one spec in one dtype."""

    spec: str
    dtype: str
    stage: str
    seconds: float = 0.0
    agrees: bool | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    ratios: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problem: str | None = None


class Bench:
    """The run: its scale, its clock and its file."""

    def __init__(self, scale: Scale, dry: bool, out: Path, specs: tuple[str, ...]) -> None:
        self.scale, self.dry, self.out, self.specs = scale, dry, out, specs
        self.device = "cpu" if dry else "cuda"
        self.begun = time.perf_counter()
        self.entries: list[Entry] = []
        self.machine = machine(self.device)

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.begun

    def save(self) -> None:
        """Rewrite the result file in one step."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "machine": self.machine,
            "dry_run": self.dry,
            "scale": asdict(self.scale),
            "seconds": round(self.spent, 1),
            "entries": [asdict(e) for e in self.entries],
        }
        temporary = self.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1))
        temporary.replace(self.out)

    def attempt(self, entry: Entry, work: Callable[[Entry], None]) -> None:
        """Do one piece of work; its failure is a result."""
        begun = time.perf_counter()
        self.entries.append(entry)
        if self.spent > self.scale.deadline:
            entry.problem = "not begun: the time was up"
        else:
            try:
                work(entry)
            except Exception as problem:  # recorded, and the rest goes on
                frames = traceback.extract_tb(problem.__traceback__)
                where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
                entry.problem = f"{type(problem).__name__} at {where}: {str(problem)[:500]}"
        entry.seconds = round(time.perf_counter() - begun, 2)
        self.save()
        verdict = "" if entry.agrees is None else "agrees" if entry.agrees else "DISAGREES"
        state = (entry.problem or verdict).partition("\n")[0]
        ratios = "  ".join(f"{what} {_ratios(r)}" for what, r in entry.ratios.items())
        print(
            f"[{self.spent:5.0f} s] {entry.stage:5} {entry.dtype:4} {entry.spec:18} {state} {ratios}",
            flush=True,
        )

    def run(self) -> None:
        """Everything, what matters most first."""
        for dtype in DTYPES:
            for spec in self.specs:
                self.attempt(Entry(spec, dtype, "check"), self.check)
        for dtype in DTYPES[:1] if self.dry else DTYPES:
            for spec in self.specs:
                self.attempt(Entry(spec, dtype, "race"), self.race)

    # ----------------------------------------------------------------------------------------------- the work

    def compile(self, spec: str, consts: Mapping[str, int]) -> Any:
        import attnc

        given: dict[str, Any] = dict(consts)
        return attnc.compile(EXAMPLES / f"{spec}.attn", backend="triton", **given)

    def check(self, entry: Entry) -> None:
        """Outputs and gradients against the oracle, at an even length and at one that is a multiple of nothing."""
        from attnc.testing.compare import agreements
        from attnc.testing.inputs import complete_sizes, grid_length, make_inputs

        op = self.compile(entry.spec, CHECK_CONSTS.get(entry.spec, {}) if self.dry else {})
        program = op.program
        grid = grid_length(program)
        entry.agrees = True
        for given in (self.scale.check, self.scale.odd):
            fitted = given | ({"M": grid, "N": grid} if grid and given is self.scale.check else {})
            tensors = make_inputs(
                program, complete_sizes(program, fitted), torch_dtype(entry.dtype), device=self.device
            )
            for row in agreements(op, tensors):
                entry.errors.append(asdict(row) | {"N": fitted["N"], "agrees": row.agrees})
                entry.agrees &= row.agrees

    def race(self, entry: Entry) -> None:
        """Interleaved medians of the op and of every peer that can express the spec."""
        from attnc.testing import race
        from attnc.testing.inputs import complete_sizes, make_inputs
        from attnc.testing.peers import NotExpressible, flex, sdpa

        op = self.compile(entry.spec, self.scale.race_consts.get(entry.spec, {}))
        program = op.program
        sizes = complete_sizes(program, self.scale.race)
        tensors = make_inputs(program, sizes, torch_dtype(entry.dtype), device=self.device)
        runners = [race.of_op(op, tensors)]
        for name, make in (("SDPA", sdpa), ("FlexAttention", flex)):
            if name == "FlexAttention" and entry.dtype != DTYPES[0]:
                continue
            try:
                peer = (
                    make(program, tensors, sizes)
                    if make is sdpa
                    else flex(program, tensors, sizes, compiled=not self.dry)
                )
                if isinstance(peer, NotExpressible):
                    entry.notes.append(f"{name}: {peer.reason}")
                    continue
                runner = race.of_peer(peer, tensors)
                runner.forward()
                runners.append(runner)
                entry.notes.append(f"{peer.name}: {peer.note}")
            except Exception as problem:  # a peer that fails must not hide the op's own time
                entry.notes.append(f"{name} failed: {type(problem).__name__}: {str(problem).strip()[:200]}")
        self.measure(entry, "forward", {r.name: r.forward for r in runners})
        self.measure(entry, "both", {r.name: r.both for r in runners})

    def measure(self, entry: Entry, what: str, calls: dict[str, Callable[[], object]]) -> None:
        """Time the calls that work, in turn."""
        from attnc.testing.timing import interleaved, interleaved_cuda

        working = {}
        for name, call in calls.items():
            try:
                call()
                working[name] = call
            except Exception as problem:
                if name == "attnc":
                    raise
                entry.notes.append(f"{name}, {what}: {type(problem).__name__}: {str(problem).strip()[:200]}")
        timer = interleaved if self.dry else interleaved_cuda
        timings = timer(working, rounds=self.scale.rounds, budget=self.scale.seconds_per_race)
        entry.timings[what] = {name: in_milliseconds(t) for name, t in timings.items()}
        own = timings["attnc"].median
        entry.ratios[what] = {name: round(t.median / own, 3) for name, t in timings.items() if name != "attnc"}


def in_milliseconds(timing: Timing) -> dict[str, float]:
    return {
        "median_ms": timing.median * 1e3,
        "iqr_ms": (timing.high - timing.low) * 1e3,
        "low_ms": timing.low * 1e3,
        "high_ms": timing.high * 1e3,
        "rounds": timing.rounds,
    }


def torch_dtype(name: str) -> torch.dtype:
    import torch

    return {"bf16": torch.bfloat16, "f16": torch.float16}[name]


def machine(device: str) -> dict[str, Any]:
    """Device and versions."""
    import torch

    def version(module: str) -> str | None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version(module)
        except PackageNotFoundError:
            return None

    found: dict[str, Any] = {
        "device": "cpu",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version("triton"),
        "numpy": version("numpy"),
        "attnc": version("attnc"),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
        }
    return found


def _ratios(ratios: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items()) or "(no peer)"


def table(bench: Bench) -> str:
    """The results as text: one line per spec and dtype, times in milliseconds, peers as multiples of attnc's time."""
    lines = [f"{bench.machine['device']}, torch {bench.machine['torch']}, triton {bench.machine['triton']}", ""]
    lines.append(
        f"{'spec':18} {'dtype':5} {'oracle':10} {'forward':>10} {'fwd+bwd':>10}   peers, as multiples of attnc's time"
    )
    for dtype in DTYPES:
        for spec in bench.specs:
            found = {e.stage: e for e in bench.entries if (e.spec, e.dtype) == (spec, dtype)}
            check, race = found.get("check"), found.get("race")
            verdict = "-" if check is None else "failed" if check.problem else "agrees" if check.agrees else "DISAGREES"
            times = [_time(race, what) for what in ("forward", "both")]
            peers = "; ".join(f"{what} {_ratios(r)}" for what, r in race.ratios.items()) if race else ""
            lines.append(f"{spec:18} {dtype:5} {verdict:10} {times[0]:>10} {times[1]:>10}   {peers}")
            lines += [f"    {e.stage}: {e.problem}" for e in found.values() if e.problem]
    return "\n".join(lines) + "\n"


def _time(entry: Entry | None, what: str) -> str:
    if entry is None or what not in entry.timings:
        return "-"
    return f"{entry.timings[what]['attnc']['median_ms']:.3f}"


def main() -> int:
    """Exit code 0 when every spec agrees with the oracle and ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU, through Triton's interpreter")
    parser.add_argument("--out", type=Path, default=None, help="the JSON file; the table goes beside it")
    parser.add_argument("--specs", default=",".join(SPECS), help="which, with commas")
    parser.add_argument("--deadline", type=float, default=None, help="seconds after which nothing new is begun")
    given = parser.parse_args()
    if given.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not given.dry_run and not torch.cuda.is_available():
        print("no CUDA device here; python benchmarks/gpu.py --dry-run walks the same path on a CPU")
        return 2
    name = (
        "dry_run"
        if given.dry_run
        else "gpu_" + torch.cuda.get_device_name(0).lower().replace(" ", "_").replace("/", "_")
    )
    out = given.out or HERE / "results" / f"{name}.json"
    scale = DRY if given.dry_run else ON_GPU
    if given.deadline is not None:
        scale = Scale(**(vars(scale) | {"deadline": given.deadline}))
    bench = Bench(scale, given.dry_run, out, tuple(given.specs.split(",")))
    bench.run()
    text = table(bench)
    out.with_suffix(".txt").write_text(text)
    print(text)
    print(f"{len(bench.entries)} entries in {bench.spent:.0f} s: {out}")
    return 0 if all(e.problem is None and e.agrees is not False for e in bench.entries) else 1


if __name__ == "__main__":
    raise SystemExit(main())
