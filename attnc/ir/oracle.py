"""Outputs and gradients of a program in float64, by torch's autograd over the dense evaluator.

This shares no formula with `attnc.passes.derive`: it is what derived programs are checked against. Reverse mode runs
block by block: a tape holds only one block, and gradients of reductions that span blocks wait in their own array until
the sweep that made them is visited again, in reverse order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from attnc.ir.construct import axis, const, load, raw_add, raw_call, raw_prod, raw_sum
from attnc.ir.contraction import Order
from attnc.ir.dense import assemble, axis_extents, bind_sizes, converted, with_defaults
from attnc.ir.dense_block import Block
from attnc.ir.node import Load, Max, Node
from attnc.ir.program import Program
from attnc.ir.staged import Staged, choose_blocks


def oracle(
    program: Program,
    tensors: Mapping[str, Tensor],
    q_start: int = 0,
    grads: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every output and, for incoming gradients `grads` of some outputs, the gradient of every real input.

    Args:
        tensors: inputs by name, any dtype; optional ones may be missing.
        grads: gradient of some scalar with respect to outputs, by output name, shaped like the output.
        dtype: what every real value is rounded to; anything but float64 measures how well plain PyTorch does in it.

    Returns:
        Outputs and input gradients, in `dtype`, by name.
    """
    sizes = bind_sizes(program, tensors, q_start)
    inputs = converted(with_defaults(program, tensors, sizes), dtype)
    extents = axis_extents(program, sizes)
    roots = list(dict.fromkeys(program.roots()))
    blocks = choose_blocks(program, roots, extents)
    with torch.no_grad():
        staged = Reverse(roots, program.axes, extents, blocks, inputs, sizes, dtype)
        outputs = assemble(program, staged.run(), sizes, staged.order, dtype)
    if not grads:
        return outputs, {}
    seeds = _seeds(program, {n: g.detach().to(dtype) for n, g in grads.items()}, staged.order)
    return outputs, staged.gradients(seeds, [t.name for t in program.tensors if t.is_real])


def _seeds(program: Program, grads: Mapping[str, Tensor], order: Order) -> dict[Node, Tensor]:
    """Incoming gradients of root nodes, dimensions in canonical order."""
    seeds: dict[Node, Tensor] = {}
    for out in program.outputs:
        if out.name not in grads:
            continue
        for axes, node in out.parts:
            ordered = order(axes)
            g = grads[out.name].permute([axes.index(a) for a in ordered])
            over = [k for k, a in enumerate(ordered) if a not in node.axes]
            g = g.sum(over) if over else g
            seeds[node] = seeds[node] + g if node in seeds else g
    return seeds


class _Tape(Block):
    """A block whose loads of the wanted tensors are leaves of the tape."""

    def __init__(
        self,
        stage: Reverse,
        limits: Mapping[str, range],
        given: Mapping[Node, Tensor],
        wanted: Iterable[str],
        leaves: dict[Node, Tensor],
    ) -> None:
        ranges, targets = stage.ranges(limits), stage.ranges({})
        super().__init__(ranges, stage.order, stage.tensors, stage.sizes, stage.dtype, given, targets)
        self.wanted = frozenset(wanted)
        self.leaves = leaves

    def compute(self, node: Node) -> Tensor:
        value = super().compute(node)
        if isinstance(node, Load) and node.kind == "f" and node.tensor in self.wanted:
            value = value.detach().requires_grad_()
            self.leaves[node] = value
        return value

    def add_load_gradient(self, node: Load, g: Tensor, total: Tensor) -> None:
        """Add the gradient of a load to the gradient of its tensor, in place."""
        dims = self.order(node.axes)
        selected: list[tuple[int, Tensor]] = []
        places: list[str | None] = []
        view = total
        for p, index in enumerate(node.index):
            name = self.only_axis(node, p, total.shape)
            places.append(name)
            if name is None:
                if total.shape[p] != 1:
                    return self._add_by_autograd(node, g, total)
            elif (r := self.narrowed(index, name, total.shape[p])) is not None:
                view = view.narrow(p, r.start, len(r))
            else:
                (positions,) = self.again(self.tensors).run([index])
                selected.append((p, positions.clamp(0, total.shape[p] - 1)))
        if len(selected) > 1:
            return self._add_by_autograd(node, g, total)
        dropped = [k for k, a in enumerate(dims) if a not in places]
        g = g.sum(dropped) if dropped else g
        left = [a for a in dims if a in places]
        g = g.permute([left.index(a) for a in places if a is not None])
        for p, name in enumerate(places):
            g = g.unsqueeze(p) if name is None else g
        if selected:
            view.index_add_(selected[0][0], selected[0][1], g)
        else:
            view += g
        return None

    def _add_by_autograd(self, node: Load, g: Tensor, total: Tensor) -> None:
        source = self.tensors[node.tensor].detach().requires_grad_()
        with torch.enable_grad():
            (value,) = self.again({**self.tensors, node.tensor: source}).run([node])
        total += torch.autograd.grad(value, source, g)[0]

    def again(self, tensors: Mapping[str, Tensor]) -> Block:
        """An empty block over the same positions."""
        return Block(self.ranges, self.order, tensors, self.sizes, self.dtype)


