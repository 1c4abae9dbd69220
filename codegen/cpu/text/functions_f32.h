//@ exp2: vectors larger_of smaller_of
// 2^x within 1 ulp, NaN kept. Minimax polynomial on [-1/2, 1/2].
#if defined(__AVX512DQ__)
// p 2^n; 0 where x is below -126, because arithmetic with subnormal numbers is slow.
static inline vec scaled(vec p, vec n, vec x) {
    uint16_t normal;
    asm("vcmpps $5, %2, %1, %0" : "=Yk"(normal) : "v"(x), "v"(splat(-126.0f)));  // not less than
    asm("vscalefps %1, %0, %0%{%2%}%{z%}" : "+v"(p) : "v"(n), "Yk"(normal));
    return p;
}
static inline vec exp2(vec x) {
    vec r;
    asm("vreduceps $8, %1, %0" : "=v"(r) : "v"(x));  // x less the nearest integer, 0 for infinities
    vec p = r * 1.535367635e-4f + 1.33989226e-3f;
    p = p * r + 9.61843645e-3f;
    p = p * r + 5.550332335e-2f;
    p = p * r + 2.40226479e-1f;
    p = p * r + 6.93147205e-1f;
    p = p * r + 1.0f;
    return scaled(p, x - r, x);
}
#else
// 2^(n - 1) for the integer n nearest to x, and r = x - n. Twice what a polynomial gives is multiplied by it, so that
// n = 128 does not overflow early; 0 below -125.5.
static inline vec half_power(vec x, vec &r) {
    x = smaller_of(splat(129.0f), larger_of(splat(-126.0f), x));
    const vec shifted = x + 12582912.0f;
    r = x - (shifted - 12582912.0f);
    return bits_to_real((ivec)(((uvec)bits_of(shifted) + 126u) << 23));
}
static inline vec exp2(vec x) {
    vec r;
    const vec power = half_power(x, r);
    vec p = r * 3.07073527e-4f + 2.67978452e-3f;
    p = p * r + 1.92368729e-2f;
    p = p * r + 1.11006647e-1f;
    p = p * r + 4.80452958e-1f;
    p = p * r + 1.38629441f;
    p = p * r + 2.0f;
    return p * power;
}
#endif

//@ exp: vectors larger_of smaller_of
// e^x within 1 ulp; 0 below -87, inf above 88.73, NaN kept.
static inline vec exp(vec x) {
    x = smaller_of(splat(89.41599f), larger_of(splat(-87.3365448f), x));
    const vec shifted = x * 1.44269504f + 12582912.0f;
    const vec n = shifted - 12582912.0f;
    const vec r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    vec p = r * 2.76290304e-3f + 1.67374702e-2f;
    p = p * r + 8.33367809e-2f;
    p = p * r + 3.33330409e-1f;
    p = p * r + 9.99999869e-1f;
    p = p * r + 2.0f;
    p = p * r + 2.0f;
    return p * bits_to_real((ivec)(((uvec)bits_of(shifted) + 126u) << 23));
}

//@ mantissa: vectors
// Splits a positive x into m 2^e with m in [sqrt(1/2), sqrt(2)).
static inline vec mantissa(vec x, vec &e) {
    const ivec tiny = x < 1.17549435e-38f;
    const ivec bits = bits_of(tiny ? x * 8388608.0f : x);
    const ivec power = (bits - 0x3f3504f3) >> 23;
    e = to_real(power) - (tiny ? splat(23.0f) : splat(0.0f));
    return bits_to_real(bits - (ivec)((uvec)power << 23));
}
static inline vec log_special(vec x, vec y) {
    y = x == infinity ? x : y;
    y = x == 0 ? splat(-infinity) : y;
    return x >= 0 ? y : splat(__builtin_nanf(""));
}

//@ log: mantissa
// With f = m - 1 and s = f / (2 + f): log m = f - s (f - s^2 g(s^2)).
static inline vec log(vec x) {
    vec e;
    const vec f = mantissa(x, e) - 1.0f;
    const vec s = f / (f + 2.0f);
    const vec z = s * s;
    vec g = z * 2.35852395e-1f + 2.85371547e-1f;
    g = g * z + 4.00003375e-1f;
    g = g * z + 6.66666656e-1f;
    return log_special(x, e * 0.693145752f + ((e * 1.42860677e-6f - s * (f - z * g)) + f));
}

//@ log2: mantissa
static inline vec log2(vec x) {
    vec e;
    const vec f = mantissa(x, e) - 1.0f;
    const vec s = f / (f + 2.0f);
    const vec z = s * s;
    vec g = z * 2.35852395e-1f + 2.85371547e-1f;
    g = g * z + 4.00003375e-1f;
    g = g * z + 6.66666656e-1f;
    const vec low = (s * (z * g - f)) * 1.44269504f + f * 1.92596299e-8f;
    return log_special(x, e + (f * 1.44269502f + low));
}

