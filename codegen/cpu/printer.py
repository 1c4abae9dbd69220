"""Tile programs to C++: one translation unit with a plain C interface.

``int NAME(void *const *tensors, const int64_t *strides, const int64_t *sizes, int threads)`` runs a kernel. `strides`
are those of all tensors one after another, one per dimension, in elements; 0 threads means OpenMP's default. The result
is 0, 1 when memory ran out, or 2 when a size is too large.
"""

from __future__ import annotations

from collections.abc import Iterable

from attnc.codegen.cpu.added import find_turned, products_in_memory
from attnc.codegen.cpu.alias import always_aliased, find_aliases
from attnc.codegen.cpu.body import Body
from attnc.codegen.cpu.distinct import with_distinct_names
from attnc.codegen.cpu.dots import with_dots
from attnc.codegen.cpu.emitter import Emitter
from attnc.codegen.cpu.expression import Expressions, Value
from attnc.codegen.cpu.layout import ALIGN, C_TENSOR, LONG_BLOCK, LONG_READ, SIZE_LIMIT, Layout
from attnc.codegen.cpu.packs import find_packs
from attnc.codegen.cpu.sections import HEADER, sections
from attnc.codegen.cpu.selected import find_selected
from attnc.codegen.cpu.storage import shared_rooms
from attnc.codegen.cpu.unrolled import with_short_loops_unrolled
from attnc.codegen.tile import Assign, Kernel, Loop, statements, verify
from attnc.ir.node import Node, Size, Var
from attnc.ir.walk import postorder

SIGNATURE = "(void *const *tensors, const int64_t *strides, const int64_t *sizes, int threads)"


