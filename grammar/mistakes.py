"""Says what is wrong with a piece of syntax and what to write instead."""

from __future__ import annotations

import difflib

from lark.exceptions import UnexpectedInput, UnexpectedToken

from attnc.diagnostics.diagnostic import Diagnostic
from attnc.diagnostics.source import Span
from attnc.grammar.build import Mistake
from attnc.grammar.scanner import BracketMistake, Chunk, Token
from attnc.grammar.tree import Name

_RESERVED = frozenset({"if", "else", "and", "or", "not", "by", "true", "false"})
_SYMBOLS = {
    "EQUAL": "`=`",
    "COLON": "`:`",
    "COMMA": "`,`",
    "RPAR": "`)`",
    "RSQB": "`]`",
    "ELSE": "`else`",
    "$END": "the end of the line",
}

_ALIASES = {
    "scores": "score", "logits": "score", "norm": "normaliser", "normalise": "normaliser", "normalize": "normaliser",
    "softmax": "normaliser", "input": "tensor", "param": "tensor", "parameter": "tensor", "var": "let",
    "function": "def", "fn": "def", "axis": "index", "dim": "size", "constant": "const", "q": "query", "k": "key",
    "v": "value", "out": "output", "o": "output", "attn": "attention", "s": "score", "w": "weight", "p": "weight",
}  # fmt: skip
_JOIN = {"mask": ", or join them with `and`", "bias": ", or add them with `+`", "gate": ", or multiply them"}


# ---------------------------------------------------------------------------------------------------- whole texts


def empty(text: str) -> Mistake:
    what = "holds only comments" if text.strip("\ufeff \t\r\n") else "is empty"
    return Mistake("E007", f"the file {what}", Span(0, 0), "begin a definition with `attention NAME`")


def text_too_long(name: str, length: int, limit: int) -> Diagnostic:
    message = f"`{name}` holds {length:,} characters, more than the {limit:,} a spec may have"
    return Diagnostic("E008", message, remedy="check that this is the file you meant; specs are a few lines long")


# ----------------------------------------------------------------------------------------------------- statements


def unknown_statement(chunk: Chunk, keywords: frozenset[str]) -> Mistake:
    word = chunk.tokens[0]
    lower = word.text.lower()
    close = difflib.get_close_matches(lower, sorted(keywords), n=1, cutoff=0.7)
    nearest = lower if lower in keywords else close[0] if close else _ALIASES.get(lower)
    if word.text == "select":
        remedy = "`select` is reserved; state which pairs may attend with `mask = …`"
    elif word.text in ("import", "from", "include"):
        remedy = "delete it; a spec stands alone and knows its functions already"
    elif nearest:
        remedy = f"did you mean `{nearest}`?"
    elif len(chunk.tokens) > 1 and chunk.tokens[1].text == "=":
        remedy = f"write `let {word.text} = …` to name a value"
    else:
        remedy = "begin it with one of " + ", ".join(sorted(keywords - {"normalizer"}))
    return Mistake("E004", f"`{_clip(word.text)}` does not begin a statement", word.span, remedy)


def statement_too_long(chunk: Chunk, limit: int) -> Mistake:
    length = chunk.span.end - chunk.span.start
    message = f"the statement is {length:,} characters long, more than {limit:,}"
    return Mistake("E008", message, chunk.tokens[0].span, "name parts of it with `let`")


def too_deep(chunk: Chunk, what: str) -> Mistake:
    return Mistake("E008", what, chunk.tokens[0].span, "name parts of it with `let`, and use those names")


def no_header(chunk: Chunk) -> Mistake:
    message = "a statement stands before any `attention`"
    return Mistake("E005", message, chunk.tokens[0].span, "put a line `attention NAME` above it")


def not_in_prelude(chunk: Chunk) -> Mistake:
    return Mistake("E005", "only functions can stand here", chunk.tokens[0].span, "write `def` or `normaliser`")


def same_name(name: Name, line: int) -> Mistake:
    message = f"a second definition is called `{name.id}`; the first is on line {line}"
    return Mistake("E006", message, name.span, "rename one of them")


def repeated_section(keyword: str, span: Span, line: int) -> Mistake:
    remedy = f"keep one of them{_JOIN.get(keyword, '')}"
    return Mistake("E006", f"`{keyword}` is given a second time; the first is on line {line}", span, remedy)


def misplaced_docstring(span: Span) -> Mistake:
    remedy = "put one docstring, on one line, right after `attention NAME`; use `#` for other remarks"
    return Mistake("E010", "text in quotes can only be the docstring", span, remedy)


def bracket(mistake: BracketMistake) -> Mistake:
    token = mistake.token
    match mistake.kind, mistake.partner:
        case "unclosed", _:
            closer = ")" if token.text == "(" else "]"
            return Mistake("E003", f"`{token.text}` is never closed", token.span, f"add the missing `{closer}`")
        case _, None:
            return Mistake("E003", f"`{token.text}` closes nothing", token.span, "delete it, or open one before it")
        case _, partner:
            closer = ")" if partner.text == "(" else "]"
            message = f"`{token.text}` closes a `{partner.text}`"
            return Mistake("E003", message, token.span, f"write `{closer}`, or fix the `{partner.text}`")


# ------------------------------------------------------------------------------------------------ inside statements


