//@ add_tile: element_types spans
// target[r * row_step + l * lane_step] += tile[r * tile_row + l] inside the spans.
static inline void add_tile(const real *tile, int64_t tile_row, real *target, int64_t row_step, int64_t lane_step, Span rows,
                            Span lanes) {
    for (int64_t r = rows.low; r < rows.high; ++r) {
        int64_t l = lanes.low;
        real *const at = target + r * row_step;
        if (lane_step == 1)
            for (; l + W <= lanes.high; l += W) store(at + l, load(at + l) + load(tile + r * tile_row + l));
        for (; l < lanes.high; ++l) at[l * lane_step] += tile[r * tile_row + l];
    }
}

//@ rows_of_weights: pairs
// to[m][k] for m < rows and k < depth, rounded to bf16, up to 16 rows of 32 with 0 beyond the depth.
static void rows_of_weights(bf16 *to, int64_t to_row, const real *from, int64_t from_row, int64_t rows, int64_t depth) {
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t m = 0; m < rows; ++m, to += to_row, from += from_row)
        for (int64_t k = 0; k < round_up(depth, 32); k += 32) {
            vec low = load(from + k), high = load(from + k + 16);
            if (k + 32 > depth) {
                low = lane < integer(depth - k) ? low : vec{};
                high = lane + 16 < integer(depth - k) ? high : vec{};
            }
            typedef int16_t halves __attribute__((vector_size(64)));
            halves x;
            asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(x) : "v"(high), "v"(low));
            put(to + k, (pairs)x);
        }
}

//@ all_above_zero: vectors
static inline bool all_above_zero(const real *x, int64_t count) {
    for (int64_t l = 0; l < count; ++l)
        if (!(x[l] > real(0))) return false;
    return true;
}
