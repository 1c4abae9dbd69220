"""Matrix products of bf16 tiles with sums in f32, on processors that have instructions for them (AVX-512 BF16, AMX).

Both instruction sets multiply pairs of neighbours along the depth. The broadcast operand is held as rows
``[m][depth]``, or, for vectors, as pairs ``[depth / 2][m][2]`` where that is how it lies in memory; the other as pairs
``[depth / 2][n][2]``. What a tensor holds as rows already is read in place.
"""

from __future__ import annotations

from attnc.codegen.cpu.emitter import Emitter
from attnc.codegen.cpu.product import store_sums


def _all(template: str) -> str:
    return "\n".join(template.replace("#", str(k)) for k in range(16))


def _names() -> str:
    return ", ".join(f"r{k}" for k in range(16))


PACK = (
    """\
typedef uint32_t pairs __attribute__((vector_size(64)));
typedef pairs loose_pairs __attribute__((aligned(2), may_alias));
static_assert(W == 16, "pairs of bf16 are multiplied in vectors of 64 bytes");
static inline uint32_t first_bits(int64_t n) { return n >= 32 ? ~uint32_t(0) : n <= 0 ? 0 : (uint32_t(1) << n) - 1; }
// The first `count` of 32 neighbours, 0 beyond.
template <bool whole> static inline pairs some_pairs(const bf16 *p, int64_t count) {
    if (whole) return *(const loose_pairs *)p;
    pairs x;
    asm("vmovdqu16 %1, %0%{%2%}%{z%}" : "=v"(x) : "m"(*(const loose_pairs *)p), "Yk"(first_bits(count)));
    return x;
}
// The first `count` of 16 neighbours, each in the lower half of its lane.
template <bool whole> static inline pairs some_halves(const bf16 *p, int64_t count) {
    if (whole) return widened(p);
    pairs x;
    asm("vpmovzxwd %1, %0%{%2%}%{z%}" : "=v"(x) : "m"(*(const loose_half_bits *)p), "Yk"(first_bits(count)));
    return x;
}
typedef int16_t halves __attribute__((vector_size(64)));
// 32 neighbours of two rows, interleaved.
static inline void interleave(bf16 *to, pairs low, pairs high) {
    const halves a = (halves)low, b = (halves)high;
    *(loose_pairs *)to = (pairs)__builtin_shufflevector(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8,
        40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47);
    *(loose_pairs *)(to + 32) = (pairs)__builtin_shufflevector(a, b, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22,
        54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63);
}
// Two rows rounded to bf16 and interleaved, `low` in the lower halves.
static inline pairs paired(vec low, vec high) {
    halves x;
    asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(x) : "v"(high), "v"(low));
    return (pairs)__builtin_shufflevector(x, x, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25,
                                          10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
static inline void put(bf16 *p, pairs x) { *(loose_pairs *)p = x; }
"""
    + """
// 16 rows of 32 neighbours, of which `rows` of `count` are there, transposed as pairs.
template <bool whole> static inline void across_rows(bf16 *to, int64_t to_row, const bf16 *from, int64_t row,
                                                     int64_t rows, int64_t count) {
"""
    + "    pairs "
    + ", ".join(f"r{k} = some_pairs<whole>(from + {k} * row, {k} < rows ? count : 0)" for k in range(16))
    + ";\n    transpose_16("
    + _names()
    + ");\n"
    + _all("    put(to + # * to_row, r#);")
    + """
}
// The same of 16 columns: 32 rows of 16 neighbours.
template <bool whole> static inline void across_columns(bf16 *to, int64_t to_row, const bf16 *from, int64_t row,
                                                        int64_t rows, int64_t count) {
"""
    + "    pairs "
    + ", ".join(
        f"r{k} = some_halves<whole>(from + {2 * k} * row, {2 * k} < rows ? count : 0) | "
        f"some_halves<whole>(from + {2 * k + 1} * row, {2 * k + 1} < rows ? count : 0) << 16"
        for k in range(16)
    )
    + ";\n    transpose_16("
    + _names()
    + ");\n"
    + _all("    put(to + # * to_row, r#);")
    + """
}
// to[m][k] for m < m_count and k < k_count, rounded up to 16 rows of 32, 0 outside the spans.
static void pack_rows(bf16 *to, int64_t to_row, const bf16 *from, int64_t m_step, int64_t k_step, int64_t m_count,
                      int64_t k_count, Span m_span, Span k_span) {
    const int64_t m_end = round_up(m_count, 16), k_end = round_up(k_count, 32);
    if (m_span.low == 0 && k_span.low == 0 && (k_step == 1 || m_step == 1)) {
        for (int64_t m = 0; m < m_end; m += 16)
            for (int64_t k = 0; k < k_end; k += 32) {
                const int64_t rows = m_span.high - m, count = k_span.high - k;
                const bool whole = rows >= 16 && count >= 32;
                bf16 *const at = to + m * to_row + k;
                if (k_step == 1) {
                    const bf16 *row = from + m * m_step + k;
                    for (int64_t r = 0; r < 16; ++r, row += m_step)
                        put(at + r * to_row,
                            whole ? some_pairs<true>(row, 32) : some_pairs<false>(row, r < rows ? count : 0));
                } else if (whole) {
                    across_columns<true>(at, to_row, from + k * k_step + m, k_step, 32, 16);
                } else {
                    across_columns<false>(at, to_row, from + k * k_step + m, k_step, count, rows);
                }
            }
        return;
    }
    for (int64_t m = 0; m < m_end; ++m)
        for (int64_t k = 0; k < k_end; ++k) {
            const bool there = m >= m_span.low && m < m_span.high && k >= k_span.low && k < k_span.high;
            to[m * to_row + k] = there ? from[m * m_step + k * k_step] : bf16{0};
        }
}
// to[k / 2][n][k % 2] for k < k_count and n < n_count, rounded up to 32 rows of 16, 0 outside the spans.
static void pack_pairs(bf16 *to, int64_t to_row, const bf16 *from, int64_t k_step, int64_t n_step, int64_t k_count,
                       int64_t n_count, Span k_span, Span n_span) {
    const int64_t k_end = round_up(k_count, 32), n_end = round_up(n_count, 16);
    if (n_span.low == 0 && k_span.low == 0 && n_step == 1) {
        for (int64_t k = 0; k < k_end; k += 2) {
            int64_t n = 0;
            if (k + 2 <= k_span.high)
                for (; n + 32 <= n_span.high; n += 32) {
                    const bf16 *const low = from + k * k_step + n, *const high = low + k_step;
                    bf16 *const at = to + k / 2 * to_row + 2 * n;
                    interleave(at, some_pairs<true>(low, 32), some_pairs<true>(high, 32));
                }
            for (; n < n_end; n += 16) {
                const bf16 *const at = from + k * k_step + n;
                const int64_t count = n_span.high - n;
                pairs low, high;
                if (count >= 16 && k + 2 <= k_span.high) {
                    low = some_halves<true>(at, 16), high = some_halves<true>(at + k_step, 16);
                } else {
                    low = some_halves<false>(at, k < k_span.high ? count : 0);
                    high = some_halves<false>(at + k_step, k + 1 < k_span.high ? count : 0);
                }
                put(to + k / 2 * to_row + 2 * n, low | high << 16);
            }
        }
        return;
    }
    if (n_span.low == 0 && k_span.low == 0 && k_step == 1) {
        for (int64_t k = 0; k < k_end; k += 32)
            for (int64_t n = 0; n < n_end; n += 16) {
                const int64_t rows = n_span.high - n, count = k_span.high - k;
                bf16 *const at = to + k / 2 * to_row + 2 * n;
                if (rows >= 16 && count >= 32) across_rows<true>(at, to_row, from + n * n_step + k, n_step, 16, 32);
                else across_rows<false>(at, to_row, from + n * n_step + k, n_step, rows, count);
            }
        return;
    }
    for (int64_t k = 0; k < k_end; ++k)
        for (int64_t n = 0; n < n_end; ++n) {
            const bool there = n >= n_span.low && n < n_span.high && k >= k_span.low && k < k_span.high;
            to[k / 2 * to_row + 2 * n + k % 2] = there ? from[n * n_step + k * k_step] : bf16{0};
        }
}
// The same of tiles: pairs of rows of `from`, and rows of it.
static void pack_pairs(bf16 *to, int64_t to_row, const real *from, int64_t from_row, int64_t k_count, int64_t n_count) {
    const int64_t k_end = round_up(k_count, 32);
    for (int64_t k = 0; k < k_end; k += 2)
        for (int64_t n = 0; n < n_count; n += 16) {
            const vec low = k < k_count ? load(from + k * from_row + n) : vec{};
            const vec high = k + 1 < k_count ? load(from + (k + 1) * from_row + n) : vec{};
            put(to + k / 2 * to_row + 2 * n, paired(low, high));
        }
}
"""
)

