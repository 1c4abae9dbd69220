"""Tile programs as Triton modules that read like hand-written ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from attnc.codegen.tile import Kernel, Loop, statements
from attnc.codegen.triton.emitter import Emitter
from attnc.codegen.triton.environment import Environment
from attnc.codegen.triton.helpers import HELPERS
from attnc.codegen.triton.names import identifier
from attnc.codegen.triton.statements import Statements
from attnc.codegen.triton.text import ATOM
from attnc.ir.node import Node, Var
from attnc.ir.walk import postorder

TOGETHER = 32768
"""Positions of the inner axis, over all heads whose blocks take turns: with 128 channels in half precision, keys and
values of so many take 16 MiB, and stay in the second-level cache."""
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
    """Which block this is. Blocks of the outer axis vary fastest, so that neighbours share what they read, unless some
    have longer loops than others."""
    kernel, outer = env.kernel, env.kernel.outer
    rest = "pid"
    if outer is not None or kernel.grid:
        out.line("pid = tl.program_id(0)")
    if outer is not None:
        block, extent = env.block(outer), env.extent(outer).code
        first = env.names.get("edge", f"{outer}_first")
        count = env.names.get("count", outer, f"{outer}_blocks")
        out.line(f"{count} = tl.cdiv({extent}, {block})")
        longest = _longest(env)
        turns = _turns(env, out, count) if longest else None
        number = turns or f"pid % {count}"
        rest = "batch" if turns else f"pid // {count}"
        out.line(f"{first} = ({f'{count} - 1 - {number}' if longest == 'last' else number}) * {block}")
        if f"{outer}_last" in env.edges:
            out.line(f"{env.edge(f'{outer}_last')} = tl.minimum({first} + {block}, {extent}) - 1")
    if len(kernel.grid) > 1 and outer is not None and rest != "batch":
        out.line(f"batch = {rest}")
        rest = "batch"
    for k in range(len(kernel.grid) - 1, -1, -1):
        name = env.axis(kernel.grid[k]).code
        extent = env.expressions.text(kernel.grid_extents[k]).within(ATOM)
        out.line(f"{name} = {rest} % {extent}" if k else f"{name} = {rest}")
        rest = f"{rest} // {extent}"


def _turns(env: Environment, out: Emitter, count: str) -> str | None:
    """The number of a block where blocks of a few heads take turns, longest loops first; None if there are no heads."""
    kernel = env.kernel
    inner = next((x.axis for x in kernel.lanes if x.role == "inner"), None)
    if not kernel.grid or inner is None:
        return None
    batches, together, start, place = (
        env.names.get("order", x) for x in ("batches", "together", "batch_first", "place")
    )
    extents = " * ".join(env.expressions.text(x).within(ATOM) for x in kernel.grid_extents)
    out.note("the longest loops first, of as many heads as share a cache: short ones fill the gaps at the end")
    out.line(f"{batches} = {extents}")
    out.line(f"{together} = tl.minimum({batches}, {TOGETHER} // ({env.extent(inner).code} + 1) + 1)")
    out.line(f"{start} = pid // ({together} * {count}) * {together}")
    out.line(f"{place} = pid - {start} * {count}")
    out.line(f"{together} = tl.minimum({together}, {batches} - {start})")
    out.line(f"batch = {start} + {place} % {together}")
    return f"{place} // {together}"


def _longest(env: Environment) -> Literal["first", "last"] | None:
    """Which blocks of the outer axis have the longest loops, where these get longer or shorter from block to block."""
    loops = [s for s in statements(env.kernel.body) if isinstance(s, Loop) and s.axis != env.kernel.outer]
    edges = {f"{env.kernel.outer}_first", f"{env.kernel.outer}_last"}

    def moves(node: Node) -> bool:
        return any(isinstance(n, Var) and n.name in edges for n in postorder([env.explained(node)]))

    if not loops:
        return None
    match moves(loops[0].start), moves(loops[-1].stop):
        case False, True:
            return "last"
        case True, False:
            return "first"
        case _:
            return None


def _lanes(env: Environment, out: Emitter) -> None:
    outer = env.kernel.outer
    if outer is not None:
        out.line(f"{env.lane(outer).code} = {env.edge(f'{outer}_first')} + tl.arange(0, {env.length(outer)})")
    for lane in env.kernel.lanes:
        if lane.axis in env.channels:
            out.line(f"{env.lane(lane.axis).code} = tl.arange(0, {env.length(lane.axis)})")
