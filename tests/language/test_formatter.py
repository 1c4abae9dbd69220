"""Canonical layout: nothing is lost, nothing changes meaning, and a second pass changes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnc.diagnostics import Source, SpecError
from attnc.grammar import tree
from attnc.grammar.formatter import format_source
from attnc.grammar.parser import parse, prelude_source
from attnc.grammar.scanner import tokens_of
from attnc.grammar.tree import Apply, Binary, Compare, Conditional, Expr, Name, Number, Subscript, Truth, Unary

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.attn"))
TEXTS = [path.read_text(encoding="utf-8") for path in EXAMPLES]


def formatted(text: str) -> str:
    """`text` in canonical layout, once it is clear that layout is all that changed."""
    new = format_source(Source("f", text))
    assert parse(Source("f", new)) == parse(Source("f", text))
    assert format_source(Source("f", new)) == new
    assert comments(new) == comments(text)
    return new


def comments(text: str) -> list[str]:
    return [token.text.rstrip() for token in tokens_of(text) if token.kind == "comment"]


@pytest.mark.parametrize("text", TEXTS, ids=[path.stem for path in EXAMPLES])
def test_examples_are_in_canonical_layout(text: str) -> None:
    assert formatted(text) == text


def test_the_prelude_is_in_canonical_layout() -> None:
    assert format_source(prelude_source(), prelude=True) == prelude_source().text


def test_the_printed_specs_of_the_contract_keep_their_columns() -> None:
    text = (
        "attention watched                                # seen\n"
        "mask = j <= i\n"
        "observe entropy    = -sum[j](xlogy(p, p))        # [B, H, M]\n"
        "observe importance = sum[i](p)                   # [B, H, N]\n"
        "observe distance   = sum[j](p * abs(i - j))\n"
    )
    assert formatted(text) == text


LAYOUTS = {
    "x=1": "x = 1",
    "x = -  y [ h ,1+- 2*-3**-2]": "x = -y[h, 1 + -2 * -3 ** -2]",
    "x = not( i<j )and not -i<j": "x = not (i < j) and not -i < j",
    "x = (a)if(b)else(c)": "x = (a) if (b) else (c)",
    "x = f ( )": "x = f()",
    "x = sum [ j ] ( p )": "x = sum[j](p)",
    "x = 2**-x": "x = 2 ** -x",
    "x = a-(-b)- -c": "x = a - (-b) - -c",
    "x = f(a,k=-1,)": "x = f(a, k = -1,)",
    "x = 1.50E-3 + .5": "x = 1.50E-3 + .5",
    "x = 0<=i-j<W": "x = 0 <= i - j < W",
    "x = a if b else-c": "x = a if b else -c",
    "x = a or-b": "x = a or -b",
}


@pytest.mark.parametrize("text", LAYOUTS)
def test_expression_layout(text: str) -> None:
    assert formatted(f"attention a\nlet {text}") == f"attention a\nlet {LAYOUTS[text]}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tensor t :f32 [H,2*R+1]=2**( - 8)", "tensor t: f32[H, 2 * R + 1] = 2 ** (-8)"),
        ("tensor t:[ D ]", "tensor t: [D]"),
        ("index  c:3", "index c: 3"),
        ("def f [ j ] ( x,y )=x", "def f[j](x, y) = x"),
        ("normalizer ( s )=s", "normaliser(s) = s"),
        ("normalizer=softmax(sink=sink[h])", "normaliser = softmax(sink = sink[h])"),
        ("\tmask = true  ", "mask = true"),
        ("observe normalizer = normalizer", "observe normalizer = normalizer"),
    ],
)
def test_statement_layout(text: str, expected: str) -> None:
    assert formatted(f"attention a\n{text}") == f"attention a\n{expected}\n"


def test_lines_in_brackets_keep_their_breaks() -> None:
    text = "attention a\nscore = dot(q,\n # inside\nk,   # after\n\n  f(\n 1),\n)  # end\nmask = true"
    assert formatted(text) == (
        "attention a\nscore = dot(q,\n    # inside\n    k,  # after\n    f(\n        1),\n)  # end\nmask = true\n"
    )


def test_blank_lines() -> None:
    text = "\n\n# top\n\n\n\nattention a\n\n\nmask = true\n# of b\nattention b\nattention c\n\n\n# end\n\n"
    assert formatted(text) == "# top\n\nattention a\n\nmask = true\n\n# of b\nattention b\n\nattention c\n\n# end\n"


def test_windows_text_becomes_plain() -> None:
    assert formatted("\ufeffattention a\r\n\r\nmask = true # x\r\n") == "attention a\n\nmask = true  # x\n"


def test_comments_move_only_where_code_needs_the_room() -> None:
    text = "attention a\nlet x=1+2+3+4 # one\nlet y=1          # two\nlet z = 1    # three\n"
    assert formatted(text) == (
        "attention a\nlet x = 1 + 2 + 3 + 4  # one\nlet y = 1        # two\nlet z = 1    # three\n"
    )


def test_aligned_comments_move_together() -> None:
    text = "attention a\nlet x=1+2+3 # one\nlet y=1     # two\n"
    assert formatted(text) == "attention a\nlet x = 1 + 2 + 3  # one\nlet y = 1          # two\n"


def test_equals_signs_stay_aligned_where_they_were() -> None:
    text = "attention a\nlet long=1\nlet x   =2\nlet  y = 3\nlet zz  = 3\n"
    assert formatted(text) == "attention a\nlet long = 1\nlet x    = 2\nlet y = 3\nlet zz = 3\n"


def test_wrong_text_is_refused() -> None:
    with pytest.raises(SpecError):
        format_source(Source("f", "attention a\nmask ="))


# ------------------------------------------------------------------------------------------------ random specs

NAMES = st.sampled_from(["i", "j", "x", "slope", "H", "mask", "size", "iffy", "_a1"]).map(Name)
NUMBERS = st.one_of(
    st.integers(0, 2**63 - 1).map(Number),
    st.floats(0, 1e300, allow_nan=False).map(Number),
)
LEAVES = st.one_of(NAMES, NUMBERS, st.booleans().map(Truth))
UNIQUE = st.lists(NAMES, max_size=3, unique=True).map(tuple)


def larger(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    some = st.lists(inner, min_size=1, max_size=3).map(tuple)
    signs = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    operators = st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "and", "or"])
    pairs = st.lists(st.tuples(NAMES, inner), max_size=2, unique_by=lambda pair: pair[0].id).map(tuple)
    chains = st.lists(signs, min_size=1, max_size=3).flatmap(
        lambda ops: st.lists(inner, min_size=len(ops) + 1, max_size=len(ops) + 1).map(
            lambda operands: Compare(tuple(operands), tuple(ops))
        )
    )
    return st.one_of(
        st.builds(Subscript, NAMES, some),
        st.builds(Apply, NAMES, st.lists(inner, max_size=3).map(tuple), pairs, UNIQUE),
        st.builds(
            lambda fn, axis, length, x: Apply(fn, (x,), (), (tree.Blocks(axis, length),)), NAMES, NAMES, inner, inner
        ),
        st.builds(Unary, st.sampled_from(["-", "+", "not"]), inner),
        st.builds(Binary, operators, inner, inner),
        chains,
        st.builds(Conditional, inner, inner, inner),
    )


EXPRESSIONS: st.SearchStrategy[Expr] = st.recursive(LEAVES, larger, max_leaves=12)
STATEMENTS: st.SearchStrategy[tree.Statement] = st.one_of(
    st.builds(tree.ConstDecl, NAMES, EXPRESSIONS),
    st.builds(tree.SizeDecl, NAMES),
    st.builds(tree.IndexDecl, NAMES, EXPRESSIONS),
    st.builds(
        tree.TensorDecl, NAMES, st.none() | NAMES, st.lists(EXPRESSIONS, max_size=3).map(tuple), st.none() | EXPRESSIONS
    ),
    st.builds(tree.Let, NAMES, st.none() | UNIQUE.filter(bool), EXPRESSIONS),
    st.builds(tree.Def, NAMES, UNIQUE, UNIQUE, EXPRESSIONS, st.booleans()),
    st.builds(tree.Observe, NAMES, EXPRESSIONS),
)
LEVELS = {"or": 1, "and": 2, "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6}


def printed(node: Expr, level: int = 0) -> str:
    """Text that parses to `node`, with brackets only where the grammar's levels (0 loosest) need them."""
    text, own = _printed(node)
    return f"({text})" if own < level else text


