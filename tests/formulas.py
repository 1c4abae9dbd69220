"""What every example means, as dense PyTorch written from the papers and never through attnc.

Each formula takes q [B, H, M, D], k [B, G, N, D], v [B, G, N, E], the spec's tensors and consts by name, and `q_start`,
the absolute position of the first query; it returns the output, or the output and a dict of observations. It computes
in the dtype of what it is given: float64 inputs make it the reference, f32/bf16/f16 inputs make it the yardstick that
tells how much error the dtype itself costs. Gradients come from autograd. Query rows that may attend to nothing give 0.

tests/test_formulas.py checks every formula against loops over single elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Result = Tensor | tuple[Tensor, dict[str, Tensor]]
Formula = Callable[..., Result]


# ------------------------------------------------------------------------------------------------------- pieces


def per_query_head(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values [B, G, N, C] repeated to one head per query head, [B, H, N, C]."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def positions(q: Tensor, k: Tensor, q_start: int) -> tuple[Tensor, Tensor]:
    """Absolute query positions [M, 1] and key positions [1, N]."""
    i = torch.arange(q.shape[2], device=q.device)[:, None] + q_start
    return i, torch.arange(k.shape[2], device=q.device)[None, :]


def heads(x: Tensor) -> Tensor:
    """A value per head, [H], as [H, 1, 1]."""
    return x[:, None, None]


def scores(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """q·k scaled by 1/sqrt(D), [B, H, M, N]."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return (q @ per_query_head(k, q).transpose(-1, -2)) * scale


def softmax(s: Tensor, mask: Tensor | None = None, dim: int = -1) -> Tensor:
    """Softmax over the allowed entries; 0, with gradient 0, where none is allowed."""
    if mask is not None:
        some = mask.any(dim, keepdim=True)
        return softmax(s.masked_fill(~mask & some, -math.inf), dim=dim) * (mask & some)
    return torch.softmax(s, dim)


def l1(x: Tensor, mask: Tensor) -> Tensor:
    """Nonnegative x over its sum along the keys, allowed entries only."""
    x = x.masked_fill(~mask, 0.0)
    total = x.sum(-1, keepdim=True)
    return x / torch.where(total == 0, torch.ones_like(total), total)


def attend(w: Tensor, v: Tensor) -> Tensor:
    """Sum over keys of weights [B, H, M, N] times values [B, G, N, E]."""
    return w.to(v.dtype) @ per_query_head(v, w)


def alibi_slopes(n_heads: int, like: Tensor) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return 2.0 ** (-8.0 * torch.arange(1, n_heads + 1, dtype=dtype, device=like.device) / n_heads)


# ----------------------------------------------------------------------------------------------------- formulas


