"""Random well-typed expressions of the language as text, with a bound on their absolute value.

Inputs lie in [-1, 1]. Every real is kept below `LARGEST` and every function away from its singularities, so that values
and their derivatives are well conditioned: two ways to compute a spec agree to rounding, or one of them is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")

Real = tuple[str, float]
"""Text and a bound on the absolute value."""

Form = tuple[str, Callable[..., float] | float]
"""A template, and the bound of its value given those of its reals. A letter in braces stands for an expression: r real,
p positive, n integer, c condition, t a value at the same place for each use."""

LARGEST = 6.0
LENGTH = 64.0
"""Bound on lengths and positions."""
SIZES = {"b": "B", "h": "H", "g": "G", "i": "M", "j": "N", "d": "D", "e": "E"}


@dataclass(frozen=True)
class Scope:
    """What an expression may read.

    Attributes:
        axes: indices in scope.
        stages: which of s, p, w, o exist here.
        params: values given to a function: name, indices, bound.
        depth: how deeply expressions may still nest.
    """

    axes: frozenset[str]
    stages: str = ""
    params: tuple[tuple[str, frozenset[str], float], ...] = ()
    depth: int = 3

    @property
    def deeper(self) -> Scope:
        return replace(self, depth=self.depth - 1)

    def over(self, axis: str) -> Scope:
        return replace(self, axes=self.axes | {axis})


def scope(axes: str, stages: str = "", depth: int = 3) -> Scope:
    return Scope(frozenset(axes), stages, (), depth)


SUMS: tuple[Form, ...] = (
    ("{r} + {r}", lambda x, y: x + y),
    ("{r} - {r}", lambda x, y: x + y),
    ("-{r}", lambda x: x),
    ("{r} * {r}", lambda x, y: x * y),
    ("{r} / {p}", lambda x, y: 4 * x),
)
FUNCTIONS: tuple[Form, ...] = (
    *((f"{f}({{r}})", 1.0) for f in ("tanh", "sigmoid", "sin", "cos", "erf", "sign")),
    *((f"{f}({{r}})", lambda x: x + 0.7) for f in ("relu", "abs", "gelu", "silu", "softplus", "detach")),
    ("max({r}, {r})", max),
    ("min({r}, {r}, 0.3)", max),
    ("clamp({r}, -1.3, 0.9)", 1.3),
    ("exp(min({r}, 1.5))", 4.5),
    ("exp2(-abs({r}))", 1.0),
    ("log({p})", 2.0),
    ("log2({p})", 3.0),
    ("floor({r} * 3.1 + 0.37) / 3", lambda x: x + 1),
    ("xlogy(sigmoid({r}), {p})", 2.0),
)
POWERS: tuple[Form, ...] = (
    ("{r} ** 2", lambda x: x * x),
    ("{r} ** 3", lambda x: x**3),
    ("{p} ** -1", 4.0),
    ("{p} ** 0.5", lambda x: x),
    ("rsqrt({p})", 2.0),
    ("{p} ** tanh({r})", LARGEST),
)
SELECTIONS: tuple[Form, ...] = (
    ("where({c}, {r}, {r})", max),
    ("{r} if {c} else {r}", max),
)
POSITIVE: tuple[Form, ...] = (
    ("0.5 + sigmoid({r})", 1.5),
    ("1 + tanh({r}) ** 2", 2.0),
    ("exp(tanh({r}))", 2.8),
    ("softplus({r}) + 0.3", lambda x: x + 1),
    ("sqrt(0.5 + {t} * {t})", lambda x: x + 1),
)
CHANNELS: tuple[Form, ...] = (
    ("sum[x]({r} * {r}) / 4", lambda x, y: 2 * x * y),
    ("mean[x]({r})", lambda x: x),
    ("max[x]({r})", lambda x: x),
    ("min[x]({r})", lambda x: x),
    ("sum[x](softmax[x]({r}) * {r})", lambda x, y: y),
)
SEQUENCES: tuple[Form, ...] = (
    ("mean[x]({r})", lambda x: x),
    ("sum[x]({r}) / (N + M)", lambda x: x),
    ("sum[x]({r} * {t}) / (0.5 + sum[x](abs({t})))", lambda x, y: x),
    ("sum[x](softmax[x]({r}) * {r})", lambda x, y: y),
    ("tanh(max[x]({r}))", 1.0),
    ("log(1 + sum[x]({p}))", LARGEST),
)
SCORES = ("dot(q, k) / sqrt(D)", "dot(q, k) / D", "sum[d](q[i, d] * k[j, d]) * rsqrt(D)")
INTEGERS = ("{n} - {n}", "abs({n} - {n})", "{n} // C", "{n} % C", "clamp({n}, -C, C)", "max({n}, {n})", "C * {n} - {n}")
CONDITIONS = ("{n} < C", "{n} <= {n}", "{n} == {n}", "{n} != C", "-C <= {n} < C")
DATA_CONDITIONS = ("{r} < {r}", "{r} > 0.1", "{c} and {c}", "{c} or {c}", "not {c}")


@dataclass
class Writer:
    """Draws expressions and collects the declarations they need.

    Attributes:
        draw: hypothesis's.
        lines: declarations so far.
        extents: of declared indices.
        tensors: name to kind (real, positive, integer, condition) and the subscripts it is read with.
        functions: name to the indices it needs.
        lets: name to its indices and bound.
        consts: name to value.
        reductions: how many reductions over a sequence may still be drawn.
    """

    draw: Callable[[st.SearchStrategy[Any]], Any]
    lines: list[str] = field(default_factory=list)
    extents: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    functions: dict[str, frozenset[str]] = field(default_factory=dict)
    lets: dict[str, tuple[frozenset[str], float]] = field(default_factory=dict)
    consts: dict[str, float] = field(default_factory=dict)
    reductions: int = 3

    # ------------------------------------------------------------------------------------------------- drawing

    def one(self, options: Sequence[T]) -> T:
        """One of the options; the first is the simplest."""
        return options[self.number(0, len(options) - 1)]

    def chance(self, percent: int) -> bool:
        """True now and then; False is simpler."""
        return self.number(0, 99) >= 100 - percent

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def some(self, options: Sequence[T]) -> list[T]:
        """A subset, in order."""
        return [x for x in options if self.chance(50)]

    def fill(self, form: Form, where: Scope) -> Real:
        """A template with every letter replaced by an expression of its kind."""
        bounds: list[float] = []
        again: list[str] = []

        def expression(match: re.Match[str]) -> str:
            kind = match[1]
            if kind == "n":
                return grouped(self.integer(where))
            if kind == "c":
                return grouped(self.condition(where))
            if kind == "t" and again:
                return again[0]
            text, bound = self.positive(where) if kind == "p" else self.real(where)
            bounds.append(bound)
            again.extend([grouped(text)] * (kind == "t"))
            return grouped(text)

        text = re.sub(r"\{(\w)\}", expression, form[0])
        return text, form[1](*bounds) if callable(form[1]) else form[1]

    # ------------------------------------------------------------------------------------------------- reals

    def real(self, where: Scope) -> Real:
        """A bounded real."""
        if where.depth <= 0:
            return self.leaf(where)
        inner = where.deeper
        kind = self.one(
            ("leaf", "leaf", "sum", "sum", "function", "function", "select", "power", "reduce", "call", "decay")
        )
        match kind:
            case "leaf":
                return self.leaf(where)
            case "reduce":
                return tame(self.reduction(inner))
            case "call":
                return self.function_call(inner)
            case "decay":
                return f"{self.tensor(inner, 'positive')} ** abs({self.integer(inner)})", 1.0
            case _:
                forms = {"sum": SUMS, "function": FUNCTIONS, "select": SELECTIONS, "power": POWERS}[kind]
                return tame(self.fill(self.one(forms), inner))

    def positive(self, where: Scope) -> Real:
        """A real between 0.25 and `LARGEST`."""
        if self.chance(30):
            return self.tensor(where, "positive"), 1.0
        text, bound = self.fill(self.one(POSITIVE), where.deeper)
        return text, min(bound, LARGEST + 1)

    def leaf(self, where: Scope) -> Real:
        kinds = ["constant", "tensor", "tensor", "position"]
        kinds += ["operand"] * 2 * bool(where.axes & set("ij"))
        kinds += ["score"] * 2 * ({"i", "j"} <= where.axes)
        stages = [x for x in where.stages if ({"i", "e"} if x == "o" else {"i", "j"}) <= where.axes]
        kinds += ["stage"] * 2 * bool(stages)
        lets = [(n, bound) for n, (axes, bound) in self.lets.items() if axes <= where.axes]
        kinds += ["let"] * 2 * bool(lets)
        params = [(n, bound) for n, axes, bound in where.params if axes <= where.axes]
        kinds += ["param"] * 4 * bool(params)
        match self.one(kinds):
            case "constant":
                return self.constant()
            case "tensor":
                return self.tensor(where, "real"), 1.0
            case "position":
                forms: tuple[Form, ...] = (("0.03 * {n}", 4.0), ("{n} / (N + 5)", 4.0), ("tanh(0.1 * {n})", 1.0))
                return self.fill(self.one(forms), where)
            case "operand":
                return self.operand(where), 1.0
            case "score":
                return (self.rows(), 3.0) if self.chance(20) else (self.one(SCORES), 3.0)
            case "stage":
                return self.one(stages), LARGEST
            case "let":
                return self.one(lets)
            case _:
                return self.one(params)

    def rows(self) -> str:
        """Queries or keys times rows of a table that both positions choose."""
        name, r = f"rel{len(self.lines)}", self.number(1, 4)
        per_head = self.chance(50)
        self.lines.append(f"tensor {name}: [{'H, ' if per_head else ''}{2 * r + 1}, D]")
        entry = self.one((f"clamp(i - j, -{r}, {r}) + {r}", f"abs(i - j) % {2 * r + 1}", f"(i + 2 * j) % {r + 1}"))
        return f"dot({self.one(('q', 'k'))}, {name}[{'h, ' if per_head else ''}{entry}]) / sqrt(D)"

    def constant(self) -> Real:
        if self.chance(20):
            if not self.consts or self.chance(30):
                name, value = f"c{len(self.consts)}", self.one((0.5, 1.25, -0.75, 2.0))
                self.consts[name] = value
                self.lines.append(f"const {name} = {value}")
            name = self.one(sorted(self.consts))
            return name, abs(self.consts[name])
        text = self.one(("0.5", "1", "1.5", "0.25", "2", "0.0", "-0.75", "1e-1"))
        return text, abs(float(text))

    def operand(self, where: Scope) -> str:
        """An element of q, k or v, sometimes at a place of its own."""
        d = ("d", "(d + 1) % D", "D - 1 - d", "(d + D // 2) % D") if "d" in where.axes else ("0", "D - 1", "D // 2")
        e = ("e", "(e + 1) % E") if "e" in where.axes else ("0", "E - 1")
        forms = [f"q[i, {self.one(d)}]"] if "i" in where.axes else []
        if "j" in where.axes:
            forms += [f"k[j, {self.one(d)}]", f"v[j, {self.one(e)}]"]
            forms += [f"k[max(j - 1, 0), {self.one(d)}]", f"v[N - 1 - j, {self.one(e)}]"]
        return self.one(forms)

    def function_call(self, where: Scope) -> Real:
        """A call of a function of the spec, defined here or earlier."""
        fitting = [n for n, axes in self.functions.items() if axes <= where.axes]
        if where.params:  # inside a function already
            return self.leaf(where)
        if not fitting or (len(self.functions) < 2 and self.chance(40)):
            name = f"f{len(self.functions)}"
            free = self.one((frozenset[str](), frozenset("h"), where.axes)) & where.axes
            body, _ = self.real(Scope(free, "", (("x", frozenset(), 2.0),), 2))
            self.functions[name] = free
            self.lines.append(f"def {name}(x) = tanh({body})")
            fitting.append(name)
        name, (text, bound) = self.one(fitting), self.real(where)
        text = text if bound <= 2 else f"tanh({text})"
        return (f"repeat(2, {name}, {text})" if self.chance(20) else f"{name}({text})"), 1.0

    def reduction(self, where: Scope) -> Real:
        """A reduction over channels, a declared index, or a sequence."""
        channels = [a for a in ("d", "e", *self.extents) if a not in where.axes or self.chance(20)]
        if self.reductions > 0 and (not channels or self.chance(60)):
            self.reductions -= 1
            axis, forms = self.one(("j", "i")), SEQUENCES
        elif channels:
            axis, forms = self.one(channels), CHANNELS
        else:
            return self.leaf(where)
        template, bound = self.one(forms)
        return self.fill((template.replace("[x]", f"[{axis}]"), bound), where.over(axis))

    # ---------------------------------------------------------------------------------- integers, conditions

    def integer(self, where: Scope, depth: int = 1) -> str:
        """An integer expression of positions, sizes and constants."""
        axes = [a for a in ("j", "i", "h", "b", "d", "e", *self.extents) if a in where.axes]
        plain = ["i - j", "j - i", "abs(i - j)", "i + j"] * ({"i", "j"} <= where.axes) + [*axes, "2", "N", "M"]
        if depth <= 0 or self.chance(40):
            return self.one(plain)
        if self.chance(25):
            return self.tensor(where, "integer")
        template = self.one(INTEGERS).replace("C", str(self.number(1, 5)))
        return re.sub(r"\{n\}", lambda _: grouped(self.integer(where, depth - 1)), template)

    def condition(self, where: Scope) -> str:
        """A condition on positions or data."""
        kinds = [*CONDITIONS, *((*DATA_CONDITIONS, "flag") if where.depth > 0 else ())]
        template = self.one(kinds)
        if template == "flag":
            return self.tensor(where, "condition")
        return self.fill((template.replace("C", str(self.number(1, 9))), 0.0), where.deeper)[0]

    # ----------------------------------------------------------------------------------------------- tensors

    def tensor(self, where: Scope, kind: str) -> str:
        """An element of an input: a new one, or one that is declared already."""
        known = [(n, index) for n, (k, index) in self.tensors.items() if k == kind and _readable(index, where)]
        if known and (len(self.tensors) >= 5 or self.chance(60)):
            name, index = self.one(known)
            return f"{name}[{', '.join(index)}]"
        name = f"{ {'real': 't', 'positive': 'u', 'integer': 'n', 'condition': 'm'}[kind] }{len(self.tensors)}"
        dims, index = self.place(where)
        dtype = {"real": self.one(("f32", "", "bf16")), "positive": "f32", "integer": "i32", "condition": "bool"}[kind]
        default = ""
        if kind == "real" and self.chance(10):
            default = " = 0.5 ** (h + 1)" if "h" in index else " = 0.75"
        self.lines.append(f"tensor {name}: {dtype}[{', '.join(dims)}]{default}")
        self.tensors[name] = kind, index
        return f"{name}[{', '.join(index)}]"

    def place(self, where: Scope) -> tuple[list[str], tuple[str, ...]]:
        """Dimensions of a new tensor and how it is read: at indices in scope, at shifted ones, or in a table."""
        axes = [a for a in ("b", "h", "i", "j", "d", "e", *self.extents) if a in where.axes]
        dims, index = [], []
        for a in self.some(axes) or axes[:1]:
            size = self.extents.get(a) or SIZES[a]
            dims.append(size)
            shifted = (f"{size} - 1 - {a}", f"({a} + 1) % {size}", f"min({a} + 1, {size} - 1)", f"{a} // 2")
            index.append(self.one(shifted) if a != "i" and self.chance(15) else a)
        if {"i", "j"} <= where.axes and self.chance(25):
            r = self.number(1, 4)
            dims.append(str(2 * r + 1))
            index.append(
                self.one((f"clamp(i - j, -{r}, {r}) + {r}", f"abs(i - j) % {2 * r + 1}", f"(i + j) % {r + 1}"))
            )
        elif {"i", "j"} & where.axes and self.chance(15):
            dims.append("N")
            index.append(self.one(("clamp(i, 0, N - 1)", "i") if "i" in where.axes else ("min(2 * j, N - 1)",)))
        return (dims, tuple(index)) if dims else (["2"], ("1",))


def _readable(index: Sequence[str], where: Scope) -> bool:
    """Whether the indices that subscripts mention are in scope."""
    return all(name in where.axes for part in index for name in re.findall(r"\b[a-z]\b", part))


def tame(value: Real) -> Real:
    """The value, made smaller if it could be large."""
    text, bound = value
    if bound <= LARGEST:
        return value
    if bound > 8 * LARGEST:
        return f"tanh({text})", 1.0
    return f"0.125 * {grouped(text)}", LARGEST


def grouped(text: str) -> str:
    """The text as an operand of any operator."""
    if re.fullmatch(r"\w+|\d+\.\d+|\w+\[[^][]*\]", text) or (
        re.match(r"\w*\(", text) and _closes(text) == len(text) - 1
    ):
        return text
    return f"({text})"


def _closes(text: str) -> int:
    """Where the first bracket closes."""
    depth = 0
    for k, c in enumerate(text):
        depth += (c in "([") - (c in ")]")
        if c in ")]" and not depth:
            return k
    return -1
