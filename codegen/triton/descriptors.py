"""Block loads through tensor descriptors: on NVIDIA devices from sm_90 on, hardware that copies a box of a tensor into
shared memory, zeros beyond the tensor's ends, without a thread computing an address.

A descriptor covers the whole tensor and is made once, at the top of the kernel. Hardware asks for rows without gaps
between their elements and for strides of whole 16 bytes, so a launch takes these kernels where its tensors comply
(`complies`), and plain pointers elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attnc.codegen.tile import Assign, Kernel, Loop, statements
from attnc.codegen.triton.environment import Environment
from attnc.codegen.triton.facts import NARROW, Usage, precision, usage
from attnc.codegen.triton.parameters import evaluate, paddings
from attnc.ir.node import Axis, Load, Node, Var

FIRST = 90
"""The first generation of devices that has them."""
ALIGNED = 16
"""Bytes that addresses and strides are multiples of."""
FARTHEST = 2**40
"""No stride has as many bytes."""
RANKS = range(2, 6)
"""Dimensions of a tensor."""
BYTES = {"f32": 4, "f16": 2, "bf16": 2, "f8": 1}


def described(kernel: Kernel) -> dict[str, int]:
    """Tensors that have a descriptor, and the dimension that the loop moves along."""
    used = usage(kernel)
    loads = [
        (s.target, s.value)
        for loop in statements(kernel.body)
        if isinstance(loop, Loop)
        for s in statements(loop.body)
        if isinstance(s, Assign) and isinstance(s.value, Load)
    ]
    found = {(v.tensor, moving(kernel, used, t, v)) for t, v in loads}
    return {tensor: dim for tensor, dim in sorted(found, key=str) if dim is not None}


def moving(kernel: Kernel, used: Usage, target: Var, node: Load) -> int | None:
    """The dimension of a load that runs along the inner axis, if a descriptor can do it: an operand of matrix products
    as it lies in memory, whole rows of channels, at one position of every other axis."""
    argument = kernel.argument(node.tensor)
    kept = target in used.multiplied and target not in used.computed and target.kind == "f"
    if not (kept and precision(argument) in NARROW and argument.mode == "in" and len(argument.dims) in RANKS):
        return None
    inner = {x.axis for x in kernel.lanes if x.role == "inner"}
    lanes = {x.axis for x in kernel.lanes}
    *front, last = node.index
    along = [k for k, n in enumerate(front) if n.axes & lanes]
    if len(along) != 1 or not _whole(kernel, last, argument.dims[-1], set(paddings(kernel))):
        return None
    (dim,) = along
    return dim if _whole(kernel, front[dim], argument.dims[dim], inner) else None


def _whole(kernel: Kernel, index: Node, extent: Node, axes: set[str]) -> bool:
    """Whether an index is one of `axes`, which has this extent."""
    return isinstance(index, Axis) and index.name in axes and kernel.lane(index.name).extent is extent


def can_describe(kernel: Kernel, sizes: Mapping[str, int], target: str) -> bool:
    """Whether a kernel compiled for `target` may use descriptors, if its tensors lie in memory without gaps.

    Args:
        sizes: channel extents, and others as far as known.
    """
    if not target.startswith("sm_") or int(target[3:]) < FIRST:
        return False
    known = {**kernel.constants, **sizes}
    rows = [kernel.argument(t) for t in described(kernel)]
    return bool(rows) and all(evaluate(a.dims[-1], known) * BYTES[a.dtype] % ALIGNED == 0 for a in rows)


def complies(
    kernel: Kernel,
    shapes: Mapping[str, Sequence[int]],
    strides: Mapping[str, Sequence[int]],
    sizes: Mapping[str, int],
) -> bool:
    """Whether there are tensors to describe, and all of these shapes and strides can be.

    A dimension of length 1 that broadcasts cannot: to a descriptor, what lies beyond is 0.

    Args:
        shapes, strides: of the `described` tensors.
        sizes: as a launch knows them.
    """
    return bool(shapes) and all(_complies(kernel, t, shape, strides[t], sizes) for t, shape in shapes.items())


def _complies(
    kernel: Kernel, tensor: str, shape: Sequence[int], strides: Sequence[int], sizes: Mapping[str, int]
) -> bool:
    argument = kernel.argument(tensor)
    unit = ALIGNED // BYTES[argument.dtype]
    known = {**kernel.constants, **sizes}
    *front, last = strides
    return (
        last == 1
        and all(0 < s < FARTHEST // BYTES[argument.dtype] and s % unit == 0 for s in front)
        and all(n == evaluate(d, known) for n, d in zip(shape, argument.dims, strict=True))
    )


class Descriptors:
    """Prints descriptors and loads through them."""

    def __init__(self, env: Environment, used: Usage) -> None:
        self.env = env
        self.lines: dict[str, str] = {}
        self._usage = used

    def load(self, target: Var, node: Load) -> str | None:
        """``tensor[index]`` through a descriptor; None where it cannot be."""
        kernel = self.env.kernel
        dim = moving(kernel, self._usage, target, node)
        if dim is None or not isinstance(lane := node.index[dim], Axis) or lane.name not in self.env.firsts:
            return None
        channel = node.index[-1]
        assert isinstance(channel, Axis)
        if channel.name in self.env.singles or self.env.layout.sort((lane.name, channel.name))[0] != lane.name:
            return None
        name = self._descriptor(node.tensor, dim, lane.name, channel.name)
        expressions = self.env.expressions
        where = [expressions.text(n).code for n in node.index[:-1]]
        where[dim] = self.env.firsts[lane.name]
        box = self.env.shape((lane.name, channel.name))
        code = f"{name}.load([{', '.join([*where, '0'])}])"
        return f"{code}.reshape({box})" if len(node.index) > 2 else code

    def _descriptor(self, tensor: str, dim: int, inner: str, channel: str) -> str:
        name = self.env.names.get("descriptor", f"{tensor} {dim} {inner} {channel}", f"{tensor}_tiles")
        if name not in self.lines:
            argument = self.env.kernel.argument(tensor)
            shape = [self.env.expressions.text(d).code for d in argument.dims]
            strides = [self.env.stride(tensor, k) for k in range(len(shape) - 1)]
            box = ["1"] * len(shape)
            box[dim], box[-1] = self.env.length(inner), self.env.length(channel)
            parts = [f"{x}=[{', '.join(y)}]" for x, y in (("shape", shape), ("strides", [*strides, "1"]))]
            block = f"block_shape=[{', '.join(box)}]"
            pointer = self.env.pointer(tensor)
            self.lines[name] = f"{name} = tl.make_tensor_descriptor({pointer}, {', '.join(parts)}, {block})"
        return name
