//@ exp: vectors
static inline real exp(real x) { return __builtin_exp(x); }
//@ exp2: vectors
static inline real exp2(real x) { return __builtin_exp2(x); }
//@ log: vectors
static inline real log(real x) { return __builtin_log(x); }
//@ log2: vectors
static inline real log2(real x) { return __builtin_log2(x); }
//@ sigmoid: vectors
static inline real sigmoid(real x) { return 1 / (1 + __builtin_exp(-x)); }
//@ tanh: vectors
static inline real tanh(real x) { return __builtin_tanh(x); }
//@ softplus: vectors
static inline real softplus(real x) { return (x > 0 ? x : 0) + __builtin_log1p(__builtin_exp(x > 0 ? -x : x)); }
//@ erf: vectors
static inline real erf(real x) { return __builtin_erf(x); }
//@ sin: vectors
static inline real sin(real x) { return __builtin_sin(x); }
//@ cos: vectors
static inline real cos(real x) { return __builtin_cos(x); }
//@ pow: vectors
static inline real pow(real x, real y) { return __builtin_pow(x, y); }
static inline vec pow(vec x, vec y) {
    for (int l = 0; l < W; ++l) x[l] = __builtin_pow(x[l], y[l]);
    return x;
}

//@ gather_apart: element_types
// p[at] in the lanes that are `there`, 0 in others.
template <class T> static inline vec gather_apart(const T *p, ivec at, ivec there) {
    vec x = {};
    for (int l = 0; l < W; ++l)
        if (there[l]) x[l] = take(p + at[l], real());
    return x;
}

//@ double_sums: vectors
static inline double sum_in_doubles(vec x) {
    double total = 0;
    for (int l = 0; l < W; ++l) total += x[l];
    return total;
}
