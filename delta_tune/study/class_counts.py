"""How unequal the classes are, in the plan, and what can be done about it."""

from __future__ import annotations

from collections.abc import Sequence

from delta_tune.config import MULTILABEL_METRIC, Metric, TrialConfig
from delta_tune.data.dataset import Dataset
from delta_tune.results.image_scores import CLASS_METRICS

UNEQUAL = 5
"""Classes are called unequal if the largest has more than so many times the images of the smallest."""


def class_lines(dataset: Dataset, metric: Metric, configs: Sequence[TrialConfig]) -> list[str]:
    """Images of the smallest and the largest class of train; if they are unequal, what the user could do and has not.

    Args:
        dataset: of the study.
        metric: of the study.
        configs: that its space draws.
    """
    counts = dataset.kind.counts(dataset.train.labels, len(dataset.classes))
    single = "label" if dataset.is_multilabel else "class"
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[least] == counts[most]:
        return [f"{counts[most]:,} training images of each {single}"]
    names = [f"{counts[k]:,} ({dataset.classes[k]!r})" for k in (least, most)]
    line = f"{' to '.join(names)} training images of a {single}"
    if counts[most] <= UNEQUAL * counts[least]:
        return [line]
    advice = []
    if metric not in (*CLASS_METRICS, MULTILABEL_METRIC):
        advice.append(f"{metric} goes by the frequent ones, --metric val_macro_f1 counts all alike")
    if not any(map(treats_classes, configs)):
        first = "" if dataset.is_multilabel else "logit_adjustment=0.5, sampling=balanced or "
        advice.append(f"--set {first}class_weights=balanced trains for the rare ones too")
    return [line, f"The {dataset.kind.noun} are unequal: {'; '.join(advice)}."] if advice else [line]


def treats_classes(config: TrialConfig) -> bool:
    """Whether a configuration does something about unequal classes."""
    return config.class_weights != "none" or config.sampling != "random" or config.logit_adjustment > 0
