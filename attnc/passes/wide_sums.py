"""Tables that pairs of positions are scattered into, in double precision where programs run in order.

An entry of such a table may take every pair of a long row, or of the whole plane, one at a time. In f32 the sum of the
first ten thousand would round away half the digits of the next. There are as many numbers as the table has entries,
which is few beside what the pairs cost.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.ir.node import Sum
from attnc.passes.plan import Plan


def with_wide_sums(plan: Plan) -> Plan:
    """The plan with f64 buffers for what its passes scatter; results keep their dtype."""
    scattered = {name for p in plan.passes for name, _, node in p.stores if isinstance(node, Sum) and node.scatter}
    if not scattered:
        return plan
    own = {b.name for b in plan.buffers if b.role == "scratch"} & scattered
    return replace(plan, buffers=tuple(replace(b, dtype="f64") if b.name in own else b for b in plan.buffers))
