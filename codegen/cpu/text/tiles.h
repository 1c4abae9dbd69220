//@ element_types: vectors
struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };
typedef uint16_t half_bits __attribute__((vector_size(W * 2)));
typedef uint32_t float_bits __attribute__((vector_size(W * 4)));
typedef float float_vec __attribute__((vector_size(W * 4)));
typedef half_bits loose_half_bits __attribute__((aligned(2), may_alias));

static inline float_vec as_float(float_bits x) { return (float_vec)x; }
static inline float_bits from_bf16(float_bits h) { return h << 16; }
static inline float_bits to_bf16(float_bits x) {
    const float_bits rounded = (x + (((x >> 16) & 1) + 0x7fffu)) >> 16;
    return (x & 0x7fffffffu) > 0x7f800000u ? (x >> 16) | 0x40u : rounded;
}
static inline float_bits from_f16(float_bits h) {
    // The exponent bias is moved by a multiplication, which is exact for subnormals too.
    const float_bits shifted = (h & 0x7fffu) << 13;
    const float_bits value = (float_bits)((float_vec)shifted * 0x1p112f);
    const float_bits special = shifted | 0x7f800000u;
    return (shifted >= 0x0f800000u ? special : value) | ((h & 0x8000u) << 16);
}
static inline float_bits to_f16(float_bits x) {
    const float_bits a = x & 0x7fffffffu;
    const float_bits normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1)) >> 13;
    const float_bits subnormal = (float_bits)((float_vec)a + 0.5f) - 0x3f000000u;
    const float_bits nan_or_inf = a > 0x7f800000u ? 0x7e00u | ((a >> 13) & 0x3ffu) : a - a + 0x7c00u;
    float_bits h = a < 0x38800000u ? subnormal : normal;
    h = a >= 0x477ff000u ? nan_or_inf : h;
    return h | ((x >> 16) & 0x8000u);
}
// One element as the tile holds it.
template <class E, class T> static inline E take(const T *p, E) { return E(*p); }
template <class E> static inline E take(const bf16 *p, E) {
    const uint32_t bits = uint32_t(p->bits) << 16;
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return E(x);
}
template <class E> static inline E take(const f16 *p, E) { return E(as_float(from_f16(float_bits{} + p->bits))[0]); }
// One element back to memory, rounded to nearest even.
template <class E, class T> static inline void give(T *p, E x) { *p = T(x); }
template <class E> static inline void give(bool *p, E x) { *p = x != 0; }
template <class E> static inline void give(bf16 *p, E x) { p->bits = uint16_t(to_bf16((float_bits)(float_vec{} + float(x)))[0]); }
template <class E> static inline void give(f16 *p, E x) { p->bits = uint16_t(to_f16((float_bits)(float_vec{} + float(x)))[0]); }
// W neighbours.
template <class T> static inline vec take_lanes(const T *p) {
    vec x = {};
    for (int l = 0; l < W; ++l) x[l] = take(p + l, real());
    return x;
}
static inline vec take_lanes(const real *p) { return load(p); }
static inline float_bits widened(const bf16 *p) {
#if defined(__AVX512F__)
    if constexpr (sizeof(real) == 4) {  // GCC takes it apart into two instructions of half the length
        float_bits x;
        asm("vpmovzxwd %1, %0" : "=v"(x) : "m"(*(const loose_half_bits *)p));
        return x;
    }
#endif
    return __builtin_convertvector(*(const loose_half_bits *)p, float_bits);
}
static inline vec take_lanes(const bf16 *p) { return __builtin_convertvector(as_float(from_bf16(widened(p))), vec); }
static inline vec take_lanes(const f16 *p) {
#if defined(__F16C__)
    float_vec x;
    asm("vcvtph2ps %1, %0" : "=" ATTNC_REGISTER(x) : "m"(*(const loose_half_bits *)p));
    return __builtin_convertvector(x, vec);
#else
    return __builtin_convertvector(as_float(from_f16(__builtin_convertvector(*(const loose_half_bits *)p, float_bits))), vec);
#endif
}
template <class T> static inline void give_lanes(T *p, vec x) {
    for (int l = 0; l < W; ++l) give(p + l, x[l]);
}
static inline void give_lanes(real *p, vec x) { store(p, x); }
static inline void give_lanes(bf16 *p, vec x) {
    *(loose_half_bits *)p = __builtin_convertvector(to_bf16((float_bits)__builtin_convertvector(x, float_vec)), half_bits);
}
static inline void give_lanes(f16 *p, vec x) {
    const float_vec single = __builtin_convertvector(x, float_vec);
#if defined(__F16C__)
    asm("vcvtps2ph $0, %1, %0" : "=m"(*(loose_half_bits *)p) : ATTNC_REGISTER(single));
#else
    *(loose_half_bits *)p = __builtin_convertvector(to_f16((float_bits)single), half_bits);
#endif
}

