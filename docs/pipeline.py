"""Draws docs/pipeline.svg, the picture in the README: ``python docs/pipeline.py``."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, BOX_WIDTH, BOX_HEIGHT, GAP = 980, 172, 76, 30
FONT = "ui-sans-serif, system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Box:
    """A stage: its name, the folder that holds it, what comes out of it, and its place in columns and rows."""

    title: str
    folder: str
    result: str
    column: int
    row: float
    fill: str = "#eef3fb"
    border: str = "#5b7fb9"

    @property
    def x(self) -> float:
        return 14 + self.column * (BOX_WIDTH + GAP - 6)

    @property
    def y(self) -> float:
        return 14 + self.row * (BOX_HEIGHT + GAP)

    def draw(self) -> str:
        middle = self.x + BOX_WIDTH / 2
        lines = [
            f'<rect x="{self.x}" y="{self.y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" '
            f'fill="{self.fill}" stroke="{self.border}" stroke-width="1.5"/>'
        ]
        for text, dy, style in (
            (self.title, 24, 'font-size="15" font-weight="600" fill="#1c2733"'),
            (self.folder, 43, 'font-size="11.5" font-family="ui-monospace, monospace" fill="#4a5b70"'),
            (self.result, 63, 'font-size="12" fill="#33475f"'),
        ):
            lines.append(f'<text x="{middle}" y="{self.y + dy}" text-anchor="middle" {style}>{escape(text)}</text>')
        return "\n".join(lines)


WARM = {"fill": "#fdf3e6", "border": "#c98a3a"}
GREEN = {"fill": "#ebf6ee", "border": "#4f9a63"}
BOXES = {
    "text": Box("alibi.attn", "examples/", "five lines", 0, 0, **GREEN),
    "tree": Box("parse", "grammar/", "tree with positions", 1, 0),
    "lower": Box("lower", "attnc/lowering/", "index notation", 2, 0),
    "derive": Box("differentiate", "attnc/passes/", "backward, same notation", 3, 0),
    "rewrite": Box("rewrite, schedule", "attnc/passes/", "a few fused passes", 4, 0),
    "dense": Box("evaluate", "attnc/ir/", "float64 oracle, checks", 2, 1, **WARM),
    "op": Box("PyTorch op", "attnc/runtime/", "autograd, compile, export", 2, 2, **GREEN),
    "cpu": Box("print C++", "codegen/cpu/", "compiled with g++", 3, 1.5),
    "triton": Box("print Triton", "codegen/triton/", "GPUs, or interpreted", 3, 2.5),
    "tile": Box("tile", "codegen/", "tile programs", 4, 2),
}


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" stroke="#6b7a8d" stroke-width="1.6" marker-end="url(#tip)"/>'


def across(a: Box, b: Box) -> str:
    """An arrow from the side of one box to the facing side of another."""
    forwards = b.x > a.x
    start, end = (a.x + BOX_WIDTH, b.x - 2) if forwards else (a.x, b.x + BOX_WIDTH + 2)
    return line(start, a.y + BOX_HEIGHT / 2, end, b.y + BOX_HEIGHT / 2)


def down(a: Box, b: Box) -> str:
    return line(a.x + BOX_WIDTH / 2, a.y + BOX_HEIGHT, b.x + BOX_WIDTH / 2, b.y - 2)


def svg() -> str:
    """The whole picture."""
    b = BOXES
    height = max(box.y for box in b.values()) + BOX_HEIGHT + 14
    arrows = [across(b[x], b[y]) for x, y in (("text", "tree"), ("tree", "lower"), ("lower", "derive"))]
    arrows += [across(b["derive"], b["rewrite"]), down(b["lower"], b["dense"]), down(b["dense"], b["op"])]
    arrows += [down(b["rewrite"], b["tile"])]
    arrows += [across(b[x], b[y]) for x, y in (("tile", "cpu"), ("tile", "triton"), ("cpu", "op"), ("triton", "op"))]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 20} {height:g}" font-family="{FONT}">',
        "<title>How a spec becomes kernels</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#6b7a8d"/></marker></defs>',
        f'<rect width="{WIDTH + 20}" height="{height:g}" fill="#ffffff"/>',
        *arrows,
        *(box.draw() for box in b.values()),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("pipeline.svg").write_text(svg())
