"""The compiler as a list of stages, text first and kernels last. Needs no torch.

read           path or text            -> Source         grammar/load.py
definition     Source                  -> Definition     grammar/parser.py
lower          Definition              -> Program        attnc/lowering
choose         Program                 -> Choice         attnc/passes/bias_form.py
plan_forward   Program                 -> Plan           attnc/passes/pipeline.py
plan_gradient  Program                 -> Plan           the same passes, reading what the forward saved
kernels        Plan, dtypes            -> tile programs  attnc/passes/tile.py
text           Program, target, dtype  -> C++ or Triton  codegen/
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping
from dataclasses import replace

from attnc.codegen.tile import Kernel
from attnc.diagnostics.diagnostic import Diagnostic, SpecError
from attnc.diagnostics.source import Source
from attnc.grammar.tree import Definition
from attnc.ir.node import Load, Size
from attnc.ir.options import DEFAULT, Options
from attnc.ir.program import Program
from attnc.ir.walk import postorder
from attnc.passes import bias_form, fuse, modes, pipeline
from attnc.passes.bias_form import Choice, TargetName
from attnc.passes.merge_tile import lower_merge
from attnc.passes.plan import Pass, Plan
from attnc.passes.scan_tile import lower_scan
from attnc.passes.split import ROWS, Split
from attnc.passes.tile import DEFAULT_BLOCK, lower_pass
from attnc.passes.wide_sums import with_wide_sums

Consts = Mapping[str, float | int]


def read(spec: str | os.PathLike[str]) -> Source:
    """The source of a path, or of text: a string with a newline, or one that begins with ``attention``."""
    from attnc.grammar.load import load

    if isinstance(spec, str) and ("\n" in spec or spec.lstrip().startswith(("attention ", "attention\t"))):
        return Source("<text>", spec)
    return load(spec)


def definition(source: Source, name: str | None = None) -> Definition:
    """The definition of that name, or the only one.

    Raises:
        SpecError: on syntax errors, on an unknown name (E310), or if the file holds several and none is named (E311).
    """
    from attnc.grammar.parser import parse

    found = {d.name.id: d for d in parse(source).definitions}
    listed = ", ".join(found)
    if name is None:
        if len(found) == 1:
            return next(iter(found.values()))
        message = f"`{source.name}` holds {len(found)} definitions: {listed}"
        raise SpecError([Diagnostic("E311", message, remedy=f"choose one, for example name={next(iter(found))!r}")])
    if name not in found:
        close = difflib.get_close_matches(name, found, 1)
        remedy = f"did you mean `{close[0]}`?" if close else f"it defines {listed}"
        raise SpecError([Diagnostic("E310", f"`{source.name}` has no definition `{name}`", remedy=remedy)])
    return found[name]


def lower(
    definition: Definition,
    source: Source,
    consts: Consts | None = None,
    provided: Collection[str] | None = None,
    options: Options = DEFAULT,
) -> Program:
    """The program of a definition; optional tensors not `provided` (None: all are) become their defaults."""
    from attnc.lowering import lower as lower_definition

    given = None if provided is None else frozenset(provided)
    return replace(lower_definition(definition, source, consts, provided=given), options=options)


def plan_forward(program: Program) -> Plan:
    """The plan of a spec's outputs, and of the values its gradient will read."""
    return pipeline.plan_forward(program).forward


def plan_gradient(program: Program, seeds: Collection[str], needs: Collection[str]) -> Plan:
    """The plan of the gradients of `needs` given those of the outputs `seeds`, reading what `plan_forward` saves."""
    return _restricted(pipeline.gradient(program).program, seeds, needs)


def _restricted(gradient: Program, seeds: Collection[str], needs: Collection[str]) -> Plan:
    return pipeline.finish(modes.restricted(gradient, {f"grad_{s}" for s in seeds}, needs))


def plan_alone(program: Program) -> Plan:
    """The plan of a program that neither saves values nor reads saved ones."""
    return pipeline.plan_forward(program, training=False).forward


def choose(program: Program, target: TargetName = "cpu", dtype: str = "f32") -> Choice:
    """How the bias of a program's score is computed on a target for queries of `dtype`, and the one or two programs
    that makes.

    Raises:
        SpecError: E331, if the caller asks for a form that the bias does not have.
    """
    return bias_form.choose(program, target, bias_form.precision(dtype))


def plans(program: Program, target: TargetName = "cpu", dtype: str = "f32") -> tuple[Plan, Plan]:
    """The plans of a program and of its whole gradient, with the bias in the form chosen for a target and `dtype`.

    What computes the bias before it, if anything does, has `bias_plans` of its own.
    """
    split = choose(program, target, dtype).split
    return _both(split.attention, split.fixed)


def explained_plans(program: Program, target: TargetName = "cpu", dtype: str = "f32") -> tuple[Plan, Plan]:
    """The same plans with every decision on them, also those that take as long as planning: which form the bias has,
    and which passes can be one."""
    chosen = choose(program, target, dtype)
    split = chosen.split
    own = _both(split.attention, split.fixed)

    def planner(other: Program, fixed: Collection[str] = ()) -> tuple[Plan, Plan]:
        return own if other is split.attention and fixed == split.fixed else _both(other, fixed)

    found = bias_form.decisions(program, chosen, planner, target, bias_form.precision(dtype))
    forward, gradient = own
    return (
        replace(forward, decisions=(*found, *forward.decisions)),
        replace(gradient, decisions=(*gradient.decisions, *fuse.decisions(gradient))),
    )


