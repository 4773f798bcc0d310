"""Several labels an image, or none: a sigmoid and a binary cross entropy each. `kinds.py` says what functions are for.

Losses are summed over an image's labels, as the cross entropy of one label an image is a sum over classes: the gradient
of either with respect to the logits is probabilities − labels, so learning rates and alpha keep their meaning.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from delta_tune.config import Metric, TaskName
from delta_tune.labels.one_label import Reduction
from delta_tune.labels.several_labels_metrics import multilabel_metrics, ranking_precisions
from delta_tune.labels.thresholds import f1_thresholds
from delta_tune.results.calibration import binary_calibration_error, fit_temperature
from delta_tune.results.label_errors import fit_label_noise

NO_LABEL = "no label"


class SeveralLabels:
    """Labels are 0 and 1, float32 (N, K)."""

    name: TaskName = "multilabel"
    noun = "labels"

    def loss(self, logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Binary cross entropy, summed over the labels."""
        total = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
        return total if reduction == "sum" else total / len(logits)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum of the binary cross entropies of each image."""
        wanted = labels.to(logits).expand_as(logits)
        each: Tensor = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return each.sum(-1)

    def training_loss(self, logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
        """The mean over the images of −Σ_k (a_k p_k log q_k + b_k (1 − p_k) log(1 − q_k)), q the sigmoid of the logits.

        p is the share of the label, smoothed to (1 − s) p + s / 2; a and b are the rows of `weights`, or 1.
        """
        wanted = (targets * (1 - smoothing) + smoothing / 2).to(logits.dtype)
        if weights is None:
            return self.loss(logits, wanted)
        present, absent = weights
        losses: Tensor = present * wanted * F.softplus(-logits) + absent * (1 - wanted) * F.softplus(logits)
        return losses.sum() / len(logits)

    def shares(self, labels: Tensor, num_classes: int) -> Tensor:
        """The labels themselves."""
        return labels.float()

    def balanced_weights(self, labels: npt.NDArray[Any], num_classes: int) -> Tensor:
        """N / 2n_k of images with the label k, N / 2(N − n_k) of those without: (2, K); 0 where there are none."""
        with_it = labels.sum(0, dtype=np.float64)
        found = np.stack([with_it, len(labels) - with_it])
        weights = np.where(found > 0, len(labels) / (2 * np.maximum(found, 1)), 0)
        return torch.tensor(weights, dtype=torch.float32)

    def guessing_loss(self, num_classes: int) -> float:
        """Of a half for each label."""
        return num_classes * math.log(2)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The sigmoid of each."""
        return logits.sigmoid()

    def errors(self, logits: Tensor, labels: Tensor) -> Tensor:
        """In [0, √K]."""
        norms: Tensor = (logits.double().sigmoid() - labels).norm(dim=1)
        return norms

    def log_mean(self, logits: Sequence[Tensor]) -> Tensor:
        """The log odds of the mean probabilities."""
        each = torch.stack(list(logits))
        return F.logsigmoid(each).logsumexp(0) - F.logsigmoid(-each).logsumexp(0)

    def metrics(self, logits: Tensor, labels: Tensor, thresholds: Sequence[float] | None = None) -> dict[str, float]:
        """See `multilabel_metrics`."""
        loss = self.loss(logits.float(), labels).item()
        return {"loss": loss, **multilabel_metrics(logits.float().cpu().numpy(), labels.cpu().numpy(), thresholds)}

    def is_right(self, logits: np.ndarray, labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Whether all labels with a probability above a half are there, and no others."""
        return cast(npt.NDArray[np.bool_], ((logits >= 0) == (labels > 0)).all(1))

    def image_scores(self, logits: np.ndarray, labels: npt.NDArray[Any], metric: Metric) -> npt.NDArray[np.float64]:
        """For mean average precision that of the image's own ranking stands in, for macro F1 the F1 of the image."""
        there, said = labels > 0, logits >= 0
        if metric == "val_loss":
            return -np.asarray(self.losses(*(torch.from_numpy(np.float64(x)) for x in (logits, labels))).numpy())
        if metric == "val_mean_average_precision":
            return ranking_precisions(logits, labels)
        if metric == "val_macro_f1":
            claimed = there.sum(1) + said.sum(1)
            f1: npt.NDArray[np.float64] = np.where(claimed > 0, 2 * (there & said).sum(1) / np.maximum(claimed, 1), 1.0)
            return f1
        if metric == "val_balanced_accuracy":
            with_it = there.sum(0)
            both = (with_it > 0) & (with_it < len(labels))
            weights = np.where(there, 0.5 / np.maximum(with_it, 1), 0.5 / np.maximum(len(labels) - with_it, 1))
            scores: npt.NDArray[np.float64] = ((there == said) * weights)[:, both].sum(1)
            return scores * (len(labels) / max(1, int(both.sum())))
        return self.is_right(logits, labels).astype(np.float64)

    def counts(self, labels: npt.NDArray[Any], num_classes: int) -> npt.NDArray[np.int64]:
        """Images with each label."""
        counts: npt.NDArray[np.int64] = labels.sum(0).astype(np.int64)
        return counts

    def strata(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The rarest label of each image, and K for images without any: frequent labels then get their share too."""
        counts = np.append(labels.sum(0), np.inf)
        with_none = np.concatenate([labels > 0, np.ones((len(labels), 1), dtype=bool)], axis=1)
        return np.where(with_none, counts, np.nan).argsort(1, kind="stable")[:, 0].astype(np.int64)

    def keys(self, labels: npt.NDArray[Any]) -> list[Hashable]:
        """Tuples of numbers."""
        return [tuple(np.flatnonzero(row).tolist()) for row in labels]

    def say(self, key: Hashable, classes: Sequence[str]) -> str:
        """The labels in a list."""
        return " and ".join(repr(classes[number]) for number in cast(tuple[int, ...], key)) or NO_LABEL

    def notes(self, labels: Sequence[npt.NDArray[Any]]) -> list[str]:
        """How many labels an image has."""
        counts = np.concatenate([each.sum(1) for each in labels])
        none = int((counts == 0).sum())
        without = f", {none} {'image' if none == 1 else 'images'} without any" if none else ""
        return [f"Several labels an image: {counts.mean():.1f} on average, {counts.max():.0f} at most{without}."]

    def temperature(self, logits: np.ndarray, labels: npt.NDArray[Any]) -> float:
        """Within [0.05, 20], for all labels alike; 1 if every label is predicted rightly."""
        return fit_temperature(*_as_pairs(logits, labels))

    def calibration(self, logits: np.ndarray, labels: npt.NDArray[Any], temperature: float) -> dict[str, Any]:
        """Calibration errors without and with the temperature, scores, and the threshold of each label."""
        plain, calibrated = (torch.from_numpy(each).sigmoid().numpy() for each in (logits, logits / temperature))
        scores = multilabel_metrics(logits, labels)
        return {
            "calibration_error": binary_calibration_error(plain, labels),
            "calibrated_error": binary_calibration_error(calibrated, labels),
            "mean_average_precision": scores["mean_average_precision"],
            "macro_f1": scores["macro_f1"],
            "thresholds": f1_thresholds(calibrated, labels).tolist(),
        }

    def suspects(self, logits: np.ndarray, labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Images of `suspect_pairs`."""
        images = suspect_pairs(logits, labels)[:, 0]
        return np.array(list(dict.fromkeys(images.tolist())), dtype=np.int64)


def suspect_pairs(logits: np.ndarray, labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Pairs (image, label), int64 (M, 2), in which a label is probably missing or too many, the most suspect first.

    Each label of each image is one of N · K labels that are there or not; see `fit_label_noise`.

    Args:
        logits: (N, K), each row of a model that was not trained on the image.
        labels: (N, K).
    """
    noise = fit_label_noise(*_as_pairs(logits, labels))
    return np.stack(np.unravel_index(noise.suspects(), labels.shape), axis=1)


def _as_pairs(logits: np.ndarray, labels: npt.NDArray[Any]) -> tuple[np.ndarray, npt.NDArray[np.int64]]:
    """Labels (N, K) as N · K images of two classes: logits (N · K, 2), whose softmax is the sigmoid, and classes."""
    each = logits.reshape(-1, 1)
    return np.hstack([np.zeros_like(each), each]), (labels > 0).reshape(-1).astype(np.int64)


SEVERAL_LABELS: Final = SeveralLabels()
