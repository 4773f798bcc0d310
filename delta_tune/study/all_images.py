"""The first model once more, fitted to train and validation: twice the images may be worth more than fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from delta_tune.config import FIRST_MODEL, METRICS, Metric, TrialConfig
from delta_tune.data.resampling import merge_val_into_train
from delta_tune.inference.model_folder import save_model
from delta_tune.models.devices import torch_threads
from delta_tune.results.layout import BEST, CHECKPOINTS, trial_name
from delta_tune.results.statistics import standard_error
from delta_tune.study.study import Study
from delta_tune.study.time_budget import final_takes_val
from delta_tune.training.checkpoint import save_weights
from delta_tune.training.trial import run_trial
from delta_tune.training.workplace import Workplace

FALL = 0.2
"""Errors are taken to fall as the number of training images to the power of -0.2, a little less than on the mean of
three sets of photos: there they fell by 6 to 21 % where the images were doubled."""


def fit_to_all_images(study: Study, number: int, workplace: Workplace) -> None:
    """Make `best/` of the first model fitted to all images, unless validation may not be trained on.

    Its score stays that of the classifier which was fitted to train alone.

    Args:
        study: whose first model has been scored on all of validation.
        number: of its trial.
        workplace: fits it.
    """
    if not final_takes_val(study.config) or study.tables.is_partial(number):
        return
    backbone = study.tables.backbone(number)
    config = TrialConfig(regularizer=FIRST_MODEL, max_epochs=1, seed=study.config.seed, backbone=backbone)
    searched = study.task_of(config)
    task, measured = searched.on(merge_val_into_train(searched.dataset)), searched.measurements.features
    task.measurements.features = {"train": np.concatenate([measured["train"], measured["val"]]), "val": measured["val"]}
    task.measurements.measure_source([config], study.progress.say, workplace)
    with torch_threads(1):
        result = run_trial(task, config)
    assert result.model_state is not None, "it was not saved"
    row, images = study.tables.best_row(number), len(task.dataset.train)
    file = study.folder / CHECKPOINTS / "all-images.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_weights(result.model_state, file)
    origin = {
        "trial": trial_name(number),
        "epoch": 1,
        "config": study.tables.config(number).record(),
        "metrics": {name: value for name, value in row.items() if name.startswith("val_") and value is not None},
        "fitted_to": images,
    }
    try:
        save_model(task.backbone, task.dataset.classes, [file], origin, study.folder / BEST, task.dataset.kind)
    finally:
        file.unlink()
    study.record.set_model(number, f"trial {number}, fitted to all {images:,} images", 1)
    study.save_record()


def scores_to_beat(scores: Mapping[str, Any], metric: Metric, growth: float, num_val: int) -> dict[str, float]:
    """The metric and the loss that a trial must beat to take the place of a model of more images.

    They are those to expect with so many images; one standard error better, if the metric is a share of right answers:
    the best epoch of several trials is often lucky on few images.

    Args:
        scores: of the model when it was fitted to the trials' images.
        metric: the study's.
        growth: images now / then; 1 for a model of the trials' images, whose own scores are to be beaten.
        num_val: images that were scored.
    """
    factor = growth**-FALL
    found = {"val_loss": factor * scores["val_loss"]}
    if METRICS[metric] == "max":
        error = factor * (1 - scores[metric])
        luck = standard_error(error, num_val) if growth > 1 else 0.0
        found[metric] = min(1.0, 1 - error + luck)
    return found
