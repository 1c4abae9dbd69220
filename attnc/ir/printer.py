"""IR to text and, through `attnc.ir.parser`, back to the identical nodes.

`show` writes one expression inline; `print_program` writes a whole program, one declaration or shared value per line.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from attnc.ir.functions import FUNCTIONS
from attnc.ir.kinds import result_kind
from attnc.ir.node import Add, Axis, Call, Const, Iverson, Load, Max, Node, Prod, Size, Sum, Var
from attnc.ir.program import Output, Program, Tensor, size_names
from attnc.ir.walk import postorder

INFIX = {"lt": "<", "le": "<=", "eq": "==", "floordiv": "//", "mod": "%", "pow": "**", "and": "and", "or": "or"}
_DECLARATIONS = ("program", "const", "size", "axis", "tensor", "check", "let", "output", "observe", "at", "of")
KEYWORDS = frozenset([*_DECLARATIONS, "sum", "max", "and", "or", "inf", "nan", "True", "False"])
SHORT = 24
"""Shared values whose text is not longer than this are repeated instead of named."""

Text = Callable[[Node], str]


def show(node: Node, names: Mapping[Node, str] | None = None, limit: int | None = None) -> str:
    """One expression, every operation in parentheses.

    Args:
        names: nodes to write as a name, the outermost excepted.
        limit: length to which every part is cut, for messages; such text cannot be parsed.
    """
    names = names or {}
    texts: dict[Node, str] = {}
    for n in postorder([node]):
        text = names[n] if n in names and n is not node else _text(n, texts.__getitem__)
        texts[n] = text if limit is None or len(text) <= limit else text[:limit] + " …"
    return texts[node]


def _text(n: Node, text: Text) -> str:
    match n:
        case Const():
            return repr(n.value)
        case Axis() | Size() | Var():
            return n.name
        case Load():
            return f"{n.tensor}[{', '.join(map(text, n.index))}]"
        case Call():
            return _call(n, text)
        case Iverson():
            return f"[{text(n.condition)}]"
        case Add():
            return _series("+", n.terms, text)
        case Prod():
            return _series("*", n.factors, text)
        case Sum() | Max():
            return _reduction(n, text)
        case _:
            raise TypeError(type(n).__name__)


def _series(sign: str, parts: Sequence[Node], text: Text) -> str:
    """Parts joined by a sign, which comes first where there is only one."""
    return f"({f' {sign} '.join(map(text, parts))})" if len(parts) > 1 else f"{sign}({text(parts[0])})"


def _call(n: Call, text: Text) -> str:
    inferred = n.kind == result_kind(n.fn, n.args)
    if n.fn in INFIX and inferred and len(n.args) > 1:
        return f"({f' {INFIX[n.fn]} '.join(map(text, n.args))})"
    return f"{n.fn}{'' if inferred else ':' + n.kind}({', '.join(map(text, n.args))})"


def _reduction(n: Sum | Max, text: Text) -> str:
    head = ", ".join(sorted(n.bound))
    if n.domain:
        head += " | " + " & ".join(map(text, n.domain))
    if isinstance(n, Max):
        return f"max[{head}]({text(n.body)})"
    if n.scatter:
        head += " -> " + ", ".join(f"{a} = {text(x)}" for a, x in n.scatter)
    return f"sum[{head}]({' * '.join(map(text, n.factors))})"


def print_program(program: Program) -> str:
    """A program as text: declarations, then named values with their axes, then outputs."""
    lines = [f"program {program.name}{' ' + json.dumps(program.doc) if program.doc is not None else ''}"]
    lines += [f"const {name} = {value!r}" for name, value in program.consts.items()]
    bound = {s.name: s for s in program.sizes}
    lines += [f"size {s.name} = {s.tensor}[{s.dim}]" for s in program.sizes]
    lines += [f"size {name}" for name in size_names(program) if name not in bound and name != "q_start"]
    lines += [f"axis {a.name}: {show(a.extent)}, {a.role}" for a in program.axes.values()]
    lines += [_tensor(t) for t in program.tensors]
    lines += [f"check {show(c.relation)}: {json.dumps(c.message)}" for c in program.checks]
    values, texts = _values(program)
    outputs = [_output(out, program, texts) for out in program.outputs]
    return "\n".join([*lines, "", *values, "", *outputs]) + "\n"


def _shape(dims: Iterable[Node]) -> str:
    return f"[{', '.join(map(show, dims))}]"


def _tensor(t: Tensor) -> str:
    default = "" if t.default is None else f" = at [{', '.join(t.default_axes)}] {show(t.default)}"
    return f"tensor {t.name}{_shape(t.dims)}: {t.dtype}, {t.role}{default}"


def _output(out: Output, program: Program, texts: Mapping[Node, str]) -> str:
    head = "observe" if out.name in program.observed else "output"
    of = "" if out.of is None else f" of {out.of}"
    parts = " + ".join(f"at [{', '.join(axes)}] {texts[node]}" for axes, node in out.parts)
    return f"{head} {out.name}{_shape(out.dims)}: {out.dtype}{of} = {parts}"


def _values(program: Program) -> tuple[list[str], dict[Node, str]]:
    """One line for every value that deserves a name, and how to refer to every node."""
    nodes = postorder(program.roots())
    uses = Counter(c for n in nodes for c in set(n.children))
    uses.update(program.roots())
    order = {a: k for k, a in enumerate(program.axes)}
    taken = {*program.axes, *size_names(program), *(t.name for t in program.tensors), *FUNCTIONS, *KEYWORDS}
    texts: dict[Node, str] = {}
    lines: list[str] = []
    for n in nodes:
        text = _text(n, texts.__getitem__)
        note = program.notes.get(n)
        noted = note is not None and not (isinstance(n, Load) and n.tensor == note.name)
        if n.children and (noted or (uses[n] > 1 and len(text) > SHORT) or _loops(n, program)):
            name = _fresh(note.name if note else "x", taken, numbered=note is None)
            axes = sorted(n.axes, key=lambda a: (order.get(a.rstrip("'"), len(order)), a))
            place = f"    # line {note.line}" if note and note.line is not None else ""
            lines.append(f"let {name}[{', '.join(axes)}] = {text}{place}")
            text = name
        texts[n] = text
    return lines, texts


def _loops(node: Node, program: Program) -> bool:
    """Whether this is a reduction over a sequence."""
    return isinstance(node, Sum | Max) and any(program.axis(a).role == "sequence" for a in node.bound)


def _fresh(stem: str, taken: set[str], *, numbered: bool) -> str:
    stem = re.sub(r"\W", "_", stem)
    stem = stem if re.match(r"[A-Za-z_]", stem) else "_" + stem
    number = 1
    name = f"{stem}1" if numbered else stem
    while name in taken:
        number += 1
        name = f"{stem}{number}"
    taken.add(name)
    return name
