"""Which training images probe the channels, in which order, and what each of them stands for.

A fitted probe head has almost no loss on most images, and switching channels off changes almost nothing there: a few
hard images make up d. Images are therefore drawn with probability in proportion to how far the probe's prediction is
from its label, which the cached features tell without another forward, and weighted by the inverse (Horvitz–Thompson):
the mean stays that over all images, and half as many are as good as a plain random sample (docs/experiments.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

UNIFORM_SHARE = 0.3
"""Of the probability, spread evenly: bounds the weight of an image at 1 / UNIFORM_SHARE times the mean."""


def error_norm(logits: Tensor, labels: Tensor) -> np.ndarray:
    """‖softmax(logits) − onehot(label)‖ of each image, float64 (N,) in [0, √2]: the length of its loss's gradient."""
    predicted = logits.double().softmax(1)
    scores: np.ndarray = (predicted - F.one_hot(labels, predicted.shape[1])).norm(dim=1).cpu().numpy()
    return scores


@dataclass(frozen=True)
class ProbeImages:
    """Images in the order in which they probe.

    Every beginning of the order is a sample in which classes have their share and hard images are preferred; all of it
    is every image, each with weight 1.
    """

    order: np.ndarray
    """Indices, int64 (N,)."""
    _class: np.ndarray
    _probability: np.ndarray
    """Of being the next image drawn, in the images' own order."""

    @classmethod
    def draw(cls, labels: np.ndarray, scores: np.ndarray, seed: int) -> ProbeImages:
        """The order of all images, seeded.

        Args:
            labels: int64 (N,).
            scores: ≥ 0, (N,); images are drawn in proportion to them, apart from `UNIFORM_SHARE`.
            seed: of the order.
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
        """Images that each of the first `count` stands for, 1 over its chance to be among them: float64 (count,)."""
        taken = self.order[:count]
        chance = np.ones(len(self.order))
        by_class = np.split(np.argsort(self._class, kind="stable"), np.bincount(self._class).cumsum()[:-1])
        counts = np.bincount(self._class[taken], minlength=len(by_class))
        if any(len(members) and not counts[k] for k, members in enumerate(by_class)):  # too few: one population
            chance = _inclusion(self._probability, count)
        else:
            for k, members in enumerate(by_class):
                chance[members] = _inclusion(self._probability[members], counts[k])
        weights: np.ndarray = 1 / chance[taken]
        return weights


def _inclusion(probability: np.ndarray, count: int) -> np.ndarray:
    """Chances in proportion to `probability` and at most 1, whose sum is `count`."""
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
