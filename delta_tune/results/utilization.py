"""How the time of the slots was used between the first and the last trial of a search."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeUse:
    """Seconds, summed over slots."""

    total: float
    """All slots, from the start of the first trial to the end of the last."""
    training: float
    """Sum of the epochs' `seconds`."""
    validation: float
    """Sum of the epochs' `eval_seconds`."""
    inside: float
    """The rest of the trials' time: building the network, checkpoints, reports."""
    between: float
    """From the end of one trial to the start of the next."""
    tail: float
    """Idle slots while the last trials ran."""

    @property
    def overhead(self) -> float:
        """Time that the search adds, as a share of training and validation; idle slots at the end do not count."""
        return (self.inside + self.between) / (self.training + self.validation)

    def sentence(self) -> str:
        """A sentence for the study's summary."""
        parts = {
            "training": self.training,
            "validation": self.validation,
            "checkpoints and reports": self.inside,
            "between trials": self.between,
            "idle at the end": self.tail,
        }
        shares = ", ".join(f"{name} {100 * part / self.total:.0f} %" for name, part in parts.items())
        return f"Time of the slots: {shares}; the search added {100 * self.overhead:.0f} % to training and validation."


def measure_time_use(
    trials: Iterable[Mapping[str, Any]], slots: Sequence[tuple[float, int]], since: float = 0.0
) -> TimeUse | None:
    """Time use of the trials that began at or after `since`.

    Args:
        trials: rows of `trials.parquet`.
        slots: (seconds since 1970, concurrent trials from then on), in order; the first number holds before it too.
        since: seconds since 1970.

    Returns:
        None if no trial finished an epoch, or there were no slots.
    """
    rows = [row for row in trials if row.get("ended") and row["began"] >= since and row["train_seconds"] > 0]
    if not rows:
        return None
    first, last = min(row["began"] for row in rows), max(row["ended"] for row in rows)
    total = _slot_seconds(slots, first, last)
    if total <= 0:
        return None
    busy = sum(row["ended"] - row["began"] for row in rows)
    training, validation = (sum(row[name] for row in rows) for name in ("train_seconds", "eval_seconds"))
    final_start = max(row["began"] for row in rows)
    tail = _slot_seconds(slots, final_start, last) - sum(max(0.0, row["ended"] - final_start) for row in rows)
    return TimeUse(
        total=total,
        training=training,
        validation=validation,
        inside=busy - training - validation,
        between=total - busy - tail,
        tail=tail,
    )


def slots_without(slots: Sequence[tuple[float, int]], used: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """What is left of the slots while some of them do other work; all three as `measure_time_use` takes slots."""

    def at(moment: float, changes: Sequence[tuple[float, int]], before: int) -> int:
        return next((many for since, many in reversed(changes) if since <= moment), before)

    moments = sorted({since for since, _ in (*slots, *used)})
    return [(moment, max(0, at(moment, slots, slots[0][1]) - at(moment, used, 0))) for moment in moments]


def _slot_seconds(slots: Sequence[tuple[float, int]], start: float, end: float) -> float:
    changes = [-math.inf, *(since for since, _ in slots[1:]), math.inf]
    spans = pairwise(min(max(moment, start), end) for moment in changes)
    return sum(many * (stop - begun) for (_, many), (begun, stop) in zip(slots, spans, strict=True))
