"""What `benchmarks/cpu.py` found, as a table, a JSON file and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PEERS = ("SDPA", "flex", "eager")


class Report:
    """Rows as they come in; the JSON file holds those so far at any time."""

    def __init__(self, machine: Mapping[str, Any], out: Path) -> None:
        self.machine = machine
        self.out = out
        self.rows: list[dict[str, Any]] = []
        self.notes: dict[str, Any] = {}
        self._progress = Console(stderr=True)
        self._title = f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}"
        out.parent.mkdir(parents=True, exist_ok=True)

    def add(self, row: dict[str, Any]) -> None:
        """One case."""
        self.rows.append(row)
        self._write()
        self._progress.print(" ".join(cells(row)), markup=False, highlight=False, style="dim", soft_wrap=True)

    def note(self, name: str, found: Mapping[str, Any]) -> None:
        """A section that is no list of cases."""
        self.notes[name] = found
        self._write()

    def finish(self) -> int:
        """Print the table and draw the picture; 1 if a case failed or disagrees with the oracle."""
        console = Console(width=150)
        console.print(_table(self.rows, self._title))
        console.print(compared(self.rows), markup=False, highlight=False, soft_wrap=True)
        for name, found in self.notes.items():
            console.print(f"{name}: {json.dumps(_rounded(found))}", markup=False, highlight=False, soft_wrap=True)
        if any(not r.get("quiet", True) for r in self.rows):
            console.print("~ other processes used the machine in every round, or all but one: not to be relied on")
        drawn = draw(self.rows, self._title, self.out.with_suffix(".png"))
        console.print(f"written to {self.out}{' and ' + drawn.name if drawn else ''}", markup=False, highlight=False)
        return int(any("problem" in r or r["error"] > 1 for r in self.rows))

    def _write(self) -> None:
        found = {"machine": self.machine, "rows": self.rows, **self.notes}
        self.out.write_text(json.dumps(found, indent=1) + "\n")


def label(row: Mapping[str, Any]) -> str:
    """The case of a row in a few words."""
    queries = f"M{row['m']} " if row["m"] else ""
    what = "fwd+bwd" if row["both"] else "fwd"
    return f"{row['spec']} {row['dtype']} {queries}N{row['n']} H{row['h']} D{row['d']} {what}"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table: case, time, rate, the peers' times as multiples of attnc's, memory, error."""
    if "problem" in row:
        return [label(row), row["problem"][:100], *[""] * 6]
    mark = "" if row["quiet"] else "~"
    ratios = [f"{row['ratios'][p]:.2f}x" if p in row["ratios"] else "-" for p in PEERS]
    rate = f"{row['gflops']:.0f} ({row['of_peak']:.0%})" if "gflops" in row else "-"
    memory = row["memory"]["attnc"]
    right = "WRONG " if row["error"] > 1 else ""
    return [
        label(row),
        f"{mark}{row['seconds']['attnc'] * 1e3:.2f}",
        rate,
        *ratios,
        "-" if memory is None else f"{memory / 2**20:.0f}",
        f"{right}{row['error']:.2f}",
    ]


def _table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    table = Table(title=f"{title}\npeers' times as multiples of attnc's", title_justify="left")
    table.add_column("case")
    for name in ("ms", "GF/s (of peak)", *PEERS, "MB", "error, of allowed"):
        table.add_column(name, justify="right")
    for section in dict.fromkeys(r["section"] for r in rows):
        for row in rows:
            if row["section"] == section:
                table.add_row(*cells(row))
        table.add_section()
    return table


def compared(rows: Sequence[Mapping[str, Any]]) -> str:
    """Times of SDPA and of eager PyTorch as multiples of attnc's, one line per case, in Markdown."""
    columns = [(dtype, both) for dtype in ("f32", "bf16") for both in (False, True)]
    found: dict[str, dict[tuple[str, bool], str]] = {}
    for row in rows:
        if "problem" not in row:
            queries = f"M = {row['m']}, " if row["m"] else ""
            name = f"{row['spec']}, {queries}N = {row['n']}, H{row['h']} D{row['d']}"
            sdpa, eager = (row["ratios"].get(p) for p in ("SDPA", "eager"))
            text = ("" if row["quiet"] else "~") + ("–" if sdpa is None else f"{sdpa:.2f}")
            found.setdefault(name, {})[row["dtype"], row["both"]] = text + (f" / {eager:.1f}" if eager else "")
    heads = [f"{dtype} {'with backward' if both else 'forward'}" for dtype, both in columns]
    lines = [["case", *heads], ["---", *["--:"] * len(columns)]]
    lines += [[name, *(cases.get(c, "") for c in columns)] for name, cases in found.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> Path | None:
    """Ratios as bars, longest first; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    shown = [r for r in rows if r.get("ratios")]
    if not shown:
        return None
    figure = Figure(figsize=(9, 1.5 + 0.32 * len(shown)), layout="constrained")
    axes = figure.subplots()
    names = [p for p in PEERS if any(p in r["ratios"] for r in shown)]
    height = 0.8 / len(names)
    for k, name in enumerate(names):
        places = [n + k * height for n, r in enumerate(shown) if name in r["ratios"]]
        axes.barh(places, [r["ratios"][name] for r in shown if name in r["ratios"]], height, label=name)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks([n + 0.4 - height / 2 for n in range(len(shown))], [label(r) for r in shown], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("time as a multiple of attnc's")
    axes.set_title(title, fontsize=9)
    axes.legend()
    figure.savefig(path, dpi=150)
    return path


def _rounded(found: Any) -> Any:
    if isinstance(found, dict):
        return {k: _rounded(v) for k, v in found.items()}
    return float(f"{found:.3g}") if isinstance(found, float) else found
