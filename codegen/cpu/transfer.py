"""Whole tiles between memory and arrays, for subscripts that are an axis plus something uniform."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.codegen.cpu.bounds import within
from attnc.codegen.cpu.emitter import Emitter
from attnc.codegen.cpu.expression import UNARY, Expressions, Value
from attnc.codegen.cpu.layout import C_TENSOR, Layout, Pack, Tile
from attnc.ir.construct import add
from attnc.ir.node import Add, Axis, Node


@dataclass(frozen=True, slots=True)
class Subscript:
    """One index entry: a lane axis (or None) plus a uniform offset (or None)."""

    axis: str | None
    offset: Node | None


def affine(layout: Layout, index: tuple[Node, ...], scalars: frozenset[str]) -> list[Subscript] | None:
    """The entries as axis + offset; None where they are not of that form, or have an axis twice, or three axes."""

    def lanes(node: Node) -> tuple[str, ...]:
        return layout.kernel.layout(node.axes - scalars)

    out: list[Subscript] = []
    for entry in index:
        match entry:
            case _ if not lanes(entry):
                out.append(Subscript(None, entry))
            case Axis():
                out.append(Subscript(entry.name, None))
            case Add():
                varying = [t for t in entry.terms if lanes(t)]
                if len(varying) != 1 or not isinstance(varying[0], Axis):
                    return None
                rest = add(*(t for t in entry.terms if t is not varying[0]))
                out.append(Subscript(varying[0].name, rest))
            case _:
                return None
    used = [s.axis for s in out if s.axis is not None]
    return out if len(used) == len(set(used)) <= 2 else None


class Transfer:
    """Prints reads and writes of tiles at one place of the program."""

    def __init__(self, layout: Layout, needs: set[str], expressions: Expressions, out: Emitter) -> None:
        self.layout = layout
        self.needs = needs
        self.expressions = expressions
        self.out = out

    def read(self, tile: Tile, tensor: str, subscripts: list[Subscript]) -> None:
        """``tile = tensor[...]``, 0 outside the tensor. A uniform variable gets its one element."""
        address, guards, spans = self._address(tensor, subscripts)
        if not tile.lanes:
            self.needs.add("element_types")
            zero = {"f": "real()", "w": "int64_t()", "i": "int64_t()"}.get(tile.element, "integer()")
            fetch = f"take({address}, {zero})"
            if tile.element == "b":
                fetch += " != 0"
            code = f"{' && '.join(guards)} ? {fetch} : {zero}" if guards else fetch
            single = self.layout.writes[tile.name] == 1
            kind = {"f": "real", "b": "bool"}.get(tile.element, "int64_t")
            self.out.line(f"{f'const {kind} ' if single else ''}{tile.array} = {code};")
            return
        rows, lane = self._rows(tile), tile.lanes[-1]
        row_step, lane_step = (self._step(a, tensor, subscripts) for a in (rows, lane))
        array, layout = tile.array, self.layout
        head = f"read_tile({array}"
        self.needs.add("read_tile")
        if tile.name in layout.aliases:
            row = layout.view_row(tile.name)
            if row not in layout.aliases[tile.name].values():
                kind = C_TENSOR[layout.kernel.argument(tensor).dtype]
                self.out.line(f"const {kind} *const {array} = {address};")
                return
            self.needs.add("view_tile")
            self.out.line(f"int64_t {row};")
            head = f"const {layout.held(tile)} *const {array} = view_tile({row}, tiles.{array}"
        elif layout.looped in tile.lanes and rows is not None and not layout.kernel.narrow:
            start = layout.names.get("var", f"{tile.name} source", f"{tile.array}_source")
            self.out.line(f"const {C_TENSOR[layout.kernel.argument(tensor).dtype]} *const {start} = {address};")
            layout.sources[array] = start, {rows: row_step, lane: lane_step}
            address = start
        row_count = "1" if rows is None else layout.count(rows)
        self.out.line(
            f"{head}, {layout.pitch(lane)}, {row_count}, {layout.padded(lane)}, {address}, {row_step}, {lane_step}, "
            f"{self._span(rows, spans, guards)}, {self._span(lane, spans, [])});"
        )

    def pack(self, pack: Pack, tensor: str, subscripts: list[Subscript]) -> None:
        """A packed copy of part of a bf16 tensor, 0 outside it."""
        layout = self.layout
        self.needs.add("product_of_pairs")
        layout.packed.add(pack.array)
        address, guards, spans = self._address(tensor, subscripts)
        left = pack.form == "rows"
        axes = (pack.other, pack.depth) if left else (pack.depth, pack.other)
        steps = [self._step(a, tensor, subscripts) for a in axes]
        counts = ", ".join(layout.count(a) for a in axes)
        spanned = f"{self._span(axes[0], spans, guards)}, {self._span(axes[1], spans, [])}"
        if not left:
            head = f"pack_pairs({pack.array}, {layout.pack_row(pack)}"
            self.out.line(f"{head}, {address}, {', '.join(steps)}, {counts}, {spanned});")
            return
        start, room = layout.source(pack), f"{layout.pitch(pack.other)}, {layout.pack_row(pack)}"
        self.out.line(f"const bf16 *const {start} = {address};")
        operand = f"left_operand({pack.array}, {room}, {start}, {', '.join(steps)}, {counts}, {spanned})"
        self.out.line(f"const Left {layout.left(pack)} = {operand};")
        layout.sources[pack.array] = start, dict(zip(axes, steps, strict=True))

    def write(self, tile: Tile, tensor: str, subscripts: list[Subscript], function: str = "write_tile") -> None:
        """``tensor[...] = tile`` for lanes inside their extents and the tensor; ``+=`` with ``add_tile``."""
        self.needs.add(function)
        address, guards, spans = self._address(tensor, subscripts)
        rows, lane = self._rows(tile), tile.lanes[-1]
        row = self.layout.step(tile, tile.lanes[-2]) if rows else "0"
        self.out.line(
            f"{function}({tile.array}, {row}, {address}, "
            f"{self._step(rows, tensor, subscripts)}, {self._step(lane, tensor, subscripts)}, "
            f"{self._span(rows, spans, guards)}, {self._span(lane, spans, [])});"
        )

    def place(self, rows: str, lane: str, tensor: str, subscripts: list[Subscript]) -> tuple[str, str, list[str]]:
        """Where a tile lies in a tensor: its address, the step from row to row, and what must hold for its lanes to be
        neighbours inside the tensor."""
        address, guards, _ = self._address(tensor, subscripts)
        return address, self._step(rows, tensor, subscripts), [*guards, f"{self._step(lane, tensor, subscripts)} == 1"]

    def next_rows(self, tensor: str, subscripts: list[Subscript], axis: str) -> str | None:
        """What a load reads in the next turn of a loop along `axis`; None if its rows do not move with the loop."""
        others = [s.axis for s in subscripts if s.axis not in (None, axis)]
        if len(others) != 1 or all(s.axis != axis for s in subscripts):
            return None
        address, _, _ = self._address(tensor, subscripts)
        steps = f"{self._step(axis, tensor, subscripts)}, {self._step(others[0], tensor, subscripts)}"
        return f"next_rows({address}, {self.layout.turn}, {self.layout.count(others[0] or '')}, {steps})"

    # -------------------------------------------------------------------------------------------------- pieces

    def _address(self, tensor: str, subscripts: list[Subscript]) -> tuple[str, list[str], dict[str, str]]:
        """The address of lane 0 of every axis, what must hold for any element to exist, and the span of each axis."""
        base = self.layout.tensor(tensor)
        parts, guards = [base], []
        spans: dict[str, str] = {}
        for k, (sub, extent) in enumerate(zip(subscripts, self.layout.kernel.argument(tensor).dims, strict=True)):
            position = self._position(sub)
            limit = self.expressions.show(extent)
            if position is not None:
                parts.append(f"{position.at(UNARY)} * {self.layout.stride(tensor, k)}")
            if sub.axis is None:
                assert position is not None
                if sub.offset is None or not within(self.layout.kernel, sub.offset, extent):
                    guards.append(f"{position.at(UNARY)} >= 0 && {position.at(UNARY)} < {limit.at(UNARY)}")
            elif sub.offset is None and self.layout.extent(sub.axis) is extent:
                spans[sub.axis] = f"Span{{0, {self.layout.count(sub.axis)}}}"
            else:
                start = "0" if position is None else position.code
                reach = f"inside({start}, {self.layout.count(sub.axis)}, {limit.code})"
                spans[sub.axis] = reach
        return " + ".join(parts), guards, spans

    def _position(self, sub: Subscript) -> Value | None:
        """The position of lane 0 along an entry; None for 0."""
        offset = None if sub.offset is None else self.expressions.show(sub.offset)
        first = None if sub.axis is None else self.layout.first(sub.axis)
        if first is None or offset is None:
            return offset if first is None else Value(first, "i", False)
        return Value(f"{first} + {offset.code}", "i", False, 4)

    def _rows(self, tile: Tile) -> str | None:
        return tile.lanes[-2] if len(tile.lanes) > 1 else None

    def _step(self, axis: str | None, tensor: str, subscripts: list[Subscript]) -> str:
        for k, sub in enumerate(subscripts):
            if axis is not None and sub.axis == axis:
                return self.layout.stride(tensor, k)
        return "0"

    def _span(self, axis: str | None, spans: dict[str, str], guards: list[str]) -> str:
        span = "Span{0, 1}" if axis is None else spans.get(axis, f"Span{{0, {self.layout.count(axis)}}}")
        return f"{' && '.join(guards)} ? {span} : Span{{0, 0}}" if guards else span
