"""Where the values of a kernel live: the tile array of every variable, its element type, and the order of its lanes.

The outer axis, where a value has it, is the one vectors run along: scores are held as ``[key][query]``, queries as
``[channel][query]``, keys as ``[key][channel]``. Row maxima, sums and rescaling are then plain vector operations, and
every matrix product multiplies a broadcast scalar with a vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from attnc.codegen.cpu.names import Names
from attnc.codegen.tile import (
    Accumulate,
    AccumulateAt,
    AddTo,
    Assign,
    Each,
    Kernel,
    Lane,
    Loop,
    Scatter,
    Stmt,
    Store,
    statements,
)
from attnc.ir.construct import const
from attnc.ir.node import Add, Axis, Call, Const, Iverson, Load, Max, Node, Prod, Size, Sum, Var
from attnc.ir.walk import postorder

if TYPE_CHECKING:
    from attnc.codegen.cpu.selected import Selected

Element = Literal["f", "i", "w", "b"]
"""f real; i lane integer (32 bits beside f32); w 64-bit integer; b truth value."""

ALIGN = 16
"""Blocks are multiples of this many lanes, the widest vector there is."""

INT32 = 2**31 - 1
SIZE_LIMIT = 2**26
"""Sizes and positions are below this (the entry point checks), so that sums of a few fit in 32 bits."""

C_ELEMENT: dict[Element, str] = {"f": "real", "i": "integer", "w": "int64_t", "b": "integer"}
C_VECTOR: dict[Element, str] = {"f": "vec", "i": "ivec", "w": "wide", "b": "ivec"}
C_SCALAR: dict[Element, str] = {"f": "real", "i": "int64_t", "w": "int64_t", "b": "bool"}
C_TENSOR = {
    "f64": "double", "f32": "float", "f16": "f16", "bf16": "bf16", "i64": "int64_t", "i32": "int32_t", "i16": "int16_t",
    "i8": "int8_t", "u8": "uint8_t", "bool": "bool",
}  # fmt: skip
_TENSOR_RANGE = {"i64": 2**63, "i32": INT32, "i16": 2**15, "i8": 2**7, "u8": 2**8, "bool": 1}


@dataclass(frozen=True, slots=True)
class Tile:
    """A variable's storage. `lanes` from slowest to contiguous; empty for a uniform variable, which is no array."""

    name: str
    element: Element
    lanes: tuple[str, ...]
    array: str


Form = Literal["rows", "pairs"]
TOGETHER = 64 * 256
"""Scores that a loop over full blocks has at a time: sums over them then go through memory once in four blocks."""

LONG_BLOCK = 256
LONG_READ = 2**21
"""The length of the outer blocks of a long call, and how many numbers a block then reads at least. A kernel that adds
to memory for all positions goes through them once per outer block."""

PACKED_DEPTH = 32
"""Packed depths are multiples of this many numbers, what one instruction takes."""


@dataclass(frozen=True, slots=True)
class Pack:
    """A bf16 copy of a variable: rows ``[other][depth]``, or pairs ``[depth / 2][other][2]``."""

    name: str
    form: Form
    depth: str
    other: str
    array: str


