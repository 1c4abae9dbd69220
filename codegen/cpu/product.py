"""The matrix product of tiles: a register-tiled micro-kernel, written out by name so that sums stay in registers."""

from __future__ import annotations

from collections.abc import Sequence

from attnc.codegen.cpu.emitter import Emitter


def micro_kernel(rows: int, columns: int) -> str:
    """`rows` x (`columns` W) sums over the depth, in named registers."""
    out = Emitter()
    head = (
        f"static void product_{rows}x{columns}(real *c, int64_t c_row, const real *a, int64_t a_row, "
        "int64_t a_step, const real *b, int64_t b_row, int64_t depth, bool accumulate, Ahead &ahead)"
    )
    sums = [[f"c{m}{n}" for n in range(columns)] for m in range(rows)]
    with out.block(head):
        out.line("vec " + ", ".join(f"{s} = {{}}" for row in sums for s in row) + ";")
        with out.block("while (depth > 0)"):
            out.line("ahead.fetch_lines();")
            out.line("const int64_t taken = least(16, depth);")
            with out.block("for (int64_t k = 0; k < taken; ++k)"):
                out.line("const vec " + ", ".join(f"b{n} = load(b + {n} * W)" for n in range(columns)) + ";")
                out.line("vec x;")
                for m, row in enumerate(sums):
                    terms = " ".join(f"{s} += x * b{n};" for n, s in enumerate(row))
                    out.line(f"x = splat(a[{m} * a_row]); {terms}")
                out.line("a += a_step;")
                out.line("b += b_row;")
            out.line("depth -= taken;")
        store_sums(out, sums)
    return out.text()


def store_sums(out: Emitter, sums: Sequence[Sequence[str]]) -> None:
    """Write the sums of a micro-kernel to its tile, or add them there."""
    starts = [f"c + {m} * c_row" if m else "c" for m in range(len(sums))]
    out.note("Added at the end: a sum of sums is more accurate than one long sum.")
    with out.block("if (accumulate)"):
        for at, row in zip(starts, sums, strict=True):
            out.line(" ".join(f"{s} += load({at} + {n} * W);" for n, s in enumerate(row)))
    for at, row in zip(starts, sums, strict=True):
        out.line(" ".join(f"store({at} + {n} * W, {s});" for n, s in enumerate(row)))


_MANY = "#if defined(__AVX512F__) || defined(__aarch64__)"
"""Targets with 32 registers."""

AHEAD = """\
// Memory that is read soon: `rows` of `length` bytes. It is fetched in pieces between other work, because memory keeps
// pace with multiplication then, and because the order in which products read it is not one that processors foresee.
struct Ahead {
    const char *at = nullptr;
    int64_t step = 0, rows = 0, length = 0;
    int64_t done = 0, lines = 0;  // of the present row, in bytes; of a piece, in lines of the cache
    // One of `pieces` equal parts of what is left.
    inline void fetch(int64_t pieces) {
        if (rows == 0) return;
        const int64_t taken = (rows + pieces - 1) / pieces;
        for (int64_t r = 0; r < taken; ++r, at += step)
            for (int64_t b = 0; b < length; b += 64) __builtin_prefetch(at + b, 0, 2);
        rows -= taken;
    }
    // Has `fetch_lines`, called `pieces` times, fetch all: many small pieces leave room for what is read meanwhile.
    inline void share_out(int64_t pieces) { lines = (rows * ((length + 63) / 64) + pieces - 1) / pieces; }
    inline void fetch_lines() {
        for (int64_t n = 0; n < lines && rows > 0; ++n) {
            __builtin_prefetch(at + done, 0, 2);
            done += 64;
            if (done >= length) done = 0, at += step, --rows;
        }
    }
};
// The block that follows `p` along an axis, `step` elements from row to row.
template <class E> static inline Ahead next_block(const E *p, int64_t block, int64_t step, int64_t length) {
    const int64_t size = sizeof(E);
    return {(const char *)(p + block * step), step * size, block, length * size};
}
// The same of rows whose numbers may lie apart; then nothing is fetched.
template <class E>
static inline Ahead next_rows(const E *p, int64_t block, int64_t length, int64_t step, int64_t lane_step) {
    return lane_step == 1 ? next_block(p, block, step, length) : Ahead{};
}
"""

_DISPATCH = """\
// c[m, n] (+)= sum over k < depth of a[m a_row + k a_step] b[k b_row + n], m < rows, n < lanes (a multiple of W).
// Rows are shared out evenly, so that every call of a micro-kernel has about as many.
template <int columns>
static inline void product_columns(real *c, int64_t c_row, const real *a, int64_t a_row, int64_t a_step, const real *b,
                                   int64_t b_row, int64_t rows, int64_t depth, bool accumulate, Ahead &ahead) {
    for (int64_t pieces = (rows + 5) / 6; pieces > 0; --pieces) {
        const int64_t taken = (rows + pieces - 1) / pieces;
        product_rows<columns>(taken, c, c_row, a, a_row, a_step, b, b_row, depth, accumulate, ahead);
        rows -= taken;
        c += taken * c_row;
        a += taken * a_row;
    }
}
SHARED void product(real *c, int64_t c_row, const real *a, int64_t a_row, int64_t a_step, const real *b, int64_t b_row,
                    int64_t rows, int64_t lanes, int64_t depth, bool accumulate, Ahead ahead) {
#if defined(__AVX512F__) || defined(__aarch64__)
    constexpr int64_t widest = 4 * W;
#else
    constexpr int64_t widest = 2 * W;
#endif
    ahead.share_out(most(1, (lanes + widest - 1) / widest * ((rows + 5) / 6) * ((depth + 15) / 16)));
    // At most 256 terms at a time, in equal runs: sums of sums are more accurate than one long sum.
    for (int64_t runs = most(1, (depth + 255) / 256); runs > 0; --runs, accumulate = true) {
        const int64_t taken = (depth + runs - 1) / runs;
        int64_t n = 0;
#if defined(__AVX512F__) || defined(__aarch64__)
        for (; n + 4 * W <= lanes; n += 4 * W)
            product_columns<4>(c + n, c_row, a, a_row, a_step, b + n, b_row, rows, taken, accumulate, ahead);
#endif
        for (; n + 2 * W <= lanes; n += 2 * W)
            product_columns<2>(c + n, c_row, a, a_row, a_step, b + n, b_row, rows, taken, accumulate, ahead);
        if (n < lanes) product_columns<1>(c + n, c_row, a, a_row, a_step, b + n, b_row, rows, taken, accumulate, ahead);
        a += taken * a_step, b += taken * b_row, depth -= taken;
    }
}
"""

