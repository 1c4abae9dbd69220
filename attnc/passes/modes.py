"""Modes of differentiation: reverse for some outputs and inputs, and forward, which is reverse twice.

o = f(q, k)   reverse, needs {q}:    (q, k, grad_o)    -> grad_q
              forward, moving {q}:   (q, k, tangent_q) -> tangent_o
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from attnc.ir.construct import ZERO, load
from attnc.ir.node import Load, Node
from attnc.ir.program import Program
from attnc.ir.walk import Rule, postorder, rewrite
from attnc.passes.derive import gradient_program


def gradient(program: Program, seeds: Collection[str], needs: Collection[str]) -> Program:
    """Gradients of the tensors `needs`, given gradients of the outputs `seeds` (those of others are zero)."""
    used = program.with_outputs(tuple(o for o in program.outputs if o.name in seeds))
    return gradient_program(used, frozenset(needs))


def tangent(program: Program, moving: Collection[str]) -> Program:
    """The tangent ``tangent_O`` of every output, given the tangents ``tangent_T`` of the tensors `moving`.

    The gradient of ``<J' c, t>`` with respect to c is ``J t``: reverse mode twice, after which c is gone.
    """
    outputs = [o.name for o in program.outputs]
    once = gradient(program, outputs, moving)
    cotangents = {f"grad_{o}": f"cotangent_{o}" for o in outputs}
    twice = gradient(renamed(once, cotangents), [o.name for o in once.outputs], cotangents.values())
    names = {f"grad_{o.name}": f"tangent_{o.of}" for o in once.outputs}
    names |= {f"grad_cotangent_{o}": f"tangent_{o}" for o in outputs}
    origin = {f"grad_cotangent_{o.name}": o.of for o in program.outputs}
    results = tuple(replace(o, of=origin[o.name]) for o in twice.outputs)
    gone = set(cotangents.values())
    tensors = tuple(t for t in twice.tensors if t.name not in gone)
    return renamed(replace(twice, outputs=results, tensors=tensors), names)


def restricted(program: Program, seeds: Collection[str], needs: Collection[str]) -> Program:
    """A gradient program with only the gradients of `needs`, and zero for incoming gradients not among `seeds`.

    Unlike `gradient` this keeps the values saved for the whole gradient, so that every restriction reads the same ones.
    """
    absent = {t.name for t in program.tensors if t.role == "seed"} - set(seeds)
    wanted = program.with_outputs(tuple(o for o in program.outputs if o.of in needs))
    rest = _rewritten(wanted, lambda n: ZERO if isinstance(n, Load) and n.tensor in absent else None)
    loaded = {n.tensor for n in postorder(rest.roots()) if isinstance(n, Load)}
    tensors = tuple(t for t in rest.tensors if t.role == "operand" or t.name in loaded or t.name in seeds)
    return replace(rest, tensors=tensors)


def renamed(program: Program, names: Mapping[str, str]) -> Program:
    """The program with some tensors and outputs under other names."""

    def rule(node: Node) -> Node | None:
        if isinstance(node, Load) and node.tensor in names:
            return load(names[node.tensor], node.index, node.kind)
        return None

    rest = _rewritten(program, rule)
    outputs = tuple(replace(o, name=names.get(o.name, o.name)) for o in rest.outputs)
    return replace(
        rest, outputs=outputs, tensors=tuple(replace(t, name=names.get(t.name, t.name)) for t in rest.tensors)
    )


def _rewritten(program: Program, rule: Rule) -> Program:
    values = iter(rewrite(program.roots(), rule))
    outputs = (replace(o, parts=tuple((axes, next(values)) for axes, _ in o.parts)) for o in program.outputs)
    return program.with_outputs(tuple(outputs))
