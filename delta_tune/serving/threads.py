"""How many CPUs this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

GROUP = Path("/sys/fs/cgroup/cpu.max")
"""Of a container, in version 2 of control groups: microseconds of a period, or max."""


def available_cpus(group: Path = GROUP) -> int:
    """Whole CPUs, at least 1: those that the process is bound to, at most what its container may use."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = group.read_text().split()
        bound = min(bound, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no container, or no limit
        pass
    return max(1, bound)
