"""Writes docs/gallery.md and its pictures from the specs in examples: ``python docs/gallery.py``.

Every entry shows the spec, a picture of its mask or bias, and what the compiler makes of it. `--text` leaves the
pictures as they are. The text is checked by tests/test_gallery_page.py, so it must be written again when a spec or the
compiler changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attnc import driver
from attnc.cli.plot import planes
from attnc.cli.summary import summary
from attnc.grammar.load import load
from attnc.grammar.parser import parse
from attnc.passes.explain import explain

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "gallery"
LENGTH, LARGEST = 48, 256
"""Positions drawn where the spec does not fix a grid, and the most a picture shows."""

HEAD = """\
# Gallery

Written by `python docs/gallery.py` from the specs in [examples](../examples). Each is compared with a dense formula
written from its paper, outputs and gradients, by `tests/differential` and `tests/gallery`.

A pass is a loop over the plane of queries and keys. Pictures show the mask, or else the bias, of head 0 for random
tensors: queries from top to bottom, keys from left to right.
"""


def specs() -> list[Path]:
    """Every example, those of the gallery last."""
    return [*sorted(EXAMPLES.glob("*.attn")), *sorted((EXAMPLES / "gallery").glob("*.attn"))]


def page() -> str:
    """The text of docs/gallery.md."""
    parts = [described(path) for path in specs()]
    table = [row for row, _ in parts]
    sections = [line for _, section in parts for line in ("", *section)]
    return "\n".join([HEAD, "| spec | sets | passes | kernels |", "|---|---|---|---|", *table, *sections]) + "\n"


def described(path: Path) -> tuple[str, list[str]]:
    """What the page says of one spec: its row of the table, and the lines of its section."""
    source = load(path)
    definition = parse(source).definitions[0]
    plans = driver.explained_plans(driver.lower(definition, source))
    s = summary(name_of(path), definition, *plans)
    counts = " | ".join("{} + {}".format(*pair) for pair in (s.passes, s.kernels))
    anchor = s.name.replace("/", "")
    row = f"| [{s.name}](#{anchor}) | {' '.join(s.sections) or 'nothing: every default'} | {counts} |"
    return row, list(entry(path, explain(*plans)))


def name_of(path: Path) -> str:
    return path.relative_to(EXAMPLES).with_suffix("").as_posix()


def entry(path: Path, found: str) -> Iterator[str]:
    """The section of one spec, with what the compiler found and decided but not what the spec already says."""
    name, drawn = name_of(path), picture(path)
    yield f"## {name}"
    yield ""
    if drawn.exists():
        yield f'<img src="gallery/{drawn.name}" alt="{name}" width="240" align="right">'
        yield ""
    yield "```attn"
    yield path.read_text().rstrip("\n")
    yield "```"
    yield ""
    yield "```text"
    yield from found.split("\n\n", 1)[1].splitlines()
    yield "```"


# ---------------------------------------------------------------------------------------------------------- pictures


def picture(path: Path) -> Path:
    """Where the picture of a spec is, if it has one."""
    return PICTURES / f"{name_of(path).replace('/', '_')}.png"


def plane(path: Path) -> Any:
    """The mask of a spec, or else its bias, as an array of queries by keys; None if it has neither."""
    import torch

    from attnc.testing.inputs import complete_sizes, grid_length, make_inputs

    source = load(path)
    program = driver.lower(parse(source).definitions[0], source)
    length = {} if grid_length(program) else {"M": LENGTH, "N": LENGTH}
    sizes = complete_sizes(program, {"B": 1, "H": 4, "D": 16} | length)
    drawn = planes(program, make_inputs(program, sizes, torch.float64), sizes, 0)
    for title in ("mask", "score without dot(q, k)", "weights of equal keys"):
        if title in drawn and drawn[title].min() < drawn[title].max():
            return drawn[title][:LARGEST, :LARGEST]
    return None


def draw() -> None:
    """Write every picture, and remove those of specs that are gone."""
    import matplotlib as mpl
    from matplotlib import image

    mpl.use("Agg")
    PICTURES.mkdir(exist_ok=True)
    for old in PICTURES.glob("*.png"):
        old.unlink()
    for path in specs():
        values = plane(path)
        if values is not None:
            scale = max(1, 240 // max(values.shape))
            values = values.repeat(scale, 0).repeat(scale, 1)
            image.imsave(picture(path), values, cmap="cividis")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", action="store_true", help="leave the pictures as they are")
    if not parser.parse_args().text:
        draw()
    PAGE.write_text(page())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
