"""The result of a study, and how a console and a notebook show it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa

from delta_tune.config import METRICS, MULTILABEL_METRIC, Metric, TrialConfig
from delta_tune.results.columns import SCORES

SHOWN_TRIALS = 8
COLUMNS = ("number", "state", "config.regularizer", "config.lr", "config.alpha", "epochs", "best_epoch")


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a study found.

    Attributes:
        best_config: configuration of the winner; None if no trial completed.
        best_metrics: metrics of the winner's best epoch, or of the images that final runs held out, and `test_…`
            if there is a test split.
        trials: one row per trial, as in `trials.parquet`.
        path: the study's folder.
        report: path of the report; None if it could not be written.
        summary: what the study found, in sentences.
        metric: the metric that ranks the trials.
    """

    best_config: TrialConfig | None
    best_metrics: dict[str, Any]
    trials: pa.Table
    path: Path
    report: Path | None
    summary: str
    metric: Metric = "val_accuracy"

    def __repr__(self) -> str:
        return format_text(self.summary, self.trials, self.path)

    def _repr_html_(self) -> str:
        return format_html(self.summary, self.best_config, self.trials, self.metric)


def format_text(summary: str, trials: pa.Table, path: Path) -> str:
    """One line: first sentence of the summary, trials by state, folder."""
    first = (summary.splitlines() or ["no summary"])[0]
    return f"StudyResult({first} {_by_state(trials)}; {str(path)!r})"


def format_html(summary: str, best: TrialConfig | None, trials: pa.Table, metric: Metric) -> str:
    """Summary, best configuration, and the best trials by `metric`, completed ones first."""
    parts = [f"<p>{'<br>'.join(map(escape, summary.splitlines()))}</p>"]
    if best is not None:
        config = ", ".join(f"{name}={value!r}" for name, value in best.record().items() if value is not None)
        parts.append(f"<p>Best configuration: <code>{escape(config)}</code></p>")
    lacking = {MULTILABEL_METRIC} if trials[f"best_{MULTILABEL_METRIC}"].null_count == trials.num_rows else set()
    names = [*COLUMNS, *(f"best_{score}" for score in SCORES if score not in lacking)]
    rows = sorted(trials.select(names).to_pylist(), key=lambda row: _rank(row, metric))
    head = _row("th", (name.removeprefix("config.") for name in names))
    body = "".join(_row("td", (_cell(row[name]) for name in names)) for row in rows[:SHOWN_TRIALS])
    which = f"the best {SHOWN_TRIALS} of " if len(rows) > SHOWN_TRIALS else ""
    parts.append(f"<p>By {metric}, {which}{escape(_by_state(trials))}:</p>")
    parts.append(f"<table><thead>{head}</thead><tbody>{body}</tbody></table>")
    return "<div>" + "\n".join(parts) + "</div>"


def _by_state(trials: pa.Table) -> str:
    states = Counter(trials["state"].to_pylist())
    return f"{trials.num_rows} trials ({', '.join(f'{count} {state}' for state, count in sorted(states.items()))})"


def _rank(row: dict[str, Any], metric: Metric) -> tuple[bool, float, float]:
    score, loss = row[f"best_{metric}"], row["best_val_loss"]
    if score is None or loss is None:
        return True, math.inf, 0.0
    return row["state"] != "completed", -score if METRICS[metric] == "max" else score, loss


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