PRODUCT = """\
#if defined(__AMX_BF16__) && defined(__linux__)
// Whether the system lets this process use tile registers (it has to be asked), and their shape: 16 rows of 64 bytes.
static bool ask_for_tiles() {
    long result;
    asm volatile("syscall" : "=a"(result) : "a"(158L), "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
    return result == 0;
}
static const bool has_tiles = ask_for_tiles();
struct TileShapes { uint8_t palette, start, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; };
alignas(64) static const TileShapes tile_shapes = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
struct Tiles {
    Tiles() { if (has_tiles) asm volatile("ldtilecfg %0" : : "m"(tile_shapes)); }
    ~Tiles() { if (has_tiles) asm volatile("tilerelease"); }
};
#define ATTNC_TILE(load, tile, at, row) \\
    asm volatile(load " (%0,%1,1),%%tmm" #tile : : "r"(at), "r"(row) : "memory")
#define ATTNC_STORE(tile, at, row) asm volatile("tilestored %%tmm" #tile ",(%0,%1,1)" : : "r"(at), "r"(row) : "memory")
#define ATTNC_MULTIPLY(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ",%%tmm" #a ",%%tmm" #c : : : "memory")
#define ATTNC_ZERO(tile) asm volatile("tilezero %%tmm" #tile : : : "memory")
template <int rows, int columns>
static inline void product_of_tiles(real *c, int64_t c_row, const bf16 *a, int64_t a_row, const bf16 *b, int64_t b_row,
                                    int64_t depth, bool accumulate) {
    real *const lower = c + 16 * c_row;
    c_row *= 4, a_row *= 2, b_row *= 2;
    if (accumulate) {
        ATTNC_TILE("tileloadd", 0, c, c_row);
        if (columns > 1) ATTNC_TILE("tileloadd", 1, c + 16, c_row);
        if (rows > 1) ATTNC_TILE("tileloadd", 2, lower, c_row);
        if (rows > 1 && columns > 1) ATTNC_TILE("tileloadd", 3, lower + 16, c_row);
    } else {
        ATTNC_ZERO(0);
        if (columns > 1) ATTNC_ZERO(1);
        if (rows > 1) ATTNC_ZERO(2);
        if (rows > 1 && columns > 1) ATTNC_ZERO(3);
    }
    for (int64_t k = 0; k < depth; k += 32, a += 32, b += 8 * b_row) {
        ATTNC_TILE("tileloadd", 4, a, a_row);
        ATTNC_TILE("tileloadd", 6, b, b_row);
        ATTNC_MULTIPLY(0, 4, 6);
        if (columns > 1) ATTNC_TILE("tileloadd", 7, b + 32, b_row);
        if (columns > 1) ATTNC_MULTIPLY(1, 4, 7);
        if (rows > 1) ATTNC_TILE("tileloadd", 5, a + 8 * a_row, a_row);
        if (rows > 1) ATTNC_MULTIPLY(2, 5, 6);
        if (rows > 1 && columns > 1) ATTNC_MULTIPLY(3, 5, 7);
    }
    ATTNC_STORE(0, c, c_row);
    if (columns > 1) ATTNC_STORE(1, c + 16, c_row);
    if (rows > 1) ATTNC_STORE(2, lower, c_row);
    if (rows > 1 && columns > 1) ATTNC_STORE(3, lower + 16, c_row);
}
#else
constexpr bool has_tiles = false;
struct Tiles {};
template <int rows, int columns>
static inline void product_of_tiles(real *, int64_t, const bf16 *, int64_t, const bf16 *, int64_t, int64_t, bool) {}
#endif
"""


