"""Which unit of the processor multiplies bf16 faster. It is measured: what a processor is called does not tell."""

from __future__ import annotations

import ctypes
import functools
import time

from attnc.runtime import cache
from attnc.runtime.toolchain import CompilerFailed, Toolchain

SOURCE = """
#include <stdint.h>
typedef float vec __attribute__((vector_size(64)));
#define RUN(name, operation) extern "C" void name(int64_t rounds) { \\
    vec a = {}, b = {}, c[12] = {}; \\
    for (int64_t n = 0; n < rounds; ++n) \\
        _Pragma("GCC unroll 12") \\
        for (int k = 0; k < 12; ++k) asm volatile(operation " %1, %2, %0" : "+v"(c[k]) : "v"(a), "v"(b)); \\
}
RUN(sums, "vfmadd231ps")
RUN(pairs, "vdpbf16ps")
"""
ROUNDS = 20_000
"""Well under a millisecond."""


@functools.cache
def pairs_are_faster(toolchain: Toolchain) -> bool:
    """Whether instructions for pairs of bf16 get more multiplications done per second than those for f32 do.

    They have twice the numbers in a register. Some processors start two of them per cycle and others one every two
    cycles; on those, widened numbers are multiplied faster. Takes some milliseconds, and a short compilation the first
    time on a machine.

    Args:
        toolchain: a compiler for this machine, which has both kinds of instructions.
    """
    try:
        library = cache.library(SOURCE, toolchain)
    except CompilerFailed:
        return True
    best = {"sums": float("inf"), "pairs": float("inf")}
    for _ in range(7):
        for name in best:
            begun = time.perf_counter()
            library[name](ctypes.c_int64(ROUNDS))
            best[name] = min(best[name], time.perf_counter() - begun)
    return best["pairs"] < 2 * best["sums"]
