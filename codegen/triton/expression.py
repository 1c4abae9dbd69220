"""Pointwise expressions as Triton text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from attnc.codegen.triton.bounds import never_negative
from attnc.codegen.triton.text import AND, ATOM, COMPARE, FLOOR, OR, SIGN, SUM, TERM, Layout, Text, number
from attnc.ir.construct import const, neg, raw_prod
from attnc.ir.node import Add, Axis, Call, Const, Iverson, Node, Prod, Size, Var


class Leaves(Protocol):
    """What an expression refers to."""

    def axis(self, name: str) -> Text: ...

    def size(self, name: str) -> Text: ...

    def variable(self, node: Var) -> Text: ...

    def helper(self, name: str) -> str: ...

    def defined(self, node: Node) -> Node:
        """`node` with integer scalars replaced by what they were assigned."""
        ...


CALLS = {
    "exp": "tl.exp",
    "exp2": "tl.exp2",
    "log": "tl.log",
    "log2": "tl.log2",
    "sqrt": "tl.sqrt",
    "rsqrt": "tl.rsqrt",
    "erf": "tl.erf",
}
COMPARISONS = {"lt": ("<", ">="), "le": ("<=", ">"), "eq": ("==", "!=")}
ZERO, UNIT = Text("0.0"), Text("1.0")


class Expressions:
    """Prints pointwise nodes. Reals come out as f32, whatever tensors store."""

    def __init__(self, layout: Layout, leaves: Leaves) -> None:
        self.layout = layout
        self.leaves = leaves
        self.temporaries: dict[Node, Text] = {}

    def text(self, node: Node) -> Text:
        if node in self.temporaries:
            return self.temporaries[node]
        match node:
            case Const():
                return number(node.value)
            case Axis():
                return self.leaves.axis(node.name)
            case Size():
                return self.leaves.size(node.name)
            case Var():
                return self.leaves.variable(node)
            case Iverson():
                return self.layout.call("tl.where", self.text(node.condition), UNIT, ZERO)
            case Add():
                return self._sum(node)
            case Prod():
                return self._product(node)
            case Call():
                return self._call(node)
            case _:
                raise TypeError(f"not pointwise: {node}")

    def real(self, node: Node) -> Text:
        """`node` as a real number, converted if it is an integer."""
        if node.kind == "f":
            return self.text(node)
        if isinstance(node, Const):
            return number(float(node.value))
        text = self.text(node)
        if text.axes:
            return Text(f"{text.within(ATOM)}.to(tl.float32)", text.axes)
        return Text(f"tl.cast({text.code}, tl.float32)")

    def _sum(self, node: Add) -> Text:
        """Terms of fewer lanes are added up first, so that little is computed per element of a plane."""
        groups: dict[tuple[str, ...], tuple[list[Text], list[Text]]] = {}
        for term in sorted(node.terms, key=lambda t: isinstance(t, Const)):
            negative, size = _sign(term)
            text = self.text(size)
            groups.setdefault(text.axes, ([], []))[negative].append(text)
        negated, total = False, None
        for axes in self._small_first(groups):
            minus, part = self._signed(*groups[axes])
            if total is None:
                negated, total = minus, part
            elif minus and not negated:
                negated, total = False, self.layout.infix("-", [total, part], SUM)
            else:
                operator = "-" if negated and not minus else "+"
                negated, total = negated and minus, self.layout.infix(operator, [part, total], SUM)
        assert total is not None
        return Text(f"-{total.within(SIGN)}", total.axes, SIGN) if negated else total

    def _small_first(self, groups: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
        order = self.layout.order
        return sorted(groups, key=lambda axes: (len(axes), [-order.index(a) for a in axes]))

    def _signed(self, plus: list[Text], minus: list[Text]) -> tuple[bool, Text]:
        """Whether negated, and the text of plus - minus (or minus, if nothing is added)."""
        if not plus:
            return True, self.layout.infix("+", minus, SUM)
        total = self.layout.infix("+", plus, SUM)
        for m in minus:
            total = self.layout.infix("-", [total, m], SUM)
        return False, total

    def _product(self, node: Prod) -> Text:
        """Factors of fewer lanes are multiplied first; brackets select, so what they exclude is never seen."""
        conditions = [f.condition for f in node.factors if isinstance(f, Iverson)]
        groups: dict[tuple[str, ...], tuple[list[Text], list[Text]]] = {}
        minus = False
        factors, rounded_up = self._ceilings(node)
        for text in rounded_up:
            groups.setdefault(text.axes, ([], []))[0].append(text)
        for f in factors:
            if isinstance(f, Iverson):
                continue
            if isinstance(f, Const) and f.value == -1:
                minus = not minus
                continue
            below = isinstance(f, Call) and f.fn == "reciprocal" and f not in self.temporaries
            text = self.real(f.args[0]) if below and isinstance(f, Call) else self.text(f)
            groups.setdefault(text.axes, ([], []))[below].append(text)
        whole: Text | None = None
        for axes in self._small_first(groups):
            part = self._quotient(*groups[axes])
            whole = part if whole is None else self.layout.infix("*", [part, whole], TERM)
        whole = UNIT if whole is None else whole
        if minus:
            whole = Text(f"-{whole.within(TERM)}", whole.axes, SIGN if whole.binds >= SIGN else TERM)
        if conditions:
            condition = self.conjunction([self.text(c) for c in conditions])
            zero = ZERO if node.kind == "f" else Text("0")
            whole = self.layout.call("tl.where", condition, whole, zero)
        return whole

    def _ceilings(self, node: Prod) -> tuple[tuple[Node, ...], list[Text]]:
        """Take ``-(-x // n)`` out of a product: x / n rounded up."""
        factors = list(node.factors)
        minus = const(-1)
        for f in node.factors:
            if minus in factors and isinstance(f, Call) and f.fn == "floordiv" and f.kind == "i":
                x, n = neg(f.args[0]), f.args[1]
                if never_negative(self.leaves.defined(x)) and never_negative(n):
                    factors.remove(minus)
                    factors.remove(f)
                    return tuple(factors), [self.layout.call("tl.cdiv", self.text(x), self.text(n))]
        return tuple(factors), []

    def _quotient(self, above: list[Text], below: list[Text]) -> Text:
        whole = self.layout.infix("*", above, TERM) if above else UNIT
        for b in below:
            whole = self.layout.infix("/", [whole, b], TERM)
        return whole

    def conjunction(self, conditions: list[Text]) -> Text:
        """All of the conditions. Scalars choose rather than combine: the interpreter spreads them as integers."""
        parts = self._by_spread("&", conditions, AND)
        return parts[0] if len(parts) == 1 else self.layout.call("tl.where", *parts, Text("False"))

    def disjunction(self, conditions: list[Text]) -> Text:
        """Any of the conditions, likewise."""
        parts = self._by_spread("|", conditions, OR)
        return parts[0] if len(parts) == 1 else self.layout.call("tl.where", parts[0], Text("True"), parts[1])

    def _by_spread(self, operator: str, conditions: list[Text], binds: int) -> list[Text]:
        """The scalars among some conditions joined by an operator, then those with lanes."""
        groups = [c for c in conditions if not c.axes], [c for c in conditions if c.axes]
        return [self.layout.infix(operator, group, binds) for group in groups if group]

    def compare(self, operator: str, a: Text, b: Text) -> Text:
        return self.layout.infix(operator, [a, b], OR).rated(COMPARE)

    def _call(self, node: Call) -> Text:
        match node.fn:
            case "and":
                return self.conjunction([self.text(a) for a in node.args])
            case "or":
                return self.disjunction([self.text(a) for a in node.args])
            case "not":
                return self._not(node.args[0])
            case "lt" | "le" | "eq":
                return self._comparison(node, 0)
            case "where":
                return self._where(node)
            case "floordiv" | "mod":
                return self._division(node)
            case "maximum" | "minimum":
                convert: Callable[[Node], Text] = self.real if node.kind == "f" else self.text
                return self.layout.call(f"tl.{node.fn}", *(convert(a) for a in node.args))
            case "bitand" | "bitor" | "bitxor":
                operator, binds = {"bitand": ("&", AND), "bitor": ("|", OR), "bitxor": ("^", OR)}[node.fn]
                texts = [self.text(a) for a in node.args]
                return self.layout.infix(operator, [Text(t.within(SUM), t.axes) for t in texts], binds)
            case "floor_log2" | "power_of_two":
                return self.layout.call(self.leaves.helper(node.fn), self.text(node.args[0]))
            case "detach":
                return self.text(node.args[0])
            case "hash" | "unit":
                return self.layout.call(self.leaves.helper(node.fn), *(self.text(a) for a in node.args))
            case _:
                return self._function(node)

    def _not(self, node: Node) -> Text:
        if isinstance(node, Call) and node.fn == "eq":
            return self._comparison(node, 1)
        text = self.text(node)
        return Text(f"{text.within(ATOM)} == 0", text.axes, COMPARE)

    def _comparison(self, node: Call, negated: int) -> Text:
        a, b = (self.text(x) for x in node.args)
        operator = COMPARISONS[node.fn][negated]
        if isinstance(node.args[0], Const) and not isinstance(node.args[1], Const):
            a, b, operator = b, a, operator.translate(str.maketrans("<>", "><"))
        found = self.compare(operator, a, b)
        if found.axes or not any(x.kind == "f" for x in node.args):
            return found
        # The interpreter gives a comparison of scalars their dtype, and reals cannot be combined by `&`.
        return self.compare("==", self.layout.call("tl.where", found, Text("1"), Text("0")), Text("1"))

    def _where(self, node: Call) -> Text:
        condition, a, b = node.args
        convert = self.real if node.kind == "f" else self.text
        return self.layout.call("tl.where", self.text(condition), convert(a), convert(b))

    def _division(self, node: Call) -> Text:
        a, b = node.args
        if node.kind == "f":
            x, y = self.real(a), self.real(b)
            ratio = self.layout.infix("/", [x, y], TERM)
            whole = self.layout.call("tl.floor", ratio)
            if node.fn == "floordiv":
                return whole
            back = self.layout.infix("*", [whole, y], TERM)
            return self.layout.infix("-", [x, back], SUM)
        x, y = self.text(a), self.text(b)
        if never_negative(self.leaves.defined(a)) and never_negative(self.leaves.defined(b)):
            parts = [Text(t.within(SIGN), t.axes) for t in (x, y)]
            return self.layout.infix("//" if node.fn == "floordiv" else "%", parts, FLOOR)
        return self.layout.call(self.leaves.helper("floor_div" if node.fn == "floordiv" else "floor_mod"), x, y)

    def _function(self, node: Call) -> Text:
        """A function of reals."""
        fn = node.fn
        if fn == "pow":
            return self._power(*node.args)
        if fn == "abs" and node.kind == "i":
            return self.layout.call("tl.abs", self.text(node.args[0]))
        (x,) = (self.real(a) for a in node.args)
        if fn in CALLS:
            return self.layout.call(CALLS[fn], _tensor(x))
        match fn:
            case "tanh" | "sigmoid" | "softplus" | "sin" | "cos":
                return self.layout.call(self.leaves.helper(fn), _tensor(x))
            case "reciprocal":
                return self._quotient([], [x])
            case "rounded":
                return x
            case "reciprocal_or_zero":
                return self.layout.call("tl.where", self.compare("==", x, ZERO), ZERO, self._quotient([], [x]))
            case "finite_or_zero":
                return self.layout.call("tl.where", self.compare("==", x, number(float("-inf"))), ZERO, x)
            case "sign":
                below = self.layout.call("tl.where", self.compare("<", x, ZERO), Text("-1.0"), ZERO)
                return self.layout.call("tl.where", self.compare(">", x, ZERO), UNIT, below)
            case "abs":
                return self.layout.call("tl.abs", x)
            case "floor":
                text = self.layout.call("tl.floor", _tensor(x))
                return Text(f"{text.code}.to(tl.int32)", text.axes)
            case _:
                raise ValueError(f"the Triton printer does not know the function {fn}")

    def _power(self, x: Node, y: Node) -> Text:
        integral = y.kind == "i"
        helper = self.leaves.helper("power_int" if integral else "power")
        return self.layout.call(helper, self.real(x), self.text(y))


def _tensor(x: Text) -> Text:
    """Triton's functions of reals refuse plain Python numbers."""
    return x if x.axes or "tl." in x.code else Text(f"tl.cast({x.code}, tl.float32)")


def _sign(term: Node) -> tuple[bool, Node]:
    """Split a term into its sign and its size."""
    match term:
        case Const() if term.value < 0:
            return True, const(-term.value)
        case Prod(factors=(Const() as first, *rest)) if first.value < 0:
            if first.value != -1:
                return True, raw_prod((const(-first.value), *rest))
            return True, rest[0] if len(rest) == 1 else raw_prod(rest)
        case _:
            return False, term
