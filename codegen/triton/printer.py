"""Tile programs as Triton modules that read like hand-written ones."""

from __future__ import annotations

from collections.abc import Iterable

from attnc.codegen.tile import (
    Accumulate,
    AccumulateAt,
    Assign,
    Each,
    Kernel,
    Loop,
    Scatter,
    Stmt,
    Store,
    statements,
)
from attnc.codegen.triton.access import Addresses, Scope
from attnc.codegen.triton.emitter import Emitter
from attnc.codegen.triton.expression import Expressions
from attnc.codegen.triton.facts import HALF, Fact, has_shared, scalar_definitions, sources, usage, zero_lanes
from attnc.codegen.triton.helpers import HELPERS
from attnc.codegen.triton.names import Names, identifier
from attnc.codegen.triton.parameters import channel_sizes, paddings, parameters
from attnc.codegen.triton.product import TRITON_TYPES, Reductions
from attnc.codegen.triton.text import ATOM, SUM, Layout, Text
from attnc.ir.node import Axis, Const, Load, Max, Node, Sum, Var, is_const
from attnc.ir.walk import postorder, replace

HEADER = "import triton\nimport triton.language as tl\n"
REAL = "tl.float32"


def print_module(kernels: Iterable[Kernel], *, widen: bool = False) -> str:
    """A Python module with one function per kernel and the helpers they use.

    With `widen`, half-precision tensors are converted as they are loaded and products are taken in f32: Triton's
    interpreter multiplies bf16 bit patterns otherwise.
    """
    printed = [KernelPrinter(k, widen=widen) for k in kernels]
    bodies = [p.print() for p in printed]
    used = {name for p in printed for name in p.helpers}
    functions = [source.strip("\n") + "\n" for name, source in HELPERS.items() if name in used]
    return "\n\n".join([HEADER, *functions, *bodies])


def print_kernel(kernel: Kernel, *, widen: bool = False) -> str:
    """A module with one kernel."""
    return print_module([kernel], widen=widen)


