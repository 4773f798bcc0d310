"""Choose the training images that probe the channels: their order and their weights.

A fitted probe head has almost no loss on most images, so switching channels off changes little there; a few hard images
determine d. Images are therefore drawn with probability proportional to the distance between the probe's prediction and
the label, known from the cached features without another forward pass, and weighted by the inverse (Horvitz–Thompson).
The mean still estimates that over all images, and half as many images suffice (docs/experiments.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from delta_tune.labels.kinds import kind_of

UNIFORM_SHARE = 0.3
"""Share of the probability that is uniform; it bounds an image's weight by 1 / UNIFORM_SHARE times the mean."""


def error_norm(logits: Tensor, labels: Tensor) -> np.ndarray:
    """‖probabilities − labels‖ per image, float64 (N,): the norm of the gradient of its loss."""
    scores: np.ndarray = kind_of(labels).errors(logits, labels).cpu().numpy()
    return scores


@dataclass(frozen=True)
class ProbeImages:
    """Images in probing order.

    Any prefix of the order is a sample in which classes have their share and hard images are preferred; the whole order
    is all images, each with weight 1.
    """

    order: np.ndarray
    """Indices, int64 (N,)."""
    _class: np.ndarray
    _probability: np.ndarray
    """Probability of being drawn next, in the images' original order."""

    @classmethod
    def draw(cls, labels: np.ndarray, scores: np.ndarray, seed: int) -> ProbeImages:
        """Draw an order of all images.

        Args:
            labels: int64 (N,), or the strata of images with several labels.
            scores: ≥ 0, (N,); images are drawn in proportion to them, except for `UNIFORM_SHARE`.
            seed: seed of the order.
        """
        rng = np.random.default_rng(seed)
        total = scores.sum()
        relative = scores / total if total > 0 else np.full(len(scores), 1 / len(scores))
        probability = (1 - UNIFORM_SHARE) * relative + UNIFORM_SHARE / len(scores)
        # Sequential Poisson sampling within a class (Ohlsson 1998): nested samples of any size. Classes then take turns
        # as often as their share of the probability says.
        arrival = rng.random(len(labels)) / probability
        turn = np.empty(len(labels))
        for k in np.unique(labels):
            members = np.flatnonzero(labels == k)
            members = members[np.argsort(arrival[members])]
            turn[members] = (np.arange(len(members)) + rng.random()) / probability[members].sum()
        return cls(np.argsort(turn), labels, probability)

    def __len__(self) -> int:
        return len(self.order)

    def weights(self, count: int) -> np.ndarray:
        """Weights of the first `count` images: 1 / probability of being among them, float64 (count,)."""
        taken = self.order[:count]
        chance = np.ones(len(self.order))
        by_class = np.split(np.argsort(self._class, kind="stable"), np.bincount(self._class).cumsum()[:-1])
        counts = np.bincount(self._class[taken], minlength=len(by_class))
        if any(
            len(members) and not counts[k] for k, members in enumerate(by_class)
        ):  # too few images: treat them as one population
            chance = _inclusion(self._probability, count)
        else:
            for k, members in enumerate(by_class):
                chance[members] = _inclusion(self._probability[members], counts[k])
        weights: np.ndarray = 1 / chance[taken]
        return weights


def _inclusion(probability: np.ndarray, count: int) -> np.ndarray:
    """Inclusion probabilities proportional to `probability`, at most 1, with sum `count`."""
    certain = np.zeros(len(probability), dtype=bool)
    while True:
        left = count - certain.sum()
        chance = np.where(certain, 1.0, 0.0)
        if not certain.all():
            chance[~certain] = left * probability[~certain] / probability[~certain].sum()
        more = chance >= 1 - 1e-9
        if (more == certain).all():
            return chance
        certain = more