//@ gather: gather_apart lane_numbers absolute
// Whether 0 <= x < limit.
static inline ivec below(ivec x, int64_t limit) { return (uvec)x < (unsigned_integer)limit; }
#if defined(__AVX512F__)
static inline bool equal(ivec x, ivec y) {
    if constexpr (sizeof(integer) == 8) {
        uint8_t k;
        asm("vpcmpeqq %2, %1, %0" : "=Yk"(k) : "v"(x), "v"(y));
        return k == 0xff;
    }
    uint16_t k;
    asm("vpcmpeqd %2, %1, %0" : "=Yk"(k) : "v"(x), "v"(y));
    return k == 0xffff;
}
#else
static inline bool equal(ivec x, ivec y) {
    integer differs = 0;
    for (int l = 0; l < W; ++l) differs |= x[l] ^ y[l];
    return differs == 0;
}
#endif
// The same. Most often lanes read neighbours, or all the same: subscripts that are distances, or clipped ones.
template <class T> static inline vec gather(const T *p, ivec at, ivec there) {
    if (equal(there, mask(true))) {
        const int64_t first = at[0];
        const ivec from_first = at - integer(first);
        if (equal(from_first, load(lane_numbers.at))) return take_lanes(p + first);
        if (equal(from_first, ivec{})) return splat(take(p + first, real()));
    }
    return gather_apart(p, at, there);
}

//@ gather_integers: gather
template <class T> static inline ivec integers_apart(const T *p, ivec at, ivec there) {
    ivec x = {};
    for (int l = 0; l < W; ++l)
        if (there[l]) x[l] = integer(p[at[l]]);
    return x;
}
#if defined(__AVX512F__)
static inline ivec integers_apart(const int32_t *p, ivec at, ivec there) {
    if constexpr (sizeof(integer) == 4) {
        uint16_t k;
        ivec x = {};
        asm("vptestmd %1, %1, %0" : "=Yk"(k) : "v"(there));
        asm("vpgatherdd (%2,%3,4), %0%{%1%}" : "+&v"(x), "+Yk"(k) : "r"(p), "v"(at), "m"(*(const int32_t(*)[])p));
        return x;
    }
    return integers_apart<int32_t>(p, at, there);
}
#endif
// p[at] of integers in the lanes that are `there`, 0 in others; most often of neighbours, or all the same.
template <class T> static inline ivec gather_integers(const T *p, ivec at, ivec there) {
    if (equal(there, mask(true))) {
        const int64_t first = at[0];
        const ivec from_first = at - integer(first);
        if (equal(from_first, load(lane_numbers.at))) {
            typedef T elements __attribute__((vector_size(W * sizeof(T)), aligned(alignof(T)), may_alias));
            return __builtin_convertvector(*(const elements *)(p + first), ivec);
        }
        if (equal(from_first, ivec{})) return ivec{} + integer(p[first]);
    }
    return integers_apart(p, at, there);
}
static inline ivec gather_integers(const bool *p, ivec at, ivec there) {
    return gather_integers((const uint8_t *)p, at, there);
}

