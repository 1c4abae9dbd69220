"""What is checked and what is timed on a GPU, as data: specs, sizes and peers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
CONTRACT = (
    "alibi", "gemma2", "sinks", "relative_table", "document_causal", "music", "spatial", "sigmoid_attention", "gated",
    "manhattan", "neighborhood_2d", "retention", "reversed", "watched", "pointer", "agent", "causal", "softmax",
)  # fmt: skip
"""Specs of the language's contract: checked in both half precisions, forward and backward."""
DTYPES = ("bf16", "f16")
BIAS = """attention loaded_bias
tensor t: f32[H, M, N]
bias = t[h, i, j]
"""
TEXTS = {"loaded_bias": BIAS}
"""Specs that are no examples."""
SDPA = ("cuDNN", "flash", "efficient")
"""Backends of `scaled_dot_product_attention`, each a peer of its own."""
ALL = (*SDPA, "flex", "eager")


@dataclass(frozen=True, slots=True)
class Check:
    """A spec compared with the float64 oracle, outputs and all gradients.

    Attributes:
        sizes: one call each.
        consts: for the first of `sizes`; a spec on a grid fits one length.
    """

    spec: str
    dtype: str
    sizes: tuple[Mapping[str, int], ...]
    consts: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.spec} {self.dtype}"


@dataclass(frozen=True, slots=True)
class Race:
    """A spec timed beside its peers on the same inputs.

    Attributes:
        group: of cases in the table.
        sizes: of the call.
        consts, options: for `attnc.compile`.
        peers: names of those to try: `ALL`, and ``fla``.
        both: whether forward and backward are timed together too.
        graph: whether calls are replayed from CUDA graphs, because they are shorter than their launches.
        smooth: whether three-dimensional tensors are smooth, so that few singular vectors represent them.
    """

    group: str
    spec: str
    sizes: Mapping[str, int]
    consts: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    peers: tuple[str, ...] = ALL
    both: bool = True
    graph: bool = False
    smooth: bool = False

    @property
    def name(self) -> str:
        s = {"G": self.sizes["H"], "M": self.sizes["N"]} | dict(self.sizes)
        heads = f"H{s['H']}" if s["G"] == s["H"] else f"H{s['H']}/{s['G']}"
        queries = "" if s["M"] == s["N"] else f" M{s['M']}"
        asked = "".join(f" {k}={v}" for k, v in self.options.items())
        return f"{self.spec}{asked} B{s['B']} {heads}{queries} N{s['N']} D{s['D']}"


@dataclass(frozen=True, slots=True)
class Suite:
    """Everything of one run.

    Attributes:
        rounds, seconds: most timing rounds of a case, and seconds after which no further round of it is begun.
        processes: that check and compile side by side.
        repeats: calls over which the time that a call takes on the host is averaged.
    """

    device: str
    checks: tuple[Check, ...]
    races: tuple[Race, ...]
    rounds: int
    seconds: float
    processes: int
    repeats: int


