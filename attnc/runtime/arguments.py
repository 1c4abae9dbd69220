"""What a call must look like, checked in microseconds when it is right and explained when it is not."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor as TorchTensor

from attnc.diagnostics.diagnostic import CallError, Diagnostic
from attnc.ir.dtypes import FORWARD_ONLY, NAMES, QUERY_DTYPES, accepted
from attnc.ir.node import Size
from attnc.ir.printer import show
from attnc.ir.program import Program, Tensor
from attnc.ir.sizes import Evaluator, Values, evaluator
from attnc.ir.walk import postorder
from attnc.runtime.eager import plain

DEVICES = ("cpu", "cuda", "meta")
KEPT = 256
"""Calls remembered per signature."""
EIGHT_BITS = (8, 9)
"""Compute capability of the first devices that multiply numbers of eight bits."""
FIXED = ("q", "k", "v")
"""The tensors every call has; they bind the sizes and never broadcast."""


class Signature:
    """The tensors of one program, in order, with the shapes, dtypes and relations a call must have."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.tensors = tuple(t for t in program.tensors if t.role == "operand")
        self.names = tuple(t.name for t in self.tensors)
        position = {name: k for k, name in enumerate(self.names)}
        self._bindings = tuple((s.name, position[s.tensor], s.dim) for s in program.sizes)
        self._dims: tuple[tuple[Evaluator, ...], ...] = tuple(tuple(evaluator(d) for d in t.dims) for t in self.tensors)
        self._relations = tuple((evaluator(c.relation), c) for c in program.checks)
        self._known: dict[tuple[Any, ...], tuple[torch.Size, ...] | None] = {}
        """Calls seen to fit, by all that decides it: the shapes to expand to, None where they are the given ones."""
        self._accepted = {q: tuple(accepted(t.dtype, q) for t in self.tensors) for q in QUERY_DTYPES}

    def accept(self, tensors: Sequence[Any], q_start: Any) -> list[TorchTensor]:
        """The tensors with extent-1 dimensions expanded to their declared shapes.

        Raises:
            CallError: E2xx, when the call does not fit the spec.
        """
        if type(q_start) is not int or not plain(tensors):
            return self._checked(tensors, q_start)
        key = (q_start, *[x for t in tensors for x in (t.shape, t.dtype, t.device, t.layout)])
        shapes = self._known.get(key, ())
        if shapes == ():
            ready = self._checked(tensors, q_start)
            whole = all(a is b for a, b in zip(tensors, ready, strict=True))
            shapes = None if whole else tuple(t.shape for t in ready)
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[key] = shapes
        return list(tensors) if shapes is None else [t.expand(s) for t, s in zip(tensors, shapes, strict=True)]

    def _checked(self, tensors: Sequence[Any], q_start: Any) -> list[TorchTensor]:
        ready = self._fit(tensors, q_start)
        if ready is None:
            raise CallError(Explanation(self, tensors, q_start).find())
        return ready

    def sizes(self, tensors: Sequence[TorchTensor], q_start: Any) -> dict[str, Any]:
        """The size symbols these tensors bind."""
        values = {name: tensors[k].shape[dim] for name, k, dim in self._bindings}
        values["q_start"] = q_start
        return values

    def _fit(self, tensors: Sequence[Any], q_start: Any) -> list[TorchTensor] | None:
        for t, dims in zip(tensors, self._dims, strict=True):
            if not isinstance(t, TorchTensor) or t.dim() != len(dims):
                return None
        query = tensors[0]
        device = query.device
        allowed = self._accepted.get(query.dtype)
        if allowed is None or not _runs(query) or not _is_position(q_start):
            return None
        values = self.sizes(tensors, q_start)
        if values["G"] < 1 or values["H"] % values["G"] != 0:
            return None
        ready = []
        for name, t, dims, dtypes in zip(self.names, tensors, self._dims, allowed, strict=True):
            if t.dtype not in dtypes or t.device != device or t.layout is not torch.strided:
                return None
            expected = [d(values) for d in dims]
            narrow = False
            for actual, extent in zip(t.shape, expected, strict=True):
                if actual < 1:
                    return None
                if actual != extent:
                    if actual != 1 or name in FIXED:
                        return None
                    narrow = True
            ready.append(t.expand(expected) if narrow else t)
        return ready if all(relation(values) for relation, _ in self._relations) else None


