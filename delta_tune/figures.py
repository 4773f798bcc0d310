"""A study's tables as Plotly figures; colours of text and background are the page's."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import TrialState
from plotly.colors import sample_colorscale

from delta_tune.config import METRICS, Metric
from delta_tune.evaluation import wilson_interval
from delta_tune.results import StudyTables
from delta_tune.storage import quiet_optuna

COLOURS: Final = {  # Okabe and Ito's, which the colour-blind can tell apart
    "delta": "#0072b2",
    "delta_uniform": "#56b4e9",
    "l2_sp": "#e69f00",
    "l2": "#d55e00",
    "l2_fe": "#cc79a7",
}
GREY, LINE = "#9a9a9a", "rgba(140, 140, 140, 0.3)"
SCALE = "Viridis"
METHOD = "regularizer"
MIN_TRIALS = 10
"""Of full budget; of fewer the importance of a hyperparameter is chance."""
LAYOUT: Final = {
    "template": "none",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 64, "r": 24, "t": 24, "b": 56},
    "height": 420,
    "hoverlabel": {"namelength": -1},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
}
Parameters = Mapping[str, BaseDistribution]


def percent(metric: Metric) -> dict[str, Any]:
    """How an axis shows this metric."""
    return {"tickformat": ".0%"} if METRICS[metric] == "max" else {}


def methods_of(tables: StudyTables) -> list[str]:
    """The methods that were tried, in the colours' order."""
    found = {row["config.regularizer"] for row in tables.trials.values()}
    return [name for name in COLOURS if name in found]


def learning_curves(tables: StudyTables, rungs: Sequence[int]) -> go.Figure | None:
    """The metric after each epoch of every trial; those that did not come to their full budget are grey."""
    if not any(tables.epochs.values()):
        return None
    figure, metric = _figure(), tables.metric
    rest = [n for n, row in tables.trials.items() if row["state"] != "completed"]
    groups = [("not completed", rest, GREY)]
    groups += [(method, tables.ranked(method), COLOURS[method]) for method in methods_of(tables)]
    for name, numbers, colour in groups:
        x: list[int | None] = []
        y: list[float | None] = []
        said: list[str] = []
        for number in numbers:
            rows = tables.epochs[number]
            x += [*(row["epoch"] for row in rows), None]
            y += [*(_finite(row[metric]) for row in rows), None]
            said += [f"trial {number} ({tables.trials[number]['state']})"] * (len(rows) + 1)
        if said:
            thin = {"mode": "lines+markers", "line": {"color": colour, "width": 1.2}, "marker": {"size": 4}}
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
            line={"color": COLOURS[tables.trials[tables.leader]["config.regularizer"]], "width": 4},
        )
    for epoch in rungs:
        figure.add_vline(x=epoch, line={"color": GREY, "dash": "dot", "width": 1})
    return _axes(figure, {"title": "epoch"}, {"title": metric, **percent(metric)})


def methods(tables: StudyTables, confirmation: Mapping[str, Any] | None, num_val: int) -> go.Figure | None:
    """A point per run and method: of the confirmation's seeds, or of the search's trials of full budget.

    Args:
        tables: of the study.
        confirmation: as in `study.json`.
        num_val: images of the validation split, by which the interval of a search's best is reckoned.
    """
    figure = _figure()
    for place, method in enumerate(methods_of(tables)):
        if confirmation:
            scores = confirmation["scores"].get(method, [])
        else:
            scores = [tables.best_row(n)[tables.metric] for n in tables.ranked(method)]
        if not scores:
            continue
        spread = np.linspace(-0.15, 0.15, len(scores)) if len(scores) > 1 else [0.0]
        dots = {"color": COLOURS[method], "size": 8, "opacity": 0.5}
        figure.add_scatter(
            x=list(scores), y=[place + shift for shift in spread], mode="markers", marker=dots, name=method
        )
        middle, bar = _middle(scores, bool(confirmation), tables.metric, num_val)
        strong = {"color": COLOURS[method], "size": 13, "symbol": "diamond", "line": {"color": GREY, "width": 1}}
        figure.add_scatter(x=[middle], y=[place], error_x=bar, mode="markers", marker=strong, showlegend=False)
    if not figure.data:
        return None
    names = methods_of(tables)
    metric: Metric = confirmation["metric"] if confirmation else tables.metric
    figure.update_layout(height=140 + 60 * len(names), showlegend=False)
    ticks = {
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "range": [-0.6, len(names) - 0.4],
        "automargin": True,
    }
    return _axes(figure, {"title": metric, **percent(metric)}, ticks)


