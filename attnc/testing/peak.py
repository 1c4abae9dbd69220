"""What this machine's multiplication units can do, measured by loops compiled as kernels are."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass

SOURCE = """
#include <stdint.h>
#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
#include <immintrin.h>
#endif
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__AVX512F__)
enum { W = 16 };
#elif defined(__AVX__)
enum { W = 8 };
#else
enum { W = 4 };
#endif
#if defined(__AVX512F__)
#define REGISTER(x) "+v"(x)
#elif defined(__x86_64__)
#define REGISTER(x) "+x"(x)
#else
#define REGISTER(x) "+w"(x)
#endif
typedef float vec __attribute__((vector_size(4 * W)));

// Every loop: `steps` rounds of independent multiplications and additions per thread, kept in registers.
extern "C" double f32_step_flops() { return 2.0 * W * 12; }
extern "C" double f32_run(int64_t steps, int threads) {
    double sum = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : sum)
    for (int t = 0; t < threads; ++t) {
        vec a = vec{} + 0.999f, b = vec{} + 0.001f, c[12];
        for (int k = 0; k < 12; ++k) {
            c[k] = vec{} + float(k);
            asm volatile("" : REGISTER(c[k]));  // equal sums would be merged into one
        }
        for (int64_t n = 0; n < steps; ++n) {
            asm volatile("" : REGISTER(a), REGISTER(b));
#pragma GCC unroll 12
            for (int k = 0; k < 12; ++k) c[k] = c[k] * a + b;
        }
        for (int k = 0; k < 12; ++k) sum += c[k][0];
    }
    return sum;
}
#ifdef __AVX512BF16__
extern "C" double bf16_step_flops() { return 2.0 * 32 * 16; }
extern "C" double bf16_run(int64_t steps, int threads) {
    double sum = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : sum)
    for (int t = 0; t < threads; ++t) {
        __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80), b = a;
        __m512 c[16];
        for (int k = 0; k < 16; ++k) {
            c[k] = _mm512_setzero_ps();
            asm volatile("" : "+v"(c[k]));
        }
        for (int64_t n = 0; n < steps; ++n) {
            asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 16
            for (int k = 0; k < 16; ++k) c[k] = _mm512_dpbf16_ps(c[k], a, b);
        }
        for (int k = 0; k < 16; ++k) sum += c[k][0];
    }
    return sum;
}
#endif
#ifdef __AMX_BF16__
// Two blocks of 16 rows by two of 16 columns: four products of 16 x 32 by 32 x 16 per step.
extern "C" double amx_step_flops() { return 4.0 * 2 * 16 * 16 * 32; }
extern "C" double amx_run(int64_t steps, int threads) {
    if (syscall(SYS_arch_prctl, 0x1023, 18)) return -1;
#pragma omp parallel for num_threads(threads)
    for (int t = 0; t < threads; ++t) {
        struct alignas(64) { uint8_t palette, row, rest[14]; uint16_t width[16]; uint8_t rows[16]; } form = {};
        form.palette = 1;
        for (int k = 0; k < 8; ++k) form.width[k] = 64, form.rows[k] = 16;
        asm volatile("" : : "r"(&form) : "memory");  // gcc 12 believes that only 8 bytes are read
        _tile_loadconfig(&form);
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
        _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);
        for (int64_t n = 0; n < steps; ++n) {
            _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
        }
        _tile_release();
    }
    return 0;
}
#endif
"""

NAMES = {"f32": "f32 FMA", "bf16": "bf16 dot products (AVX-512)", "amx": "bf16 tiles (AMX)"}


@dataclass(frozen=True, slots=True)
class Peak:
    """A unit's measured rate.

    Attributes:
        name: of the unit, for people.
        rate: floating-point operations per second on all threads, a multiplication and an addition being two.
        again: measures once more, for a few milliseconds.
    """

    name: str
    rate: float
    again: Callable[[], float]


def peaks(threads: int) -> dict[str, Peak]:
    """The peaks of f32, and of bf16: that of the fastest unit, be it for pairs, for tiles, or for widened numbers.

    Raises:
        CompilerMissing: if there is no C++ compiler.
    """
    from attnc.runtime import cache
    from attnc.runtime.toolchain import find

    library = cache.library(SOURCE, find())
    found: dict[str, Peak] = {}
    for unit, dtype in (("f32", "f32"), ("f32", "bf16"), ("bf16", "bf16"), ("amx", "bf16")):
        measure = _measure(library, unit, threads)
        if measure is None:
            continue
        rate = max(measure() for _ in range(5))
        if dtype not in found or rate > found[dtype].rate:
            found[dtype] = Peak(NAMES[unit], rate, measure)
    return found


def _measure(library: ctypes.CDLL, unit: str, threads: int, least: float = 0.02) -> Callable[[], float] | None:
    """A function that measures a unit's rate for about `least` seconds; None if the machine has no such unit."""
    try:
        run, flops = getattr(library, f"{unit}_run"), getattr(library, f"{unit}_step_flops")
    except AttributeError:
        return None
    run.argtypes, run.restype, flops.restype = (ctypes.c_int64, ctypes.c_int), ctypes.c_double, ctypes.c_double
    if run(1000, threads) < 0:
        return None
    each = float(flops()) * threads

    def seconds(steps: int) -> float:
        begun = time.perf_counter()
        run(steps, threads)
        return time.perf_counter() - begun

    steps = 10_000
    while seconds(steps) < least:
        steps *= 2
    return lambda: each * steps / seconds(steps)
