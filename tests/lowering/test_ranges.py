"""Range analysis: never wrong (against brute force and z3), and strong enough for what people write."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import z3
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.ir.construct import add, axis, call, conjuncts, const, mul, size, sub
from attnc.ir.node import Add, Axis, Call, Const, Load, Node, Prod, Size
from attnc.ir.walk import postorder
from attnc.lowering.forms import Form, form_of, spell
from attnc.lowering.proofs import relation_node, relation_text, settle
from attnc.lowering.ranges import GROUP, NO_FACTS, Facts, Ranges, facts_of
from tests.lowering.specs import codes, lowered, mistakes

EXTENTS = {"b": "B", "h": "H", "i": "M", "j": "N", "d": "D", "e": "E"}
QI, J, D = add(axis("i"), size("q_start")), axis("j"), axis("d")
M, N, L = size("M"), size("N"), size("L")
SIZES = ("M", "N", "q_start")


def ranges() -> Ranges:
    return Ranges({a: size(e) for a, e in EXTENTS.items()})


def value(node: Node, where: dict[str, int]) -> int:
    """An integer or truth value at given positions and sizes."""
    match node:
        case Const():
            return int(node.value)
        case Axis() | Size():
            return where[node.name]
        case Add():
            return sum(value(t, where) for t in node.terms)
        case Prod():
            out = 1
            for f in node.factors:
                out *= value(f, where)
            return out
        case Call():
            args = [value(a, where) for a in node.args]
            return int(FUNCTIONS[node.fn](*args))
    raise AssertionError(node)


FUNCTIONS: dict[str, Callable[..., int]] = {
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "minimum": min,
    "maximum": max,
    "abs": abs,
    "where": lambda c, a, b: a if c else b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "not": lambda a: not a,
    "and": lambda *a: all(a),
    "bitand": lambda a, b: a & b,
    "bitor": lambda a, b: a | b,
    "bitxor": lambda a, b: a ^ b,
    "floor_log2": lambda x: max(x, 1).bit_length() - 1,
    "power_of_two": lambda n: 1 << min(max(n, 0), 62),
    "or": lambda *a: any(a),
}

leaves = st.sampled_from([QI, axis("i"), J, M, N, *(const(n) for n in range(-3, 5))])


def _inner(parts: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    pair = st.tuples(parts, parts)
    positive = st.sampled_from([const(2), const(3), N, M, add(J, const(1)), call("maximum", sub(QI, J), const(1))])
    return st.one_of(
        pair.map(lambda p: add(*p)),
        pair.map(lambda p: sub(*p)),
        pair.map(lambda p: mul(*p)),
        pair.map(lambda p: call("minimum", *p)),
        pair.map(lambda p: call("maximum", *p)),
        parts.map(lambda p: call("abs", p)),
        parts.map(lambda p: call("floor_log2", p)),
        parts.map(lambda p: call("power_of_two", call("mod", p, const(5)))),
        st.tuples(pair, st.sampled_from(["bitand", "bitor", "bitxor"])).map(lambda p: call(p[1], *p[0])),
        st.tuples(parts, positive).map(lambda p: call("floordiv", *p)),
        st.tuples(parts, positive).map(lambda p: call("mod", *p)),
        st.tuples(parts, parts, parts, parts).map(lambda p: call("where", call("le", p[0], p[1]), p[2], p[3])),
    )


integers = st.recursive(leaves, _inner, max_leaves=6)
conditions = st.tuples(integers, integers, st.sampled_from(["lt", "le", "eq"])).map(lambda p: call(p[2], p[0], p[1]))
small = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))


def calls(sizes: tuple[int, int, int]) -> list[dict[str, int]]:
    known = dict(zip(SIZES, sizes, strict=True))
    return [known | {"i": i, "j": j} for i, j in product(range(known["M"]), range(known["N"]))]


@settings(max_examples=300, deadline=None)
@given(integers, small)
def test_bounds_hold_everywhere(node: Node, sizes: tuple[int, int, int]) -> None:
    form = form_of(node)
    lows, highs = (ranges().bounds(form, upper=u) for u in (False, True))
    for where in calls(sizes):
        x = value(node, where)
        assert all(value(b.node(), where) <= x for b in lows)
        assert all(value(b.node(), where) >= x for b in highs)


@settings(max_examples=300, deadline=None)
@given(integers, conditions, small)
def test_bounds_from_facts_hold_wherever_the_facts_do(node: Node, fact: Node, sizes: tuple[int, int, int]) -> None:
    form, facts = form_of(node), Facts(facts_of(fact))
    lows, highs = (ranges().bounds(form, upper=u, facts=facts) for u in (False, True))
    for where in calls(sizes):
        if value(fact, where):
            x = value(node, where)
            assert all(value(b.node(), where) <= x for b in lows)
            assert all(value(b.node(), where) >= x for b in highs)


@settings(max_examples=300, deadline=None)
@given(integers, conditions, small)
def test_verdicts_hold(node: Node, fact: Node, sizes: tuple[int, int, int]) -> None:
    verdict = settle(ranges(), form_of(node), Facts(facts_of(fact)))
    for where in calls(sizes):
        match verdict.state:
            case "proved":
                assert value(node, where) >= 0
            case "given" if value(fact, where):
                assert value(node, where) >= 0
            case "check" if value(relation_node(verdict.relations), where):
                assert value(node, where) >= 0


def _z3(node: Node, names: dict[str, z3.ArithRef]) -> z3.ArithRef:
    match node:
        case Const():
            return z3.IntVal(int(node.value))
        case Axis() | Size():
            return names.setdefault(node.name, z3.Int(node.name))
        case Add():
            return z3.Sum([_z3(t, names) for t in node.terms])
        case Prod():
            return z3.Product([_z3(f, names) for f in node.factors])
        case Call():
            a = [_z3(x, names) for x in node.args]
            # z3's integer division rounds down for positive divisors, which the proofs assert.
            built = {
                "floordiv": lambda: a[0] / a[1],
                "mod": lambda: a[0] % a[1],
                "minimum": lambda: z3.If(a[0] <= a[1], a[0], a[1]),
                "maximum": lambda: z3.If(a[0] >= a[1], a[0], a[1]),
                "abs": lambda: z3.If(a[0] >= 0, a[0], -a[0]),
            }
            return built[node.fn]()
    raise AssertionError(node)


X, Y, S = axis("x"), axis("y"), size("S")
RULES = [
    add(X, Y),
    sub(X, Y),
    mul(const(-3), X),
    call("minimum", X, Y),
    call("maximum", X, Y),
    call("abs", sub(X, Y)),
    call("floordiv", sub(X, Y), const(3)),
    call("floordiv", X, S),
    call("mod", sub(X, Y), S),
    call("mod", X, const(4)),
    mul(X, Y),
    call("minimum", call("maximum", sub(X, Y), const(-2)), const(2)),
]


@pytest.mark.parametrize("node", RULES, ids=repr)
def test_interval_rules_are_theorems(node: Node) -> None:
    """For all sizes and positions, not for sampled ones."""
    known = Ranges({"x": size("P"), "y": size("Q")})
    names: dict[str, z3.ArithRef] = {n: z3.Int(n) for n in ("x", "y", "P", "Q", "S")}
    x, y, p, q, s = (names[n] for n in ("x", "y", "P", "Q", "S"))
    assumed = z3.And(p >= 1, q >= 1, s >= 1, x >= 0, x < p, y >= 0, y < q)
    found = [(b, upper) for upper in (False, True) for b in known.bounds(form_of(node), upper=upper)]
    assert {upper for _, upper in found} == {False, True}
    for bound, upper in found:
        left, right = _z3(node, names), _z3(bound.node(), names)
        solver = z3.Solver()
        solver.set("timeout", 20_000)
        solver.add(assumed, z3.Not(left <= right if upper else left >= right))
        assert solver.check() == z3.unsat, f"{node} against {spell(bound)}"


def clamp(x: Node, low: Node, high: Node) -> Node:
    return call("clamp", x, low, high)


def less_one(x: Node) -> Node:
    return sub(x, const(1))


CAUSAL = call("le", J, QI)
PROVED = [
    (clamp(sub(less_one(L), sub(QI, J)), const(0), less_one(L)), L, "music"),
    (add(clamp(sub(QI, J), const(-8), const(8)), const(8)), const(17), "table"),
    (call("mod", add(D, call("floordiv", size("D"), const(2))), size("D")), size("D"), "rope"),
    (add(mul(axis("i"), N), J), mul(M, N), "flat"),
    (call("floordiv", axis("h"), GROUP), size("G"), "group"),
    (less_one(sub(N, J)), N, "mirrored"),
    (call("maximum", less_one(axis("i")), const(0)), M, "previous"),
    (call("floordiv", J, const(2)), N, "pairs"),
    (add(mul(const(7), call("mod", J, const(7))), call("mod", QI, const(7))), const(49), "window"),
    (call("where", call("lt", J, const(4)), J, const(3)), const(4), "where"),
]


@pytest.mark.parametrize(("index", "extent"), [p[:2] for p in PROVED], ids=[p[2] for p in PROVED])
def test_what_is_proved(index: Node, extent: Node) -> None:
    known = ranges()
    assert settle(known, form_of(index)).state == "proved"
    assert settle(known, form_of(less_one(sub(extent, index)))).state == "proved"


def _states(index: Node, extent: Node, mask: Node) -> tuple[str, str]:
    known, facts = ranges(), Facts(tuple(f for c in conjuncts(mask) for f in facts_of(c)))
    low = settle(known, form_of(index), facts)
    high = settle(known, form_of(less_one(sub(extent, index))), facts)
    return low.state, high.state


def test_what_the_mask_proves() -> None:
    window = call("and", CAUSAL, call("lt", sub(QI, J), const(16)))
    assert _states(sub(QI, J), const(16), window) == ("given", "given")
    near = call("le", call("abs", sub(QI, J)), const(8))
    assert _states(add(sub(QI, J), const(8)), const(17), near) == ("given", "given")
    assert _states(sub(QI, J), const(16), CAUSAL) == ("given", "refused")


def text(form: Form) -> str:
    verdict = settle(ranges(), form, NO_FACTS)
    return verdict.state + (": " + relation_text(verdict.relations) if verdict.relations else "")


def test_relations_between_sizes() -> None:
    assert text(form_of(less_one(sub(N, QI)))) == "check: M + q_start <= N"
    assert text(form_of(less_one(sub(L, J)))) == "check: N <= L"
    assert text(form_of(less_one(sub(const(64), axis("d"))))) == "check: D <= 64"
    assert text(form_of(less_one(sub(const(512), J)))) == "refused"
    assert text(form_of(sub(QI, J))) == "refused"


# -------------------------------------------------------------------------------------------------- through specs


@pytest.mark.parametrize(
    ("body", "relations"),
    [
        ("tensor t: i32[B, N]\nmask = t[b, i] == t[b, j]", ["M + q_start <= N"]),
        ("size L\ntensor t: f32[L]\nbias = t[j]", ["1 <= L", "N <= L"]),
        ("tensor t: f32[M, N]\nbias = t", []),
        ("tensor t: f32[M]\nbias = t[clamp(j, 0, M - 1)]", ["q_start <= 0"]),
        ("tensor t: f32[D // 2]\nbias = sum[d](t[d // 2])", ["(D - 1) // 2 + 1 <= D // 2"]),
        ("tensor t: f32[N // 2]\nbias = t[j // 2] * 0", ["(N - 1) // 2 + 1 <= N // 2"]),
        ("let half = D // 2\nscore = sum[d](q * k * (d % half))", ["1 <= D // 2"]),
    ],
)
def test_checks_of_a_spec(body: str, relations: list[str]) -> None:
    program = lowered(body)
    heads = call("eq", call("mod", size("H"), size("G")), const(0))
    found = [c.relation for c in program.checks if c.relation is not heads]
    assert [relation_text((_form(r),)) for r in found] == relations


def _form(relation: Node) -> Form:
    assert isinstance(relation, Call) and relation.fn == "le"
    return form_of(sub(relation.args[1], relation.args[0]))


@pytest.mark.parametrize(
    "body",
    [
        "size L\ntensor t: f32[L]\nmask = 0 <= i - j < L\nbias = t[i - j]",
        "size L\ntensor t: f32[L]\nbias = t[i - j] if 0 <= i - j and i - j < L else 0",
        "tensor t: f32[N]\nmask = j == 0 or (j > 0 and t[j - 1] > 0)",
        "tensor t: i32[N]\ntensor u: f32[9]\nbias = u[clamp(t[j], 0, 8)] + u[t[j] % 9]",
        "tensor t: u8[N]\ntensor u: f32[9]\nbias = u[min(t[j], 8)]",
    ],
)
def test_subscripts_that_conditions_make_safe(body: str) -> None:
    assert len(lowered(body).checks) == 1 + ("size" in body)


@pytest.mark.parametrize(
    "body",
    [
        "tensor t: f32[N]\nbias = t[j - 1]",
        "tensor t: f32[N]\nbias = t[j + 1]",
        "tensor t: f32[N]\nmask = t[j - 1] > 0 and j > 0",
        "size L\ntensor t: f32[L]\nmask = 0 <= i - j < L\nobserve x = t[i]\nbias = t[j - i]",
        "tensor t: i32[N]\ntensor u: f32[9]\nbias = u[t[j]]",
        "tensor t: i32[N]\ntensor u: f32[9]\nbias = u[min(t[j], 8)]",
        "tensor u: f32[9]\nbias = u[floor(tanh(j))]",
        "let t[j] = j\nbias = t[j + 1]",
        "bias = dot(q[i + 1, d], k)",
    ],
)
def test_subscripts_that_can_leave(body: str) -> None:
    assert codes(body) == ["E105"]


def test_a_pair_outside_the_mask_reads_inside_the_tensor() -> None:
    """Masked pairs are computed before they are dropped, so the mask alone must not keep a read in range."""
    program = lowered("size L\ntensor t: f32[L]\nmask = 0 <= i - j < L\nbias = t[i - j]")
    (index,) = {n.index[0] for n in postorder(program.roots()) if isinstance(n, Load) and n.tensor == "t"}
    assert settle(ranges(), form_of(index)).state == "proved"
    assert settle(ranges(), form_of(less_one(sub(L, index)))).state == "proved"


def test_the_message_names_the_way_out() -> None:
    (found,) = mistakes("size L\ntensor t: f32[H, L]\nbias = t[h, i - j]")
    assert found.message.startswith("`i - j` can leave dimension 2 of `t`, which has size L")
    assert found.remedy is not None and "clamp(i - j, 0, L - 1)" in found.remedy