def pairs(tables: StudyTables, parameters: Parameters) -> go.Figure | None:
    """Any hyperparameter against any other, coloured by the score; two menus choose."""
    names = list(parameters)
    if not names or not any(tables.epochs.values()):
        return None
    first, second = ("alpha", "lr") if {"alpha", "lr"} <= set(names) else (names[0], names[min(1, len(names) - 1)])
    groups = {
        "full budget": [n for n, row in tables.trials.items() if row["state"] == "completed"],
        "ended early": [n for n, row in tables.trials.items() if row["state"] != "completed" and row["epochs"]],
        "diverged or failed": [n for n, row in tables.trials.items() if row["state"] in ("diverged", "failed")],
    }
    groups["ended early"] = [n for n in groups["ended early"] if n not in groups["diverged or failed"]]
    values = {name: [[_coordinate(tables, n, name) for n in group] for group in groups.values()] for name in names}
    figure = _figure()
    scores = [tables.best_row(n)[tables.metric] for n in groups["full budget"]]
    looks = (
        {"color": scores, "colorscale": SCALE, "size": 12, "showscale": True, "colorbar": {"title": tables.metric}},
        {"color": GREY, "size": 8, "symbol": "circle-open"},
        {"color": GREY, "size": 8, "symbol": "x"},
    )
    for place, ((name, group), marker) in enumerate(zip(groups.items(), looks, strict=True)):
        figure.add_scatter(
            x=values[first][place],
            y=values[second][place],
            mode="markers",
            marker=marker,
            name=name,
            text=[_said(tables, n) for n in group],
            hovertemplate="%{text}<br>%{x}, %{y}",
        )
    menus = []
    for axis, shown, left in (("y", second, 0.0), ("x", first, 0.6)):
        buttons = [
            {
                "label": f"{axis}: {name}",
                "method": "update",
                "args": [{axis: values[name]}, {f"{axis}axis.{k}": v for k, v in _axis(name, parameters).items()}],
            }
            for name in names
        ]
        menus.append(
            {"buttons": buttons, "active": names.index(shown), "x": left, "xanchor": "left", "y": 1.22}
            | {"bgcolor": "rgba(128,128,128,0.15)", "font": {"color": "#777"}}
        )
    figure.update_layout(updatemenus=menus, height=520, margin={"t": 110})
    return _axes(figure, _axis(first, parameters), _axis(second, parameters))


def parallel(tables: StudyTables, parameters: Parameters) -> go.Figure | None:
    """A line for each trial of the best trial's method, through its hyperparameters to its score.

    Optuna's is drawn for white paper, and Plotly's own needs WebGL, which not every browser has.
    """
    if tables.leader is None:
        return None
    method = tables.trials[tables.leader]["config.regularizer"]
    numbers = tables.ranked(method)
    names = [name for name in parameters if name != METHOD and all(name in tables.params(n) for n in numbers)]
    if len(numbers) < 2 or not names:
        return None
    scores = [tables.best_row(n)[tables.metric] for n in numbers]
    columns = {name: [tables.params(n)[name] for n in numbers] for name in names} | {tables.metric: scores}
    heights = [_heights(values, parameters.get(name)) for name, values in columns.items()]
    shares = _heights(scores, None) if METRICS[tables.metric] == "max" else [1 - s for s in _heights(scores, None)]
    figure = _figure()
    for row in reversed(range(len(numbers))):  # the best one on top
        figure.add_scatter(
            x=list(columns),
            y=[each[row] for each in heights],
            mode="lines",
            line={"color": sample_colorscale(SCALE, shares[row])[0], "width": 1.5 + 2.5 * (row == 0)},
            name=f"trial {numbers[row]}",
            hovertext=_said(tables, numbers[row]),
            customdata=[_number(values[row]) for values in columns.values()],
            hovertemplate="%{hovertext}<br>%{x} %{customdata}<extra></extra>",
            opacity=0.8,
        )
    for (name, values), places in zip(columns.items(), heights, strict=True):
        figure.add_vline(x=name, line={"color": GREY, "width": 1})
        for place, value in {round(place, 6): value for place, value in zip(places, values, strict=True)}.items():
            if place in (0, 1) or isinstance(parameters.get(name), CategoricalDistribution):
                figure.add_annotation(x=name, y=place, text=_number(value), showarrow=False, xshift=8, xanchor="left")
    figure.update_layout(showlegend=False, margin={"r": 80})
    return _axes(figure, {"type": "category", "side": "top"}, {"visible": False, "range": [-0.04, 1.04]})