class KernelPrinter:
    """Prints one kernel. `print` may be called once."""

    def __init__(self, kernel: Kernel, *, widen: bool = False) -> None:
        if kernel.real != "f32":
            raise ValueError(f"kernel {kernel.name}: the Triton printer computes in f32, not {kernel.real}")
        self.kernel = kernel
        self.widen = widen
        self.helpers: set[str] = set()
        self.facts: dict[Var, Fact] = {}
        self.usage = usage(kernel)
        self.parameters = parameters(kernel)
        self.paddings = paddings(kernel)
        self.constants = set(channel_sizes(kernel))
        self.layout = Layout([x.axis for x in kernel.lanes])
        self.names = Names(frozenset(HELPERS))
        self._reserve()
        self.definitions = scalar_definitions(kernel)
        self.settled: list[str] = []
        self.singles: dict[str, str] = {}
        self.full: set[str] = set()
        self.anchors: list[str] = []
        self.channels_used: set[str] = set()
        self.edges_used: set[str] = set()
        self.expressions = Expressions(self.layout, self)
        strides = {(p.of, p.dim): p for p in self.parameters if p.role == "stride"}
        self.addresses = Addresses(kernel, self.names, self.expressions, strides, self._within)
        self.addresses.scopes.append(Scope(frozenset(kernel.grid)))
        self.reductions = Reductions(self.expressions, self.facts, self._plain, self._padded, self._extent)
        self.out = Emitter()

    def _reserve(self) -> None:
        families = {"pointer": "pointer", "size": "size", "extent": "size", "pad": "pad", "block": "block"}
        for p in self.parameters:
            if p.role == "stride":
                self.names.get("stride", p.name)
            else:
                self.names.get(families[p.role], p.of, p.name)
        for a in (*self.kernel.grid, *(x.axis for x in self.kernel.lanes)):
            self.names.get("axis", a)

    # ------------------------------------------------------------------------------------------------- leaves

    def axis(self, name: str) -> Text:
        if name in self.singles:
            return Text(self.singles[name])
        if name in self.kernel.grid:
            return Text(self.names.get("axis", name))
        if name in self.paddings:
            self.channels_used.add(name)
        return Text(self.names.get("axis", name), (name,))

    def size(self, name: str) -> Text:
        if name.startswith("BLOCK_"):
            for lane in self.kernel.lanes:
                if name == f"BLOCK_{lane.axis.upper()}":
                    return Text(self.names.get("block", lane.axis))
        return Text(self.names.get("size", name))

    def variable(self, node: Var) -> Text:
        text = self._plain(node)
        fact = self.facts.get(node)
        return Text(f"{text.within(ATOM)}.to({REAL})", text.axes) if fact and fact.storage in HALF else text

    def helper(self, name: str) -> str:
        self.helpers.add(name)
        return name

    def defined(self, node: Node) -> Node:
        for name, definition in reversed(self.definitions.items()):
            node = replace([node], {name: definition})[0]
        return node

    def _name(self, node: Var) -> str:
        """Variables of one name over different lanes are different variables."""
        return self.names.get("variable", f"{node.name} {sorted(node.axes)} {node.kind}", node.name)

    def _plain(self, node: Var) -> Text:
        fact = self.facts.get(node)
        if fact is None:
            edge = node.name.removesuffix("_first").removesuffix("_last")
            if edge != self.kernel.outer:
                raise ValueError(f"kernel {self.kernel.name}: {node.name} is used before it is assigned")
            self.edges_used.add(node.name)
            return Text(self.names.get("edge", node.name))
        text = Text(self._name(node), fact.axes)
        for a in [a for a in fact.axes if a in self.singles]:
            text = self._pick(text, a)
        return text

    def _pick(self, text: Text, axis: str) -> Text:
        """The element of `text` at the current position of an enclosing `Each`."""
        self.channels_used.add(axis)
        lane = self.layout.spread(Text(self.names.get("axis", axis), (axis,)), text.axes)
        here = self.expressions.compare("==", lane, Text(self.singles[axis]))
        chosen = self.layout.call("tl.where", here, text, Text("0.0"))
        left = tuple(a for a in text.axes if a != axis)
        return Text(f"tl.sum({chosen.code}, axis={text.axes.index(axis)})", left)

    def _within(self, axis: str) -> bool:
        if axis in self.kernel.grid or axis in self.singles or axis in self.full:
            return True
        return axis in self.paddings and not self.paddings[axis].needed

    def _padded(self, axis: str) -> bool:
        return axis in self.paddings and self.paddings[axis].needed

    def _extent(self, axis: str) -> Text:
        return self.expressions.text(self.kernel.lane(axis).extent)

    def _length(self, axis: str) -> str:
        """The number of lanes of an axis, as text."""
        if axis not in self.paddings:
            return self.names.get("block", axis)
        return self.names.get("pad", axis) if self._padded(axis) else self._extent(axis).code

    def _shape(self, axes: tuple[str, ...]) -> str:
        return f"[{', '.join(self._length(a) for a in axes)}]"

    # --------------------------------------------------------------------------------------------- statements

    def print(self) -> str:
        self.out.depth = 1
        looped = [k for k, s in enumerate(self.kernel.body) if isinstance(s, Loop | Each)]
        end = looped[-1] + 1 if looped else 0
        self._block(self.kernel.body[:end])
        self._scoped(Scope(frozenset(self.kernel.grid)), self.kernel.body[end:])
        body = self.out.lines
        self.out = Emitter()
        self.out.line("@triton.jit")
        self._signature()
        with self.out.indent():
            self._docstring()
            self._grid_point()
            self._lanes()
            for line in self.settled:
                self.out.line(line)
            for name, address in self.addresses.scopes[0].bases.values():
                self.out.line(f"{name} = {address}")
        self.out.lines += ["", *body]
        return self.out.text()

    def _signature(self) -> None:
        self.out.line(f"def {identifier(self.kernel.name)}(")
        with self.out.indent():
            groups: dict[str, list[str]] = {}
            for p in self.parameters:
                row = f"stride {p.of}" if p.role == "stride" else "constant" if p.role in ("extent", "pad") else p.role
                groups.setdefault(row, []).append(p.name + (": tl.constexpr" if p.constant else ""))
            for names in groups.values():
                self.out.line(", ".join(names) + ",")
        self.out.line("):")

    def _docstring(self) -> None:
        lines = self.kernel.doc.replace("\\", "/").replace('"""', "'''").splitlines()
        if len(lines) == 1:
            self.out.line(f'"""{lines[0]}"""')
        elif lines:
            for text in ('"""' + lines[0], *lines[1:], '"""'):
                self.out.lines.append(("    " + text).rstrip())

    def _grid_point(self) -> None:
        """The grid point: blocks of the outer axis vary fastest, so that neighbours share what they read."""
        kernel, outer = self.kernel, self.kernel.outer
        rest = "pid"
        used = outer is not None or bool(kernel.grid)
        if used:
            self.out.line("pid = tl.program_id(0)")
        if outer is not None:
            block, extent = self.names.get("block", outer), self._extent(outer).code
            first = self.names.get("edge", f"{outer}_first")
            count = self.names.get("count", outer, f"{outer}_blocks")
            self.out.line(f"{count} = tl.cdiv({extent}, {block})")
            self.out.line(f"{first} = (pid % {count}) * {block}")
            if f"{outer}_last" in self.edges_used:
                last = self.names.get("edge", f"{outer}_last")
                self.out.line(f"{last} = tl.minimum({first} + {block}, {extent}) - 1")
            rest = f"pid // {count}"
        if len(kernel.grid) > 1 and rest != "pid":
            self.out.line(f"batch = {rest}")
            rest = "batch"
        for k in range(len(kernel.grid) - 1, -1, -1):
            name = self.names.get("axis", kernel.grid[k])
            extent = self.expressions.text(kernel.grid_extents[k]).within(ATOM)
            self.out.line(f"{name} = {rest} % {extent}" if k else f"{name} = {rest}")
            rest = f"{rest} // {extent}"

    def _lanes(self) -> None:
        outer = self.kernel.outer
        if outer is not None:
            first = self.names.get("edge", f"{outer}_first")
            self.out.line(f"{self.names.get('axis', outer)} = {first} + tl.arange(0, {self._length(outer)})")
        for lane in self.kernel.lanes:
            if lane.axis in self.channels_used:
                self.out.line(f"{self.names.get('axis', lane.axis)} = tl.arange(0, {self._length(lane.axis)})")

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

    def _settles(self, s: Stmt) -> bool:
        """Whether `s` assigns a scalar that only depends on the grid point; those come before the addresses."""
        if not isinstance(s, Assign) or s.target not in self.definitions:
            return False
        whole = self.defined(s.value)
        return whole.axes <= set(self.kernel.grid) and not any(isinstance(n, Var) for n in postorder([whole]))

    def _declared_axes(self, target: Var) -> tuple[str, ...]:
        return tuple(a for a in self.kernel.layout(target.axes) if a not in self.singles)

    def _declare(self, target: Var, fact: Fact) -> str:
        """Remember (and widen what is known about) a variable; its name."""
        old = self.facts.get(target)
        if old is not None and old.axes == fact.axes:
            fact = Fact(old.axes, old.storage, old.zero & fact.zero, old.sources | fact.sources)
        self.facts[target] = fact
        return self._name(target)

    def _assign(self, s: Assign) -> None:
        axes = self._declared_axes(s.target)
        if isinstance(s.value, Load):
            text, fact = self._load(s.target, s.value, axes)
        else:
            text = self._value(s.value, s.target.kind)
            storage = {"f": "f32", "i": "i32", "b": "bool"}[s.target.kind]
            zero = zero_lanes(s.value, self.facts) if not isinstance(s.value, Sum | Max) else frozenset()
            fact = Fact(axes, storage, zero, sources(s.value, self.facts))
        code = self._filled(text, axes, fact.storage, s.value)
        name = self._declare(s.target, fact)
        if self._settles(s):
            self.settled.append(f"{name} = {code}")
            return
        obvious = code.startswith(("tl.full", "tl.zeros")) or code.isidentifier()
        self.out.line(f"{name} = {code}", self._shape(axes) if axes and not obvious else None)

    def _filled(self, text: Text, axes: tuple[str, ...], storage: str, value: Node) -> str:
        """`text` over all of `axes`."""
        if text.axes == axes:
            return text.code
        if not set(text.axes) <= set(axes):
            raise ValueError(f"kernel {self.kernel.name}: {text.code} has lanes {text.axes}, its variable has {axes}")
        shape, kind = self._shape(axes), TRITON_TYPES[storage]
        if is_const(value, 0):
            return f"tl.zeros({shape}, dtype={kind})"
        if not text.axes:
            return f"tl.full({shape}, {text.code}, dtype={kind})"
        return f"tl.broadcast_to({self.layout.spread(text, axes).code}, {shape})"

    def _value(self, node: Node, kind: str = "f") -> Text:
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
        self.expressions.temporaries.clear()
        counts: dict[Node, int] = {}
        for node in nodes:
            for n, count in has_shared(node).items():
                counts[n] = counts.get(n, 0) + count
        for n in postorder(nodes):
            if counts.get(n, 0) > 1 and len(postorder([n])) > 4:
                text = self.expressions.text(n)
                name = self.names.get("shared", f"{len(self.names)}", "t")
                self.out.line(f"{name} = {text.code}", self._shape(text.axes) if text.axes else None)
                self.expressions.temporaries[n] = Text(name, text.axes)

    def _accumulate(self, s: Accumulate) -> None:
        fact = self.facts[s.target]
        name = self._name(s.target)
        pair = self.reductions.operands(s.value) if isinstance(s.value, Sum) else None
        reached = Fact(fact.axes, fact.storage, frozenset(), sources(s.value, self.facts))
        if pair and isinstance(s.value, Sum) and not any(a in self.singles for a in fact.axes):
            text = self.reductions.matrix_product(s.value, pair, name)
            self.out.line(f"{name} = {text.code}", self._shape(fact.axes))
        else:
            text = self._value(s.value, s.target.kind)
            code = self.layout.spread(text, fact.axes).code
            self.out.line(f"{name} += {code}", self._shape(fact.axes) if fact.axes else None)
        self._declare(s.target, reached)

    def _accumulate_at(self, s: AccumulateAt) -> None:
        fact = self.facts[s.target]
        name = self._name(s.target)
        value = self._value(s.value, s.target.kind)
        self.channels_used.add(s.axis)
        lane = self.layout.spread(Text(self.names.get("axis", s.axis), (s.axis,)), fact.axes)
        here = self.expressions.compare("==", lane, Text(self.singles[s.axis]))
        chosen = self.layout.call("tl.where", here, self.layout.spread(value, fact.axes), Text("0.0"))
        self.out.line(f"{name} += {chosen.code}", self._shape(fact.axes))
        self._declare(s.target, Fact(fact.axes, fact.storage, fact.zero, sources(s.value, self.facts)))

    def _load(self, target: Var, node: Load, axes: tuple[str, ...]) -> tuple[Text, Fact]:
        argument = self.kernel.argument(node.tensor)
        address = self.addresses.address(node.tensor, node.index)
        bounds = self.addresses.inside(node.tensor, node.index)
        mask = self.addresses.conjunction(bounds, address.axes)
        other = "0.0" if argument.dtype in ("f32", *HALF) else "0"
        code = f"tl.load({address.code}, mask={mask.code}, other={other})" if mask else f"tl.load({address.code})"
        zero = frozenset(
            a.name
            for a, dim in zip(node.index, argument.dims, strict=True)
            if isinstance(a, Axis) and self._padded(a.name) and dim is self.kernel.lane(a.name).extent
        )
        code, storage = self._converted(code, argument.dtype, target)
        real = frozenset({"f32" if self.widen else argument.dtype}) if target.kind == "f" else frozenset()
        return Text(code, address.axes), Fact(axes, storage, zero, real)

    def _converted(self, code: str, dtype: str, target: Var) -> tuple[str, str]:
        """A loaded value in the type it is kept in, and that type."""
        match target.kind:
            case "f":
                keep = dtype in HALF and target in self.usage.multiplied and target not in self.usage.computed
                if dtype == "f32" or (keep and not self.widen):
                    return code, dtype
                return f"{code}.to({REAL})", "f32"
            case "i":
                return (code, dtype) if dtype in ("i32", "i64") else (f"{code}.to(tl.int32)", "i32")
            case _:
                return (code, "bool") if dtype == "bool" else (f"{code} != 0", "bool")

    def _loop(self, s: Loop) -> None:
        block = self.names.get("block", s.axis)
        start = self.names.get("start", s.axis, f"{s.axis}_first")
        low, high = (self.expressions.text(n) for n in (s.start, s.stop))
        if self.anchors:
            low = Text(self.anchors[-1]) if is_const(s.start, 0) else self.layout.infix("+", [low, Text(self.anchors[-1])], SUM)
        self.out.line(f"for {start} in range({low.code}, {high.code}, {block}):")
        known = s.axis in self.full
        if not s.masked:
            self.full.add(s.axis)
        with self.out.indent():
            self.out.line(f"{self.names.get('axis', s.axis)} = {start} + tl.arange(0, {block})")
            self._block(s.body)
        if not known:
            self.full.discard(s.axis)

    def _each(self, s: Each) -> None:
        lane = s.axis in self.layout.order
        name = self.names.get("single", s.axis, f"at_{s.axis}" if lane else s.axis)
        low, high = (self.expressions.text(n).code for n in (s.start, s.stop))
        self.out.line(f"for {name} in range({low}, {high}):")
        self.singles[s.axis] = name
        with self.out.indent():
            if lane:
                self._block(s.body)
            else:
                self._anchor(name)
                self._scoped(Scope(self.addresses.scopes[-1].axes | {s.axis}), s.body)
                self.anchors.pop()
        del self.singles[s.axis]

    def _anchor(self, name: str) -> None:
        """A zero that compilers cannot see through. Loops inside start from it, so that nothing they compute is moved out
        of this loop, where it would hold on to registers all along."""
        zero = self.names.get("anchor", name, "zero")
        self.out.note(f"0, in a way that keeps the loops below from being hoisted out of the loop over {name}")
        self.out.line(f"{zero} = tl.minimum({name}, 0)")
        self.anchors.append(zero)

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
            zeros = Text(f"tl.zeros({self._shape(axes)}, dtype=tl.int32)", axes)
            address = self.layout.infix("+", [address, zeros], SUM)
        bounds = [*self.addresses.lanes_inside(axes), *self.addresses.inside(s.tensor, s.index)]
        parts = [self.addresses.conjunction(list(dict.fromkeys(bounds)), axes), condition]
        chosen = [self.layout.spread(p, axes) for p in parts if p is not None]
        guard = f", mask={self.expressions.conjunction(chosen).code}" if chosen else ""
        spread = self.layout.spread(value, axes)
        self.out.line(f'tl.atomic_add({address.code}, {spread.code}{guard}, sem="relaxed")')
