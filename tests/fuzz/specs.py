"""Random well-typed specs, with sizes of a call and the seed of its inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from attnc.ir.options import REWRITES
from tests.fuzz.expressions import LARGEST, Scope, Writer, scope

LENGTHS = (1, 2, 3, 5, 7, 16, 17, 23, 33, 40)
HEADS = ((1, 1), (2, 2), (2, 1), (4, 2), (3, 3), (6, 2))


@dataclass(frozen=True)
class Case:
    """A spec and a call of it.

    Attributes:
        text: the spec.
        sizes: every size, and q_start.
        seed: of the inputs.
        disabled: rewrites turned off in the second run.
    """

    text: str
    sizes: tuple[tuple[str, int], ...]
    seed: int = 0
    disabled: tuple[str, ...] = ()

    def __str__(self) -> str:
        sizes = " ".join(f"{n}={v}" for n, v in self.sizes)
        return f"# call: {sizes} seed={self.seed}\n# disable: {' '.join(self.disabled)}\n{self.text}"

    @staticmethod
    def parse(text: str) -> Case:
        """The case that a regression file describes."""
        call = re.search(r"^# call: (.*)$", text, re.M)
        off = re.search(r"^# disable: *(.*)$", text, re.M)
        given = {n: int(v) for n, v in (p.split("=") for p in call[1].split())} if call else {}
        seed = given.pop("seed", 0)
        return Case(text, tuple(given.items()), seed, tuple(off[1].split()) if off else ())


@st.composite
def cases(draw: Any) -> Case:
    """A spec, small sizes for it, and rewrites to turn off."""
    spec = _Spec(Writer(draw))
    text = spec.text()
    w = spec.writer
    heads, groups = w.one(HEADS)
    n = w.one(LENGTHS)
    m = n if w.chance(50) else w.one(LENGTHS)
    sizes = {"B": w.one([1, 2]), "H": heads, "G": groups, "M": m, "N": n}
    sizes |= {"D": w.one([4, 1, 2, 3, 8]), "E": w.one([3, 1, 2, 5])}
    sizes |= {"L": w.one([2, 1, 3, 5, 9, 17])} if "size L" in text else {}
    sizes["q_start"] = w.one([0, 0, 0, max(0, n - m), 1, 5])
    return Case(text, tuple(sizes.items()), w.number(0, 9), tuple(sorted(w.some(list(REWRITES)))))


class _Spec:
    """One spec under construction: declarations in the writer, sections in the body."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.body: list[str] = []

    def text(self) -> str:
        w = self.writer
        self.declare_indices()
        sections = (
            (self.let, 25),
            (self.stage_through_tokens, 10),
            (self.operands, 25),
            (self.score, 40),
            (self.bias, 35),
            (self.mask, 70),
            (self.normaliser, 65),
            (self.weight, 30),
            (self.output, 15),
            (self.gate, 20),
            (self.observe, 30),
            (self.observe, 15),
        )
        for make, percent in sections:
            if w.chance(percent):
                make()
        doc = ['"A generated spec."'] if w.chance(5) else []
        return "\n".join(["attention generated", *doc, *w.lines, *self.body]) + "\n"

    def put(self, section: str, template: str, where: Scope) -> str:
        """Add a section whose value fills a template, and return the value."""
        value, _ = self.writer.fill((template, 1.0), where)
        self.body.append(f"{section} = {value}")
        return value

    def declare_indices(self) -> None:
        if self.writer.chance(12):
            self.writer.extents["c"] = "3"
            self.writer.lines.append("index c: 3")
        if self.writer.chance(12):
            self.declare_tokens()

    def declare_tokens(self) -> None:
        w = self.writer
        w.extents["a"] = "L"
        w.lines += ["size L", "index a: L", "tensor r: f32[L]"]
        w.tensors["r"] = "real", ("a",)

    def let(self) -> None:
        w = self.writer
        axes = w.one(("bhij", "bhi", "j", "h", "bhid", "ij", "bhj"))
        text, bound = w.real(scope(axes, depth=2))
        w.lines.append(f"let x0 = {text}")
        w.lets["x0"] = frozenset(axes), bound

    def stage_through_tokens(self) -> None:
        """A value over declared tokens, gathered from keys and read back by the output."""
        w = self.writer
        if "a" not in w.extents:
            self.declare_tokens()
        given = w.fill(("sum[j](softmax[j]({r}) * v[j, e])", 1.0), scope("bhaj", depth=2))[0]
        w.lines.append(f"let y0[a, e] = {given}")
        self.put("output", "sum[j](w * v[j]) + sum[a](softmax[a]({r}) * y0[a, e])", scope("bhai", depth=2))

    def operands(self) -> None:
        w = self.writer
        own = {"query": "q[i, d]", "key": "k[j, d]", "value": "v[j, e]"}
        axes = {"query": "bhid", "key": "bjd", "value": "bje"}
        for name in w.some(list(own)):
            x, channel = own[name], own[name][-2]
            template = w.one((f"{x} * rsqrt(0.3 + sum[{channel}]({x} ** 2))", f"{x} * {{r}} + 0.5", "tanh({r})"))
            self.put(name, template, scope(axes[name], depth=2))

    def score(self) -> None:
        self.put("score", self.writer.one(("{r}", "{r} + dot(q, k) / sqrt(D)", "dot(q, k) * {r}")), scope("bhij"))

    def bias(self) -> None:
        self.put("bias", "{r}", scope("bhij"))

    def mask(self) -> None:
        w = self.writer
        c, r = w.number(1, 20), w.number(2, 5)
        here = scope("bhij", depth=1)
        kind = w.one(("affine", "affine", "document", "length", "flag", "any", "any and causal", "any or diagonal"))
        match kind:
            case "affine":
                near = (f"0 <= i - j < {c}", f"abs(i - j) < {c}", f"i // {r} == j // {r}", f"(i - j) % {r} == 0")
                more = (f"j <= i and j // {r} >= i // {r} - 1", f"j < {c} or j <= i", "j >= i", "h % 2 == 0 or j <= i")
                grid = (f"abs(i // {r} - j // {r}) + abs(i % {r} - j % {r}) <= {c}", f"i - j != {c}", "false")
                template = w.one(("j <= i", *near, *more, *grid))
            case "document":
                w.lines.append("tensor doc: i32[B, N]")
                template = w.one(("doc[b, i] == doc[b, j]", "j <= i and doc[b, i] == doc[b, j]"))
            case "length":
                template = f"j < {w.tensor(scope('bh'), 'integer')} + {c}"
            case "flag":
                template = w.one(("{f}", "j <= i and {f}", "not {f}")).replace("{f}", w.tensor(here, "condition"))
            case _:
                template = {"any": "{c}", "any and causal": "{c} and j <= i", "any or diagonal": "{c} or i == j"}[kind]
        self.put("mask", template, here)

    def normaliser(self) -> None:
        w = self.writer
        known = ["softmax", "none", "sigmoid", "softmax1", "relu2", "l1(softplus(s))", "softmax(axis = i)", "l1({p})"]
        known += ["softmax(sink = {r})", f"sinkhorn({w.number(1, 3)})", "softmax(axis = i, sink = 0.5)"]
        own = [
            "softplus(s) / sum[j](softplus(s))",
            "exp(s) / (1 + sum[j](exp(s)))",
            "s - mean[j](s)",
            "softmax[j]({r})",
        ]
        own += ["tanh(s) * rsqrt(1 + sum[j](s * s))", "0.5 * (softmax[j](s) + softmax[i](s))", "{r}"]
        own += ["{t} * {t} / (0.1 + sum[j]({t} * {t}))", "exp(s - max[j](s)) / 2", "sigmoid({r}) * softmax[j](s)"]
        if w.chance(40):
            where = Scope(frozenset("bhij"), "", (("s", frozenset("bhij"), LARGEST),), 2)
            self.put("normaliser(s)", w.one(own), where)
        else:
            template = w.one(known)
            inner = Scope(frozenset("bhij"), "", (("s", frozenset("bhij"), LARGEST),), 2)
            self.put("normaliser", template, scope("bhi", depth=1) if "sink" in template else inner)

    def weight(self) -> None:
        forms = ["p * {r}", "p / (0.1 + sum[j](abs(p) * {p}))", "p - mean[j](p)", "p * p / (0.01 + sum[j](p * p))"]
        forms += [
            "where({c}, p, 0.5 * p)",
            "0.3 * p + 0.2 * detach(p)",
            "{r}",
            "p ** 2",
            "p * {p} / (1 + sum[j](abs(p)))",
        ]
        self.put("weight", self.writer.one(forms), scope("bhij", "sp", 2))

    def output(self) -> None:
        if any(line.startswith("output") for line in self.body):
            return
        w = self.writer
        if w.chance(40):
            forms = ("sum[j](w * v[j])", "w", "sum[j](w * v[j, e] * {r})", "sum[j](w * {r} * v[j, e]) + q[i, 0]")
            self.put("output", w.one(forms), scope("bhije", "spw", 2))
        else:
            outside = ("sum[j](w * v[j]) * {r}", "sum[j](w * v[j]) + {r}", "max[j](w * v[j, e]) * {p}")
            self.put("output", w.one(outside), scope("bhie", "", 2))

    def gate(self) -> None:
        plane = any(line == "output = w" for line in self.body)
        where = scope("bhij", "", 2) if plane else scope("bhie", "o", 2)
        self.put("gate", self.writer.one(("sigmoid({r})", "{r}")), where)

    def observe(self) -> None:
        w = self.writer
        name = f"observe z{sum(line.startswith('observe') for line in self.body)}"
        if w.chance(30):
            axes = "".join(w.some("bhi")) or "h"
            self.put(name, "{r}", scope(axes, "", 2))
            return
        forms = ["sum[j](p * {r})", "-sum[j](xlogy(abs(p) + 0.1, abs(p) + 0.1))", "sum[i](p)", "sum[i](w * {r})", "s"]
        forms += ["sum[i](sum[j](w * w))", "max[j](s + 0.1 * {r})", "sum[i, j](p * {r})", "max[i](s)", "{r}"]
        self.put(name, w.one(forms), scope("bhij", "spw", 2))
