"""The C++ written by hand: small functions in `text/*.h`, of which a translation unit gets those it uses.

A section starts with ``//@ name: needed sections``. Sections of unary functions in `functions_*.h` gain the overload
that is missing: lanes from a scalar for f64 (the C library), a scalar from lanes for f32 (own polynomials).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from importlib import resources

UNARY = ("exp", "exp2", "log", "log2", "sigmoid", "tanh", "softplus", "erf", "sin", "cos")

_PROLOGUE = {
    "f32": """typedef float real;
typedef int32_t integer;
typedef uint32_t unsigned_integer;
constexpr integer sign_bit = integer(1u << 31);
constexpr real whole_numbers_from = 8388608.0f;
static inline real scalar_sqrt(real x) { return __builtin_sqrtf(x); }
static inline real scalar_floor(real x) { return __builtin_floorf(x); }
static inline real scalar_remainder(real a, real b) { return __builtin_fmodf(a, b); }
""",
    "f64": """typedef double real;
typedef int64_t integer;
typedef uint64_t unsigned_integer;
constexpr integer sign_bit = integer(uint64_t(1) << 63);
constexpr real whole_numbers_from = 4503599627370496.0;
static inline real scalar_sqrt(real x) { return __builtin_sqrt(x); }
static inline real scalar_floor(real x) { return __builtin_floor(x); }
static inline real scalar_remainder(real a, real b) { return __builtin_fmod(a, b); }
""",
}


@functools.cache
def _sections(file: str) -> dict[str, tuple[tuple[str, ...], str]]:
    text = resources.files("attnc.codegen.cpu").joinpath("text", file).read_text()
    out: dict[str, tuple[tuple[str, ...], str]] = {}
    for part in re.split(r"^//@ ", text, flags=re.MULTILINE)[1:]:
        head, body = part.split("\n", 1)
        name, _, needs = head.partition(":")
        out[name.strip()] = (tuple(needs.split()), body.strip() + "\n")
    return out


def _table(real: str) -> dict[str, tuple[tuple[str, ...], str]]:
    from attnc.codegen.cpu import half, product, transpose

    files = ("lanes.h", f"functions_{real}.h", "tiles.h", "added.h")
    written = {name: text for file in files for name, text in _sections(file).items()}
    return written | product.SECTION | transpose.SECTION | half.SECTION


def sections(names: Iterable[str], real: str) -> str:
    """The text of the named sections and of all they need, each once, needed ones first."""
    table = _table(real)
    done: list[str] = []

    def visit(name: str) -> None:
        if name in done:
            return
        for need in table[name][0]:
            visit(need)
        done.append(name)

    for name in sorted({"vectors", *names}):
        visit(name)
    return _PROLOGUE[real] + "\n" + "\n".join(table[n][1] + _overloads(n, real) for n in done)


def _overloads(name: str, real: str) -> str:
    if real == "f32":
        if name == "pow":
            return "static inline real pow(real x, real y) { return pow(splat(x), splat(y))[0]; }\n"
        return f"static inline real {name}(real x) {{ return {name}(splat(x))[0]; }}\n" if name in UNARY else ""
    if name not in UNARY:
        return ""
    return f"""static inline vec {name}(vec x) {{
    for (int l = 0; l < W; ++l) x[l] = {name}(x[l]);
    return x;
}}
"""
