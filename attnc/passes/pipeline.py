"""From a program to its plans: the optimising half of the compiler, one call per program."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from attnc.ir.node import Node
from attnc.ir.notes import tracking
from attnc.ir.program import Output, Program, Tensor
from attnc.passes import coverage, split
from attnc.passes.associate import associate
from attnc.passes.balance import balance
from attnc.passes.base2 import to_base2
from attnc.passes.derive import gradient_program
from attnc.passes.expand import expand_online
from attnc.passes.exponents import shared_exponents
from attnc.passes.plan import Plan
from attnc.passes.planes import Planes
from attnc.passes.reuse import Saved, reuse
from attnc.passes.schedule import schedule
from attnc.passes.stages import table_values


@dataclass(frozen=True, slots=True)
class Gradient:
    """A program's gradient in base 2, and the values it reads that the program must save."""

    program: Program
    saved: tuple[Saved, ...]


@dataclass(frozen=True, slots=True)
class Plans:
    """A program's own plan, and what it must save for the gradient program of the same inputs."""

    forward: Plan
    saved: tuple[Saved, ...]


def _with_roots(program: Program, roots: Iterable[Node]) -> Program:
    values = iter(roots)
    outputs = tuple(replace(o, parts=tuple((axes, next(values)) for axes, _ in o.parts)) for o in program.outputs)
    return program.with_outputs(outputs)


def normalise(program: Program, of: Program | None = None) -> Program:
    """The program in base 2. The gradient `of` a program has the exponents that its weights have there."""
    planes = Planes(of or program)
    sequences = planes.sequences(planes.program.axes)
    with tracking(program.notes):
        return _with_roots(program, to_base2(program.roots(), shared_exponents(planes.program.roots(), sequences)))


def finish(program: Program) -> Plan:
    """The plan of a program in base 2 whose saved values are in place."""
    with tracking(program.notes):
        if program.options.applies("expand"):
            program = _with_roots(program, expand_online(program.roots(), Planes(program)))
        plan = schedule(program)
        return replace(plan, decisions=(*plan.decisions, *coverage.decisions(plan), *split.decisions(plan)))


def saved_values(program: Program, gradient: Program) -> tuple[Program, tuple[Saved, ...]]:
    """Rewrite `gradient` (in base 2) over values that `program` saves; see `attnc.passes.reuse`."""
    if not program.options.applies("reuse"):
        return gradient, ()
    forward = normalise(program)
    planes = Planes(forward)
    with tracking(gradient.notes):
        forward = _with_roots(forward, associate(forward.roots(), planes, grouped=False))
        named = [(o.name, o.parts[0][1]) for o in forward.outputs if len(o.parts) == 1]
        units = planes.plane_reductions(forward.roots())
        exact = any(_sums_rows(gradient, o) for o in gradient.outputs)
        wanted = gradient.roots()
        if program.options.applies("balance"):
            wanted = balance(wanted, Planes(gradient), rows=exact)
        again = table_values(units, planes)
        kept = [u for u in units if u not in again and not _scatters(u)]
        roots, saved = reuse(named, wanted, kept, planes, exact=exact)
    tensors = [*gradient.tensors]
    for s in saved:
        dims = tuple(forward.extent(a) for a in s.axes)
        dtype = next((o.dtype for o in forward.outputs if o.name == s.name), "real")
        tensors.append(Tensor(s.name, dims, dtype, "saved"))
    return replace(_with_roots(gradient, roots), tensors=tuple(tensors)), tuple(saved)


def _sums_rows(gradient: Program, output: Output) -> bool:
    """Whether a gradient has no channels, or those of factors of a bias: then it sums the score's gradient itself.

    That sums to 0 over a row (softmax's row term sees to it), except for the rounding of the row term, which is made
    from the output. A bias that grows with the distance multiplies what is left by thousands.
    """
    return output.dtype == "real" or not any(
        gradient.axis(a).role == "channel" for axes, _ in output.parts for a in axes
    )


def _scatters(node: Node) -> bool:
    return bool(getattr(node, "scatter", ()))


def plan_forward(program: Program, needs: Iterable[str] | None = None, *, training: bool = True) -> Plans:
    """The plan of a program; with `training`, it also stores what its gradient reads."""
    saved = gradient(program, needs).saved if training else ()
    return Plans(plan_saving(program, saved), saved)


def plan_saving(program: Program, saved: Iterable[Saved]) -> Plan:
    """The plan of a program that stores values besides its outputs."""
    forward = normalise(program)
    names = {o.name for o in forward.outputs}
    extra = tuple(
        Output(s.name, ((s.axes, s.node),), tuple(forward.extent(a) for a in s.axes), "real")
        for s in saved
        if s.name not in names
    )
    plan = finish(forward.with_outputs((*forward.outputs, *extra)))
    hidden = {e.name for e in extra}
    buffers = tuple(replace(b, role="saved") if b.name in hidden else b for b in plan.buffers)
    return replace(plan, buffers=buffers)


def plan_gradient(program: Program, needs: Iterable[str] | None = None) -> Plan:
    """The plan of a program's gradient, reading what the program saved for all its real tensors."""
    return finish(gradient(program, needs).program)


def gradient(program: Program, needs: Iterable[str] | None = None) -> Gradient:
    """The gradient of a program with respect to `needs`, or to all its real tensors."""
    return Gradient(*saved_values(program, normalise(gradient_program(program, needs), program)))
