"""A variant as softmax attention, with what may surround it: read off its program.

The output must be softmax attention over j of some score, possibly with a sink in the denominator and times a gate
(checked by building that program from the score and comparing, which hash-consing makes an identity test), and the
score must be a function of ``dot(q, k)`` and of values that do not involve q, k or v.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from attnc.ir.construct import ONE, add, axis, call, const, mul, sum_over, var
from attnc.ir.node import Add, Call, Load, Max, Node, Prod, Sum
from attnc.ir.program import Program
from attnc.ir.walk import postorder, replace
from attnc.testing.pointwise import NotPointwise, unrolled, with_sizes

SCORE = var("score", ("b", "h", "i", "j"))


@dataclass(frozen=True, slots=True)
class NotExpressible:
    """Why a variant has no equivalent."""

    reason: str


@dataclass(frozen=True, slots=True)
class SoftmaxForm:
    """Softmax attention: weights ``softmax over j of score``, output the weighted sum of v.

    Attributes:
        score: over b, h, i, j, with `SCORE` for ``dot(q, k)`` and numbers for sizes; pointwise.
        mask: conditions that must all hold; empty when every pair is allowed.
        sink: a score over b, h, i that takes its share of the weights and has no value; None without one.
        gate: over b, h, i, e, multiplies the output.
    """

    score: Node
    mask: tuple[Node, ...]
    sizes: dict[str, int] = field(default_factory=dict)
    sink: Node | None = None
    gate: Node = ONE

    @property
    def plain(self) -> bool:
        """Whether nothing surrounds the softmax."""
        return self.sink is None and self.gate is ONE


def softmax_form(program: Program, sizes: Mapping[str, int]) -> SoftmaxForm | NotExpressible:
    """The variant as softmax attention at these sizes, or why it is none."""
    output = next((o for o in program.outputs if o.name == "o"), None)
    if output is None or len(output.parts) != 1:
        return NotExpressible("its output is not the weighted sum of v")
    root = output.parts[0][1]
    maxima = [n for n in postorder([root]) if isinstance(n, Max) and n.bound == frozenset("j")]
    if len(maxima) != 1:
        return NotExpressible("its weights are not a softmax over the keys")
    score, domain = maxima[0].body, maxima[0].domain
    sink, gate = _sink(maxima[0], root), _gate(maxima[0], root)
    attention = _softmax_attention(maxima[0], root, sink)
    if attention is None or root is not mul(gate, attention):
        return NotExpressible("its weights or its output are more than a softmax over the keys")
    products = [n for n in postorder([score]) if isinstance(n, Sum) and _is_query_key_product(n)]
    if len(products) != 1:
        return NotExpressible("its score is not a function of dot(q, k)")
    (score,) = replace([score], {products[0]: SCORE})
    try:
        short = _short_axes(program, sizes)
        score = unrolled(with_sizes(score, sizes), short)
        mask = tuple(unrolled(with_sizes(m, sizes), short) for m in domain)
        sink = None if sink is None else unrolled(with_sizes(sink, sizes), short)
        gate = unrolled(with_sizes(gate, sizes), short)
    except NotPointwise as problem:
        return NotExpressible(f"its score, mask, sink or gate is not computed from single elements: {problem}")
    around = [gate, *([] if sink is None else [sink])]
    if {n.tensor for n in postorder([score, *mask, *around]) if isinstance(n, Load)} & {"q", "k", "v"}:
        return NotExpressible("it uses q, k or v outside dot(q, k) and the sum of v")
    return SoftmaxForm(score, mask, dict(sizes), sink, gate)


def _sink(top: Max, root: Node) -> Node | None:
    """What is compared with the largest score to stabilise exponentials, if anything is."""
    for n in postorder([root]):
        if isinstance(n, Call) and n.fn == "maximum" and top in n.args:
            others = [a for a in n.args if a is not top]
            return others[0] if len(others) == 1 else None
    return None


def _gate(top: Max, root: Node) -> Node:
    """The factors of the output that have nothing to do with the softmax."""
    factors = root.factors if isinstance(root, Prod) else ()
    return mul(ONE, *(f for f in factors if top not in postorder([f])))


def _softmax_attention(top: Max, root: Node, sink: Node | None) -> Node | None:
    """What `root` would be if it were softmax attention over the score under `top`, with this sink."""
    values = [n for n in postorder([root]) if isinstance(n, Load) and n.tensor == "v"]
    if len(values) != 1:
        return None
    stable = top if sink is None else call("maximum", top, sink)
    shift = call("finite_or_zero", call("detach", stable))
    weight = call("exp", add(top.body, mul(const(-1), shift)))
    total = sum_over({"j"}, (weight,), top.domain)
    if sink is not None:
        total = add(total, call("exp", add(sink, mul(const(-1), shift))))
    return sum_over({"j"}, (mul(weight, call("reciprocal_or_zero", total)), values[0]), top.domain)


def _is_query_key_product(node: Sum) -> bool:
    tensors = sorted(f.tensor for f in node.factors if isinstance(f, Load))
    return len(node.factors) == 2 and tensors == ["k", "q"] and not node.domain and len(node.bound) == 1


def _short_axes(program: Program, sizes: Mapping[str, int]) -> dict[str, int]:
    from attnc.testing.inputs import integer

    short: dict[str, int] = {}
    for name, info in program.axes.items():
        extent = integer(info.extent, sizes)
        if info.role == "channel" and name not in ("d", "e") and extent is not None and extent <= 16:
            short[name] = extent
    return short


def linear_in_score(node: Node) -> tuple[Node, Node] | None:
    """(a, b) with ``node = a * SCORE + b``, neither containing it; None when it is not of that form."""
    if node is SCORE:
        return ONE, const(0.0)
    if SCORE not in postorder([node]):
        return const(0.0), node
    if isinstance(node, Add):
        parts = [linear_in_score(t) for t in node.terms]
        if any(p is None for p in parts):
            return None
        good = [p for p in parts if p is not None]
        return add(*(a for a, _ in good)), add(*(b for _, b in good))
    if isinstance(node, Prod):
        inner = [f for f in node.factors if SCORE in postorder([f])]
        rest = [f for f in node.factors if f not in inner]
        part = linear_in_score(inner[0]) if len(inner) == 1 else None
        return None if part is None else (mul(part[0], *rest), mul(part[1], *rest))
    return None


def is_causal(form: SoftmaxForm) -> bool:
    """Whether the mask is exactly ``j <= i`` (at q_start = 0)."""
    return form.mask == (call("le", axis("j"), axis("i")),)
