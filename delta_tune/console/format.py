"""Durations, sizes, scores and hyperparameters as text. Light, so that any module may import it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from delta_tune.config import METRICS, Metric


def format_duration(seconds: float) -> str:
    """`75` → `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_bytes(size: float) -> str:
    """`1536` → `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 999.5:  # from there on three digits would be written as 1e+03
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def format_count(number: float, noun: str) -> str:
    """`1, "CPU"` → `1 CPU`; `2, "CPU"` → `2 CPUs`."""
    text = str(number) if isinstance(number, int) else f"{number:g}"
    return f"{text} {noun}" if number == 1 else f"{text} {noun}s"


def format_score(metric: Metric, value: float) -> str:
    """A score as text: `0.853` → `85.3 %`, a loss with four digits."""
    return f"{100 * value:.1f} %" if METRICS[metric] == "max" else f"{value:.4f}"


def format_params(params: Mapping[str, Any]) -> str:
    """The sampled hyperparameters of a trial in one line; its method and network are shown beside them."""
    others = {name: value for name, value in params.items() if name not in ("regularizer", "backbone")}
    return " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in others.items())
