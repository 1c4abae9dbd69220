"""Small Triton functions that generated modules define when they use them.

Written for both the compiler and the interpreter of Triton, without libdevice.
"""

from __future__ import annotations

HELPERS: dict[str, str] = {
    "circular": '''
@triton.jit
def circular(x, turn):
    """sin(x + turn * pi / 2), reduced to [-pi / 4, pi / 4] by multiples of pi / 2 in three parts (Cody and Waite)."""
    n = tl.floor(x * 0.63661975 + 0.5)
    r = ((x - n * 1.5703125) - n * 0.00048375129699707) - n * 7.54978995e-08
    z = r * r
    sine = r + r * z * (-0.16666655 + z * (0.00833216 + z * -0.00019515296))
    cosine = 1.0 - 0.5 * z + z * z * (0.041666646 + z * (-0.0013887316 + z * 2.4433157e-05))
    quarter = n.to(tl.int32) + turn
    value = tl.where(quarter % 2 == 0, sine, cosine)
    return tl.where((quarter & 2) == 0, value, -value)
''',
    "floor_div": '''
@triton.jit
def floor_div(a, b):
    """Integer division rounded down; `//` alone rounds towards zero."""
    quotient = a // b
    return tl.where((a % b != 0) & ((a < 0) != (b < 0)), quotient - 1, quotient)
''',
    "floor_mod": '''
@triton.jit
def floor_mod(a, b):
    """Integer remainder with the sign of b; `%` alone has the sign of a."""
    rest = a % b
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)
''',
    "add_exactly": '''
@triton.jit
def add_exactly(counters, value, shift, mask):
    """Add reals as integers: each to the counter of its exponent, so that the order of additions does not matter."""
    bits = value.to(tl.int32, bitcast=True)
    exponent = (bits >> 23) & 255
    place = tl.maximum(exponent, 1) - 1
    mantissa = (bits & 8388607) | tl.where(exponent > 0, 8388608, 0)
    whole = tl.where(bits < 0, -mantissa, mantissa).to(tl.int64)
    finite = exponent < 255
    counter = tl.where(finite, place, 253 + (1 << shift)) >> shift
    amount = tl.where(finite, whole << (place & ((1 << shift) - 1)).to(tl.int64), 1)
    tl.atomic_add(counters + counter, amount, mask=mask, sem="relaxed")
''',
    "hash": '''
@triton.jit
def hash(x, y):
    """A random-looking integer of 31 bits from the lower 32 bits of two integers (lowbias32, Wellons 2018)."""
    start, stride = tl.cast(0x6A09E667, tl.uint32), tl.cast(0x9E3779B9, tl.uint32)
    z = (tl.cast(x, tl.uint32) + start) ^ (tl.cast(y, tl.uint32) * stride)
    z = (z ^ (z >> 16)) * tl.cast(0x7FEB352D, tl.uint32)
    z = (z ^ (z >> 15)) * tl.cast(0x846CA68B, tl.uint32)
    return tl.cast((z ^ (z >> 16)) & tl.cast(0x7FFFFFFF, tl.uint32), tl.int32)
''',
    "unit": '''
@triton.jit
def unit(x):
    """A hash as a number in [0, 1)."""
    return tl.cast(x >> 7, tl.float32) * 5.9604644775390625e-08
''',
    "floor_log2": '''
@triton.jit
def floor_log2(x):
    """The number of the highest set bit of an integer, 0 below 1."""
    rest = tl.cast(x, tl.int64)
    n = tl.where(rest >= 4294967296, 32, 0)
    rest = rest >> n
    places = tl.where(rest >= 65536, 16, 0)
    n, rest = n + places, rest >> places
    places = tl.where(rest >= 256, 8, 0)
    n, rest = n + places, rest >> places
    places = tl.where(rest >= 16, 4, 0)
    n, rest = n + places, rest >> places
    places = tl.where(rest >= 4, 2, 0)
    n, rest = n + places, rest >> places
    return n + tl.where(rest >= 2, 1, 0)
''',
    "power_of_two": '''
@triton.jit
def power_of_two(n):
    """The integer 2 ** n, with n limited to 0 to 62."""
    return tl.cast(1, tl.int64) << tl.minimum(tl.maximum(n, 0), 62)
''',
    "tanh": '''
@triton.jit
def tanh(x):
    """Hyperbolic tangent: a polynomial near 0, where 1 - 2 / (exp(2 x) + 1) would cancel."""
    square = x * x
    near = x * (1.0 + square * (-0.33333334 + square * (0.13333334 + square * -0.053968254)))
    far = 1.0 - 2.0 / (tl.exp2(2.885390081777927 * x) + 1.0)
    return tl.where(square < 0.04, near, far)
''',
    "sigmoid": '''
@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))"""
    return 1.0 / (1.0 + tl.exp(-x))
''',
    "softplus": '''
@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow, as accurate where x is very negative: log(1 + t) = 2 artanh(t / (2 + t))."""
    t = tl.exp(-tl.abs(x))
    s = t / (2.0 + t)
    u = s * s
    tail = 0.14285715 + u * (0.11111111 + u * (0.09090909 + u * 0.07692308))
    return tl.maximum(x, 0.0) + 2.0 * s * (1.0 + u * (0.33333334 + u * (0.2 + u * tail)))
''',
    "sin": '''
@triton.jit
def sin(x):
    """Sine of an angle in radians, without the branches and stack of the library's."""
    return circular(x, 0)
''',
    "cos": '''
@triton.jit
def cos(x):
    """Cosine of an angle in radians."""
    return circular(x, 1)
''',
    "power": '''
@triton.jit
def power(x, y):
    """x ** y; a negative x needs an integral y."""
    magnitude = tl.where(y == 0, 1.0, tl.exp2(y * tl.log2(tl.abs(x))))
    half = 0.5 * y
    signed = tl.where(half == tl.floor(half), magnitude, -magnitude)
    signed = tl.where(y == tl.floor(1.0 * y), signed, float("nan"))
    return tl.where(x < 0, signed, magnitude)
''',
    "power_int": '''
@triton.jit
def power_int(x, n):
    """x ** n for an integer n of either sign."""
    magnitude = tl.where(n == 0, 1.0, tl.exp2(n * tl.log2(tl.abs(x))))
    # not `(x < 0) & odd`: Triton's interpreter cannot broadcast a scalar truth value into `&`
    return tl.where(n % 2 != 0, tl.where(x < 0, -magnitude, magnitude), magnitude)
''',
}

USES = {"sin": ("circular",), "cos": ("circular",)}
"""Helpers that other helpers call."""
