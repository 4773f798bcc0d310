"""Hyperparameters and scores as Plotly figures."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)
from optuna.trial import TrialState
from plotly.colors import sample_colorscale

from delta_tune.config import FIRST_MODEL, METRICS, UserError
from delta_tune.filesystem.untrusted import shown
from delta_tune.report.figures import GREY, SCALE, empty_figure, method_colours, trial_label, with_axes
from delta_tune.results.layout import STUDY_FILE, TRIALS_FILE
from delta_tune.results.tables import StudyTables
from delta_tune.search.optuna_storage import silence_optuna
from delta_tune.spaces.validation import BACKBONE, contains

METHOD = "regularizer"
ATTENTIVE = "delta"
"""Trials of it run as another method where their attention is missing."""
MIN_TRIALS = 10
"""Completed trials; with fewer, importances are chance."""
Parameters = Mapping[str, BaseDistribution]


def read_parameters(distributions: Mapping[str, Any], tables: StudyTables) -> Parameters:
    """The distributions that `study.json` has, which the trials' values must fit.

    Raises:
        UserError: a distribution is none, or a trial has a value that it cannot have.
    """
    parameters: dict[str, BaseDistribution] = {}
    for name, content in distributions.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                parameters[name] = json_to_distribution(json.dumps(content))
        except (KeyError, TypeError, ValueError, ArithmeticError, Warning) as error:
            place, cause = f"distributions.{shown(name)}", f"{error!s:.200}"
            raise UserError(
                f"{tables.folder / STUDY_FILE} is damaged ({place}: {cause}); start a new study."
            ) from error
    for number, row in tables.trials.items():
        # A trial of delta runs with another method if attention is missing
        known = {**parameters, METHOD: CategoricalDistribution(sorted({row["config.regularizer"], ATTENTIVE}))}
        for name, value in {**tables.params(number), **_network(tables, number)}.items():
            if name in known and not _fits(known[name], value):
                raise UserError(
                    f"{tables.folder / TRIALS_FILE} is damaged (trial {number} has {shown(name)}={value!a:.60}, which "
                    f"{STUDY_FILE} excludes); start a new study."
                )
    return parameters


def pairs(tables: StudyTables, parameters: Parameters) -> go.Figure | None:
    """Scatter plot of any two hyperparameters, coloured by the score; two menus choose them."""
    names = list(parameters)
    if not names or not any(tables.epochs.values()):
        return None
    first, second = ("alpha", "lr") if {"alpha", "lr"} <= set(names) else (names[0], names[min(1, len(names) - 1)])
    groups: dict[str, list[int]] = {"completed": [], "ended early": [], "diverged or failed": []}
    kinds = {"completed": "completed", "diverged": "diverged or failed", "failed": "diverged or failed"}
    for number, row in tables.searched.items():
        if row["epochs"] or row["state"] in kinds:
            groups[kinds.get(row["state"], "ended early")].append(number)
    values = {name: [[_coordinate(tables, n, name) for n in group] for group in groups.values()] for name in names}
    figure = empty_figure()
    scores = [tables.best_row(n)[tables.metric] for n in groups["completed"]]
    looks = (
        {"color": scores, "colorscale": SCALE, "size": 12, "showscale": True, "colorbar": {"title": tables.metric}},
        {"color": GREY, "size": 8, "symbol": "circle-open"},
        {"color": GREY, "size": 8, "symbol": "x"},
    )
    for index, ((name, group), marker) in enumerate(zip(groups.items(), looks, strict=True)):
        figure.add_scatter(
            x=values[first][index],
            y=values[second][index],
            mode="markers",
            marker=marker,
            name=name,
            text=[trial_label(tables, n) for n in group],
            hovertemplate="%{text}<br>%{x}, %{y}",
        )
    menus = []
    for axis, chosen, left in (("y", second, 0.0), ("x", first, 0.6)):
        buttons = [
            {
                "label": f"{axis}: {name}",
                "method": "update",
                "args": [{axis: values[name]}, {f"{axis}axis.{k}": v for k, v in _axis(name, parameters).items()}],
            }
            for name in names
        ]
        menus.append(
            {"buttons": buttons, "active": names.index(chosen), "x": left, "xanchor": "left", "y": 1.22}
            | {"bgcolor": "rgba(128,128,128,0.15)", "font": {"color": "#777"}}
        )
    figure.update_layout(updatemenus=menus, height=520, margin={"t": 110})
    return with_axes(figure, _axis(first, parameters), _axis(second, parameters))


def parallel(tables: StudyTables, parameters: Parameters) -> go.Figure | None:
    """Parallel coordinates: one line per completed trial of the best trial's method, ending at its score.

    Optuna's version assumes a white page; Plotly's needs WebGL, which not every browser has.
    """
    ranked = [number for number in tables.ranked() if number in tables.searched]
    if not ranked:
        return None
    numbers = tables.ranked(tables.trials[ranked[0]]["config.regularizer"])
    names = [name for name in parameters if name != METHOD and all(name in _coordinates(tables, n) for n in numbers)]
    if len(numbers) < 2 or not names:
        return None
    scores = [tables.best_row(n)[tables.metric] for n in numbers]
    columns = {name: [_coordinates(tables, n)[name] for n in numbers] for name in names} | {tables.metric: scores}
    heights = [_heights(values, parameters.get(name)) for name, values in columns.items()]
    shares = _heights(scores, None) if METRICS[tables.metric] == "max" else [1 - s for s in _heights(scores, None)]
    figure = empty_figure()
    for row in reversed(range(len(numbers))):  # the best one on top
        figure.add_scatter(
            x=list(columns),
            y=[each[row] for each in heights],
            mode="lines",
            line={"color": sample_colorscale(SCALE, shares[row])[0], "width": 1.5 + 2.5 * (row == 0)},
            name=f"trial {numbers[row]}",
            hovertext=trial_label(tables, numbers[row]),
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
    return with_axes(figure, {"type": "category", "side": "top"}, {"visible": False, "range": [-0.04, 1.04]})


def importances(tables: StudyTables, parameters: Parameters, *, thorough: bool) -> go.Figure | None:
    """Importance of each hyperparameter by Optuna's evaluators; `thorough` adds fANOVA.

    Only hyperparameters that all completed trials have are included.
    """
    study = optuna_study(tables, parameters)
    done = study.get_trials(states=[TrialState.COMPLETE])
    common = [name for name in parameters if all(name in trial.params for trial in done)]
    common = [name for name in common if len({str(trial.params[name]) for trial in done}) > 1]
    if len(done) < MIN_TRIALS or len(common) < 2:
        return None
    # Imports scikit-learn and pandas, which takes seconds
    from optuna import importance as by_optuna

    evaluators: dict[str, by_optuna.BaseImportanceEvaluator] = {"PED-ANOVA": by_optuna.PedAnovaImportanceEvaluator()}
    if thorough and importlib.util.find_spec("sklearn") is not None:
        evaluators["fANOVA"] = by_optuna.FanovaImportanceEvaluator(n_trees=32, seed=0)
    figure = empty_figure()
    for (label, evaluator), colour in zip(evaluators.items(), ("#0072b2", "#e69f00"), strict=False):
        importance = by_optuna.get_param_importances(study, evaluator=evaluator, params=common)
        figure.add_bar(
            x=[importance[name] for name in common], y=common, orientation="h", name=label, marker={"color": colour}
        )
    figure.update_layout(height=140 + 44 * len(common), barmode="group")
    return with_axes(figure, {"title": "share of the variation", "tickformat": ".0%"}, {"automargin": True})


def optuna_study(tables: StudyTables, parameters: Parameters) -> optuna.Study:
    """The trials as an Optuna study for its evaluators: complete, pruned or failed.

    The method counts as a hyperparameter if there are several.
    """
    several = [method for method in method_colours(tables) if method != FIRST_MODEL]
    known = {**parameters, METHOD: CategoricalDistribution(several)} if len(several) > 1 else dict(parameters)
    coordinates = {number: _coordinates(tables, number) for number in tables.searched}
    for each in coordinates.values():  # one range for all trials: those of methods and networks may differ
        known |= {name: _widened(known[name], value) for name, value in each.items() if name in known}
    with silence_optuna():
        study = optuna.create_study(direction="maximize" if METRICS[tables.metric] == "max" else "minimize")
    for number, row in tables.searched.items():
        params = {name: value for name, value in coordinates[number].items() if name in known}
        state = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(row["state"], TrialState.FAIL)
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=tables.best_row(number)[tables.metric] if state == TrialState.COMPLETE else None,
                params=params,
                distributions={name: known[name] for name in params},
                intermediate_values={each["epoch"]: each[tables.metric] for each in tables.epochs[number]},
            )
        )
    return study


def _heights(values: Sequence[Any], distribution: BaseDistribution | None) -> list[float]:
    """Positions of `values` on an axis from 0 (lowest) to 1 (highest)."""
    if isinstance(distribution, CategoricalDistribution):
        choices = [str(choice) for choice in distribution.choices]
        values = [choices.index(str(value)) for value in values]
    elif getattr(distribution, "log", False):
        values = [math.log(value) for value in values]
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _fits(distribution: BaseDistribution, value: Any) -> bool:
    """Whether `value` could have been drawn, in this branch of the space or in another."""
    if isinstance(distribution, CategoricalDistribution):
        return contains(distribution, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if getattr(distribution, "log", False) and value <= 0:
        return False
    try:
        return contains(_widened(distribution, value), value)
    except ArithmeticError:  # more steps than a float can count
        return False


def _widened(distribution: BaseDistribution, value: Any) -> BaseDistribution:
    """The distribution, widened if needed: the range recorded for another branch may not include `value`."""
    if (
        isinstance(distribution, FloatDistribution | IntDistribution)
        and not distribution.low <= value <= distribution.high
    ):
        low, high = min(distribution.low, value), max(distribution.high, value)
        return type(distribution)(low, high, log=distribution.log)
    return distribution


def _coordinates(tables: StudyTables, number: int) -> dict[str, Any]:
    method = tables.trials[number]["config.regularizer"]
    return {**tables.params(number), METHOD: method, **_network(tables, number)}


def _network(tables: StudyTables, number: int) -> dict[str, str]:
    """The label of a trial's network as a coordinate: networks that take turns are not sampled."""
    label = tables.backbone(number)
    return {} if label is None else {BACKBONE: label}


def _coordinate(tables: StudyTables, number: int, name: str) -> Any:
    coordinates = _coordinates(tables, number)
    value = coordinates.get(name)
    return value if name not in coordinates or isinstance(value, int | float | str) else str(value)


def _axis(name: str, parameters: Parameters) -> dict[str, Any]:
    distribution = parameters[name]
    log = getattr(distribution, "log", False)
    kind = "category" if isinstance(distribution, CategoricalDistribution) else "log" if log else "linear"
    return {"title.text": name, "type": kind, "dtick": "D2" if log else None}