class Reverse(Staged):
    """Evaluation in blocks that can afterwards be run backwards."""

    tensors: dict[str, Tensor]

    def gradients(self, seeds: Mapping[Node, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
        """Gradients of the `wanted` tensors, for the given gradients of root nodes."""
        totals = {n: torch.zeros_like(self.tensors[n]) for n in wanted if n in self.tensors}
        waiting = {n: g.contiguous().clone() for n, g in seeds.items()}
        for cut_axes, targets in reversed(self.stages()):
            live = [t for t in targets if t in waiting and t.kind == "f"]
            known = [n for n in self.store if self.is_cut(n) and n not in targets]
            if live:
                pairs = [(t, self._differentiable(t), waiting[t]) for t in live]
                for limits in self.positions(cut_axes):
                    self._reverse(limits, pairs, known, waiting, totals)
        return totals

    def _differentiable(self, node: Node) -> Node:
        """A maximum over several blocks is differentiated as the entry at its position."""
        if not (isinstance(node, Max) and self.is_cut(node)):
            return node
        name = f"@position of {node.digest.hex()}"
        self.tensors[name] = self.attained[node]
        number = raw_add([raw_prod([const(step), axis(a)]) for a, step in self.strides(node.bound)])
        place = load(name, [axis(a) for a in self.order(node.axes)], "i")
        return raw_sum(node.bound, [node.body], (*node.domain, raw_call("eq", (number, place), "b")))

    def _reverse(
        self,
        limits: Mapping[str, range],
        pairs: list[tuple[Node, Node, Tensor]],
        known: list[Node],
        waiting: dict[Node, Tensor],
        totals: dict[str, Tensor],
    ) -> None:
        """One block: record its tape, run it back, and add the gradients of its leaves to `waiting` and `totals`."""
        cuts = {n: self.known(n, limits).detach().requires_grad_(n.kind == "f") for n in known}
        loads: dict[Node, Tensor] = {}
        block = _Tape(self, limits, cuts, totals, loads)
        with torch.enable_grad():
            values = block.run([node for _, node, _ in pairs])
        live = [(v, g[self.window(t, limits)]) for v, (t, _, g) in zip(values, pairs, strict=True) if v.requires_grad]
        leaves = {n: leaf for n, leaf in {**cuts, **loads}.items() if leaf.requires_grad}
        if not live or not leaves:
            return
        values, gradients = [v for v, _ in live], [g for _, g in live]
        found = torch.autograd.grad(values, list(leaves.values()), gradients, allow_unused=True)
        for n, g in zip(leaves, cast("Sequence[Tensor | None]", found), strict=True):
            if g is None:
                continue
            if isinstance(n, Load):
                block.add_load_gradient(n, g, totals[n.tensor])
            else:
                waiting.setdefault(n, torch.zeros_like(self.store[n]))
                waiting[n][self.seen(n, limits)] += g
