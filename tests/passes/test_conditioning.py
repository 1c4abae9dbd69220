"""Gradients without terms that cancel: reciprocals of products, row terms of several outputs, weights read twice."""

from __future__ import annotations

from collections import Counter

from attnc.ir.construct import ZERO, add, axis, call, factors_of, iverson, load, mul, neg
from attnc.ir.node import Call, Load, Node, Sum
from attnc.ir.walk import postorder
from attnc.passes.derive import gradient_program
from attnc.passes.pipeline import normalise, saved_values
from tests.passes.programs import spec

A, B, C = (load(name, [axis("i")]) for name in "abc")


def inverse(x: Node) -> Node:
    return call("reciprocal_or_zero", x)


def reciprocals(nodes: list[Node]) -> list[Node]:
    return [n for n in nodes if isinstance(n, Call) and n.fn == "reciprocal_or_zero"]


def test_a_product_cancels_with_its_reciprocal() -> None:
    r = inverse(mul(A, B))
    assert mul(A, B, r, r, C) is mul(r, C)
    assert mul(A, B, r) is iverson(call("not", call("eq", mul(A, B), ZERO)))


def test_what_a_reciprocal_is_made_of_is_known_not_to_be_zero() -> None:
    """Where a is 0 its reciprocal is 0, and so is one over a product with that."""
    r = inverse(A)
    t = inverse(mul(B, r))
    assert mul(A, r, t) is t


def test_terms_cancel_across_a_bracket_if_each_part_has_its_partner() -> None:
    bracket = mul(C, add(A, neg(B)))
    assert add(mul(C, A), neg(mul(C, B)), neg(bracket)) is ZERO
    assert bracket in add(A, bracket).children


def test_repeated_normalisation_leaves_no_sum_times_its_reciprocal() -> None:
    gradient = gradient_program(spec("attention twice\nnormaliser = sinkhorn(5)"))
    for node in postorder(gradient.roots()):
        factors = getattr(node, "factors", ())
        for r in reciprocals(list(factors)):
            assert not Counter(factors_of(r.children[0])) <= Counter(factors)


def test_a_row_term_of_several_outputs_reads_quotients_alone() -> None:
    """o and the observation are both divided by the sum; neither is multiplied by it again."""
    program = spec("attention seen\nobserve reach = sum[j](p * j)")
    _, saved = saved_values(program, normalise(gradient_program(program), program))
    assert {s.name for s in saved} == {"lse", "o", "reach"}


def test_a_weight_read_at_the_query_sends_its_gradient_to_the_keys() -> None:
    text = "attention own\nlet share[j, e] = softmax[j](v[j, e])\noutput = share[i, e] * v[b, g, i, e]"
    gradient = gradient_program(spec(text))
    scattered = [n for n in postorder(gradient.roots()) if isinstance(n, Sum) and any(a == "j" for a, _ in n.scatter)]
    assert scattered
    exponentials = [n for n in postorder(gradient.roots()) if isinstance(n, Call) and n.fn == "exp" and "j" in n.axes]
    assert len(exponentials) == 1
    assert any(isinstance(n, Load) and n.tensor == "grad_o" for n in postorder(scattered))
