"""Text to IR: the inverse of `attnc.ir.printer`. Nodes come out identical to those printed, canonical or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedInput

from attnc.diagnostics.diagnostic import InternalError
from attnc.ir.construct import FALSE, TRUE, axis, const, free_axes, load, raw_call, size
from attnc.ir.kinds import joint_kind, result_kind
from attnc.ir.node import Add, Iverson, Kind, Max, Node, Prod, Sum
from attnc.ir.printer import INFIX
from attnc.ir.program import AxisInfo, Check, Output, Program, SizeBinding, Tensor

GRAMMAR = r"""
line: "program" NAME [STRING]                                    -> program
    | "const" NAME "=" NUMBER                                    -> constant
    | "size" NAME ["=" NAME "[" NUMBER "]"]                      -> size
    | "axis" NAME ":" atom "," NAME                              -> axis
    | "tensor" NAME list ":" NAME "," NAME ["=" part]            -> tensor
    | "check" atom ":" STRING                                    -> check
    | "let" NAME names "=" atom                                  -> let
    | HEAD NAME list ":" NAME [of] "=" part ("+" part)*          -> output
of: "of" NAME
part: "at" names atom
HEAD.2: /(output|observe)\b/

atom: NUMBER                                                     -> number
    | TRUTH                                                      -> truth
    | NAME                                                       -> name
    | NAME list                                                  -> load
    | "[" atom "]"                                               -> bracket
    | NAME [":" NAME] "(" [atom ("," atom)*] ")"                 -> call
    | "(" atom ("+" atom)+ ")"                                   -> add
    | "+" "(" atom ")"                                           -> add
    | "(" atom ("*" atom)+ ")"                                   -> prod
    | "*" "(" atom ")"                                           -> prod
    | "(" atom ("and" atom)+ ")"                                 -> conjunction
    | "(" atom ("or" atom)+ ")"                                  -> disjunction
    | "(" atom BINARY atom ")"                                   -> binary
    | "sum" "[" bound domain scatter "]" "(" atom ("*" atom)* ")" -> sum
    | "max" "[" bound domain "]" "(" atom ")"                    -> max
bound: [NAME ("," NAME)*]
domain: ["|" atom ("&" atom)*]
scatter: ["->" target ("," target)*]
target: NAME "=" atom
list: "[" [atom ("," atom)*] "]"
names: "[" [NAME ("," NAME)*] "]"

