"""Loop nests over the lanes of tiles.

Consecutive statements whose vectors run along the same axis become one loop over vectors. In it, values that are one
vector wide (a row maximum, a rescaling factor) stay in registers, and runs of statements over the same other lanes
share an inner loop; a value used in one inner loop only never gets an array.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager

from attnc.codegen.cpu.emitter import Emitter
from attnc.codegen.cpu.expression import COMPARE, SUM, Expressions, Value
from attnc.codegen.cpu.gather import gather, scatter
from attnc.codegen.cpu.layout import C_SCALAR, C_VECTOR, Layout, Pack, Tile, is_trivial, reads, written
from attnc.codegen.cpu.segments import NestStmt, Segment, plan, shape
from attnc.codegen.cpu.subexpressions import maximal, pointwise_roots, repeated, variables
from attnc.codegen.cpu.weights import computed_in_turns, print_rest, print_turns
from attnc.codegen.tile import Accumulate, AccumulateAt, Assign, Scatter, Store
from attnc.ir.node import Call, Load, Max, Node, Sum, Var
from attnc.ir.walk import postorder

CHEAP = frozenset({"detach", "and", "or", "not", "lt", "le", "eq"})

RUN = 16
SIDES = 4


class Nest:
    """Prints one group of statements that share a vector axis.

    `positions` are the scalar positions of grid and `Each` axes, `scalars` those axes that are also lanes, `outside`
    the variables mentioned outside the group; `touch` is told each access to an array: its inner loop, its line, and
    whether only the current lanes are touched. Of the `weights` (see `attnc.codegen.cpu.weights`) those are left after
    printing that lie in memory as pairs.
    """

    def __init__(
        self,
        layout: Layout,
        needs: set[str],
        positions: dict[str, str],
        scalars: frozenset[str],
        outside: set[str],
        out: Emitter,
        touch: Callable[[str, int, int, bool], None],
        weights: Mapping[str, Pack] | None = None,
    ) -> None:
        self.layout = layout
        self.needs = needs
        self.scalars = scalars
        self.outside = outside
        self.out = out
        self.touch = touch
        self.weights = dict(weights or {})
        self.half: dict[str, str] = {}
        """Where the printer is: the variables that take the current row of weights."""
        self.segment = 0
        self.whole = False
        self.vector: str | None = None
        self.loops: set[str] = set()
        self.registers: dict[str, Value] = {}
        self.arrays: set[str] = set()
        self.parts: dict[str, str] = {}
        self.shared: set[Node] = set()
        self.expressions = Expressions(layout, needs, dict(positions), self._read)

    def print(self, statements: list[NestStmt]) -> None:
        self.vector = self.expressions.vector = shape(self.layout, statements[0], self.scalars).vector
        segments = plan(self.layout, statements, self.scalars)
        self.weights = computed_in_turns(self, segments)
        self._choose_arrays(segments)
        self._name_uniform(statements)
        if self.vector is None:
            for seg in segments:
                self._segment(seg)
            return
        lane = self.layout.axis(self.vector)
        self.loops.add(self.vector)
        head = f"for (int64_t {lane} = 0; {lane} < {self.layout.padded(self.vector)}; {lane} += W)"
        with self.layout.names.scope(), self.out.block(head):
            self._load_registers(statements)
            for seg in segments:
                self._segment(seg)
            for name in sorted({w for s in statements if (w := written(s))} & self.outside):
                if self._is_register(self.layout.tiles[name]):
                    self.out.line(f"store({self.layout.tiles[name].array} + {lane}, {self.registers[name].code});")

    # --------------------------------------------------------------------------------------------------- planning

    def _is_register(self, tile: Tile) -> bool:
        return tile.lanes == (self.vector,)

    def _choose_arrays(self, segments: list[Segment]) -> None:
        """Values that must be in memory: mentioned outside, or in more than one inner loop."""
        count: dict[str, int] = {}
        for seg in segments:
            for name in {n for s in seg.statements for n in reads(s) | {written(s)} if n in self.layout.tiles}:
                count[name] = count.get(name, 0) + 1
        again = [s.target.name for seg in segments for s in seg.statements if isinstance(s, Assign)]
        single = {n for n in again if again.count(n) > 1 and len(self.layout.tiles[n].lanes) > 1}
        self.arrays = {n for n, c in count.items() if c > 1 and n not in single} | self.outside

    def _name_uniform(self, statements: list[NestStmt]) -> None:
        """Name what is the same in every lane and costs something, before the loops."""
        for s in statements if self.vector is not None else ():
            for root in pointwise_roots(s):
                for node in maximal(root, lambda n: not self.layout.kernel.layout(n.axes - self.scalars)):
                    if any(isinstance(n, Call) and n.fn not in CHEAP for n in postorder([node])):
                        self._name(node)

    def _load_registers(self, statements: list[NestStmt]) -> None:
        """Load values one vector wide that are read before they are set."""
        seen: set[str] = set()
        changed = {written(s) for s in statements}
        for s in statements:
            for name in sorted(reads(s) - seen):
                tile = self.layout.tiles.get(name)
                if tile is not None and self._is_register(tile):
                    value = self._element(tile)
                    fresh = self.layout.names.fresh(tile.name)
                    self.out.line(f"{'' if name in changed else 'const '}{value.type} {fresh} = {value.code};")
                    self.registers[name] = Value(fresh, value.element, True)
            seen |= reads(s) | {written(s) or ""}

    # --------------------------------------------------------------------------------------------------- segments

    def _segment(self, seg: Segment) -> None:
        self.segment += 1
        self.whole = seg.alone
        named = dict(self.expressions.named)
        self._hoist(seg)
        if seg.alone:
            self._alone(seg)
        else:
            for s in seg.statements:
                if isinstance(s, Assign) and isinstance(s.value, Sum | Max):
                    self._open(s)
            self._loop(seg)
            print_rest(self, self._weights_of(seg))
        self._restore(named)
        self.forget_lanes()

    def _loop(self, seg: Segment) -> None:
        """The loops of a segment. Sums are taken `RUN` terms at a time: sums of sums are more accurate than one sum."""
        sums = [s for s in seg.statements if not isinstance(s, Scatter | Store) and isinstance(s.value, Sum)]
        maxima = [s for s in seg.statements if isinstance(s, Assign) and isinstance(s.value, Max)]
        if not sums and maxima and self.vector and sum(len(postorder(pointwise_roots(s))) for s in seg.statements) < 24:
            self._side_by_side(seg, maxima)
            return
        if not sums:
            self._turns(seg, seg.axes)
            return
        axis = seg.axes[-1]
        lane, count = self.layout.axis(axis), self.layout.count(axis)
        start = self.layout.names.fresh(f"{lane}_from")
        with (
            self.loop_over(seg.axes[:-1]),
            self.layout.names.scope(),
            self.out.block(f"for (int64_t {start} = 0; {start} < {count}; {start} += {RUN})"),
        ):
            totals = {s.target.name: self._total(s) for s in sums}
            for s in sums:
                tile = self._tile(s)
                part = self.layout.names.fresh(f"{tile.name}_part")
                kind = (C_VECTOR if self.vector else C_SCALAR)[tile.element]
                self.out.line(f"{kind} {part} = {self._neutral(s, tile)};")
                self.parts[tile.name] = part
            self._turns(seg, (axis,), start, f"least({start} + {RUN}, {count})")
            for name, total in totals.items():
                self.out.line(f"{total} += {self.parts.pop(name)};")

    def _turns(self, seg: Segment, axes: tuple[str, ...], start: str = "0", stop: str | None = None) -> None:
        """The innermost loops."""
        if weights := self._weights_of(seg):
            print_turns(self, seg, weights, start, stop or self.layout.count(axes[0]))
            return
        with self.loop_over(axes, start, stop):
            self.print_body(seg)

    def _weights_of(self, seg: Segment) -> list[Pack]:
        here = {written(s) for s in seg.statements}
        return [pack for name, pack in self.weights.items() if name in here]

    def _side_by_side(self, seg: Segment, maxima: list[Assign]) -> None:
        """Short loops that keep `SIDES` maxima going, because each step of one waits for the step before."""
        axis = seg.axes[-1]
        lane, count = self.layout.axis(axis), self.layout.count(axis)
        at = self.layout.names.fresh(f"{lane}_from")
        sides: dict[str, list[str]] = {}
        larger = {s.target.name: self._larger(s) for s in maxima}
        for s in maxima:
            first, tile = self._total(s), self._tile(s)
            sides[tile.name] = [first, *(self.layout.names.fresh(f"{tile.name}_side") for _ in range(1, SIDES))]
            others = ", ".join(f"{side} = {self._neutral(s, tile)}" for side in sides[tile.name][1:])
            self.out.line(f"{C_VECTOR[tile.element]} {others};")

        def step(k: int) -> None:
            self.parts |= {name: names[k] for name, names in sides.items()}
            with self.one_of(axis, f"{at} + {k}" if k else at):
                self.print_body(seg)
            self.forget_lanes()

        with self.loop_over(seg.axes[:-1]):
            self.out.line(f"int64_t {at} = 0;")
            with self.out.block(f"for (; {at} + {SIDES} <= {count}; {at} += {SIDES})"):
                step(0)
                touch, self.touch = self.touch, lambda *_: None  # the same again
                for k in range(1, SIDES):
                    step(k)
            with self.out.block(f"for (; {at} < {count}; ++{at})"):
                step(0)
            self.touch = touch
        for name, names in sides.items():
            del self.parts[name]
            for other in names[1:]:
                self.out.line(f"{names[0]} = {larger[name]}({names[0]}, {other});")

    def _total(self, s: Assign | Accumulate | AccumulateAt) -> str:
        """The C++ variable a reduction adds to."""
        return self.registers[s.target.name].code if self._tile(s).lanes else self._tile(s).array

    def print_body(self, seg: Segment) -> None:
        named = dict(self.expressions.named)
        self.shared = repeated(seg.statements)
        for s in seg.statements:
            self._statement(s)
        self._restore(named)

    def forget_lanes(self) -> None:
        """Leave an inner loop: what is not one vector wide is read again."""
        self.registers = {n: v for n, v in self.registers.items() if self._is_register(self.layout.tiles[n])}

    def _restore(self, named: dict[Node, Value]) -> None:
        """Leave a scope: names given inside it are gone, and so are values forgotten inside it."""
        self.expressions.named = {n: v for n, v in named.items() if n in self.expressions.named}

    @contextmanager
    def loop_over(self, axes: tuple[str, ...], start: str = "0", stop: str | None = None) -> Generator[None]:
        """Scalar loops over the lanes inside the extents, or over part of one axis."""
        with ExitStack() as stack:
            if axes:
                stack.enter_context(self.layout.names.scope())
            for axis in axes:
                lane, first = self.layout.axis(axis), self.layout.first(axis)
                end = stop or self.layout.count(axis)
                stack.enter_context(self.out.block(f"for (int64_t {lane} = {start}; {lane} < {end}; ++{lane})"))
                self.loops.add(axis)
                self.expressions.positions[axis] = lane if first is None else f"{first} + {lane}"
            yield
        self.loops -= set(axes)

    @contextmanager
    def one_of(self, axis: str, position: str) -> Generator[None]:
        """A block at one lane inside the extents."""
        lane, first = self.layout.axis(axis), self.layout.first(axis)
        with self.layout.names.scope(), self.out.block(""):
            self.out.line(f"const int64_t {lane} = {position};")
            self.loops.add(axis)
            self.expressions.positions[axis] = lane if first is None else f"{first} + {lane}"
            yield
        self.loops -= {axis}

    def _hoist(self, seg: Segment) -> None:
        """Name, before the inner loop, what does not change in it."""
        if not seg.axes:
            return
        changed = {written(s) for s in seg.statements}
        for s in seg.statements:
            for root in pointwise_roots(s):
                for node in maximal(root, lambda n: not n.axes & set(seg.axes) and not changed & variables(n)):
                    if self.vector in node.axes or any(isinstance(n, Call) for n in postorder([node])):
                        self._name(node)

    def _name(self, node: Node) -> None:
        if node in self.expressions.named or is_trivial(node):
            return
        value = self.expressions.show(node)
        name = self.layout.names.fresh("where" if value.element == "b" else "t")
        self.out.line(f"const {value.type} {name} = {value.code};")
        self.expressions.named[node] = Value(name, value.element, value.lanes)

    # ------------------------------------------------------------------------------------------------- variables

    def _offset(self, tile: Tile) -> str:
        whole = self.whole or self.vector is None or tile.lanes[-1:] != (self.vector,)
        self.touch(tile.name, self.segment, len(self.out.lines), not whole)
        places = {a: self.layout.axis(a) if a in self.loops else self.expressions.positions[a] for a in tile.lanes}
        return " + ".join(self.layout.offset(tile, places))

    def _step(self, tile: Tile) -> str | None:
        """The distance of neighbouring lanes in memory; None where they are contiguous."""
        step = self.layout.step(tile, self.vector or "")
        return None if step == "1" else step

    def _element(self, tile: Tile) -> Value:
        """The current element or vector of an array."""
        if tile.element == "w":
            self.needs.add("wide")
        if self.vector is None or self.vector not in tile.lanes:
            code = f"{tile.array}[{self._offset(tile)}]"
            if tile.element == "b":
                return Value(f"{code} != 0", "b", False, COMPARE)
            return Value(code, "f", False) if tile.element == "f" else Value(f"int64_t({code})", "i", False)
        step = self._step(tile)
        at = f"{tile.array} + {self._offset(tile)}"
        code = f"load({at})" if step is None else f"strided({at}, {step})"
        return Value(f"{code} != 0", "b", True, COMPARE) if tile.element == "b" else Value(code, tile.element, True)

    def _read(self, node: Var) -> Value:
        tile = self.layout.tiles[node.name]
        if not tile.lanes:
            return Value(tile.array, "i" if tile.element == "w" else tile.element, False)
        if node.name in self.registers:
            return self.registers[node.name]
        value = self._element(tile)
        if not value.lanes:
            return value
        name = self.layout.names.fresh(tile.name)
        self.out.line(f"const {value.type} {name} = {value.code};")
        self.registers[node.name] = Value(name, value.element, True)
        return self.registers[node.name]

    def _to_array(self, tile: Tile, code: str) -> None:
        at = f"{tile.array} + {self._offset(tile)}"
        if self.vector is None or self.vector not in tile.lanes:
            self.out.line(f"{tile.array}[{self._offset(tile)}] = {code};")
        elif (step := self._step(tile)) is None:
            self.out.line(f"store({at}, {code});")
        else:
            self.needs.add("store_strided")
            self.out.line(f"store_strided({at}, {step}, {code});")

    # ------------------------------------------------------------------------------------------------ statements

    def _statement(self, s: NestStmt) -> None:
        self.out.note(s.note)
        for root in pointwise_roots(s):
            for n in postorder([root]):
                if n in self.shared and n is not root:
                    self._name(n)
        match s:
            case Scatter() | Store():
                scatter(self, s)
            case Assign() if isinstance(s.value, Load):
                self._write(s, gather(self, s.value))
            case _ if isinstance(s.value, Sum | Max):
                self._reduce_into(s, self.parts.get(s.target.name) or self._total(s))
            case Assign():
                self._write(s, self._fit(s, self.expressions.show(s.value)))
            case _:
                self._accumulate(s)

    def _tile(self, s: Assign | Accumulate | AccumulateAt) -> Tile:
        return self.layout.tiles[s.target.name]

    def _fit(self, s: Assign | Accumulate | AccumulateAt, value: Value) -> Value:
        """Convert to the element type and width of the target."""
        tile = self._tile(s)
        if tile.element == "f":
            value = self.expressions.real(value)
        elif tile.element == "w" and self.vector is not None:
            value = self.expressions.widened(value)
        elif tile.element == "i" and value.element == "w" and value.lanes:
            value = Value(f"narrow({value.code})", "i", True)  # the result of a wide computation that fits
        return value if self.vector is None else self.expressions.spread(value)

    def _write(self, s: Assign | Accumulate | AccumulateAt, value: Value) -> None:
        tile = self._tile(s)
        self._forget(tile.name)
        if not tile.lanes:
            single = self.layout.writes[tile.name] == 1
            self.out.line(f"{'const ' + C_SCALAR[tile.element] + ' ' if single else ''}{tile.array} = {value.code};")
            return
        if self._is_register(tile) and tile.name in self.registers:
            self.out.line(f"{self.registers[tile.name].code} = {value.code};")
            return
        name = self.layout.names.fresh(tile.name)
        self.out.line(f"{'' if self._is_register(tile) else 'const '}{value.type} {name} = {value.code};")
        self.registers[tile.name] = Value(name, value.element, value.lanes)
        if tile.name in self.half:
            self.out.line(f"{self.half[tile.name]} = {name};")
        elif not self._is_register(tile) and tile.name in self.arrays:
            self._to_array(tile, name)

    def _accumulate(self, s: Accumulate | AccumulateAt) -> None:
        tile = self._tile(s)
        value = self._fit(s, self.expressions.show(s.value))
        if not tile.lanes:
            self._forget(tile.name)
            self.out.line(f"{tile.array} += {value.code};")
            return
        current = self._read(s.target)
        if self._is_register(tile):
            self._forget(tile.name)
            self.out.line(f"{current.code} += {value.code};")
        else:
            self._write(s, Value(f"{current.at(SUM)} + {value.at(SUM)}", current.element, current.lanes, SUM))

    def _forget(self, name: str) -> None:
        """After `name` changed, expressions over its old value no longer count."""
        for n in [n for n in self.expressions.named if name in variables(n)]:
            del self.expressions.named[n]

    # ------------------------------------------------------------------------------------------------ reductions

    def _open(self, s: Assign) -> None:
        """Start a reduction whose result is one vector wide, or uniform."""
        tile = self._tile(s)
        neutral = self._neutral(s, tile)
        if not tile.lanes:
            single = self.layout.writes[tile.name] == 1
            self.out.line(f"{C_SCALAR[tile.element] + ' ' if single else ''}{tile.array} = {neutral};")
        elif tile.name in self.registers:
            self.out.line(f"{self.registers[tile.name].code} = {neutral};")
        else:
            name = self.layout.names.fresh(tile.name)
            self.out.line(f"{C_VECTOR[tile.element]} {name} = {neutral};")
            self.registers[tile.name] = Value(name, tile.element, True)

    def _neutral(self, s: Assign | Accumulate | AccumulateAt, tile: Tile) -> str:
        lowest = {"f": "-infinity", "w": "INT64_MIN"}.get(tile.element, "INT32_MIN")
        zero = self.expressions.literal(0.0) if tile.element == "f" else "0"
        value = Value(lowest if isinstance(s.value, Max) else zero, tile.element, False)
        return value.code if self.vector is None or not tile.lanes else self.expressions.spread(value).code

    def _larger(self, s: Assign | Accumulate | AccumulateAt) -> str:
        """The function that tells which of two numbers is larger."""
        quiet = isinstance(s, Assign) and s.quiet and self._tile(s).element == "f"
        name = "larger_of" if quiet else "maximum"
        self.needs.add(name)
        return name

    def _reduce_into(self, s: Assign | Accumulate | AccumulateAt, total: str) -> None:
        if isinstance(s.value, Max):
            larger = self._larger(s)
            self.out.line(f"{total} = {larger}({total}, {self.expressions.show(s.value.body).code});")
            return
        assert isinstance(s.value, Sum)
        values = [self._fit(s, self.expressions.show(f)) for f in s.value.factors]
        self.out.line(f"{total} += {' * '.join(v.at(SUM + 1) for v in values)};")

    def _alone(self, seg: Segment) -> None:
        """A reduction to a tile: its own loops, one sum at a time."""
        (s,) = seg.statements
        assert not isinstance(s, Scatter | Store)
        tile = self._tile(s)
        self.out.note(s.note)
        with self.loop_over(seg.axes[:-1]):
            name = self.layout.names.fresh(tile.name)
            start = self._neutral(s, tile) if isinstance(s, Assign) else self._element(tile).code
            self.out.line(f"{(C_VECTOR if self.vector else C_SCALAR)[tile.element]} {name} = {start};")
            with self.loop_over(seg.axes[-1:]):
                self.registers = {n: v for n, v in self.registers.items() if self._is_register(self.layout.tiles[n])}
                self._reduce_into(s, name)
            self._to_array(tile, name)
