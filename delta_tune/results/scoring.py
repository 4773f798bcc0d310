"""A scoring of the final model on the test split, as `study.json` has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from delta_tune.results.image_scores import CLASS_METRICS


@dataclass(frozen=True)
class Scoring:
    """One scoring of the test split.

    Attributes:
        content: as in `study.json`: trial, model, images, `test_…` scores.
        index: how often the split had been scored before.
        metric: of the study.
    """

    content: Mapping[str, Any]
    index: int
    metric: str = "val_accuracy"

    @property
    def model(self) -> str:
        """The model that was scored."""
        return str(self.content["model"])

    @property
    def accuracy(self) -> float:
        """Share of the images classified correctly."""
        return float(self.content["test_accuracy"])

    @property
    def said(self) -> str:
        """The scores with the words that stand before them: `accuracy 85.3 % on 200 images, …`."""
        precision = self.content.get("test_mean_average_precision")
        if precision is None:
            return f"{self._by_metric}accuracy {self}"
        f1 = 100 * self.content["test_macro_f1"]
        return f"mean average precision {100 * precision:.1f} %, macro F1 {f1:.1f} %, exact matches {self}"

    @property
    def _by_metric(self) -> str:
        """The score that counts all classes alike, if trials were ranked by one."""
        name = self.metric.removeprefix("val_")
        score = self.content.get(f"test_{name}")
        if self.metric not in CLASS_METRICS or score is None:
            return ""
        return f"{name.replace('_', ' ').replace('f1', 'F1')} {100 * score:.1f} %, "

    def __str__(self) -> str:
        """The accuracy with its images and its interval, and how often the split has been scored."""
        low, high = self.content["test_accuracy_interval"]
        times = "scored once" if self.index == 0 else f"scoring {self.index + 1} of this split, so not an unseen one"
        return (
            f"{100 * self.accuracy:.1f} % on {self.content['images']} images, {times} "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
        )