def _printed(node: Expr) -> tuple[str, int]:
    match node:
        case Number():
            return repr(node.value), 9
        case Truth():
            return str(node.value).lower(), 9
        case Name():
            return node.id, 9
        case Subscript():
            return f"{node.base.id}[{_list(node.index)}]", 9
        case Apply():
            axes = f"[{','.join(map(_axis, node.axes))}]" if node.axes else ""
            pairs = [f"{key.id}={printed(value)}" for key, value in node.keywords]
            return f"{node.fn.id}{axes}({','.join([*map(printed, node.args), *pairs])})", 9
        case Unary("not", operand):
            return f"not {printed(operand, 3)}", 3
        case Unary(op, operand):
            return f"{op} {printed(operand, 7)}", 7
        case Binary("**", left, right):
            return f"{printed(left, 9)}**{printed(right, 7)}", 8
        case Binary(op, left, right):
            own = LEVELS[op]
            return f"{printed(left, own)} {op} {printed(right, own + 1)}", own
        case Compare():
            first, *rest = (printed(operand, 5) for operand in node.operands)
            return first + "".join(f"{op}{text}" for op, text in zip(node.ops, rest, strict=True)), 4
        case Conditional():
            then, condition, otherwise = printed(node.then, 1), printed(node.condition, 1), printed(node.otherwise)
            return f"{then} if {condition} else {otherwise}", 0