class Layout:
    """All storage decisions of one kernel."""

    def __init__(self, kernel: Kernel, blocks: dict[str, int]) -> None:
        self.kernel = kernel
        self.blocks = blocks
        self.names = Names()
        self.reads_half = kernel.real == "f32" and any(
            a.dtype in ("f16", "bf16") and a.mode == "in" and not a.made for a in kernel.arguments
        )
        self.roles: dict[str, Lane] = {lane.axis: lane for lane in kernel.lanes}
        self.tiles: dict[str, Tile] = {}
        self.aliases: dict[str, dict[str, str]] = {}
        """Where the printer is: variables that are pointers into tensors, with their step in memory along each axis."""
        self.aliases_of: dict[int, dict[str, dict[str, str]]] = {}
        """The same for each statement list, by identity."""
        self.long = kernel.outer if self._gains_from_long_blocks() else None
        """The outer axis, where a call decides on the length of its blocks."""
        self.joint = self._joint()
        """Lanes of the axes whose full blocks are taken several at a time."""
        self.looped: str | None = None
        self.turn = 0
        """Where the printer is: the axis of the innermost loop over blocks, and its lanes per turn."""
        self.viewed: dict[str, str] = {}
        """Variables that are pointers to a tensor or to a copy, as a call decides, and the dtype of both."""
        self.pairs_of: set[int] = set()
        """Matrix products of bf16 numbers, by identity; `packs` are their operands, by variable, form and depth, and
        `packed_only` the variables that nothing else reads."""
        self.packs: dict[tuple[str, Form, str], Pack] = {}
        self.packed_only: set[str] = set()
        self.packed: set[str] = set()
        """The arrays of packed copies that were made."""
        self.in_place: dict[str, tuple[str, str]] = {}
        """Where the printer is: pairs that lie in their variable's own array, and how far apart their rows are."""
        self.sources: dict[str, tuple[str, dict[str, str]]] = {}
        """Where the printer is: where broadcast operands of bf16 lie in their tensors, and the steps along the axes."""
        self.turned: dict[str, Tile] = {}
        self.turned_only: set[str] = set()
        self.in_memory: dict[int, AddTo] = {}
        """See `attnc.codegen.cpu.added`."""
        self.selected: dict[str, Selected] = {}
        self.unselected: dict[int, Assign | Accumulate] = {}
        """See `attnc.codegen.cpu.selected`: variables, and by identity what products of them are without selection."""
        self.packed_here: set[tuple[int, str]] = set()
        """Variables that only packed products read, by statement list."""
        self._ranges: dict[str, int] = {}
        self.writes: dict[str, int] = {}
        self._reserve()
        self._declare(kernel.body, frozenset())

    def _joint(self) -> dict[str, int]:
        kernel, blocks = self.kernel, self.blocks
        if kernel.narrow or kernel.outer is None:
            return {}
        axes = {s.axis for s in statements(kernel.body) if isinstance(s, Loop) and s.joint}
        lanes = TOGETHER // blocks[kernel.outer] // (2 if self.long else 1)
        return {a: max(blocks[a], lanes // blocks[a] * blocks[a]) for a in axes}

    def _gains_from_long_blocks(self) -> bool:
        """Whether the kernel adds to memory, block by block, for positions that reach an end of the inner axis; where
        they lie around each block, long blocks would visit more of them than there are."""
        kernel = self.kernel
        if kernel.shares is None or kernel.runs is not None or kernel.longest is not None or kernel.fixed:
            return False
        loops = [s for s in statements(kernel.body) if isinstance(s, Loop)]
        ends = {self.roles[s.axis].extent for s in loops}
        return any(s.start is const(0) or s.stop in ends for s in loops)

    def length(self, axis: str) -> str:
        """The block length of the outer axis."""
        return self.names.get("of axis", f"{axis} block") if axis == self.long else str(self.blocks[axis])

    def _reserve(self) -> None:
        """Names of sizes, axes and tensors, before any variable's."""
        kernel, names = self.kernel, self.names
        for name in (*kernel.sizes, *kernel.constants):
            names.get("size", name)
        for axis in (*kernel.grid, *(lane.axis for lane in kernel.lanes)):
            names.get("axis", axis)
        for lane in kernel.lanes:
            for suffix in ("first", "last", "count", "lanes", "extent", "block"):
                names.get("of axis", f"{lane.axis} {suffix}", f"{self.axis(lane.axis)}_{suffix}")
        for a in kernel.arguments:
            names.get("tensor", a.name, f"{a.name}_data")
            for k in range(len(a.dims)):
                names.get("stride", f"{a.name} {k}", f"{a.name}_stride{k}")

    def tensor(self, name: str) -> str:
        """The pointer to a tensor."""
        return self.names.get("tensor", name)

    def stride(self, tensor: str, dim: int) -> str:
        return self.names.get("stride", f"{tensor} {dim}")

    # ---------------------------------------------------------------------------------------------- variables

    def _declare(self, body: tuple[Stmt, ...], scalars: frozenset[str]) -> None:
        for s in body:
            match s:
                case Loop():
                    self._declare(s.body, scalars)
                case Each():
                    self._declare(s.body, scalars | {s.axis})
                case Assign() | Accumulate() | AccumulateAt():
                    self.writes[s.target.name] = self.writes.get(s.target.name, 0) + 1
                    self._declare_one(s, scalars)
                case _:
                    pass

    def _declare_one(self, s: Assign | Accumulate | AccumulateAt, scalars: frozenset[str]) -> None:
        name = s.target.name
        reach = self.reach(s.value)
        self._ranges[name] = max(self._ranges.get(name, 0), reach)
        if name in self.tiles:
            return
        element: Element = s.target.kind
        if element == "i" and reach > INT32 and self.kernel.real == "f32":
            element = "w"
        self.add(name, element, s.target.axes - scalars)

    def add(self, name: str, element: Element, axes: frozenset[str]) -> Tile:
        """Declare a variable (also the printer's own)."""
        lanes = self.storage_order(axes)
        array = self.names.get("var", name, name + "_tile" if lanes else name)
        self.tiles[name] = tile = Tile(name, element, lanes, array)
        return tile

    def storage_order(self, axes: frozenset[str]) -> tuple[str, ...]:
        """Inner, channels, outer: the last is contiguous. In a narrow kernel the outer axis comes first."""
        ordered = self.kernel.layout(axes)
        if self.kernel.narrow:
            return ordered
        return (*(a for a in ordered if a != self.kernel.outer), *(a for a in ordered if a == self.kernel.outer))

    # ------------------------------------------------------------------------------------------------- extents

    def axis(self, name: str) -> str:
        """The C++ name of an axis: a position for grid and `Each` axes, a lane number inside the block otherwise."""
        return self.names.get("axis", name)

    def first(self, axis: str) -> str | None:
        """The position of lane 0; None where lanes are positions (channels)."""
        return None if self.roles[axis].role == "channel" else self.names.get("of axis", f"{axis} first")

    def count(self, axis: str) -> str:
        """The number of lanes inside the extent."""
        return self.names.get("of axis", f"{axis} count")

    def padded(self, axis: str) -> str:
        """The count rounded up to whole vectors."""
        return self.names.get("of axis", f"{axis} lanes")

    def pitch(self, axis: str) -> str:
        """The room arrays leave for an axis."""
        if axis not in self.blocks:
            return self.padded(axis)
        return str(self.joint[axis]) if axis in self.joint else self.length(axis)

    def copies(self) -> list[Pack]:
        """The packed copies that were made."""
        return [p for p in self.packs.values() if p.array in self.packed]

    def left(self, pack: Pack) -> str:
        """The variable that tells where a broadcast operand of bf16 is."""
        return self.names.get("left", pack.array, f"{pack.array}_left")

    def source(self, pack: Pack) -> str:
        """The variable that points to where a broadcast operand of bf16 comes from."""
        return self.names.get("source", pack.array, f"{pack.array}_source")

    def view_row(self, name: str) -> str:
        """The variable that holds how far apart the rows of a view are."""
        return self.names.get("row", name, f"{name}_row")

    def offset(self, tile: Tile, indices: Mapping[str, str]) -> list[str]:
        """The terms of the place of an element in its array; axes without an index count as 0."""
        out = []
        for k, axis in enumerate(tile.lanes):
            if axis not in indices:
                continue
            if tile.name in self.aliases:
                step = self.aliases[tile.name][axis]
                pitch = [] if step == "1" else [step]
            else:
                pitch = [self.pitch(a) for a in tile.lanes[k + 1 :]]
            out.append(" * ".join([indices[axis], *pitch]))
        return out

    def step(self, tile: Tile, axis: str) -> str:
        """How far apart neighbours along an axis are in a variable's array."""
        if tile.name in self.aliases:
            return self.aliases[tile.name][axis]
        at = tile.lanes.index(axis)
        return " * ".join(self.pitch(a) for a in tile.lanes[at + 1 :]) or "1"

    def extent(self, axis: str) -> Node | None:
        """The extent of a lane or grid axis."""
        if axis in self.roles:
            return self.roles[axis].extent
        grid = dict(zip(self.kernel.grid, self.kernel.grid_extents, strict=True))
        return grid.get(axis)

    def held(self, tile: Tile) -> str:
        """The C++ type of a variable's elements."""
        return C_TENSOR[self.viewed[tile.name]] if self.is_half(tile.name) else C_ELEMENT[tile.element]

    def is_half(self, name: str) -> bool:
        """Whether a variable is held in half precision, as its tensor is."""
        return self.viewed.get(name) in ("f16", "bf16")

    def room(self, tile: Tile) -> str:
        return " * ".join(self.pitch(a) for a in tile.lanes)

    def pack_row(self, pack: Pack) -> str:
        """How far apart the rows of a packed copy are, or its rows of pairs."""
        if pack.form == "rows":
            return f"round_up({self.pitch(pack.depth)}, {PACKED_DEPTH})"
        return f"2 * {self.pitch(pack.other)}"

    def pack_room(self, pack: Pack) -> str:
        return f"round_up({self.pitch(pack.depth)}, {PACKED_DEPTH}) * {self.pitch(pack.other)}"

    # ------------------------------------------------------------------------------------------------- integers

    def reach(self, node: Node) -> int:
        """An upper bound of an integer's magnitude."""
        match node:
            case Const():
                return abs(int(node.value)) if node.kind == "i" else 1
            case Axis() | Size():
                return SIZE_LIMIT
            case Var():
                return self._ranges.get(node.name, SIZE_LIMIT)
            case Load():
                return _TENSOR_RANGE.get(self.kernel.argument(node.tensor).dtype, INT32)
            case Add():
                return sum(self.reach(t) for t in node.terms)
            case Prod():
                out = 1
                for f in node.factors:
                    out *= max(1, self.reach(f))
                return out
            case Call():
                return self._reach_call(node)
            case Max():
                return self.reach(node.body)
            case Sum():
                return 2**62
            case _:
                return 1

    def _reach_call(self, node: Call) -> int:
        if node.kind != "i":
            return 1
        match node.fn:
            case "floordiv":
                return self.reach(node.args[0])
            case "mod":
                return self.reach(node.args[1])
            case "where":
                return max(self.reach(a) for a in node.args[1:])
            case "floor" | "hash":
                return INT32
            case "bitand" | "bitor" | "bitxor":
                return int((1 << max(self.reach(a) for a in node.args).bit_length()) - 1)
            case "floor_log2":
                return 62
            case "power_of_two":
                n = node.args[0]
                widest = isinstance(n, Call) and n.fn == "floor_log2" and self.reach(n.args[0]) <= INT32
                return 2**30 if widest else 2**62
            case "minimum" | "maximum":
                return max(abs(x) for x in self._interval(node))
            case _:
                return max((self.reach(a) for a in node.args), default=1)

    def _interval(self, node: Node) -> tuple[int, int]:
        """A lower and an upper bound of an integer."""
        match node:
            case Const():
                return int(node.value), int(node.value)
            case Size():
                return 0, SIZE_LIMIT
            case Call(fn="minimum" | "maximum"):
                choose = min if node.fn == "minimum" else max
                ends = [self._interval(a) for a in node.args]
                return choose(low for low, _ in ends), choose(high for _, high in ends)
            case _:
                reach = self.reach(node)
                return -reach, reach


def reads(s: Stmt) -> set[str]:
    """Names of the variables a statement reads."""
    return {n.name for n in postorder(roots(s)) if isinstance(n, Var)} | (
        {s.target.name} if isinstance(s, Accumulate | AccumulateAt) else set()
    )


def written(s: Stmt) -> str | None:
    return s.target.name if isinstance(s, Assign | Accumulate | AccumulateAt) else None


def roots(s: Stmt) -> list[Node]:
    """The expressions of a statement."""
    match s:
        case Assign() | Accumulate() | AccumulateAt():
            return [s.value]
        case Store() | AddTo():
            return [*s.index, s.value]
        case Scatter():
            return [*s.index, s.value, *([s.condition] if s.condition is not None else [])]
        case Loop() | Each():
            return [s.start, s.stop]


class Mentions:
    """Which variables are needed beyond one group of statements.

    A variable that every statement list mentioning it sets before it reads is private to each list; any other variable
    carries a value between lists or iterations.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._counts: dict[tuple[int, str], int] = {}
        self._carried: set[str] = set()
        self._visit(kernel.body)

    def _visit(self, body: tuple[Stmt, ...]) -> None:
        known: set[str] = set()
        for s in body:
            self._carried |= reads(s) - known
            names = reads(s) | ({w} if (w := written(s)) else set())
            for name in names:
                self._counts[id(body), name] = self._counts.get((id(body), name), 0) + 1
            if isinstance(s, Assign):
                known.add(s.target.name)
            if isinstance(s, Loop | Each):
                self._visit(s.body)

    def add(self, body: tuple[Stmt, ...], names: Iterable[str]) -> None:
        """Count variables that a body mentions once more."""
        for name in names:
            self._counts[id(body), name] = self._counts.get((id(body), name), 0) + 1

    @property
    def carried(self) -> frozenset[str]:
        """Variables whose value passes between statement lists or iterations."""
        return frozenset(self._carried)

    def outside(self, body: tuple[Stmt, ...], group: Sequence[Stmt]) -> set[str]:
        """The variables of a group that are mentioned beyond it, where that matters."""
        inside: dict[str, int] = {}
        for s in group:
            for name in reads(s) | ({w} if (w := written(s)) else set()):
                inside[name] = inside.get(name, 0) + 1
        return {n for n, c in inside.items() if n in self._carried or self._counts.get((id(body), n), c) > c}


def contains(node: Node, kinds: type[Node] | tuple[type[Node], ...]) -> bool:
    return any(isinstance(n, kinds) for n in postorder([node]))


def is_trivial(node: Node) -> bool:
    """Whether naming the value would not help anyone."""
    return isinstance(node, Const | Axis | Size | Var) or (isinstance(node, Iverson) and is_trivial(node.condition))
