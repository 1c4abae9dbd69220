"""Pointwise IR as a Python function over torch tensors: what `scaled_dot_product_attention` takes as a dense bias and
`flex_attention` as ``score_mod`` and ``mask_mod``. Used to build the peers a variant is measured against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from attnc.ir.construct import add, const, mul
from attnc.ir.node import Add, Axis, Call, Const, Iverson, Load, Node, Prod, Size, Sum, Var
from attnc.ir.walk import postorder, replace, substitute

if TYPE_CHECKING:
    import torch


class NotPointwise(ValueError):
    """The expression holds a reduction, or something else that is no function of single elements."""


INFIX = {
    "lt": "<",
    "le": "<=",
    "eq": "==",
    "floordiv": "//",
    "mod": "%",
    "and": "&",
    "or": "|",
    "bitand": "&",
    "bitor": "|",
    "bitxor": "^",
}
PREFIX = {
    "exp": "torch.exp({0})",
    "exp2": "torch.exp2({0})",
    "log": "torch.log({0})",
    "log2": "torch.log2({0})",
    "sqrt": "torch.sqrt({0})",
    "rsqrt": "torch.rsqrt({0})",
    "reciprocal": "(1.0 / {0})",
    "reciprocal_or_zero": "torch.where({0} == 0, 0.0, 1.0 / {0})",
    "tanh": "torch.tanh({0})",
    "sigmoid": "torch.sigmoid({0})",
    "softplus": "torch.nn.functional.softplus({0})",
    "erf": "torch.erf({0})",
    "sin": "torch.sin({0})",
    "cos": "torch.cos({0})",
    "sign": "torch.sign({0})",
    "finite_or_zero": "torch.where({0} == -float('inf'), 0.0, {0})",
    "detach": "{0}",
    "abs": "torch.abs({0})",
    "floor": "torch.floor({0})",
    "maximum": "torch.where({0} > {1}, {0}, {1})",
    "minimum": "torch.where({0} < {1}, {0}, {1})",
    "pow": "torch.pow({0}, {1})",
    "floor_log2": "(torch.frexp(({0}) * 1.0)[1] - 1)",
    "power_of_two": "(1 << {0})",
    "where": "torch.where({0}, {1}, {2})",
    "not": "torch.logical_not({0})",
}


def with_sizes(node: Node, sizes: Mapping[str, int]) -> Node:
    """The expression with numbers for sizes, folded."""
    known: dict[Node, Node] = {
        n: const(sizes[n.name]) for n in postorder([node]) if isinstance(n, Size) and n.name in sizes
    }
    return replace([node], known)[0]


def unrolled(node: Node, extents: Mapping[str, int]) -> Node:
    """Sums over short axes written out; raises `NotPointwise` for any other reduction."""
    memo: dict[Node, Node] = {}
    for n in postorder([node]):
        (rebuilt,) = replace([n], {c: memo[c] for c in n.children}) if n.children else (n,)
        if isinstance(rebuilt, Sum):
            rebuilt = _written_out(rebuilt, extents)
        elif type(rebuilt).__name__ == "Max":
            raise NotPointwise("it holds a maximum over an axis")
        memo[n] = rebuilt
    return memo[node]


def _written_out(node: Sum, extents: Mapping[str, int]) -> Node:
    if node.scatter or node.domain or any(a.rstrip("'") not in extents for a in node.bound):
        raise NotPointwise("it holds a sum over an axis that is not a short constant")
    terms = [mul(*node.factors)]
    for a in sorted(node.bound):
        terms = [substitute(t, {a: const(k)}) for t in terms for k in range(extents[a.rstrip("'")])]
    return add(*terms)


def python_source(node: Node, name: str, arguments: tuple[str, ...], axes: Mapping[str, str]) -> str:
    """A function definition computing `node`.

    Args:
        node: pointwise; sizes already replaced by numbers.
        name: of the function.
        arguments: its parameters; `Var` nodes refer to them by name.
        axes: axis name to the parameter that holds its position.
    """
    lines = [f"def {name}({', '.join(arguments)}):"]
    text: dict[Node, str] = {}
    for count, n in enumerate(postorder([node])):
        spelt = _spell(n, text, axes)
        if n.children and not isinstance(n, Load):
            lines.append(f"    x{count} = {spelt}")
            spelt = f"x{count}"
        text[n] = spelt
    return "\n".join([*lines, f"    return {text[node]}"]) + "\n"


def _spell(n: Node, text: Mapping[Node, str], axes: Mapping[str, str]) -> str:
    match n:
        case Const():
            return repr(n.value) if n.value not in (float("inf"), -float("inf")) else f"float('{n.value}')"
        case Axis():
            return axes[n.name]
        case Var():
            return n.name
        case Load():
            return f"{n.tensor}[{', '.join(text[x] for x in n.index)}]"
        case Add():
            return " + ".join(text[t] for t in n.terms)
        case Prod():
            return _product(n, text)
        case Iverson():
            return f"torch.where({text[n.condition]}, 1.0, 0.0)"
        case Call() if n.fn in INFIX:
            return f" {INFIX[n.fn]} ".join(f"({text[a]})" for a in n.args)
        case Call() if n.fn in PREFIX:
            return PREFIX[n.fn].format(*(text[a] for a in n.args))
        case _:
            raise NotPointwise(f"no way to write {type(n).__name__} pointwise")


def _product(n: Prod, text: Mapping[Node, str]) -> str:
    values = " * ".join(text[f] for f in n.factors if not isinstance(f, Iverson)) or "1.0"
    for f in n.factors:
        if isinstance(f, Iverson):
            values = f"torch.where({text[f.condition]}, {values}, 0.0)"
    return values


def python_function(
    node: Node, name: str, arguments: tuple[str, ...], axes: Mapping[str, str], tensors: Mapping[str, torch.Tensor]
) -> Callable[..., Any]:
    """The function of `python_source`, closed over the tensors it reads. Its text holds only what this module wrote."""
    import torch

    scope: dict[str, Any] = {"torch": torch, **tensors}
    exec(compile(python_source(node, name, arguments, axes), f"<{name}>", "exec"), scope)
    made: Callable[..., Any] = scope[name]
    return made
