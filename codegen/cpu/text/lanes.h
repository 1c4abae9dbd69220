//@ vectors
// An operand of an instruction on vectors.
#if defined(__AVX512F__)
#define ATTNC_REGISTER(x) "v"(x)
#else
#define ATTNC_REGISTER(x) "x"(x)
#endif
#if defined(__AVX512F__)
constexpr int W = 64 / sizeof(real);
#elif defined(__AVX__)
constexpr int W = 32 / sizeof(real);
#else
constexpr int W = 16 / sizeof(real);
#endif
// W lanes side by side; comparisons of `vec` give an `ivec` mask of 0 and -1.
typedef real vec __attribute__((vector_size(W * sizeof(real))));
typedef integer ivec __attribute__((vector_size(W * sizeof(real))));
typedef unsigned_integer uvec __attribute__((vector_size(W * sizeof(real))));
typedef int64_t wide __attribute__((vector_size(W * sizeof(int64_t))));
typedef vec loose_vec __attribute__((aligned(sizeof(real)), may_alias));
typedef ivec loose_ivec __attribute__((aligned(sizeof(real)), may_alias));
typedef wide loose_wide __attribute__((aligned(8), may_alias));

constexpr real infinity = __builtin_inff();
static inline vec load(const real *p) { return *(const loose_vec *)p; }
static inline ivec load(const integer *p) { return *(const loose_ivec *)p; }
static inline void store(real *p, vec x) { *(loose_vec *)p = x; }
static inline void store(integer *p, ivec x) { *(loose_ivec *)p = x; }
static inline vec splat(real x) { return x - vec{}; }
static inline ivec splat(integer x) { return x - ivec{}; }
static inline ivec mask(bool x) { return splat(integer(-integer(x))); }
static inline vec bits_to_real(ivec x) { return (vec)x; }
static inline ivec bits_of(vec x) { return (ivec)x; }
static inline vec to_real(ivec x) { return __builtin_convertvector(x, vec); }
static inline vec select(ivec c, vec a, vec b) { return c ? a : b; }
static inline ivec select(ivec c, ivec a, ivec b) { return c ? a : b; }
static inline vec strided(const real *p, int64_t step) {
    vec x = {};
    for (int l = 0; l < W; ++l) x[l] = p[l * step];
    return x;
}
static inline ivec strided(const integer *p, int64_t step) {
    ivec x = {};
    for (int l = 0; l < W; ++l) x[l] = p[l * step];
    return x;
}
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
template <class X> static inline X larger(X a, X b) { return a > b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

//@ rounded: vectors
// x as a number of its own: the product it may be is not fused with the addition that reads it. Where the registers are
// known, by an instruction that is none: GCC takes its own barrier of vectors apart lane by lane.
#if defined(__x86_64__)
static inline vec rounded(vec x) { asm("" : "+v"(x)); return x; }
static inline real rounded(real x) { asm("" : "+v"(x)); return x; }
#elif defined(__aarch64__)
static inline vec rounded(vec x) { asm("" : "+w"(x)); return x; }
static inline real rounded(real x) { asm("" : "+w"(x)); return x; }
#else
#if defined(__has_builtin)
#if __has_builtin(__builtin_assoc_barrier)
#define ATTNC_ROUNDED(x) __builtin_assoc_barrier(x)
#elif __has_builtin(__arithmetic_fence)
#define ATTNC_ROUNDED(x) __arithmetic_fence(x)
#endif
#endif
#ifndef ATTNC_ROUNDED
#define ATTNC_ROUNDED(x) (x)
#endif
static inline vec rounded(vec x) { return ATTNC_ROUNDED(x); }
static inline real rounded(real x) { return ATTNC_ROUNDED(x); }
#endif

//@ lane_numbers: vectors
struct LaneNumbers { integer at[W]; };
static constexpr LaneNumbers count_lanes() {
    LaneNumbers n = {};
    for (int l = 0; l < W; ++l) n.at[l] = l;
    return n;
}
static constexpr LaneNumbers lane_numbers = count_lanes();
// first, first + 1, ..., first + W - 1
static inline ivec positions(int64_t first) { return load(lane_numbers.at) + integer(first); }

//@ wide: vectors
static inline wide load(const int64_t *p) { return *(const loose_wide *)p; }
static inline void store(int64_t *p, wide x) { *(loose_wide *)p = x; }
static inline wide widen(ivec x) { return __builtin_convertvector(x, wide); }
static inline ivec narrow(wide x) { return __builtin_convertvector(x, ivec); }
static inline vec to_real(wide x) { return __builtin_convertvector(x, vec); }
static inline wide splat_wide(int64_t x) { return x - wide{}; }
static inline wide select(wide c, wide a, wide b) { return c ? a : b; }
static inline wide strided(const int64_t *p, int64_t step) {
    wide x = {};
    for (int l = 0; l < W; ++l) x[l] = p[l * step];
    return x;
}

//@ floor_division: vectors
// Rounds down; 0 where the divisor is 0, which only lanes outside an extent can hold.
static inline int64_t floordiv(int64_t a, int64_t b) {
    if (b == 0) return 0;
    int64_t q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}
static inline int64_t mod(int64_t a, int64_t b) { return b == 0 ? 0 : a - b * floordiv(a, b); }

//@ floor_division_lanes: floor_division
static inline ivec floordiv(ivec a, ivec b) {
    ivec q = {};
    for (int l = 0; l < W; ++l) q[l] = integer(floordiv(int64_t(a[l]), int64_t(b[l])));
    return q;
}
static inline ivec mod(ivec a, ivec b) { return a - b * floordiv(a, b); }

//@ floor_division_wide: floor_division wide
static inline wide floordiv(wide a, wide b) {
    wide q = {};
    for (int l = 0; l < W; ++l) q[l] = floordiv(a[l], b[l]);
    return q;
}
static inline wide mod(wide a, wide b) { return a - b * floordiv(a, b); }

//@ hash: vectors wide
// A random-looking integer of 31 bits from the lower 32 bits of two integers (lowbias32, Wellons 2018).
static inline int64_t hash(int64_t x, int64_t y) {
    uint32_t z = (uint32_t(x) + 0x6a09e667u) ^ (uint32_t(y) * 0x9e3779b9u);
    z = (z ^ (z >> 16)) * 0x7feb352du;
    z = (z ^ (z >> 15)) * 0x846ca68bu;
    return (z ^ (z >> 16)) & 0x7fffffffu;
}
static inline real unit(int64_t x) { return real(x >> 7) * real(0x1p-24); }
static inline ivec narrow_bits(wide x) { return __builtin_convertvector(x, ivec); }
static inline ivec hash(ivec x, ivec y) {
    uvec z = ((uvec)x + 0x6a09e667u) ^ ((uvec)y * 0x9e3779b9u);
    z = (((z & 0xffffffffu) ^ ((z & 0xffffffffu) >> 16)) * 0x7feb352du) & 0xffffffffu;
    z = ((z ^ (z >> 15)) * 0x846ca68bu) & 0xffffffffu;
    return (ivec)((z ^ (z >> 16)) & 0x7fffffffu);
}
static inline vec unit(ivec x) { return to_real(x >> 7) * real(0x1p-24); }
//@ powers_of_two: vectors
// The number of the highest set bit, 0 below 1; and 2 to a power from 0 to 62.
static inline int64_t floor_log2(int64_t x) { return x > 0 ? 63 - __builtin_clzll(uint64_t(x)) : 0; }
static inline int64_t power_of_two(int64_t n) { return int64_t(1) << (n < 0 ? 0 : n > 62 ? 62 : n); }
static inline ivec floor_log2(ivec x) {
    for (int l = 0; l < W; ++l) x[l] = integer(floor_log2(int64_t(x[l])));
    return x;
}
static inline ivec power_of_two(ivec n) {
    for (int l = 0; l < W; ++l) n[l] = integer(power_of_two(int64_t(n[l])));
    return n;
}

//@ powers_of_two_wide: powers_of_two wide
static inline wide floor_log2(wide x) {
    for (int l = 0; l < W; ++l) x[l] = floor_log2(x[l]);
    return x;
}
static inline wide power_of_two(wide n) {
    for (int l = 0; l < W; ++l) n[l] = power_of_two(n[l]);
    return n;
}

//@ absolute: vectors
static inline int64_t absolute(int64_t x) { return x < 0 ? -x : x; }
static inline ivec absolute(ivec x) { return x < 0 ? -x : x; }
static inline vec absolute(vec x) { return bits_to_real(bits_of(x) & ~sign_bit); }
static inline real absolute(real x) { return x < 0 ? -x : x == 0 ? real(0) : x; }

//@ extremes: vectors
// The larger and the smaller of two numbers; the second one where one is NaN. That is one instruction on x86.
#if defined(__AVX__)
#define ATTNC_EXTREME(name, instruction, sign) \
    static inline vec name(vec a, vec b) { \
        vec c; \
        if constexpr (sizeof(real) == 4) \
            asm(instruction "ps %2, %1, %0" : "=" ATTNC_REGISTER(c) : ATTNC_REGISTER(a), ATTNC_REGISTER(b)); \
        else asm(instruction "pd %2, %1, %0" : "=" ATTNC_REGISTER(c) : ATTNC_REGISTER(a), ATTNC_REGISTER(b)); \
        return c; \
    }
#else
#define ATTNC_EXTREME(name, instruction, sign) \
    static inline vec name(vec a, vec b) { return a sign b ? a : b; }
#endif

//@ larger_of: extremes
ATTNC_EXTREME(larger_of, "vmax", >)
static inline real larger_of(real a, real b) { return a > b ? a : b; }

//@ smaller_of: extremes
ATTNC_EXTREME(smaller_of, "vmin", <)

//@ maximum: larger_of
// NaN if either is NaN, as in torch.
static inline vec maximum(vec a, vec b) { return a != a ? a : larger_of(a, b); }
static inline real maximum(real a, real b) { return a > b || a != a ? a : b; }
static inline ivec maximum(ivec a, ivec b) { return a > b ? a : b; }
static inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }

