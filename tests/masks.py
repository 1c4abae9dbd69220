"""Mask families: a spec for each, tensors for those on data, and what a mask allows, pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from attnc import driver
from attnc.ir.construct import call
from attnc.ir.dense import evaluate_nodes
from attnc.ir.node import Max, Node, Sum
from attnc.ir.program import Program
from attnc.ir.walk import postorder
from attnc.lowering import lower
from attnc.runtime.tiles import Mask

Sizes = Mapping[str, int]
Make = Callable[[Sizes, torch.Generator], dict[str, Tensor]]


def nothing(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True)
class Family:
    """A mask as statements of a spec.

    Attributes:
        tensors: makes what it reads, given sizes with N positions.
        closed: whether loop bounds in closed form are expected to be exact.
        ranges: whether several ranges in closed form are, or one that is only known in whole blocks.
        grid: the number of positions it is written for, if it is on a grid; else any.
    """

    text: str
    tensors: Make = nothing
    closed: bool = False
    ranges: bool = False
    grid: int | None = None
    consts: dict[str, int] = field(default_factory=dict)


def documents(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    steps = torch.rand(sizes["B"], sizes["N"], generator=generator) < 0.06
    return {"doc": steps.cumsum(1).to(torch.int32)}


def unsorted_documents(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    doc = torch.randint(0, 3, (sizes["B"], sizes["N"]), generator=generator)
    doc[0] = torch.arange(sizes["N"]) // 50 % 2
    return {"doc": doc.to(torch.int32)}


def flags(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    """The last positions are padding; in the last sequence some others too."""
    valid = torch.arange(sizes["N"]) < torch.randint(1, sizes["N"] + 1, (sizes["B"], 1), generator=generator)
    valid[-1] &= torch.rand(sizes["N"], generator=generator) < 0.7
    return {"valid": valid}


def lengths(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    return {"length": torch.randint(0, sizes["N"] + 1, (sizes["B"],), generator=generator).to(torch.int32)}


def shared(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    return documents(sizes, generator) | lengths(sizes, generator)


def tree(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    """Random trees in depth-first order: `last` is the last descendant of each node."""
    last = torch.arange(sizes["N"]).repeat(sizes["B"], 1)
    for b in range(sizes["B"]):
        parents = [int(torch.randint(max(0, n - 3), n, (), generator=generator)) for n in range(1, sizes["N"])]
        path = [0]
        for n, wanted in enumerate(parents, 1):
            while len(path) > 1 and path[-1] > wanted:
                path.pop()
            path.append(n)
            for ancestor in path:
                last[b, ancestor] = n
    return {"last": last.to(torch.int32)}


def parents(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    """Each node's parent comes anywhere before it; the root is its own."""
    n = torch.arange(sizes["N"])
    parent = (torch.rand(sizes["B"], sizes["N"], generator=generator) * n).long()
    return {"parent": parent.to(torch.int32)}


def scores(sizes: Sizes, generator: torch.Generator) -> Tensor:
    """Numbers that hardly change from pair to pair."""
    n = sizes["N"]
    at = torch.arange(n) / 40
    waves = torch.sin(at[:, None] - 1.3 * at) + torch.cos(at)
    return waves + torch.rand(sizes["B"], sizes["H"], 1, 1, generator=generator)