BINARY: "<=" | "<" | "==" | "//" | "%" | "**"
TRUTH.2: /(True|False)\b/
NAME: /[A-Za-z_][A-Za-z_0-9]*'*/
NUMBER.2: /-?((inf|nan)\b|\d+(\.\d+)?(e[+-]?\d+)?)/
STRING: /"([^"\\]|\\.)*"/
%ignore /[ \t]+/
%ignore /#[^\n]*/
"""

_FUNCTION = {sign: fn for fn, sign in INFIX.items()}


@cache
def _lark() -> Lark:
    return Lark(GRAMMAR, parser="lalr", start=["line", "atom"], maybe_placeholders=False)


@dataclass
class Scope:
    """What names mean in an expression.

    Attributes:
        axes: unprimed names of axes.
        sizes: names of sizes.
        tensors: the kind of every tensor's elements.
        values: other names: named values, variables.
    """

    axes: set[str] = field(default_factory=set)
    sizes: set[str] = field(default_factory=lambda: {"q_start"})
    tensors: dict[str, Kind] = field(default_factory=dict)
    values: dict[str, Node] = field(default_factory=dict)

    def named(self, name: str) -> Node:
        if name in self.values:
            return self.values[name]
        if name.rstrip("'") in self.axes:
            return axis(name)
        if name in self.sizes:
            return size(name)
        raise InternalError(f"unknown name {name} in the text of a program")


def parse_expression(text: str, scope: Scope) -> Node:
    """The node that `show` wrote as `text`."""
    return _node(_parsed(text, "atom"), scope)


def _parsed(text: str, start: str) -> Tree[Token]:
    try:
        return _lark().parse(text, start=start)
    except UnexpectedInput as error:
        raise InternalError(f"cannot read the text of a program:\n{error.get_context(text)}") from error


def _trees(tree: Tree[Token]) -> list[Tree[Token]]:
    return [c for c in tree.children if isinstance(c, Tree)]


def _tokens(tree: Tree[Token]) -> list[str]:
    return [str(c) for c in tree.children if isinstance(c, Token)]


def _number(text: str) -> float | int:
    return float(text) if any(c in text for c in ".en") else int(text)


def _node(tree: Tree[Token], scope: Scope) -> Node:
    def go(t: Tree[Token]) -> Node:
        return _node(t, scope)

    words, trees = _tokens(tree), _trees(tree)
    match tree.data:
        case "number":
            return const(_number(words[0]))
        case "truth":
            return TRUE if words[0] == "True" else FALSE
        case "name":
            return scope.named(words[0])
        case "load":
            return load(words[0], [go(t) for t in _trees(trees[0])], scope.tensors[words[0]])
        case "bracket":
            condition = go(trees[0])
            return cast(Node, Iverson.intern((condition,), condition.axes, "f"))
        case "call":
            args = tuple(map(go, trees))
            return raw_call(words[0], args, cast(Kind, words[1]) if len(words) > 1 else result_kind(words[0], args))
        case "conjunction" | "disjunction":
            return raw_call("and" if tree.data == "conjunction" else "or", [go(t) for t in trees], "b")
        case "binary":
            args = tuple(map(go, trees))
            fn = _FUNCTION[words[0]]
            return raw_call(fn, args, result_kind(fn, args))
        case "add" | "prod":
            parts = tuple(map(go, trees))
            cls = Add if tree.data == "add" else Prod
            return cast(Node, cls.intern((parts,), free_axes(parts), joint_kind(parts)))
        case _:
            return _reduction(tree, go)


def _reduction(tree: Tree[Token], go: Callable[[Tree[Token]], Node]) -> Node:
    heads = {str(t.data): t for t in _trees(tree)[:3]}
    body = tuple(go(t) for t in _trees(tree) if t.data not in ("bound", "domain", "scatter"))
    bound = frozenset(_tokens(heads["bound"]))
    domain = tuple(map(go, _trees(heads["domain"])))
    if tree.data == "max":
        axes = free_axes([*body, *domain]) - bound
        return cast(Node, Max.intern((bound, body[0], domain), axes, body[0].kind))
    scatter = tuple((_tokens(t)[0], go(_trees(t)[0])) for t in _trees(heads["scatter"]))
    axes = free_axes([*body, *domain, *(n for _, n in scatter)]) - bound
    axes |= {a for a, _ in scatter}
    return cast(Node, Sum.intern((bound, body, domain, scatter), axes, joint_kind(body)))


def parse_program(text: str) -> Program:
    """The program that `print_program` wrote, without its notes, its source and the spans of its declarations."""
    reader = _Reader()
    for line in text.splitlines():
        if line.split("#")[0].strip():
            reader.read(_parsed(line, "line"))
    return Program(**reader.fields)


class _Reader:
    """Collects the fields of a program line by line."""

    def __init__(self) -> None:
        self.scope = Scope()
        self.fields: dict[str, Any] = {
            "tensors": (),
            "outputs": (),
            "axes": {},
            "sizes": (),
            "checks": (),
            "consts": {},
            "observed": (),
        }

    def read(self, tree: Tree[Token]) -> None:
        words, trees = _tokens(tree), _trees(tree)
        match tree.data:
            case "program":
                self.fields["name"] = words[0]
                self.fields["doc"] = json.loads(words[1]) if len(words) > 1 else None
            case "constant":
                self.fields["consts"][words[0]] = _number(words[1])
            case "size":
                self.scope.sizes.add(words[0])
                if len(words) > 1:
                    self.fields["sizes"] += (SizeBinding(words[0], words[1], int(words[2])),)
            case "axis":
                role = cast(Any, words[1])
                self.fields["axes"][words[0]] = AxisInfo(words[0], _node(trees[0], self.scope), role)
                self.scope.axes.add(words[0])
            case "tensor":
                self._tensor(words, trees)
            case "check":
                self.fields["checks"] += (Check(_node(trees[0], self.scope), json.loads(words[0])),)
            case "let":
                self.scope.values[words[0]] = _node(trees[1], self.scope)
            case _:
                self._output(words, trees)

    def _tensor(self, words: list[str], trees: list[Tree[Token]]) -> None:
        name, dtype, role = words
        dims = tuple(_node(t, self.scope) for t in _trees(trees[0]))
        axes, default = self._part(trees[1], default=True) if len(trees) > 1 else ((), None)
        tensor = Tensor(name, dims, dtype, cast(Any, role), default, axes)
        self.scope.tensors[name] = "f" if tensor.is_real else "b" if dtype == "bool" else "i"
        self.fields["tensors"] += (tensor,)

    def _output(self, words: list[str], trees: list[Tree[Token]]) -> None:
        head, name, dtype = words
        dims = tuple(_node(t, self.scope) for t in _trees(trees[0]))
        of = next((_tokens(t)[0] for t in trees if t.data == "of"), None)
        parts = tuple(self._part(t) for t in trees if t.data == "part")
        self.fields["outputs"] += (Output(name, parts, dims, dtype, of),)
        if head == "observe":
            self.fields["observed"] += (name,)

    def _part(self, tree: Tree[Token], *, default: bool = False) -> tuple[tuple[str, ...], Node]:
        """Axes and expression. A default has axes of its own."""
        names, body = _trees(tree)
        axes = tuple(_tokens(names))
        scope = self.scope
        if default:
            scope = Scope(scope.axes | {a.rstrip("'") for a in axes}, scope.sizes, scope.tensors, scope.values)
        return axes, _node(body, scope)
