"""What a streamed sequence is remembered by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from attnc.diagnostics.diagnostic import CallError, Diagnostic
from attnc.ir.dtypes import real
from attnc.ir.program import Program
from attnc.ir.sizes import Evaluator, evaluator
from attnc.passes.streaming import Carried, NotStreamable, Streaming, streaming
from attnc.runtime.arguments import FIXED


@dataclass(frozen=True, slots=True)
class State:
    """The past of a sequence, as a call with `return_state=True` returns it and the next one takes it.

    Attributes:
        tensors: by name, as `Op.state_shapes` lists them: sums of ``k v`` are [B, H, D, E], sums of k alone [B, H, D],
            running maxima [B, H]; f32, or f64 for f64 inputs. Gradients flow through them.
        position: how many positions the sequence has so far; the next call starts there.
    """

    tensors: Mapping[str, Tensor]
    position: int

    def detach(self) -> State:
        """The same state, through which no gradient flows."""
        return replace(self, tensors={n: t.detach() for n, t in self.tensors.items()})


def streamed(program: Program) -> Streaming:
    """The program over a piece of a sequence.

    Raises:
        CallError: E213, if the spec needs more of the past than a state.
    """
    try:
        return streaming(program)
    except NotStreamable as why:
        message = f"`{program.name}` cannot be streamed: {why}"
        remedy = "pass the keys and values of the whole sequence, with q_start for the first query"
        raise CallError(Diagnostic("E213", message, remedy=remedy)) from None


class States:
    """The states of a streamed program as tensors.

    Attributes:
        names: of the states, in order.
    """

    def __init__(self, streaming: Streaming) -> None:
        self._states: tuple[tuple[Carried, tuple[Evaluator, ...]], ...] = tuple(
            (s, tuple(evaluator(d) for d in s.dims)) for s in streaming.states
        )
        self.names = tuple(s.name for s in streaming.states)
        self._sizes = streaming.program.sizes

    def first(self, tensors: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
        """The states before the first position, for the tensors q, k, v and those named."""
        given = dict(zip((*FIXED, *names), tensors, strict=True))
        sizes = {s.name: given[s.tensor].shape[s.dim] for s in self._sizes}
        query = given["q"]
        made = []
        for state, dims in self._states:
            shape = [d(sizes) for d in dims]
            made.append(torch.full(shape, state.initial, dtype=real(query.dtype), device=query.device))
        return made


def carried(state: State, names: Sequence[str], q_start: int) -> list[Tensor]:
    """The tensors of a state, in the order of `names`, those of the states an op carries.

    Raises:
        CallError: E214, if it is no state of this op, or a start was given too.
    """
    given = cast("object", state)
    if not isinstance(given, State) or set(given.tensors) != set(names):
        held = ", ".join(given.tensors) if isinstance(given, State) else type(given).__name__
        message = f"the state does not belong to this op: it has {held}, and the op carries {', '.join(names)}"
        remedy = "pass what this op returned with return_state=True, and nothing to start a sequence"
        raise CallError(Diagnostic("E214", message, remedy=remedy))
    if q_start != 0:
        message = f"the state ends at position {state.position}, and q_start = {q_start} was given too"
        raise CallError(Diagnostic("E214", message, remedy="leave q_start out: the state holds it"))
    return [state.tensors[n] for n in names]


def state_after(results: Sequence[Tensor], names: Sequence[str], position: int) -> State:
    """The state among an op's results, which it ends."""
    after = results[len(results) - len(names) :]
    return State(dict(zip(names, after, strict=True)), position)
