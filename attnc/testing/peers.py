"""The same variant through PyTorch's own attention, where that can say it: the yardsticks of `run`, `bench` and
`benchmarks/`.

Whether it can is read off the program (`attnc.testing.softmax_form`). A gate multiplies what comes out; a sink scales
it by sigmoid(lse - sink), where the log-sum-exp is to be had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnc.ir.construct import call, const, is_const, mul
from attnc.ir.node import Const, Node
from attnc.ir.program import Program
from attnc.ir.walk import replace
from attnc.testing.epilogue import epilogue
from attnc.testing.pointwise import python_function
from attnc.testing.softmax_form import SCORE, NotExpressible, SoftmaxForm, is_causal, linear_in_score, softmax_form

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

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
    if form.sink is not None:
        return NotExpressible("SDPA does not return the log-sum-exp that a sink is compared with")
    split = linear_in_score(form.score)
    if split is None or not isinstance(split[0], Const):
        return NotExpressible("SDPA takes scale * dot(q, k) + bias, and its score is not of that form")
    scale = float(split[0].value)
    grouped = sizes["G"] != sizes["H"]
    finish = epilogue(form, tensors, sizes)
    same = "the same computation" if form.plain else "the same computation, the gate after it"
    if is_const(split[1], 0) and is_causal(form) and sizes["M"] == sizes["N"]:

        def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return finish(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped))

        return Peer("SDPA, is_causal", causal, same)
    extra = _dense_mask(form, split[1], tensors, sizes)

    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return finish(scaled_dot_product_attention(q, k, v, attn_mask=extra, scale=scale, enable_gqa=grouped))

    if extra is None:
        return Peer("SDPA", masked, same)
    mib = extra.numel() * extra.element_size() / 2**20
    return Peer(
        "SDPA, attn_mask", masked, f"bias and mask made beforehand as a dense {mib:.0f} MiB tensor, no gradient for it"
    )


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
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

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
    attention: Callable[..., Any] = flex_attention
    finish = epilogue(form, tensors, sizes)
    if compiled:
        attention = torch.compile(flex_attention, dynamic=False)
        finish = finish if form.plain else torch.compile(finish, dynamic=False)
    options: dict[str, Any] = {"score_mod": modify, "block_mask": block_mask, "scale": scale, "enable_gqa": grouped}

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        if form.sink is None:
            return finish(attention(q, k, v, **options))
        o, aux = attention(q, k, v, return_aux=AuxRequest(lse=True), **options)
        return finish(o, aux.lse)

    around = "" if form.plain else "; sink and gate applied after it, compiled, no gradient for them"
    return Peer("FlexAttention", run, f"compiled; block mask made beforehand{around}")


def _mentions(node: Node, name: str) -> bool:
    return name in node.axes
