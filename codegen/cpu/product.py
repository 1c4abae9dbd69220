"""The matrix product of tiles: a register-tiled micro-kernel, written out by name so that sums stay in registers."""

from __future__ import annotations

from attnc.codegen.cpu.emitter import Emitter


def micro_kernel(rows: int, columns: int) -> str:
    """`rows` x (`columns` W) sums over the depth, in named registers."""
    out = Emitter()
    head = (
        f"static inline void product_{rows}x{columns}(real *c, int64_t c_row, const real *a, int64_t a_row, "
        "int64_t a_step, const real *b, int64_t b_row, int64_t depth, bool accumulate)"
    )
    sums = [[f"c{m}{n}" for n in range(columns)] for m in range(rows)]
    with out.block(head):
        out.line("vec " + ", ".join(f"{s} = {{}}" for row in sums for s in row) + ";")
        with out.block("for (int64_t k = 0; k < depth; ++k)"):
            out.line("const vec " + ", ".join(f"b{n} = load(b + {n} * W)" for n in range(columns)) + ";")
            out.line("vec x;")
            for m, row in enumerate(sums):
                terms = " ".join(f"{s} += x * b{n};" for n, s in enumerate(row))
                out.line(f"x = splat(a[{m} * a_row]); {terms}")
            out.line("a += a_step;")
            out.line("b += b_row;")
        out.note("Added at the end: a sum of sums is more accurate than one long sum.")
        with out.block("if (accumulate)"):
            for m, row in enumerate(sums):
                out.line(" ".join(f"{s} += load(c + {m} * c_row + {n} * W);" for n, s in enumerate(row)))
        for m, row in enumerate(sums):
            out.line(" ".join(f"store(c + {m} * c_row + {n} * W, {s});" for n, s in enumerate(row)))
    return out.text()


_DRIVER = """\
// c[m, n] (+)= sum over k < depth of a[m a_row + k a_step] b[k b_row + n], m < rows, n < lanes (a multiple of W).
static void product(real *c, int64_t c_row, const real *a, int64_t a_row, int64_t a_step, const real *b, int64_t b_row,
                    int64_t rows, int64_t lanes, int64_t depth, bool accumulate) {
    for (int64_t n = 0; n < lanes; n += 2 * W) {
        int64_t m = 0;
        if (n + 2 * W <= lanes) {
#if defined(__AVX512F__) || defined(__aarch64__)
            for (; m + 8 <= rows; m += 8)
                product_8x2(c + m * c_row + n, c_row, a + m * a_row, a_row, a_step, b + n, b_row, depth, accumulate);
#else
            for (; m + 6 <= rows; m += 6)
                product_6x2(c + m * c_row + n, c_row, a + m * a_row, a_row, a_step, b + n, b_row, depth, accumulate);
#endif
            for (; m + 2 <= rows; m += 2)
                product_2x2(c + m * c_row + n, c_row, a + m * a_row, a_row, a_step, b + n, b_row, depth, accumulate);
            for (; m < rows; ++m)
                product_1x2(c + m * c_row + n, c_row, a + m * a_row, a_row, a_step, b + n, b_row, depth, accumulate);
        } else {
            for (; m + 8 <= rows; m += 8)
                product_8x1(c + m * c_row + n, c_row, a + m * a_row, a_row, a_step, b + n, b_row, depth, accumulate);
            for (; m < rows; ++m)
                product_1x1(c + m * c_row + n, c_row, a + m * a_row, a_row, a_step, b + n, b_row, depth, accumulate);
        }
    }
}
"""

_KERNELS = "\n".join(
    [
        "#if defined(__AVX512F__) || defined(__aarch64__)",
        micro_kernel(8, 2) + "#else",
        micro_kernel(6, 2) + "#endif",
        *(micro_kernel(m, n) for m, n in ((2, 2), (1, 2), (8, 1), (1, 1))),
    ]
)

SECTION: dict[str, tuple[tuple[str, ...], str]] = {"product": (("vectors",), _KERNELS + "\n" + _DRIVER)}
