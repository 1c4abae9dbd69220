"""Sums over one axis: reductions and matrix products."""

from __future__ import annotations

from attnc.codegen.triton.environment import Environment
from attnc.codegen.triton.facts import NARROW
from attnc.codegen.triton.text import ATOM, TERM, Text
from attnc.ir.construct import axis
from attnc.ir.node import Max, Sum, Var

PRECISION = {"f32": 'input_precision="ieee"', "tf32": 'input_precision="tf32"'}
"""How f32 is multiplied; Triton's own default differs between devices."""
FULL = "max_num_imprecise_acc=32"
"""Sums over products of eight bits: tensor cores keep fourteen digits of them, so they are added up in f32 after each
instruction. With 0 Triton would not use these tensor cores at all."""
TRITON_TYPES = {
    "f64": "tl.float64",
    "f32": "tl.float32",
    "tf32": "tl.float32",
    "f16": "tl.float16",
    "bf16": "tl.bfloat16",
    "f8": "tl.float8e4nv",
    "i64": "tl.int64",
    "i32": "tl.int32",
    "i16": "tl.int16",
    "i8": "tl.int8",
    "u8": "tl.uint8",
    "bool": "tl.int1",
}


class Reductions:
    """Prints `Sum` and `Max` nodes of tile variables."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self.facts = env.facts
        self.layout = env.layout
        self.expressions = env.expressions

    def maximum(self, node: Max) -> Text:
        (bound,) = node.bound
        body = self.expressions.text(node.body)
        guarded = self._guard(body, bound, 'float("-inf")') if self.env.padded(bound) else body
        return self._reduce("tl.max", guarded, bound)

    def total(self, node: Sum) -> Text:
        """A sum that is not a matrix product."""
        (bound,) = node.bound
        texts = [self.expressions.text(f) for f in node.factors]
        product = self.layout.infix("*", texts, TERM)
        zeros = [isinstance(f, Var) and bound in self.facts[f].zero for f in node.factors]
        if self.env.padded(bound) and not all(zeros):
            product = self._guard(product, bound, "0.0")
        return self._reduce("tl.sum", product, bound)

    def _reduce(self, function: str, text: Text, bound: str) -> Text:
        if bound not in text.axes:
            raise ValueError(f"nothing to reduce over {bound} in {text.code}")
        left = tuple(a for a in text.axes if a != bound)
        return Text(f"{function}({text.code}, axis={text.axes.index(bound)})", left)

    def _guard(self, text: Text, bound: str, neutral: str) -> Text:
        lane = self.layout.spread(self.expressions.text(axis(bound)), text.axes)
        inside = self.expressions.compare("<", lane, self.env.extent(bound))
        return self.layout.call("tl.where", inside, text, Text(neutral))

    def operands(self, node: Sum) -> tuple[Var, Var] | None:
        """Left and right operand if `node` is a matrix product, the left one being spread over the earlier lane."""
        if len(node.factors) != 2:
            return None
        (bound,) = node.bound
        left, right = (f for f in node.factors if isinstance(f, Var))
        free = [tuple(a for a in self.env.kept(v).axes if a != bound) for v in (left, right)]
        both = all(bound in self.env.kept(v).axes for v in (left, right))
        if not both or len(free[0]) != 1 or len(free[1]) != 1 or free[0] == free[1]:
            return None
        order = self.layout.order
        return (left, right) if order.index(free[0][0]) < order.index(free[1][0]) else (right, left)

    def matrix_product(self, node: Sum, pair: tuple[Var, Var], accumulator: str | None = None) -> Text:
        (bound,) = node.bound
        a, b, kind = self._converted(*pair)
        a, b = (self._clean(t, v, bound) for t, v in zip((a, b), pair, strict=True))
        free = tuple(x for t in (a, b) for x in t.axes if x != bound)
        first = a.code if a.axes[1] == bound else f"tl.trans({a.code})"
        second = b.code if b.axes[0] == bound else f"tl.trans({b.code})"
        eight = all(self.facts[v].storage == "f8" for v in pair)
        asked = [PRECISION[kind]] if kind in PRECISION else []
        arguments = [first, second, *([accumulator] if accumulator else []), *asked]
        arguments += [FULL] if eight and accumulator else []
        return Text(f"tl.dot({', '.join(arguments)})", free)

    def _converted(self, left: Var, right: Var) -> tuple[Text, Text, str]:
        """Both operands in one precision, and which: half or TF32 where a loaded operand is of it, or where both were
        computed from values of it, else f32."""
        kinds = self.facts[left].storage, self.facts[right].storage
        a, b = self.env.kept(left), self.env.kept(right)
        if kinds[0] == kinds[1] and kinds[0] in NARROW:
            return a, b, kinds[0]
        if kinds[0] in NARROW and self._narrows(right):
            return *self._beside(a, b, kinds[0]), kinds[0]
        if kinds[1] in NARROW and self._narrows(left):
            second, first = self._beside(b, a, kinds[1])
            return first, second, kinds[1]
        common = self._common(left, right)
        if common == "tf32":
            return a, b, common
        if common:
            kind = _roomy(common)
            return Text(f"{a.code}.to({kind})", a.axes), Text(f"{b.code}.to({kind})", b.axes), common
        return self.expressions.text(left), self.expressions.text(right), "f32"

    def _beside(self, stored: Text, computed: Text, dtype: str) -> tuple[Text, Text]:
        """An operand as it is stored, and one that was computed, in one dtype."""
        if dtype == "tf32":
            return stored, computed
        if dtype == "f8":
            kind = _roomy(dtype)
            first, second = (Text(f"{t.within(ATOM)}.to({kind})", t.axes) for t in (stored, computed))
            return first, second
        return stored, Text(f"{computed.within(ATOM)}.to({stored.code}.dtype)", computed.axes)

    def _narrows(self, operand: Var) -> bool:
        """Whether an operand may be rounded to half or TF32: it was computed, from such values among others or for
        pairs of positions. Such weights are rounded wherever they meet such values, whatever they were made from."""
        fact = self.facts[operand]
        return fact.storage == "f32" and (bool(fact.sources & NARROW) or self._is_plane(operand))

    def _is_plane(self, operand: Var) -> bool:
        lanes = self.env.kernel.lanes
        return {"outer", "inner"} <= {x.role for x in lanes if x.axis in self.env.kept(operand).axes}

    def _common(self, left: Var, right: Var) -> str | None:
        if not (self._narrows(left) and self._narrows(right)):
            return None
        shared = (self.facts[left].sources | self.facts[right].sources) & NARROW
        return next(iter(shared)) if len(shared) == 1 else None

    def _clean(self, text: Text, operand: Var, bound: str) -> Text:
        """The operand with 0 on padded lanes of the summed axis."""
        if not self.env.padded(bound) or bound in self.facts[operand].zero:
            return text
        return self._guard(text, bound, "0.0")


def _roomy(dtype: str) -> str:
    """The type that values computed from a half type are rounded to: eight bits end at 448, which what was computed
    may exceed."""
    return TRITON_TYPES["bf16" if dtype == "f8" else dtype]