def _axis(place: Name | tree.Blocks) -> str:
    return place.id if isinstance(place, Name) else f"{place.axis.id} by {printed(place.length)}"


def _list(items: tuple[Expr, ...]) -> str:
    return ",".join(map(printed, items))


def written(statement: tree.Statement) -> str:
    name = "" if isinstance(statement, tree.Section) else statement.name.id
    match statement:
        case tree.ConstDecl():
            return f"const {name} = {printed(statement.value)}"
        case tree.SizeDecl():
            return f"size {name}"
        case tree.IndexDecl():
            return f"index {name}: {printed(statement.extent)}"
        case tree.TensorDecl():
            dtype = statement.dtype.id if statement.dtype else ""
            default = "" if statement.default is None else f"={printed(statement.default)}"
            return f"tensor {name}: {dtype}[{_list(statement.dims)}]{default}"
        case tree.Let():
            return (
                f"let {name}{f'[{_list(statement.indices)}]' if statement.indices else ''}={printed(statement.value)}"
            )
        case tree.Def():
            head = "normaliser" if statement.is_normaliser else "def"
            axes = f"[{_list(statement.axes)}]" if statement.axes else ""
            return f"{head} {name}{axes}({_list(statement.params)}) = {printed(statement.body)}"
        case tree.Observe():
            return f"observe {name} = {printed(statement.value)}"
        case tree.Section():
            param = f"({statement.param.id})" if statement.param else ""
            return f"{statement.keyword}{param} = {printed(statement.value)}"


@given(st.lists(STATEMENTS, max_size=4))
def test_random_specs_survive_printing_and_formatting(statements: list[tree.Statement]) -> None:
    text = "\n".join(["attention a", *map(written, statements)])
    (definition,) = parse(Source("f", text)).definitions
    assert definition.body == tuple(statements)
    formatted(text)


@given(st.sampled_from(TEXTS), st.data())
def test_formatting_undoes_any_spacing(text: str, data: st.DataObject) -> None:
    spaces = st.sampled_from(["", " ", "  ", "\t"])
    ends = st.sampled_from(["\n", "\r\n", "\n\n", " # note\n", "#\n", "\n  # own line\n"])
    out: list[str] = []
    for token in tokens_of(text):
        if token.kind == "space" and "  " not in token.text:
            out.append(data.draw(spaces.filter(bool)))
        elif token.kind == "newline" and (not out or not out[-1].startswith("#")):
            out.append(data.draw(ends))
        else:
            glue = token.kind in ("operator", "open", "close")
            out += [data.draw(spaces), token.text, data.draw(spaces)] if glue else [token.text]
    messy = "".join(out)
    code = [re.sub(r"\s*#.*", "", line).rstrip() for line in formatted(messy).splitlines()]
    expected = [re.sub(r"\s*#.*", "", line).rstrip() for line in text.splitlines()]
    assert [re.sub(" +=", " =", line) for line in code if line] == [
        re.sub(" +=", " =", line) for line in expected if line
    ]
