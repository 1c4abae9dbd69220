"""Optional tensors: the expressions that fill them when they are not given."""

from __future__ import annotations

from attnc.grammar.tree import TensorDecl
from attnc.ir.node import Kind, Load
from attnc.ir.walk import postorder
from attnc.lowering import checks
from attnc.lowering.names import DTYPES
from attnc.lowering.state import Lowering
from attnc.lowering.value import PLAIN, POISON, Scope, Value


def kind_of(dtype: str) -> Kind:
    return "b" if dtype == "bool" else "i" if dtype[0] in "iu" else "f"


def default_axes(state: Lowering, tensor: str) -> tuple[str, ...]:
    """A name for each dimension of a tensor: its own index, or a made-up one where it has none."""
    out: list[str] = []
    for k, dim in enumerate(state.dims[tensor]):
        name = dim.natural
        out.append(f"{tensor}_{k}" if name is None or name in out else name)
    return tuple(out)


def default_of(state: Lowering, tensor: TensorDecl) -> Value:
    """The default of an optional tensor, over the indices of its dimensions."""
    scope = state.scope(PLAIN)
    return state.once("tensor", tensor.name.id, PLAIN, tensor.span, scope, lambda: _lowered(state, tensor, scope))


def _lowered(state: Lowering, tensor: TensorDecl, scope: Scope) -> Value:
    """The default of an optional tensor: sizes, consts and the tensor's own indices, no data."""
    assert tensor.default is not None
    value = state.expression(tensor.default, scope)
    dtype = tensor.dtype.id if tensor.dtype and tensor.dtype.id in DTYPES else "q"
    match kind_of(dtype):
        case "b":
            fine = checks.want_truth(state, value, tensor.default, scope)
        case "i":
            fine = checks.want_integer(state, value, tensor.default, scope, f"a default of dtype {dtype}")
        case _:
            fine = checks.want_number(state, value, tensor.default, scope)
    if not fine or tensor.name.id not in state.dims:
        return POISON
    name = tensor.name.id
    data = sorted({n.tensor for n in postorder([value.node]) if isinstance(n, Load)})
    if data:
        message = f"the default of `{name}` reads `{data[0]}`; a default is made of sizes, consts and indices"
        return state.error("E122", scope, tensor.default.span, message, f"compute it in a `let` instead of in `{name}`")
    left = sorted(value.axes - set(default_axes(state, name)))
    if left:
        message = (
            f"the default of `{name}` depends on the index `{left[0]}`, which is the index of none of its dimensions"
        )
        remedy = f"give `{name}` a dimension of that index's size"
        return state.error("E122", scope, tensor.default.span, message, remedy)
    return value
