"""The same variant through PyTorch's own attention, where that can say it: the yardsticks of `run`, `bench` and
`benchmarks/`.

Whether it can is read off the program: the output must be softmax attention over j of some score (checked by building
that program from the score and comparing, which hash-consing makes an identity test), and the score must be a
function of ``dot(q, k)`` and of values that do not involve q, k or v.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attnc.ir.construct import ONE, add, axis, call, const, is_const, mul, sum_over, var
from attnc.ir.node import Add, Const, Load, Max, Node, Prod, Sum
from attnc.ir.program import Program
from attnc.ir.walk import postorder, replace
from attnc.testing.pointwise import NotPointwise, python_function, unrolled, with_sizes

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

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
    """

    score: Node
    mask: tuple[Node, ...]
    sizes: dict[str, int] = field(default_factory=dict)


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
    if root is not _softmax_attention(maxima[0], root):
        return NotExpressible("its weights or its output are more than a softmax over the keys")
    products = [n for n in postorder([score]) if isinstance(n, Sum) and _is_query_key_product(n)]
    if len(products) != 1:
        return NotExpressible("its score is not a function of dot(q, k)")
    (score,) = replace([score], {products[0]: SCORE})
    try:
        short = _short_axes(program, sizes)
        score = unrolled(with_sizes(score, sizes), short)
        mask = tuple(unrolled(with_sizes(m, sizes), short) for m in domain)
    except NotPointwise as problem:
        return NotExpressible(f"its score or mask is not computed pair by pair: {problem}")
    if {n.tensor for n in postorder([score, *mask]) if isinstance(n, Load)} & {"q", "k", "v"}:
        return NotExpressible("its score uses q, k or v outside dot(q, k)")
    return SoftmaxForm(score, mask, dict(sizes))


def _softmax_attention(top: Max, root: Node) -> Node | None:
    """What `root` would be if it were plain softmax attention over the score under `top`."""
    values = [n for n in postorder([root]) if isinstance(n, Load) and n.tensor == "v"]
    if len(values) != 1:
        return None
    shift = call("finite_or_zero", call("detach", top))
    weight = call("exp", add(top.body, mul(const(-1), shift)))
    total = sum_over({"j"}, (weight,), top.domain)
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


# --------------------------------------------------------------------------------------------------------- SDPA


@dataclass(frozen=True, slots=True)
class Peer:
    """An equivalent call: ``run(q, k, v)``, what was done for it beforehand, and its name."""

    name: str
    run: Callable[..., Any]
    note: str


GRID = {"b": "b", "h": "h", "i": "i", "j": "j"}


def sdpa(program: Program, tensors: Tensors, sizes: Mapping[str, int]) -> Peer | NotExpressible:
    """``scaled_dot_product_attention`` with the bias and the mask materialised beforehand (and without a gradient for
    the bias)."""
    from torch.nn.functional import scaled_dot_product_attention

    form = softmax_form(program, sizes)
    if isinstance(form, NotExpressible):
        return form
    split = linear_in_score(form.score)
    if split is None or not isinstance(split[0], Const):
        return NotExpressible("SDPA takes scale * dot(q, k) + bias, and its score is not of that form")
    scale = float(split[0].value)
    grouped = sizes["G"] != sizes["H"]
    if is_const(split[1], 0) and is_causal(form) and sizes["M"] == sizes["N"]:

        def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)

        return Peer("SDPA, is_causal", causal, "the same computation")
    extra = _dense_mask(form, split[1], tensors, sizes)

    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=extra, scale=scale, enable_gqa=grouped)

    if extra is None:
        return Peer("SDPA", masked, "the same computation")
    mib = extra.numel() * extra.element_size() / 2**20
    return Peer(
        "SDPA, attn_mask", masked, f"bias and mask made beforehand as a dense {mib:.0f} MiB tensor, no gradient for it"
    )


def is_causal(form: SoftmaxForm) -> bool:
    """Whether the mask is exactly ``j <= i`` (at q_start = 0)."""
    return form.mask == (call("le", axis("j"), axis("i")),)


def _dense_mask(form: SoftmaxForm, bias: Node, tensors: Tensors, sizes: Mapping[str, int]) -> torch.Tensor | None:
    import torch

    q = tensors["q"]
    where = {
        name: torch.arange(sizes[size], device=q.device).reshape([-1 if k == dim else 1 for k in range(4)])
        for dim, (name, size) in enumerate((("b", "B"), ("h", "H"), ("i", "M"), ("j", "N")))
    }
    detached = {n: t.detach() for n, t in tensors.items()}

    def evaluate(node: Node) -> torch.Tensor:
        made = python_function(node, "bias", ("b", "h", "i", "j"), GRID, detached)(*(where[a] for a in "bhij"))
        return torch.as_tensor(made, device=q.device)

    allowed = [evaluate(m) for m in form.mask]
    mask = torch.stack(torch.broadcast_tensors(*allowed)).all(0) if allowed else None
    if is_const(bias, 0):
        return None if mask is None else _plane(mask, sizes)
    value = evaluate(bias).to(q.dtype)
    if mask is not None:
        value = torch.where(mask, value, torch.tensor(-torch.inf, dtype=q.dtype, device=q.device))
    return _plane(value, sizes)


def _plane(value: torch.Tensor, sizes: Mapping[str, int]) -> torch.Tensor:
    """Batch and heads may broadcast; the last two dimensions are written out, as SDPA's kernels want them."""
    return value.expand(*value.shape[:2], sizes["M"], sizes["N"]).contiguous()


# ----------------------------------------------------------------------------------------------- FlexAttention


def flex(
    program: Program, tensors: Tensors, sizes: Mapping[str, int], *, compiled: bool = True
) -> Peer | NotExpressible:
    """Compiled ``flex_attention`` with a generated ``score_mod`` and a block mask made beforehand."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    form = softmax_form(program, sizes)
    if isinstance(form, NotExpressible):
        return form
    scale = sizes["D"] ** -0.5
    (score,) = replace([form.score], {SCORE: mul(const(1 / scale), SCORE)})
    device = tensors["q"].device
    modify = None
    if score is not SCORE:
        arguments = ("score", "b", "h", "i", "j")
        modify = python_function(score, "score_mod", arguments, GRID, tensors)
    block_mask = None
    if form.mask:
        condition = call("and", *form.mask)
        allowed = python_function(
            condition, "mask_mod", ("b", "h", "i", "j"), GRID, {n: t.detach() for n, t in tensors.items()}
        )
        block_mask = create_block_mask(
            allowed,
            sizes["B"] if _mentions(condition, "b") else None,
            sizes["H"] if _mentions(condition, "h") else None,
            sizes["M"],
            sizes["N"],
            device=str(device),
        )
    grouped = sizes["G"] != sizes["H"]
    attention = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return attention(q, k, v, score_mod=modify, block_mask=block_mask, scale=scale, enable_gqa=grouped)

    return Peer("FlexAttention", run, "compiled; block mask made beforehand")


def _mentions(node: Node, name: str) -> bool:
    return name in node.axes
