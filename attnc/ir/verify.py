"""Checks that a program is well formed. Run after every pass in tests; a failure is a bug in attnc."""

from __future__ import annotations

from collections.abc import Iterable

from attnc.diagnostics.diagnostic import InternalError
from attnc.ir.construct import free_axes
from attnc.ir.functions import FUNCTIONS
from attnc.ir.kinds import LOGIC, joint_kind, result_kind
from attnc.ir.node import Add, Axes, Axis, Call, Const, Iverson, Kind, Load, Max, Node, Prod, Size, Sum, Var
from attnc.ir.printer import show
from attnc.ir.program import Output, Program, Tensor
from attnc.ir.walk import postorder


def verify(program: Program) -> None:
    """Check a program.

    Raises:
        InternalError: an unknown axis, size, tensor or function; inconsistent kinds or axes; a captured axis; a domain
            that is not boolean; an output with axes it does not declare; a load with the wrong number of indices.
    """
    _verify_declarations(program)
    checker = _Checker(program)
    for node in postorder(program.roots()):
        checker.check(node)
    for out in program.outputs:
        _verify_output(program, out)


def _verify_declarations(program: Program) -> None:
    tensors = {t.name: t for t in program.tensors}
    _require(len(tensors) == len(program.tensors), program, "two tensors have the same name")
    for s in program.sizes:
        known = s.tensor in tensors and 0 <= s.dim < len(tensors[s.tensor].dims)
        _require(known, program, f"size {s.name} is bound by a dimension that does not exist: {s.tensor}[{s.dim}]")
    for name, info in program.axes.items():
        _require(name == info.name, program, f"axis {info.name} is listed as {name}")
        _require(info.extent.kind == "i" and not info.extent.axes, program, f"axis {name} has no constant extent")
    for t in program.tensors:
        _require(all(d.kind == "i" and not d.axes for d in t.dims), program, f"tensor {t.name} has no constant shape")
        if t.default is not None:
            loose = t.default.axes - set(t.default_axes)
            _require(not loose, program, f"the default of {t.name} varies along {_listed(loose)}")
            _require(len(t.default_axes) == len(t.dims), program, f"the default of {t.name} has the wrong axes")


def _verify_output(program: Program, out: Output) -> None:
    for axes, node in out.parts:
        _require(len(set(axes)) == len(axes) == len(out.dims), program, f"output {out.name} has the wrong axes {axes}")
        unknown = [a for a in axes if a.rstrip("'") not in program.axes]
        _require(not unknown, program, f"output {out.name} has unknown axes {_listed(unknown)}")
        loose = node.axes - set(axes)
        _require(not loose, program, f"output {out.name} varies along undeclared axes {_listed(loose)}")
        _require(node.kind != "b", program, f"output {out.name} is boolean")


def _require(condition: bool, program: Program, message: str) -> None:
    if not condition:
        raise InternalError(f"{program.name}: {message}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


class _Checker:
    """Checks one node at a time, given that its children are right."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.axes = frozenset(program.axes)
        self.sizes = {"q_start"} | {s.name for s in program.sizes}
        self.tensors: dict[str, Tensor] = {t.name: t for t in program.tensors}

    def check(self, node: Node) -> None:
        self._known_axes(node)
        axes, kind = self._expected(node)
        self._require(node.axes == axes, node, f"its axes are recorded as {_listed(node.axes)}, not {_listed(axes)}")
        self._require(node.kind == kind, node, f"its kind is recorded as {node.kind}, not {kind}")

    def _require(self, condition: bool, node: Node, message: str) -> None:
        if not condition:
            raise InternalError(f"{self.program.name}: {message}, in {show(node, limit=200)}")

    def _known_axes(self, node: Node) -> None:
        names = set(node.axes)
        if isinstance(node, Sum | Max):
            names |= node.bound
        unknown = {a for a in names if a.rstrip("'") not in self.axes}
        self._require(not unknown, node, f"unknown axes {_listed(unknown)}")

    def _expected(self, node: Node) -> tuple[Axes, Kind]:
        """The axes and kind a node must have, after checking what it is made of."""
        match node:
            case Const():
                return frozenset(), "b" if isinstance(node.value, bool) else "i" if isinstance(node.value, int) else "f"
            case Axis():
                return frozenset((node.name,)), "i"
            case Size():
                self._require(node.name in self.sizes, node, "unknown size")
                return frozenset(), "i"
            case Load():
                return self._load(node)
            case Call():
                return free_axes(node.args), self._call(node)
            case Iverson():
                self._kinds(node, [node.condition], "b")
                return node.condition.axes, "f"
            case Add() | Prod():
                self._kinds(node, node.children, "fi")
                return free_axes(node.children), joint_kind(node.children)
            case Sum():
                return self._sum(node)
            case Max():
                self._kinds(node, [node.body], "fi")
                self._kinds(node, node.domain, "b")
                return free_axes(node.children) - node.bound, node.body.kind
            case Var():
                raise InternalError(f"{self.program.name}: {node.name} is a variable of a kernel, not of a program")
            case _:
                raise InternalError(f"{self.program.name}: unknown node class {type(node).__name__}")

    def _kinds(self, node: Node, parts: Iterable[Node], allowed: str) -> None:
        for p in parts:
            self._require(p.kind in allowed, node, f"{show(p, limit=80)} has kind {p.kind}, expected one of {allowed}")

    def _load(self, node: Load) -> tuple[Axes, Kind]:
        tensor = self.tensors.get(node.tensor)
        if tensor is None:
            raise InternalError(f"{self.program.name}: unknown tensor {node.tensor}")
        self._require(
            len(node.index) == len(tensor.dims), node, f"{len(node.index)} indices into {len(tensor.dims)} dimensions"
        )
        self._kinds(node, node.index, "i")
        return free_axes(node.index), "f" if tensor.is_real else "b" if tensor.dtype == "bool" else "i"

    def _sum(self, node: Sum) -> tuple[Axes, Kind]:
        self._kinds(node, node.factors, "fi")
        self._kinds(node, node.domain, "b")
        self._kinds(node, (n for _, n in node.scatter), "i")
        targets = [a for a, _ in node.scatter]
        self._require(len(set(targets)) == len(targets), node, "two scattered axes have the same name")
        outer = free_axes(node.children) - node.bound
        captured = outer & set(targets)
        self._require(not captured, node, f"the scattered sum captures {_listed(captured)}")
        return outer.union(targets), joint_kind(node.factors)

    def _call(self, node: Call) -> Kind:
        function = FUNCTIONS.get(node.fn)
        self._require(function is not None and function.primitive, node, f"no primitive function {node.fn}")
        assert function is not None
        arity = function.arity
        self._require(arity in (-1, len(node.args)), node, f"{node.fn} takes {arity} arguments, not {len(node.args)}")
        if node.fn in LOGIC:
            self._kinds(node, node.args, "b")
        elif node.fn == "where":
            self._kinds(node, node.args[:1], "b")
            kinds = {x.kind for x in node.args[1:]}
            self._require("b" not in kinds or kinds == {"b"}, node, "it mixes numbers and truth values")
        elif node.fn != "eq" or {x.kind for x in node.args} != {"b"}:
            self._kinds(node, node.args, "fi")
        return result_kind(node.fn, node.args)