def micro_kernel(rows: int, columns: int) -> str:
    """`rows` x (`columns` W) sums in named registers; each instruction multiplies pairs of 32 numbers."""
    out = Emitter()
    head = (
        f"static void pairs_{rows}x{columns}(real *c, int64_t c_row, const bf16 *a, int64_t a_row, int64_t a_step, "
        "const bf16 *b, int64_t b_row, int64_t depth, bool accumulate)"
    )
    sums = [[f"c{m}{n}" for n in range(columns)] for m in range(rows)]
    with out.block(head):
        out.line("vec " + ", ".join(f"{s} = {{}}" for row in sums for s in row) + ";")
        with out.block("for (int64_t k = 0; k < depth; k += 2)"):
            out.line(
                "const pairs " + ", ".join(f"b{n} = *(const loose_pairs *)(b + {32 * n})" for n in range(columns)) + ";"
            )
            out.line("pairs x;")
            for m, row in enumerate(sums):
                terms = " ".join(f"{s} = with_pairs({s}, x, b{n});" for n, s in enumerate(row))
                out.line(f"x = every_pair(a + {m} * a_row); {terms}")
            out.line("a += a_step;")
            out.line("b += b_row;")
        store_sums(out, sums)
    return out.text()


LEFT = """\
// The broadcast operand of a product: the numbers k and k + 1 of row m are at + m row + k / 2 step, and its neighbour.
struct Left { const bf16 *at; int64_t row, step; };
// Part of a tensor as such an operand, 0 outside the spans: in place where rows are whole, else packed into `to`, which
// has room for `m_room` rows of `k_room`.
static inline Left left_operand(bf16 *to, int64_t m_room, int64_t k_room, const bf16 *from, int64_t m_step,
                                int64_t k_step, int64_t m_count, int64_t k_count, Span m_span, Span k_span) {
    const bool whole = m_span.low == 0 && m_span.high == m_count && k_span.low == 0 && k_span.high == k_count;
    const bool fits = has_tiles ? m_count % 16 == 0 && k_count % 32 == 0 : m_count % 8 == 0 && k_count % 2 == 0;
    if (k_step == 1 && whole && fits) return {from, m_step, 2};
    if (m_step == 1 && !has_tiles) {
        pack_pairs(to, 2 * m_room, from, k_step, m_step, k_count, m_count, k_span, m_span);
        return {to, 2, 2 * m_room};
    }
    pack_rows(to, k_room, from, m_step, k_step, m_count, k_count, m_span, k_span);
    return {to, k_room, 2};
}
"""

