"""Builds tree nodes from parser reductions. Spans are offsets in the whole text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from lark import Token, Transformer

from attnc.diagnostics.source import Span
from attnc.grammar import tree
from attnc.grammar.tree import Expr, Name, Tree

LARGEST_INT = 2**63 - 1
LONGEST_NUMBER = 400

N = TypeVar("N")


class Mistake(Exception):
    """A syntax mistake found while building; the parser turns it into a Diagnostic."""

    def __init__(self, code: str, message: str, span: Span, remedy: str) -> None:
        super().__init__(message)
        self.code, self.message, self.span, self.remedy = code, message, span, remedy


@dataclass(frozen=True, slots=True)
class Header(Tree):
    """`attention NAME`."""

    name: Name


@dataclass(frozen=True, slots=True)
class Docstring(Tree):
    """A line holding nothing but text in double quotes."""

    text: str


@dataclass(frozen=True, slots=True)
class _Keyword(Tree):
    name: Name
    value: Expr


@dataclass(frozen=True, slots=True)
class _Group(Tree):
    """What stands in brackets: dims, axes, params, subscripts or arguments."""

    items: tuple[Tree, ...]

    def of(self, kind: type[N]) -> tuple[N, ...]:
        return tuple(item for item in self.items if isinstance(item, kind))

    @property
    def expressions(self) -> tuple[Expr, ...]:
        return tuple(item for item in self.items if not isinstance(item, _Keyword))  # type: ignore[misc]


Part = Tree | Token
Parts = Sequence[Part]


def _ends(part: Part) -> tuple[int, int]:
    if isinstance(part, Token):
        return part.start_pos or 0, part.end_pos or 0
    return part.span.start, part.span.end


def _span(parts: Parts) -> Span:
    return Span(_ends(parts[0])[0], _ends(parts[-1])[1])


def _trees(parts: Parts) -> list[Tree]:
    return [part for part in parts if isinstance(part, Tree)]


def _expr(part: Part) -> Expr:
    assert isinstance(part, Expr)
    return part


def _name(part: Part) -> Name:
    assert isinstance(part, Name)
    return part


def depth(root: Tree) -> int:
    """Nodes on the longest path from `root` to a leaf, without recursion."""
    deepest = 0
    stack: list[tuple[Tree, int]] = [(root, 1)]
    while stack:
        node, level = stack.pop()
        deepest = max(deepest, level)
        stack.extend((child, level + 1) for child in _children(node))
    return deepest


def _children(node: Tree) -> Iterator[Tree]:
    pending: list[object] = [getattr(node, f.name) for f in fields(node)]
    while pending:
        value = pending.pop()
        if isinstance(value, Tree):
            yield value
        elif isinstance(value, tuple):
            pending.extend(value)


class Builder(Transformer[Token, Tree]):
    """One method per rule of `attn.lark`; each gets every child of its rule, punctuation included."""

    # statements

    def header(self, parts: Parts) -> Header:
        return Header(_name(parts[1]), span=_span(parts))

    def docstring(self, parts: Parts) -> Docstring:
        return Docstring(str(parts[0])[1:-1], span=_span(parts))

    def const(self, parts: Parts) -> tree.ConstDecl:
        return tree.ConstDecl(_name(parts[1]), _expr(parts[3]), span=_span(parts))

    def size(self, parts: Parts) -> tree.SizeDecl:
        return tree.SizeDecl(_name(parts[1]), span=_span(parts))

    def index(self, parts: Parts) -> tree.IndexDecl:
        return tree.IndexDecl(_name(parts[1]), _expr(parts[3]), span=_span(parts))

    def tensor(self, parts: Parts) -> tree.TensorDecl:
        name, *rest = _trees(parts)
        dtype = _name(rest.pop(0)) if isinstance(rest[0], Name) else None
        dims = rest.pop(0)
        assert isinstance(dims, _Group)
        default = _expr(rest[0]) if rest else None
        return tree.TensorDecl(_name(name), dtype, dims.expressions, default, span=_span(parts))

    def let(self, parts: Parts) -> tree.Let:
        name, *axes, value = _trees(parts)
        indices = axes[0].of(Name) if axes and isinstance(axes[0], _Group) else None
        return tree.Let(_name(name), indices, _expr(value), span=_span(parts))

    def _define(self, parts: Parts, is_normaliser: bool) -> tree.Def:
        name, *groups, body = _trees(parts)
        names = [group.of(Name) for group in groups if isinstance(group, _Group)]
        params, axes = names[-1], names[0] if len(names) == 2 else ()
        _no_repeats(params)
        return tree.Def(_name(name), axes, params, _expr(body), is_normaliser, span=_span(parts))

    def def_(self, parts: Parts) -> tree.Def:
        return self._define(parts, is_normaliser=False)

    def normaliser_def(self, parts: Parts) -> tree.Def:
        return self._define(parts, is_normaliser=True)

    def section(self, parts: Parts) -> tree.Section:
        return tree.Section(str(parts[0]), _expr(parts[2]), span=_span(parts))

    def normaliser(self, parts: Parts) -> tree.Section:
        *param, value = _trees(parts)
        return tree.Section("normaliser", _expr(value), _name(param[0]) if param else None, span=_span(parts))

    def observe(self, parts: Parts) -> tree.Observe:
        return tree.Observe(_name(parts[1]), _expr(parts[3]), span=_span(parts))

    # brackets

    def _group(self, parts: Parts) -> _Group:
        return _Group(tuple(_trees(parts)), span=_span(parts))

    dims = params = subscripts = arguments = _group

    def axes(self, parts: Parts) -> _Group:
        group = self._group(parts)
        _no_repeats(group.of(Name))
        return group

    def keyword(self, parts: Parts) -> _Keyword:
        return _Keyword(_name(parts[0]), _expr(parts[2]), span=_span(parts))

    # expressions

    def conditional(self, parts: Parts) -> tree.Conditional:
        return tree.Conditional(_expr(parts[0]), _expr(parts[2]), _expr(parts[4]), span=_span(parts))

    def binary(self, parts: Parts) -> tree.Binary:
        return tree.Binary(str(parts[1]), _expr(parts[0]), _expr(parts[2]), span=_span(parts))

    def unary(self, parts: Parts) -> tree.Unary:
        return tree.Unary(str(parts[0]), _expr(parts[1]), span=_span(parts))

    def compare(self, parts: Parts) -> tree.Compare:
        operands = tuple(_expr(part) for part in parts[::2])
        return tree.Compare(operands, tuple(str(part) for part in parts[1::2]), span=_span(parts))

    def group(self, parts: Parts) -> Tree:
        return replace(_expr(parts[1]), span=_span(parts))

    def subscript(self, parts: Parts) -> tree.Subscript:
        base, index = parts
        assert isinstance(index, _Group)
        for blocks in index.of(tree.Blocks):
            remedy = "a subscript is one position; `by` stands in the brackets before a call, as in `sum[j by 64](…)`"
            raise Mistake("E011", "`by` has no meaning in a subscript", blocks.span, remedy)
        return tree.Subscript(_name(base), index.expressions, span=_span(parts))

    def apply(self, parts: Parts) -> tree.Apply:
        return self._apply(parts, ())

    def apply_axes(self, parts: Parts) -> tree.Apply:
        axes = parts[1]
        assert isinstance(axes, _Group)
        for axis in axes.items:
            if not isinstance(axis, Name | tree.Blocks):
                remedy = "write bare index names, as in `sum[j](…)`; brackets before a call hold the axes it runs over"
                raise Mistake("E011", "an axis must be the name of an index", axis.span, remedy)
        named = tuple(item for item in axes.items if isinstance(item, Name | tree.Blocks))
        _no_repeats([item.axis if isinstance(item, tree.Blocks) else item for item in named])
        return self._apply(parts, named)

    def blocks(self, parts: Parts) -> tree.Blocks:
        axis, _, length = parts
        if not isinstance(axis, Name):
            remedy = "write the bare name of an index before `by`, as in `sum[j by 64](…)`"
            raise Mistake("E011", "an axis must be the name of an index", _expr(axis).span, remedy)
        return tree.Blocks(axis, _expr(length), span=_span(parts))

    def _apply(self, parts: Parts, axes: tuple[Name | tree.Blocks, ...]) -> tree.Apply:
        arguments = parts[-1]
        assert isinstance(arguments, _Group)
        keywords = arguments.of(_Keyword)
        _no_repeats([keyword.name for keyword in keywords])
        for k, item in enumerate(arguments.items):
            if not isinstance(item, _Keyword) and k >= len(arguments.items) - len(keywords):
                remedy = "put it before the keyword arguments"
                raise Mistake("E012", "a positional argument follows a keyword argument", item.span, remedy)
        pairs = tuple((keyword.name, keyword.value) for keyword in keywords)
        return tree.Apply(_name(parts[0]), arguments.expressions, pairs, axes, span=_span(parts))

    def name(self, parts: Parts) -> Name:
        return Name(str(parts[0]), span=_span(parts))

    def truth(self, parts: Parts) -> tree.Truth:
        return tree.Truth(str(parts[0]) == "true", span=_span(parts))

    def number(self, parts: Parts) -> tree.Number:
        text = str(parts[0])
        value: int | float = 0
        if len(text) <= LONGEST_NUMBER:
            value = int(text) if text.isdigit() else float(text)
        if len(text) > LONGEST_NUMBER or value == float("inf") or (isinstance(value, int) and value > LARGEST_INT):
            shown = text if len(text) <= 24 else text[:20] + "…"
            remedy = f"integers go up to {LARGEST_INT}, reals up to about 1.8e308; infinity is written `inf`"
            raise Mistake("E009", f"the number {shown} is too large", _span(parts), remedy)
        return tree.Number(value, text, span=_span(parts))


setattr(Builder, "def", Builder.def_)


def _no_repeats(names: Sequence[Name]) -> None:
    seen: set[str] = set()
    for name in names:
        if name.id in seen:
            raise Mistake("E012", f"`{name.id}` is given twice", name.span, "keep one of them, or rename one")
        seen.add(name.id)
