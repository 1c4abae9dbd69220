"""Pointwise expressions to C++, over W lanes or a single one."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

from attnc.codegen.cpu.layout import C_SCALAR, C_VECTOR, INT32, Element, Layout
from attnc.ir.node import Add, Axis, Call, Const, Iverson, Node, Prod, Size, Var

ATOM, UNARY, PRODUCT, SUM, COMPARE, BITS, LOOSE = 7, 6, 5, 4, 3, 2, 0

NEEDS_WIDE = frozenset({"maximum", "minimum", "abs"})


@dataclass(frozen=True, slots=True)
class Value:
    """C++ text with its element type; `lanes` tells a vector from a scalar, `level` how tightly it binds."""

    code: str
    element: Element
    lanes: bool
    level: int = ATOM

    def at(self, level: int) -> str:
        """The text, in parentheses unless it binds at least this tightly."""
        return self.code if self.level >= level else f"({self.code})"

    @property
    def type(self) -> str:
        return (C_VECTOR if self.lanes else C_SCALAR)[self.element]


class Expressions:
    """Prints nodes in one place of the program.

    `vector` is the axis vectors run along here, `read` gives the value of a variable, `positions` the scalar position
    of each axis that has one, and `named` the values already held by a C++ name. `needs` collects the sections used.
    """

    def __init__(
        self,
        layout: Layout,
        needs: set[str],
        positions: dict[str, str],
        read: Callable[[Var], Value],
        vector: str | None = None,
    ) -> None:
        self.layout = layout
        self.needs = needs
        self.positions = positions
        self.read = read
        self.vector = vector
        self.named: dict[Node, Value] = {}
        self.single = layout.kernel.real == "f32"

    def show(self, node: Node) -> Value:
        if node in self.named:
            return self.named[node]
        match node:
            case Const():
                return self._constant(node)
            case Axis():
                return self._axis(node.name)
            case Size():
                return self._size(node.name)
            case Var():
                return self._variable(node)
            case Iverson():
                return self._product((node,))
            case Add():
                return self._sum(node)
            case Prod():
                return self._integer_product(node) if node.kind == "i" else self._product(node.factors)
            case Call():
                return self._call(node)
            case _:
                raise TypeError(f"not pointwise: {node}")

    # ---------------------------------------------------------------------------------------------------- leaves

    def _constant(self, node: Const) -> Value:
        v = node.value
        if isinstance(v, bool):
            return Value("true" if v else "false", "b", False)
        if isinstance(v, int):
            return Value(str(v) if abs(v) <= INT32 else f"INT64_C({v})", "i", False, ATOM if v >= 0 else UNARY)
        return Value(self.literal(v), "f", False, ATOM if v >= 0 else UNARY)

    def literal(self, v: float) -> str:
        if math.isnan(v):
            return '__builtin_nanf("")'
        if math.isinf(v):
            return "infinity" if v > 0 else "-infinity"
        if not self.single:
            return repr(float(v))
        try:
            short = _single(v)
        except OverflowError:
            return "infinity" if v > 0 else "-infinity"
        text = next(t for p in range(6, 18) if _single(float(t := f"{v:.{p}g}")) == short)
        return (text if "." in text or "e" in text else text + ".0") + "f"

    def _axis(self, name: str) -> Value:
        if name != self.vector:
            code = self.positions[name]
            return Value(code, "i", False, SUM if " " in code else ATOM)
        self.needs.add("lane_numbers")
        first, lane = self.layout.first(name), self.layout.axis(name)
        return Value(f"positions({lane if first is None else f'{first} + {lane}'})", "i", True)

    def _size(self, name: str) -> Value:
        for axis, length in self.layout.blocks.items():
            if name == f"BLOCK_{axis.upper()}":
                return Value(str(length), "i", False)
        return Value(self.layout.names.get("size", name), "i", False)

    def _variable(self, node: Var) -> Value:
        if node.name not in self.layout.tiles:
            for axis in self.layout.blocks:
                if node.name in (f"{axis}_first", f"{axis}_last"):
                    return Value(self.layout.names.get("of axis", f"{axis} {node.name[len(axis) + 1 :]}"), "i", False)
        return self.read(node)

    # ----------------------------------------------------------------------------------------------- conversions

    def real(self, v: Value) -> Value:
        if v.element == "f":
            return v
        if v.element == "b":
            return self.select(v, Value(self.literal(1.0), "f", False), Value(self.literal(0.0), "f", False))
        if v.element == "i" and not v.lanes:
            exact = v.code.lstrip("-").isdigit() and abs(int(v.code)) < 2**24
            if exact:
                return Value(self.literal(float(v.code)), "f", False, v.level)
            return Value(f"real({v.code})", "f", False)
        if v.element == "w":
            self.needs.add("wide")
        return Value(f"to_real({v.code})", "f", True)

    def spread(self, v: Value) -> Value:
        """A scalar in every lane."""
        if v.lanes:
            return v
        match v.element:
            case "f":
                return Value("vec{}" if v.code == self.literal(0.0) else f"splat({v.code})", "f", True)
            case "b":
                return Value(f"mask({v.code})", "b", True)
            case "w":
                return Value(f"splat_wide({v.code})", "w", True)
            case "i":
                return Value(f"splat(integer({v.code}))", "i", True)

    def widened(self, v: Value) -> Value:
        self.needs.add("wide")
        if v.element == "w" and v.lanes:
            return v
        return Value(f"widen({v.code})" if v.lanes else f"splat_wide({v.code})", "w", True)

    def scalar_beside(self, v: Value, element: Element) -> str:
        """An integer operand beside lanes of `element`."""
        if v.lanes:
            return (self.widened(v) if element == "w" else v).at(UNARY)
        if element == "w":
            return f"int64_t({v.code})"
        return v.code if v.code.isdigit() else f"integer({v.code})"

    def _integers(self, node: Node, parts: list[Value]) -> tuple[bool, Element]:
        lanes = any(p.lanes for p in parts)
        wide = (
            self.single
            and lanes
            and (any(p.element == "w" for p in parts) or (node.kind == "i" and self.layout.reach(node) > INT32))
        )
        if wide:
            self.needs.add("wide")
        return lanes, "w" if wide else "i"

    # ------------------------------------------------------------------------------------------------ arithmetic

    def _sum(self, node: Add) -> Value:
        parts: list[tuple[bool, Value]] = []
        for term in node.terms:
            minus, rest = (False, term) if term in self.named else _without_minus(term)
            parts.append((minus, self.show(rest)))
        parts.sort(key=lambda p: p[0])
        lanes, element = self._integers(node, [v for _, v in parts])
        if node.kind == "f":
            parts, element = [(m, self.real(v)) for m, v in parts], "f"
        text = ""
        for minus, v in parts:
            bracketed = minus or (bool(text) and element == "f")  # a sum among terms was rounded by itself
            real = element == "f" or not lanes
            code = v.at(PRODUCT if bracketed else SUM) if real else self.scalar_beside(v, element)
            if not text:
                text = f"-{v.at(UNARY) if real else code}" if minus else code
            else:
                text += f" {'-' if minus else '+'} {code}"
        return Value(text, element, lanes, SUM)

    def _integer_product(self, node: Prod) -> Value:
        parts = [self.show(f) for f in node.factors]
        lanes, element = self._integers(node, parts)
        if len(parts) == 2 and parts[0].code == "-1" and element == "i":
            return Value(f"-{parts[1].at(UNARY)}", "i", lanes, UNARY)
        code = " * ".join(self.scalar_beside(v, element) if lanes else v.at(PRODUCT) for v in parts)
        return Value(code, element, lanes, PRODUCT)

    def _product(self, factors: tuple[Node, ...]) -> Value:
        conditions = [self.show(f.condition) for f in factors if isinstance(f, Iverson)]
        rest = [f for f in factors if not isinstance(f, Iverson)]
        value = self._plain_product(rest) if rest else Value(self.literal(1.0), "f", False)
        if not conditions:
            return value
        return self.select(self.all_of(conditions), value, Value(self.literal(0.0), "f", False))

    def _plain_product(self, factors: list[Node]) -> Value:
        above: list[Value] = []
        below: list[Value] = []
        minus = False
        for f in factors:
            if isinstance(f, Const) and f.value == -1 and len(factors) > 1:
                minus = not minus
            elif isinstance(f, Call) and f.fn == "reciprocal" and f not in self.named:
                below.append(self.real(self.show(f.args[0])))
            else:
                above.append(self.real(self.show(f)))
        # Scalars first, so that they are multiplied once.
        above.sort(key=lambda v: v.lanes)
        lanes = any(v.lanes for v in above + below)
        if not above:
            above = [Value(self.literal(1.0), "f", False)]
        text = " * ".join([above[0].at(PRODUCT), *(v.at(UNARY) for v in above[1:])])
        for v in below:
            text += f" / {v.at(UNARY)}"
        single = len(above) == 1 and not below
        if minus:
            return Value(f"-{above[0].at(UNARY)}" if single else f"-({text})", "f", lanes, UNARY)
        return Value(text, "f", lanes, above[0].level if single else PRODUCT)

    # ------------------------------------------------------------------------------------------------ conditions

    def select(self, condition: Value, yes: Value, no: Value) -> Value:
        if not condition.lanes:
            if yes.lanes or no.lanes:
                yes, no = self.spread(yes), self.spread(no)
            return Value(f"{condition.at(BITS)} ? {yes.at(BITS)} : {no.at(BITS)}", yes.element, yes.lanes, LOOSE)
        if "w" in (yes.element, no.element):
            yes, no = self.widened(yes), self.widened(no)
            return Value(f"select(widen({condition.code}), {yes.code}, {no.code})", "w", True)
        yes, no = self.spread(yes), self.spread(no)
        return Value(f"select({condition.code}, {yes.code}, {no.code})", yes.element, True)

    def all_of(self, conditions: list[Value], *, any_of: bool = False) -> Value:
        if len(conditions) == 1:
            return conditions[0]
        if not any(c.lanes for c in conditions):
            return Value(f" {'||' if any_of else '&&'} ".join(c.at(BITS) for c in conditions), "b", False, BITS - 1)
        spread = [self.spread(c) for c in conditions]
        return Value(f" {'|' if any_of else '&'} ".join(c.at(ATOM) for c in spread), "b", True, BITS)

    def _compare(self, node: Call) -> Value:
        a, b = (self.show(x) for x in node.args)
        sign = {"lt": "<", "le": "<=", "eq": "=="}[node.fn]
        lanes = a.lanes or b.lanes
        if a.element == b.element == "b":
            if not lanes:
                return Value(f"{a.at(UNARY)} == {b.at(UNARY)}", "b", False, COMPARE)
            return Value(f"~({self.spread(a).at(ATOM)} ^ {self.spread(b).at(ATOM)})", "b", True, UNARY)
        if "f" in (a.element, b.element):
            a, b = self.real(a), self.real(b)
            return Value(f"{a.at(SUM)} {sign} {b.at(SUM)}", "b", lanes, COMPARE)
        if not lanes:
            return Value(f"{a.at(SUM)} {sign} {b.at(SUM)}", "b", False, COMPARE)
        if "w" in (a.element, b.element) and self.single:
            self.needs.add("wide")
            return Value(f"narrow({self.widened(a).at(SUM)} {sign} {self.widened(b).at(SUM)})", "b", True)
        left, right = (x.at(SUM) if x.lanes else self.scalar_beside(x, "i") for x in (a, b))
        return Value(f"{left} {sign} {right}", "b", True, COMPARE)

    # ----------------------------------------------------------------------------------------------------- calls

    def _call(self, node: Call) -> Value:
        match node.fn:
            case "lt" | "le" | "eq":
                return self._compare(node)
            case "and" | "or":
                return self.all_of([self.show(a) for a in node.args], any_of=node.fn == "or")
            case "not":
                x = self.show(node.args[0])
                return Value(f"{'~' if x.lanes else '!'}{x.at(ATOM)}", "b", x.lanes, UNARY)
            case "where":
                c, a, b = (self.show(x) for x in node.args)
                if node.kind == "f":
                    a, b = self.real(a), self.real(b)
                return self.select(c, a, b)
            case "detach":
                return self.show(node.args[0])
            case "reciprocal":
                x = self.real(self.show(node.args[0]))
                return Value(f"1 / {x.at(UNARY)}", "f", x.lanes, PRODUCT)
            case "maximum" | "minimum" | "floordiv" | "mod" | "abs":
                return self._kind_preserving(node)
            case "hash" | "unit":
                return self._hash(node)
            case "bitand" | "bitor" | "bitxor":
                return self._bits(node)
            case "floor_log2" | "power_of_two":
                parts = [self.show(node.args[0])]
                _, element = self._integers(node, parts)
                self.needs.add("powers_of_two_wide" if element == "w" else "powers_of_two")
                return self._apply(node.fn, [self.widened(p) for p in parts] if element == "w" else parts, element)
            case _:
                return self._real_function(node)

    def _kind_preserving(self, node: Call) -> Value:
        parts = [self.show(a) for a in node.args]
        name = "absolute" if node.fn == "abs" else node.fn
        if node.kind == "f":
            self.needs.add("real_division" if node.fn in ("floordiv", "mod") else name)
            return self._apply(name, [self.real(p) for p in parts], "f")
        lanes, element = self._integers(node, parts)
        if not lanes and node.fn in ("floordiv", "mod"):
            self.needs.add("floor_division")
            return self._apply(name, parts, "i")
        if element == "w":
            parts = [self.widened(p) for p in parts]
        if node.fn in ("floordiv", "mod"):
            self.needs.add("floor_division_wide" if element == "w" else "floor_division_lanes")
        else:
            self.needs |= {name, "wide_extremes"} if element == "w" else {name}
        value = self._apply(name, parts, element)
        fits = element == "w" and lanes and self.layout.reach(node) <= INT32
        return Value(f"narrow({value.code})", "i", True) if fits else value

    def _hash(self, node: Call) -> Value:
        """Hashes are taken of 32 bits, which is what the printer's narrow integers have."""
        self.needs.add("hash")
        parts = [self.show(a) for a in node.args]
        parts = [Value(f"narrow_bits({p.code})", "i", True) if p.element == "w" else p for p in parts]
        return self._apply(node.fn, parts, "i" if node.fn == "hash" else "f")

    def _bits(self, node: Call) -> Value:
        parts = [self.show(a) for a in node.args]
        lanes, element = self._integers(node, parts)
        sign = {"bitand": "&", "bitor": "|", "bitxor": "^"}[node.fn]
        codes = [f"({self.scalar_beside(v, element)})" if lanes else v.at(ATOM) for v in parts]
        return Value(f" {sign} ".join(codes), element, lanes, BITS)

    def _real_function(self, node: Call) -> Value:
        if node.fn == "exp2" and self.layout.reads_half and len(self.layout.kernel.layout(node.axes)) > 1:
            x = self.real(self.show(node.args[0]))
            if x.lanes:  # a weight of pairs of positions, beside numbers of half precision
                self.needs.add("exp2_of_weight")
                return self._apply("exp2_of_weight", [x], "f")
        self.needs.add(node.fn)
        element: Element = "i" if node.fn == "floor" else "f"
        return self._apply(node.fn, [self.real(self.show(a)) for a in node.args], element)

    def _apply(self, name: str, parts: list[Value], element: Element) -> Value:
        lanes = any(p.lanes for p in parts)
        if lanes:
            parts = [self.spread(p) for p in parts]
        elif element == "i" and name in ("maximum", "minimum"):
            name = "most" if name == "maximum" else "least"
        elif element == "f" and name in ("maximum", "minimum"):
            parts = [Value(f"real({p.code})", "f", False) for p in parts]
        return Value(f"{name}({', '.join(p.code for p in parts)})", element, lanes)


def _single(v: float) -> float:
    """`v` rounded to 32 bits."""
    rounded: float = struct.unpack("f", struct.pack("f", v))[0]
    return rounded


def _without_minus(term: Node) -> tuple[bool, Node]:
    """Whether a term is subtracted, and what is."""
    from attnc.ir.construct import const, raw_prod

    if isinstance(term, Prod):
        first = next((f for f in term.factors if isinstance(f, Const) and f.kind != "b"), None)
        if first is not None and first.value < 0:
            rest = [f for f in term.factors if f is not first]
            if first.value != -1:
                rest.append(const(-first.value))
            return True, rest[0] if len(rest) == 1 else raw_prod(rest)
    if isinstance(term, Const) and term.kind != "b" and term.value < 0:
        return True, const(-term.value)
    return False, term
