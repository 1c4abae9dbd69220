"""Truncated singular value decompositions of tables, by random projection.

The range of a table is found by multiplying it with random vectors and a few power iterations (Halko, Martinsson and
Tropp 2011, arXiv:0909.4061), which costs a few products with the table instead of a full decomposition. Errors are
measured on the table itself, not estimated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OVERSAMPLING = 8
POWER_ITERATIONS = 2
FIRST_GUESS = 16
STEP = 4
"""Ranks found by tolerance are multiples of this: kernels are built for each."""


@dataclass(frozen=True, slots=True)
class Basis:
    """Orthonormal columns `vectors` [.., N, rank] on which a table [.., M, N] is projected, and the relative error of
    that in the Frobenius norm, the largest over the leading dimensions."""

    vectors: Tensor
    error: float

    @property
    def rank(self) -> int:
        return self.vectors.shape[-1]


def basis_of_rank(table: Tensor, rank: int) -> Basis:
    """The best `rank` columns for a table [.., M, N], fewer if it has fewer rows or columns."""
    rank = min(rank, *table.shape[-2:])
    vectors, _ = _leading(table, rank + OVERSAMPLING)
    return _measured(table, vectors[..., :rank])


def basis_within(table: Tensor, rtol: float, most: int) -> Basis | None:
    """As few columns as keep the relative error of every table [M, N] within `rtol`; None if `most` are not enough."""
    limit = min(most, *table.shape[-2:])
    guess = FIRST_GUESS
    while True:
        guess = min(guess, limit)
        vectors, values = _leading(table, guess + OVERSAMPLING)
        full = _measured(table, vectors[..., :guess])
        if full.error <= rtol:
            return _fewest(table, vectors, values, rtol, guess)
        if guess == limit:
            return None
        guess *= 2


def _fewest(table: Tensor, vectors: Tensor, values: Tensor, rtol: float, enough: int) -> Basis:
    """The shortest prefix of `vectors` within the tolerance: first by singular values, then by what is measured."""
    energy = values.double().square()
    total = table.double().square().sum((-2, -1)).clamp_min(torch.finfo(torch.float64).tiny)
    kept = energy.cumsum(-1)
    outside = (total[..., None] - kept).clamp_min(0) / total[..., None]
    within = (outside <= rtol**2).reshape(-1, outside.shape[-1]).all(0)
    rank = int(within.nonzero()[0]) + 1 if bool(within.any()) else enough
    for r in range(min(-(-rank // STEP) * STEP, enough), enough, STEP):
        found = _measured(table, vectors[..., :r])
        if found.error <= rtol:
            return found
    return _measured(table, vectors[..., :enough])


def _leading(table: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """About `count` leading right singular vectors [.., N, count] and singular values [.., count]."""
    rows, columns = table.shape[-2:]
    count = min(count, rows, columns)
    generator = torch.Generator(device=table.device).manual_seed(0)
    start = torch.randn(columns, count, generator=generator, device=table.device, dtype=table.dtype)
    turned = table.mT
    base = torch.linalg.qr(table @ start).Q
    for _ in range(POWER_ITERATIONS):
        base = torch.linalg.qr(table @ torch.linalg.qr(turned @ base).Q).Q
    _, values, right = torch.linalg.svd(base.mT @ table, full_matrices=False)
    return right.mT, values


def _measured(table: Tensor, vectors: Tensor) -> Basis:
    """A basis with its error, one table at a time: the difference is as large as the table."""
    vectors = vectors.contiguous()
    pairs = zip(table.flatten(0, -3), vectors.flatten(0, -3), strict=True) if table.dim() > 2 else [(table, vectors)]
    errors = []
    for one, columns in pairs:
        size = one.norm()
        errors.append((torch.addmm(one, one @ columns, columns.mT, alpha=-1).norm() / size) if size > 0 else size)
    return Basis(vectors, float(torch.stack(errors).max()))
