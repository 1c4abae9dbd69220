"""Statements of a tile program to C++, in order, grouped into loop nests where that is possible."""

from __future__ import annotations

from attnc.codegen.cpu.across import across, print_across
from attnc.codegen.cpu.emitter import Emitter
from attnc.codegen.cpu.expression import SUM, Expressions, Value
from attnc.codegen.cpu.layout import Layout, Mentions, Pack, reads, written
from attnc.codegen.cpu.matrix import MatrixPlan, MatrixProduct, matrix_product
from attnc.codegen.cpu.nest import Nest
from attnc.codegen.cpu.packs import packs_of
from attnc.codegen.cpu.segments import NestStmt, shape
from attnc.codegen.cpu.selected import Selected
from attnc.codegen.cpu.simple import Simple, is_tile
from attnc.codegen.cpu.storage import Trace
from attnc.codegen.cpu.transfer import Transfer, affine
from attnc.codegen.cpu.weights import find_weights, held_in_place
from attnc.codegen.tile import Accumulate, AddTo, Assign, Each, Loop, Scatter, Stmt, Store
from attnc.ir.construct import const
from attnc.ir.node import Call, Const, Load, Node, Var

Group = list[NestStmt]
"""Statements of one loop nest."""


class Body:
    """Prints statement lists; `positions` maps grid and `Each` axes to their scalar positions."""

    def __init__(self, layout: Layout, needs: set[str], out: Emitter) -> None:
        self.layout = layout
        self.needs = needs
        self.out = out
        self.positions = {a: layout.axis(a) for a in layout.kernel.grid}
        self.scalars: frozenset[str] = frozenset()
        self.mentions = Mentions(layout.kernel)
        self.simple = Simple(layout, self.mentions)
        self.every: dict[tuple[int, str], str] = {}
        self.current: tuple[Stmt, ...] = ()
        self.trace = Trace()
        self.fetching: tuple[Stmt, ...] | None = None
        self.marks: dict[int, None] = {}
        """The loop body between whose statements memory is fetched, and the lines where that may happen."""

    @property
    def expressions(self) -> Expressions:
        """For uniform expressions at the current place."""
        return Expressions(self.layout, self.needs, self.positions, self._read)

    def _read(self, node: Var) -> Value:
        tile = self.layout.tiles[node.name]
        return Value(tile.array, "i" if tile.element == "w" else tile.element, False)

    # ---------------------------------------------------------------------------------------------------- groups

    def print(self, body: tuple[Stmt, ...]) -> None:
        """Statements in order; nests are collected, a group per axis that vectors run along, until they are needed.

        No statement of a group depends on one of another group, so groups can be printed in any order.
        """
        before, self.current = self.current, body
        aliases = self.layout.aliases
        self.layout.aliases = aliases | self.layout.aliases_of.get(id(body), {})
        groups: list[Group] = []
        waiting = list(self.simple.statements(body, self.scalars, self._nests))
        while waiting:
            s = waiting.pop(0)
            home = next((g for g in groups if self._joins(g, s)), None)
            for g in [g for g in groups if g is not home]:
                if isinstance(s, Loop | Each) or any(_depends(s, earlier) for earlier in g):
                    self._pull_up(g, [s, *(o for other in groups if other is not g for o in other)], waiting)
                    groups.remove(g)
                    self._flush(g)
            if isinstance(s, Loop | Each | AddTo) or not self._nests(s):
                self._alone(s)
            elif home is not None:
                home.append(s)
            else:
                groups.append([s])
            if body is self.fetching:
                self.marks[len(self.out.lines)] = None
        for g in groups:
            self._flush(g)
        self.current, self.layout.aliases = before, aliases

    def _pull_up(self, group: Group, overtaken: list[Stmt], waiting: list[Stmt]) -> None:
        """Move later statements that fit into the group, and depend on nothing they would overtake, into it."""
        if isinstance(overtaken[0], Loop | Each):
            return
        for s in list(waiting):
            if isinstance(s, Loop | Each):
                break
            if self._joins(group, s) and not any(_depends(s, o) for o in overtaken):
                assert not isinstance(s, Loop | Each | AddTo)
                group.append(s)
                waiting.remove(s)
            else:
                overtaken.append(s)

    def _nests(self, s: Stmt) -> bool:
        """Whether a statement is printed as (part of) a loop nest."""
        match s:
            case Loop() | Each() | AddTo():
                return False
            case Store():
                return not affine(self.layout, s.index, self.scalars) or not is_tile(self.layout, s, self.scalars)
            case Assign() if isinstance(s.value, Load):
                return affine(self.layout, s.value.index, self.scalars) is None
            case Scatter():
                return True
            case Assign() if s.target.name in self.layout.selected:
                return False
            case _:
                return (
                    matrix_product(self.layout, s, self.scalars) is None
                    and across(self.layout, s, self.scalars) is None
                )

    def _joins(self, group: Group, s: Stmt) -> bool:
        if isinstance(s, Loop | Each | AddTo) or not self._nests(s):
            return False
        vector = shape(self.layout, s, self.scalars).vector
        return vector is not None and vector == shape(self.layout, group[0], self.scalars).vector

    def _flush(self, group: Group) -> None:
        outside = self.mentions.outside(self.current, group)
        outside |= self.simple.stored & {w for s in group if (w := written(s))}
        weights = find_weights(self.layout, self.current, group, self.mentions)
        nest = Nest(self.layout, self.needs, self.positions, self.scalars, outside, self.out, self._touch, weights)
        nest.print(group)
        self.trace.unit += 1
        for s in group:
            name = written(s) or ""
            later = any(name in reads(t) for t in self.current if t not in group)
            for pack in packs_of(self.layout, name) if later or name in self.mentions.carried else ():
                self.layout.in_place.pop(pack.array, None)
                if pack.name in nest.weights:
                    self.needs.add("pairs")
                    self.layout.in_place[pack.array] = held_in_place(self.layout, pack)
                else:
                    self._pack_tile(pack)

    def _touch(self, name: str, segment: int, line: int, in_place: bool) -> None:
        self.trace.note(self.current, name, segment, line, in_place=in_place)

    def _pack_tile(self, pack: Pack) -> None:
        """The packed copy of a tile that has just been computed."""
        layout = self.layout
        self.needs.add("pairs")
        layout.packed.add(pack.array)
        self.trace.note(self.current, pack.name)
        self.trace.unit += 1
        if pack.form == "rows":
            self.needs.add("rows_of_weights")
            self.out.line(
                f"rows_of_weights({pack.array}, {layout.pack_row(pack)}, {layout.tiles[pack.name].array}, "
                f"{layout.pitch(pack.depth)}, {layout.count(pack.other)}, {layout.count(pack.depth)});"
            )
            self.out.line(f"const Left {layout.left(pack)} = {{{pack.array}, {layout.pack_row(pack)}, 2}};")
            return
        self.out.line(
            f"pack_pairs({pack.array}, {layout.pack_row(pack)}, {layout.tiles[pack.name].array}, "
            f"{layout.pitch(pack.other)}, {layout.count(pack.depth)}, {layout.padded(pack.other)});"
        )

    # ------------------------------------------------------------------------------------------------ statements

    def _alone(self, s: Stmt) -> None:
        if not isinstance(s, Loop | Each):
            for name in reads(s) | {written(s) or ""}:
                if name in self.layout.tiles:
                    self.trace.note(self.current, name)
            self.trace.unit += 1
        match s:
            case Loop():
                self._loop(s)
            case Each():
                self._each(s)
            case Assign() if isinstance(s.value, Load):
                self.out.note(s.note)
                subscripts = affine(self.layout, s.value.index, self.scalars)
                assert subscripts is not None
                here = id(self.current), s.target.name
                unread = self.layout.packed_only | self.layout.turned_only
                if s.target.name not in unread and here not in self.layout.packed_here:
                    self._transfer().read(self.layout.tiles[s.target.name], s.value.tensor, subscripts)
                if (turned := self.layout.turned.get(s.target.name)) is not None:
                    self._transfer().read(turned, s.value.tensor, subscripts)
                for pack in packs_of(self.layout, s.target.name):
                    self._transfer().pack(pack, s.value.tensor, subscripts)
            case Store():
                self.out.note(s.note)
                subscripts = affine(self.layout, s.index, self.scalars)
                assert subscripts is not None and isinstance(s.value, Var)
                self._transfer().write(self.layout.tiles[s.value.name], s.tensor, subscripts)
            case Assign() if s.target.name in self.layout.selected:
                self._select(s, self.layout.selected[s.target.name])
            case Assign() | Accumulate() if id(s) in self.layout.unselected:
                self._unless_all_seen(s, self.layout.unselected[id(s)])
            case Assign() | Accumulate():
                if (rows := across(self.layout, s, self.scalars)) is not None:
                    print_across(self.layout, self.needs, self.out, s, rows)
                    return
                self._product(s, s)
            case AddTo():
                if not any(s is added for added in self.layout.in_memory.values()):
                    self.out.note(s.note)
                    self._add(s)
            case _:
                raise TypeError(f"cannot print {s}")

    def _product(self, s: Assign | Accumulate, printed: Assign | Accumulate) -> None:
        """A matrix product; `printed` is what it multiplies."""
        plan = matrix_product(self.layout, printed, self.scalars)
        assert plan is not None
        if isinstance(printed, Assign) and id(s) in self.layout.in_memory:
            self._in_memory(printed, plan, self.layout.in_memory[id(s)])
            return
        MatrixProduct(self.layout, self.needs, self.positions, self.out).print(printed, plan)

    def _select(self, s: Assign, selected: Selected) -> None:
        """A copy without the rows that are not seen, where there are any."""
        key = id(self.current), selected.seen.name
        seen = self.layout.tiles[selected.seen.name]
        if key not in self.every:
            self.needs.add("all_above_zero")
            self.every[key] = self.layout.names.fresh(f"all_{selected.seen.name}")
            count = self.layout.count(next(iter(selected.seen.axes)))
            self.out.line(f"const bool {self.every[key]} = all_above_zero({seen.array}, {count});")
        with self.out.block(f"if (!{self.every[key]})"):
            outside = {selected.source.name, selected.seen.name, s.target.name}
            Nest(self.layout, self.needs, self.positions, self.scalars, outside, self.out, self._touch).print([s])
        self.trace.unit += 1

    def _unless_all_seen(self, s: Assign | Accumulate, other: Assign | Accumulate) -> None:
        """A product with what was loaded where every row is seen."""
        used = [x for x in self.layout.selected.values() if x.target.name in reads(s)]
        for x in used:
            self.trace.note(self.current, x.source.name)
        with self.out.block(f"if ({' && '.join(self.every[id(self.current), x.seen.name] for x in used)})"):
            self._product(s, other)
        with self.out.block("else"):
            self._product(s, s)

    def _add(self, s: AddTo) -> None:
        subscripts = affine(self.layout, s.index, self.scalars)
        assert subscripts is not None
        self._transfer().write(self.layout.tiles[s.value.name], s.tensor, subscripts, "add_tile")

    def _in_memory(self, s: Assign, plan: MatrixPlan, added: AddTo) -> None:
        """A product summed up in memory, or by way of its tile where lanes are apart or its rows are too few."""
        subscripts = affine(self.layout, added.index, self.scalars)
        assert plan.m is not None and subscripts is not None
        printed = MatrixProduct(self.layout, self.needs, self.positions, self.out)
        *into, conditions = self._transfer().place(plan.m, plan.n, added.tensor, subscripts)
        if id(s) in self.layout.pairs_of:
            conditions.append(f"{self.layout.count(plan.m)} % 16 == 0")
        with self.out.block(f"if ({' && '.join(conditions)})"):
            printed.print(s, plan, (into[0], into[1]))
        with self.out.block("else"):
            printed.print(s, plan)
            self._add(added)

    def _transfer(self) -> Transfer:
        return Transfer(self.layout, self.needs, self.expressions, self.out)

    def _loop(self, s: Loop) -> None:
        """Blocks of the inner axis; positions at or past `stop` are not visited."""
        axis = s.axis
        name, first, count = self.layout.axis(axis), self.layout.first(axis), self.layout.count(axis)
        block = (self.layout.joint if s.joint else {}).get(axis, self.layout.blocks[axis])
        self.out.line()
        self.out.note(s.note)
        stop = self.layout.names.fresh(f"{name}_stop")
        limit = self.expressions.show(self.layout.roles[axis].extent)
        end = self.expressions.show(s.stop)
        code = end.code if s.stop is self.layout.roles[axis].extent else f"least({end.code}, {limit.code})"
        self.out.line(f"const int64_t {stop} = {code};")
        start = self.expressions.show(s.start)
        if not isinstance(s.start, Const) and not _clamped(s.start):
            start = Value(f"most(0, {start.code})", "i", False)
        head = f"for (int64_t {first} = {start.code}; {first} < {stop}; {first} += {block})"
        with self.layout.names.scope(), self.out.block(head):
            self.out.line(f"const int64_t {count} = least({block}, {stop} - {first});")
            self.out.line(f"[[maybe_unused]] const int64_t {self.layout.padded(axis)} = round_up({count}, W);")
            around = self.layout.looped, self.layout.turn
            self.layout.looped, self.layout.turn = axis, block
            soon = self._soon(s) if self.layout.kernel.narrow else []
            self.fetching, self.marks = s.body if soon else None, {}
            self.print(s.body)
            self._fetch(soon)
            self.layout.looped, self.layout.turn = around

    def _soon(self, s: Loop) -> list[str]:
        """With few queries memory is the limit: what the next turn of a loop reads is fetched between statements."""
        found = []
        for load in s.body:
            if isinstance(load, Assign) and isinstance(load.value, Load):
                subscripts = affine(self.layout, load.value.index, self.scalars)
                code = subscripts and self._transfer().next_rows(load.value.tensor, subscripts, s.axis)
                if code:
                    self.needs.add("ahead")
                    found.append(self.layout.names.fresh(f"next_{load.target.name}"))
                    self.out.line(f"Ahead {found[-1]} = {code};")
        return found

    def _fetch(self, soon: list[str]) -> None:
        """Equal parts of what is read soon, at every mark."""
        self.fetching = None
        pad = "    " * self.out.depth
        for pieces, at in enumerate(reversed(self.marks), 1):
            self.out.lines[at:at] = [f"{pad}{name}.fetch({pieces});" for name in soon]

    def _each(self, s: Each) -> None:
        name = self.layout.axis(s.axis)
        start, stop = self.expressions.show(s.start), self.expressions.show(s.stop)
        before, shown = self.scalars, dict(self.positions)
        self.out.note(s.note)
        head = f"for (int64_t {name} = {start.code}; {name} < {stop.at(SUM)}; ++{name})"
        with self.layout.names.scope(), self.out.block(head):
            self.scalars = before | {s.axis}
            self.positions[s.axis] = name
            self.print(s.body)
        self.scalars, self.positions = before, shown


def _clamped(start: Node) -> bool:
    """Whether a loop start is written as ``maximum(0, ...)``."""
    return isinstance(start, Call) and start.fn == "maximum" and const(0) in start.args


def _depends(s: Stmt, earlier: Stmt) -> bool:
    """Whether `s` may not be printed before `earlier`."""
    if isinstance(s, Store | Scatter) and isinstance(earlier, Store | Scatter):
        return True
    mine, theirs = written(s), written(earlier)
    return theirs in reads(s) or (mine is not None and (mine == theirs or mine in reads(earlier)))
