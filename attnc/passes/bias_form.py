"""How the bias of a score is computed: in registers, as factors, or from memory, by cost or as the caller says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from attnc.diagnostics.diagnostic import Diagnostic, SpecError
from attnc.ir.node import Node
from attnc.ir.printer import show
from attnc.ir.program import Program
from attnc.passes import bias_cost, tables, toeplitz
from attnc.passes.bias_cost import Form
from attnc.passes.cost import FREE, plan_cost
from attnc.passes.decision import Alternative, Decision
from attnc.passes.plan import Plan
from attnc.passes.separable import Inseparable
from attnc.passes.separate import (
    HIGHEST_RANK,
    Bias,
    ByRank,
    Factors,
    Split,
    factorise,
    find_bias,
    with_dense_bias,
    with_factors,
    with_rank,
)

TargetName = Literal["cpu", "gpu"]
TARGETS: tuple[TargetName, ...] = ("cpu", "gpu")
Precision = Literal["full", "half"]
DTYPES: dict[Precision, tuple[str, ...]] = {"full": ("f32", "f64"), "half": ("bf16", "f16")}
"""Dtypes of queries by the precision they leave to weights and results. Those of eight bits count as half."""
Planner = Callable[[Program, Collection[str]], Sequence[Plan]]

NAMES: dict[Form, str] = {"registers": "registers", "factors": "factors", "dense": "dense bias"}


@dataclass(frozen=True, slots=True)
class Choice:
    """How the bias of a program is computed on one target.

    Attributes:
        form: which of the forms.
        split: the program in that form.
        forms: every form the bias has, by name.
        bias: what was found; None where there is no bias.
        factors: its exact factors; None where there are none.
        refusal: why there are none.
        by_rank: factors of a stated rank that stand for the bias, made at call time; `split` runs without them.
    """

    form: Form
    split: Split
    forms: dict[Form, Split]
    bias: Bias | None = None
    factors: Factors | None = None
    refusal: str = ""
    by_rank: ByRank | None = None


def precision(dtype: str) -> Precision:
    """Of queries of a dtype, by its name."""
    return "full" if dtype in DTYPES["full"] else "half"


def choose(program: Program, target: TargetName, exact: Precision) -> Choice:
    """The form of a program's bias on a target, for queries of a precision; in every form with the tables that pay.

    Raises:
        SpecError: E331, if the caller asks for a form the bias does not have.
    """
    found = _choose(program, target, exact)
    forms = {form: tables.with_tables(toeplitz.with_diagonals(split)) for form, split in found.forms.items()}
    return replace(found, split=forms.get(found.form, forms["registers"]), forms=forms)


def _choose(program: Program, target: TargetName, exact: Precision) -> Choice:
    options = program.options
    forms: dict[Form, Split] = {"registers": Split(program)}
    wanted = options.bias
    optional = options.rank is None and wanted in ("auto", "registers")
    if not options.applies("separate") and optional:
        return Choice("registers", forms["registers"], forms)
    bias = find_bias(program)
    if bias is None:
        if optional:
            return Choice("registers", forms["registers"], forms)
        raise _missing(program, "the score has no bias: no term reads neither q nor k and depends on both positions")
    forms["dense"] = with_dense_bias(program, bias)
    factors, refusal = None, ""
    try:
        factors = factorise(program, bias)
        forms["factors"] = with_factors(program, bias, factors)
    except Inseparable as reason:
        refusal = str(reason)
    by_rank = with_rank(program, bias) if factors is None and options.rank is not None else None
    if wanted == "factors" and factors is None and by_rank is None:
        raise _missing(program, f"the bias has no exact factors: {refusal}")
    auto = _cheapest(program, bias, factors, target, exact) if wanted == "auto" else wanted
    form: Form = "factors" if by_rank else auto
    split = forms.get(form, forms["registers"])
    return Choice(form, split, forms, bias, factors, refusal, by_rank)


def _missing(program: Program, message: str) -> SpecError:
    remedy = (
        'a learned table has factors with rank="auto" or a number; otherwise leave out bias='
        if program.options.rank is None
        else "leave out rank="
    )
    return SpecError([Diagnostic("E331", f"{program.name}: {message}", remedy=remedy)])


def _cheapest(program: Program, bias: Bias, factors: Factors | None, target: TargetName, exact: Precision) -> Form:
    """The cheapest form, of those that need no tensor of both positions and are as accurate as the spec as written.

    Factors are f32 whatever queries are. What rounding leaves of terms that cancel is seen beside weights and results
    in f32, and lost beside what half precision rounds off these.
    """
    if factors is None or (factors.cancels and exact == "full"):
        return "registers"
    costs = pair_costs(program, bias, factors, target)
    return "factors" if costs["factors"] < costs["registers"] else "registers"


def pair_costs(program: Program, bias: Bias, factors: Factors | None, target: TargetName) -> dict[Form, float]:
    """Nanoseconds per pair of positions that each form of a bias adds on a target."""
    device = bias_cost.TARGETS[target]
    learns = bias_cost.trained(program, bias.value)
    plane = frozenset({bias.row, bias.column})
    costs: dict[Form, float] = {"registers": bias_cost.registers(device, program, bias.value, plane)}
    if factors is not None:
        costs["factors"] = bias_cost.factors(device, factors.rank, trained=learns)
    costs["dense"] = bias_cost.dense(device, trained=learns)
    return costs


def highest_rank(program: Program, bias: Bias, target: TargetName) -> int:
    """The largest number of channels at which factors cost less than the bias as it is written."""
    device = bias_cost.TARGETS[target]
    learns = bias_cost.trained(program, bias.value)
    written = pair_costs(program, bias, None, target)["registers"]
    ranks = range(1, HIGHEST_RANK + 1)
    return max((r for r in ranks if bias_cost.factors(device, r, trained=learns) < written), default=0)


# ------------------------------------------------------------------------------------------------------ decisions


def decisions(
    program: Program, chosen: Choice, plans: Planner, target: TargetName, exact: Precision
) -> tuple[Decision, ...]:
    """What was found and chosen, with the predicted traffic and operations of a call and its gradient in each form."""
    of_tables = _tables(chosen, plans)
    bias = chosen.bias
    if bias is None:
        return of_tables
    ways = sorted(chosen.forms.items(), key=lambda form: form[0] != chosen.form)
    alternatives = [_alternative(NAMES[form], split, plans) for form, split in ways]
    said = _chosen(program, bias, chosen, target, exact)
    return (Decision("separate", _found(bias, chosen), said, tuple(alternatives), bias.line), *of_tables)


def _tables(chosen: Choice, plans: Planner) -> tuple[Decision, ...]:
    """What was computed first for every row or every distance, last choice first."""
    out = []
    split = chosen.split
    while split.instead is not None:
        before = split.instead
        name = split.rewrite
        found, said, line = (tables.said if name == "tables" else toeplitz.said)(before.attention)
        ways = _alternative(f"with {name}", split, plans), _alternative(f"without {name}", before, plans)
        out.append(Decision(name, found, said, ways, line))
        split = before
    return tuple(out)


def _alternative(name: str, split: Split, plans: Planner) -> Alternative:
    total = FREE
    for program in (split.first, split.attention):
        for plan in plans(program, split.fixed) if program is not None else ():
            total += plan_cost(plan)
    return Alternative(name, total.bytes, total.flops)


def _found(bias: Bias, chosen: Choice) -> str:
    shown = _shown(bias.value)
    if chosen.factors is not None:
        rank = chosen.factors.rank
        found = f"the bias {shown} is a sum of {rank} product{'' if rank == 1 else 's'} of one position each"
        return f"{found}, which may be larger than it and cancel" if chosen.factors.cancels else found
    return f"the bias {shown} has no exact factors: {chosen.refusal}"


def _shown(node: Node) -> str:
    text = show(node)
    return text if len(text) <= 90 else f"{text[:87]}..."


def _chosen(program: Program, bias: Bias, chosen: Choice, target: TargetName, exact: Precision) -> str:
    options = program.options
    if chosen.by_rank is not None:
        if options.rank != "auto":
            return f"factors of {options.rank} channels, from singular vectors at call time"
        most = highest_rank(program, bias, target)
        error = f"a relative error of {options.rtol:g}"
        return f"factors of as many channels as {error} takes, at most {most} on a {target}, else as without rank="
    if options.bias != "auto":
        return f"{NAMES[chosen.form]}, as asked"
    here = _by_precision(program, bias, chosen, target, exact)
    found: list[tuple[TargetName, dict[Precision, Form]]] = [(target, here)]
    for other in TARGETS:
        forms = _by_precision(program, bias, chosen, other, exact)
        if forms != here:
            found.append((other, forms))
    shown = [f"{_formed(forms, t)} ({_priced(program, bias, chosen, t)})" for t, forms in found]
    if chosen.factors is not None and chosen.factors.cancels:
        full, half = (" and ".join(DTYPES[p]) for p in ("full", "half"))
        why = f"the terms of factors cancel: in {full} they round more than the bias as written"
        shown.append(f'{why}, in {half} less than the weights are rounded; bias="factors" takes them everywhere')
    return "; ".join(shown)


def _by_precision(
    program: Program, bias: Bias, chosen: Choice, target: TargetName, first: Precision
) -> dict[Precision, Form]:
    """The form for every precision, that of `first` first."""
    order = sorted(DTYPES, key=lambda p: p != first)
    return {p: _cheapest(program, bias, chosen.factors, target, p) for p in order}


def _formed(forms: dict[Precision, Form], target: TargetName) -> str:
    if len(set(forms.values())) == 1:
        return f"{NAMES[next(iter(forms.values()))]} on a {target}"
    listed = [f"{NAMES[form]} in {' and '.join(DTYPES[p])}" for p, form in forms.items()]
    return f"on a {target} {', '.join(listed)}"


def _priced(program: Program, bias: Bias, chosen: Choice, target: TargetName) -> str:
    costs = pair_costs(program, bias, chosen.factors, target)
    shown = sorted((x, NAMES[f]) for f, x in costs.items())
    return "forward and backward, per pair: " + ", ".join(f"{name} {x * 1e3:.3g} ps" for x, name in shown)