def pairs(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    """Whether a pair may attend."""
    return {"allowed": scores({**sizes, "B": 1, "H": 1}, generator)[0, 0] > 0.25}


def pairs_per_sequence(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
    return {"allowed": scores({**sizes, "H": 1}, generator)[:, 0] > 0.25}


NEIGHBOURHOOD = """
let {a}g = {i} % {a}dilation
let {a}y = {i} // {a}dilation
let {a}n = ({a}size - {a}g + {a}dilation - 1) // {a}dilation
let {a}lead = min({a}y // {a}stride * {a}stride + {lead}, {a}n - 1)
let {a}low = {low}
let {a}high = {high}
let {a}near = {j} % {a}dilation == {a}g and {a}low <= {j} // {a}dilation and {j} // {a}dilation <= {a}high
"""


def neighbourhood(
    axes: list[tuple[int, int, int, int, bool]], *, ranges: bool = False, wrapped: bool = False
) -> Family:
    """Generalised neighbourhood attention (arXiv 2504.16922) on a grid of 1 to 3 axes.

    Each axis has a size, a kernel length, a stride, a dilation, and whether it is causal. Where the grid is `wrapped`
    another one like it follows, and so on.
    """
    text, grid, names = "", 1, "uvw"[: len(axes)]
    consts: dict[str, int] = {}
    for a, (extent, kernel, stride, dilation, causal) in reversed(list(zip(names, axes, strict=True))):
        rest = f" % {extent}" if a != "u" or wrapped else ""
        i, j = (f"({x} // {grid}{rest})" for x in "ij")
        grid *= extent
        consts |= {f"{a}size": extent, f"{a}kernel": kernel, f"{a}stride": stride, f"{a}dilation": dilation}
        left = f"{a}kernel // 2"
        if causal:
            ends = {"lead": f"{a}stride - 1", "low": f"max({a}lead - {a}kernel + 1, 0)", "high": f"{a}y"}
        else:
            centre = f"clamp({a}lead, {left}, {a}n - 1 - ({a}kernel - 1 - {left}))"
            ends = {"lead": f"{a}stride // 2", "low": f"{centre} - {left}"}
            ends["high"] = f"{a}low + {a}kernel - 1"
        text += NEIGHBOURHOOD.format(a=a, i=i, j=j, **ends)
    declared = "".join(f"const {k} = {v}\n" for k, v in consts.items())
    return Family(declared + text + "mask = " + " and ".join(f"{a}near" for a in names), ranges=ranges, grid=grid)


def radial(frame: int, more: str = "") -> str:
    """Radial attention (arXiv 2506.19852) on frames of that many tokens, restricted by more."""
    return (
        f"const s = {frame}\nlet t = abs(i // s - j // s)\nlet reach = 1 << floor_log2(max(t, 1))\n"
        "let away = abs(i % s - j % s)\nlet near = (away + 1) * reach <= s\n"
        f"mask = {more}(near or (t % ((reach + s - 1) // s) == 0 and away == 0) or j < s)"
    )


def torus(sizes: tuple[int, ...], radii: tuple[int, ...], *, remainder: bool = False, more: str = "") -> Family:
    """Positions on a grid whose borders meet, slowest axis first, near each other along every axis: by the shorter way
    around or, which is the same, by a `remainder`."""
    near = []
    grid = 1
    for extent, radius in reversed(list(zip(sizes, radii, strict=True))):
        i, j = (f"({x} // {grid} % {extent})" for x in "ij")
        grid *= extent
        away = f"min(abs({i} - {j}), {extent} - abs({i} - {j})) <= {radius}"
        near.append(f"({i} - {j} + {radius}) % {extent} <= {2 * radius}" if remainder else away)
    return Family("mask = " + " and ".join([*near, *([more] if more else [])]), ranges=True, grid=grid)


FAMILIES: dict[str, Family] = {
    "causal": Family("mask = j <= i", closed=True),
    "anticausal": Family("mask = j >= i", closed=True),
    "window": Family("mask = 0 <= i - j < 21", closed=True),
    "symmetric window": Family("mask = abs(i - j) <= 9", closed=True),
    "dilated": Family("mask = 0 <= i - j < 40 and (i - j) % 4 == 0", ranges=True),
    "dilated by more than a block": Family("mask = j <= i and (i - j) % 37 == 0", ranges=True),
    "constant prefix": Family("mask = j <= i or j < 29", closed=True),
    "prefix": Family("tensor length: i32[B]\nmask = j <= i or j < length[b]", lengths, closed=True),
    "block diagonal": Family("mask = i // 24 == j // 24", closed=True),
    "block causal": Family("mask = j // 24 <= i // 24", closed=True),
    "strided": Family("mask = j <= i and (i - j < 12 or j % 12 == 11)", ranges=True),
    "sinks and window": Family("mask = j <= i and (i - j < 20 or j < 4)", ranges=True),
    "power of two distances": Family(
        "let t = i // 8 - j // 8\nlet power = 2 ** floor(log2(max(t, 1)))\n"
        "mask = j <= i and (t < 5 or power == t or j < 8)",
        ranges=True,
    ),
    "power of two distances in bits": Family(
        "let t = i // 8 - j // 8\nmask = j <= i and (t < 5 or t & (t - 1) == 0 or j < 8)", ranges=True
    ),
    "low bits": Family("mask = i & 12 == j & 12"),
    "high bits": Family("mask = j & -16 <= i & -16", closed=True),
    "scattered bits": Family("mask = i & 21 == j & 21"),
    "butterfly": Family("let apart = i ^ j\nmask = apart & (apart - 1) == 0"),
    "blocks by exclusive or": Family("mask = (i ^ j) < 32"),
    "subsets of bits": Family("mask = i | j == i"),
    "signed bits": Family("mask = (i - j | 3) >= -9 and (j - i ^ 5) < 30"),
    "logarithmic distances": Family(
        "mask = floor_log2(max(i - j, 1)) <= (i >> 5) and (i - j) % (1 << clamp(i >> 6, 0, 3)) == 0"
    ),
    "rounded up": Family("mask = j <= ceil(i / 3.0) * 3 and ceil(j / 20.0) >= ceil(i / 25.0)"),
    "radial": Family(
        "const s = 4\nlet t = abs(i // s - j // s)\nlet width = 2 ** floor(log2(max(t, 1)))\n"
        "let near = (abs(i % s - j % s) + 1) * width <= s\n"
        "mask = j < s or near or (t % max(floor(width / s), 1) == 0 and i % s == j % s)",
        ranges=True,
    ),
    "radial in bits": Family(radial(4), ranges=True),
    "radial, causal": Family(radial(6, "j <= i and "), ranges=True),
    "radial, wide frames": Family(radial(45), ranges=True),
    "radial, long frames": Family(radial(64), ranges=True),
    "documents": Family("tensor doc: i32[B, N]\nmask = doc[b, i] == doc[b, j]", documents),
    "causal documents": Family("tensor doc: i32[B, N]\nmask = j <= i and doc[b, i] == doc[b, j]", documents),
    "pairs": Family("tensor allowed: bool[N, N]\nmask = allowed[i, j]", pairs),
    "causal pairs": Family("tensor allowed: bool[B, N, N]\nmask = j <= i and allowed[b, i, j]", pairs_per_sequence),
    "pairs and flags": Family(
        "tensor allowed: bool[N, N]\ntensor valid: bool[B, N]\nmask = allowed[i, j] or valid[b, j] and i < j",
        lambda sizes, generator: pairs(sizes, generator) | flags(sizes, generator),
    ),
    "scores": Family(
        "tensor score_of: f32[B, H, N, N]\nmask = score_of[b, h, i, j] > 0.25 or j + 30 <= i",
        lambda sizes, generator: {"score_of": scores(sizes, generator)},
    ),
    "keys and heads": Family("mask = max(j, 20 * h + 3) < i + 5 or i & 21 == j & 21"),
    "unsorted documents": Family("tensor doc: i32[B, N]\nmask = doc[b, i] == doc[b, j]", unsorted_documents),
    "key flags": Family("tensor valid: bool[B, N]\nmask = valid[b, j]", flags),
    "causal key flags": Family("tensor valid: bool[B, N]\nmask = j <= i and valid[b, j]", flags),
    "lengths": Family("tensor length: i32[B]\nmask = j < length[b] and i < length[b]", lengths, closed=True),
    "shared prefix": Family(
        "tensor doc: i32[B, N]\ntensor length: i32[B]\nmask = j < length[b] or (j <= i and doc[b, i] == doc[b, j])",
        shared,
    ),
    "tree ancestors": Family("tensor last: i32[B, N]\nmask = j <= i and i <= last[b, j]", tree),
    "parents and grandparents": Family(
        "tensor parent: i32[B, N]\n"
        "let up = parent[b, i]\nlet far = parent[b, clamp(up, 0, N - 1)]\n"
        "mask = j == i or j == up or j == far",
        parents,
    ),
    "neighbourhood 1-D": neighbourhood([(257, 9, 1, 1, False)], ranges=True),
    "neighbourhood 1-D, strided": neighbourhood([(257, 9, 4, 1, False)], ranges=True),
    "neighbourhood 1-D, strided and causal": neighbourhood([(257, 9, 4, 1, True)], ranges=True),
    "neighbourhood 1-D, strided and dilated": neighbourhood([(257, 9, 4, 3, False)], ranges=True),
    "neighbourhood 1-D, dilated by more than a block": neighbourhood([(257, 5, 1, 24, False)], ranges=True),
    "neighbourhood 1-D, causal and far apart": neighbourhood([(257, 5, 2, 37, True)], ranges=True),
    "neighbourhood 1-D, far apart": neighbourhood([(600, 3, 1, 150, False)], ranges=True),
    "neighbourhood 1-D, causal": neighbourhood([(257, 9, 4, 3, True)], ranges=True),
    "neighbourhood 2-D": neighbourhood([(13, 5, 1, 1, False), (20, 7, 1, 1, False)], ranges=True),
    "neighbourhood 2-D, aligned": neighbourhood([(16, 5, 1, 1, False), (16, 7, 1, 1, False)], ranges=True),
    "neighbourhood 2-D, wrapped": neighbourhood(
        [(13, 5, 1, 1, False), (20, 7, 1, 1, False)], ranges=True, wrapped=True
    ),
    "neighbourhood 2-D, rows far apart": neighbourhood([(55, 3, 1, 18, False), (9, 3, 1, 1, True)], ranges=True),
    "neighbourhood 2-D, places far apart": neighbourhood([(6, 3, 1, 2, True), (71, 3, 2, 20, False)], ranges=True),
    "neighbourhood 2-D, far apart": neighbourhood([(35, 2, 1, 17, False), (40, 2, 1, 20, False)], ranges=True),
    "differences on a grid, far apart": Family(
        "let y = clamp(i // 45, 2, 28)\nlet x = clamp(i % 45, 20, 24)\n"
        "let near = abs(j // 45 - y) <= 2 and abs(j % 45 - x) <= 20\n"
        "mask = near and (i // 45 - j // 45) % 2 == 0 and (i % 45 - j % 45) % 18 == 0",
        ranges=True,
        grid=1350,
    ),
    "neighbourhood 2-D, causal": neighbourhood([(13, 5, 2, 1, True), (20, 6, 2, 1, True)], ranges=True),
    "neighbourhood 2-D, strided and dilated": neighbourhood([(13, 4, 3, 2, False), (20, 6, 2, 3, False)], ranges=True),
    "neighbourhood 2-D, causal in one": neighbourhood([(13, 4, 2, 1, True), (20, 6, 2, 2, False)], ranges=True),
    "torus 1-D": torus((257,), (21,)),
    "torus 2-D": torus((13, 20), (2, 3)),
    "torus 2-D by remainders": torus((13, 20), (2, 3), remainder=True),
    "torus 2-D, long rows": torus((5, 70), (1, 20)),
    "torus 2-D, causal": torus((9, 24), (1, 2), more="j <= i"),
    "torus 3-D": torus((4, 7, 9), (1, 1, 2)),
    "torus without end": Family(
        "let y = i // 20 - j // 20\nlet x = i % 20 - j % 20\n"
        "mask = (y + 2) % 13 <= 4 and min(abs(x), 20 - abs(x)) <= 3",
        ranges=True,
    ),
    "neighbourhood 3-D, far apart": neighbourhood(
        [(3, 2, 1, 1, True), (35, 2, 1, 17, False), (5, 3, 2, 1, False)], ranges=True
    ),
    "neighbourhood 3-D": neighbourhood([(5, 3, 1, 1, True), (7, 3, 1, 2, False), (8, 4, 2, 1, False)], ranges=True),
}


@cache
def program(name: str) -> Program:
    source = driver.read(f"attention masked\n{FAMILIES[name].text}\n")
    return lower(driver.definition(source), source, {})


def condition(made: Program) -> Node:
    """All conditions of the first masked reduction."""
    domains = (n.domain for n in postorder(made.roots()) if isinstance(n, Sum | Max) and n.domain)
    return call("and", *next(domains))


def mask(name: str, outer: str, inner: str, shape: tuple[int, int, int], seed: int = 0) -> Mask:
    """The mask of a family for M queries from position q_start on and N keys: ``shape = (M, N, q_start)``."""
    m, n, start = shape
    sizes = {"B": 2, "H": 2, "G": 2, "M": m, "N": n, "D": 4, "E": 4, "q_start": start}
    made = condition(program(name))
    tensors = FAMILIES[name].tensors({**sizes, "N": max(n, m + start)}, torch.Generator().manual_seed(seed))
    batch = tuple(a for a in "bh" if a in made.axes)
    extents = {"i": m, "j": n, "b": 2, "h": 2}
    return Mask(made, outer, inner, batch, extents, tensors, sizes, torch.device("cpu"))


def dense(made: Mask) -> Tensor:
    """What the mask allows, bool [combinations, outer, inner]."""
    order = (*made.batch, made.outer, made.inner)
    (value,) = evaluate_nodes(
        [made.condition], made.extents, made.tensors, made.sizes, dtype=torch.float64, order=order
    )
    value = value.reshape([made.extents[a] if a in made.condition.axes else 1 for a in order])
    full = value.expand([made.extents[a] for a in order])
    return full.reshape(made.combinations, made.extents[made.outer], made.extents[made.inner])


def blocks(allowed: Tensor, lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Which blocks hold an allowed pair, and which are all allowed; bool [combinations, rows, columns]."""
    grid: list[Tensor] = []
    for fill in (False, True):
        pad = [0, -allowed.shape[2] % lengths[1], 0, -allowed.shape[1] % lengths[0]]
        padded = torch.nn.functional.pad(allowed, pad, value=fill)
        tiles = padded.unflatten(2, (-1, lengths[1])).unflatten(1, (-1, lengths[0]))
        grid.append(tiles.any(4).any(2) if not fill else tiles.all(4).all(2))
    return grid[0], grid[1]
