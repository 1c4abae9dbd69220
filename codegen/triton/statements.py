"""Statements of tile programs as lines of Triton."""

from __future__ import annotations

from attnc.codegen.tile import Accumulate, AccumulateAt, Assign, Each, Loop, Scatter, Stmt, Store
from attnc.codegen.triton.access import Addresses, Scope
from attnc.codegen.triton.descriptors import Descriptors
from attnc.codegen.triton.emitter import Emitter
from attnc.codegen.triton.environment import REAL, Environment
from attnc.codegen.triton.facts import (
    HALF,
    NARROW,
    Fact,
    computes_much,
    has_shared,
    precision,
    sources,
    usage,
    zero_lanes,
)
from attnc.codegen.triton.parameters import COUNTER
from attnc.codegen.triton.product import TRITON_TYPES, Reductions
from attnc.codegen.triton.sinking import is_unrolled, sunk
from attnc.codegen.triton.text import SUM, Text
from attnc.ir.construct import is_const
from attnc.ir.node import Axis, Call, Const, Iverson, Load, Max, Node, Sum, Var
from attnc.ir.walk import postorder


class Statements:
    """Prints statements in order. What they need ahead collects in `settled` and in the first scope of `addresses`."""

    def __init__(self, env: Environment, out: Emitter, *, widen: bool, wide: bool, descriptors: bool) -> None:
        self.env = env
        self.out = out
        self.widen = widen
        self.layout = env.layout
        self.expressions = env.expressions
        self.usage = usage(env.kernel)
        self.addresses = Addresses(env, [Scope(frozenset(env.kernel.grid))], wide)
        self.descriptors = Descriptors(env, self.usage) if descriptors else None
        self.reductions = Reductions(env)
        narrow = {precision(a) for a in env.kernel.arguments if a.mode == "in"} & NARROW
        narrow = narrow or {precision(a) for a in env.kernel.arguments} & NARROW
        self.narrow = frozenset(narrow if len(narrow) == 1 else ())
        self.settled: list[str] = []
        self.anchors: list[str] = []

    def kernel(self) -> None:
        """The whole body. Values and addresses that only the end needs are computed there, to occupy no registers
        until then."""
        body = sunk(self.env.kernel.body)
        end = max((k + 1 for k, s in enumerate(body) if isinstance(s, Loop | Each)), default=0)
        self._block(body[:end])
        self._scoped(Scope(frozenset(self.env.kernel.grid)), body[end:])

    def _scoped(self, scope: Scope, body: tuple[Stmt, ...]) -> None:
        """Statements, after the addresses that only they use."""
        at = len(self.out.lines)
        self.addresses.scopes.append(scope)
        self._block(body)
        self.addresses.scopes.pop()
        printed, self.out.lines = self.out.lines[at:], self.out.lines[:at]
        for base, address in scope.bases.values():
            self.out.line(f"{base} = {address}")
        self.out.lines += printed

    def _block(self, body: tuple[Stmt, ...]) -> None:
        for s in body:
            if s.note and not self._settles(s):
                self.out.note(s.note)
            self._statement(s)

    def _statement(self, s: Stmt) -> None:
        self.expressions.temporaries.clear()
        match s:
            case Assign():
                self._assign(s)
            case Accumulate():
                self._accumulate(s)
            case AccumulateAt():
                self._accumulate_at(s)
            case Loop():
                self._loop(s)
            case Each():
                self._each(s)
            case Store():
                self._store(s)
            case Scatter():
                self._scatter(s)
            case _:
                raise TypeError(f"blocks of a GPU run at once, and cannot add to the same memory: {s}")

    # ------------------------------------------------------------------------------------------------- values

    def _assign(self, s: Assign) -> None:
        axes = tuple(a for a in self.env.kernel.layout(s.target.axes) if a not in self.env.singles)
        if isinstance(s.value, Load):
            text, fact = self._load(s.target, s.value, axes)
        else:
            text, fact = self._computed(s, axes)
        if self._is_spread(s, axes):
            text = self._once(text, axes)
        code = self._filled(text, axes, fact.storage, s.value)
        if s.target.kind == "i" and (s.target in postorder([s.value]) or _is_cut(s.value)):
            code = f"tl.cast({code}, tl.int32)"  # powers of two are wider, and what a loop carries keeps its type
        name = self._declare(s.target, fact)
        if self._settles(s):
            self.settled.append(f"{name} = {code}")
            return
        obvious = code.startswith(("tl.full", "tl.zeros")) or code.isidentifier()
        self.out.line(f"{name} = {code}", self._shape_comment(() if obvious else axes))

    def _computed(self, s: Assign, axes: tuple[str, ...]) -> tuple[Text, Fact]:
        storage = {"f": "f32", "i": "i32", "b": "bool"}[s.target.kind]
        source = self.usage.selected.get(s.target)
        if source in self.env.facts and self.env.facts[source].storage in NARROW and s.target in self.usage.multiplied:
            storage = self.env.facts[source].storage
            text = self._selected(source, s.value)
        else:
            text = self._value(s.value, s.target.kind)
        stays = s.target not in self.usage.changing and not isinstance(s.value, Sum | Max)
        zero = zero_lanes(s.value, self.env.facts) if stays else frozenset()
        return text, Fact(axes, storage, zero, sources(s.value, self.env.facts))

    def _selected(self, source: Var, value: Node) -> Text:
        """A variable where conditions hold and 0 elsewhere, in the type it is kept in."""
        conditions = [self.expressions.text(f.condition) for f in value.children if isinstance(f, Iverson)]
        where = self.expressions.conjunction(conditions)
        return self.layout.call("tl.where", where, self.env.kept(source), Text("0.0"))

    def _is_spread(self, s: Assign, axes: tuple[str, ...]) -> bool:
        """Whether every warp would compute what `s` computes, for a matrix product."""
        kernel = self.env.kernel
        rows = {x.axis for x in kernel.lanes if x.role == "outer"}
        return bool(self.usage.multiplied) and not rows & set(axes) and computes_much(kernel, s.value)

    def _once(self, text: Text, axes: tuple[str, ...]) -> Text:
        """The value in the block, and 0 beyond. Where an operand of a matrix product depends on loads alone, Triton
        moves all that is computed from them behind their distribution to the warps that multiply; what depends on a
        position is computed once, and then distributed."""
        (inner,) = (x.axis for x in self.env.kernel.lanes if x.role == "inner")
        self.out.note(f"below {inner}'s end, which keeps every warp from computing all of it")
        inside = self.expressions.compare("<", self.env.lane(inner), self.env.extent(inner))
        return self.layout.call("tl.where", self.layout.spread(inside, axes), text, Text("0.0"))

    def _settles(self, s: Stmt) -> bool:
        """Whether `s` assigns a scalar that only depends on the grid point; those come before the addresses."""
        return isinstance(s, Assign) and s.target in self.env.definitions and self.env.settled(s.value)

    def _declare(self, target: Var, fact: Fact) -> str:
        """Remember what is known about a variable, over all its assignments; its name."""
        old = self.env.facts.get(target)
        if old is not None and old.axes == fact.axes:
            fact = Fact(old.axes, old.storage, old.zero & fact.zero, old.sources | fact.sources)
        self.env.facts[target] = fact
        return self.env.name(target)

    def _shape_comment(self, axes: tuple[str, ...]) -> str | None:
        return self.env.shape(axes) if axes else None

    def _filled(self, text: Text, axes: tuple[str, ...], storage: str, value: Node) -> str:
        """`text` over all of `axes`."""
        if text.axes == axes:
            return text.code
        if not set(text.axes) <= set(axes):
            raise ValueError(f"kernel {self.env.kernel.name}: {text.code} has lanes {text.axes}, not {axes}")
        shape, kind = self.env.shape(axes), TRITON_TYPES[storage]
        if is_const(value, 0):
            return f"tl.zeros({shape}, dtype={kind})"
        if not text.axes:
            return f"tl.full({shape}, {text.code}, dtype={kind})"
        return f"tl.broadcast_to({self.layout.spread(text, axes).code}, {shape})"

    def _value(self, node: Node, kind: str) -> Text:
        match node:
            case Sum():
                pair = self.reductions.operands(node)
                return self.reductions.matrix_product(node, pair) if pair else self.reductions.total(node)
            case Max():
                return self.reductions.maximum(node)
            case _:
                self._share(node)
                return self.expressions.real(node) if kind == "f" else self.expressions.text(node)

    def _share(self, *nodes: Node) -> None:
        """Name what an expression uses more than once."""
        counts = has_shared(nodes)
        for n in postorder(nodes):
            if counts.get(n, 0) > 1 and len(postorder([n])) > 4:
                text = self.expressions.text(n)
                name = self.env.names.fresh("t")
                self.out.line(f"{name} = {text.code}", self._shape_comment(text.axes))
                self.expressions.temporaries[n] = Text(name, text.axes)

    def _accumulate(self, s: Accumulate) -> None:
        fact, name = self.env.facts[s.target], self.env.name(s.target)
        pair = self.reductions.operands(s.value) if isinstance(s.value, Sum) else None
        comment = self._shape_comment(fact.axes)
        if pair and isinstance(s.value, Sum):
            self.out.line(f"{name} = {self.reductions.matrix_product(s.value, pair, name).code}", comment)
        else:
            text = self._value(s.value, s.target.kind)
            self.out.line(f"{name} += {self.layout.spread(text, fact.axes).code}", comment)
        self._declare(s.target, Fact(fact.axes, fact.storage, frozenset(), sources(s.value, self.env.facts)))

    def _accumulate_at(self, s: AccumulateAt) -> None:
        fact, name = self.env.facts[s.target], self.env.name(s.target)
        value = self.layout.spread(self._value(s.value, s.target.kind), fact.axes)
        lane = self.layout.spread(self.env.lane(s.axis), fact.axes)
        here = self.expressions.compare("==", lane, Text(self.env.singles[s.axis]))
        chosen = self.layout.call("tl.where", here, value, Text("0.0"))
        self.out.line(f"{name} += {chosen.code}", self._shape_comment(fact.axes))
        self._declare(s.target, Fact(fact.axes, fact.storage, fact.zero, sources(s.value, self.env.facts)))

    # ------------------------------------------------------------------------------------------------- memory

    def _load(self, target: Var, node: Load, axes: tuple[str, ...]) -> tuple[Text, Fact]:
        argument = self.env.kernel.argument(node.tensor)
        address = self.addresses.address(node.tensor, node.index)
        mask = self.addresses.conjunction(self.addresses.inside(node.tensor, node.index), address.axes)
        other = "0.0" if argument.dtype in ("f32", *HALF) else "0"
        plain = f"tl.load({address.code}, mask={mask.code}, other={other})" if mask else f"tl.load({address.code})"
        code = (self.descriptors.load(target, node) if self.descriptors else None) or plain
        zero = frozenset(
            a.name
            for a, dim in zip(node.index, argument.dims, strict=True)
            if isinstance(a, Axis) and self.env.padded(a.name) and dim is self.env.kernel.lane(a.name).extent
        )
        code, storage = self._converted(code, precision(argument), target)
        read = frozenset({"f32" if self.widen else precision(argument)}) if target.kind == "f" else frozenset()
        if argument.made and read == frozenset({"f32"}) and not self.widen:
            read |= self.narrow
        return Text(code, address.axes), Fact(axes, storage, zero, read)

    def _converted(self, code: str, dtype: str, target: Var) -> tuple[str, str]:
        """A loaded value in the type it is kept in, and that type."""
        match target.kind:
            case "f":
                keep = dtype in NARROW and target in self.usage.multiplied and target not in self.usage.computed
                if dtype == "f32" or (keep and not self.widen):
                    return code, dtype
                return code if dtype == "tf32" else f"{code}.to({REAL})", "f32"
            case "i":
                return (code, dtype) if dtype in ("i32", "i64") else (f"{code}.to(tl.int32)", "i32")
            case _:
                return (code, "bool") if dtype == "bool" else (f"{code} != 0", "bool")

    def _store(self, s: Store) -> None:
        self._share(s.value, *s.index)
        address = self.addresses.address(s.tensor, s.index)
        value = self.layout.spread(self.expressions.text(s.value), address.axes)
        mask = self.addresses.conjunction(self.addresses.lanes_inside(address.axes), address.axes)
        guard = f", mask={mask.code}" if mask else ""
        self.out.line(f"tl.store({address.code}, {value.code}{guard})")

    def _scatter(self, s: Scatter) -> None:
        self._share(s.value, *s.index, *([s.condition] if s.condition is not None else []))
        address = self.addresses.address(s.tensor, s.index)
        value = self.expressions.real(s.value)
        condition = None if s.condition is None else self.expressions.text(s.condition)
        axes = self.layout.union([address, value, *([condition] if condition else [])])
        if axes != address.axes:
            zeros = Text(f"tl.zeros({self.env.shape(axes)}, dtype=tl.int32)", axes)
            address = self.layout.infix("+", [address, zeros], SUM)
        bounds = dict.fromkeys([*self.addresses.lanes_inside(axes), *self.addresses.inside(s.tensor, s.index)])
        parts = [self.addresses.conjunction(list(bounds), axes), condition]
        chosen = [self.layout.spread(p, axes) for p in parts if p is not None]
        added = f"{address.code}, {self.layout.spread(value, axes).code}"
        mask = self.expressions.conjunction(chosen).code if chosen else "None"
        if self.env.kernel.exact:
            helper = self.env.helper("add_exactly")
            self.out.line(f"{helper}({added}, {self.env.size(COUNTER).code}, {mask})")
        else:
            self.out.line(f'tl.atomic_add({added}, mask={mask}, sem="relaxed")')

    # -------------------------------------------------------------------------------------------------- loops

    def _loop(self, s: Loop) -> None:
        block = self.env.block(s.axis)
        start = self.env.names.get("start", s.axis, f"{s.axis}_first")
        low, high = (self.expressions.text(n) for n in (s.start, s.stop))
        if self.anchors:
            zero = Text(self.anchors[-1])
            low = zero if is_const(s.start, 0) else self.layout.infix("+", [low, zero], SUM)
        self.out.line(f"for {start} in range({low.code}, {high.code}, {block}):")
        outside = set(self.env.full)
        if not s.masked:
            self.env.full.add(s.axis)
        with self.out.indent():
            self.out.line(f"{self.env.lane(s.axis).code} = {start} + tl.arange(0, {block})")
            self.env.firsts[s.axis] = start
            self._block(s.body)
            del self.env.firsts[s.axis]
        self.env.full = outside

    def _each(self, s: Each) -> None:
        channel = s.axis in self.layout.order
        name = self.env.names.get("single", s.axis, f"at_{s.axis}" if channel else s.axis)
        low, high = (self.expressions.text(n).code for n in (s.start, s.stop))
        unrolled = channel and is_unrolled(s)
        self.out.line(f"for {name} in {'tl.static_range' if unrolled else 'range'}({low}, {high}):")
        self.env.singles[s.axis] = name
        with self.out.indent():
            if channel:
                self._block(s.body)
            else:
                self._anchor(name)
                self._scoped(Scope(self.addresses.scopes[-1].axes | {s.axis}), s.body)
                self.anchors.pop()
        del self.env.singles[s.axis]

    def _anchor(self, name: str) -> None:
        """Define a zero that compilers cannot see through. Loops inside start from it, so that nothing they compute is
        moved out of this loop, where it would hold on to registers all along."""
        zero = self.env.names.get("anchor", name, "zero")
        self.out.note(f"0, but not for the compiler: nothing below is hoisted out of the loop over {name}")
        self.out.line(f"{zero} = tl.minimum({name}, 0)")
        self.anchors.append(zero)


def _is_cut(value: Node) -> bool:
    """Whether a power of two is cut to what 32 bits hold."""
    match value:
        case Call(
            fn="minimum", args=(Call(fn="power_of_two"), Const() as top) | (Const() as top, Call(fn="power_of_two"))
        ):
            return top.value < 2**31
        case _:
            return False
