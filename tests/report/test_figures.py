from __future__ import annotations

import dataclasses
import datetime
import itertools
import json

import numpy as np
import pytest
from helpers.studies import DISTRIBUTIONS, MAX_EPOCHS, add_trial, rename_method, trials_of_two_networks
from optuna.distributions import CategoricalDistribution, distribution_to_json

from delta_tune.config import METHODS, UserError
from delta_tune.report import figures, hyperparameter_figures
from delta_tune.results.statistics import wilson_interval


def points(trace):
    return [(x, y) for x, y in zip(trace.x, trace.y, strict=True) if x is not None]


def test_learning_curves_show_every_epoch_of_every_trial_once(forty_trials):
    *curves, best = figures.learning_curves(forty_trials, []).data
    expected = [(row["epoch"], row["val_accuracy"]) for rows in forty_trials.epochs.values() for row in rows]
    assert sorted(point for trace in curves for point in points(trace)) == sorted(expected)
    assert [y for _, y in points(best)] == [row["val_accuracy"] for row in forty_trials.epochs[forty_trials.leader]]


def test_learning_curves_leave_trials_that_ended_early_grey(forty_trials):
    grey = next(t for t in figures.learning_curves(forty_trials, []).data if t.line.color == figures.GREY)
    early = [n for n, row in forty_trials.trials.items() if row["state"] != "completed"]
    assert len(points(grey)) == sum(len(forty_trials.epochs[n]) for n in early)


def test_learning_curves_leave_a_gap_between_trials_and_where_a_score_is_no_number(no_trials):
    add_trial(no_trials, 0, "completed")
    add_trial(no_trials, 1, "completed")
    no_trials.epochs[0][2]["val_accuracy"] = float("nan")
    (curve, _) = figures.learning_curves(no_trials, []).data
    assert [y is None for y in curve.y].count(True) == 3
    assert len(curve.x) == len(curve.text) == 2 * (MAX_EPOCHS + 1)


def test_learning_curves_mark_the_rungs(forty_trials):
    shapes = figures.learning_curves(forty_trials, [2, 5]).layout.shapes
    assert [shape.x0 for shape in shapes] == [2, 5]


def test_nothing_is_drawn_of_a_study_without_epochs(no_trials):
    add_trial(no_trials, 0, "failed", error="no")
    for drawn in (
        figures.learning_curves(no_trials, [2]),
        figures.methods(no_trials, None, 50),
        hyperparameter_figures.pairs(no_trials, DISTRIBUTIONS),
        hyperparameter_figures.parallel(no_trials, DISTRIBUTIONS),
        hyperparameter_figures.importances(no_trials, DISTRIBUTIONS, thorough=True),
        figures.timeline(no_trials),
        figures.attention([]),
    ):
        assert drawn is None


def test_methods_put_the_diamond_on_the_best_with_the_interval_of_its_images(forty_trials):
    drawn = figures.methods(forty_trials, None, 50)
    _, diamond = (trace for trace in drawn.data if trace.marker.color == METHODS["delta"].colour)
    best = max(
        max(row["val_accuracy"] for row in forty_trials.epochs[n])
        for n, row in forty_trials.trials.items()
        if row["state"] == "completed" and row["config.regularizer"] == "delta"
    )
    low, high = wilson_interval(best, 50)
    assert diamond.x == (best,)
    assert (best - diamond.error_x.arrayminus[0], best + diamond.error_x.array[0]) == pytest.approx((low, high))


def test_methods_of_a_confirmed_study_show_its_runs(forty_trials):
    scores = {"delta": [0.9, 0.8, 0.85], "l2": [0.7, 0.75, 0.72]}
    drawn = figures.methods(forty_trials, {"scores": scores, "metric": "val_accuracy"}, 50)
    dots, diamond = (trace for trace in drawn.data if trace.marker.color == METHODS["l2"].colour)
    assert list(dots.x) == scores["l2"]
    assert diamond.x[0] == pytest.approx(np.mean(scores["l2"]))
    assert diamond.error_x.array[0] == pytest.approx(np.std(scores["l2"], ddof=1))


def test_attention_weights_times_channels_are_one_on_average_and_sorted():
    weights = np.random.default_rng(0).dirichlet(np.ones(20))
    (curve,) = figures.attention([{"layer": "a", "estimator": "exact", "W": weights.tolist()}]).data
    assert np.mean(curve.y) == pytest.approx(1)
    assert list(curve.y) == sorted(curve.y, reverse=True)
    assert curve.x[-1] == 1


def test_confusion_shades_shares_of_the_true_class():
    (drawn,) = figures.confusion(np.array([[3, 1], [0, 0]]), ["a", "b"]).data
    np.testing.assert_allclose(drawn.z, [[0.75, 0.25], [0, 0]])


def test_timeline_has_no_two_trials_in_a_lane_at_a_time(forty_trials):
    bars = [
        (lane, datetime.datetime.fromisoformat(base).timestamp(), milliseconds / 1000)
        for trace in figures.timeline(forty_trials).data
        for lane, base, milliseconds in zip(trace.y, trace.base, trace.x, strict=True)
    ]
    assert len(bars) == sum(bool(row.get("ended")) for row in forty_trials.trials.values())
    for lane in {lane for lane, *_ in bars}:
        spans = sorted((began, began + seconds) for where, began, seconds in bars if where == lane)
        assert all(end <= start + 0.002 for (_, end), (start, _) in itertools.pairwise(spans))


