"""Images whose label is probably wrong: those that chance would sooner have written than the model expects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SUSPECT = 0.4
"""The least probability that a label is wrong of an image that is named."""
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

    def suspects(self) -> np.ndarray:
        """Positions of the labels that are probably wrong, the most suspect first."""
        (found,) = np.nonzero(self.wrong > SUSPECT)
        return found[np.argsort(-self.wrong[found], kind="stable")]


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
