"""attnc's CPU kernels beside PyTorch's attention: correct first, then timed.

    python benchmarks/cpu.py [--quick] [--only plain,decode] [--specs causal] [--lengths 2048] [--dtypes f32]

Every case is compared with the float64 oracle, values and gradients, at a length the oracle can hold. Then attnc,
`scaled_dot_product_attention` (with a dense `attn_mask` where the variant has a bias), compiled FlexAttention (forward
only: it has no backward on CPUs) and plain eager PyTorch run in turn in one process. Rounds that other processes
disturbed are discarded; a row without two undisturbed rounds is marked `~`. Rates are shares of the peak of the
machine's multiplication units, measured in the same rounds. `--quick` takes less than four minutes on two cores.

Sections: plain, specs, window, parts (softmax built up from its products), channels, decode, threads, starts, shapes.
Results go to a JSON file with the machine, and to a PNG beside it if matplotlib is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"
SPECS = "alibi,softcap_alibi,sliding_window,document_causal,prefix_lm,relative_table,sinks,sigmoid_attention,urpe"
SECTIONS = "plain,specs,window,parts,channels,decode,threads,starts,shapes"
PARTS = {
    "products": "normaliser(s) = abs(s)",
    "exponentials": "normaliser(s) = exp(s)",
    "sums": "normaliser(s) = exp(s) / sum[j](exp(s))",
}
"""Softmax attention built up from its two products; what it has besides is the running maximum."""
ORACLE_LENGTH = 256
LARGEST_PLANE = 1 << 26
"""Elements of a plane beyond which eager PyTorch and dense biases are left out."""
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


@dataclass(frozen=True, slots=True)
class Case:
    """One row: a spec at some sizes, forward alone or with backward."""

    section: str
    spec: str
    dtype: str
    n: int
    d: int = 64
    h: int = 8
    m: int | None = None
    both: bool = False


def cases(given: argparse.Namespace) -> Iterator[Case]:
    """The rows of the sections, in order."""
    lengths = numbers(given.lengths) or ([512, 2048] if given.quick else [512, 2048, 8192])
    channels = numbers(given.channels) or ([64] if given.quick else [64, 128])
    specs = given.specs.split(",") if given.specs else None
    middle = max(n for n in lengths if n <= 2048) if min(lengths) <= 2048 else lengths[0]
    passes = (False, True) if given.backward else (False,)
    for dtype in given.dtypes.split(","):
        for both in passes:
            for spec in specs or ["softmax", "causal"]:
                for d in channels:
                    for n in lengths:
                        yield Case("plain", spec, dtype, n, d, 2 if n > 2048 else 8, both=both)
            for spec in (specs or (SPECS.split(",")))[: 4 if given.quick else None]:
                yield Case("specs", spec, dtype, middle, both=both)
            yield Case("window", "sliding_window", dtype, 4096 if given.quick else 32768, h=2, both=both)
        for d in (80, 96):
            yield Case("channels", "softmax", dtype, middle, d)
        for m in (1, 4, 16):
            yield Case("decode", "softmax", dtype, 4 * max(lengths) if given.quick else 8192, m=m)


def numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",") if x]


class Bench:
    """Runs cases; compiled ops and what was found about them are kept."""

    def __init__(self, given: argparse.Namespace) -> None:
        import torch

        from attnc.testing.peak import peaks

        self.given = given
        self.ops: dict[str, Any] = {}
        self.right: dict[tuple[str, str, int, bool], float] = {}
        self.peaks = peaks(torch.get_num_threads())

    def op(self, spec: str) -> Any:
        import attnc

        if spec not in self.ops:
            part = PARTS.get(spec)
            source = EXAMPLES / f"{spec}.attn" if part is None else f"attention {spec}\n{part}\n"
            self.ops[spec] = attnc.compile(source)
        return self.ops[spec]

    def tensors(self, case: Case, n: int) -> tuple[dict[str, int], dict[str, Any]]:
        import torch

        from attnc.testing.inputs import complete_sizes, make_inputs

        program = self.op(case.spec).program
        known = {"B": 1, "H": case.h, "N": n, "M": min(n, case.m or n), "D": case.d}
        sizes = complete_sizes(program, known)
        return sizes, make_inputs(program, sizes, getattr(torch, DTYPES[case.dtype]))

    def worst(self, case: Case) -> float:
        """The largest error of a spec as a fraction of what is allowed."""
        from attnc.testing.compare import agreements

        key = (case.spec, case.dtype, case.d, case.both)
        if key not in self.right:
            _, tensors = self.tensors(Case(**{**asdict(case), "h": 2, "m": None}), min(case.n, ORACLE_LENGTH))
            found = agreements(self.op(case.spec), tensors, backward=case.both)
            self.right[key] = max(a.error / a.limit if a.limit else float(a.error > 0) for a in found)
        return self.right[key]

    def row(self, case: Case) -> dict[str, Any]:
        """Times, ratios, rates and memory of a case."""
        from attnc.testing import race
        from attnc.testing.plain import allowed_fraction
        from attnc.testing.quiet import peak_memory, round_robin

        row: dict[str, Any] = {**asdict(case), "error": self.worst(case)}
        sizes, tensors = self.tensors(case, case.n)
        op = self.op(case.spec)
        runners = {"attnc": race.of_op(op, tensors)}
        row["without"] = {}
        for name, peer in self._peers(case, op.program, tensors, sizes).items():
            if isinstance(peer, str):
                row["without"][name] = peer
            else:
                runners[name] = race.of_peer(peer, tensors)
        calls = {n: r.both if case.both else r.forward for n, r in runners.items()}
        unit = self.peaks.get(case.dtype, self.peaks["f32"])
        rates: list[float] = []
        timed = round_robin(
            {**calls, "peak": lambda: rates.append(unit.again())},
            rounds=self.given.rounds,
            least=self.given.least,
            budget=self.given.budget,
        )
        row["seconds"] = {n: timed.median(n) for n in calls}
        row["ratios"] = {n: timed.ratio(n, "attnc") for n in calls if n != "attnc"}
        row["quiet"], row["discarded"], row["rounds"] = timed.quiet, timed.discarded, len(timed.samples["attnc"])
        row["memory"] = {n: peak_memory(c) for n, c in calls.items()}
        share = allowed_fraction(op.program, tensors, sizes)
        if share is not None:
            pairs = share * sizes["B"] * sizes["H"] * sizes["M"] * sizes["N"] * sizes["D"]
            row["gflops"] = pairs * (14 if case.both else 4) / row["seconds"]["attnc"] / 1e9
            row["of_peak"] = row["gflops"] * 1e9 / max(rates)
            row["unit"] = unit.name
        return row

    def _peers(self, case: Case, program: Any, tensors: Any, sizes: dict[str, int]) -> dict[str, Any]:
        from attnc.testing import peers
        from attnc.testing.plain import plain

        makers: dict[str, Any] = {"SDPA": peers.sdpa, "eager": plain}
        if self.given.flex and not case.both:
            makers["flex"] = peers.flex
        elements = sizes["B"] * sizes["H"] * sizes["M"] * sizes["N"]
        found: dict[str, Any] = {}
        for name, make in makers.items():
            planes = name == "eager" or (name == "SDPA" and case.spec not in ("softmax", "causal"))
            if planes and elements > LARGEST_PLANE:
                found[name] = f"needs tensors of {elements:,} elements"
                continue
            peer = make(program, tensors, sizes)
            found[name] = peer if isinstance(peer, peers.Peer) else peer.reason
        return found

    # ------------------------------------------------------------------------------------------- other sections

    def parts(self) -> dict[str, Any]:
        """Shares of the peak, of softmax attention and of what it is made of, from the same rounds."""
        n = min(2048, max(numbers(self.given.lengths) or [2048]))
        return {dtype: self._shares(dtype, n) for dtype in self.given.dtypes.split(",")}

    def _shares(self, dtype: str, n: int) -> dict[str, Any]:
        from attnc.testing import race
        from attnc.testing.quiet import round_robin

        calls: dict[str, Callable[[], object]] = {}
        for spec in (*PARTS, "softmax"):
            case = Case("parts", spec, dtype, n)
            if self.worst(case) > 1:
                raise ValueError(f"{spec} in {dtype} disagrees with the oracle")
            calls[spec] = race.of_op(self.op(spec), self.tensors(case, n)[1]).forward
        unit = self.peaks.get(dtype, self.peaks["f32"])
        rates: list[float] = []
        timed = round_robin(
            {**calls, "peak": lambda: rates.append(unit.again())},
            rounds=self.given.rounds,
            least=self.given.least,
            budget=max(10.0, self.given.budget),
        )
        work = median(rates) * timed.median("peak")  # the same at every call
        shares = {spec: 4 * 8 * n * n * 64 / timed.ratio(spec, "peak") / work for spec in calls}
        return {"unit": unit.name, "quiet": timed.quiet, **shares}

    def threads(self) -> dict[str, Any]:
        """How much faster all threads are than one; longest blocks of rows first, so that none is left alone."""
        import torch

        from attnc.testing import race
        from attnc.testing.quiet import round_robin

        count = torch.get_num_threads()
        found: dict[str, Any] = {"threads": count}
        for spec in ("softmax", "causal"):
            _, tensors = self.tensors(Case("threads", spec, "f32", 2048), min(2048, self.given.shortest))
            runner = race.of_op(self.op(spec), tensors)

            def alone(forward: Any = runner.forward) -> None:
                torch.set_num_threads(1)
                forward()
                torch.set_num_threads(count)

            timed = round_robin(
                {"all": runner.forward, "one": alone}, rounds=self.given.rounds, least=self.given.least, budget=10
            )
            found[spec] = {"ratio": timed.ratio("one", "all"), "quiet": timed.quiet}
        return found

    def starts(self) -> dict[str, Any]:
        """Seconds of a first process, which compiles, and of a second one, which finds everything in the cache."""
        found: dict[str, Any] = {}
        for spec in ("causal", "alibi"):
            with tempfile.TemporaryDirectory() as cache:
                runs = {w: self._start(spec, cache) for w in ("compiling", "cached")}
            found[spec] = runs
        return found

    def _start(self, spec: str, cache: str) -> dict[str, float]:
        environment = {**os.environ, "ATTNC_CACHE_DIR": cache}
        command = [sys.executable, "-c", START, str(EXAMPLES / f"{spec}.attn")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        times: dict[str, float] = json.loads(done.stdout)
        return times

    def calls(self) -> dict[str, float]:
        """Microseconds of the smallest call, of each kind; the least of many, the kernel's own time included."""
        found = {}
        for spec in ("softmax", "causal", "alibi", "document_causal"):
            from attnc.testing import race

            _, tensors = self.tensors(Case("calls", spec, "f32", 1, 16, 1), 1)
            runner = race.of_op(self.op(spec), tensors)
            for kind, call in (("forward", runner.forward), ("both", runner.both)):
                found[f"{spec} {kind}"] = least_time(call) * 1e6
        return found

    def shapes(self, count: int) -> dict[str, Any]:
        """Many shapes through one op: agreement with SDPA in float64, time beside SDPA's, and nothing compiled anew.

        The op has a cache of its own, so that libraries which other processes compile meanwhile do not count.
        """
        with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, {"ATTNC_CACHE_DIR": cache}):
            return self._shapes(count)

    def _shapes(self, count: int) -> dict[str, Any]:
        import torch
        from torch.nn.functional import scaled_dot_product_attention as sdpa

        import attnc
        from attnc.testing.quiet import round_robin

        op, chance = attnc.compile(EXAMPLES / "causal.attn"), random.Random(0)
        before, ratios, worst = None, [], 0.0
        for _ in range(count):
            b, h, n = chance.randint(1, 2), chance.choice((1, 2, 3, 8)), chance.randint(1, self.given.shortest)
            q, k, v = (
                torch.randn(3, b, n, h, 64).transpose(2, 3) if chance.random() < 0.5 else torch.randn(3, b, h, n, 64)
            )
            contestants = {"attnc": partial(op, q, k, v), "SDPA": partial(sdpa, q, k, v, is_causal=True)}
            timed = round_robin(contestants, rounds=2, least=0.01, budget=0.2)
            ratios.append(timed.ratio("SDPA", "attnc"))
            exact = sdpa(q.double(), k.double(), v.double(), is_causal=True)
            worst = max(worst, float((op(q, k, v) - exact).abs().max()))
            before = before if before is not None else libraries()
        ratios.sort()
        compiled = libraries() - (before or 0)
        return {
            "shapes": count,
            "error": worst,
            "compiled": compiled,
            "slowest": ratios[0],
            "median": ratios[count // 2],
        }


START = """
import json, sys, time
import torch
times, begun = {}, time.perf_counter()
def lap(name):
    global begun
    times[name], begun = time.perf_counter() - begun, time.perf_counter()
import attnc
lap("import")
op = attnc.compile(sys.argv[1])
lap("compile")
h = {t.name: torch.rand(8) for t in op.program.tensors if t.name not in "qkv"}
q, k, v = (torch.randn(1, 8, 64, 64, requires_grad=True) for _ in range(3))
o = op(q, k, v, **h)
lap("forward")
o.sum().backward()
lap("backward")
print(json.dumps(times))
"""


def libraries() -> int:
    """Compiled libraries in the cache."""
    from attnc.settings import Settings

    return len(list((Settings.read().cache_dir / "cpp").glob("*.so")))


def least_time(call: Any, count: int = 2000) -> float:
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer lengths, specs and rounds; under four minutes")
    parser.add_argument("--only", default=SECTIONS, help="sections, with commas")
    parser.add_argument("--specs", default="", help="specs of the sections plain and specs, with commas")
    parser.add_argument("--lengths", default="", help="lengths, with commas")
    parser.add_argument("--channels", default="", help="channels per head, with commas")
    parser.add_argument("--dtypes", default="f32,bf16", help=f"of {', '.join(DTYPES)}, with commas")
    parser.add_argument("--rounds", type=int, default=0, help="undisturbed rounds per row")
    parser.add_argument("--least", type=float, default=0.0, help="seconds each contestant runs in a round")
    parser.add_argument("--budget", type=float, default=0.0, help="seconds after which a row begins no further round")
    parser.add_argument("--shapes", type=int, default=50, help="shapes in the sweep")
    parser.add_argument("--no-flex", dest="flex", action="store_false", help="without FlexAttention, slow to compile")
    parser.add_argument("--no-backward", dest="backward", action="store_false")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu.json")
    given = parser.parse_args()
    given.rounds = given.rounds or (3 if given.quick else 7)
    given.least = given.least or (0.03 if given.quick else 0.1)
    given.budget = given.budget or (1.5 if given.quick else 30.0)
    given.flex = given.flex and not given.quick
    given.shortest = max(numbers(given.lengths) or [512])
    return run(given)


def run(given: argparse.Namespace) -> int:
    """Measure, print and write; 1 if something was wrong."""
    import torch

    from attnc.testing.cpu_report import Report
    from attnc.testing.machine import processor

    bench = Bench(given)
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peaks": {n: {"unit": p.name, "gflops": p.rate / 1e9} for n, p in bench.peaks.items()},
    }
    report = Report(machine, given.out)
    wanted = given.only.split(",")
    for case in cases(given):
        if case.section in wanted:
            try:
                report.add(bench.row(case))
            except Exception as problem:
                report.add({**asdict(case), "problem": f"{type(problem).__name__}: {problem}"})
    others: dict[str, Callable[[], dict[str, Any]]] = {
        "parts": bench.parts,
        "threads": bench.threads,
        "starts": bench.starts,
        "calls": bench.calls,
        "shapes": lambda: bench.shapes(given.shapes),
    }
    for name, measure in others.items():
        if name in wanted or (name == "calls" and "starts" in wanted):
            report.note(name, measure())
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
