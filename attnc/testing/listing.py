"""Machine code as instructions and loops: what SASS and AMD assembly say about a kernel's hot loop."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.L\w+):")
_SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);")
_AMD = re.compile(r"^\s+([vs]_\w+|ds_\w+|buffer_\w+|global_\w+|flat_\w+|scratch_\w+)\s*(.*)$")
_TARGET = re.compile(r"(\.L\w+)")
_PREDICATE = re.compile(r"!?U?P\d")  # BRA.U takes its condition as an operand
_JUMPS = ("s_branch", "s_cbranch", "CALL.REL.NOINC")  # the last leaves long loops, and nothing returns from it
_LEAVES = ("EXIT", "RET", "BRA", "s_branch", "s_endpgm", "s_setpc_b64")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its name with modifiers, where it may jump, and whether control can go on after it."""

    name: str
    jumps: str | None
    falls_through: bool


@dataclass(frozen=True, slots=True)
class Loop:
    """Instructions that control can go round in.

    Attributes:
        names: how often each instruction occurs.
        depth: how many loops it lies in, itself included.
    """

    names: Mapping[str, int]
    depth: int

    @property
    def length(self) -> int:
        """Instructions in the loop, those of inner loops included."""
        return sum(self.names.values())

    def count(self, *prefixes: str) -> int:
        """Instructions whose name begins with one of the prefixes."""
        return sum(n for name, n in self.names.items() if name.startswith(prefixes))


def instructions(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of a listing in order, and the number of the instruction each label stands before."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(found)
        elif match := _SASS.match(line) or _AMD.match(line):
            name, operands = match[1], match[2]
            branch = name.split(".")[0] in ("BRA", "BRX") or name.startswith(_JUMPS)
            target = _TARGET.search(operands) if branch else None
            guarded = "@" in line.split(name)[0] or name.startswith("s_cbranch") or _PREDICATE.match(operands)
            goes_on = bool(guarded) or not name.startswith(_LEAVES)
            found.append(Instruction(name, target[1] if target else None, goes_on))
    return found, labels


def loops(text: str) -> list[Loop]:
    """The loops of a listing, outer ones before those inside.

    Loops are strongly connected parts of the control flow; inner loops are what remains strongly connected without the
    jumps to the first instruction of the outer one. A jump back from code behind the end makes no loop unless the loop
    also jumps there, and loops with two entries, which compilers for AMD make, are found.
    """
    code, labels = instructions(text)
    after = [_successors(k, code, labels) for k in range(len(code))]
    found: list[Loop] = []
    pending = [(set(range(len(code))), -1, 1)]
    while pending:
        inside, header, depth = pending.pop(0)
        for part in _connected(inside, header, after):
            found.append(Loop(Counter(code[k].name for k in part), depth))
            pending.append((part, min(part), depth + 1))
    return found


def _successors(k: int, code: list[Instruction], labels: Mapping[str, int]) -> list[int]:
    here = code[k]
    targets = [labels[here.jumps]] if here.jumps is not None and here.jumps in labels else []
    if here.falls_through:
        targets.append(k + 1)
    return [t for t in targets if t < len(code)]


def _connected(inside: set[int], header: int, after: list[list[int]]) -> list[set[int]]:
    """The strongly connected parts of some instructions that hold a jump, jumps to `header` left out (Kosaraju)."""
    forward = {k: [t for t in after[k] if t in inside and t != header] for k in inside}
    backward: dict[int, list[int]] = {k: [] for k in inside}
    for k, targets in forward.items():
        for t in targets:
            backward[t].append(k)
    left = set(inside)
    parts = []
    for root in reversed(_finished(forward)):
        if root in left:
            part = _reached(root, backward, left)
            left -= part
            if len(part) > 1 or root in forward[root]:
                parts.append(part)
    return sorted(parts, key=min)


def _finished(edges: Mapping[int, list[int]]) -> list[int]:
    """Instructions in the order in which a depth-first search leaves them."""
    order: list[int] = []
    seen: set[int] = set()
    for root in sorted(edges):
        stack = [(root, iter(edges[root]))] if root not in seen else []
        seen.add(root)
        while stack:
            k, targets = stack[-1]
            fresh = next((t for t in targets if t not in seen), None)
            if fresh is None:
                order.append(k)
                stack.pop()
            else:
                seen.add(fresh)
                stack.append((fresh, iter(edges[fresh])))
    return order


def _reached(root: int, edges: Mapping[int, list[int]], within: set[int]) -> set[int]:
    seen, stack = {root}, [root]
    while stack:
        for t in edges[stack.pop()]:
            if t in within and t not in seen:
                seen.add(t)
                stack.append(t)
    return seen
