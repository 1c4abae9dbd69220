"""A learned table, or any bias without exact factors, replaced by factors of low rank at call time.

With the table b, per head, and V the leading right singular vectors, ``b V`` and V are the factors of the closest
table of that rank. V is held fixed: it depends on the table's values, and is made again when they change. ``b V`` is an
ordinary function of the table, so its gradient is that of the projected table: ``(dS V) V^T`` for the dense gradient
dS.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from attnc.ir.node import Load
from attnc.ir.options import Options
from attnc.ir.program import Program
from attnc.ir.walk import postorder
from attnc.passes.bias_form import Choice, TargetName, highest_rank
from attnc.passes.separate import ByRank, Split
from attnc.runtime.eager import active
from attnc.runtime.stages import Stage, Stages
from attnc.runtime.svd import Basis, basis_of_rank, basis_within


class LowRankWarning(UserWarning):
    """A bias was to be replaced by factors, and is computed as the spec writes it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known about some tables: their basis, None if there is none that pays, and the projection on it."""

    tables: tuple[weakref.ref[Tensor], ...]
    basis: Basis | None
    left: Tensor | None


def staged(choice: Choice, program: Program, target: TargetName, backend: str) -> Stages | RankStages:
    """What runs a program on a target, with its bias in the form chosen."""
    if choice.by_rank is None or choice.bias is None:
        plain = backend == "dense" and program.options.bias == "auto"
        return Stages(Split(program) if plain else choice.split, backend)
    most = highest_rank(program, choice.bias, target)
    return RankStages(choice.by_rank, choice.split, program.options, most, backend)


class RankStages:
    """An attention over factors made at call time; as the spec writes it, where they do not pay or cannot be made.

    Attributes:
        report: what the latest call found, for people; None before it.
    """

    def __init__(self, by_rank: ByRank, split: Split, options: Options, most: int, backend: str) -> None:
        self.by_rank = by_rank
        self.options = options
        self.most = most
        self.plain = Stages(split, backend)
        self.attention = Stage(by_rank.attention, backend)
        self.project = Stage(by_rank.project, backend)
        self.table = Stage(by_rank.table, backend)
        roots = by_rank.table.roots()
        self.reads = tuple(sorted({n.tensor for n in postorder(roots) if isinstance(n, Load)}))
        self.report: str | None = None
        self._entries: dict[tuple[Any, ...], Entry] = {}
        self._lock = threading.RLock()
        self._warned = False

    def __call__(self, names: Sequence[str], tensors: Sequence[Tensor], q_start: Any) -> tuple[Tensor, ...]:
        """The outputs of the attention, for tensors that fit the spec."""
        if active() or any(is_fake(t) for t in tensors):
            return self.plain(names, tensors, q_start)
        known = dict(zip(names, tensors, strict=True))
        entry = self._entry(known, q_start)
        if entry.basis is None:
            return self.plain(names, tensors, q_start)
        known[self.by_rank.right] = entry.basis.vectors
        learns = torch.is_grad_enabled() and any(known[n].requires_grad for n in self.reads)
        left = self.project(known, q_start)[0] if learns or entry.left is None else entry.left
        return self.attention(known | {self.by_rank.left: left}, q_start)

    # --------------------------------------------------------------------------------------------------- factors

    def _entry(self, known: dict[str, Tensor], q_start: Any) -> Entry:
        tables = [known[n] for n in self.reads]
        if any(t.is_inference() for t in tables):
            return self._made(known, q_start, ())
        bases = tuple(t if t._base is None else t._base for t in tables)
        shapes = tuple((t.shape, t.stride(), t.storage_offset(), t._version) for t in tables)
        lengths = (known["q"].shape[2], known["k"].shape[2], known["q"].shape[1], known["q"].dtype, q_start)
        key = (*(id(b) for b in bases), shapes, lengths)
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self._forget(lambda k: k[: len(bases)] == key[: len(bases)] and k[-2] != shapes)
                refs = tuple(weakref.ref(b, self._forgetting(id(b))) for b in bases)
                found = self._entries[key] = self._made(known, q_start, refs)
            return found

    def _forgetting(self, identity: int) -> Callable[[object], None]:
        return lambda _: self._forget(lambda k: identity in k)

    def _forget(self, stale: Callable[[tuple[Any, ...]], bool]) -> None:
        """Drop what belongs to tensors that are gone, or that have changed since."""
        self._entries = {k: e for k, e in self._entries.items() if not stale(k)}

    def _made(self, known: dict[str, Tensor], q_start: Any, refs: tuple[weakref.ref[Tensor], ...]) -> Entry:
        with torch.no_grad():
            (table,) = self.table(known, q_start)
            if not bool(torch.isfinite(table).all()):
                return self._none(refs, "the bias holds inf or NaN")
            rank = self.options.rank
            basis = basis_of_rank(table, rank) if isinstance(rank, int) else self._within(table)
            if basis is None:
                reason = f"a relative error of {self.options.rtol:g} takes more than {self.most} channels"
                return self._none(refs, f"{reason}, which do not pay")
            self.report = f"factors of rank {basis.rank}, relative error {basis.error:.2g}"
            left = self.project(known | {self.by_rank.right: basis.vectors}, q_start)[0]
            return Entry(refs, basis, left)

    def _within(self, table: Tensor) -> Basis | None:
        return basis_within(table, self.options.rtol, self.most) if self.most else None

    def _none(self, refs: tuple[weakref.ref[Tensor], ...], reason: str) -> Entry:
        name = self.by_rank.attention.name
        self.report = f"computed as written: {reason}"
        if not self._warned:
            warnings.warn(f"{name}: the bias is {self.report}", LowRankWarning, stacklevel=2)
            self._warned = True
        return Entry(refs, None, None)
