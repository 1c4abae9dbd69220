"""What the compiler found in a spec and decided, as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from attnc.ir.printer import show
from attnc.ir.program import Program
from attnc.ir.sizes import evaluator
from attnc.passes.decision import Decision
from attnc.passes.plan import Buffer, Finish, Pass, Plan

REFERENCE = {"B": 1, "H": 8, "G": 8, "M": 4096, "N": 4096, "D": 64, "E": 64}
"""The call that costs in an explanation are predicted for."""


def explain(forward: Plan, gradient: Plan, weighed: Iterable[Decision] = ()) -> str:
    """The passes of a program and of its gradient, what is kept between them, what each call checks, and why.

    Args:
        forward: the plan of the program.
        gradient: the plan of its gradient.
        weighed: decisions besides those that the passes recorded, see `attnc.passes.weigh`.
    """
    program = forward.program
    lines = [f"{program.name}: {program.doc}" if program.doc else program.name]
    if program.consts:
        lines.append("constants: " + ", ".join(f"{n} = {v}" for n, v in program.consts.items()))
    lines += ["", *_plan("forward", forward), *_kept(forward)]
    lines += ["", *_plan("backward", gradient)]
    weighed = tuple(weighed)
    costed = {d.rewrite for d in weighed}
    recorded = [d for d in (*forward.decisions, *gradient.decisions) if d.alternatives or d.rewrite not in costed]
    decisions = dict.fromkeys((*recorded, *weighed))
    if decisions:
        lines += ["", f"decisions (costs for {_spelled(REFERENCE)}, 4 bytes a number)"]
        lines += [line for d in decisions for line in _decision(d, program)]
    if program.checks:
        lines += ["", "checked at each call", *(f"  {c.message}" for c in program.checks)]
    return "\n".join(lines)


def _spelled(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{n}={v}" for n, v in sizes.items())


def _decision(d: Decision, program: Program) -> Iterator[str]:
    where = "" if d.line is None else f" (line {d.line})"
    yield f"  {d.rewrite}{where}: {d.found}"
    yield f"    chosen: {d.chosen}"
    sizes = dict.fromkeys((s.name for s in program.sizes), 64) | REFERENCE | {"q_start": 0}
    for k, way in enumerate(d.alternatives):
        mark = "*" if k == 0 else " "
        moved, done = (evaluator(n)(sizes) for n in (way.bytes, way.flops))
        yield f"    {mark} {way.name}: {moved / 1e6:,.1f} MB moved, {done / 1e9:,.2f} GF"


def _plan(title: str, plan: Plan) -> Iterator[str]:
    count = len(plan.passes)
    yield f"{title}: {count} pass{'' if count == 1 else 'es'} over the plane"
    for step in plan.steps:
        match step:
            case Pass():
                yield f"  {_pass(step)}"
            case Finish():
                yield f"  {step.buffer}: summed by tensor operations from {_read(step)}"


def _pass(step: Pass) -> str:
    stores = ", ".join(dict.fromkeys(name for name, _, _ in step.stores))
    if step.inner is None:
        where = f"vectors over {step.outer}" if step.outer else "scalars"
        return f"{where}: {stores}"
    if step.carries:
        return f"scan over {step.inner}, chunks of {step.chunks[0].length} {step.outer}: {stores}"
    added = ", ".join(name for name, _, _ in step.adds)
    adds = f", adding to {added}" if added else ""
    return f"{step.direction} pass, blocks of {step.outer}, loop over {step.inner}: {stores}{adds}"


def _read(step: Finish) -> str:
    from attnc.ir.node import Load
    from attnc.ir.walk import postorder

    names = {n.tensor for n in postorder([node for _, node in step.parts]) if isinstance(n, Load)}
    return ", ".join(sorted(names)) or "constants"


def _kept(plan: Plan) -> Iterator[str]:
    saved = [b for b in plan.buffers if b.role == "saved"]
    if saved:
        yield "  kept for the backward: " + ", ".join(_buffer(b) for b in saved)


def _buffer(b: Buffer) -> str:
    return f"{b.name}[{', '.join(show(d) for d in b.dims)}]"
