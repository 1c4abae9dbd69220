"""What the forward keeps for the gradient, and the gradient rewritten in terms of it.

Every plane reduction of the forward that occurs in the gradient, alone or as part of a larger sum of products, is
replaced by an opaque saved tensor. Three rules decide in which form it is saved:

* a denominator Z whose terms all carry exp2(-m) is saved with its shift m as one ``lse = m + log2 Z``, so that
  ``exp2(s - m) / Z`` becomes ``exp2(s - lse)``. A score of several terms keeps its unit c (`attnc.passes.exponents`);
  its exponent is multiplied and has its addition for nothing: there m and log2 Z are saved apart, for
  ``exp2(c * (s - m) - log2 Z)``. A bias may be large, and the rounding of its lse would be one error that all weights
  of a row share. Where s depends on the key alone, m and Z are saved as they are: rows then have nearly the same lse,
  and its rounding would be the same error in all of them. So they are where an iterated normaliser divides weights
  again and again, which have to be the same in all passes. A weight that a row has once (a sink's) is made of m and Z
  too, which costs nothing there and has no part in the rounding of lse;
* a sum S that the forward divides by Z is saved as the quotient ``S / Z`` (often the output itself, at no cost), which
  turns the softmax row term into ``sum(do * o)``, FlashAttention-2's delta (Dao 2023, arXiv:2307.08691);
* anything else is saved as it is.

Saved values enter as inputs: as expressions they would merge back into the sums they were taken from.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from attnc.ir.construct import (
    add,
    axis,
    call,
    coefficient,
    const,
    factors_of,
    load,
    mul,
    neg,
    position_of,
    sum_over,
    terms_of,
)
from attnc.ir.node import Add, Call, Const, Load, Max, Node, Prod, Sum
from attnc.ir.notes import suggest
from attnc.ir.program import Note
from attnc.ir.walk import postorder, rebuild, rewrite
from attnc.passes.exponents import exponent_of, keeps_unit, unit_and_terms
from attnc.passes.planes import Planes

AXIS_ORDER = "bhgij"


@dataclass(frozen=True, slots=True)
class Saved:
    """A value the forward keeps: its expression there, the tensor name the gradient reads it by, and its axes."""

    name: str
    axes: tuple[str, ...]
    node: Node


@dataclass
class _State:
    forward: list[Node]
    reductions: list[Node]
    opaque: dict[Node, Load] = field(default_factory=dict)
    saved: dict[Load, Saved] = field(default_factory=dict)


def ordered(axes: Iterable[str]) -> tuple[str, ...]:
    """Axes in canonical order: batch, sequence, then channels."""
    return tuple(sorted(axes, key=lambda a: (AXIS_ORDER.find(a[0]) if a[0] in AXIS_ORDER else 9, a)))


def reuse(
    forward: Sequence[tuple[str, Node]],
    gradient: Sequence[Node],
    plane_reductions: Sequence[Node],
    planes: Planes,
    *,
    exact: bool = False,
) -> tuple[list[Node], list[Saved]]:
    """Rewrite `gradient` over saved values.

    Args:
        forward: named outputs of the forward, in base 2.
        gradient: roots of the gradient, in base 2.
        plane_reductions: the forward's plane reductions, producers first.
        planes: the axis roles of the forward.
        exact: keep quotients as reals of their own even where they are outputs, whose dtype may round them.

    Returns:
        The rewritten roots and the saved values they read.
    """
    state = _State([node for _, node in forward], list(plane_reductions))
    for k, node in enumerate(plane_reductions):
        axes = ordered(node.axes)
        leaf = load(f"@{k}", [axis(a) for a in axes])
        state.opaque[node] = leaf
        state.saved[leaf] = Saved(f"@{k}", axes, node)
    memo: dict[Node, Node] = {}
    roots = _substitute(gradient, state, memo)
    roots = _fold_quotients(roots, state, memo, {node: f"{name}_exact" if exact else name for name, node in forward})
    roots = _fold_shifts(roots, state, memo, planes)
    return _finish(_gather(roots, state), state)


def _substitute(roots: Sequence[Node], state: _State, memo: dict[Node, Node]) -> list[Node]:
    """Replace forward reductions, and sums that contain one, by their opaque leaves."""
    patterns: list[tuple[Sum, tuple[Node, ...], tuple[Node, ...]]] = []

    def visit(node: Node) -> None:
        if node in memo:
            return
        new = rebuild(node, tuple(memo[c] for c in node.children))
        if node in state.opaque:
            if isinstance(node, Sum):
                n, m = len(node.factors), len(node.domain)
                kids = tuple(memo[c] for c in node.children)
                patterns.append((node, kids[:n], kids[n : n + m]))
            memo[node] = state.opaque[node]
            return
        for whole, factors, domain in patterns:
            new = _contains(new, whole, factors, domain, state.opaque[whole])
        memo[node] = new

    everything = postorder([*state.reductions, *roots])
    # A position is found by comparing a value with its maximum: both must come from one pass, neither be saved.
    memo.update({node: node for node in everything if position_of(node) is not None})
    for node in everything:
        visit(node)
    return [memo[r] for r in roots]


def _contains(node: Node, whole: Sum, factors: tuple[Node, ...], domain: tuple[Node, ...], leaf: Load) -> Node:
    """If a sum in `node` contains `whole` as a sub-product, contract that part to `leaf`."""
    if not isinstance(node, Sum | Prod):
        return node
    if isinstance(node, Prod):
        changed = [_contains(f, whole, factors, domain, leaf) for f in node.factors]
        return mul(*changed) if changed != list(node.factors) else node
    if not whole.bound <= node.bound or set(domain) - set(node.domain):
        return node
    rest = list(node.factors)
    for f in factors:
        if f in rest:
            rest.remove(f)
        elif not (isinstance(f, Call) is False and f is const(1.0)):
            return node
    outer = set(node.domain) - set(domain)
    if any(whole.bound & x.axes for x in (*rest, *outer, *(n for _, n in node.scatter))):
        return node
    return sum_over(node.bound - whole.bound, [*rest, leaf], outer, node.scatter)


def _quotients(roots: Iterable[Node]) -> dict[Node, list[Node]]:
    """For every sum in the forward that is divided: the reciprocals multiplying it."""
    found: dict[Node, list[Node]] = {}
    for node in postorder(roots):
        if isinstance(node, Prod | Sum):
            reciprocals: list[Node] = [f for f in node.factors if isinstance(f, Call) and f.fn == "reciprocal_or_zero"]
            for f in node.factors:
                own = [r for r in reciprocals if r.axes <= f.axes]
                if isinstance(f, Sum) and own:
                    found.setdefault(f, own)
    return found


def _fold_quotients(roots: list[Node], state: _State, memo: dict[Node, Node], outputs: dict[Node, str]) -> list[Node]:
    """Save S / Z instead of S: in products both go; elsewhere S is (S / Z) * Z."""
    for total, reciprocals in _quotients(state.forward).items():
        leaf = state.opaque.get(total)
        if leaf is None or leaf not in postorder(roots):
            continue
        quotient = mul(total, *reciprocals)
        axes = ordered(quotient.axes)
        name = outputs.get(quotient, f"{leaf.tensor}/z")
        new_leaf = load(name, [axis(a) for a in axes])
        state.saved[new_leaf] = Saved(name, axes, quotient)
        divisors = [_rewritten(r, state, memo) for r in reciprocals]
        whole = mul(new_leaf, *(d.children[0] for d in divisors))

        def rule(node: Node, leaf: Load = leaf, new: Load = new_leaf, ds: list[Node] = divisors) -> Node | None:
            return _divide(node, leaf, new, ds)

        roots = rewrite(roots, rule)
        roots = rewrite(roots, lambda n, leaf=leaf, w=whole: w if n is leaf else None)  # type: ignore[misc]
    return roots


def _divide(node: Node, leaf: Load, quotient: Load, divisors: list[Node]) -> Node | None:
    """A product of S, alone or under a sum over channels, with all its reciprocals: S / Z takes their place.

    So it does in a term of a sum that is multiplied by them. What was multiplied by Z and divided again would be off by
    the rounding of both, and the row term of several outputs is such a sum.
    """
    if not isinstance(node, Prod | Sum) or not Counter(divisors) <= Counter(node.factors):
        return None

    def build(*factors: Node) -> Node:
        return sum_over(node.bound, factors, node.domain, node.scatter) if isinstance(node, Sum) else mul(*factors)

    rest = list(node.factors)
    for d in divisors:
        rest.remove(d)
    for k, f in enumerate(rest):
        if f is leaf:
            return build(*rest[:k], quotient, *rest[k + 1 :])
        if isinstance(f, Sum) and leaf in f.factors and not any(f.bound & d.axes for d in divisors):
            inner = list(f.factors)
            inner[inner.index(leaf)] = quotient
            return build(*rest[:k], sum_over(f.bound, inner, f.domain, f.scatter), *rest[k + 1 :])
        if isinstance(f, Add) and isinstance(node, Prod):
            divided = [_divide(mul(*divisors, t), leaf, quotient, divisors) for t in f.terms]
            if any(divided):
                left = [t for t, d in zip(f.terms, divided, strict=True) if d is None]
                return mul(*rest[:k], *rest[k + 1 :], add(*filter(None, divided), mul(*divisors, add(*left))))
    return None


def _rewritten(node: Node, state: _State, memo: dict[Node, Node]) -> Node:
    _substitute([node], state, memo)
    return memo[node]


def _shift_of(z: Node) -> tuple[Node, float | int] | None:
    """The guarded maximum m, and the unit c it is in, such that every term of z carries exp2(-c * m)."""
    common: set[tuple[Node, float | int]] | None = None
    for term in terms_of(z):
        shifts: set[tuple[Node, float | int]] = set()
        for f in factors_of(term):
            inner = f.factors if isinstance(f, Sum) else (f,)
            limits = f.bound if isinstance(f, Sum) else frozenset()
            for x in inner:
                if isinstance(x, Call) and x.fn == "exp2":
                    shifts |= {(s, unit) for s, unit in _shifts(x.args[0]) if not s.axes & limits}
        common = shifts if common is None else common & shifts
    return min(common, key=lambda s: s[0].order) if common else None


def _shifts(exponent: Node) -> set[tuple[Node, float | int]]:
    """The guarded maxima taken away in an exponent, and the unit they are in."""
    found: set[tuple[Node, float | int]] = set()
    unit, terms = unit_and_terms(exponent)
    for t in terms:
        k, rest = coefficient(t)
        if k == -1 and len(rest) == 1 and isinstance(rest[0], Call) and rest[0].fn == "finite_or_zero":
            found.add((rest[0], unit))
    return found


def _fold_shifts(roots: list[Node], state: _State, memo: dict[Node, Node], planes: Planes) -> list[Node]:
    """Save m and Z as one lse, or as m and log2 Z; see the module docstring."""
    count = 0
    for node in postorder(state.forward):
        if not (isinstance(node, Call) and node.fn == "reciprocal_or_zero"):
            continue
        z = node.args[0]
        found = _shift_of(z)
        if found is None or not any(_is_row_maximum(x, planes) for x in postorder([found[0]])):
            continue
        shift, unit = found
        if unit != 1 and _is_normalised_again(state.forward, node, shift):
            continue
        r, z_now, m = (_rewritten(x, state, memo) for x in (node, z, shift))
        statistics = _saved_statistics(state, z, shift, unit, f"_{count}" if count else "")
        count += 1
        form = _Weights(r, m, unit, *statistics)
        log_z = form.log_z or exponent_of(unit, form.top, neg(m))
        left = {call("log2", z_now): log_z}
        roots = rewrite(roots, form.paired)
        if not any(form.has_weight_of_row(n) for n in postorder(roots)):
            left[r] = call("exp2", neg(log_z))
        roots = rewrite(roots, left.get)
    return roots


def _is_normalised_again(forward: Iterable[Node], r: Node, shift: Node) -> bool:
    """Whether the forward also divides by a sum of weights that 1/Z has normalised, as iterated normalisers do."""
    divisors = [n.args[0] for n in postorder(forward) if isinstance(n, Call) and n.fn == "reciprocal_or_zero"]
    sums = [n for z in divisors for t in terms_of(z) for n in factors_of(t) if isinstance(n, Sum)]
    return any(r in n.factors and any(_is_shifted(f, shift) for f in n.factors) for n in sums)


def _is_shifted(f: Node, shift: Node) -> bool:
    return isinstance(f, Call) and f.fn == "exp2" and any(s is shift for s, _ in _shifts(f.args[0]))


def _saved_statistics(state: _State, z: Node, shift: Node, unit: float | int, suffix: str) -> tuple[Load, Load | None]:
    """What is saved for Z and its shift: the tensors that the exponents of the gradient read."""
    axes = ordered(z.axes)
    empty, log_z = call("eq", z, const(0.0)), call("log2", z)

    def save(name: str, value: Node) -> Load:
        leaf = load(name + suffix, [axis(a) for a in axes])
        state.saved[leaf] = Saved(leaf.tensor, axes, value)
        return leaf

    if any(isinstance(n, Max) and keeps_unit(n.body) for n in postorder([shift])):
        return save("m", shift), save("log_z", call("where", empty, const(math.inf), log_z))
    return save("lse", call("where", empty, const(math.inf), add(shift, mul(const(1 / unit), log_z)))), None


def _is_row_maximum(node: Node, planes: Planes) -> bool:
    """Whether a node is the maximum of a score that depends on both positions."""
    return isinstance(node, Max) and len(planes.sequences(node.body.axes)) > 1


@dataclass(frozen=True, slots=True)
class _Weights:
    """Normalised weights exp2(unit * (x - m)) / Z, made from what is saved.

    Attributes:
        r: 1/Z.
        m: the shift.
        unit: what exponents are multiplied by.
        top: lse, or the saved m if `log_z` is there.
        log_z: the saved log2 Z, or None.
    """

    r: Node
    m: Node
    unit: float | int
    top: Node
    log_z: Node | None

    def exponent(self, terms: Sequence[Node]) -> Node:
        """That of a normalised weight, from the terms of the exponent of exp2(unit * (x - m))."""
        moved = exponent_of(self.unit, *terms, self.m, neg(self.top))
        return moved if self.log_z is None else add(moved, neg(self.log_z))

    def has_weight_of_row(self, node: Node) -> bool:
        """Whether a product holds 1/Z and an exp2(x - m) of a value that each row has once, as a sink is."""
        factors = node.factors if isinstance(node, Prod | Sum) else ()
        return self.r in factors and any(self._of_row(f) and self._absorb(f) is not None for f in factors)

    def paired(self, node: Node) -> Node | None:
        """Each factor 1/Z paired with one exp2(x - m) that has more axes."""
        if not isinstance(node, Prod | Sum):
            return None
        factors = list(node.factors)
        if not self._pair_in(factors):
            return None
        return mul(*factors) if isinstance(node, Prod) else sum_over(node.bound, factors, node.domain, node.scatter)

    def _of_row(self, f: Node) -> bool:
        return isinstance(f, Call) and f.axes <= self.r.axes

    def _pair_in(self, factors: list[Node]) -> bool:
        changed = False
        while self.r in factors:
            for k, f in enumerate(factors):
                paired = None if self._of_row(f) else self._absorb(f)
                if paired is not None:
                    factors[k] = paired
                    factors.remove(self.r)
                    changed = True
                    break
            else:
                break
        return changed

    def _absorb(self, f: Node) -> Node | None:
        """exp2(unit * (x - m)), or a sum with such a factor, divided by Z."""
        if isinstance(f, Call) and f.fn == "exp2":
            unit, terms = unit_and_terms(f.args[0])
            if unit == self.unit and (self.m, unit) in _shifts(f.args[0]):
                weight = call("exp2", self.exponent(terms))
                suggest(weight, Note("p"))
                return weight
            return None
        if isinstance(f, Add):
            divided = [self._absorb_term(t) for t in f.terms]
            return None if any(t is None for t in divided) else add(*(t for t in divided if t is not None))
        if isinstance(f, Sum) and not f.bound & self.m.axes:
            for k, x in enumerate(f.factors):
                inner = self._absorb(x)
                if inner is not None:
                    return sum_over(f.bound, [*f.factors[:k], inner, *f.factors[k + 1 :]], f.domain, f.scatter)
        return None

    def _absorb_term(self, term: Node) -> Node | None:
        """A term with one of its factors divided by Z."""
        factors = factors_of(term)
        for k, f in enumerate(factors):
            inner = self._absorb(f)
            if inner is not None:
                return mul(*factors[:k], inner, *factors[k + 1 :])
        return None


def _gather(roots: list[Node], state: _State) -> list[Node]:
    """Save sums of saved values as one, where that leaves fewer to save (a threshold found in many steps)."""
    sums = {frozenset(terms) for n in postorder(roots) if isinstance(n, Add) for terms in _saved_terms(n, state)}
    smallest = sorted((s for s in sums if not any(t < s for t in sums)), key=lambda s: min(n.order for n in s))
    leaves: dict[frozenset[Node], Load] = {}
    for k, terms in enumerate(smallest):
        axes = ordered(next(iter(terms - {t for t in terms if isinstance(t, Const)})).axes)
        leaf = load(f"@sum{k}", [axis(a) for a in axes])
        leaves[terms] = leaf
        (node,) = rewrite([add(*terms)], lambda n: state.saved[n].node if isinstance(n, Load) else None)
        state.saved[leaf] = Saved(leaf.tensor, axes, node)

    def rule(node: Node) -> Node | None:
        rest = set(terms_of(node)) if isinstance(node, Add) else set()
        parts = [terms for terms in leaves if terms <= rest]
        if not parts:
            return None
        return add(*(leaves[p] for p in parts[:1]), *(t for t in terms_of(node) if t not in parts[0]))

    gathered = rewrite(roots, rule)
    return gathered if len(_read(gathered, state)) < len(_read(roots, state)) else roots


def _read(roots: Iterable[Node], state: _State) -> set[Node]:
    return {n for n in postorder(roots) if n in state.saved}


def _saved_terms(node: Add, state: _State) -> list[list[Node]]:
    """The terms of a sum that are made of saved values of one row and of numbers, if that takes several of them."""
    groups: dict[tuple[str, ...], list[Node]] = {}
    for t in node.terms:
        below = postorder([t])
        loads = [n for n in below if isinstance(n, Load)]
        if loads and all(n in state.saved for n in loads) and not any(isinstance(n, Sum | Max) for n in below):
            groups.setdefault(ordered(t.axes), []).append(t)
    if len(groups) == 1:
        next(iter(groups.values())).extend(t for t in node.terms if isinstance(t, Const))
    return [g for g in groups.values() if len(_loads(g)) > 1]


def _loads(nodes: Iterable[Node]) -> set[Node]:
    return {n for n in postorder(nodes) if isinstance(n, Load)}


def _finish(roots: list[Node], state: _State) -> tuple[list[Node], list[Saved]]:
    """Name the leaves that are still read."""
    used = [n for n in postorder(roots) if isinstance(n, Load) and n in state.saved]
    names: dict[Node, Node] = {}
    kept = []
    for k, leaf in enumerate(used):
        saved = state.saved[leaf]
        name = saved.name if saved.name[0] != "@" else f"saved_{k}"
        names[leaf] = load(name, leaf.index)
        kept.append(Saved(name, saved.axes, saved.node))
    return rewrite(roots, names.get), kept