def importances(tables: StudyTables, parameters: Parameters, *, thorough: bool) -> go.Figure | None:
    """How much of the scores' variation Optuna's evaluators give to each hyperparameter; `thorough` adds fANOVA.

    Of the hyperparameters that all trials of full budget have.
    """
    with quiet_optuna():
        study = optuna_study(tables, parameters)
        done = study.get_trials(states=[TrialState.COMPLETE])
        common = [name for name in parameters if all(name in trial.params for trial in done)]
        common = [name for name in common if len({str(trial.params[name]) for trial in done}) > 1]
        if len(done) < MIN_TRIALS or len(common) < 2:
            return None
        evaluators: dict[str, BaseImportanceEvaluator] = {"PED-ANOVA": PedAnovaImportanceEvaluator()}
        if thorough and importlib.util.find_spec("sklearn") is not None:
            evaluators["fANOVA"] = FanovaImportanceEvaluator(n_trees=32, seed=0)
        figure = _figure()
        for (name, evaluator), colour in zip(evaluators.items(), ("#0072b2", "#e69f00"), strict=False):
            found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=common)
            figure.add_bar(
                x=[found[each] for each in common], y=common, orientation="h", name=name, marker={"color": colour}
            )
    figure.update_layout(height=140 + 44 * len(common), barmode="group")
    return _axes(figure, {"title": "share of the variation", "tickformat": ".0%"}, {"automargin": True})


def attention(rows: Iterable[Mapping[str, Any]]) -> go.Figure | None:
    """The sorted weights of each layer, times its channels: 1 is what every channel has where none is preferred."""
    figure = _figure()
    for row in rows:
        weights = np.sort(np.asarray(row["W"], dtype=float))[::-1] * len(row["W"])
        share = (np.arange(len(weights)) + 1) / len(weights)
        name = row["layer"] + ("" if row["estimator"] == "exact" else f" ({row['estimator']})")
        figure.add_scatter(x=share, y=weights, name=name, mode="lines")
    if not figure.data:
        return None
    figure.add_hline(y=1, line={"color": GREY, "dash": "dot", "width": 1})
    x = {"title": "channels, the most attended first", "tickformat": ".0%"}
    return _axes(figure, x, {"title": "weight × channels", "type": "log", "dtick": "D2"})


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> go.Figure:
    """Rows are the true classes, columns the predicted ones; shares of a row, with the counts in the labels.

    Args:
        matrix: int (K, K).
        classes: K names.
    """
    rows = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    numbers = {"text": matrix, "texttemplate": "%{text}"} if len(classes) <= 15 else {}
    figure = _figure()
    figure.add_heatmap(
        z=rows,
        x=list(classes),
        y=list(classes),
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
    return _axes(figure, {"title": "predicted", "type": "category", "automargin": True}, upright)


def timeline(tables: StudyTables) -> go.Figure | None:
    """When each trial ran, packed into as few lanes as there were at a time."""
    rows = [row for row in tables.trials.values() if row.get("began") and row.get("ended")]
    if not rows:
        return None
    lanes: list[float] = []
    figure = _figure()
    bars: dict[str, list[tuple[float, float, int, str]]] = {}
    for row in sorted(rows, key=lambda row: row["began"]):
        lane = next((place for place, end in enumerate(lanes) if end <= row["began"]), len(lanes))
        lanes[lane:] = [row["ended"], *lanes[lane + 1 :]]
        kind = row["config.regularizer"] if row["state"] == "completed" else "not completed"
        bars.setdefault(kind, []).append((row["began"], row["ended"], lane, _said(tables, row["number"])))
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
            marker={"color": COLOURS.get(kind, GREY), "line": {"width": 1, "color": "rgba(255,255,255,0.6)"}},
        )
    figure.update_layout(barmode="overlay", height=140 + 26 * min(len(lanes), 24))
    return _axes(figure, {"type": "date", "title": "time (UTC)"}, {"title": "slot", "dtick": 1, "tick0": 0})