def colours_in(figure, name):
    """The colours of the traces of that name."""
    traces = [trace.to_plotly_json() for trace in figure.data if trace.name == name]
    return {trace.get("line", {}).get("color") or trace["marker"]["color"] for trace in traces}


def test_methods_have_the_colours_of_the_table_in_its_order(forty_trials):
    assert list(figures.method_colours(forty_trials).items()) == [(m, METHODS[m].colour) for m in ("delta", "l2")]


def test_methods_that_the_table_lacks_come_last_with_colours_that_no_other_has(forty_trials):
    rename_method(forty_trials, "delta", "newer")
    (known, _), (other, colour) = figures.method_colours(forty_trials).items()
    assert (known, other) == ("l2", "newer")
    assert colour in figures.OTHER_COLOURS
    assert not set(figures.OTHER_COLOURS) & {figures.GREY, *(method.colour for method in METHODS.values())}


@pytest.mark.parametrize("in_table", [False, True])
def test_no_figure_leaves_a_sixth_method_out(forty_trials, monkeypatch, in_table):
    leading = forty_trials.trials[forty_trials.leader]["config.regularizer"]
    other = {"delta": "l2", "l2": "delta"}[leading]
    rename_method(forty_trials, leading, "sixth")
    expected = figures.OTHER_COLOURS[0]
    if in_table:
        expected = "#123456"
        monkeypatch.setitem(METHODS, "sixth", dataclasses.replace(METHODS["delta"], name="sixth", colour=expected))
    curves = figures.learning_curves(forty_trials, [])
    assert curves.data[-1].line.color == expected
    confirmed = {"scores": {"sixth": [0.9, 0.8], other: [0.7, 0.8]}, "metric": "val_accuracy"}
    for drawn in (
        curves,
        figures.methods(forty_trials, None, 50),
        figures.methods(forty_trials, confirmed, 50),
        figures.timeline(forty_trials),
    ):
        assert colours_in(drawn, "sixth") == {expected}
    distribution = hyperparameter_figures.optuna_study(forty_trials, DISTRIBUTIONS).trials[0].distributions
    assert set(distribution["regularizer"].choices) == {"sixth", other}
    assert hyperparameter_figures.importances(forty_trials, DISTRIBUTIONS, thorough=False) is not None


OTHER = "the <b>other</b>"


@pytest.fixture
def two_networks(no_trials):
    trials_of_two_networks(no_trials, 32)
    return no_trials


def with_networks():
    return DISTRIBUTIONS | {"backbone": CategoricalDistribution(["one", OTHER])}


def test_learning_curves_of_another_network_are_dashed_in_the_methods_colour(two_networks):
    *curves, _ = figures.learning_curves(two_networks, []).data
    by_name = {trace.name: trace.line for trace in curves}
    assert by_name.keys() == {f"{method} on {label}" for method in ("delta", "l2") for label in ("one", OTHER)}
    assert by_name[f"l2 on {OTHER}"].dash == "dash"
    assert by_name["l2 on one"].dash is None
    assert by_name["l2 on one"].color == by_name[f"l2 on {OTHER}"].color


def test_methods_have_a_row_for_each_network(two_networks):
    figure = figures.methods(two_networks, None, 50)
    assert set(figure.layout.yaxis.ticktext) == {
        f"{method} on {label}" for method in ("delta", "l2") for label in ("one", OTHER)
    }
    dots = next(trace for trace in figure.data if trace.name == f"l2 on {OTHER}")
    assert len(dots.x) == sum(two_networks.method(n) == f"l2 on {OTHER}" for n in two_networks.trials)


def test_confirmed_methods_have_one_row_whatever_their_network(two_networks):
    confirmation = {"metric": "val_accuracy", "scores": {"delta": [0.5, 0.6], "l2": [0.4, 0.5]}}
    assert set(figures.methods(two_networks, confirmation, 50).layout.yaxis.ticktext) == {"delta", "l2"}


def test_network_is_a_hyperparameter_of_the_plots_though_it_takes_turns(two_networks):
    assert all("backbone" not in two_networks.params(number) for number in two_networks.trials)
    parallel = hyperparameter_figures.parallel(two_networks, with_networks())
    assert "backbone" in parallel.data[0].x
    importances = hyperparameter_figures.importances(two_networks, with_networks(), thorough=False)
    assert "backbone" in importances.data[0].y
    menus = hyperparameter_figures.pairs(two_networks, with_networks()).layout.updatemenus
    assert any(button.label == "x: backbone" for menu in menus for button in menu.buttons)


def test_network_that_the_study_does_not_have_is_damage(two_networks):
    content = {"backbone": json.loads(distribution_to_json(CategoricalDistribution(["one", "two"])))}
    with pytest.raises(UserError, match=r"which study\.json excludes"):
        hyperparameter_figures.read_parameters(content, two_networks)


def test_attention_of_several_networks_is_told_apart():
    rows = [{"layer": "l", "estimator": "exact", "W": [0.5, 0.5], "backbone": label} for label in ("one", OTHER)]
    assert [trace.name for trace in figures.attention(rows).data] == ["one: l", f"{OTHER}: l"]