DRIVER = """\
// c[m, n] (+)= sum over k < depth of a[m, k] b[k, n] for packed b. Up to 15 rows of c beyond `rows` are written.
static void product_of_pairs(real *c, int64_t c_row, Left a, const bf16 *b, int64_t b_row, int64_t rows, int64_t lanes,
                             int64_t depth, bool accumulate, Ahead ahead = {}) {
    int64_t n = 0;
    if (!has_tiles && rows >= 20)  // shared out evenly, rows come in fives and sixes
        for (; n + 64 <= lanes; n += 64) {
            real *at = c + n;
            const bf16 *left = a.at;
            for (int64_t pieces = (rows + 5) / 6, rest = rows; pieces > 0; --pieces) {
                const int64_t taken = (rest + pieces - 1) / pieces;
                if (taken == 6) pairs_6x4(at, c_row, left, a.row, a.step, b + 2 * n, b_row, depth, accumulate);
                else pairs_5x4(at, c_row, left, a.row, a.step, b + 2 * n, b_row, depth, accumulate);
                rest -= taken, at += taken * c_row, left += taken * a.row;
            }
        }
    if (!has_tiles && rows <= 4)
        for (; n + 64 <= lanes; n += 64)
            pairs_4x4(c + n, c_row, a.at, a.row, a.step, b + 2 * n, b_row, depth, accumulate);
    if (lanes > 2 * W) ahead = {};  // each number read is used so often that memory can wait
    for (; n < lanes; n += 32, ahead = {}) {
        const bool wide = n + 32 <= lanes;
        real *at = c + n;
        const bf16 *left = a.at, *right = b + 2 * n;
        if (has_tiles) {
            ahead.fetch(1);
            int64_t m = 0;
            for (; m + 16 < rows; m += 32, at += 32 * c_row, left += 32 * a.row)
                if (wide) product_of_tiles<2, 2>(at, c_row, left, a.row, right, b_row, depth, accumulate);
                else product_of_tiles<2, 1>(at, c_row, left, a.row, right, b_row, depth, accumulate);
            if (m < rows) {
                if (wide) product_of_tiles<1, 2>(at, c_row, left, a.row, right, b_row, depth, accumulate);
                else product_of_tiles<1, 1>(at, c_row, left, a.row, right, b_row, depth, accumulate);
            }
        } else {
            for (int64_t m = 0; m < rows; m += 8, at += 8 * c_row, left += 8 * a.row) {
                ahead.fetch((rows - m + 7) / 8);
                if (wide) pairs_8x2(at, c_row, left, a.row, a.step, right, b_row, depth, accumulate);
                else pairs_8x1(at, c_row, left, a.row, a.step, right, b_row, depth, accumulate);
            }
        }
    }
}
"""