def optuna_study(tables: StudyTables, parameters: Parameters) -> optuna.Study:
    """The trials as Optuna's, for its evaluators: complete, pruned, or failed.

    The method is a hyperparameter too where there are several.
    """
    several = methods_of(tables)
    known = {**parameters, METHOD: CategoricalDistribution(several)} if len(several) > 1 else dict(parameters)
    with quiet_optuna():
        study = optuna.create_study(direction="maximize" if METRICS[tables.metric] == "max" else "minimize")
    for number, row in tables.trials.items():
        params = {k: v for k, v in _coordinates(tables, number).items() if k in known}
        state = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(row["state"], TrialState.FAIL)
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=tables.best_row(number)[tables.metric] if state == TrialState.COMPLETE else None,
                params=params,
                distributions={name: _widened(known[name], value) for name, value in params.items()},
                intermediate_values={each["epoch"]: each[tables.metric] for each in tables.epochs[number]},
            )
        )
    return study


def _heights(values: Sequence[Any], distribution: BaseDistribution | None) -> list[float]:
    """Where values stand on an axis from the lowest, 0, to the highest, 1."""
    if isinstance(distribution, CategoricalDistribution):
        choices = [str(choice) for choice in distribution.choices]
        values = [choices.index(str(value)) for value in values]
    elif getattr(distribution, "log", False):
        values = [math.log(value) for value in values]
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _widened(distribution: BaseDistribution, value: Any) -> BaseDistribution:
    """A range of another branch of the space may not hold this value."""
    if (
        isinstance(distribution, FloatDistribution | IntDistribution)
        and not distribution.low <= value <= distribution.high
    ):
        low, high = min(distribution.low, value), max(distribution.high, value)
        return type(distribution)(low, high, log=distribution.log)
    return distribution


def _coordinates(tables: StudyTables, number: int) -> dict[str, Any]:
    return {METHOD: tables.trials[number]["config.regularizer"], **tables.params(number)}


def _coordinate(tables: StudyTables, number: int, name: str) -> Any:
    value = _coordinates(tables, number).get(name)
    return value if value is None or isinstance(value, int | float | str) else str(value)


def _axis(name: str, parameters: Parameters) -> dict[str, Any]:
    distribution = parameters[name]
    log = getattr(distribution, "log", False)
    kind = "category" if isinstance(distribution, CategoricalDistribution) else "log" if log else "linear"
    return {"title.text": name, "type": kind, "dtick": "D2" if log else None}


def _axes(figure: go.Figure, x: Mapping[str, Any], y: Mapping[str, Any]) -> go.Figure:
    common = {"gridcolor": LINE, "zerolinecolor": LINE, "linecolor": LINE}
    for update, axis in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
        update({**common, **axis})
    return figure


def _figure() -> go.Figure:
    return go.Figure(layout=LAYOUT)


def _middle(scores: Sequence[float], confirmed: bool, metric: Metric, num_val: int) -> tuple[float, dict[str, Any]]:
    """What a method is judged by, and its error bar: mean and deviation of the seeds, or the best with its interval."""
    if confirmed:
        middle = float(np.mean(scores))
        return middle, {"array": [float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0]}
    middle = scores[0]
    if metric != "val_accuracy":
        return middle, {}
    low, high = wilson_interval(middle, num_val)
    return middle, {"array": [high - middle], "arrayminus": [middle - low], "symmetric": False}


def _said(tables: StudyTables, number: int) -> str:
    row = tables.trials[number]
    score = row.get(f"best_{tables.metric}")
    told = "no epoch" if score is None else f"{tables.metric} {score:.4g} after {row['epochs']} epochs"
    return f"trial {number}, {row['config.regularizer']}, {row['state']}: {told}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
