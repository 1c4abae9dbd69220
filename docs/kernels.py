"""Writes docs/kernels.md: what Triton makes of the kernels, without a GPU: ``python docs/kernels.py``.

Only kernels whose source or configurations have changed since they were recorded in docs/kernels.json are compiled, so
a run that was stopped goes on where it was; all of them at first take an hour and a half on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attnc import driver
from attnc.codegen.tile import Kernel
from attnc.codegen.triton.configuration import candidates
from attnc.codegen.triton.printer import print_module
from attnc.grammar.load import load
from attnc.grammar.parser import parse
from attnc.testing.gpu.cases import CONTRACT

ROOT = Path(__file__).resolve().parent.parent
PAGE, RECORD = ROOT / "docs" / "kernels.md", ROOT / "docs" / "kernels.json"
SPECS = ("softmax", "causal", *(s for s in CONTRACT if s not in ("softmax", "causal")))
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
CHANNELS = 64

HEAD = """\
# Kernels

Written by `python docs/kernels.py` with Triton {version}, on a machine without a GPU: forward and backward of every
spec of the contract in bf16 with 64 channels, compiled ahead of time. Nothing here was run, and no number is a
measurement.

The hot loop is the one over full blocks. Its instructions are matrix products, special functions (exp2 and the like),
other arithmetic on reals, memory (shared and global), and the rest. *Work* is what the matrix instructions multiply,
over what the products of the tile program ask for: above 1, warps repeat each other's work. *Bound* is the share of the
tensor cores' peak that the static model of `attnc/testing/model.py` expects at best, if tensor cores and schedulers
take turns; loops without products of half precision have none. *Programs* fit a multiprocessor at once.
"""
COLUMNS = (
    "kernel", "blocks", "warps", "registers", "spilled", "shared", "programs", "loop", "matrix", "special",
    "arithmetic", "memory", "other", "work", "bound",
)  # fmt: skip


def kernels(spec: str) -> list[Kernel]:
    """The kernels of a spec's forward and gradient."""
    source = load(ROOT / "examples" / f"{spec}.attn")
    return driver.all_kernels(driver.lower(parse(source).definitions[0], source), "bf16", CHANNELS, "gpu")


def sizes(kernel: Kernel) -> dict[str, int]:
    """The sizes a kernel is compiled for."""
    return dict.fromkeys(kernel.constants, CHANNELS)


def digest(kernel: Kernel, target: str) -> str:
    """Changes with the kernel's source and with the configurations that are tried."""
    choices = candidates(kernel, sizes(kernel), target)
    tried = [(sorted(c.blocks.items()), c.num_warps, c.num_stages) for c in choices]
    with_descriptors = [k for k, c in enumerate(choices) if c.descriptors]
    more = f"{with_descriptors}{print_module([kernel], descriptors=True)}" if with_descriptors else ""
    return hashlib.sha256(f"{print_module([kernel])}{tried}{more}".encode()).hexdigest()[:12]


def compiled(kernel: Kernel, target: str) -> dict[str, Any]:
    """What is recorded of one kernel."""
    from attnc.runtime.triton_aot import aot
    from attnc.testing.artefacts import report
    from attnc.testing.model import mix

    artefact = aot(kernel, None, target, sizes(kernel))
    r = report(kernel, artefact)
    chosen = artefact.configuration
    row: dict[str, Any] = {
        "blocks": " × ".join(f"{n} {a}" for a, n in chosen.blocks.items()),
        "warps": chosen.num_warps,
        "registers": r.registers,
        "spilled": r.spilled,
        "shared": r.shared,
        "programs": r.programs,
        "work": None if r.work is None else round(r.work, 2),
        "bound": None if r.share is None else round(r.share, 2),
        "problems": list(r.problems),
    }
    if r.loop is not None:
        row |= {"loop": r.loop.length, **mix(r.loop)}
    return row


def record(specs: Iterable[str]) -> None:
    """Compile what has changed, and write it down at once."""
    import triton
    from rich.progress import track

    held = json.loads(RECORD.read_text()) if RECORD.exists() else {"kernels": {}}
    held["triton"] = triton.__version__
    wanted = [(spec, kernel, target) for spec in specs for kernel in kernels(spec) for target in TARGETS]
    for spec, kernel, target in track(wanted, "compiling"):
        entry = held["kernels"].setdefault(spec, {}).setdefault(kernel.name, {})
        now = digest(kernel, target)
        if entry.get(target, {}).get("digest") != now:
            entry[target] = {"digest": now, **compiled(kernel, target)}
            RECORD.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")
    for spec in specs:
        names = {kernel.name for s, kernel, _ in wanted if s == spec}
        held["kernels"][spec] = {name: rows for name, rows in held["kernels"][spec].items() if name in names}
    RECORD.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")


def stale(spec: str) -> list[str]:
    """Kernels of a spec that are not recorded as they are now."""
    held = json.loads(RECORD.read_text())["kernels"].get(spec, {})
    now = {k.name: {t: digest(k, t) for t in TARGETS} for k in kernels(spec)}
    then = {name: {t: row["digest"] for t, row in rows.items()} for name, rows in held.items()}
    return sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))


def page() -> str:
    """The text of docs/kernels.md."""
    held = json.loads(RECORD.read_text())
    lines = [HEAD.format(version=held["triton"])]
    for target in TARGETS:
        lines += [f"## {target}", "", f"| {' | '.join(COLUMNS)} |", f"|---|---|{'--:|' * (len(COLUMNS) - 2)}"]
        lines += [_line(name, row) for name, row in _rows(held["kernels"], target)]
        failed = [f"- `{n}`: {'; '.join(r['problems'])}" for n, r in _rows(held["kernels"], target) if r["problems"]]
        lines += ["", *(["Gates that fail (`attnc.testing.artefacts`):", "", *failed, ""] if failed else [])]
    return "\n".join(lines).rstrip() + "\n"


def _rows(held: Any, target: str) -> Iterator[tuple[str, Any]]:
    for spec in SPECS:
        for name, rows in held.get(spec, {}).items():
            if target in rows:
                yield name, rows[target]


def _line(name: str, row: Any) -> str:
    cells = ["" if row.get(c) is None else f"{row[c]:,}" if c == "shared" else str(row[c]) for c in COLUMNS[1:]]
    return f"| {' | '.join([f'`{name}`', *cells])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", default=SPECS, help="which to bring up to date; all by default")
    record(parser.parse_args().specs)
    PAGE.write_text(page())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