//@ sigmoid: exp
static inline vec sigmoid(vec x) { return 1 / (1 + exp(-x)); }

//@ tanh: absolute smaller_of
// With t = e^(2|x|) - 1 found without cancellation: tanh |x| = t / (t + 2).
static inline vec tanh(vec x) {
    vec y = 2 * absolute(x);
    y = smaller_of(splat(20.0f), y);
    const vec shifted = y * 1.44269504f + 12582912.0f;
    const vec n = shifted - 12582912.0f;
    const vec r = (y - n * 0.693145752f) - n * 1.42860677e-6f;
    vec p = r * 1.38145152e-3f + 8.36873508e-3f;
    p = p * r + 4.16683905e-2f;
    p = p * r + 1.66665205e-1f;
    p = p * r + 4.99999934e-1f;
    p = (p * r) * r + r;
    const vec scale = bits_to_real((ivec)(((uvec)bits_of(shifted) + 127u) << 23));
    const vec t = p * scale + (scale - 1);
    const vec value = t / (t + 2);
    return bits_to_real(bits_of(value) | (bits_of(x) & sign_bit));
}

//@ softplus: exp absolute
// max(x, 0) + log1p(e^-|x|)
static inline vec softplus(vec x) {
    const vec y = exp(-absolute(x));
    const vec s = y / (y + 2);
    const vec z = s * s;
    vec g = z * 2.17924615e-1f + 1.7147824e-1f;
    g = g * z + 2.23015042e-1f;
    g = g * z + 2.85683958e-1f;
    g = g * z + 4.0000053e-1f;
    g = g * z + 6.66666664e-1f;
    return (x > 0 ? x : vec{}) + (2 * s + s * (z * g));
}

//@ erf: exp2 absolute smaller_of
// x + x g(x^2) below 0.92, and 1 - 2^(-|x| h(|x|)) above.
static inline vec erf(vec x) {
    const vec z = x * x;
    vec g = z * 8.40985850e-5f - 8.15261222e-4f;
    g = g * z + 5.20195873e-3f;
    g = g * z - 2.68597979e-2f;
    g = g * z + 1.12837033e-1f;
    g = g * z - 3.76126343e-1f;
    g = g * z + 1.28379167e-1f;
    vec a = absolute(x);
    a = smaller_of(splat(4.0f), a);
    vec h = a * -3.40486575e-6f + 5.41357764e-5f;
    h = h * a - 3.43095209e-4f;
    h = h * a + 8.41734624e-4f;
    h = h * a + 2.39048548e-3f;
    h = h * a - 3.04001678e-2f;
    h = h * a + 1.50083097e-1f;
    h = h * a + 9.17779212e-1f;
    h = h * a + 1.6280147f;
    const vec far = bits_to_real(bits_of(1 - exp2(-a * h)) | (bits_of(x) & sign_bit));
    return a < 0.92f ? x + x * g : far;
}

//@ quarter_turns: absolute
typedef double double_vec __attribute__((vector_size(W * sizeof(double))));
// Reduces |x| <= 2^20 to r in [-pi/4, pi/4] in double precision, and the number of quarter turns taken off.
static inline vec quarter_turns(vec x, ivec &turns) {
    const double_vec y = __builtin_convertvector(x, double_vec);
    const double_vec n = (y * 0.63661977236758134 + 6755399441055744.0) - 6755399441055744.0;
    turns = __builtin_convertvector(n, ivec);
    return __builtin_convertvector((y - n * 1.5707963267948966) - n * 6.123233995736766e-17, vec);
}
static inline vec sine_of(vec r, ivec turns) {
    const vec z = r * r;
    vec s = z * 2.71821482e-6f - 1.98393247e-4f;
    s = s * z + 8.33332935e-3f;
    s = s * z - 1.66666666e-1f;
    s = (s * z) * r + r;
    vec c = z * -2.72093245e-7f + 2.4799509e-5f;
    c = c * z - 1.38888837e-3f;
    c = c * z + 4.16666666e-2f;
    c = (c * z) * z + (1 - 0.5f * z);
    const vec value = (turns & 1) != 0 ? c : s;
    return bits_to_real(bits_of(value) ^ ((turns & 2) << 30));
}
static inline bool any_beyond(vec x, real limit) {
    bool any = false;
    for (int l = 0; l < W; ++l) any |= !(__builtin_fabsf(x[l]) <= limit);
    return any;
}

//@ sin: quarter_turns
static inline vec sin(vec x) {
    if (any_beyond(x, 1048576.0f)) {
        for (int l = 0; l < W; ++l) x[l] = __builtin_sinf(x[l]);
        return x;
    }
    ivec turns;
    const vec r = quarter_turns(x, turns);
    return sine_of(r, turns);
}

//@ cos: quarter_turns
static inline vec cos(vec x) {
    if (any_beyond(x, 1048576.0f)) {
        for (int l = 0; l < W; ++l) x[l] = __builtin_cosf(x[l]);
        return x;
    }
    ivec turns;
    const vec r = quarter_turns(x, turns);
    return sine_of(r, turns + 1);
}

