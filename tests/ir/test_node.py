"""Interning: one object per expression, across threads, copies, pickles and processes."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnc.ir.construct import add, axis, call, const, load, max_over, mul, sum_over
from attnc.ir.node import Node
from attnc.ir.walk import postorder, replace, rewrite
from tests.ir import expressions as ex
from tests.ir.programs import softmax_program

ROOT = Path(__file__).parents[2]


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(ex.reals(), ex.integers(), ex.conditions()), st.booleans())
def test_copies_and_pickles_are_the_same_object(recipe: ex.Recipe, canonical: bool) -> None:
    node = ex.build(recipe, canonical)
    assert ex.build(recipe, canonical) is node
    assert pickle.loads(pickle.dumps(node)) is node
    assert copy.deepcopy([node])[0] is node
    assert copy.copy(node) is node


def test_another_process_builds_the_same_digest() -> None:
    node = softmax_program().roots()[0]
    code = (
        "import pickle, sys\n"
        "from tests.ir.programs import softmax_program\n"
        "node = softmax_program().roots()[0]\n"
        "assert pickle.loads(sys.stdin.buffer.read()) is node\n"
        "print(node.digest.hex())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(node), capture_output=True, cwd=ROOT, check=True
    )
    assert done.stdout.decode().strip() == node.digest.hex()


def test_nodes_that_differ_only_in_type_are_different() -> None:
    assert len({const(1), const(1.0), const(True), const(0.0), const(-0.0)}) == 5
    assert load("x", [axis("i")], "f") is not load("x", [axis("i")], "i")


def test_threads_agree_on_every_node() -> None:
    count = 8
    barrier = Barrier(count)

    def build(_: int) -> list[Node]:
        barrier.wait()
        out: list[Node] = []
        for k in range(60):
            x = load(f"t{k}", [axis("i"), axis("j")])
            shifted = call("exp", add(x, mul(const(-1.0), max_over({"j"}, x))))
            out.append(mul(shifted, call("reciprocal_or_zero", sum_over({"j"}, [shifted]))))
        return out

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            with ThreadPoolExecutor(count) as pool:
                results = list(pool.map(build, range(count)))
            for same in zip(*results, strict=True):
                assert all(n is same[0] for n in same)
            del results, same
            gc.collect()
    finally:
        sys.setswitchinterval(interval)


def test_unused_nodes_are_forgotten() -> None:
    from attnc.ir import node as module

    gc.collect()
    before = len(module._table)
    kept = [call("exp", load(f"only_here{k}", [axis("i")])) for k in range(100)]
    assert len(module._table) >= before + 200
    del kept
    gc.collect()
    assert len(module._table) <= before + 1


def test_traversal_is_children_first_and_not_recursive() -> None:
    deep: Node = load("x", [axis("i")])
    for _ in range(3000):
        deep = call("sin", deep)
    nodes = postorder([deep, deep])
    assert len(nodes) == 3002
    place = {n: k for k, n in enumerate(nodes)}
    assert all(place[c] < place[n] for n in nodes for c in n.children)


def test_rewrite_and_replace() -> None:
    x, y = load("x", [axis("i")]), load("y", [axis("i")])
    node = add(call("exp", x), call("sin", call("exp", x)))
    (renamed,) = rewrite([node], lambda n: y if n is x else None)
    assert renamed is add(call("exp", y), call("sin", call("exp", y)))
    (cut,) = replace([node], {call("exp", x): y})
    assert cut is add(y, call("sin", y))
