"""Recorded tensor operations: repeated on other tensors they give what the function itself gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attnc import driver
from attnc.ir.sizes import evaluator
from attnc.passes.plan import Finish
from attnc.runtime.execute import Finisher
from attnc.runtime.recorded import Recorded
from attnc.testing.inputs import complete_sizes, make_inputs

EXAMPLES = Path(__file__).parents[2] / "examples"
PATHS = sorted(EXAMPLES.glob("*.attn"))
GALLERY = sorted((EXAMPLES / "gallery").glob("*.attn"))
LOOKING = {"linear_bidirectional", "aaren", "spatial", "collapsed_similarity", "efficient_probing", "gaussian_adaptive"}
LOOKING |= {"lama", "qk_norm", "selective", "st_link", "symmetric_similarity"}
"""Specs that leave matrix products over, which look for infinities first."""
THIRD = torch.tensor(1 / 3)


def doubled(t: Sequence[Tensor]) -> None:
    t[-1].copy_((2 * t[0]).sum(0))


def seen_from_elsewhere(t: Sequence[Tensor]) -> None:
    t[-1].copy_(t[0].t()[1:, ::2].reshape(-1).unsqueeze(0).expand(3, -1).permute(1, 0).sum(1)[:4])


def collected(t: Sequence[Tensor]) -> None:
    total = t[0].new_zeros(4)
    total.index_add_(0, torch.arange(12, device=t[0].device) % 4, t[0].reshape(-1))
    total[1:3] += THIRD
    t[-1].copy_(total)


def largest(t: Sequence[Tensor]) -> None:
    value, place = t[0].max(0)
    t[-1].copy_(torch.cat([value[:2], place[2:].to(value.dtype)]) * 0.5)


def alone(t: Sequence[Tensor]) -> None:
    t[-1].copy_(t[0][0])


def by_contents(t: Sequence[Tensor]) -> None:
    t[-1].copy_(t[0][0] if bool(t[0][0, 0] > 0) else t[0][1])


def by_other_contents(t: Sequence[Tensor]) -> None:
    places = torch.arange(3, device=t[0].device) // 2
    half = torch.zeros(4)
    half[1:] = places + 1
    t[-1].copy_(t[0][int(places.max())] * half if bool((places == places.sort().values).all()) else t[0][0])


COUNT = torch.zeros(4)


def with_a_memory(t: Sequence[Tensor]) -> None:
    COUNT[1:].add_(1)
    t[-1].copy_(COUNT + t[0][0])


WAYS = [doubled, seen_from_elsewhere, collected, largest, alone, by_contents, by_other_contents, with_a_memory]


@pytest.mark.parametrize("compute", WAYS, ids=lambda f: f.__name__)
def test_other_tensors(compute: Callable[[Sequence[Tensor]], None]) -> None:
    recorded = Recorded(compute)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        x = torch.randn(3, 4, generator=generator)
        COUNT.zero_()
        expected, found = torch.full((4,), torch.nan), torch.full((4,), torch.nan)
        compute([x, expected])
        COUNT.zero_()
        recorded([x, found])
        assert torch.equal(found, expected)
    assert (recorded.steps is None) == (compute in (by_contents, with_a_memory))


def test_a_tensor_given_twice_is_two() -> None:
    recorded = Recorded(lambda t: t[-1].copy_(t[0] - 2 * t[1]))
    x, z = torch.randn(2, 4)
    found = torch.empty(4)
    recorded([x, x, found])
    assert torch.equal(found, -x)
    recorded([x, z, found])
    assert torch.equal(found, x - 2 * z)


def test_nothing_but_what_leads_to_the_result_is_repeated() -> None:
    recorded = Recorded(seen_from_elsewhere)
    x, y = torch.randn(3, 4), torch.empty(4)
    recorded([x, y])
    assert recorded.steps is not None
    names = [str(s.function) for s in recorded.steps]
    assert names.count("aten.sum.dim_IntList") == names.count("aten.copy_.default") == 1
    assert not any("permute" in n or "unsqueeze" in n for n in names)
    kept = {slot for s in recorded.steps for slot in s.targets} - {slot for s in recorded.steps for slot in s.ended}
    assert kept <= {1}  # what was made is let go, the target is given


def test_what_a_graph_captures_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnc.runtime.recorded._is_captured", lambda device: True)
    recorded = Recorded(alone)
    x, y = torch.randn(3, 4), torch.empty(4)
    recorded([x, y])
    assert torch.equal(y, x[0])
    assert recorded.steps is None
    monkeypatch.undo()
    recorded([x, y])
    assert recorded.steps is not None


def test_beginnings_of_memory_may_differ() -> None:
    recorded = Recorded(alone)
    y = torch.empty(4)
    for start in (0, 5, 2):
        x = torch.randn(40)[start : start + 12].view(3, 4)
        recorded([x, y])
        assert torch.equal(y, x[0])


@pytest.mark.parametrize(
    "path", [*PATHS, *(pytest.param(p, marks=pytest.mark.sweep) for p in GALLERY)], ids=lambda p: p.stem
)
def test_what_kernels_leave_to_tensor_operations(path: Path) -> None:
    source = driver.read(path)
    program = driver.lower(driver.definition(source), source)
    plans = driver.plans(program, "cpu")
    known = {"B": 2, "H": 4, "G": 2, "M": 6, "N": 9, "D": 4, "E": 3}
    sizes = {"q_start": 0, **complete_sizes(program, known)}
    inputs = make_inputs(program, sizes, torch.float64)
    looked = False
    for plan in plans:
        sizes |= complete_sizes(plan.program, sizes)
        dims = {t.name: t.dims for t in plan.program.tensors} | {b.name: b.dims for b in plan.buffers}
        shapes = {name: tuple(evaluator(d)(sizes) for d in ds) for name, ds in dims.items()}
        for item in (s for s in plan.steps if isinstance(s, Finish)):
            finisher = Finisher(plan, item, torch.float64, torch.float64)
            recorded = finisher.bind([], sizes)
            assert isinstance(recorded, Recorded)
            for seed in range(3):
                generator = torch.Generator().manual_seed(seed)
                given = [
                    inputs[n]
                    if n in inputs and not inputs[n].is_floating_point()
                    else torch.rand(shapes[n], generator=generator, dtype=torch.float64)
                    for n in finisher.reads
                ]
                expected, found = (torch.full(shapes[item.buffer], torch.nan, dtype=torch.float64) for _ in range(2))
                finisher([*given, expected], sizes)
                recorded([*given, found])
                assert torch.equal(found, expected)
            looked |= recorded.steps is None
    assert looked == (path.stem in LOOKING)
