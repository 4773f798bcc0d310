"""Plotly figures of a study's tables; the page sets the colours of text and background."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from delta_tune.config import METHODS, METRICS, Metric, visible
from delta_tune.console.escape import distinct_names
from delta_tune.results.statistics import wilson_interval
from delta_tune.results.tables import StudyTables

OTHER_COLOURS: Final = ("#f0e442", "#8c564b", "#7f5fc9", "#17becf", "#bcbd22")
"""Colours for methods that `METHODS` lacks, from a study of another version."""
GREY, LINE = "#9a9a9a", "rgba(140, 140, 140, 0.3)"
DASHES: Final = ("dash", "dot", "dashdot")
"""Of the learning curves of other networks than the first."""
SCALE = "Viridis"
LAYOUT: Final = {
    "template": "none",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 64, "r": 24, "t": 24, "b": 56},
    "height": 420,
    "hoverlabel": {"namelength": -1},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
}


def percent(metric: Metric) -> dict[str, Any]:
    """Axis options for a metric."""
    return {"tickformat": ".0%"} if METRICS[metric] == "max" else {}


def method_colours(tables: StudyTables) -> dict[str, str]:
    """Methods that were tried → their colours, in the order of `METHODS`; unknown ones come last."""
    tried = {row["config.regularizer"] for row in tables.trials.values()}
    known = {name: method.colour for name, method in METHODS.items() if name in tried}
    return known | dict(zip(sorted(tried - known.keys()), itertools.cycle(OTHER_COLOURS), strict=False))


def kinds_of_trials(tables: StudyTables) -> dict[str, tuple[str, int, list[int]]]:
    """Method, in a study of several networks with the network → its colour, the network's place, and its trials.

    The trials are those that completed, best first.
    """
    networks, ranked = list(dict.fromkeys(map(tables.backbone, sorted(tables.trials)))), tables.ranked()
    found: dict[str, tuple[str, int, list[int]]] = {}
    for method, colour in method_colours(tables).items():
        for place, network in enumerate(networks):
            tried = [
                number
                for number, row in tables.trials.items()
                if row["config.regularizer"] == method and tables.backbone(number) == network
            ]
            if tried:
                found[tables.method(tried[0])] = colour, place, [number for number in ranked if number in set(tried)]
    return found


def learning_curves(tables: StudyTables, rungs: Sequence[int]) -> go.Figure | None:
    """Learning curves of all trials; trials that did not complete are grey."""
    if not any(tables.epochs.values()):
        return None
    figure, metric, colours = empty_figure(), tables.metric, method_colours(tables)
    rest = [n for n, row in tables.trials.items() if row["state"] != "completed"]
    groups = [("not completed", rest, GREY, 0)]
    groups += [(name, numbers, colour, place) for name, (colour, place, numbers) in kinds_of_trials(tables).items()]
    for name, numbers, colour, place in groups:
        x: list[int | None] = []
        y: list[float | None] = []
        said: list[str] = []
        for number in numbers:
            rows = tables.epochs[number]
            x += [*(row["epoch"] for row in rows), None]
            y += [*(_finite(row[metric]) for row in rows), None]
            said += [f"trial {number} ({tables.trials[number]['state']})"] * (len(rows) + 1)
        if said:
            line = {"color": colour, "width": 1.2} | ({"dash": DASHES[(place - 1) % len(DASHES)]} if place else {})
            thin = {"mode": "lines+markers", "line": line, "marker": {"size": 4}}
            figure.add_scatter(
                x=x, y=y, text=said, name=name, hovertemplate="%{text}<br>epoch %{x}: %{y}", opacity=0.75, **thin
            )
    if tables.leader is not None:
        rows = tables.epochs[tables.leader]
        figure.add_scatter(
            x=[row["epoch"] for row in rows],
            y=[_finite(row[metric]) for row in rows],
            name=f"best (trial {tables.leader})",
            mode="lines",
            line={"color": colours[tables.trials[tables.leader]["config.regularizer"]], "width": 4},
        )
    for epoch in rungs:
        figure.add_vline(x=epoch, line={"color": GREY, "dash": "dot", "width": 1})
    return with_axes(figure, {"title": "epoch"}, {"title": metric, **percent(metric)})


def methods(tables: StudyTables, confirmation: Mapping[str, Any] | None, num_val: int) -> go.Figure | None:
    """One point per run and method: the confirmation's runs, or the search's completed trials, by network too.

    Args:
        tables: the study's tables.
        confirmation: as in `study.json`.
        num_val: images in the validation split, for the interval of the best trial.
    """
    figure, colours, scores_of = empty_figure(), dict[str, str](), dict[str, Sequence[float]]()
    if confirmation:
        colours = method_colours(tables)
        scores_of = {method: confirmation["scores"].get(method, []) for method in colours}
    else:
        for kind, (colour, _, numbers) in kinds_of_trials(tables).items():
            colours[kind], scores_of[kind] = colour, [tables.best_row(n)[tables.metric] for n in numbers]
    for place, (method, colour) in enumerate(colours.items()):
        scores = scores_of[method]
        if not scores:
            continue
        spread = np.linspace(-0.15, 0.15, len(scores)) if len(scores) > 1 else [0.0]
        dots = {"color": colour, "size": 8, "opacity": 0.5}
        figure.add_scatter(
            x=list(scores), y=[place + shift for shift in spread], mode="markers", marker=dots, name=method
        )
        middle, bar = _middle(scores, bool(confirmation), tables.metric, num_val)
        strong = {"color": colour, "size": 13, "symbol": "diamond", "line": {"color": GREY, "width": 1}}
        figure.add_scatter(x=[middle], y=[place], error_x=bar, mode="markers", marker=strong, showlegend=False)
    if not figure.data:
        return None
    names = list(colours)
    metric: Metric = confirmation["metric"] if confirmation else tables.metric
    figure.update_layout(height=140 + 60 * len(names), showlegend=False)
    ticks = {
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "range": [-0.6, len(names) - 0.4],
        "automargin": True,
    }
    return with_axes(figure, {"title": metric, **percent(metric)}, ticks)


def attention(rows: Iterable[Mapping[str, Any]]) -> go.Figure | None:
    """Sorted attention weights of each layer times its channels; 1 means no preference."""
    figure = empty_figure()
    for row in rows:
        weights = np.sort(np.asarray(row["W"], dtype=float))[::-1] * len(row["W"])
        share = (np.arange(len(weights)) + 1) / len(weights)
        name = f"{row['backbone']}: " if row.get("backbone") else ""
        name += row["layer"] + ("" if row["estimator"] == "exact" else f" ({row['estimator']})")
        figure.add_scatter(x=share, y=weights, name=name, mode="lines")
    if not figure.data:
        return None
    figure.add_hline(y=1, line={"color": GREY, "dash": "dot", "width": 1})
    x = {"title": "channels, the most attended first", "tickformat": ".0%"}
    return with_axes(figure, x, {"title": "weight × channels", "type": "log", "dtick": "D2"})


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> go.Figure:
    """Confusion matrix: rows are true classes, columns predictions; shares per row, counts in the labels.

    Args:
        matrix: int (K, K).
        classes: K names.
    """
    rows = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    names = distinct_names(classes, visible)  # Plotly takes categories of one name for one
    numbers = {"text": matrix, "texttemplate": "%{text}"} if len(classes) <= 15 else {}
    figure = empty_figure()
    figure.add_heatmap(
        z=rows,
        x=names,
        y=names,
        customdata=matrix,
        colorscale=[[0, "rgba(0, 114, 178, 0)"], [1, "rgba(0, 114, 178, 1)"]],
        zmin=0,
        zmax=1,
        showscale=False,
        hovertemplate="true %{y}, predicted %{x}: %{customdata}",
        name="",
        **numbers,
    )
    figure.update_layout(height=min(900, 220 + 28 * len(classes)))
    upright = {"autorange": "reversed", "type": "category", "title": "true", "automargin": True}
    return with_axes(figure, {"title": "predicted", "type": "category", "automargin": True}, upright)


def timeline(tables: StudyTables) -> go.Figure | None:
    """Timeline of trials, packed into as few lanes as possible."""
    rows = [row for row in tables.trials.values() if row.get("began") and row.get("ended")]
    if not rows:
        return None
    lanes: list[float] = []
    figure, colours = empty_figure(), method_colours(tables)
    bars: dict[str, list[tuple[float, float, int, str]]] = {}
    for row in sorted(rows, key=lambda row: row["began"]):
        lane = next((place for place, end in enumerate(lanes) if end <= row["began"]), len(lanes))
        lanes[lane:] = [row["ended"], *lanes[lane + 1 :]]
        kind = row["config.regularizer"] if row["state"] == "completed" else "not completed"
        bars.setdefault(kind, []).append((row["began"], row["ended"], lane, trial_label(tables, row["number"])))
    for kind, each in bars.items():
        figure.add_bar(
            base=[_moment(began) for began, *_ in each],
            x=[1000 * (ended - began) for began, ended, *_ in each],
            y=[lane for *_, lane, _ in each],
            text=[said for *_, said in each],
            textposition="none",
            hovertemplate="%{text}",
            orientation="h",
            name=kind,
            marker={"color": colours.get(kind, GREY), "line": {"width": 1, "color": "rgba(255,255,255,0.6)"}},
        )
    figure.update_layout(barmode="overlay", height=140 + 26 * min(len(lanes), 24))
    return with_axes(figure, {"type": "date", "title": "time (UTC)"}, {"title": "slot", "dtick": 1, "tick0": 0})


def with_axes(figure: go.Figure, x: Mapping[str, Any], y: Mapping[str, Any]) -> go.Figure:
    """Set axis options of a figure."""
    common = {"gridcolor": LINE, "zerolinecolor": LINE, "linecolor": LINE}
    for update, axis in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
        update({**common, **axis})
    return figure


def empty_figure() -> go.Figure:
    """An empty figure with the page's layout."""
    return go.Figure(layout=LAYOUT)


def _middle(scores: Sequence[float], confirmed: bool, metric: Metric, num_val: int) -> tuple[float, dict[str, Any]]:
    """A method's marker and error bar: mean and deviation over seeds, or the best trial with its interval."""
    if confirmed:
        middle = float(np.mean(scores))
        return middle, {"array": [float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0]}
    middle = scores[0]
    if metric != "val_accuracy":
        return middle, {}
    low, high = wilson_interval(middle, num_val)
    return middle, {"array": [high - middle], "arrayminus": [middle - low], "symmetric": False}


def trial_label(tables: StudyTables, number: int) -> str:
    """One line that describes a trial."""
    row = tables.trials[number]
    score = row.get(f"best_{tables.metric}")
    told = "no epoch" if score is None else f"{tables.metric} {score:.4g} after {row['epochs']} epochs"
    return f"trial {number}, {tables.method(number)}, {row['state']}: {told}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