INSTRUCTIONS = """\
static inline vec with_pairs(vec c, pairs a, pairs b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
}
static inline pairs every_pair(const bf16 *p) {
    uint32_t x;
    __builtin_memcpy(&x, p, 4);
    return x - pairs{};
}
"""

EXP2 = """\
// 2^x with a relative error below 3e-6, far below what rounding to bf16 or f16 leaves; -inf gives 0, NaN stays.
#if defined(__AVX512DQ__)
static inline vec exp2_of_weight(vec x) {
    vec r;
    asm("vreduceps $9, %1, %0" : "=v"(r) : "v"(x));  // x less its floor
    vec p = r * 1.353416787e-2f + 5.201146277e-2f;
    p = p * r + 2.414427539e-1f;
    p = p * r + 6.930038356e-1f;
    p = p * r + 1.000002593f;
    return scaled(p, x, x);
}
#else
static inline vec exp2_of_weight(vec x) {
    vec r;
    const vec power = half_power(x, r);
    vec p = r * 1.914020382e-2f + 1.118357206e-1f;
    p = p * r + 4.804948966e-1f;
    p = p * r + 1.386243629f;
    p = p * r + 1.999998523f;
    return p * power;
}
#endif
"""

SECTION: dict[str, tuple[tuple[str, ...], str]] = {
    "pairs": (("element_types", "spans", "transpose"), PACK),
    "exp2_of_weight": (("exp2",), EXP2),
    "product_of_pairs": (
        ("pairs", "ahead"),
        "\n".join(
            [
                PRODUCT,
                LEFT,
                INSTRUCTIONS,
                *(micro_kernel(m, n) for m, n in ((8, 1), (8, 2), (4, 4), (5, 4), (6, 4))),
                DRIVER,
            ]
        ),
    ),
}
