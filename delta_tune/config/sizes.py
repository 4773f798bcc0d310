"""Amounts of memory and of time as users write them. Standard library only."""

from __future__ import annotations

import re

from delta_tune.config.errors import UserError

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)}
_UNITS |= {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)}


def parse_bytes(value: float | str, name: str) -> int:
    """`8GB` → 8,000,000,000; `512MiB` → 536,870,912; a number alone is bytes.

    Args:
        value: as the user gave it.
        name: of the setting, for the message.

    Raises:
        UserError: it is no amount of memory.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([kmgt]?i?b?)", str(value).strip(), flags=re.IGNORECASE)
    unit = match[2].lower() if match else ""
    unit = f"{unit}b" if unit and not unit.endswith("b") else unit
    if match is None or isinstance(value, bool) or unit not in _UNITS:
        raise UserError(f"{name} must be like 500MB, 8GB or 8GiB, but got {value!r}.")
    return int(float(match[1]) * _UNITS[unit])


def parse_duration(value: float | str, name: str) -> float:
    """`45m` → 2,700 s; `2h` → 7,200 s; a number alone is seconds.

    Args:
        value: as the user gave it.
        name: of the setting, for the message.

    Raises:
        UserError: it is no duration, or none above 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smhd]?)\s*", str(value))
    if not match or float(match[1]) <= 0:
        raise UserError(f"{name} must be like 90s, 45m or 2h, but got {value!r}.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
