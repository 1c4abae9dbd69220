"""The compiler knows mechanisms, not variants: no pass, printer or runtime file mentions one by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("codegen", "attnc/passes", "attnc/runtime", "attnc/ir")
# Words of file names that are words of the field as well: parts, quantities and shapes that every compiler speaks of.
ORDINARY = """
1d 2d 3d absorbed act adaptive additive agent anchors attention bias bidirectional block boost buckets causal
collapsed column columns contrastive cosine cumulative decay decoder dense dependency differential diffusion dilated
distance document dropout dynamic efficient entropy factors forgetting free future gated gaussian half headwise image
images importance influence inside invariant kernel key keys latent lightning linear link lm local low manhattan map
mask mass meta mixture multiplicative nat neighborhood network norm normaliser only orders pair paired perturbation
plan pointer points polynomial pool position power prefix probing projection qk query radial rank readout
redistribution relative retention reversed rollout rows scalar score sd selective shared sigmoid similarity sinks
sliding softcap softmax softmax1 sparsemax spatial squared st static swim symmetric table tables token tokens
transport tree triangle user v2 value visual watched weights window windowed x
"""


def words() -> set[str]:
    """What in the names of the specs is a name of its own."""
    specs = [*(ROOT / "examples").glob("*.attn"), *(ROOT / "examples" / "gallery").glob("*.attn")]
    return {w for path in specs for w in path.stem.split("_")} - set(ORDINARY.split())


def mentioned(text: str, names: set[str]) -> set[str]:
    """Names that occur as a word, or as a part of an identifier between underscores."""
    return names & set(re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).lower()))


def test_names_are_found() -> None:
    assert mentioned("def _is_alibi(x): ...", {"alibi", "halo"}) == {"alibi"}
    assert mentioned("class SwinMask: pass", {"swin"}) == {"swin"}
    assert len(words()) > 30


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_variant_is_named(folder: str) -> None:
    names = words()
    found = {
        f"{path.relative_to(ROOT)}:{number}: {name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for name in mentioned(line, names)
    }
    assert not found, "\n".join(sorted(found))
