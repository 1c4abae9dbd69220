"""Pointwise values of a kernel: each is computed once, and rounded the same wherever it is computed again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from attnc.ir.construct import const, factors_of, iverson, load, raw_add, raw_call, raw_prod, size, terms_of
from attnc.ir.functions import is_block
from attnc.ir.node import Add, Axis, Call, Const, Iverson, Load, Max, Node, Prod, Size, Sum, Var
from attnc.ir.walk import postorder
from attnc.passes.exponents import unit_and_terms
from attnc.passes.scope import Block, Scope


@dataclass
class Values(Scope):
    """`uses` counts how often each node is read; `sums` are the sums of the pass; `ordered` are the sums, products
    and reciprocals that every pass rounds alike (see `scores_below`)."""

    uses: dict[Node, int] = field(default_factory=dict)
    sums: tuple[Add, ...] = ()
    scores: set[Node] = field(default_factory=set)
    ordered: set[Node] = field(default_factory=set)

    def value(self, node: Node) -> Node:
        """A pointwise expression for `node`, over variables assigned so far."""
        if isinstance(node, Const | Axis | Size | Var):
            return node
        if node in self.running:
            return self.running[node]
        home = self.home(node)
        if node in home.values:
            return home.values[node]
        keep = self.blocks
        self.blocks = keep[: keep.index(home) + 1]
        try:
            return self._compute(node, home, hoisted=home is not keep[-1])
        finally:
            self.blocks = keep

    def _compute(self, node: Node, home: Block, *, hoisted: bool) -> Node:
        if isinstance(node, Load):
            return self._load(node, home)
        if isinstance(node, Sum | Max):
            return self._contraction(node, home)
        if isinstance(node, Call) and is_block(node):
            return self._in_block(node, home)
        built = self._pointwise(node)
        shared = self.uses.get(node, 1) > 1 and bool(self.spread(node))
        # One kernel would divide by what another multiplies by the reciprocal of.
        apart = node in self.ordered and isinstance(node, Call) and len(self.spread(node)) < 2
        if shared or hoisted or apart or node in self.program.notes:
            return self.assign(node, built, self._default(node), home)
        home.values[node] = built
        return built

    def _default(self, node: Node) -> str:
        lanes = self.spread(node)
        if isinstance(node, Call) and node.fn == "exp2" and len(lanes) > 1:
            return "p"
        if isinstance(node, Call) and node.fn == "finite_or_zero":
            return "shift"
        if node.kind == "b":
            return "allowed"
        if node.kind == "i":
            return f"{next(iter(lanes))}_pos" if len(lanes) == 1 else "index"
        return "x" if lanes else "scale"

    def variable(self, node: Node, default: str = "x") -> Var:
        """`node` as a variable, assigned if it is not one yet."""
        value = self.value(node)
        if isinstance(value, Var) and self.spread(value) == self.spread(node):
            return value
        return self.assign(node, value, default)

    def _whole(self, node: Node) -> Node:
        """The value of an integer; a count over the plane, which is kept and saved as a real, is one again."""
        value = self.value(node)
        return raw_call("floor", (value,), "i") if value.kind == "f" else value

    def _pointwise(self, node: Node) -> Node:
        match node:
            case Call():
                whole = node.kind == "i" and node.fn != "floor"
                args = [self._whole(a) if whole else self.value(a) for a in node.args]
                return raw_call(node.fn, args, node.kind)
            case Iverson():
                return iverson(self.value(node.condition))
            case Add() | Prod():
                return self._grouped(node)
            case _:
                raise TypeError(type(node).__name__)

    def _grouped(self, node: Add | Prod) -> Node:
        """Children that live further out are combined there, so that the loop multiplies by one number."""
        build = raw_add if isinstance(node, Add) else raw_prod
        late = [t for t in node.terms if _is_late(t)] if isinstance(node, Add) else []
        if late and len(late) < len(node.children):
            first = [t for t in node.children if t not in late]
            start = raw_add(first) if len(first) > 1 else first[0]
            if node in self.ordered and len(first) > 1:
                self.ordered.add(start)
            return raw_add([self.value(start), *(self._signed(_unmarked(t)) for t in late)])
        if node in self.ordered:
            return self._in_order(node)
        home = self.home(node)
        outer: dict[int, list[Node]] = {}
        here: list[Node] = []
        for c in self._with_partial_sum(node) if isinstance(node, Add) else node.children:
            if isinstance(c, Iverson):
                here.append(c)
                continue
            place = self.home(c)
            (outer.setdefault(id(place), []) if place is not home and not isinstance(c, Const) else here).append(c)
        constants = [c for c in here if isinstance(c, Const)]
        values: list[Node] = []
        for group in outer.values():
            if len(group) == 1 and (isinstance(node, Add) or not constants):
                values.append(self._signed(group[0]))
                continue
            combined = build([*constants, *group])
            constants = []
            values.append(self.variable(combined, "scale" if isinstance(node, Prod) else "offset"))
        values += [self.factor(c) for c in here if not isinstance(c, Const)]
        if node.kind == "f" and self._is_score(node):
            # Forward and backward must round alike, whichever product a compiler would fuse with the addition.
            values = [raw_call("rounded", (v,), "f") if self.spread(v) else v for v in values]
        return build([*constants, *values])

    def _in_order(self, node: Add | Prod) -> Node:
        """Children combined one by one, those of fewer axes first, whichever axis is the outer one."""
        build = raw_add if isinstance(node, Add) else raw_prod
        children = self._with_partial_sum(node) if isinstance(node, Add) else node.children
        *before, last = sorted(children, key=self._moving)
        start = before[0]
        for c in before[1:]:
            start = build([start, c])
            self.ordered.add(start)
        return build([self._term(c) if isinstance(node, Add) else self.value(c) for c in (last, start)])

    def _term(self, node: Node) -> Node:
        """A term of a score. A product that a compiler fuses with the addition in one kernel and not in another would
        not be the same number."""
        if isinstance(node, Prod) and len(node.factors) == 2 and node.factors[0] is const(-1.0):
            return raw_prod([node.factors[0], self.variable(node.factors[1])])
        value = self.value(node)
        return raw_call("rounded", (value,), "f") if isinstance(node, Prod) and self.spread(value) else value

    def _moving(self, node: Node) -> tuple[int, list[str]]:
        """The axes of a value other than those of the batch, how many first."""
        axes = sorted(a for a in node.axes if self.program.axis(a).role != "batch")
        return len(axes), axes

    def factor(self, node: Node) -> Node:
        """A factor of a product. A bracket stays one, whatever else reads it: as a number it would not select."""
        return iverson(self.value(node.condition)) if isinstance(node, Iverson) else self.value(node)

    def _with_partial_sum(self, node: Add) -> tuple[Node, ...]:
        """The terms of a sum, those that make up another sum of this pass (a score inside ``s - m``) taken together.

        What the forward saved comes last, for the same reason: ``s - lse`` then holds the score rounded as the forward
        rounded it. A weight recomputed from another rounding would not be the weight whose sum over the row was saved,
        and what should cancel over a row would not.
        """
        saved = [t for t in node.terms if self._is_saved(t)]
        computed = [t for t in node.terms if t not in saved]
        if saved and len(computed) > 1 and any(len(self.spread(t)) > 1 for t in computed):
            score = raw_add(computed)
            self.scores.add(score)
            if node in self.ordered:
                self.ordered.add(score)
            return (score, *saved)
        parts = [n for n in self.sums if n is not node and self._is_partial(n, node)]
        if not parts:
            return node.terms
        largest = max(parts, key=lambda n: (len(n.terms), n.digest))
        return (largest, *(t for t in node.terms if t not in largest.terms))

    def _is_partial(self, part: Add, whole: Add) -> bool:
        return len(self.spread(part)) > 1 and set(part.terms) < set(whole.terms)

    def _is_score(self, node: Node) -> bool:
        """Whether a sum is taken as a whole in another sum."""
        return node in self.scores or (isinstance(node, Add) and any(self._is_partial(node, n) for n in self.sums))

    def _is_saved(self, term: Node) -> bool:
        """Whether a term is a saved value, up to its sign."""
        value = term.factors[-1] if isinstance(term, Prod) and len(term.factors) == 2 else term
        return isinstance(value, Load) and any(
            t.role == "saved" for t in self.program.tensors if t.name == value.tensor
        )

    def _signed(self, node: Node) -> Node:
        """A term from further out; a leading minus stays here, where it costs nothing."""
        if isinstance(node, Prod) and node.factors[0] is const(-1.0) and node.kind == "f":
            rest = node.factors[1:]
            return raw_prod([node.factors[0], self.variable(raw_prod(rest) if len(rest) > 1 else next(iter(rest)))])
        return self.value(node)

    def _load(self, node: Load, home: Block) -> Var:
        dims = self.program.tensor(node.tensor).dims if node.tensor in self._tensors() else ()
        index = []
        for k, x in enumerate(node.index):
            place = self.home(x)
            if isinstance(x, Call) and not self.spread(x) and x not in place.values:
                keep, self.blocks = self.blocks, self.blocks[: self.blocks.index(place) + 1]
                self.assign(x, self._pointwise(x), self._axis_name(dims[k] if k < len(dims) else None), place)
                self.blocks = keep
            index.append(self._whole(x))
        default = node.tensor
        return self.assign(node, load(node.tensor, index, node.kind), default, home)

    def _tensors(self) -> set[str]:
        return {t.name for t in self.program.tensors}

    def _axis_name(self, extent: Node | None) -> str:
        return "kv_head" if extent is size("G") else "index"

    def _contraction(self, node: Sum | Max, home: Block) -> Node:
        """A sum or maximum that is no reduction over the plane."""
        raise NotImplementedError

    def _in_block(self, node: Call, home: Block) -> Var:
        """A reduction over the block of an axis."""
        raise NotImplementedError


def _is_late(term: Node) -> bool:
    """Whether a term of a sum is small, and added after the others: these may cancel, and leave it its digits."""
    return any(isinstance(f, Call) and f.fn == "rounded" for f in factors_of(term))


def _unmarked(term: Node) -> Node:
    parts = [f.args[0] if isinstance(f, Call) and f.fn == "rounded" else f for f in factors_of(term)]
    return raw_prod(parts) if len(parts) > 1 else parts[0]


def scores_below(roots: Iterable[Node]) -> set[Node]:
    """The sums, products and reciprocals that make up a score: in a maximum, in an exponent in units of the score, or
    raised to a power.

    A weight is recomputed by several passes, and where scores are large a score rounded in another way is another
    weight: the last digit of a score of thousands is the fourth of the weight. A power multiplies what its base was
    off by.
    """
    found: set[Node] = set()
    for n in postorder(roots):
        stack: list[Node] = []
        if isinstance(n, Max):
            stack = [n.body]
        elif isinstance(n, Call) and n.fn == "pow":
            stack = [n.args[0]]
        elif isinstance(n, Call) and n.fn == "exp2":
            scaled = [t for t in (n.args[0], *terms_of(n.args[0])) if unit_and_terms(t)[0] != 1]
            stack = [c for t in scaled for c in t.children if isinstance(c, Add)]
        while stack:
            part = stack.pop()
            if part in found or part.kind != "f" or isinstance(part, Load | Max):
                continue
            if isinstance(part, Add) or (isinstance(part, Prod) and not any(map(_is_bracket, part.factors))):
                found.add(part)
            stack += part.children
    return found.union(*(_divisors(n) for n in found if isinstance(n, Prod)))


def _divisors(node: Prod) -> set[Node]:
    """The reciprocals in a product that may meet another factor in one pass and a number in the next.

    Beside one value and a constant, as in softmax's scale, it always meets the constant.
    """
    if len(node.factors) == 3 and isinstance(node.factors[0], Const):
        return set()
    return {f for f in node.factors if isinstance(f, Call) and f.fn == "reciprocal"}


def _is_bracket(node: Node) -> bool:
    return isinstance(node, Iverson)


def count_uses(roots: Iterable[Node]) -> dict[Node, int]:
    """How many parents read each node."""
    uses: dict[Node, int] = {}
    for node in postorder(roots):
        for c in node.children:
            uses[c] = uses.get(c, 0) + 1
    return uses