def _runs(query: TorchTensor) -> bool:
    kind = query.device.type
    if kind == "cuda" and query.dtype in FORWARD_ONLY:
        return torch.cuda.get_device_capability(query.device) >= EIGHT_BITS
    return kind in DEVICES and not (kind == "cuda" and query.dtype is torch.float64)


def _is_position(q_start: Any) -> bool:
    return isinstance(q_start, int | torch.SymInt) and not isinstance(q_start, bool) and bool(q_start >= 0)


class Explanation:
    """Finds the first thing wrong with a call that does not fit, in the order a reader would look for it."""

    def __init__(self, signature: Signature, tensors: Sequence[Any], q_start: Any) -> None:
        self.signature = signature
        self.pairs = list(zip(signature.tensors, tensors, strict=True))
        self.q_start = q_start

    def find(self) -> Diagnostic:
        """The diagnostic of the first failing check."""
        steps = (self._kinds, self._position, self._dtypes, self._devices, self._ranks, self._shapes, self._relations)
        for step in steps:
            found = step()
            if found is not None:
                return found
        return Diagnostic("E200", "the call does not fit the spec")

    def _report(self, code: str, message: str, tensor: Tensor | None, remedy: str) -> Diagnostic:
        source = self.signature.program.source
        span = tensor.span if tensor is not None else None
        return Diagnostic(code, message, source if span is not None else None, span, remedy)

    def _kinds(self) -> Diagnostic | None:
        for t, given in self.pairs:
            if not isinstance(given, TorchTensor):
                message = f"`{t.name}` must be a torch.Tensor of shape {declared(t)}, not {type(given).__name__}"
                return self._report("E210", message, t, f"pass torch.as_tensor({t.name})")
            if given.layout is not torch.strided:
                message = f"`{t.name}` has layout {given.layout}; kernels read strided tensors"
                return self._report("E210", message, t, f"pass {t.name}.to_dense()")
        return None

    def _position(self) -> Diagnostic | None:
        if _is_position(self.q_start):
            return None
        message = f"q_start = {self.q_start!r} is not a position: it must be an integer >= 0"
        return self._report("E208", message, None, "pass the number of keys that come before the first query")

    def _dtypes(self) -> Diagnostic | None:
        (_, query), *rest = self.pairs
        if query.dtype not in QUERY_DTYPES:
            names = ", ".join(NAMES[d] for d in QUERY_DTYPES)
            message = f"`q` has dtype {query.dtype}; attention runs on {names}"
            return self._report("E202", message, None, "convert q, k and v, for example q.to(torch.float32)")
        for t, given in rest:
            allowed = accepted(t.dtype, query.dtype)
            if given.dtype in allowed:
                continue
            why = f"q's, {allowed[0]}" if t.dtype == "q" else f"{allowed[0]}"
            message = f"`{t.name}` has dtype {given.dtype}; the spec declares {declared(t)}, so it must be {why}"
            return self._report("E202", message, t, f"pass {t.name}.to({allowed[0]})")
        return None

    def _devices(self) -> Diagnostic | None:
        (_, query), *rest = self.pairs
        if not _runs(query):
            if query.device.type in DEVICES:
                if query.dtype in FORWARD_ONLY:
                    message = f"{query.dtype} takes a CUDA device of compute capability 8.9 or later"
                    return self._report("E203", message, None, "convert to bfloat16")
                message = "float64 runs on the CPU only, as the reference of the other dtypes"
                return self._report("E203", message, None, "use float32, or move the tensors to the CPU")
            message = f"there is no backend for device `{query.device}`"
            return self._report("E203", message, None, "move the tensors to the CPU or to a CUDA device")
        for t, given in rest:
            if given.device != query.device:
                message = f"`{t.name}` is on {given.device}, but `q` is on {query.device}"
                return self._report("E203", message, t, f"pass {t.name}.to(q.device)")
        return None

    def _ranks(self) -> Diagnostic | None:
        for t, given in self.pairs:
            if given.dim() != len(t.dims):
                message = (
                    f"`{t.name}` has {given.dim()} dimensions, {shape_of(given)}; "
                    f"the spec declares {len(t.dims)}, {declared(t)}"
                )
                remedy = (
                    "the layout is [batch, heads, length, channels]; add or merge dimensions with unsqueeze or reshape"
                    if t.name in FIXED
                    else f"reshape {t.name}; a dimension of extent 1 broadcasts"
                )
                return self._report("E201", message, t, remedy)
        return None

    def _shapes(self) -> Diagnostic | None:
        for t, given in self.pairs:
            if given.numel() == 0:
                message = f"`{t.name}` is empty: it has shape {shape_of(given)}"
                return self._report("E209", message, t, "every dimension needs an extent of at least 1")
        values = self._values()
        if values["H"] % values["G"]:
            message = f"q has {values['H']} heads and k has {values['G']}: query heads must be a multiple of key heads"
            return self._report("E204", message, None, "key head g serves query heads g * H / G and following")
        for t, given in self.pairs:
            expected = [evaluator(d)(values) for d in t.dims]
            wrong = [
                k
                for k, (a, x) in enumerate(zip(given.shape, expected, strict=True))
                if a != x and (a != 1 or t.name in FIXED)
            ]
            if wrong:
                message = (
                    f"`{t.name}` has shape {shape_of(given)}; the spec declares {declared(t)}, "
                    f"here [{', '.join(map(str, expected))}]"
                )
                return self._report("E207", message, t, self._origin(t, wrong[0], values))
        return None

    def _values(self) -> Values:
        return self.signature.sizes([given for _, given in self.pairs], self.q_start)

    def _origin(self, t: Tensor, dim: int, values: Values) -> str:
        """Says where the expected extent came from."""
        extent = show(t.dims[dim])
        bound = next((s for s in self.signature.program.sizes if s.name == extent), None)
        if bound is not None and bound.tensor != t.name:
            return f"{extent} = {values[bound.name]} comes from dimension {bound.dim} of `{bound.tensor}`"
        number = str(evaluator(t.dims[dim])(values))
        return f"dimension {dim} must be {extent}" + (f" = {number}" if number != extent else "")

    def _relations(self) -> Diagnostic | None:
        values = self._values()
        for check in self.signature.program.checks:
            if not evaluator(check.relation)(values):
                used = {n.name for n in postorder([check.relation]) if isinstance(n, Size)}
                shown = ", ".join(f"{name} = {value}" for name, value in values.items() if name in used)
                return Diagnostic("E211", check.message, self.signature.program.source, check.span, f"here {shown}")
        return None