//@ scatter_lanes: gather double_sums
// What sums in memory are added up in.
template <class T> struct Held { typedef real type; };
template <> struct Held<double> { typedef double type; };
template <class T> static inline void add_neighbours(T *p, vec x) {
    for (int l = 0; l < W; ++l) give(p + l, take(p + l, typename Held<T>::type()) + x[l]);
}
static inline void add_neighbours(real *p, vec x) { store(p, load(p) + x); }
// p[at] += x in the lanes that are `there`. Lanes add to neighbours, or to one, where subscripts are clipped distances.
template <class T> static inline void scatter_lanes(T *p, ivec at, ivec there, vec x) {
    typedef typename Held<T>::type held;
    if (equal(there, mask(true))) {
        const int64_t first = at[0];
        const ivec from_first = at - integer(first);
        if (equal(from_first, load(lane_numbers.at))) return add_neighbours(p + first, x);
        if (equal(from_first, ivec{})) return give(p + first, take(p + first, held()) + held(sum_in_doubles(x)));
    }
    for (int l = 0; l < W; ++l)
        if (there[l]) give(p + at[l], take(p + at[l], held()) + x[l]);
}

//@ gather_wide: gather wide
static inline ivec below(wide x, int64_t limit) { return narrow((x >= 0) & (x < limit)); }

//@ spans: vectors
// The lanes low <= l < high of a block.
struct Span { int64_t low, high; };
// The lanes of a block of `count` whose position, first + lane, lies inside [0, extent).
static inline Span inside(int64_t first, int64_t count, int64_t extent) {
    const int64_t low = first < 0 ? least(-first, count) : 0;
    return {low, most(low, least(count, extent - first))};
}
static inline Span both(Span a, Span b) {
    const int64_t low = most(a.low, b.low);
    return {low, most(low, least(a.high, b.high))};
}

//@ read_tile: element_types spans transpose_square
// tile[r * tile_row + l] = source[r * row_step + l * lane_step] for row_count x lane_count elements, 0 outside the spans.
template <class E, class T>
static inline void read_tile(E *tile, int64_t tile_row, int64_t row_count, int64_t lane_count, const T *source,
                             int64_t row_step, int64_t lane_step, Span rows, Span lanes) {
    const bool whole = rows.low == 0 && rows.high == row_count && lanes.low == 0 && lanes.high == lane_count;
    if (!whole)
        for (int64_t r = 0; r < row_count; ++r) __builtin_memset(tile + r * tile_row, 0, lane_count * sizeof(E));
    for (int64_t r = rows.low; r < rows.high; ++r)
        for (int64_t l = lanes.low; l < lanes.high; ++l)
            tile[r * tile_row + l] = take(source + r * row_step + l * lane_step, E());
}
template <class T>
static inline void read_tile(real *tile, int64_t tile_row, int64_t row_count, int64_t lane_count, const T *source,
                             int64_t row_step, int64_t lane_step, Span rows, Span lanes) {
    const bool whole = rows.low == 0 && rows.high == row_count && lanes.low == 0 && lanes.high == lane_count;
    if (!whole)
        for (int64_t r = 0; r < row_count; ++r) __builtin_memset(tile + r * tile_row, 0, lane_count * sizeof(real));
    if (lane_step == 1) {
        for (int64_t r = rows.low; r < rows.high; ++r) {
            const T *from = source + r * row_step;
            real *to = tile + r * tile_row;
            int64_t l = lanes.low;
            for (; l + W <= lanes.high; l += W) store(to + l, take_lanes(from + l));
            for (; l < lanes.high; ++l) to[l] = take(from + l, real());
        }
    } else if (row_step == 1) {
        // Neighbours in memory are rows of the tile: transpose.
        int64_t r = rows.low;
        for (; r + W <= rows.high; r += W) {
            int64_t l = lanes.low;
            for (; l + W <= lanes.high; l += W)
                transpose_square(tile + r * tile_row + l, tile_row, source + r + l * lane_step, lane_step);
            for (; l < lanes.high; ++l) {
                const vec x = take_lanes(source + r + l * lane_step);
                for (int k = 0; k < W; ++k) tile[(r + k) * tile_row + l] = x[k];
            }
        }
        for (; r < rows.high; ++r)
            for (int64_t l = lanes.low; l < lanes.high; ++l) tile[r * tile_row + l] = take(source + r + l * lane_step, real());
    } else {
        for (int64_t r = rows.low; r < rows.high; ++r)
            for (int64_t l = lanes.low; l < lanes.high; ++l)
                tile[r * tile_row + l] = take(source + r * row_step + l * lane_step, real());
    }
}

