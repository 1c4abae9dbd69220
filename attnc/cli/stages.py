"""Every stage of the compiler as text for people: what ``attnc inspect`` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields

from attnc.codegen.tile import Accumulate, AccumulateAt, AddTo, Assign, Each, Kernel, Loop, Scatter, Stmt, Store
from attnc.grammar.tree import Tree
from attnc.ir.node import Add, Call, Iverson, Max, Node, Prod, Sum, Var
from attnc.ir.printer import show
from attnc.ir.program import Program
from attnc.ir.walk import postorder
from attnc.passes.coverage import described
from attnc.passes.plan import Finish, Pass, Plan, expressions

# ---------------------------------------------------------------------------------------------------- syntax tree


def tree_text(node: Tree) -> str:
    """A syntax tree, one node per line, children indented; spans are left out."""
    return "\n".join(_tree_lines(node, 0, ""))


def _tree_lines(node: Tree, depth: int, label: str) -> Iterator[str]:
    plain, inner = [], []
    for f in fields(node):
        value = getattr(node, f.name)
        if f.name in ("span", "text") or value is None or value == ():
            continue
        if isinstance(value, tuple) or (isinstance(value, Tree) and type(value).__name__ != "Name"):
            inner.append((f.name, value))
        else:
            plain.append(f"{f.name}={_name(value)}")
    yield f"{'  ' * depth}{label}{type(node).__name__} {' '.join(plain)}".rstrip()
    for name, value in inner:
        yield from _child_lines(value, depth + 1, f"{name}: ")


def _child_lines(value: object, depth: int, label: str) -> Iterator[str]:
    if isinstance(value, Tree):
        yield from _tree_lines(value, depth, label)
    elif isinstance(value, tuple):
        for item in value:
            yield from _child_lines(item, depth, label)
    else:
        yield f"{'  ' * depth}{label}{value!r}"


def _name(value: object) -> str:
    if isinstance(value, str) and value.isidentifier():
        return value
    return str(getattr(value, "id", None) or repr(value))


# -------------------------------------------------------------------------------------------------------------- IR


def program_text(program: Program) -> str:
    """A program: its tensors and sizes, then shared values as ``%n = ...``, then its outputs."""
    lines = [f"program {program.name}"]
    lines += [f"  {t.role} {t.name}: {t.dtype}{_shape(t.dims)}{_default(t.default)}" for t in program.tensors]
    lines += [f"  size {s.name} = {s.tensor}.shape[{s.dim}]" for s in program.sizes]
    lines += [f"  check {show(c.relation)}" for c in program.checks]
    names: dict[Node, str] = {}
    for count, node in enumerate(shared_nodes(program.roots())):
        note = program.notes.get(node)
        comment = "" if note is None else f"    # {note.name}" + ("" if note.line is None else f", line {note.line}")
        lines.append(f"  %{count} [{', '.join(sorted(node.axes))}] = {show(node, names)}{comment}")
        names[node] = f"%{count}"
    for out in program.outputs:
        parts = " + ".join(f"({', '.join(axes)}) -> {names.get(node) or show(node, names)}" for axes, node in out.parts)
        seen = " (observed)" if out.name in program.observed else ""
        lines.append(f"  output {out.name}: {out.dtype}[{', '.join(show(d) for d in out.dims)}]{seen} = {parts}")
    return "\n".join(lines)


def _shape(dims: Iterable[Node]) -> str:
    return f"[{', '.join(show(d) for d in dims)}]"


def _default(node: Node | None) -> str:
    return "" if node is None else f" = {show(node)}"


def shared_nodes(roots: Iterable[Node]) -> list[Node]:
    """What is worth a line of its own: reductions, and whatever is used more than once, children first."""
    roots = list(roots)
    order = postorder(roots)
    uses = Counter(c for n in order for c in set(n.children))
    worth = (Add, Call, Iverson, Prod)
    return [
        n
        for n in order
        if isinstance(n, Sum | Max) or (isinstance(n, worth) and uses[n] > 1) or (n in roots and isinstance(n, worth))
    ]


# ------------------------------------------------------------------------------------------------------------ plan


def plan_text(plan: Plan, where: str = "") -> str:
    """The steps of a plan with what they read, reduce and write, its buffers, and the decisions behind it."""
    lines = [f"plan {plan.program.name}{where}"]
    lines += [f"  {b.role} {b.name}: {b.dtype}{_shape(b.dims)}" for b in plan.buffers]
    for step in plan.steps:
        lines += _pass_lines(plan.program, step) if isinstance(step, Pass) else _finish_lines(step)
    lines += [f"  because: {d.found}; {d.chosen}" for d in plan.decisions]
    return "\n".join(lines)


def _pass_lines(program: Program, step: Pass) -> list[str]:
    part = f"chunk of {step.chunks[0].length} {step.outer}, in order" if step.carries else f"block of {step.outer}"
    over = "for each " + " and ".join([*([", ".join(step.grid)] if step.grid else []), *([part] if step.outer else [])])
    loop = f", loop over {step.inner}" if step.inner else ""
    within = "".join(f", over {a} in {show(low)} .. {show(high)}" for a, low, high in step.groups)
    kind = "chunk scan" if step.carries else f"{step.direction} pass"
    lines = [f"  {kind} {step.name}: {over}{within}{loop}"]
    lines += [f"    {line}" for line in described(program, step)]
    names: dict[Node, str] = {}
    roots = expressions(step)
    for count, node in enumerate(shared_nodes(roots)):
        lines.append(f"    %{count} [{', '.join(sorted(node.axes))}] = {show(node, names)}")
        names[node] = f"%{count}"
    written = [("<-", store) for store in step.stores] + [("+=", added) for added in step.adds]
    return lines + [
        f"    {name}[{', '.join(axes)}] {how} {names.get(node) or show(node, names)}"
        for how, (name, axes, node) in written
    ]


def _finish_lines(step: Finish) -> list[str]:
    return [f"  tensor operations: {step.buffer}[{', '.join(axes)}] <- {show(node)}" for axes, node in step.parts]


# ------------------------------------------------------------------------------------------------------------ tile


def kernel_text(kernel: Kernel) -> str:
    """A tile program, one statement per line."""
    lines = [f"kernel {kernel.name}"] + [f"  # {line}" for line in kernel.doc.splitlines()]
    lines += [f"  {a.mode} {a.name}: {a.dtype}{_shape(a.dims)}" for a in kernel.arguments]
    lines.append(f"  sizes {', '.join(kernel.sizes)}; reals {kernel.real}")
    grid = [f"{a} < {show(e)}" for a, e in zip(kernel.grid, kernel.grid_extents, strict=True)]
    lines.append(f"  grid {', '.join(grid)}" + (f"; blocks of {kernel.outer}" if kernel.outer else ""))
    for lane in kernel.lanes:
        block = f", block {kernel.blocks[lane.axis]}" if lane.axis in kernel.blocks else ""
        lines.append(f"  lane {lane.axis}: {lane.role}, extent {show(lane.extent)}{block}")
    return "\n".join([*lines, *_body_lines(kernel.body, 1)])


def _body_lines(body: tuple[Stmt, ...], depth: int) -> Iterator[str]:
    pad = "  " * depth
    for s in body:
        note = f"    # {s.note}" if s.note else ""
        match s:
            case Assign():
                yield f"{pad}{_target(s.target)} = {show(s.value)}{note}"
            case Accumulate():
                yield f"{pad}{_target(s.target)} += {show(s.value)}{note}"
            case AccumulateAt():
                yield f"{pad}{_target(s.target)} at {s.axis} += {show(s.value)}{note}"
            case Loop():
                kind = "partial blocks" if s.masked else "full blocks"
                yield f"{pad}for {s.axis} in {show(s.start)} .. {show(s.stop)}, {kind}:{note}"
                yield from _body_lines(s.body, depth + 1)
            case Each():
                yield f"{pad}for each {s.axis} in {show(s.start)} .. {show(s.stop)}:{note}"
                yield from _body_lines(s.body, depth + 1)
            case Store():
                yield f"{pad}{s.tensor}[{', '.join(show(x) for x in s.index)}] = {show(s.value)}{note}"
            case AddTo():
                yield f"{pad}{s.tensor}[{', '.join(show(x) for x in s.index)}] += {show(s.value)}{note}"
            case Scatter():
                where = "" if s.condition is None else f" where {show(s.condition)}"
                yield f"{pad}{s.tensor}[{', '.join(show(x) for x in s.index)}] += {show(s.value)}{where}{note}"


def _target(target: Var) -> str:
    return f"{target.name}[{', '.join(sorted(target.axes))}]" if target.axes else target.name
