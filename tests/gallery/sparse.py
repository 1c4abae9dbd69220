"""Normalisers that project onto the simplex, solved exactly by sorting."""

from __future__ import annotations

from torch import Tensor

from tests.formulas import GALLERY, Spec, attend, positions, scores


def threshold(s: Tensor, mask: Tensor, *, squared: bool) -> Tensor:
    """The tau of max(s - tau, 0), squared or not, summing to 1 over the allowed keys of each row; [.., M, 1].

    With the scores sorted and k of them above tau, tau solves one equation of first or second degree; the right k is
    the largest whose tau leaves its smallest score above. Source: Martins and Astudillo 2016, algorithm 1; Peters,
    Niculae and Martins 2019, algorithm 2.
    """
    low = s.detach().min() - 4
    top = s.masked_fill(~mask, float(low)).sort(-1, descending=True).values
    count = top.new_ones(top.shape[-1]).cumsum(0)
    mean = top.cumsum(-1) / count
    if squared:
        spread = (top**2).cumsum(-1) / count - mean**2
        tau = mean - ((1 / count - spread).clamp_min(0)).sqrt()
    else:
        tau = mean - 1 / count
    above = (tau <= top).sum(-1, keepdim=True)
    return tau.gather(-1, above - 1)


def sparse(q: Tensor, k: Tensor, v: Tensor, q_start: int, *, squared: bool) -> Tensor:
    i, j = positions(q, k, q_start)
    mask = j <= i
    s = scores(q, k) / (2 if squared else 1)
    over = (s - threshold(s, mask, squared=squared)).clamp_min(0).masked_fill(~mask, 0)
    return attend(over**2 if squared else over, v)


def sparsemax(q: Tensor, k: Tensor, v: Tensor, q_start: int) -> Tensor:
    return sparse(q, k, v, q_start, squared=False)


def entmax15(q: Tensor, k: Tensor, v: Tensor, q_start: int) -> Tensor:
    return sparse(q, k, v, q_start, squared=True)


GALLERY["gallery/sparsemax"] = Spec(sparsemax)
GALLERY["gallery/entmax15"] = Spec(entmax15)