_DECLARATION = """\
SHARED void product(real *c, int64_t c_row, const real *a, int64_t a_row, int64_t a_step, const real *b, int64_t b_row,
                    int64_t rows, int64_t lanes, int64_t depth, bool accumulate, Ahead ahead = {});
"""

_ARGUMENTS = "c, c_row, a, a_row, a_step, b, b_row, depth, accumulate, ahead"


def _choice(columns: tuple[int, ...]) -> str:
    """The micro-kernel for a number of rows from 1 to 6 and of columns."""
    out = Emitter()
    out.line("template <int columns>")
    with out.block(
        "static inline void product_rows(int64_t rows, real *c, int64_t c_row, const real *a, int64_t a_row, "
        "int64_t a_step, const real *b, int64_t b_row, int64_t depth, bool accumulate, Ahead &ahead)"
    ):
        for n in columns:
            if n == 4:
                out.lines.append(_MANY)
            with out.block(f"if constexpr (columns == {n}) switch (rows)"):
                for m in ROWS:
                    out.line(f"{'default' if m == ROWS[0] else f'case {m}'}: product_{m}x{n}({_ARGUMENTS}); break;")
            if n == 4:
                out.lines.append("#endif")
    return out.text()


ROWS = (6, 5, 4, 3, 2, 1)

_KERNELS = "\n".join(
    [
        _MANY,
        *(micro_kernel(m, 4) for m in ROWS),
        "#endif",
        *(micro_kernel(m, n) for n in (2, 1) for m in ROWS),
    ]
)


def _row_kernel(columns: int) -> str:
    """A row times `columns` W columns of a matrix, in named registers."""
    out = Emitter()
    sums = [f"c{n}" for n in range(columns)]
    out.line("template <class T>")
    head = (
        f"static inline void row_1x{columns}(real *c, const real *a, int64_t a_step, const T *b, int64_t b_row, "
        "int64_t depth, bool accumulate)"
    )
    with out.block(head):
        out.line("vec " + ", ".join(f"{s} = {{}}" for s in sums) + ";")
        with out.block("for (int64_t k = 0; k < depth; ++k)"):
            out.line("const vec x = splat(a[k * a_step]);")
            out.line(" ".join(f"{s} += x * take_lanes(b + k * b_row + {n} * W);" for n, s in enumerate(sums)))
            out.line(f"fetch_later(b + k * b_row, b_row, {columns} * W);")
        store_sums(out, [sums])
    return out.text()


_ROW = """\
// c[n] (+)= sum over k < depth of a[k a_step] b[k b_row + n], n < lanes (a multiple of W), for b that is read once.
// Sums are taken 16 terms at a time: sums of sums are more accurate.
template <class T>
static void product_of_row(real *c, const real *a, int64_t a_step, const T *b, int64_t b_row, int64_t lanes,
                           int64_t depth, bool accumulate) {
    do {
        const int64_t taken = least(16, depth);
        int64_t n = 0;
        for (; n + 4 * W <= lanes; n += 4 * W) row_1x4(c + n, a, a_step, b + n, b_row, taken, accumulate);
        for (; n < lanes; n += W) row_1x1(c + n, a, a_step, b + n, b_row, taken, accumulate);
        a += taken * a_step, b += taken * b_row, depth -= taken, accumulate = true;
    } while (depth > 0);
}
"""

_RUNS = """\
// The same, at most 64 terms at a time.
static void product_in_runs(real *c, int64_t c_row, const real *a, int64_t a_row, int64_t a_step, const real *b,
                            int64_t b_row, int64_t rows, int64_t lanes, int64_t depth, bool accumulate,
                            Ahead ahead = {}) {
    for (int64_t runs = (depth + 63) / 64; runs > 1; --runs, ahead = {}, accumulate = true) {
        const int64_t taken = (depth + runs - 1) / runs;
        product(c, c_row, a, a_row, a_step, b, b_row, rows, lanes, taken, accumulate, ahead);
        a += taken * a_step;
        b += taken * b_row;
        depth -= taken;
    }
    product(c, c_row, a, a_row, a_step, b, b_row, rows, lanes, depth, accumulate, ahead);
}
"""

SECTION: dict[str, tuple[tuple[str, ...], str]] = {
    "ahead": (("vectors",), AHEAD),
    "product_of_row": (("element_types", "fetch_later"), "\n".join([_row_kernel(4), _row_kernel(1), _ROW])),
    "product_in_runs": (("product",), _RUNS),
    "product_declared": (("ahead",), _DECLARATION),
    "product": (("product_declared",), _KERNELS + "\n" + _choice((4, 2, 1)) + "\n" + _DISPATCH),
}
