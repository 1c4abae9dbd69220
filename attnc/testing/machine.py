"""The machine that timings were taken on."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """Its processor by the name the system knows it by."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
