"""What a study's settings and trials must be for the labels that its data turns out to have."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from delta_tune.config import MULTILABEL_METRIC, StudyConfig, UserError
from delta_tune.data.dataset import Dataset
from delta_tune.spaces.validation import CheckedSpace


def settings_for_labels(
    config: StudyConfig, dataset: Dataset, given: Collection[str]
) -> tuple[StudyConfig, tuple[str, ...]]:
    """The settings for these labels, and sentences for the plan on those that the labels decide.

    Args:
        config: the settings.
        dataset: the data.
        given: names of the settings that the user, or an earlier session, has given.

    Raises:
        UserError: the metric is one of other labels.
    """
    if not dataset.is_multilabel:
        if config.metric == MULTILABEL_METRIC:
            raise UserError(
                f"--metric {MULTILABEL_METRIC} is of data with several labels an image, but {dataset.name} has one; "
                f"give val_accuracy, val_balanced_accuracy, val_macro_f1 or val_loss, or --task multilabel."
            )
        return config, ()
    config = dataclasses.replace(config, task="multilabel")
    if "metric" in given:
        return config, ()
    note = f"The metric is {MULTILABEL_METRIC}, because images have several labels; --metric takes another."
    return dataclasses.replace(config, metric=MULTILABEL_METRIC, mode=None), (note,)


def check_terms(dataset: Dataset, checked: CheckedSpace) -> None:
    """Refuse terms of the loss, and a sampling, that need one class an image, if a trial is to have one of them.

    Raises:
        UserError: says how to do without.
    """
    if not dataset.is_multilabel:
        return
    for field, off in (("sampling", "random"), ("logit_adjustment", 0)):
        if any(getattr(config, field) != off for config in checked.configs):
            raise UserError(
                f"{field} must be {off} for {dataset.name}, whose images have several labels each, but a trial of the "
                f"space has another; --set class_weights=balanced is there for rare labels."
            )
    with_term = {
        term: {c.regularizer: c.method for c in checked.configs if getattr(c, f"effective_{term}")}
        for term in ("co_tuning", "contrast")
    }
    own = [name for term, methods in with_term.items() for name, m in sorted(methods.items()) if getattr(m, term)]
    added = [term for term, methods in with_term.items() if any(name not in own for name in methods)]
    if not own and not added:
        return
    what = " and ".join(dict.fromkeys([*own, *added]))
    advice = [f"leave the trials of {' and '.join(own)} out"] if own else []
    advice += [f"give {' '.join(f'--set {term}=0' for term in added)}"] if added else []
    raise UserError(
        f"{what} cannot be used where images have several labels, as in {dataset.name}, for it needs one class for "
        f"each image; {' and '.join(advice)}."
    )
