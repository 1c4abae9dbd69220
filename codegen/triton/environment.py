"""What names mean at one point of a kernel: lanes, scalars, variables, parameters."""

from __future__ import annotations

from collections.abc import Mapping

from attnc.codegen.tile import Kernel
from attnc.codegen.triton.expression import Expressions
from attnc.codegen.triton.facts import HALF, Fact, scalar_definitions
from attnc.codegen.triton.helpers import HELPERS, USES
from attnc.codegen.triton.names import Names
from attnc.codegen.triton.parameters import paddings, parameters
from attnc.codegen.triton.text import ATOM, Layout, Text
from attnc.ir.node import Node, Var
from attnc.ir.walk import postorder, replace

REAL = "tl.float32"


class Environment:
    """The leaves of expressions, and what has been used of them.

    Attributes:
        facts: variables declared so far.
        singles: axes that an enclosing `Each` has fixed, and the name of the position.
        firsts: axes that an enclosing `Loop` walks, and the name of the first position of the block.
        full: inner axes whose lanes all lie inside their extents here.
        helpers, channels, edges: helper functions, channel axes and ends of blocks that the printed code mentions.
    """

    def __init__(self, kernel: Kernel) -> None:
        if kernel.real != "f32":
            raise ValueError(f"kernel {kernel.name}: the Triton printer computes in f32, not {kernel.real}")
        self.kernel = kernel
        self.parameters = parameters(kernel)
        self.paddings = paddings(kernel)
        self.layout = Layout([x.axis for x in kernel.lanes])
        self.definitions = scalar_definitions(kernel)
        self.everywhere = scalar_definitions(kernel, loops=True)
        self.names = Names(frozenset(HELPERS) | {p.name for p in self.parameters})
        self.facts: dict[Var, Fact] = {}
        self.singles: dict[str, str] = {}
        self.firsts: dict[str, str] = {}
        self.full: set[str] = set()
        self.helpers: set[str] = set()
        self.channels: set[str] = set()
        self.edges: set[str] = set()
        self._parameter = {(p.role, p.of, p.dim): p.name for p in self.parameters}
        self.expressions = Expressions(self.layout, self)
        for a in (*kernel.grid, *self.layout.order):
            self.names.get("axis", a)

    # ------------------------------------------------------------------------------------------------- leaves

    def axis(self, name: str) -> Text:
        if name in self.singles:
            return Text(self.singles[name])
        return Text(self.names.get("axis", name)) if name in self.kernel.grid else self.lane(name)

    def lane(self, axis: str) -> Text:
        """The positions of all lanes of an axis."""
        if axis in self.paddings:
            self.channels.add(axis)
        return Text(self.names.get("axis", axis), (axis,))

    def size(self, name: str) -> Text:
        for lane in self.kernel.lanes:
            if name == f"BLOCK_{lane.axis.upper()}":
                return Text(self.block(lane.axis))
        found = self._parameter.get(("size", name, 0)) or self._parameter.get(("extent", name, 0))
        if found is None:
            raise ValueError(f"kernel {self.kernel.name} does not list the size {name}")
        return Text(found)

    def variable(self, node: Var) -> Text:
        text = self.kept(node)
        fact = self.facts.get(node)
        return Text(f"{text.within(ATOM)}.to({REAL})", text.axes) if fact and fact.storage in HALF else text

    def helper(self, name: str) -> str:
        self.helpers |= {name, *USES.get(name, ())}
        return name

    def defined(self, node: Node) -> Node:
        """The node with scalars known outside all loops in place of their names."""
        return _expanded(node, self.definitions)

    def explained(self, node: Node) -> Node:
        """The node with every scalar in place of its name, to reason about its value where it is used."""
        return _expanded(node, self.everywhere)

    # -------------------------------------------------------------------------------------------- parameters

    def pointer(self, tensor: str) -> str:
        return self._parameter["pointer", tensor, 0]

    def stride(self, tensor: str, dim: int) -> str:
        return self._parameter["stride", tensor, dim]

    def block(self, axis: str) -> str:
        return self._parameter["block", axis, 0]

    # ---------------------------------------------------------------------------------------------- variables

    def name(self, node: Var) -> str:
        """Variables of one name over different lanes are different variables."""
        return self.names.get("variable", f"{node.name} {sorted(node.axes)} {node.kind}", node.name)

    def kept(self, node: Var) -> Text:
        """The variable as it is stored, not converted."""
        fact = self.facts.get(node)
        if fact is None:
            return Text(self.edge(node.name))
        text = Text(self.name(node), fact.axes)
        for a in [a for a in fact.axes if a in self.singles]:
            text = self._element(text, a)
        return text

    def edge(self, name: str) -> str:
        """The first or last position of the outer block."""
        if name.removesuffix("_first").removesuffix("_last") != self.kernel.outer:
            raise ValueError(f"kernel {self.kernel.name}: {name} is used before it is assigned")
        self.edges.add(name)
        return self.names.get("edge", name)

    def _element(self, text: Text, axis: str) -> Text:
        """The element of `text` at the position that an enclosing `Each` has reached."""
        lane = self.layout.spread(self.lane(axis), text.axes)
        here = self.expressions.compare("==", lane, Text(self.singles[axis]))
        chosen = self.layout.call("tl.where", here, text, Text("0.0"))
        left = tuple(a for a in text.axes if a != axis)
        return Text(f"tl.sum({chosen.code}, axis={text.axes.index(axis)})", left)

    def settled(self, node: Node) -> bool:
        """Whether an expression depends on the grid point alone."""
        whole = self.defined(node)
        return whole.axes <= set(self.kernel.grid) and not any(isinstance(n, Var) for n in postorder([whole]))

    # -------------------------------------------------------------------------------------------------- lanes

    def within(self, axis: str) -> bool:
        """Whether all lanes of an axis are known to lie inside its extent here."""
        if axis in self.paddings:
            return axis in self.singles or not self.paddings[axis].needed
        return axis in self.kernel.grid or axis in self.singles or axis in self.full

    def padded(self, axis: str) -> bool:
        """Whether an axis has lanes outside its extent that are the printer's to guard."""
        return axis in self.paddings and self.paddings[axis].needed

    def extent(self, axis: str) -> Text:
        return self.expressions.text(self.kernel.lane(axis).extent)

    def length(self, axis: str) -> str:
        """The number of lanes of an axis, as text."""
        if axis not in self.paddings:
            return self.block(axis)
        return self._parameter["pad", axis, 0] if self.padded(axis) else self.extent(axis).code

    def shape(self, axes: tuple[str, ...]) -> str:
        return f"[{', '.join(self.length(a) for a in axes)}]"


def _expanded(node: Node, definitions: Mapping[Var, Node]) -> Node:
    for name, definition in reversed(list(definitions.items())):
        node = replace([node], {name: definition})[0]
    return node