//@ minimum: smaller_of
static inline vec minimum(vec a, vec b) { return a != a ? a : smaller_of(a, b); }
static inline real minimum(real a, real b) { return a < b || a != a ? a : b; }
static inline ivec minimum(ivec a, ivec b) { return a < b ? a : b; }
static inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }

//@ wide_extremes: wide
static inline wide maximum(wide a, wide b) { return a > b ? a : b; }
static inline wide minimum(wide a, wide b) { return a < b ? a : b; }
static inline wide absolute(wide x) { return x < 0 ? -x : x; }

//@ floor: absolute
static inline real floor_real(real x) { return scalar_floor(x); }
static inline int64_t floor(real x) { return int64_t(scalar_floor(x)); }
static inline ivec floor(vec x) {
    const ivec n = __builtin_convertvector(x, ivec);
    return n + (to_real(n) > x);
}
static inline vec floor_real(vec x) { return absolute(x) < whole_numbers_from ? to_real(floor(x)) : x; }

//@ real_division: floor
// Exact remainders, as in Python: the quotient's floor is taken from them, not from a rounded quotient.
static inline real mod(real a, real b) {
    const real r = scalar_remainder(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
static inline real floordiv(real a, real b) {
    if (b == 0) return a / b;
    const real q = (a - mod(a, b)) / b;
    const real whole = scalar_floor(q);
    return q - whole > real(0.5) ? whole + 1 : whole;
}
static inline vec mod(vec a, vec b) {
    for (int l = 0; l < W; ++l) a[l] = mod(a[l], b[l]);
    return a;
}
static inline vec floordiv(vec a, vec b) {
    for (int l = 0; l < W; ++l) a[l] = floordiv(a[l], b[l]);
    return a;
}

//@ reciprocal_or_zero: vectors
static inline vec reciprocal_or_zero(vec x) { return x == 0 ? vec{} : 1 / x; }
static inline real reciprocal_or_zero(real x) { return x == 0 ? 0 : 1 / x; }

//@ finite_or_zero: vectors
static inline vec finite_or_zero(vec x) { return x == -infinity ? vec{} : x; }
static inline real finite_or_zero(real x) { return x == -infinity ? 0 : x; }

//@ sign: vectors
static inline vec sign(vec x) { return to_real((x < 0) - (x > 0)); }
static inline real sign(real x) { return real((x > 0) - (x < 0)); }

//@ sqrt: vectors
static inline real sqrt(real x) { return scalar_sqrt(x); }
static inline vec sqrt(vec x) {
    vec y = {};
    for (int l = 0; l < W; ++l) y[l] = scalar_sqrt(x[l]);
    return y;
}

//@ rsqrt: sqrt
static inline real rsqrt(real x) { return 1 / sqrt(x); }
static inline vec rsqrt(vec x) { return 1 / sqrt(x); }

//@ halves: vectors
// The lower and the upper half of the lanes.
template <int n> struct Lanes { typedef real type __attribute__((vector_size(n * sizeof(real)))); };
template <int n> static inline typename Lanes<n / 2>::type half(typename Lanes<n>::type x, int upper) {
    typedef typename Lanes<n / 2>::type part __attribute__((may_alias));
    return ((const part *)&x)[upper];
}

//@ sum_across: halves
template <int n> static inline real sum_of_lanes(typename Lanes<n>::type x) {
    if constexpr (n > 4) {
        return sum_of_lanes<n / 2>(half<n>(x, 0) + half<n>(x, 1));
    } else if constexpr (n == 4) {
        return (x[0] + x[2]) + (x[1] + x[3]);
    } else {
        return x[0] + x[1];
    }
}
// The sum of `count` neighbours.
static inline real sum_across(const real *p, int64_t count) {
    vec total = {};
    int64_t k = 0;
    for (; k + W <= count; k += W) total += load(p + k);
    real rest = 0;
    for (; k < count; ++k) rest += p[k];
    return sum_of_lanes<W>(total) + rest;
}

//@ fetch_later: vectors
// Has memory send what is read 64 rows from now, for rows that are read once. Elements narrower than `real` cost more
// work per byte, and processors run less far ahead of it; others keep memory busy without.
template <class T> static inline void fetch_later(const T *p, int64_t row, int64_t length) {
    if constexpr (sizeof(T) < sizeof(real))
        for (int64_t k = 0; k < length * int64_t(sizeof(T)); k += 64)
            __builtin_prefetch((const char *)(p + 64 * row) + k, 0, 2);
}

//@ dots: sum_across element_types fetch_later
template <class E, class T>
static inline real dot(const E *p, const T *q, int64_t count) {
    vec total = {};
    int64_t k = 0;
    for (; k + W <= count; k += W) total += take_lanes(p + k) * take_lanes(q + k);
    real rest = 0;
    for (; k < count; ++k) rest += take(p + k, real()) * take(q + k, real());
    return sum_of_lanes<W>(total) + rest;
}
// The sums of four vectors' lanes.
typedef typename Lanes<4>::type four;
template <int n>
static inline four sums_of_lanes(typename Lanes<n>::type a, typename Lanes<n>::type b, typename Lanes<n>::type c,
                                 typename Lanes<n>::type d) {
    if constexpr (n > 4) {
        return sums_of_lanes<n / 2>(half<n>(a, 0) + half<n>(a, 1), half<n>(b, 0) + half<n>(b, 1),
                                    half<n>(c, 0) + half<n>(c, 1), half<n>(d, 0) + half<n>(d, 1));
    } else {
        const four ab = __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
        const four cd = __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
        return __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
    }
}
// out[j] (+)= sum over k < depth of p[k] rows[j row + k], for j < count.
template <class E, class T>
static inline void dots(real *out, const E *p, const T *rows, int64_t row, int64_t count, int64_t depth, bool accumulate) {
    int64_t j = 0;
    if constexpr (W >= 4) {
        typedef four loose_four __attribute__((aligned(sizeof(real)), may_alias));
        for (; j + 4 <= count; j += 4, rows += 4 * row) {
            vec a = {}, b = {}, c = {}, d = {};
            int64_t k = 0;
            for (; k + W <= depth; k += W) {
                const vec x = take_lanes(p + k);
                a += x * take_lanes(rows + k);
                b += x * take_lanes(rows + row + k);
                c += x * take_lanes(rows + 2 * row + k);
                d += x * take_lanes(rows + 3 * row + k);
            }
            for (int m = 0; m < 4; ++m) fetch_later(rows + m * row, row, depth);
            four rest = {};
            for (; k < depth; ++k)
                for (int m = 0; m < 4; ++m) rest[m] += take(p + k, real()) * take(rows + m * row + k, real());
            const four total = sums_of_lanes<W>(a, b, c, d) + rest;
            *(loose_four *)(out + j) = accumulate ? *(loose_four *)(out + j) + total : total;
        }
    }
    for (; j < count; ++j, rows += row) out[j] = dot(p, rows, depth) + (accumulate ? out[j] : real(0));
}

//@ largest_across: maximum halves
template <int n> static inline real largest_of_lanes(typename Lanes<n>::type x) {
    if constexpr (n > 4) {
        const auto low = half<n>(x, 0), high = half<n>(x, 1);
        return largest_of_lanes<n / 2>((low > high) | (low != low) ? low : high);  // NaN on either side stays
    } else if constexpr (n == 4) {
        const auto across = __builtin_shufflevector(x, x, 2, 3, 0, 1);
        x = (x > across) | (x != x) ? x : across;
        const auto beside = __builtin_shufflevector(x, x, 1, 0, 3, 2);
        return real(((x > beside) | (x != x) ? x : beside)[0]);
    } else {
        return maximum(real(x[0]), real(x[1]));
    }
}
// The maximum of `count` neighbours, -inf of none.
static inline real largest_across(const real *p, int64_t count) {
    vec top = splat(-infinity);
    int64_t k = 0;
    for (; k + W <= count; k += W) top = maximum(top, load(p + k));
    real best = largest_of_lanes<W>(top);
    for (; k < count; ++k) best = maximum(best, p[k]);
    return best;
}

//@ store_strided: vectors
static inline void store_strided(real *p, int64_t step, vec x) {
    for (int l = 0; l < W; ++l) p[l * step] = x[l];
}
static inline void store_strided(integer *p, int64_t step, ivec x) {
    for (int l = 0; l < W; ++l) p[l * step] = x[l];
}
