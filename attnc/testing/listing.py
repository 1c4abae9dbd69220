"""Machine code as instructions and natural loops: what SASS and AMD assembly say about a kernel's hot loop."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.L\w+):")
_SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);")
_AMD = re.compile(r"^\s+([vs]_\w+|ds_\w+|buffer_\w+|global_\w+|flat_\w+|scratch_\w+)\s*(.*)$")
_TARGET = re.compile(r"(\.L\w+)")
_LEAVES = ("EXIT", "RET", "BRA", "s_branch", "s_endpgm", "s_setpc_b64")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its name with modifiers, where it may jump, and whether control can go on after it."""

    name: str
    jumps: str | None
    falls_through: bool


@dataclass(frozen=True, slots=True)
class Loop:
    """A natural loop: the instructions that can reach the jump back to its header without passing the header.

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
            branch = name.split(".")[0] in ("BRA", "BRX") or name.startswith(("s_branch", "s_cbranch"))
            target = _TARGET.search(operands) if branch else None
            guarded = "@" in line.split(name)[0] or name.startswith("s_cbranch")
            goes_on = guarded or not name.startswith(_LEAVES)
            found.append(Instruction(name, target[1] if target else None, goes_on))
    return found, labels


def loops(text: str) -> list[Loop]:
    """The natural loops of a listing, outermost first. Jumps back that do not come from inside (stubs behind the end)
    make none."""
    code, labels = instructions(text)
    after = [_successors(k, code, labels) for k in range(len(code))]
    before: list[list[int]] = [[] for _ in code]
    for k, targets in enumerate(after):
        for t in targets:
            before[t].append(k)
    dominators = _dominators(after, before)
    bodies: dict[int, set[int]] = {}
    for k, targets in enumerate(after):
        for header in targets:
            if header <= k and header in dominators[k]:
                bodies.setdefault(header, {header}).update(_reaching(k, header, before))
    found = sorted(bodies.values(), key=len, reverse=True)
    return [Loop(Counter(code[k].name for k in body), sum(body <= other for other in found)) for body in found]


def _successors(k: int, code: list[Instruction], labels: Mapping[str, int]) -> list[int]:
    here = code[k]
    targets = [labels[here.jumps]] if here.jumps is not None and here.jumps in labels else []
    if here.falls_through:
        targets.append(k + 1)
    return [t for t in targets if t < len(code)]


def _reaching(tail: int, header: int, before: list[list[int]]) -> set[int]:
    """What reaches `tail` without passing `header`."""
    seen, stack = {header, tail}, [tail]
    while stack:
        k = stack.pop()
        if k == header:
            continue
        for p in before[k]:
            if p not in seen:
                seen.add(p)
                stack.append(p)
    return seen


def _dominators(after: list[list[int]], before: list[list[int]]) -> list[set[int]]:
    """For every instruction the headers that lie on every way to it: instructions that something jumps back to."""
    headers = sorted({t for k, targets in enumerate(after) for t in targets if t <= k})
    result: list[set[int]] = [set() for _ in after]
    for header in headers:
        seen = {0} - {header}
        stack = list(seen)
        while stack:
            for t in after[stack.pop()]:
                if t not in seen and t != header:
                    seen.add(t)
                    stack.append(t)
        for k in range(len(after)):
            if k not in seen:
                result[k].add(header)
    return result
