"""One label an image: softmax and cross entropy. `kinds.py` says what each function is for."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from delta_tune.config import Metric, TaskName
from delta_tune.labels.one_label_metrics import classification_metrics
from delta_tune.results.calibration import confidence_threshold, expected_calibration_error, fit_temperature
from delta_tune.results.image_scores import image_scores
from delta_tune.results.label_errors import fit_label_noise

Classes = npt.NDArray[np.int64]
Reduction = Literal["mean", "sum"]


class OneLabel:
    """Labels are classes, int64 (N,)."""

    name: TaskName = "classification"
    noun = "classes"

    def loss(self, logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Cross entropy."""
        return F.cross_entropy(logits, labels, reduction=reduction)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of each image."""
        picked = logits.gather(-1, labels.to(logits.device).expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        return logits.logsumexp(-1) - picked

    def training_loss(self, logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
        """The mean over the images of −Σ_k w_k p_k log q_k, with p the smoothed label and q the softmax of the logits.

        Torch's own mean divides by the images' weights where labels are numbers, and by the number of images where they
        are probabilities; this one divides by the number of images either way.
        """
        if weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        total = F.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=smoothing)
        return total / len(logits)

    def shares(self, labels: Tensor, num_classes: int) -> Tensor:
        """1 for the class, 0 for the others."""
        return (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()

    def balanced_weights(self, labels: npt.NDArray[Any], num_classes: int) -> Tensor:
        """(K,); see `balanced_class_weights`."""
        return balanced_class_weights(labels, num_classes)

    def guessing_loss(self, num_classes: int) -> float:
        """Of K equal probabilities."""
        return math.log(num_classes)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax."""
        return logits.softmax(-1)

    def errors(self, logits: Tensor, labels: Tensor) -> Tensor:
        """In [0, √2]."""
        predicted = logits.double().softmax(1)
        norms: Tensor = (predicted - F.one_hot(labels, predicted.shape[1])).norm(dim=1)
        return norms

    def log_mean(self, logits: Sequence[Tensor]) -> Tensor:
        """log(mean(softmax))."""
        return torch.stack([each.log_softmax(1) for each in logits]).logsumexp(0) - math.log(len(logits))

    def metrics(self, logits: Tensor, labels: Tensor, thresholds: Sequence[float] | None = None) -> dict[str, float]:
        """See `classification_metrics`."""
        return classification_metrics(logits, labels)

    def is_right(self, logits: np.ndarray, labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Whether the most probable class is the label."""
        return cast(npt.NDArray[np.bool_], logits.argmax(1) == labels)

    def image_scores(self, logits: np.ndarray, labels: npt.NDArray[Any], metric: Metric) -> npt.NDArray[np.float64]:
        """See `results/image_scores.py`."""
        return image_scores(logits, labels, metric)

    def counts(self, labels: npt.NDArray[Any], num_classes: int) -> Classes:
        """Images of each class."""
        return np.bincount(labels, minlength=num_classes)

    def strata(self, labels: npt.NDArray[Any]) -> Classes:
        """The classes themselves."""
        return labels

    def keys(self, labels: npt.NDArray[Any]) -> list[Hashable]:
        """Numbers."""
        return list(labels.tolist())

    def say(self, key: Hashable, classes: Sequence[str]) -> str:
        """The class."""
        return repr(classes[cast(int, key)])

    def notes(self, labels: Sequence[npt.NDArray[Any]]) -> list[str]:
        """None: this is what everyone expects."""
        return []

    def temperature(self, logits: np.ndarray, labels: npt.NDArray[Any]) -> float:
        """See `fit_temperature`."""
        return fit_temperature(logits, labels)

    def calibration(self, logits: np.ndarray, labels: npt.NDArray[Any], temperature: float) -> dict[str, Any]:
        """Calibration errors without and with the temperature, and where to be unsure."""
        plain, calibrated = (torch.from_numpy(each).softmax(1).numpy() for each in (logits, logits / temperature))
        return {
            "calibration_error": expected_calibration_error(plain, labels),
            "calibrated_error": expected_calibration_error(calibrated, labels),
            "unsure": confidence_threshold(calibrated, labels),
        }

    def suspects(self, logits: np.ndarray, labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """See `fit_label_noise`."""
        return fit_label_noise(logits, labels).suspects()


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """N / (K · n_k) for each class k of K, float32 (K,), with n_k of the N labels; 0 for a class without a label.

    The mean over the labels is 1 if every class has one, so the learning rate need not change.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = np.where(counts > 0, len(labels) / (num_classes * np.maximum(counts, 1)), 0)
    return torch.tensor(weights, dtype=torch.float32)


ONE_LABEL: Final = OneLabel()
