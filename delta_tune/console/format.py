"""Durations, scores and hyperparameters as text."""

from __future__ import annotations

from delta_tune.config import METRICS, Metric
from delta_tune.results.tables import StudyTables


def format_duration(seconds: float) -> str:
    """`75` → `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_score(metric: Metric, value: float) -> str:
    """A score as text: `0.853` → `85.3 %`, a loss with four digits."""
    return f"{100 * value:.1f} %" if METRICS[metric] == "max" else f"{value:.4f}"


def format_params(tables: StudyTables, number: int) -> str:
    """The sampled hyperparameters of a trial in one line."""
    params = {k: v for k, v in tables.params(number).items() if k != "regularizer"}
    return " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in params.items())
