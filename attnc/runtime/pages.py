"""Huge pages for long buffers.

Memory above some 32 MB comes from the system anew at every call, a page at a time as it is touched. In pages of 2 MB
that costs nothing to speak of; in pages of 4 kB it is a good part of the time of kernels that read each number once.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

from torch import Tensor

LONG = 16 << 20
PAGE = 2 << 20
HUGE = 14
"""MADV_HUGEPAGE."""


@cache
def _advise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function


def is_long(size: int) -> bool:
    """Whether huge pages pay for a buffer of that many bytes."""
    return size >= LONG


def in_huge_pages(buffer: Tensor) -> Tensor:
    """The long buffer, fresh and untouched, whose memory the system is asked to back with huge pages."""
    if buffer.device.type == "cpu" and (advise := _advise()) is not None:
        start = -(-buffer.data_ptr() // PAGE) * PAGE
        stop = (buffer.data_ptr() + buffer.numel() * buffer.element_size()) // PAGE * PAGE
        advise(start, stop - start, HUGE)
    return buffer