def tokens(n: int, d: int, heads: int = 16, count: int = 16384) -> dict[str, int]:
    """Sizes of a batch of `count` tokens in sequences of n; at least one sequence."""
    return {"B": max(1, count // n), "H": heads, "N": n, "D": d}


def plain_races() -> list[Race]:
    """Softmax and causal attention over lengths and channels. FlexAttention, slow to compile, is timed at two of them;
    eager PyTorch where its whole tensors stay below a few GiB."""
    found = []
    for d in (64, 128):
        for n in (4096, 16384, 1024, 2048, 8192, 32768):
            slow = ("efficient", "flex") if n in (4096, 16384) else ()
            eager = ("eager",) if n <= 4096 else ()
            for spec in ("causal", "softmax"):
                peers = ("cuDNN", "flash", *slow, *eager)
                found.append(Race("plain", spec, tokens(n, d), peers=peers, both=n < 32768 or d == 128))
    grouped = [
        Race("grouped", "causal", tokens(n, 128) | {"G": 2}, peers=ALL if n <= 4096 else ALL[:-1])
        for n in (4096, 16384)
    ]
    return [*found[:4], *found[12:16], *grouped, *found[4:12], *found[16:]]


def variant_races() -> list[Race]:
    """The variants at 4096 positions, B4 H16 D64, beside all that can say them; and some at 16384, where masks and
    weights of whole planes would take many GiB, beside what needs none."""
    at = tokens(4096, 64)
    long = tokens(16384, 64)
    two_d = {"rows": 64, "cols": 64}
    return [
        Race("variant", "alibi", at),
        Race("variant", "alibi", long, peers=("flex",)),
        Race("variant", "gemma2", at, {"window": 1024}),
        Race("variant", "gemma2", long, {"window": 1024}, peers=("flex",)),
        Race("variant", "sinks", at),
        Race("variant", "document_causal", at),
        Race("variant", "document_causal", long, peers=("flex",)),
        Race("variant", "neighborhood_2d", at, two_d),
        Race("variant", "relative_table", at),
        Race("variant", "spatial", at),
        Race("variant", "spatial", at, options={"bias": "factors"}, peers=("cuDNN", "efficient")),
        Race("variant", "spatial", long | {"D": 32}, peers=("flex",)),
        Race(
            "variant", "loaded_bias", at, options={"rank": "auto", "rtol": 1e-2}, smooth=True, peers=("cuDNN", "flex")
        ),
        Race("variant", "loaded_bias", at, smooth=True, peers=("cuDNN", "efficient", "flex", "eager")),
        Race("variant", "sigmoid_attention", at),
        Race("variant", "gated", at),
        Race("variant", "retention", at, peers=("fla", "eager")),
        Race("variant", "retention", long, peers=("fla",)),
        Race("variant", "watched", at),
        Race("variant", "music", at | {"D": 32}, peers=("eager",)),
        Race("variant", "manhattan", at, peers=("eager",)),
    ]


def decoding_races() -> list[Race]:
    """One new position against a cache of keys: what a causal mask allows its last position is everything."""
    found = []
    for n in (8192, 32768):
        for b in (1, 4, 16, 64):
            sizes = {"B": b, "H": 32, "G": 4, "M": 1, "N": n, "D": 128}
            peers = ("cuDNN", "flash", "flex", "eager") if b in (1, 16) else ("cuDNN", "flash")
            if b * n <= 16 * 32768:
                found.append(Race("decoding", "softmax", sizes, peers=peers, both=False, graph=True))
    return found


def on_gpu() -> Suite:
    """The run on a GPU, what matters most first."""
    even = {"B": 2, "H": 4, "G": 2, "N": 1024, "D": 64}
    odd = {"B": 1, "H": 2, "G": 1, "N": 333, "D": 64}
    checks = tuple(Check(spec, dtype, (even, odd)) for dtype in DTYPES for spec in CONTRACT)
    plain, others, decoding = plain_races(), variant_races(), decoding_races()
    races = (*plain[:10], *others, *decoding, *plain[10:])
    return Suite("cuda", checks, races, rounds=15, seconds=0.35, processes=12, repeats=500)


def dry_run() -> Suite:
    """The same path with tiny sizes on a CPU: each spec at one length per dtype, and each race once."""
    grid = {"rows": 4, "cols": 8, "r": 1}
    even = {"B": 1, "H": 2, "G": 1, "N": 33, "D": 16}
    odd = {"B": 1, "H": 2, "G": 2, "N": 7, "D": 16}
    checks = tuple(
        Check(spec, dtype, (sizes,), grid if spec == "neighborhood_2d" else {})
        for dtype, sizes in zip(DTYPES, (even, odd), strict=True)
        for spec in CONTRACT
    )
    races: dict[str, Race] = {}
    for tiny in (_tiny(r, grid) for r in on_gpu().races):
        known = races.get(tiny.name, tiny)
        races[tiny.name] = replace(known, peers=tuple(dict.fromkeys((*known.peers, *tiny.peers))))
    return Suite("cpu", checks, tuple(races.values()), rounds=2, seconds=0.0, processes=2, repeats=2)


def _tiny(race: Race, grid: Mapping[str, int]) -> Race:
    n = 32
    small = {"B": 1, "H": 2, "N": n, "D": 16} | ({"G": 1} if "G" in race.sizes else {})
    small |= {"M": 1, "N": 160} if race.sizes.get("M") == 1 else {}
    return replace(race, sizes=small, consts=grid if race.spec == "neighborhood_2d" else {})


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a name in `DTYPES`."""
    import torch

    return {"bf16": torch.bfloat16, "f16": torch.float16}[name]
