"""Squares of numbers transposed in registers, in rounds of exchanges between pairs of vectors."""

from __future__ import annotations

from attnc.codegen.cpu.emitter import Emitter

WIDTHS = (2, 4, 8, 16)
"""Numbers per vector, over all targets and types."""


def _indices(width: int, step: int, second: bool) -> str:
    """The lanes of one of two vectors after blocks of `step` lanes have been exchanged between them."""
    if second:
        return ", ".join(str(width + k if k & step else k + step) for k in range(width))
    return ", ".join(str(width + k - step if k & step else k) for k in range(width))


def _transpose(width: int) -> str:
    """A function that transposes as many vectors as they have lanes."""
    out = Emitter()
    names = [f"r{k}" for k in range(width)]
    out.line("template <class V>")
    head = f"static inline __attribute__((always_inline)) void transpose_{width}("
    with out.block(head + ", ".join(f"V &{r}" for r in names) + ")"):
        out.line("V x;")
        step = 1
        while step < width:
            for k in (k for k in range(width) if not k & step):
                a, b = names[k], names[k + step]
                out.line(f"x = __builtin_shufflevector({a}, {b}, {_indices(width, step, False)});")
                out.line(f"{b} = __builtin_shufflevector({a}, {b}, {_indices(width, step, True)});")
                out.line(f"{a} = x;")
            step *= 2
    return out.text()


def _square(width: int) -> str:
    """A function that copies a square, transposed, between memory of any two types."""
    out = Emitter()
    names = [f"r{k}" for k in range(width)]
    out.line(f"template <class V, class S, class T> struct Square<{width}, V, S, T> {{")
    with out.indent(), out.block("static inline void copy(T *to, int64_t to_row, const S *from, int64_t from_row)"):
        out.line("V " + ", ".join(f"{r} = take_lanes(from + {k} * from_row)" for k, r in enumerate(names)) + ";")
        out.line(f"transpose_{width}({', '.join(names)});")
        for k, r in enumerate(names):
            out.line(f"give_lanes(to + {k} * to_row, {r});")
    out.line("};")
    return out.text()


_COPY = """\
// to[k to_row + r] = from[r from_row + k] for W x W numbers.
template <class S, class T>
static inline void transpose_square(T *to, int64_t to_row, const S *from, int64_t from_row) {
    Square<W, vec, S, T>::copy(to, to_row, from, from_row);
}
"""

SECTION: dict[str, tuple[tuple[str, ...], str]] = {
    "transpose": (("vectors",), "\n".join(map(_transpose, WIDTHS))),
    "transpose_square": (
        ("transpose", "element_types"),
        "\n".join(["template <int n, class V, class S, class T> struct Square;", *map(_square, WIDTHS), _COPY]),
    ),
}
