"""Passes scheduled from levels: which plane reductions share a loop, in which order, and what is stored between them.

A plane reduction must wait for those it mentions, unless it can follow them online (`Planes.rescale`). Reductions of
one level over the same plane in the same direction are one pass. Outputs are written by the pass that completes them;
sums over batch or rows of what passes stored are left to tensor operations (`Finish`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from attnc.diagnostics.diagnostic import Diagnostic, SpecError
from attnc.diagnostics.source import Span
from attnc.ir.construct import add, axis, call, const, free_axes, load, position_of, raw_add, raw_sum, sub
from attnc.ir.functions import is_block
from attnc.ir.node import NO_AXES, Add, Axes, Const, Load, Max, Node, Sum
from attnc.ir.program import Output, Program
from attnc.ir.walk import postorder, rebuild
from attnc.ir.walk import replace as replace_nodes
from attnc.passes.associate import associate, group_range, product
from attnc.passes.chunks import Chunks, numbered
from attnc.passes.gather import RowSums, row_terms
from attnc.passes.plan import Buffer, Direction, Finish, Pass, Plan
from attnc.passes.planes import Planes, Reduction
from attnc.passes.reuse import ordered
from attnc.passes.scan import Scans, lost, split, with_chunks
from attnc.passes.stages import shared


@dataclass(frozen=True, slots=True)
class Key:
    """What reductions of one pass have in common."""

    level: int
    pair: Axes
    inner: str
    batch: Axes
    looped: Axes = NO_AXES
    scan: Chunks | None = None

    @property
    def outer(self) -> str:
        return next(iter(self.pair - {self.inner}))

    @property
    def direction(self) -> Direction:
        if self.scan is not None:
            return "scan"
        return "row" if self.inner == preferred_inner(self.pair) else "column"

    @property
    def order(self) -> tuple[int, int, tuple[tuple[str, ...], ...]]:
        scanned = () if self.scan is None else (self.inner, self.scan.cut.digest.hex())
        names = tuple(sorted(self.pair)), tuple(sorted(self.batch)), tuple(sorted(self.looped)), scanned
        return (self.level, ("scan", "row", "column").index(self.direction), names)


@dataclass
class Draft:
    """A pass under construction."""

    key: Key | None
    batch: Axes
    outer: str
    inner: str | None
    reductions: list[Reduction] = field(default_factory=list)
    stores: list[tuple[str, tuple[str, ...], Node]] = field(default_factory=list)

    @property
    def scans(self) -> bool:
        return self.key is not None and self.key.scan is not None

    def expressions(self) -> list[Node]:
        return [*(c for r in self.reductions for c in r.children), *(n for _, _, n in self.stores)]


def _too_wide(program: Program, node: Reduction, planes: Planes) -> SpecError:
    """Three sequence axes meet: a volume, where kernels loop over planes."""
    axes = " and ".join(f"`{a}`" for a in ordered(planes.span(node)))
    message = f"positions along {axes} meet in one reduction, and kernels loop over two at a time"
    remedy = "reduce over one of them first, in a `let` of its own, so that the rest is a product of what is left"
    notes = [program.notes[n] for n in reversed(postorder([node])) if n in program.notes]
    line = next((n.line for n in notes if n.line is not None), None)
    if program.source is None or line is None:
        return SpecError([Diagnostic("E128", message, remedy=remedy)])
    start = program.source.offset(line)
    span = Span(start, start + len(program.source.line(line)))
    return SpecError([Diagnostic("E128", message, program.source, span, remedy)])


def preferred_inner(pair: Axes) -> str:
    """The inner axis of a row pass: keys for queries, tokens for groups."""
    if "j" in pair:
        return "j"
    return sorted(pair - {"i"})[-1]


def schedule(program: Program) -> Plan:
    """Schedule a program whose expressions are final (after base 2, reuse and expansion).

    Raises:
        SpecError: E128, if three sequence axes meet in one reduction.
    """
    stages = shared(program)
    if stages is None:
        return _Scheduler(program).plan()
    first = _Scheduler(stages.tables, stages.rests).plan()
    scheduler = _Scheduler(stages.program)
    scheduler.names |= {b.name for b in first.buffers}
    second = scheduler.plan()
    tables = tuple(replace(b, role="scratch") for b in first.buffers)
    axes = {**first.program.axes, **second.program.axes}
    return Plan(
        replace(second.program, tensors=program.tensors, axes=axes),
        (*first.steps, *second.steps),
        (*second.buffers, *tables),
        (*first.decisions, *second.decisions),
    )


class _Scheduler:
    def __init__(self, program: Program, rests: Mapping[str, str] | None = None) -> None:
        self.planes = Planes(program)
        self.scans = Scans()
        roots = iter(self._associated(program.roots()))
        program = with_chunks(program, self.scans)
        self.planes = Planes(program)
        outputs = [replace(o, parts=tuple((axes, next(roots)) for axes, _ in o.parts)) for o in program.outputs]
        self.program = program.with_outputs(tuple(x for o in outputs for x in self._in_parts(o, rests or {})))
        self.levels: dict[Node, int] = {}
        self.drafts: list[Draft] = []
        self.buffers: dict[str, Buffer] = {}
        self.finishes: list[tuple[int, Finish]] = []
        self.names: set[str] = {t.name for t in program.tensors} | {o.name for o in program.outputs}

    def _in_parts(self, output: Output, rests: Mapping[str, str]) -> list[Output]:
        """An output in the two parts it is wanted in: the state of its chunk, and the rest."""
        if output.name not in rests:
            return [output]
        ((axes, whole),) = output.parts
        near = self.scans.wholes.get(whole)
        if near is None:
            return [output, replace(output, name=rests[output.name], parts=((axes, const(0.0)),))]
        state = sub(whole, near)
        assert state in self.scans.states
        rest = add(near, call("lost", state))
        return [
            replace(output, parts=((axes, call("rounded", state)),)),
            replace(output, name=rests[output.name], parts=((axes, rest),)),
        ]

    def _associated(self, roots: Sequence[Node]) -> list[Node]:
        """Sums over the heads of a group stay in their pass, unless that would split the pass in two, or it is a scan,
        where every head has a state of its own."""
        if self.planes.program.options.applies("scan") and not any(map(is_block, postorder(roots))):
            split_roots, self.scans = split(associate(roots, self.planes, grouped=False), self.planes)
            if self.scans.states:
                return split_roots
        if not self.planes.program.options.applies("group"):
            return associate(roots, self.planes, grouped=False)
        grouped = associate(roots, self.planes)
        shapes: dict[tuple[Axes, Axes], set[bool]] = {}
        for unit in self.planes.plane_reductions(grouped):
            looped = self.planes.batches(unit.bound)
            kind = (self.planes.span(unit), self.planes.sequences(unit.bound))
            shapes.setdefault(kind, set()).add(bool(looped))
        if any(len(s) == 2 for s in shapes.values()):
            return associate(roots, self.planes, grouped=False)
        return grouped

    # ------------------------------------------------------------------------------------------------- passes

    def plan(self) -> Plan:
        planes = self.planes
        units = planes.plane_reductions(self.program.roots())
        for unit in units:
            if len(planes.span(unit)) > 2:
                raise _too_wide(self.program, unit, planes)
            self.levels[unit] = self.level(unit)
        self._delay(units)
        grouped: dict[Key, list[Reduction]] = {}
        for unit in units:
            grouped.setdefault(self.key(unit), []).append(unit)
        for part in self._plane_parts():
            grouped.setdefault(part, [])
        for key in sorted(grouped, key=lambda k: k.order):
            self.drafts.append(Draft(key, key.batch, key.outer, key.inner, grouped[key]))
        parts = self._place_outputs()
        # States are known by identity; their passes share what they sum by themselves.
        renewed = {} if self.scans.states else self._gather_rows()
        for left in parts.values():
            left[:] = [(axes, replace_nodes([node], renewed, canonical=False)[0]) for axes, node in left]
        self._connect()
        return self._emit(parts)

    def key(self, unit: Reduction, level: int | None = None) -> Key:
        """The pass a reduction belongs to, at its level or at a given one."""
        planes = self.planes
        bound = planes.sequences(unit.bound)
        pair = planes.span(unit)
        inner = preferred_inner(pair) if len(bound) == 2 else next(iter(bound))
        looped = planes.batches(unit.bound)
        batch = planes.batches(free_axes(unit.children)) - looped
        return Key(self.levels[unit] if level is None else level, pair, inner, batch, looped, self.scans.chunks(unit))

    def level(self, unit: Reduction) -> int:
        """One more than the latest reduction it must wait for."""
        level = 1
        for r in self.planes.direct(unit):
            level = max(level, self.levels[r] + (0 if self._online(unit, r) else 1))
        return level

    def _online(self, unit: Reduction, r: Reduction) -> bool:
        same = unit.bound == r.bound and self.key(unit, 0) == self.key(r, 0)
        return same and (position_of(unit) is r or self.planes.rescale(unit, r) is not None)

    def _delay(self, units: list[Reduction]) -> None:
        """Move whole passes into a later one of the same direction when all their consumers allow it."""
        consumers: dict[Node, list[Reduction]] = {}
        for unit in units:
            for r in self.planes.direct(unit):
                consumers.setdefault(r, []).append(unit)
        waiting = {self.key(u): None for u in units}
        for key in sorted(waiting, key=lambda k: -k.level):
            members = [u for u in units if self.key(u) == key]
            shape = replace(key, level=0)
            later = sorted({self.levels[u] for u in units if replace(self.key(u), level=0) == shape} - {key.level})
            for target in (level for level in later if level > key.level):
                if self._all_move(members, target, consumers):
                    break

    def _all_move(self, members: list[Reduction], target: int, consumers: dict[Node, list[Reduction]]) -> bool:
        before: dict[Node, int] = {u: self.levels[u] for u in members}
        for unit in reversed(members):
            latest = min(
                (self.levels[c] - (0 if self._online(c, unit) else 1) for c in consumers.get(unit, ())), default=target
            )
            if latest < target:
                self.levels.update(before)
                return False
            self.levels[unit] = target
        return True

    def _plane_parts(self) -> Iterable[Key]:
        """Passes wanted by outputs that are planes themselves (weights, dense bias gradients)."""
        for out in self.program.outputs:
            for axes, node in out.parts:
                pair = self.planes.sequences(axes)
                if len(pair) == 2:
                    yield self._plane_key(node, pair, self.planes.batches(axes))

    def _plane_key(self, node: Node, pair: Axes, batch: Axes) -> Key:
        level = 1 + max((self.levels[r] for r in self.planes.direct(node)), default=0)
        return Key(level, pair, preferred_inner(pair), batch)

    # ------------------------------------------------------------------------------------------------ outputs

    def _place_outputs(self) -> dict[str, list[tuple[tuple[str, ...], Node]]]:
        """Give every output part to the pass that can write it; the rest is returned, by output, for `Finish`."""
        left: dict[str, list[tuple[tuple[str, ...], Node]]] = {}
        for out in self.program.outputs:
            single = len(out.parts) == 1
            for k, (axes, node) in enumerate(out.parts):
                draft = self._writer(axes, node)
                if draft is None:
                    left.setdefault(out.name, []).append((axes, self._with_bodies_stored(node)))
                    continue
                name = out.name if single else self._fresh(f"{out.name}_part{k}")
                if single:
                    self._declare(Buffer(name, axes, out.dims, out.dtype, "output"))
                else:
                    self._scratch(name, axes)
                    left.setdefault(out.name, []).append((axes, load(name, [axis(a) for a in axes])))
                draft.stores.append((name, axes, node))
            if out.name in left:
                self._declare(Buffer(out.name, out.parts[0][0], out.dims, out.dtype, "output"))
        return left

    def _with_bodies_stored(self, node: Node) -> Node:
        """A sum over heads with what it sums stored by the pass that knows it, where every head has its own states."""
        if not self.scans.states:
            return node
        memo: dict[Node, Node] = {r: r for d in self.drafts for r in d.reductions}
        outside: set[Node] = set()
        stack = [node]
        while stack:
            n = stack.pop()
            if n not in outside:
                outside.add(n)
                stack.extend(() if n in memo else n.children)
        for n in (n for n in postorder([node]) if n in outside and n not in memo):
            memo[n] = rebuild(n, tuple(memo[c] for c in n.children), canonical=False)
            if (
                not isinstance(n, Sum)
                or not n.bound
                or n.bound - self.planes.batches(n.bound)
                or not self.planes.direct(n)
            ):
                continue
            body = product(n.factors)
            axes = ordered(body.axes)
            draft = self._writer(axes, body) if len(self.planes.sequences(axes)) == 1 else None
            if draft is not None:
                name = self._scratch(self._fresh("partial"), axes)
                draft.stores.append((name, axes, body))
                memo[n] = raw_sum(n.bound, [load(name, [axis(a) for a in axes])], n.domain, n.scatter)
        return memo[node]

    def _writer(self, axes: tuple[str, ...], node: Node) -> Draft | None:
        planes = self.planes
        pair = planes.sequences(axes)
        if len(pair) == 2:
            key = self._plane_key(node, pair, planes.batches(axes))
            return next(d for d in self.drafts if d.key == key)
        if len(pair) != 1 or set(planes.batches(node.axes)) != set(planes.batches(axes)):
            return None
        if planes.sequences(node.axes) != pair or not all(map(self._is_shared, self._vector_reductions([node]))):
            return None
        if any(planes.role(a) == "table" for a in axes):
            return None
        outer = next(iter(pair))
        deps = set(planes.direct(node))
        if isinstance(node, Sum | Max) and planes.is_plane(node):
            deps = {node}
        batch = planes.batches(node.axes)
        done: set[Node] = set()
        for draft in self.drafts:
            done |= set(draft.reductions)
            if draft.outer == outer and draft.batch == batch and deps <= done and not draft.scans:
                return draft
        if deps:
            last = max(k for k, d in enumerate(self.drafts) if deps & set(d.reductions))
            self.drafts.insert(last + 1, Draft(None, batch, outer, None))
            return self.drafts[last + 1]
        self.drafts.append(Draft(None, batch, outer, None))
        return self.drafts[-1]

    def _is_shared(self, vector: Reduction) -> bool:
        """Whether a reduction over vectors is the same at every position (a mean over keys), and so computed before."""
        return not self.planes.sequences(vector.axes) and not (isinstance(vector, Sum) and vector.scatter)

    def _vector_reductions(self, roots: Iterable[Node]) -> list[Reduction]:
        """Sums over batch or over one sequence that are reached without crossing a plane reduction."""
        planes = self.planes
        found: list[Reduction] = []
        seen: set[Node] = set()
        stack = list(roots)
        while stack:
            n = stack.pop()
            if n in seen or n in planes.ready:
                continue
            seen.add(n)
            if isinstance(n, Sum | Max):
                if planes.is_plane(n):
                    continue
                vector = len(planes.sequences(n.axes)) < 2
                scatters = isinstance(n, Sum) and bool(n.scatter)
                if vector and (planes.batches(n.bound) or planes.sequences(n.bound) or scatters):
                    found.append(n)
                    continue
            stack.extend(n.children)
        return found

    # ----------------------------------------------------------------------------------------------- row values

    def _gather_rows(self) -> dict[Node, Node]:
        """Sums of row values that earlier passes make are stored by those passes; see `attnc.passes.gather`.

        Returns every reduction as it is after that.
        """
        sums = RowSums()
        renewed: dict[Node, Node] = {}
        for position, draft in enumerate(self.drafts):
            memo = dict(renewed)
            for k, r in enumerate(draft.reductions):
                children = [self._gathered(c, position, memo, sums) for c in r.children]
                new = rebuild(r, tuple(children), canonical=False)
                assert isinstance(new, Sum | Max)
                memo[r] = renewed[r] = draft.reductions[k] = new
            draft.stores = [
                (name, axes, self._gathered(node, position, memo, sums)) for name, axes, node in draft.stores
            ]
        return renewed

    def _gathered(self, root: Node, position: int, memo: dict[Node, Node], sums: RowSums) -> Node:
        for node in postorder([root]):
            if node not in memo:
                new = rebuild(node, tuple(memo[c] for c in node.children), canonical=False)
                memo[node] = self._grouped(new, position, sums) if isinstance(new, Add) else new
        return memo[root]

    def _grouped(self, node: Add, position: int, sums: RowSums) -> Node:
        """A sum with the terms that earlier passes can add up as one term."""
        rest = list(node.terms)
        groups: list[Node] = []
        earlier: set[Node] = {r for d in self.drafts[:position] for r in d.reductions}
        for (place, batch), found in row_terms(node, self.planes).items():
            terms = [t for t in found if self.planes.needed(t) <= earlier]
            done = {r for t in terms for r in self.planes.needed(t)}
            host = self._host(next(iter(place)), batch, done, position)
            if len(done) < 2 or host is None:
                continue
            whole = sums.of(terms)
            if not any(n is whole for n, _ in self._stored()):
                axes = ordered(whole.axes)
                host.stores.append((self._scratch(self._fresh(self._hint(whole, "row_sum")), axes), axes, whole))
            groups.append(whole)
            rest = [t for t in rest if t not in terms]
        if not groups:
            return node
        terms = [*groups, *rest]
        return raw_add(terms) if len(terms) > 1 else terms[0]

    def _host(self, axis: str, batch: Axes, needed: set[Reduction], before: int) -> Draft | None:
        """The first pass before position `before` that can write a value of this row made of the `needed`."""
        done: set[Node] = set()
        for d in self.drafts[:before]:
            done |= set(d.reductions)
            if d.outer == axis and d.batch == batch and needed <= done:
                return d
        return None

    # -------------------------------------------------------------------------------------------- connections

    def _connect(self) -> None:
        """Store what one step computes and a later one reads."""
        position = 0
        while position < len(self.drafts):
            draft = self.drafts[position]
            for vector in self._vector_reductions(draft.expressions()):
                self._finish_before(position, vector)
            position += self._row_values(position, draft) + 1

    def _finish_before(self, position: int, node: Reduction) -> None:
        if any(n is node for n, _ in self._stored()):
            return
        axes = ordered(node.axes)
        name = self._scratch(self._fresh(self._hint(node, "reduced")), axes)
        self.finishes.append((position, Finish(name, ((axes, node),))))

    def _row_values(self, position: int, draft: Draft) -> int:
        """Values per inner position that need a sum over channels are computed once, by an earlier step.

        Returns how many steps were inserted before this one.
        """
        if draft.inner is None:
            return 0
        inserted = 0
        for node in postorder(draft.expressions()):
            if not isinstance(node, Sum) or self.planes.sequences(node.axes) != frozenset({draft.inner}):
                continue
            if self.planes.sequences(node.bound) or self.planes.channels(node.axes) or self._vector_reductions([node]):
                continue
            if any(n is node for n, _ in self._stored()):
                continue
            axes = ordered(node.axes)
            batch = self.planes.batches(node.axes)
            deps = self.planes.direct(node)
            done: set[Node] = set()
            host = None
            for d in self.drafts[:position]:
                done |= set(d.reductions)
                if d.outer == draft.inner and d.batch == batch and deps <= done and not d.scans:
                    host = d
                    break
            if host is None:
                host = Draft(None, batch, draft.inner, None)
                self.drafts.insert(position, host)
                self.finishes = [(p + 1 if p >= position else p, f) for p, f in self.finishes]
                inserted += 1
                position += 1
            name = self._scratch(self._fresh(self._hint(node, "delta" if self._from_seed(node) else "row_sum")), axes)
            host.stores.append((name, axes, node))
        return inserted

    def _stored(self) -> list[tuple[Node, str]]:
        stored = [(node, name) for d in self.drafts for name, _, node in d.stores]
        return stored + [(f.parts[0][1], f.buffer) for _, f in self.finishes if len(f.parts) == 1]

    # --------------------------------------------------------------------------------------------------- emit

    def _emit(self, left: dict[str, list[tuple[tuple[str, ...], Node]]]) -> Plan:
        finals = [Finish(name, tuple(parts)) for name, parts in left.items()]
        self._store_shared(finals)
        available: dict[Node, Node] = {}
        steps: list[Pass | Finish] = []
        for k, draft in enumerate(self.drafts):
            for _, finish in (f for f in self.finishes if f[0] == k):
                steps.append(self._finish(finish, available))
                axes, node = finish.parts[0]
                available[node] = load(finish.buffer, [axis(a) for a in axes])
            steps.append(self._pass(draft, available))
            for name, axes, node in draft.stores:
                if node not in available and not isinstance(node, Load | Const):
                    chunks = self._chunks_of(node) if draft.scans else None
                    numbers = {chunks.axis: chunks.number} if chunks else {}
                    # A value is the same all along an axis it is only spread over: it is read at the first place.
                    numbers |= {a: const(0) for a in axes if a not in numbers and a not in node.axes}
                    available[node] = load(name, [numbers.get(a, axis(a)) for a in axes])
        steps += [self._finish(f, available) for f in finals]
        return Plan(self.program, tuple(steps), tuple(self.buffers.values()), tuple(self.scans.decisions))

    def _chunks_of(self, stored: Node) -> Chunks | None:
        """The chunks of a state, or of what rounding has taken from it."""
        return self.scans.chunks(stored if isinstance(stored, Sum | Max) else stored.children[0])

    def _store_shared(self, finals: list[Finish]) -> None:
        """Reductions read outside their own pass get a buffer."""
        owner: dict[Node, Draft] = {r: d for d in self.drafts for r in d.reductions}
        while wanted := self._unstored(finals, owner):
            for r in dict.fromkeys(sorted(wanted, key=lambda n: n.order)):
                draft = owner[r] if r in owner else self._completes(r)
                chunks = self.scans.chunks(r)
                axes = tuple(chunks.axis if chunks and a == chunks.outer else a for a in ordered(r.axes))
                name = self._scratch(self._fresh("state" if chunks else self._hint(r, "partial")), axes)
                draft.stores.append((name, axes, r))
                if chunks and any(lost(r) in postorder([n]) for n, _ in self._stored()):
                    draft.stores.append((self._scratch(self._fresh("state_lost"), axes), axes, lost(r)))

    def _unstored(self, finals: list[Finish], owner: dict[Node, Draft]) -> list[Node]:
        """Reductions that are read outside their own pass and have no buffer yet."""
        wanted: list[Node] = []
        for draft in self.drafts:
            reached = {r for e in draft.expressions() for r in self._reached(e, draft)}
            wanted += [r for r in reached if owner.get(r) is not draft]
        for finish in [*finals, *(f for _, f in self.finishes)]:
            wanted += [r for _, n in finish.parts for r in self._reached(n, None)]
        stored = {n for n, _ in self._stored()}
        return [r for r in wanted if r not in stored]

    def _reached(self, node: Node, draft: Draft | None) -> set[Node]:
        """Plane reductions an expression of a pass reads, not looking below values that are stored.

        One that was split into near and far is read as a whole, except by the pass that adds up what is near.
        """
        stored = {n for n, _ in self._stored()} - {node}
        found: set[Node] = set()
        seen: set[Node] = set()
        stack = [node]
        while stack:
            n = stack.pop()
            if n in seen:
                continue
            seen.add(n)
            near = self.scans.wholes.get(n)
            whole = near is not None and (draft is None or near not in draft.reductions)
            if whole or (isinstance(n, Sum | Max) and self.planes.is_plane(n)):
                found.add(n)
            elif n not in stored:
                stack.extend(n.children)
        return found

    def _completes(self, whole: Node) -> Draft:
        """The pass that can write a reduction that was split: that of its near part, if its state is known then."""
        near = self.scans.wholes[whole]
        at = next(k for k, d in enumerate(self.drafts) if near in d.reductions)
        done = {r for d in self.drafts[: at + 1] for r in d.reductions}
        last = max(k for k, d in enumerate(self.drafts) if self.planes.direct(whole) & set(d.reductions))
        if self.planes.direct(whole) <= done:
            return self.drafts[at]
        self.drafts.insert(last + 1, Draft(None, self.drafts[at].batch, self.drafts[at].outer, None))
        return self.drafts[last + 1]

    def _pass(self, draft: Draft, available: dict[Node, Node]) -> Pass:
        own = set(draft.reductions)
        mapping = {n: x for n, x in available.items() if n not in own}
        inside: dict[Node, Node] = dict(mapping)
        reductions: list[Node] = []
        for r in draft.reductions:
            new = rebuild(r, tuple(replace_nodes(r.children, inside, canonical=False)), canonical=False)
            inside[r] = new
            reductions.append(new)
        stores = []
        for name, axes, node in draft.stores:
            (value,) = replace_nodes(
                [node], {n: x for n, x in inside.items() if n is not node or n in own}, canonical=False
            )
            stores.append((name, axes, value))
        grid = ordered(draft.batch)
        reads = sorted(
            {n.tensor for e in [*reductions, *(v for _, _, v in stores)] for n in postorder([e]) if isinstance(n, Load)}
            & self.buffers.keys()
        )
        if draft.scans:
            return self._scan(draft, reductions, reads)
        direction: Direction = draft.key.direction if draft.key else "vector"
        names = [name for name, _, _ in stores]
        label = "_".join([direction, *names[:2]]) or direction
        looped = ordered(draft.key.looped) if draft.key else ()
        groups = tuple((a, *group_range(draft.reductions[0], a)) for a in looped)
        return Pass(
            label,
            direction,
            grid,
            draft.outer,
            draft.inner,
            tuple(reductions),
            tuple(stores),
            tuple(reads),
            groups,
            self._chunks_read([*reductions, *(n for _, _, n in stores)]),
        )

    def _scan(self, draft: Draft, reductions: Sequence[Node], reads: Sequence[str]) -> Pass:
        """The pass of some states, over the number of the chunk in place of the position it is made from."""
        assert draft.key is not None and draft.key.scan is not None
        chunks = draft.key.scan
        states = [n for n in numbered(reductions, chunks, chunks.visited(self.program)) if isinstance(n, Sum | Max)]
        new = dict(zip(draft.reductions, states, strict=True))
        pairs: list[tuple[Node, Node]] = [*new.items()]
        values = dict([*pairs, *((lost(r), lost(state)) for r, state in pairs)])
        stores = tuple((name, axes, values[n]) for name, axes, n in draft.stores)
        return Pass(
            "_".join(["scan", *(name for name, _, _ in stores[:2])]),
            "scan",
            ordered(draft.batch),
            draft.outer,
            draft.inner,
            tuple(states),
            stores,
            tuple(reads),
            chunks=(chunks,),
            carries=tuple(self.scans.states[r][1].renamed(new) for r in draft.reductions),
        )

    def _chunks_read(self, nodes: Sequence[Node]) -> tuple[Chunks, ...]:
        """The chunks that some expressions read states of, one of each length."""
        every = set(postorder(nodes))
        found = {c.length: c for c, _ in self.scans.states.values() if c.number in every}
        return tuple(found[n] for n in sorted(found))

    def _finish(self, finish: Finish, available: dict[Node, Node]) -> Finish:
        parts = []
        for axes, node in finish.parts:
            (value,) = replace_nodes([node], available, canonical=False)
            parts.append((axes, value))
        return Finish(finish.buffer, tuple(parts))

    # ------------------------------------------------------------------------------------------------ buffers

    def _declare(self, buffer: Buffer) -> None:
        self.buffers[buffer.name] = buffer

    def _scratch(self, name: str, axes: tuple[str, ...]) -> str:
        dims = tuple(self.program.extent(a) for a in axes)
        self.buffers[name] = Buffer(name, axes, dims, "real", "scratch")
        return name

    def _fresh(self, name: str) -> str:
        k, candidate = 1, name
        while candidate in self.names:
            k += 1
            candidate = f"{name}_{k}"
        self.names.add(candidate)
        return candidate

    def _from_seed(self, node: Node) -> bool:
        seeds = {t.name for t in self.program.tensors if t.role == "seed"}
        return any(isinstance(n, Load) and n.tensor in seeds for n in postorder([node]))

    def _hint(self, node: Node, default: str) -> str:
        note = self.program.notes.get(node)
        if note is not None:
            return note.name
        if isinstance(node, Max):
            return "row_max" if "i" in node.axes else "column_max"
        return default