def unexpected(chunk: Chunk, problem: UnexpectedInput) -> Mistake:
    """The mistake behind a token that the grammar does not allow where it stands."""
    accepted = _accepted(problem)
    position = chunk.span.end
    if not (isinstance(problem, UnexpectedToken) and problem.token.type == "$END"):
        position = problem.pos_in_stream if isinstance(problem.pos_in_stream, int) else chunk.span.start
    k = next((k for k, token in enumerate(chunk.tokens) if token.end > position), len(chunk.tokens))
    token = chunk.tokens[k] if k < len(chunk.tokens) else None
    before = chunk.tokens[k - 1] if k else None
    wanted = _wanted(accepted)
    if token is None:
        end = chunk.span.end
        remedy = _remedy_at_end(chunk, accepted)
        return Mistake("E001", f"the statement ends too early; expected {wanted}", Span(end, end + 1), remedy)
    message = f"unexpected `{_clip(token.text)}`; expected {wanted}"
    return Mistake("E001", message, token.span, _remedy(chunk, k, token, before, accepted))


def _accepted(problem: UnexpectedInput) -> frozenset[str]:
    for attribute in ("accepts", "expected", "allowed"):
        value = getattr(problem, attribute, None)
        if isinstance(value, set | frozenset | list):
            return frozenset(str(v) for v in value)
    return frozenset()


def _wanted(accepted: frozenset[str]) -> str:
    wanted: list[str] = []
    if "NUMBER" in accepted:
        wanted.append("an expression")
    elif "NAME" in accepted:
        wanted.append("a name")
    elif "PLUS" in accepted:
        wanted.append("an operator")
    if "LPAR" in accepted and not accepted & {"NUMBER", "PLUS"}:
        wanted.append("`(`")
    if "LSQB" in accepted and "PLUS" not in accepted:
        wanted.append("`[`")
    wanted += [text for name, text in _SYMBOLS.items() if name in accepted]
    return wanted[0] if len(wanted) == 1 else ", ".join(wanted[:-1]) + " or " + wanted[-1] if wanted else "nothing"


def _remedy_at_end(chunk: Chunk, accepted: frozenset[str]) -> str:
    if "NUMBER" in accepted and chunk.tokens[-1].text == "=":
        return "write an expression after the `=`, or delete the statement"
    if "NUMBER" in accepted:
        return "finish the expression; to continue it on the next line, put it in brackets"
    if "ELSE" in accepted:
        return "a conditional is written `a if condition else b`"
    return _form(chunk) or "finish the statement"


def _remedy(chunk: Chunk, k: int, token: Token, before: Token | None, accepted: frozenset[str]) -> str:
    head = chunk.tokens[0].text
    operator = "PLUS" in accepted and "NUMBER" not in accepted
    if token.kind == "string" and chunk.tokens[0].kind == "string":
        return 'put the docstring between two single `"`, on one line'
    if token.kind == "string":
        return 'only the line after `attention NAME` may be text in `"…"`; use `#` for other remarks'
    if token.text in _RESERVED and "NAME" in accepted:
        return f"`{token.text}` is a reserved word; use another name, or finish the expression before it"
    if head == "attention":
        return "write `attention NAME` and nothing else on the line; a name holds letters, digits and `_`"
    if k == 1 and token.text in ("(", "["):
        return f"write `{head} = …`; its indices are already in scope"
    if before is not None and before.text == token.text and token.text in "&|":
        return f"write `{'and' if token.text == '&' else 'or'}`"
    if token.text == "=" and operator:
        return "compare with `==`"
    if token.text == ":" and any(other.text == "[" for other in chunk.tokens[:k]):
        return "there are no slices: name an index, or leave the subscript out"
    if operator and before is not None and token.text == "[" and before.text in ("]", ")"):
        return "write all subscripts in one pair of brackets, `x[i, j]`, and name other values with `let` first"
    if operator and before is not None and before.kind == token.kind == "number":
        return "put an operator between the two numbers"
    if operator and before is not None and (token.kind in ("word", "number") or token.text == "("):
        return f"write `{_clip(before.text)} * {_clip(token.text)}` for a product, or put the operator that is missing"
    if token.text == "[" and "NUMBER" in accepted:
        return "`[…]` holds the subscripts of a name; group with `(…)`"
    if token.text == "==" and "EQUAL" in accepted:
        return "write a single `=`"
    if "NUMBER" not in accepted and "PLUS" not in accepted:
        return _form(chunk) or "text in quotes stands alone on its line"
    return "delete it, or complete the expression before it"


_FORMS = {
    "attention": "attention NAME",
    "const": "const W = 256",
    "size": "size L",
    "index": "index a: A",
    "tensor": "tensor slope: f32[H]",
    "let": "let x = …` or `let u[a, e] = …",
    "def": "def f(x, c) = …",
    "normaliser": "normaliser = softmax",
    "normalizer": "normaliser = softmax",
    "observe": "observe NAME = …",
}


def _form(chunk: Chunk) -> str | None:
    head = chunk.tokens[0].text
    form = _FORMS.get(head, f"{head} = …" if chunk.tokens[0].kind == "word" else None)
    return form and f"the form is `{form}`"


def _clip(text: str) -> str:
    return text if len(text) <= 24 else text[:20] + "…"
