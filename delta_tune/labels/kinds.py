"""The two kinds of labels behind one interface: which one data has is asked once, of the form of its labels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from delta_tune.config import Metric, TaskName
from delta_tune.labels.one_label import ONE_LABEL, Reduction
from delta_tune.labels.several_labels import SEVERAL_LABELS

Labels = npt.NDArray[np.int64 | np.float32]
"""Of N images: classes, int64 (N,); or, with several labels an image, 0 and 1, float32 (N, K)."""


class LabelKind(Protocol):
    """What a loss, a score and a sentence need to know of the kind of labels. K is the number of classes."""

    name: TaskName
    noun: str
    """What is told apart, in the plural."""

    # Arithmetic of a step: tensors on any device

    def loss(self, logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
        """The mean over the images of their losses, or the sum, a scalar."""

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each image: logits (…, B, K) and labels of B images to (…, B)."""

    def training_loss(self, logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
        """The mean over the images of the loss that a trial minimises.

        Args:
            logits: (B, K).
            targets: labels of B images, or shares of classes, float (B, K).
            smoothing: of the labels, in [0, 1).
            weights: what `balanced_weights` returned; None weighs all alike.
        """

    def shares(self, labels: Tensor, num_classes: int) -> Tensor:
        """Labels as shares of the classes, float32 (B, K), which can be mixed."""

    def balanced_weights(self, labels: Labels, num_classes: int) -> Tensor:
        """Weights by which rare classes count as much as frequent ones, float32; their mean over the images is 1."""

    def guessing_loss(self, num_classes: int) -> float:
        """The loss of one who knows nothing."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (…, K) to the probability of each class."""

    def errors(self, logits: Tensor, labels: Tensor) -> Tensor:
        """‖probabilities − labels‖ of each image, float64 (N,): the norm of the gradient of its loss."""

    def log_mean(self, logits: Sequence[Tensor]) -> Tensor:
        """Logits whose probabilities are the means of those of several logits, (N, K) each."""

    # Scores and statistics of a split

    def metrics(self, logits: Tensor, labels: Tensor, thresholds: Sequence[float] | None = None) -> dict[str, float]:
        """Scores by name: loss, accuracy, balanced_accuracy, macro_f1 and what only this kind has.

        Args:
            logits: (N, K).
            labels: of N images.
            thresholds: from which probability on a label is there, (K,), if not from a half; of no use with one label.
        """

    def is_right(self, logits: np.ndarray, labels: Labels) -> npt.NDArray[np.bool_]:
        """Whether each image's answer is right, bool (N,)."""

    def image_scores(self, logits: np.ndarray, labels: Labels, metric: Metric) -> npt.NDArray[np.float64]:
        """A score of each image, higher is better, whose mean is the metric or stands in for it, float64 (N,)."""

    def counts(self, labels: Labels, num_classes: int) -> npt.NDArray[np.int64]:
        """How many images have each class, (K,)."""

    def strata(self, labels: Labels) -> npt.NDArray[np.int64]:
        """The group of each image, int64 (N,), whose shares all splits and samples should have."""

    def keys(self, labels: Labels) -> list[Hashable]:
        """Each image's labels as something that can be compared."""

    def say(self, key: Hashable, classes: Sequence[str]) -> str:
        """One of `keys` in words."""

    def notes(self, labels: Sequence[Labels]) -> list[str]:
        """Sentences on the labels of the splits, for the plan."""

    def temperature(self, logits: np.ndarray, labels: Labels) -> float:
        """By which logits of unseen images are divided so that their probabilities are the likeliest."""

    def calibration(self, logits: np.ndarray, labels: Labels, temperature: float) -> dict[str, Any]:
        """What is known of the probabilities of unseen images, as `HeldOutRecord` and `config.json` have it."""

    def suspects(self, logits: np.ndarray, labels: Labels) -> npt.NDArray[np.int64]:
        """Positions of the images whose labels are probably wrong, the most suspect first."""


_KINDS: tuple[LabelKind, ...] = (ONE_LABEL, SEVERAL_LABELS)


def kind_of(labels: Labels | Tensor) -> LabelKind:
    """The kind of these labels, by their form."""
    return SEVERAL_LABELS if labels.ndim == 2 else ONE_LABEL


def kind_named(name: str) -> LabelKind:
    """The kind of a task; `auto` in a record is of one label, for that of several is written when the data is read."""
    return next((kind for kind in _KINDS if kind.name == name), ONE_LABEL)
