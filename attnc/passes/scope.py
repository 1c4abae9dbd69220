"""Where the values of a kernel are computed: blocks of statements, nested, and the names in them.

Blocks nest: the kernel's prologue, the loop over the inner axis, loops over single channels (`Each`), and the epilogue
after the loop. A value lives in the innermost block that binds one of its axes or owns a reduction it mentions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from attnc.codegen.tile import Assign, Stmt
from attnc.ir.construct import var
from attnc.ir.node import NO_AXES, Axes, Const, Load, Max, Node, Sum, Var
from attnc.ir.program import Note, Program
from attnc.ir.walk import postorder


@dataclass(eq=False)
class Block:
    """A list of statements under construction, the values named in it, and the axis it binds (None: prologue)."""

    axis: str | None
    body: list[Stmt] = field(default_factory=list)
    values: dict[Node, Node] = field(default_factory=dict)


@dataclass
class Scope:
    """The blocks of one kernel and the names taken in them.

    `lanes` are the axes tile values may spread over; `names` are default names of values; `running` maps each reduction
    of the pass to the variable that holds it at the current point and `held` are the variables that hold them between
    blocks.
    """

    program: Program
    lanes: tuple[str, ...]
    inner: str | None
    names: dict[Node, str] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=lambda: [Block(None)])
    running: dict[Node, Node] = field(default_factory=dict)
    held: frozenset[Node] = frozenset()
    taken: set[str] = field(default_factory=set)
    loop_names: set[str] = field(default_factory=set)
    all_loop_names: set[str] = field(default_factory=set)
    depends: dict[Node, bool] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------------------- names

    def name(self, node: Node, default: str, *, inside: bool = False) -> str:
        """A fresh identifier. Copies of the loop may repeat each other's names; nothing outside them may."""
        note = self.program.notes.get(node)
        stem = re.sub(r"\W", "_", note.name if isinstance(note, Note) else self.names.get(node, default))
        used = self.taken | self.loop_names | self.reserved()
        if not inside:
            used |= self.all_loop_names
        k, candidate = 1, stem
        while candidate in used:
            k += 1
            candidate = f"{stem}_{k}"
        (self.loop_names if inside else self.taken).add(candidate)
        return candidate

    def enter_loop(self) -> None:
        self.loop_names = set()

    def leave_loop(self) -> None:
        self.all_loop_names |= self.loop_names
        self.loop_names = set()

    def is_inside(self, home: Block) -> bool:
        """Whether a block is the inner loop or nested in it."""
        place = next((k for k, b in enumerate(self.blocks) if b.axis == self.inner), len(self.blocks))
        return home in self.blocks[place:] or home not in self.blocks

    def from_seed(self, node: Node) -> bool:
        """Whether a value depends on an incoming gradient."""
        seeds = {t.name for t in self.program.tensors if t.role == "seed"}
        return any(isinstance(n, Load) and n.tensor in seeds for n in postorder([node]))

    def reserved(self) -> frozenset[str]:
        tensors = {t.name for t in self.program.tensors}
        return frozenset({*self.program.axes, *(s.name for s in self.program.sizes), "q_start"} - tensors)

    def note(self, node: Node) -> str | None:
        note = self.program.notes.get(node)
        return f"line {note.line}: {note.name}" if isinstance(note, Note) and note.line is not None else None

    # ------------------------------------------------------------------------------------------------ blocks

    def spread(self, node: Node) -> Axes:
        """The lanes of a value here: its axes, less those an enclosing `Each` has fixed."""
        fixed = {b.axis for b in self.blocks if b.axis != self.inner}
        return frozenset(a for a in node.axes if a in self.lanes and a not in fixed)

    def mentions_running(self, node: Node) -> bool:
        if not self.running:
            return False
        if node in self.depends:
            return self.depends[node]
        for n in postorder([node]):
            if n not in self.depends:
                moving = n in self.running or n in self.held
                self.depends[n] = moving or any(self.depends[c] for c in n.children)
        return self.depends[node]

    def home(self, node: Node) -> Block:
        """The block a value belongs to."""
        chosen = self.blocks[0]
        for block in self.blocks[1:]:
            if block.axis in node.axes or (block.axis in (self.inner, "") and self.mentions_running(node)):
                chosen = block
        return chosen

    def assign(self, node: Node, value: Node, default: str, home: Block | None = None) -> Var:
        home = home or self.home(node)
        lanes = self.spread(node) | self.spread_of(value)
        kind = value.kind if node.kind == "i" and not isinstance(value, Const) else node.kind
        target = var(self.name(node, default, inside=self.is_inside(home)), lanes, kind)
        home.body.append(Assign(target, value, self.note(node)))
        home.values[node] = target
        return target

    def spread_of(self, value: Node) -> Axes:
        return self.spread(value) if not isinstance(value, Sum | Max) else NO_AXES
