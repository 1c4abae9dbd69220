"""The op a user calls."""

from __future__ import annotations

import difflib
import threading
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attnc import driver
from attnc.diagnostics.diagnostic import AttncError, CallError, Diagnostic
from attnc.diagnostics.source import Source
from attnc.grammar.tree import Definition
from attnc.ir.dtypes import NAMES, QUERY_DTYPES
from attnc.ir.options import DEFAULT, Options
from attnc.ir.printer import show
from attnc.ir.program import Program
from attnc.runtime.arguments import FIXED, Signature, check_names, position
from attnc.runtime.backends import requested, targets_of
from attnc.runtime.state import State, States, carried, state_after, streamed
from attnc.runtime.variant import Variant

ops: weakref.WeakValueDictionary[str, Op] = weakref.WeakValueDictionary()
"""All ops by the name that traced code knows them by."""


def _known_when_traced(function: Callable[..., tuple[str, ...]]) -> Callable[..., tuple[str, ...]]:
    """Mark a function whose result is a constant to dynamo: as `torch.compiler.assume_constant_result`, which would
    import dynamo at once."""
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010
    return function


class Op:
    """A compiled attention variant: ``o = op(q, k, v, **tensors)``.

    Made by `attnc.compile`. The op is differentiable twice, and is one node to `torch.compile`, `torch.export` and
    profilers.

    Attributes:
        name: the name the spec gives itself.
        program: the spec in index notation, with every tensor it can be given.
        optional: names of the tensors that have a default.
    """

    def __init__(
        self,
        source: Source,
        definition: Definition,
        consts: Mapping[str, float | int],
        backend: str,
        options: Options = DEFAULT,
    ) -> None:
        backend = requested(backend)
        self._source = source
        self._definition = definition
        self._consts = dict(consts)
        self.backend = backend
        self.program = driver.lower(definition, source, consts, options=options)
        self.name = self.program.name
        if options.rank is not None or options.bias not in ("auto", "registers"):
            driver.choose(self.program, targets_of(backend)[0])  # refuses now what the bias cannot be
        self.optional = frozenset(t.name for t in self.program.tensors if t.default is not None)
        self._variants: dict[tuple[bool, bool, frozenset[str]], Variant] = {}
        self._calls: dict[tuple[bool, bool, tuple[str, ...]], tuple[Variant, tuple[int, ...]]] = {}
        self._lock = threading.RLock()
        self._key = uuid.uuid4().hex
        ops[self._key] = self

    def __call__(
        self,
        /,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        q_start: int = 0,
        observe: bool = False,
        state: State | None = None,
        return_state: bool = False,
        **tensors: Tensor,
    ) -> Any:
        """Run the variant.

        Args:
            q: queries [B, H, M, D], f16, bf16, f32, or f64 on the CPU; any strides.
            k: keys [B, G, N, D] of the same dtype, where G divides H.
            v: values [B, G, N, E] of the same dtype.
            q_start: absolute position of the first query: the number of keys before it when decoding.
            observe: also return what the spec observes.
            state: what a call returned for the part of the sequence that comes before; q, k, v and tensors over
                positions then hold the next piece alone. For specs that run in linear time.
            return_state: also return the state after this piece.
            tensors: the spec's tensors by name. Those with a default may be left out; extents of 1 broadcast.

        Returns:
            The output [B, H, M, E] in q's dtype (or what the spec's `output` says); with `observe`, a pair of it and a
            dict of observations by name. With `return_state`, the `State` after all of these.

        Raises:
            CallError: E2xx, if the tensors do not fit the spec.
        """
        try:
            after: tuple[State, ...] = ()
            if state is None and not return_state:
                results = self._run(observe, False, q_start, tuple(tensors), q, k, v, *tensors.values())
            else:
                names = self._state_names(tuple(tensors), observe)
                past = () if state is None else carried(state, names, q_start)
                start = q_start if state is None else state.position
                results = self._run(observe, True, start, tuple(tensors), q, k, v, *tensors.values(), *past)
                after = (state_after(results, names, start + k.shape[2]),) if return_state else ()
        except AttncError as error:
            raise error.with_traceback(None) from None
        seen = (dict(zip(self.program.observed, results[1:], strict=False)),) if observe else ()
        return (results[0], *seen, *after) if seen or after else results[0]

    @_known_when_traced
    def _state_names(self, names: tuple[str, ...], observe: bool) -> tuple[str, ...]:
        """The states of calls that give the tensors `names`; known when a call is traced."""
        states = self._found(names, observe, streams=True).states
        assert states is not None
        return states.names

    def _run(self, *arguments: Any) -> tuple[Tensor, ...]:
        if torch.compiler.is_dynamo_compiling():
            from attnc.runtime.traced import apply

            return apply(self._key, *arguments)
        return self._call(*arguments)

    def _call(
        self, observe: bool, streams: bool, q_start: Any, names: tuple[str, ...], *tensors: Any
    ) -> tuple[Tensor, ...]:
        found = self._calls.get((observe, streams, names))
        if found is None:
            variant = self._found(names, observe, streams)
            given = (*FIXED, *names, *(variant.states.names if variant.states else ()))
            found = variant, tuple(given.index(n) for n in variant.signature.names)
            self._calls[observe, streams, names] = found
        variant, order = found
        if type(q_start) is not int:
            q_start = position(q_start)
        if variant.states is not None and len(tensors) == len(FIXED) + len(names):
            tensors = (*tensors, *variant.states.first(tensors, names))
        return variant([tensors[k] for k in order], q_start)

    def state_shapes(self) -> dict[str, str]:
        """The tensors of a `State` of this op and their shapes, such as ``{"state_0": "[B, H, D, E]"}``.

        Raises:
            CallError: E213, if the spec cannot be streamed.
        """
        program = self._lowered(frozenset(t.name for t in self.program.tensors), observe=False)
        return {s.name: f"[{', '.join(show(d) for d in s.dims)}]" for s in streamed(program).states}

    def variant(self, *names: str, observe: bool = False, streams: bool = False) -> Variant:
        """The op for calls that give the tensors `names`, registered with torch (as loading exported programs needs).

        Raises:
            CallError: E205 or E206, if these are not the spec's tensors; E213, if it is to stream and cannot.
        """
        found = self._found(names, observe, streams)
        found.register()
        return found

    def _found(self, names: Sequence[str], observe: bool, streams: bool) -> Variant:
        key = (observe, streams, frozenset(names))
        with self._lock:
            if key not in self._variants:
                check_names(self.program, names)
                self._variants[key] = self._variant(self._lowered(frozenset(names), observe), streams)
            return self._variants[key]

    def _variant(self, program: Program, streams: bool) -> Variant:
        if not streams:
            return Variant(program, self.backend)
        piece = streamed(program)
        return Variant(piece.program, self.backend, States(piece))

    def _lowered(self, names: frozenset[str], observe: bool) -> Program:
        program = driver.lower(
            self._definition, self._source, self._consts, names & self.optional, self.program.options
        )
        if observe:
            return program
        kept = tuple(o for o in program.outputs if o.name not in program.observed)
        return program.with_outputs(kept)

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, *, q_start: int = 0, observe: bool = False, **tensors: Tensor
    ) -> Any:
        """What the spec says, evaluated densely in float64 on the CPU or wherever the tensors are.

        Takes and returns what calling the op does, in float64; differentiable by autograd. Time and memory are those of
        the formula written naively.
        """
        from attnc.ir.dense import bind_sizes, evaluate

        try:
            check_names(self.program, tuple(tensors))
            program = self._lowered(frozenset(tensors), observe)
            signature = Signature(program)
            given = {"q": q, "k": k, "v": v, **tensors}
            ready = signature.accept([given[n] for n in signature.names], position(q_start))
        except AttncError as error:
            raise error.with_traceback(None) from None
        inputs = dict(zip(signature.names, ready, strict=True))
        values = evaluate(program, inputs, bind_sizes(program, inputs, position(q_start)))
        if observe:
            return values["o"], {n: values[n] for n in program.observed}
        return values["o"]

    def source(self, target: str = "cpp", *, dtype: str = "f32", channels: int = 64) -> str:
        """The kernels as text, forward then backward.

        Args:
            target: ``"cpp"`` or ``"triton"``.
            dtype: of q, k and v.
            channels: extent of d and e.

        Raises:
            CallError: E221, if there is no such dtype.
        """
        try:
            _check_dtype(dtype)
            return driver.text(self.program, target, dtype, channels)
        except AttncError as error:
            raise error.with_traceback(None) from None

    def explain(self, dtype: str = "f32") -> str:
        """What the compiler found in the spec, what it decided, and why, for q, k and v of `dtype`.

        Raises:
            CallError: E221, if there is no such dtype.
        """
        _check_dtype(dtype)
        reports = dict.fromkeys(r for v in self._variants.values() for r in v.reports())
        return "\n".join([driver.explanation(self.program, dtype), *(f"at the latest call: {r}" for r in reports)])

    def __repr__(self) -> str:
        consts = "".join(f", {k}={v}" for k, v in self._consts.items())
        return f"<attnc op {self.name} from {self._source.name}{consts}, backend {self.backend}>"

    def __reduce__(self) -> Any:
        return (
            _restored,
            (self._source.name, self._source.text, self.name, self.backend, self._consts, self.program.options),
        )

    def __deepcopy__(self, memo: object) -> Op:
        return self


def _check_dtype(name: str) -> None:
    known = [NAMES[t] for t in QUERY_DTYPES]
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 1)
        remedy = f"did you mean `{close[0]}`?" if close else f"choose one of {', '.join(known)}"
        raise CallError(Diagnostic("E221", f"there is no dtype `{name}` of queries", remedy=remedy))


def _restored(
    name: str, text: str, definition: str, backend: str, consts: dict[str, float | int], options: Options
) -> Op:
    source = Source(name, text)
    return Op(source, driver.definition(source, definition), consts, backend, options)