//@ view_tile: read_tile
// Where rows of neighbours are, and how far apart: in the tensor, if they fill whole vectors there, else in a copy.
template <class T>
static inline const T *view_tile(int64_t &row, T *tile, int64_t tile_row, int64_t row_count, int64_t lane_count,
                                 const T *source, int64_t row_step, int64_t lane_step, Span rows, Span lanes) {
    const bool whole = rows.low == 0 && rows.high == row_count && lanes.low == 0 && lanes.high == lane_count;
    row = whole && lane_step == 1 ? row_step : tile_row;
    if (whole && lane_step == 1) return source;
    if constexpr (sizeof(T) == sizeof(real)) {
        read_tile(tile, tile_row, row_count, lane_count, source, row_step, lane_step, rows, lanes);
    } else {
        if (!whole)
            for (int64_t r = 0; r < row_count; ++r) __builtin_memset(tile + r * tile_row, 0, lane_count * sizeof(T));
        for (int64_t r = rows.low; r < rows.high; ++r)
            for (int64_t l = lanes.low; l < lanes.high; ++l)
                tile[r * tile_row + l] = source[r * row_step + l * lane_step];
    }
    return tile;
}

//@ write_tile: element_types spans transpose_square
// target[r * row_step + l * lane_step] = tile[r * tile_row + l] inside the spans.
template <class E, class T>
static inline void write_tile(const E *tile, int64_t tile_row, T *target, int64_t row_step, int64_t lane_step, Span rows,
                              Span lanes) {
    for (int64_t r = rows.low; r < rows.high; ++r)
        for (int64_t l = lanes.low; l < lanes.high; ++l) give(target + r * row_step + l * lane_step, tile[r * tile_row + l]);
}
template <class T>
static inline void write_tile(const real *tile, int64_t tile_row, T *target, int64_t row_step, int64_t lane_step, Span rows,
                              Span lanes) {
    if (lane_step == 1) {
        for (int64_t r = rows.low; r < rows.high; ++r) {
            int64_t l = lanes.low;
            for (; l + W <= lanes.high; l += W) give_lanes(target + r * row_step + l, load(tile + r * tile_row + l));
            for (; l < lanes.high; ++l) give(target + r * row_step + l, tile[r * tile_row + l]);
        }
    } else if (row_step == 1) {
        int64_t l = lanes.low;
        for (; l + W <= lanes.high; l += W)
            for (int64_t r = rows.low; r + W <= rows.high; r += W)
                transpose_square(target + r + l * lane_step, lane_step, tile + r * tile_row + l, tile_row);
        for (; l < lanes.high; ++l)
            for (int64_t r = rows.low; r + W <= rows.high; r += W)
                give_lanes(target + r + l * lane_step, strided(tile + r * tile_row + l, tile_row));
        for (int64_t r = rows.high - (rows.high - rows.low) % W; r < rows.high; ++r)
            for (l = lanes.low; l < lanes.high; ++l) give(target + r + l * lane_step, tile[r * tile_row + l]);
    } else {
        for (int64_t r = rows.low; r < rows.high; ++r)
            for (int64_t l = lanes.low; l < lanes.high; ++l)
                give(target + r * row_step + l * lane_step, tile[r * tile_row + l]);
    }
}

//@ transpose_tile: transpose_square store_strided
// to[c * to_row + r] = from[r * from_row + c]
static inline void transpose_tile(real *to, int64_t to_row, const real *from, int64_t from_row, int64_t rows, int64_t columns) {
    int64_t c = 0;
    for (; c + W <= columns; c += W) {
        int64_t r = 0;
        for (; r + W <= rows; r += W) transpose_square(to + c * to_row + r, to_row, from + r * from_row + c, from_row);
        for (; r < rows; ++r) store_strided(to + c * to_row + r, to_row, load(from + r * from_row + c));
    }
    for (; c < columns; ++c)
        for (int64_t r = 0; r < rows; ++r) to[c * to_row + r] = from[r * from_row + c];
}

//@ workspace: vectors
// Hands out 64-byte aligned pieces of one allocation; with a null base it only measures.
struct Workspace {
    char *base;
    int64_t used;
    template <class E> E *take(int64_t count) {
        E *piece = (E *)(base + used);
        used += round_up(count * int64_t(sizeof(E)), 64);
        return piece;
    }
};
