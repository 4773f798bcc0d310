"""Images whose label is probably wrong: by confident learning (Northcutt et al. 2021, arXiv 1911.00068), or by how many
labels are what chance would have written."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROUNDING = 1e-6
"""By which a probability may miss its class's mean: all may be alike."""


def suspect_labels(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Indices of the images that count as another class than their label's, the most suspect first.

    An image counts as a class if its probability of it is at least the class's threshold: the mean probability of the
    class over the images with that label. Of several such classes it counts as the most probable. The suspects are
    what lies off the diagonal of the paper's confident joint, ordered by p(label) - max p(other class).

    Args:
        probabilities: (N, K), each row of a model that was not trained on the image.
        labels: (N,) given classes.
    """
    rows, classes = np.arange(len(labels)), probabilities.shape[1]
    given = probabilities[rows, labels]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=given, minlength=classes)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= thresholds - ROUNDING, probabilities, -1.0)
    (suspects,) = np.nonzero((confident.max(1) >= 0) & (confident.argmax(1) != labels))
    others = probabilities[suspects].copy()
    others[np.arange(len(suspects)), labels[suspects]] = -1.0
    return suspects[np.argsort(given[suspects] - others.max(1), kind="stable")]


TEMPERATURES = np.geomspace(0.1, 4.0, 40)
_MOST_NOISE = 0.5
_NOISE_STEPS = 100


class LabelNoise(NamedTuple):
    """What `fit_label_noise` finds in N labels of K classes."""

    share: float
    """Of the labels that chance wrote."""
    temperature: float
    """By which the logits are divided."""
    wrong: np.ndarray
    """(N,): the probability that chance wrote the label."""


def fit_label_noise(logits: np.ndarray, labels: np.ndarray) -> LabelNoise:
    """Tell labels that are wrong from images that are difficult.

    Each label is the class that the model finds with probability softmax(logits / T), or, in a share e of the images,
    one that chance wrote: any class with probability 1/K. T and e are the likeliest ones; Bayes' rule then gives the
    probability (e/K) / ((1 - e) p(label) + e/K) that chance wrote it. A model that is unsure of many images has a high
    T, so that they are not taken for wrong.

    Args:
        logits: (N, K) of images that the model was not trained on, N ≥ 1, K ≥ 2.
        labels: (N,) given classes.
    """
    logits, rows, chance = np.asarray(logits, dtype=float), np.arange(len(labels)), 1 / logits.shape[1]
    centred = logits - logits.max(1, keepdims=True)
    best, likeliest = LabelNoise(0.0, 1.0, np.zeros(len(labels))), -np.inf
    for temperature in TEMPERATURES:
        scaled = centred / temperature
        given = np.exp(scaled[rows, labels]) / np.exp(scaled).sum(1)
        share = 0.1
        for _ in range(_NOISE_STEPS):  # expectation maximisation: the likelihood is concave in the share
            share = min(_MOST_NOISE, float(np.mean(share * chance / ((1 - share) * given + share * chance))))
        likelihood = (1 - share) * given + share * chance
        if (total := float(np.log(likelihood).sum())) > likeliest:
            likeliest, best = total, LabelNoise(share, float(temperature), share * chance / likelihood)
    return best