def plain_softmax(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Tensor:
    return attend(softmax(scores(q, k)), v)


def causal(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    return attend(softmax(scores(q, k), j <= i), v)


def alibi(q: Tensor, k: Tensor, v: Tensor, slope: Tensor | None = None, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    slope = alibi_slopes(q.shape[1], q) if slope is None else slope
    return attend(softmax(scores(q, k) - heads(slope) * (i - j), j <= i), v)


def softcap_alibi(
    q: Tensor, k: Tensor, v: Tensor, slope: Tensor | None = None, cap: float = 30.0, q_start: int = 0
) -> Tensor:
    i, j = positions(q, k, q_start)
    slope = alibi_slopes(q.shape[1], q) if slope is None else slope
    s = cap * torch.tanh(scores(q, k) / cap) - heads(slope) * (i - j)
    return attend(softmax(s, j <= i), v)


def gemma2(q: Tensor, k: Tensor, v: Tensor, cap: float = 50.0, window: int = 4096, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    s = cap * torch.tanh(scores(q, k) / cap)
    return attend(softmax(s, (j <= i) & (i - j < window)), v)


def sliding_window(q: Tensor, k: Tensor, v: Tensor, window: int = 256, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    return attend(softmax(scores(q, k), (j <= i) & (i - j < window)), v)


def dilated(q: Tensor, k: Tensor, v: Tensor, step: int = 4, window: int = 256, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    return attend(softmax(scores(q, k), (j <= i) & (i - j < window) & ((i - j) % step == 0)), v)


def sinks(q: Tensor, k: Tensor, v: Tensor, sink: Tensor, window: int = 128, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    mask = (j <= i) & (i - j < window)
    s = scores(q, k).masked_fill(~mask, -math.inf)
    extra = sink[None, :, None, None].expand(*s.shape[:3], 1).to(s.dtype)
    return attend(softmax(torch.cat([s, extra], -1))[..., :-1], v)


def softmax1(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    s = scores(q, k).masked_fill(j > i, -math.inf)
    return attend(softmax(F.pad(s, (0, 1)))[..., :-1], v)


def relative_table(q: Tensor, k: Tensor, v: Tensor, table: Tensor, R: int = 128, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    return attend(softmax(scores(q, k) + table[:, (i - j).clamp(-R, R) + R]), v)


def urpe(q: Tensor, k: Tensor, v: Tensor, table: Tensor, R: int = 128, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    return attend(softmax(scores(q, k), j <= i) * table[:, (i - j).clamp(-R, R) + R], v)


def document_causal(q: Tensor, k: Tensor, v: Tensor, doc: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    same = doc[:, i[:, 0], None] == doc[:, None, :]
    return attend(softmax(scores(q, k), ((j <= i) & same)[:, None]), v)


def prefix_lm(q: Tensor, k: Tensor, v: Tensor, prefix: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    return attend(softmax(scores(q, k), (j <= i) | (j < prefix[:, None, None, None])), v)


def music(q: Tensor, k: Tensor, v: Tensor, rel: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    last = rel.shape[1] - 1
    relative = rel[:, (last - (i - j)).clamp(0, last)]  # [H, M, N, D]
    s = (scores(q, k, 1.0) + torch.einsum("bhid,hijd->bhij", q, relative)) / math.sqrt(q.shape[-1])
    return attend(softmax(s, j <= i), v)


def spatial(q: Tensor, k: Tensor, v: Tensor, x: Tensor, y: Tensor, strength: Tensor, q_start: int = 0) -> Tensor:
    squared = ((x[:, :, None] - y[:, None]) ** 2).sum(-1)
    return attend(softmax(scores(q, k) - heads(strength) * squared[:, None]), v)


def sigmoid_attention(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Tensor:
    return attend(torch.sigmoid(scores(q, k) - math.log(k.shape[2])), v)


def gated(q: Tensor, k: Tensor, v: Tensor, g: Tensor, q_start: int = 0) -> Tensor:
    return causal(q, k, v, q_start=q_start) * torch.sigmoid(g)


def manhattan(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, width: int = 14, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    distance = (i // width - j // width).abs() + (i % width - j % width).abs()
    return attend(softmax(scores(q, k)) * heads(gamma) ** distance, v)


def neighborhood_2d(
    q: Tensor, k: Tensor, v: Tensor, rows: int = 32, cols: int = 32, r: int = 3, q_start: int = 0
) -> Tensor:
    i, j = positions(q, k, q_start)
    centre_row = (i // cols).clamp(r, rows - 1 - r)
    centre_col = (i % cols).clamp(r, cols - 1 - r)
    mask = ((j // cols - centre_row).abs() <= r) & ((j % cols - centre_col).abs() <= r)
    return attend(softmax(scores(q, k), mask), v)


def retention(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor | None = None, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    if gamma is None:
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        gamma = 1 - 2.0 ** (-5 - torch.arange(q.shape[1], dtype=dtype, device=q.device))
    decay = heads(gamma) ** (i - j).clamp(min=0)
    return attend((scores(q, k, 1.0) * decay).masked_fill(j > i, 0.0), v)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    return attend(l1(scores(F.elu(q) + 1, F.elu(k) + 1, 1.0), j <= i), v)


def linear_bidirectional(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    return attend(l1(scores(F.elu(q) + 1, F.elu(k) + 1, 1.0), j > -1 - i), v)


def lightning(q: Tensor, k: Tensor, v: Tensor, slope: Tensor | None = None, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    slope = alibi_slopes(q.shape[1], q) if slope is None else slope
    decay = torch.exp(-heads(slope) * (i - j).clamp(min=0))
    return attend((scores(q, k, 1.0) * decay).masked_fill(j > i, 0.0), v)


def scalar_decay(q: Tensor, k: Tensor, v: Tensor, g: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    total = g.cumsum(-1)
    here = total[..., i[:, 0]]
    decay = torch.exp((here[..., :, None] - total[..., None, :]).masked_fill(j > i, 0.0))
    return attend((scores(q, k) * decay).masked_fill(j > i, 0.0), v)


def gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    total = g.cumsum(-2)
    here = total[..., i[:, 0], :]
    apart = (here[..., :, None, :] - total[..., None, :, :]).masked_fill((j > i)[..., None], 0.0)
    s = torch.einsum("bhid,bhjd,bhijd->bhij", q.to(g.dtype), per_query_head(k, q).to(g.dtype), apart.exp())
    return attend((s / math.sqrt(q.shape[-1])).masked_fill(j > i, 0.0).to(q.dtype), v)


def cosformer(q: Tensor, k: Tensor, v: Tensor, longest: int = 4096, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    near = torch.cos(math.pi / 2 * (i - j).double() / longest).to(q.dtype)
    return attend(l1(scores(F.relu(q), F.relu(k), 1.0) * near, j <= i), v)


def aaren(q: Tensor, k: Tensor, v: Tensor, u: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    s = torch.einsum("hd,bhjd->bhj", u, per_query_head(k, q)) / math.sqrt(q.shape[-1])
    return attend(softmax(s[:, :, None, :].expand(-1, -1, q.shape[2], -1), j <= i), v)


def reversed_softmax(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Tensor:
    return attend(softmax(scores(q, k), dim=-2), v)


def watched(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    i, j = positions(q, k, q_start)
    p = softmax(scores(q, k), j <= i)
    logarithm = torch.where(p > 0, p, torch.ones_like(p)).log()
    seen = {
        "entropy": -(p * logarithm).sum(-1),
        "importance": p.sum(-2),
        "distance": (p * (i - j).abs()).sum(-1),
    }
    return attend(p, v), seen


def pointer(q: Tensor, k: Tensor, v: Tensor, u: Tensor, q_start: int = 0) -> Tensor:
    pair = torch.tanh(q[:, :, :, None] + per_query_head(k, q)[:, :, None])
    return softmax(pair @ u)


def agent(q: Tensor, k: Tensor, v: Tensor, agent: Tensor, q_start: int = 0) -> Tensor:
    gathered = attend(softmax(scores(agent, k)), v)
    return attend(softmax(scores(q, agent)), gathered)


def lssa(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    unit_q = q * (q * q).sum(-1, keepdim=True).rsqrt()
    unit_k = k * (k * k).sum(-1, keepdim=True).rsqrt()
    visible = torch.log((i + 1).to(torch.float64)).to(q.dtype)
    s = math.log(q.shape[-1]) * visible * scores(unit_q, unit_k, 1.0)
    return attend(l1(F.softplus(s), j <= i), v)


def user_normaliser(q: Tensor, k: Tensor, v: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    return attend(l1(F.softplus(scores(q, k)), j <= i), v)


def differential(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    half = q.shape[-1] // 2
    signal = softmax(scores(q[..., :half], k[..., :half], 1 / math.sqrt(half)), j <= i)
    noise = softmax(scores(q[..., half:], k[..., half:], 1 / math.sqrt(half)), j <= i)
    return attend(signal - heads(lam) * noise, v)


def rope(q: Tensor, k: Tensor, v: Tensor, base: float = 10000, q_start: int = 0) -> Tensor:
    i, j = positions(q, k, q_start)
    return causal(_rotate(q, i, base), _rotate(k, j.T, base), v, q_start=q_start)


def _rotate(x: Tensor, position: Tensor, base: float) -> Tensor:
    half = x.shape[-1] // 2
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    channel = torch.arange(half, dtype=dtype, device=x.device)
    angle = position.to(dtype) * base ** (-2 * channel / x.shape[-1])
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# ------------------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True)
class Dims:
    """The sizes of one call."""

    B: int = 1
    H: int = 2
    G: int = 2
    M: int = 7
    N: int = 7
    D: int = 16
    E: int = 16


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call: `tensors` and `consts` by name, floats in the dtypes the spec declares."""

    q: Tensor
    k: Tensor
    v: Tensor
    tensors: dict[str, Tensor]
    consts: dict[str, int | float]
    q_start: int = 0

    def real(self) -> dict[str, Tensor]:
        """Everything differentiable, by name."""
        named = {"q": self.q, "k": self.k, "v": self.v, **self.tensors}
        return {name: x for name, x in named.items() if x.is_floating_point()}


@dataclass(frozen=True)
class Random:
    """Seeded tensors: `normal` of a shape, in q's dtype or in f32 (f64 when q is f64)."""

    dims: Dims
    dtype: torch.dtype
    generator: torch.Generator = field(default_factory=torch.Generator)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype or self.dtype)

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        x = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return (low + (high - low) * x).to(self.f32)

    def integers(self, *shape: int, high: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator, dtype=torch.int32)

    @property
    def f32(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def _documents(r: Random) -> Tensor:
    return r.integers(r.dims.B, r.dims.N, high=4).sort(-1).values


@dataclass(frozen=True)
class Spec:
    """An example and what testing it needs.

    Attributes:
        formula: the dense formula above.
        tensors: makes the spec's tensors.
        consts: overrides that make small lengths interesting (a window that is narrower than the sequence).
        queries_within_keys: the spec reads a [.., N] tensor at query positions, so M + q_start <= N.
        plane_output: the output is the weights, [B, H, M, N].
        costly: several planes, or D values per pair: tested at smaller lengths.
        lengths: pairs of M and N that the gallery is tested at, where not every length makes sense (a grid).
        observed: the formula also returns a dict of observations.
        positive: divides by a sum of scores, so q and k are drawn at least 0. With scores of both signs some row has a
            sum near 0, whose rounding is then the error of every result, in the dense formula as in a kernel.
    """

    formula: Formula
    tensors: Callable[[Random], dict[str, Tensor]] = lambda r: {}
    consts: dict[str, Any] = field(default_factory=dict)
    queries_within_keys: bool = False
    plane_output: bool = False
    costly: bool = False
    lengths: tuple[tuple[int, int], ...] = ()
    observed: bool = False
    positive: bool = False


SPECS: dict[str, Spec] = {
    "softmax": Spec(plain_softmax),
    "causal": Spec(causal),
    "alibi": Spec(alibi, lambda r: {"slope": r.uniform(r.dims.H, low=0.02, high=0.5)}),
    "softcap_alibi": Spec(softcap_alibi, lambda r: {"slope": r.uniform(r.dims.H, low=0.02, high=0.5)}, {"cap": 2.0}),
    "gemma2": Spec(gemma2, consts={"cap": 2.0, "window": 100}),
    "sliding_window": Spec(sliding_window, consts={"window": 40}),
    "dilated": Spec(dilated, consts={"step": 3, "window": 90}),
    "sinks": Spec(sinks, lambda r: {"sink": r.uniform(r.dims.H, low=-1, high=2)}),
    "softmax1": Spec(softmax1),
    "relative_table": Spec(relative_table, lambda r: {"table": r.normal(r.dims.H, 33, dtype=r.f32)}, {"R": 16}),
    "urpe": Spec(urpe, lambda r: {"table": r.normal(r.dims.H, 33, dtype=r.f32)}, {"R": 16}),
    "document_causal": Spec(document_causal, lambda r: {"doc": _documents(r)}, queries_within_keys=True),
    "prefix_lm": Spec(prefix_lm, lambda r: {"prefix": r.integers(r.dims.B, high=r.dims.N + 1)}),
    "music": Spec(music, lambda r: {"rel": r.normal(r.dims.H, 20, r.dims.D)}, costly=True),
    "spatial": Spec(
        spatial,
        lambda r: {
            "x": r.normal(r.dims.B, r.dims.M, 3, dtype=r.f32),
            "y": r.normal(r.dims.B, r.dims.N, 3, dtype=r.f32),
            "strength": r.uniform(r.dims.H, low=0.1, high=1.0),
        },
    ),
    "sigmoid_attention": Spec(sigmoid_attention),
    "gated": Spec(gated, lambda r: {"g": r.normal(r.dims.B, r.dims.H, r.dims.M, r.dims.E)}),
    "manhattan": Spec(manhattan, lambda r: {"gamma": r.uniform(r.dims.H, low=0.7, high=0.99)}),
    "neighborhood_2d": Spec(neighborhood_2d, consts={"rows": 16, "cols": 18, "r": 2}),
    "retention": Spec(retention, lambda r: {"gamma": r.uniform(r.dims.H, low=0.8, high=0.99)}),
    "linear_attention": Spec(linear_attention),
    "linear_bidirectional": Spec(linear_bidirectional),
    "lightning": Spec(lightning, lambda r: {"slope": r.uniform(r.dims.H, low=0.02, high=0.5)}),
    "scalar_decay": Spec(
        scalar_decay,
        lambda r: {"g": r.uniform(r.dims.B, r.dims.H, r.dims.N, low=-0.3, high=0)},
        queries_within_keys=True,
    ),
    "gla": Spec(
        gla,
        lambda r: {"g": r.uniform(r.dims.B, r.dims.H, r.dims.N, r.dims.D, low=-0.3, high=0)},
        queries_within_keys=True,
        costly=True,
    ),
    "cosformer": Spec(cosformer),
    "aaren": Spec(aaren, lambda r: {"u": r.normal(r.dims.H, r.dims.D)}),
    "reversed": Spec(reversed_softmax),
    "watched": Spec(watched, observed=True),
    "pointer": Spec(pointer, lambda r: {"u": r.normal(r.dims.D)}, plane_output=True, costly=True),
    "agent": Spec(agent, lambda r: {"agent": r.normal(r.dims.B, r.dims.H, 9, r.dims.D)}, costly=True),
    "lssa": Spec(lssa),
    "user_normaliser": Spec(user_normaliser),
    "differential": Spec(differential, lambda r: {"lam": r.uniform(r.dims.H, low=0.2, high=0.8)}, costly=True),
    "rope": Spec(rope),
}


GALLERY: dict[str, Spec] = {}
"""What `tests/gallery` adds, by the path of the spec below `examples` without its ending."""


def spec_of(name: str) -> Spec:
    return SPECS[name] if name in SPECS else GALLERY[name]


def make_inputs(
    name: str, dims: Dims, dtype: torch.dtype = torch.float64, *, seed: int = 0, q_start: int = 0
) -> Inputs:
    """Seeded arguments for one example; the same values, rounded, whatever the dtype."""
    r = Random(dims, dtype)
    r.generator.manual_seed(seed)
    q = r.normal(dims.B, dims.H, dims.M, dims.D)
    k = r.normal(dims.B, dims.G, dims.N, dims.D)
    v = r.normal(dims.B, dims.G, dims.N, dims.E)
    spec = spec_of(name)
    if spec.positive:
        q, k = q.abs(), k.abs()
    return Inputs(q, k, v, spec.tensors(r), dict(spec.consts), q_start)


def evaluate(name: str, inputs: Inputs) -> dict[str, Tensor]:
    """The formula on these inputs: ``{"o": ..., observation: ...}``."""
    result = spec_of(name).formula(
        inputs.q, inputs.k, inputs.v, **inputs.tensors, **inputs.consts, q_start=inputs.q_start
    )
    if isinstance(result, Tensor):
        return {"o": result}
    return {"o": result[0], **result[1]}


def to_dtype(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same values with every float tensor in `dtype`."""

    def cast(x: Tensor) -> Tensor:
        return x.detach().to(dtype) if x.is_floating_point() else x

    tensors = {name: cast(x) for name, x in inputs.tensors.items()}
    return Inputs(cast(inputs.q), cast(inputs.k), cast(inputs.v), tensors, inputs.consts, inputs.q_start)
