"""Tile programs as Triton modules that read like hand-written ones."""

from __future__ import annotations

from collections.abc import Iterable

from attnc.codegen.tile import Kernel, Loop
from attnc.codegen.triton.emitter import Emitter
from attnc.codegen.triton.environment import Environment
from attnc.codegen.triton.helpers import HELPERS
from attnc.codegen.triton.names import identifier
from attnc.codegen.triton.statements import Statements
from attnc.codegen.triton.text import ATOM
from attnc.ir.node import Node, Var
from attnc.ir.walk import postorder

HEADER = "import triton\nimport triton.language as tl\n"


def print_module(
    kernels: Iterable[Kernel], *, widen: bool = False, wide: bool = False, descriptors: bool = False
) -> str:
    """A Python module with one function per kernel and the helpers they use.

    Args:
        widen: convert half-precision tensors as they are loaded and take products in f32: Triton's interpreter would
            multiply bit patterns of bf16.
        wide: compute offsets along sequences in 64 bits, for tensors of 2**31 elements and more per head.
        descriptors: load blocks of operands through tensor descriptors, where `attnc.codegen.triton.descriptors` can.

    Raises:
        ValueError: for kernels that compute in f64, and for malformed ones.
    """
    environments = [Environment(k) for k in kernels]
    bodies = [_function(env, widen=widen, wide=wide, descriptors=descriptors) for env in environments]
    used = set[str]().union(*(env.helpers for env in environments))
    functions = [source.strip("\n") + "\n" for name, source in HELPERS.items() if name in used]
    return "\n\n".join([HEADER, *functions, *bodies])


def print_kernel(kernel: Kernel, *, widen: bool = False, wide: bool = False, descriptors: bool = False) -> str:
    """A module with one kernel; see `print_module`."""
    return print_module([kernel], widen=widen, wide=wide, descriptors=descriptors)


def _function(env: Environment, *, widen: bool, wide: bool, descriptors: bool) -> str:
    """The body is printed first: the head defines what it turned out to use."""
    body = Emitter(depth=1)
    statements = Statements(env, body, widen=widen, wide=wide, descriptors=descriptors)
    statements.kernel()
    out = Emitter()
    _signature(env, out)
    with out.indent():
        _docstring(env.kernel.doc, out)
        _grid_point(env, out)
        _lanes(env, out)
        for line in statements.settled:
            out.line(line)
        for name, address in statements.addresses.scopes[0].bases.values():
            out.line(f"{name} = {address}")
        for line in statements.descriptors.lines.values() if statements.descriptors else ():
            out.line(line)
    out.lines += ["", *body.lines]
    return out.text()


def _signature(env: Environment, out: Emitter) -> None:
    rows: dict[str, list[str]] = {}
    for p in env.parameters:
        row = f"stride {p.of}" if p.role == "stride" else "constant" if p.role in ("extent", "pad") else p.role
        rows.setdefault(row, []).append(p.name + (": tl.constexpr" if p.constant else ""))
    out.line("@triton.jit")
    out.line(f"def {identifier(env.kernel.name)}(")
    with out.indent():
        for names in rows.values():
            out.packed(names)
    out.line("):")


def _docstring(doc: str, out: Emitter) -> None:
    lines = doc.replace("\\", "/").replace('"""', "'''").splitlines()
    if len(lines) == 1:
        out.line(f'"""{lines[0]}"""')
    elif lines:
        for text in (f'"""{lines[0]}', *lines[1:], '"""'):
            out.raw(text)


def _grid_point(env: Environment, out: Emitter) -> None:
    """Which block this is. Blocks of the outer axis vary fastest, so that neighbours share what they read; those with
    the longest loops come first, so that short ones fill the gaps at the end."""
    kernel, outer = env.kernel, env.kernel.outer
    rest = "pid"
    if outer is not None or kernel.grid:
        out.line("pid = tl.program_id(0)")
    if outer is not None:
        block, extent = env.block(outer), env.extent(outer).code
        first = env.names.get("edge", f"{outer}_first")
        count = env.names.get("count", outer, f"{outer}_blocks")
        out.line(f"{count} = tl.cdiv({extent}, {block})")
        if _grows(env):
            out.note(f"the later a block of {outer}, the longer its loop: the longest first")
            out.line(f"{first} = ({count} - 1 - pid % {count}) * {block}")
        else:
            out.line(f"{first} = (pid % {count}) * {block}")
        if f"{outer}_last" in env.edges:
            out.line(f"{env.edge(f'{outer}_last')} = tl.minimum({first} + {block}, {extent}) - 1")
        rest = f"pid // {count}"
    if len(kernel.grid) > 1 and outer is not None:
        out.line(f"batch = {rest}")
        rest = "batch"
    for k in range(len(kernel.grid) - 1, -1, -1):
        name = env.axis(kernel.grid[k]).code
        extent = env.expressions.text(kernel.grid_extents[k]).within(ATOM)
        out.line(f"{name} = {rest} % {extent}" if k else f"{name} = {rest}")
        rest = f"{rest} // {extent}"


def _grows(env: Environment) -> bool:
    """Whether loops begin where they do for every block of the outer axis, and end the later the later the block."""
    loops = [s for s in env.kernel.body if isinstance(s, Loop)]
    edges = {f"{env.kernel.outer}_first", f"{env.kernel.outer}_last"}

    def moves(node: Node) -> bool:
        return any(isinstance(n, Var) and n.name in edges for n in postorder([env.defined(node)]))

    return bool(loops) and not moves(loops[0].start) and moves(loops[-1].stop)


def _lanes(env: Environment, out: Emitter) -> None:
    outer = env.kernel.outer
    if outer is not None:
        out.line(f"{env.lane(outer).code} = {env.edge(f'{outer}_first')} + tl.arange(0, {env.length(outer)})")
    for lane in env.kernel.lanes:
        if lane.axis in env.channels:
            out.line(f"{env.lane(lane.axis).code} = tl.arange(0, {env.length(lane.axis)})")
