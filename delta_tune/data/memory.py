"""How much memory images may take: what the machine has left, and what the container does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux shows the control groups, and which of them this process is in."""
NO_LIMIT = 2**60
"""Version 1 of control groups writes a number above this where there is no limit."""


def memory_for_images(asked: int | None) -> int:
    """Bytes that the images of a data set may take in a process.

    Half of what is available, for Ray's object store holds them a second time on the driver's node.

    Args:
        asked: what the user allows; None for the default.
    """
    return available_memory() // 2 if asked is None else asked


def available_memory(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> int:
    """Bytes that can be taken without swapping: of the machine, and of each control group around this process.

    `psutil` knows the machine alone, but the limit of a container is that of a control group.

    Args:
        groups: where the control groups are.
        own: the file that names those of this process.
    """
    left = [limit - used for limit, used in _limits(groups, own)]
    return max(0, min([int(psutil.virtual_memory().available), *left]))


def total_memory(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> int:
    """Bytes of the machine, or of the smallest control group around this process; arguments as `available_memory`."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _limits(groups, own))])


def _limits(groups: Path, own: Path) -> Iterator[tuple[int, int]]:
    """The bytes of each control group that has a limit, and those in use; what the page cache takes can be had."""
    for folder in _folders(groups, own):
        for limit_file, used_file, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            try:
                limit = int((folder / limit_file).read_text())  # "max" is no number
                used = int((folder / used_file).read_text())
                stat = dict(line.split(" ") for line in (folder / "memory.stat").read_text().splitlines())
                cached = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
            except (OSError, ValueError):
                continue
            if limit < NO_LIMIT:
                yield limit, max(0, used - cached)


def _folders(groups: Path, own: Path) -> Iterator[Path]:
    """The folders of this process's control groups of memory and of those around them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = groups / "memory" if controllers else groups
        innermost = root / path.lstrip("/")
        yield from (folder for folder in (innermost, *innermost.parents) if folder.is_relative_to(root))
