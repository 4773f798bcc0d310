from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from delta_tune.data.stratify import folds_of_units, units_of
from delta_tune.training import transferability
from delta_tune.training.out_of_fold import FOLDS, standardized
from delta_tune.training.transferability import head_inputs_as_vectors, predict_folds


def clouds(count, dims, classes=3, spread=1.0, seed=0):
    """Features around a point per class, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % classes
    return rng.normal(size=(classes, dims))[labels] + spread * rng.normal(size=(count, dims)), labels


def loss(logits, labels):
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def independent(features, labels, classes, penalty, fold_of):
    """The same by SciPy, in float64 and without a change of coordinates."""
    x, found = standardized(features), np.zeros((len(labels), classes))
    for fold in range(FOLDS):
        rest = fold_of != fold

        def objective(flat, rest=rest):
            weights, bias = flat[:-classes].reshape(classes, -1), flat[-classes:]
            logits = x[rest] @ weights.T + bias
            logs = log_softmax(logits, axis=1)
            error = np.exp(logs)
            error[np.arange(rest.sum()), labels[rest]] -= 1
            gradient = np.concatenate([(error.T @ x[rest] / rest.sum()).ravel(), error.mean(0)]) + penalty * flat
            return -logs[np.arange(rest.sum()), labels[rest]].mean() + penalty / 2 * flat @ flat, gradient

        start = np.zeros(classes * (x.shape[1] + 1))
        best = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14}).x
        weights, bias = best[:-classes].reshape(classes, -1), best[-classes:]
        found[~rest] = x[~rest] @ weights.T + bias
    return found


@pytest.mark.parametrize(("count", "dims"), [(90, 5), (45, 200)])
def test_logits_are_those_of_penalised_regression_on_the_other_folds(count, dims):
    features, labels = clouds(count, dims, spread=2.0)
    fold_of = folds_of_units(units_of(labels, None), FOLDS, np.random.default_rng(3))
    each = [independent(features, labels, 3, penalty, fold_of) for penalty in transferability.PENALTIES]
    expected = min(each, key=lambda logits: loss(logits, labels))
    assert np.allclose(predict_folds(features, labels, 3, None, 3), expected, atol=0.02)


def test_likelihood_is_lower_where_classes_overlap():
    losses = [loss(predict_folds(*clouds(120, 8, spread=s), 3, None, 0), clouds(120, 8)[1]) for s in (0.5, 2.0, 8.0)]
    assert losses == sorted(losses)
    assert losses[2] - losses[0] > 0.5


def test_labels_without_relation_are_not_foretold():
    features, labels = clouds(300, 20)
    shuffled = np.random.default_rng(1).permutation(labels)
    assert loss(predict_folds(features, shuffled, 3, None, 0), shuffled) > np.log(3) - 0.02


def test_images_of_a_group_are_not_foretold_by_one_another():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60).astype(np.int64)
    features, twice = rng.normal(size=(60, 100)), np.tile(np.arange(60), 2)
    features, labels = np.tile(features, (2, 1)), np.tile(labels, 2)
    alone = loss(predict_folds(features, labels, 2, None, 0), labels)
    together = loss(predict_folds(features, labels, 2, twice, 0), labels)
    assert alone < 0.45 < 0.6 < together


def test_images_with_several_labels_have_a_logit_for_each():
    rng = np.random.default_rng(0)
    labels = (rng.random((120, 4)) < 0.4).astype(np.float32)
    features = labels @ rng.normal(size=(4, 10)) + 0.3 * rng.normal(size=(120, 10))
    logits = predict_folds(features, labels, 4, None, 0)
    assert ((logits > 0) == (labels > 0)).mean() > 0.9


def test_network_that_gives_every_image_the_same_features_knows_nothing():
    _, labels = clouds(30, 4)
    assert not predict_folds(np.ones((30, 4)), labels, 3, None, 0).any()


def test_result_does_not_depend_on_the_scale_of_the_features():
    features, labels = clouds(60, 10)
    assert np.allclose(predict_folds(features, labels, 3, None, 0), predict_folds(1e4 * features, labels, 3, None, 0))


def test_maps_become_the_means_over_their_positions():
    maps = np.random.default_rng(0).normal(size=(5, 3, 4, 2)).astype(np.float32)
    assert np.allclose(head_inputs_as_vectors(maps), [[c.mean() for c in image] for image in maps])
    vectors = maps[:, :, 0, 0]
    assert np.allclose(head_inputs_as_vectors(vectors), vectors)