def declared(t: Tensor) -> str:
    """A tensor as its spec declares it, ``f32[H, 2 * R + 1]``."""
    dims = ", ".join(show(d).removeprefix("(").removesuffix(")") for d in t.dims)
    return f"{'' if t.dtype in ('q', 'real') else t.dtype}[{dims}]"


def shape_of(t: TorchTensor) -> str:
    return f"[{', '.join(map(str, t.shape))}]"


def check_names(program: Program, given: Sequence[str]) -> None:
    """Raise `CallError` unless the keyword tensors are all those the spec needs and none it does not know."""
    declared_here = [t for t in program.tensors if t.role == "operand" and t.name not in FIXED]
    known = [t.name for t in declared_here]
    for name in given:
        if name not in known:
            message = f"the spec `{program.name}` has no tensor `{name}`"
            raise CallError(Diagnostic("E206", message, remedy=_suggestion(name, known, program.consts)))
    missing = [t for t in declared_here if t.default is None and t.name not in given]
    if missing:
        t = missing[0]
        what = (
            f"tensors {', '.join(f'`{m.name}`' for m in missing)} are" if len(missing) > 1 else f"tensor `{t.name}` is"
        )
        message = f"the {what} missing: the spec declares {t.name}: {declared(t)}"
        call = ", ".join(f"{m.name}=..." for m in missing)
        source = program.source if t.span is not None else None
        raise CallError(Diagnostic("E205", message, source, t.span, f"call op(q, k, v, {call})"))


def _suggestion(name: str, known: Sequence[str], consts: Mapping[str, Any]) -> str:
    if name in consts:
        return f"`{name}` is a constant of the spec; set it with attnc.compile(spec, {name}=...)"
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"its tensors are {', '.join(known)}" if known else "it takes q, k and v alone"


def position(q_start: Any) -> Any:
    """`q_start` as an integer where it is one (a NumPy integer, a one-element tensor), else unchanged."""
    if isinstance(q_start, int | torch.SymInt):
        return q_start
    try:
        return operator.index(q_start)
    except TypeError:
        return q_start