//@ pow: exp2 mantissa absolute floor quarter_turns
static inline vec power_of_two(ivec n) { return bits_to_real((n + 127) << 23); }
// 2^(y log2 |x|) with the logarithm in double precision; then the special cases of C's pow.
static inline vec pow(vec x, vec y) {
    const vec a = absolute(x);
    vec e;
    const double_vec f = __builtin_convertvector(mantissa(a, e), double_vec) - 1.0;
    const double_vec s = f / (f + 2.0);
    const double_vec z = s * s;
    double_vec g = z * 0.28258422325716407 + 0.319931869426773464;
    g = g * z + 0.412208466438093963;
    g = g * z + 0.57707795263349038;
    g = g * z + 0.961796694059240086;
    const double_vec logarithm = __builtin_convertvector(e, double_vec) + s * (2.8853900817779268 + z * g);
    double_vec t = __builtin_convertvector(y, double_vec) * logarithm;
    t = t < -160.0 ? t * 0 - 160.0 : t;
    t = t > 160.0 ? t * 0 + 160.0 : t;
    const double_vec n = (t + 6755399441055744.0) - 6755399441055744.0;
    const ivec power = __builtin_convertvector(n, ivec);
    const ivec half = power >> 1;
    vec value = exp2(__builtin_convertvector(t - n, vec)) * power_of_two(half) * power_of_two(power - half);
    value = a == 0 ? (y > 0 ? vec{} : splat(infinity)) : value;
    value = a == infinity ? (y > 0 ? splat(infinity) : vec{}) : value;
    const ivec infinite = absolute(y) == infinity;
    value = infinite ? (((a > 1) == (y > 0)) ? splat(infinity) : vec{}) : value;
    const vec whole = floor_real(y);
    const ivec odd = (whole == y) & (floor_real(y * 0.5f) != y * 0.5f);
    const ivec negative = bits_of(x) < 0;
    value = (negative & odd) != 0 ? -value : value;
    value = (x < 0) & (whole != y) & (a != infinity) ? splat(__builtin_nanf("")) : value;
    value = (x != x) | (y != y) ? x + y : value;
    return (y == 0) | (x == 1) | ((x == -1) & infinite) ? splat(1.0f) : value;
}

//@ gather_apart: element_types
// p[at] in the lanes that are `there`, 0 in others.
template <class T> static inline vec gather_apart(const T *p, ivec at, ivec there) {
    vec x = {};
    for (int l = 0; l < W; ++l)
        if (there[l]) x[l] = take(p + at[l], real());
    return x;
}
#if defined(__AVX512F__)
static inline vec gather_apart(const float *p, ivec at, ivec there) {
    uint16_t k;
    vec x = {};
    asm("vptestmd %1, %1, %0" : "=Yk"(k) : "v"(there));
    asm("vgatherdps (%2,%3,4), %0%{%1%}" : "+&v"(x), "+Yk"(k) : "r"(p), "v"(at), "m"(*(const float(*)[])p));
    return x;
}
// Numbers of 16 bits, out of the aligned 32 they lie in.
static inline float_bits halves_apart(const uint16_t *p, ivec at, ivec there) {
    const uint32_t *const base = (const uint32_t *)((uintptr_t)p & ~uintptr_t(3));
    const ivec place = at * 2 + integer((uintptr_t)p & 2), which = place >> 2;
    uint16_t k;
    float_bits x = {};
    asm("vptestmd %1, %1, %0" : "=Yk"(k) : "v"(there));
    asm("vpgatherdd (%2,%3,4), %0%{%1%}" : "+&v"(x), "+Yk"(k) : "r"(base), "v"(which), "m"(*(const uint32_t(*)[])base));
    return x >> (float_bits)((place & 2) << 3) & 0xffffu;
}
static inline vec gather_apart(const bf16 *p, ivec at, ivec there) {
    return (vec)from_bf16(halves_apart(&p->bits, at, there));
}
static inline vec gather_apart(const f16 *p, ivec at, ivec there) {
    return (vec)from_f16(halves_apart(&p->bits, at, there));
}
#endif

//@ double_sums: halves
typedef double doubles __attribute__((vector_size(W / 2 * sizeof(double))));
typedef doubles loose_doubles __attribute__((aligned(sizeof(double)), may_alias));
static inline doubles doubles_of(vec x, int upper) { return __builtin_convertvector(half<W>(x, upper), doubles); }
static inline double sum_in_doubles(vec x) {
    const doubles pairs = doubles_of(x, 0) + doubles_of(x, 1);
    double total = 0;
    for (int l = 0; l < W / 2; ++l) total += pairs[l];
    return total;
}
static inline void add_neighbours(double *p, vec x) {
    *(loose_doubles *)p += doubles_of(x, 0);
    *(loose_doubles *)(p + W / 2) += doubles_of(x, 1);
}