def on_target(plan: Plan, target: TargetName) -> Plan:
    """A plan as a target runs it: on a CPU, where programs may run in order, pairs of passes are fused, and what is
    scattered is added up in f64."""
    return with_wide_sums(fuse.fused(plan)) if target == "cpu" else plan


def bias_plans(program: Program, target: TargetName = "cpu", dtype: str = "f32") -> tuple[Plan, ...]:
    """The plans of the program that computes the factors of a bias, or the bias, and of its gradient; none without."""
    first = choose(program, target, dtype).split.first
    return () if first is None else tuple(p for p in _both(first) if p.steps)


def _both(program: Program, fixed: Collection[str] = ()) -> tuple[Plan, Plan]:
    """The plans of a program and of the gradients of what it reads, except of the tensors `fixed`."""
    seeds = [o.name for o in program.outputs]
    read = {n.tensor for n in postorder(program.roots()) if isinstance(n, Load)} - set(fixed)
    wanted = [t.name for t in program.tensors if t.is_real and t.name in read]
    whole = pipeline.gradient(program)
    gradient = _restricted(whole.program, seeds, wanted)
    return pipeline.plan_saving(program, whole.saved), gradient


def kernels(
    plan: Plan, dtypes: Mapping[str, str], real: str, constants: Mapping[str, int], outer: int, inner: int
) -> list[Kernel]:
    """The tile programs of a plan's passes, in order.

    Args:
        dtypes: of every tensor and buffer.
        real: what kernels compute in, f32 or f64.
        constants: extents fixed at compile time.
        outer: block length of the axis kernels are parallel over.
        inner: block length of the axis they loop over.
    """
    found = []
    for item in plan.steps:
        if isinstance(item, Pass):
            blocks = {a: n for a, n in ((item.outer, outer), (item.inner, inner)) if a is not None}
            lowered = lower_scan if item.carries else lower_pass
            found.append(lowered(plan, item, dtypes=dtypes, real=real, constants=constants, blocks=blocks))
    return found


def split_kernels(
    split: Split, dtypes: Mapping[str, str], real: str, constants: Mapping[str, int], inner: int
) -> tuple[Kernel, Kernel]:
    """The tile programs of a split pass: of its parts, and of their merge; the arguments are those of `kernels`."""
    blocks = {a: n for a, n in ((split.merge.outer, ROWS), (split.merge.inner, inner)) if a is not None}
    partial = lower_pass(split.plan, split.partial, dtypes=dtypes, real=real, constants=constants, blocks=blocks)
    merge = lower_merge(split, dtypes=dtypes, real=real, constants=constants, blocks=blocks)
    return replace(partial, narrow=split.narrow), merge


def channel_sizes(program: Program) -> tuple[str, ...]:
    """Size symbols in the extents of channel axes: what kernels are specialised to besides dtypes."""
    extents = [info.extent for info in program.axes.values() if info.role == "channel"]
    return tuple(sorted({n.name for n in postorder(extents) if isinstance(n, Size)}))


def all_kernels(program: Program, dtype: str = "f32", channels: int = 64, target: TargetName = "cpu") -> list[Kernel]:
    """The tile programs of a program and of its gradient, for queries of `dtype` and channel sizes of `channels`.

    There is no gradient for queries of dtype f8.
    """
    real = "f64" if dtype == "f64" else "f32"
    concrete = {"q": dtype, "real": real}
    written = concrete | ({"q": "bf16"} if dtype == "f8" else {})
    forward, gradient = plans(program, target, dtype)
    found = []
    for plan in (*bias_plans(program, target, dtype), forward, *([] if dtype == "f8" else [gradient])):
        plan = on_target(plan, target)
        dtypes = {t.name: concrete.get(t.dtype, t.dtype) for t in plan.program.tensors}
        dtypes |= {b.name: written.get(b.dtype, b.dtype) for b in plan.buffers}
        constants = dict.fromkeys(channel_sizes(plan.program), channels)
        found += kernels(plan, dtypes, real, constants, DEFAULT_BLOCK, DEFAULT_BLOCK)
    return found


def text(program: Program, target: str, dtype: str = "f32", channels: int = 64) -> str:
    """The kernels of a program and of its gradient as C++ (``cpp``) or Triton (``triton``) source."""
    found = all_kernels(program, dtype, channels, "cpu" if target == "cpp" else "gpu")
    if not found:
        mark = "//" if target == "cpp" else "#"
        return f"{mark} {program.name} has no kernels: tensor operations compute all of it.\n"
    if target == "cpp":
        from attnc.codegen.cpu.printer import print_unit

        return print_unit(found)
    if target == "triton":
        from attnc.codegen.triton.printer import print_module

        return print_module(found)
    raise ValueError(f"there is no target {target!r}; choose cpp or triton")


def explanation(program: Program, dtype: str = "f32") -> str:
    """What the compiler found in a spec and decided for queries of `dtype` on a CPU, for people."""
    from attnc.passes.explain import explain
    from attnc.passes.weigh import weighed

    chosen = explained_plans(program, dtype=dtype)
    return explain(*chosen, weighed(program, chosen, lambda other: plans(other, dtype=dtype)))
