"""Mistakes in the meaning of a spec: goldens, the catalogue's examples, and what one mistake must not cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from attnc.diagnostics.codes_meaning import ENTRIES
from attnc.diagnostics.diagnostic import SpecError
from attnc.diagnostics.render import render_plain
from attnc.diagnostics.source import Source
from attnc.grammar.parser import parse
from attnc.lowering import lower, lower_with_warnings
from tests.lowering.specs import codes, lowered, mistakes, with_warnings

MISTAKES = sorted((Path(__file__).parent.parent / "errors" / "meaning").glob("*.attn"))


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: path.stem)
def test_golden(path: Path, golden: Callable[[Path, str], None]) -> None:
    source = Source(path.name, path.read_text(encoding="utf-8"))
    (definition,) = parse(source).definitions
    try:
        found = lower_with_warnings(definition, source)[1]
    except SpecError as error:
        found = error.diagnostics
    assert found
    for diagnostic in found:
        assert len(render_plain(diagnostic).splitlines()) <= 12
        assert diagnostic.remedy
    golden(path.with_suffix(".err"), "\n\n".join(map(render_plain, found)) + "\n")


@pytest.mark.parametrize("code", sorted(set(ENTRIES) - {"E116", "E128"}))
def test_examples_of_the_catalogue(code: str) -> None:
    wrong, right = ENTRIES[code].wrong, ENTRIES[code].right
    found = codes(wrong) if code < "E190" else [d.code for d in with_warnings(wrong)[1]]
    assert found == [code]
    lowered(right)


def test_one_mistake_is_reported_once() -> None:
    body = "let x = slope + 1\nlet y = x * 2\ndef f(z) = z * y\nbias = f(x)\nweight = p * y\nobserve t = sum[j](y)"
    assert codes(body) == ["E101"]


def test_a_mistake_in_a_function_is_reported_once_however_often_it_is_called() -> None:
    assert codes("def f(x) = x + nothing\nbias = f(1) + f(2)\nweight = f(p)") == ["E101"]


def test_mistakes_everywhere_are_reported_together_in_order_of_lines() -> None:
    body = "tensor t: f33[H]\nlet unused = nothing\nbias = t[h, 1]\nmask = 3\nobserve x = sum(p)\ngate = tanh(1, 2)"
    found = mistakes(body)
    assert [d.code for d in found] == ["E119", "E101", "E104", "E106", "E118", "E103"]
    assert all(d.span is not None for d in found)


def test_a_mistake_in_the_use_of_a_prelude_function_is_shown_in_the_spec() -> None:
    (found,) = mistakes("weight = softmax[j](i < j)")
    assert found.source is not None and found.source.name == "spec.attn"
    assert found.code == "E111"


def test_an_output_per_key_is_an_observation() -> None:
    assert codes("output = sum[i](w)") == ["E110"]


def test_unused_names_are_warnings() -> None:
    body = "const a = 1\nlet x = 2\ntensor c: f32[H]\nindex r: 3\ndef f(x) = x\nnormaliser n(s) = s"
    program, found = with_warnings(body)
    assert [d.code for d in found] == ["E191"] * 6
    assert all(d.severity == "warning" for d in found)
    assert [t.name for t in program.tensors] == ["q", "k", "v", "c"]


@pytest.mark.parametrize(
    ("given", "code"),
    [({"window": 2.5}, "E116"), ({"window": True}, "E116"), ({"windw": 3}, "E116"), ({"scale": float("nan")}, "E116")],
)
def test_consts_that_cannot_be_set(given: dict[str, float], code: str) -> None:
    body = "const window = 4\nconst scale = 0.5\nmask = i - j < window\nscore = dot(q, k) * scale"
    assert [d.code for d in mistakes(body, given)] == [code]
    assert lowered(body, {"window": 3.0, "scale": 2}).consts == {"window": 3, "scale": 2.0}


def test_consts_follow_the_consts_they_are_made_of() -> None:
    body = "const R = 2\nconst width = 2 * R + 1\ntensor t: f32[width]\nbias = t[clamp(i - j, -R, R) + R]"
    assert lowered(body, {"R": 5}).consts == {"R": 5, "width": 11}


def test_a_size_known_only_from_an_optional_tensor_needs_it() -> None:
    body = "attention test\nsize L\ntensor t: f32[L] = 0\nbias = t[min(j, L - 1)]"
    source = Source("spec.attn", body)
    (definition,) = parse(source).definitions
    assert [b.tensor for b in lower(definition, source).sizes][-1] == "t"
    with pytest.raises(SpecError) as raised:
        lower(definition, source, provided=frozenset())
    assert [d.code for d in raised.value.diagnostics] == ["E107"]


@pytest.mark.parametrize(
    "body",
    [
        "let a0 = dot(q, k)\n" + "\n".join(f"let a{n + 1} = tanh(a{n})" for n in range(3000)) + "\nscore = a3000",
        "def a0(x) = x\n" + "\n".join(f"def a{n + 1}(x) = a{n}(a{n}(x) + 1)" for n in range(40)) + "\nscore = a40(1)",
        "let a0 = dot(q, k)\n" + "\n".join(f"let a{n + 1} = a{n} * a{n}" for n in range(40)) + "\nscore = a40",
    ],
    ids=["deep", "wide", "doubling"],
)
def test_specs_that_grow_without_end_are_refused(body: str) -> None:
    assert codes(body) == ["E127"]
