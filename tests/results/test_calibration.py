from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from delta_tune.results.calibration import confidence_threshold, expected_calibration_error, fit_temperature


def drawn(images=4000, classes=5, seed=0):
    """Logits, and labels drawn from their softmax: calibrated as they are."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (images, classes))
    return logits, np.array([rng.choice(classes, p=row) for row in softmax(logits, axis=1)])


def loss(logits, labels, temperature):
    return -log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_temperature_undoes_a_factor_of_calibrated_logits(factor):
    logits, labels = drawn()
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)


def test_no_temperature_of_a_fine_grid_is_likelier():
    logits, labels = drawn(images=60, seed=3)
    found = fit_temperature(logits.astype(np.float32), labels)
    grid = np.geomspace(0.05, 20, 3000)
    losses = [loss(logits, labels, temperature) for temperature in grid]
    assert loss(logits, labels, found) <= min(losses) + 1e-9
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=0.005)


def test_temperature_stays_in_its_range():
    logits, labels = drawn(images=300)
    assert fit_temperature(1e4 * logits, labels) == pytest.approx(20, rel=0.01)
    assert fit_temperature(1e-4 * logits, labels) == pytest.approx(0.05, rel=0.01)


def test_temperature_is_1_where_no_prediction_is_wrong():
    assert fit_temperature(np.eye(3), np.arange(3)) == 1.0


def of_confidence(*shares):
    """Two classes; class 0 is predicted with each of these probabilities."""
    return np.array([[share, 1 - share] for share in shares])


def test_calibration_error_is_the_weighted_mean_of_the_gaps():
    probabilities = of_confidence(0.52, 0.58, 0.93, 0.97, 0.99)
    labels = np.array([0, 1, 0, 0, 1])
    # Bins of a tenth: mean confidence 0.55 at accuracy 1/2, and 0.9633 at 2/3
    expected = 2 / 5 * abs(0.55 - 0.5) + 3 / 5 * abs(2.89 / 3 - 2 / 3)
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx(expected)


def test_calibration_error_is_that_of_the_definition():
    logits, labels = drawn(images=500, seed=1)
    probabilities = softmax(2 * logits, axis=1)
    expected = 0.0
    for low in range(15):
        inside = [p.max() > low / 15 and p.max() <= (low + 1) / 15 for p in probabilities]
        if any(inside):
            rows, right = probabilities[inside], probabilities[inside].argmax(1) == labels[inside]
            expected += sum(inside) / 500 * abs(right.mean() - rows.max(1).mean())
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)
    assert expected_calibration_error(probabilities.astype(np.float32), labels) == pytest.approx(expected, abs=1e-6)


def test_upper_edge_belongs_to_a_bin():
    # In bins of a quarter, 0.75 lies with 0.6, where right and wrong even out, and not with 0.9
    found = expected_calibration_error(of_confidence(0.75, 0.65, 0.9), np.array([0, 1, 0]), bins=4)
    assert found == pytest.approx(2 / 3 * abs(0.7 - 0.5) + 1 / 3 * 0.1)


def test_certain_predictions_have_a_bin():
    assert expected_calibration_error(of_confidence(1.0, 1.0 + 1e-7), np.array([0, 0])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("accuracy", [0.7, 0.8, 0.9, 0.95])
def test_threshold_is_the_lowest_that_reaches_the_target(accuracy):
    logits, labels = drawn(images=400, seed=2)
    probabilities = softmax(logits, axis=1).round(2)  # with many ties
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    reaching = [c for c in confidence if right[confidence >= c].mean() >= accuracy and (confidence >= c).sum() >= 20]
    kept = confidence >= min(reaching)
    assert confidence_threshold(probabilities, labels, accuracy) == {
        "below": min(reaching),
        "refused": pytest.approx(1 - kept.mean()),
        "accuracy": pytest.approx(right[kept].mean()),
        "images": 400,
    }


def test_there_is_no_threshold_that_too_few_images_reach():
    probabilities = of_confidence(*[0.9] * 19, *[0.6] * 100)
    labels = np.array([0] * 19 + [1] * 100)
    assert confidence_threshold(probabilities, labels) is None
    probabilities, labels = np.vstack([probabilities, of_confidence(0.95)]), np.append(labels, 0)
    assert confidence_threshold(probabilities, labels)["below"] == 0.9


def test_threshold_halves_the_errors_of_a_good_model():
    shares = np.linspace(0.5, 1, 1001)[1:]
    labels = np.zeros(1000, dtype=int)
    labels[[0, 100, 200, 300, 400, 500, 600, 700, 800, 900]] = 1  # 99 % right
    found = confidence_threshold(of_confidence(*shares), labels)
    assert found["accuracy"] >= 0.995 > (1 + 0.985) / 2
    assert math.isclose(found["below"], shares[round(1000 * found["refused"])])


def test_threshold_of_a_poor_model_is_95_percent():
    shares = np.concatenate([np.full(100, 0.95), np.full(100, 0.6)])
    labels = np.array([0] * 95 + [1] * 5 + [0, 1] * 50)
    found = confidence_threshold(of_confidence(*shares), labels)
    assert found == {"below": 0.95, "refused": 0.5, "accuracy": 0.95, "images": 200}
