"""Where a search's time went: the slots' time between its first and last trial, divided up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeUse:
    """Seconds of slots, summed over slots."""

    total: float
    """slots × (end of the last trial − start of the first)."""
    training: float
    """Σ seconds of the epochs."""
    validation: float
    """Σ eval_seconds."""
    inside: float
    """The rest of the trials: building the network, checkpoints, reports."""
    between: float
    """From the end of one trial to the start of the next."""
    tail: float
    """Slots that had nothing left to do while the last trials ran."""

    @property
    def overhead(self) -> float:
        """What the search adds to training and validation, as a share of them, idle slots at the end left out."""
        return (self.inside + self.between) / (self.training + self.validation)

    def sentence(self) -> str:
        """For the study's summary."""
        parts = {
            "training": self.training,
            "validation": self.validation,
            "checkpoints and reports": self.inside,
            "between trials": self.between,
            "idle at the end": self.tail,
        }
        shares = ", ".join(f"{name} {100 * part / self.total:.0f} %" for name, part in parts.items())
        return f"Time of the slots: {shares}; the search added {100 * self.overhead:.0f} % to training and validation."


def time_use(trials: Iterable[Mapping[str, Any]], slots: int, since: float = 0.0) -> TimeUse | None:
    """Of the trials (rows of `trials.parquet`) that began at or after `since`; None where none has come to an epoch."""
    rows = [row for row in trials if row.get("ended") and row["began"] >= since and row["train_seconds"] > 0]
    if not rows:
        return None
    first, last = min(row["began"] for row in rows), max(row["ended"] for row in rows)
    total = slots * (last - first)
    busy = sum(row["ended"] - row["began"] for row in rows)
    training, validation = (sum(row[name] for row in rows) for name in ("train_seconds", "eval_seconds"))
    final_start = max(row["began"] for row in rows)
    tail = sum(last - row["ended"] for row in rows if row["ended"] > final_start)
    never_used = slots - sum(row["ended"] > final_start for row in rows)  # slots that were idle by then
    tail += never_used * (last - final_start)
    return TimeUse(
        total=total,
        training=training,
        validation=validation,
        inside=busy - training - validation,
        between=total - busy - tail,
        tail=tail,
    )
