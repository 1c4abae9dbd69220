"""What is known about indices without running them."""

from __future__ import annotations

from attnc.codegen.tile import Assign, Kernel, statements
from attnc.ir.node import Axis, Call, Node, Size, Var


def within(kernel: Kernel, index: Node, extent: Node) -> bool:
    """Whether a uniform index is in [0, extent): a grid axis of that extent, or h // (H // G), where G divides H."""
    grid = dict(zip(kernel.grid, kernel.grid_extents, strict=True))
    match index:
        case Axis():
            return grid.get(index.name) is extent
        case Var():
            values = {s.value for s in statements(kernel.body) if isinstance(s, Assign) and s.target is index}
            return len(values) == 1 and within(kernel, next(iter(values)), extent)
        case Call() if index.fn == "floordiv":
            head, group = index.args
            return (
                isinstance(head, Axis)
                and isinstance(group, Call)
                and group.fn == "floordiv"
                and isinstance(group.args[0], Size)
                and grid.get(head.name) is group.args[0]
                and group.args[1] is extent
            )
        case _:
            return False
