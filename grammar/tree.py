"""Syntax tree of `.attn` files. Every node carries the span of source it came from; spans take no part in equality."""

from __future__ import annotations

from dataclasses import dataclass, field

from attnc.diagnostics.source import Span

NOWHERE = Span(0, 0)


@dataclass(frozen=True, slots=True)
class Tree:
    """Base of all tree nodes."""

    span: Span = field(default=NOWHERE, compare=False, kw_only=True)


# ---------------------------------------------------------------------------------------------------- expressions


@dataclass(frozen=True, slots=True)
class Number(Tree):
    """`12`, `0.5`, `1e-6`, `inf` is a Name. `value` is an int when written without point or exponent."""

    value: int | float
    text: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Truth(Tree):
    """`true` or `false`."""

    value: bool


@dataclass(frozen=True, slots=True)
class Name(Tree):
    """A bare name: index, size, const, let, tensor, stage value."""

    id: str


@dataclass(frozen=True, slots=True)
class Subscript(Tree):
    """`rel[h, clamp(i - j, -R, R) + R]`."""

    base: Name
    index: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Blocks(Tree):
    """`j by 64` in the brackets of a reduction: within blocks of so many positions."""

    axis: Name
    length: Expr


@dataclass(frozen=True, slots=True)
class Apply(Tree):
    """`fn(args, key = value)`, or with axes `fn[j](args)`: reductions, normalisers and functions of axes."""

    fn: Name
    args: tuple[Expr, ...]
    keywords: tuple[tuple[Name, Expr], ...] = ()
    axes: tuple[Name | Blocks, ...] = ()


@dataclass(frozen=True, slots=True)
class Unary(Tree):
    """`op` is one of `-`, `+`, `not`."""

    op: str
    operand: Expr


@dataclass(frozen=True, slots=True)
class Binary(Tree):
    """`op` is one of `+ - * / // % ** & | ^ << >>`, `and`, `or`."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Compare(Tree):
    """A chain `a < b <= c`: operands has one more element than ops (`< <= > >= == !=`)."""

    operands: tuple[Expr, ...]
    ops: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conditional(Tree):
    """`then if condition else otherwise`."""

    then: Expr
    condition: Expr
    otherwise: Expr


Expr = Number | Truth | Name | Subscript | Apply | Unary | Binary | Compare | Conditional


# ----------------------------------------------------------------------------------------------------- statements


@dataclass(frozen=True, slots=True)
class ConstDecl(Tree):
    """`const W = 256`."""

    name: Name
    value: Expr


@dataclass(frozen=True, slots=True)
class SizeDecl(Tree):
    """`size L`."""

    name: Name


@dataclass(frozen=True, slots=True)
class IndexDecl(Tree):
    """`index a: A` or `index c: 3`."""

    name: Name
    extent: Expr


@dataclass(frozen=True, slots=True)
class TensorDecl(Tree):
    """`tensor slope: f32[H] = 2 ** (...)`; dtype None means the query's."""

    name: Name
    dtype: Name | None
    dims: tuple[Expr, ...]
    default: Expr | None = None


@dataclass(frozen=True, slots=True)
class Let(Tree):
    """`let x = e` (indices None) or `let u[a, e] = e`."""

    name: Name
    indices: tuple[Name, ...] | None
    value: Expr


@dataclass(frozen=True, slots=True)
class Def(Tree):
    """`def cap(x, c) = e`, `def f[a](x) = e` with axis parameters, or in the prelude and in specs
    `normaliser softmax[a](s, sink) = e` (is_normaliser). Overloads differ in their parameter names."""

    name: Name
    axes: tuple[Name, ...]
    params: tuple[Name, ...]
    body: Expr
    is_normaliser: bool = False


@dataclass(frozen=True, slots=True)
class Section(Tree):
    """`query|key|value|score|bias|mask|mask_value|empty_rows|normaliser|weight|output|gate = e`; `keyword` is the
    canonical spelling. `normaliser(s) = e` is a Section whose `param` is the Name `s`."""

    keyword: str
    value: Expr
    param: Name | None = None


@dataclass(frozen=True, slots=True)
class Observe(Tree):
    """`observe entropy = e`."""

    name: Name
    value: Expr


Statement = ConstDecl | SizeDecl | IndexDecl | TensorDecl | Let | Def | Section | Observe


@dataclass(frozen=True, slots=True)
class Definition(Tree):
    """One `attention NAME` block."""

    name: Name
    doc: str | None
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class File(Tree):
    """A parsed file. The prelude is a File whose `defs` hold its functions and which has no definitions."""

    definitions: tuple[Definition, ...]
    defs: tuple[Def, ...] = ()