def block_lengths(kernel: Kernel) -> dict[str, int]:
    """The kernel's block lengths in whole vectors."""
    return {axis: (length + ALIGN - 1) // ALIGN * ALIGN for axis, length in kernel.blocks.items()}


def print_kernel(kernel: Kernel) -> str:
    """A translation unit with this one kernel."""
    return print_unit([kernel])


def print_unit(kernels: Iterable[Kernel], *, pairs: bool = False) -> str:
    """A translation unit with these kernels, which all have the same type of reals.

    Args:
        kernels: tile programs.
        pairs: whether the processor multiplies pairs of bf16 (AVX-512 BF16); the text then compiles for no other.
    """
    kernels = list(kernels)
    needs: set[str] = {"workspace", "element_types"}
    texts = []
    for kernel in kernels:
        verify(kernel)
        texts.append(KernelPrinter(kernel, needs, pairs=pairs).text())
    (real,) = {k.real for k in kernels}
    inner = "\n".join([sections(needs, real), *texts])
    return f"{HEADER}\nnamespace attnc {{\n\n{inner}\n}}  // namespace attnc\n"


class KernelPrinter:
    """Prints one kernel: the function of one block, and the entry point that runs it for all blocks."""

    def __init__(self, kernel: Kernel, needs: set[str], *, pairs: bool = False) -> None:
        kernel = self.kernel = with_dots(with_short_loops_unrolled(with_distinct_names(kernel)))
        self.needs = needs
        self.shared: dict[str, str] = {}
        self.layout = Layout(kernel, block_lengths(kernel))
        find_aliases(self.layout)
        find_selected(self.layout)
        if pairs and kernel.real == "f32":
            find_packs(self.layout)
        self.layout.turned = find_turned(self.layout)
        self.layout.in_memory = products_in_memory(self.layout)
        self.aliased = always_aliased(self.layout) | self.layout.packed_only | self.layout.turned_only
        self.block_name = f"{kernel.name}_block"
        self.room_name = f"{kernel.name}_room"

    def text(self) -> str:
        body = Emitter(1)
        printed = Body(self.layout, self.needs, body)
        printed.print(self.kernel.body)
        self.shared = shared_rooms(self.layout, printed.trace, self.aliased)
        out = Emitter()
        out.note(self.kernel.doc)
        self._room(out)
        self._block(out, body)
        self._entry(out)
        return out.text()

    def _expressions(self) -> Expressions:
        positions = {a: self.layout.axis(a) for a in self.kernel.grid}

        def read(node: Var) -> Value:
            raise TypeError(f"not known outside the kernel body: {node}")

        return Expressions(self.layout, self.needs, positions, read)

    def _show(self, node: Node) -> str:
        return self._expressions().show(node).code

    # --------------------------------------------------------------------------------------------------- pieces

    def _declare_sizes(self, out: Emitter) -> None:
        for k, name in enumerate(self.kernel.sizes):
            label = self.layout.names.get("size", name)
            if name in self.kernel.constants:
                out.line(f"constexpr int64_t {label} = {self.kernel.constants[name]};")
            else:
                out.line(f"[[maybe_unused]] const int64_t {label} = sizes[{k}];")
        for name in sorted(set(self.kernel.constants) - set(self.kernel.sizes)):
            label = self.layout.names.get("size", name)
            out.line(f"[[maybe_unused]] constexpr int64_t {label} = {self.kernel.constants[name]};")

        if (axis := self.layout.long) is not None:
            (inner,) = {lane.axis for lane in self.kernel.lanes if lane.role == "inner"}
            channels = [self._show(lane.extent) for lane in self.kernel.lanes if lane.role == "channel"]
            read = f"{self._expressions().show(self.layout.roles[inner].extent).at(5)} * ({' + '.join(channels)})"
            length = f"{read} >= {LONG_READ} ? {LONG_BLOCK} : {self.layout.blocks[axis]}"
            out.line(f"[[maybe_unused]] const int64_t {self.layout.length(axis)} = {length};")

    def _declare_channels(self, out: Emitter) -> None:
        for lane in self.kernel.lanes:
            if lane.role == "channel":
                kind = "constexpr" if self._is_constant(lane.extent) else "const"
                count, padded = self.layout.count(lane.axis), self.layout.padded(lane.axis)
                out.line(f"[[maybe_unused]] {kind} int64_t {count} = {self._show(lane.extent)};")
                out.line(f"[[maybe_unused]] {kind} int64_t {padded} = ({count} + W - 1) / W * W;")

    def _is_constant(self, node: Node) -> bool:
        return all(n.name in self.kernel.constants for n in postorder([node]) if isinstance(n, Size))

    def _room(self, out: Emitter) -> None:
        """The arrays of one thread; the same list measures them and hands them out."""
        name = f"{self.kernel.name}_tiles"
        arrays = [t for t in self.layout.tiles.values() if t.lanes and t.name not in self.aliased]
        packs = self.layout.copies()
        with out.block(f"struct {name}"):
            for t in arrays:
                out.line(f"{self.layout.held(t)} *{t.array};")
            for pack in packs:
                out.line(f"bf16 *{pack.array};")
            with out.block(f"{name}(Workspace &workspace, [[maybe_unused]] const int64_t *sizes)"):
                self._declare_sizes(out)
                self._declare_channels(out)
                for t in arrays:
                    if t.name not in self.shared:
                        out.line(f"{t.array} = workspace.take<{self.layout.held(t)}>({self.layout.room(t)});")
                for name, first in self.shared.items():
                    out.line(f"{self.layout.tiles[name].array} = {self.layout.tiles[first].array};")
                for pack in packs:
                    out.line(f"{pack.array} = workspace.take<bf16>({self.layout.pack_room(pack)});")
        out.lines[-1] += ";"
        out.line()

    def _block(self, out: Emitter, body: Emitter) -> None:
        kernel, layout = self.kernel, self.layout
        axes = [f"int64_t {layout.axis(a)}" for a in kernel.grid]
        if kernel.outer:
            axes.append(f"int64_t {layout.first(kernel.outer)}")
        head = ", ".join(
            [
                "void *const *tensors",
                "const int64_t *strides",
                "const int64_t *sizes",
                f"const {kernel.name}_tiles &tiles",
                *axes,
            ]
        )
        with out.block(f"static void {self.block_name}({head})"):
            self._declare_sizes(out)
            self._declare_channels(out)
            at = 0
            for k, a in enumerate(kernel.arguments):
                label = layout.tensor(a.name)
                const = "const " if a.mode == "in" else ""
                kind = C_TENSOR[a.dtype]
                out.line(f"[[maybe_unused]] {const}{kind} *const {label} = ({const}{kind} *)tensors[{k}];")
                if a.dims:
                    parts = ", ".join(f"{layout.stride(a.name, n)} = strides[{at + n}]" for n in range(len(a.dims)))
                    out.line(f"[[maybe_unused]] const int64_t {parts};")
                at += len(a.dims)
            for t in layout.tiles.values():
                if t.name in self.aliased:
                    continue
                if t.lanes:
                    out.line(f"{layout.held(t)} *const {t.array} = tiles.{t.array};")
                elif layout.writes.get(t.name, 0) > 1:
                    out.line(
                        f"{'real' if t.element == 'f' else 'bool' if t.element == 'b' else 'int64_t'} {t.array} = 0;"
                    )
            for pack in layout.copies():
                out.line(f"bf16 *const {pack.array} = tiles.{pack.array};")
            if kernel.outer:
                self._declare_outer(out, kernel.outer)
            out.lines += body.lines
        out.line()

    def _declare_outer(self, out: Emitter, axis: str) -> None:
        layout = self.layout
        first, count = layout.first(axis), layout.count(axis)
        extent = self._show(layout.roles[axis].extent)
        out.line(f"const int64_t {count} = least({layout.length(axis)}, {extent} - {first});")
        out.line(f"[[maybe_unused]] const int64_t {layout.padded(axis)} = round_up({count}, W);")
        out.line(
            f"[[maybe_unused]] const int64_t {layout.names.get('of axis', f'{axis} last')} = {first} + {count} - 1;"
        )

    # ---------------------------------------------------------------------------------------------------- entry

    def _entry(self, out: Emitter) -> None:
        kernel, layout = self.kernel, self.layout
        private = any(a.mode == "add" for a in kernel.arguments) or bool(kernel.serial)
        shared = [a for a in kernel.grid if a in kernel.serial]
        parallel = [a for a in kernel.grid if a not in kernel.serial]
        extents = dict(zip(kernel.grid, kernel.grid_extents, strict=True))
        outer_parallel = kernel.outer is not None and not private
        with out.block(f'extern "C" __attribute__((visibility("default"))) int {kernel.name}{SIGNATURE}'):
            self._check_sizes(out)
            self._declare_sizes(out)
            counts = []
            for a in parallel:
                out.line(f"const int64_t {layout.axis(a)}_extent = {self._show(extents[a])};")
                counts.append(f"{layout.axis(a)}_extent")
            if kernel.outer:
                block = layout.length(kernel.outer)
                extent = self._expressions().show(layout.roles[kernel.outer].extent).at(5)
                out.line(f"const int64_t blocks = ({extent} + {block} - 1) / {block};")
            tasks = " * ".join([*counts, *(["blocks"] if outer_parallel else [])]) or "1"
            out.line(f"const int64_t tasks = {tasks};")
            self._parallel(out, parallel, shared, extents, outer_parallel)

    def _check_sizes(self, out: Emitter) -> None:
        if self.kernel.sizes:
            out.line(f"for (int k = 0; k < {len(self.kernel.sizes)}; ++k)")
            out.line(f"    if (sizes[k] < 0 || sizes[k] >= {SIZE_LIMIT}) return 2;")

    def _parallel(
        self, out: Emitter, parallel: list[str], shared: list[str], extents: dict[str, Node], outer_parallel: bool
    ) -> None:
        kernel = self.kernel
        out.line("if (tasks <= 0) return 0;")
        out.line("Workspace measure = {nullptr, 0};")
        out.line(f"{kernel.name}_tiles(measure, sizes);")
        out.line("int failed = 0;")
        out.line("#ifdef _OPENMP")
        out.line("if (threads <= 0) threads = omp_get_max_threads();")
        out.line("threads = int(least(threads, tasks));")
        out.line("#endif")
        out.line("#pragma omp parallel num_threads(threads)")
        with out.block(""):
            out.line("char *const memory = (char *)__builtin_malloc(measure.used + 64);")
            with out.block("if (memory == nullptr)"):
                out.line("#pragma omp atomic write")
                out.line("failed = 1;")
            out.line("Workspace workspace = {(char *)round_up((int64_t)memory, 64), 0};")
            out.line(f"const {kernel.name}_tiles tiles(workspace, sizes);")
            if self.layout.packs:
                out.line("[[maybe_unused]] Tiles registers;")
            out.line("#pragma omp for schedule(dynamic, 1)")
            with out.block("for (int64_t task = 0; task < tasks; ++task)"):
                out.line("if (memory == nullptr) continue;")
                self._task(out, parallel, shared, extents, outer_parallel)
            out.line("__builtin_free(memory);")
        out.line("return failed;")

    def _task(
        self, out: Emitter, parallel: list[str], shared: list[str], extents: dict[str, Node], outer_parallel: bool
    ) -> None:
        kernel, layout = self.kernel, self.layout
        decode = [*parallel]
        out.line("int64_t rest = task;")
        arguments = ["tensors", "strides", "sizes", "tiles"]
        loops = []
        first = layout.first(kernel.outer) if kernel.outer else None
        if outer_parallel and kernel.outer:
            block = layout.length(kernel.outer)
            at = "blocks - 1 - rest % blocks" if self._grows() else "rest % blocks"
            out.line(f"const int64_t {first} = ({at}) * {block};")
            out.line("rest /= blocks;")
        for a in reversed(decode):
            name = layout.axis(a)
            out.line(f"const int64_t {name} = rest % {name}_extent;")
            out.line(f"rest /= {name}_extent;")
        for a in shared:
            name = layout.axis(a)
            loops.append(f"for (int64_t {name} = 0; {name} < {self._show(extents[a])}; ++{name})")
        if kernel.outer and not outer_parallel:
            block = layout.length(kernel.outer)
            start, step = "0", block
            if kernel.shares is not None:
                share = layout.axis(kernel.shares)
                start, step = f"{share} * {block}", f"{share}_extent * {block}"
            loops.append(f"for (int64_t {first} = {start}; {first} < blocks * {block}; {first} += {step})")
        arguments += [layout.axis(a) for a in kernel.grid] + ([first] if first else [])
        for n, head in enumerate(loops):
            out.line("    " * n + head)
        out.line("    " * len(loops) + f"{self.block_name}({', '.join(arguments)});")

    def _grows(self) -> bool:
        """Whether later blocks have more to do, as under a causal mask; the longest should start first."""
        body = list(statements(self.kernel.body))
        known = {s.target.name: s.value for s in body if isinstance(s, Assign)}
        ends = {f"{self.kernel.outer}_first", f"{self.kernel.outer}_last"}

        def names(node: Node, seen: frozenset[str]) -> set[str]:
            found = {n.name for n in postorder([node]) if isinstance(n, Var)} - seen
            inner = [names(known[n], seen | found) for n in found if n in known]
            return found.union(*inner)

        return any(isinstance(s, Loop) and ends & names(s.stop, frozenset()) for s in body)
