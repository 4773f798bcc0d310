"""The end of a study: the winner's kept weights become the model, and the test split is scored, once."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delta_tune.attention.layer_attention import read_attention_weights
from delta_tune.inference.model_folder import update_model_config
from delta_tune.report.feature_map_images import save_feature_map_images
from delta_tune.report.predictions import save_predictions, split_logits
from delta_tune.results.layout import ATTENTION_FILE, BEST, PICTURES_FILE, PREDICTIONS_FILE
from delta_tune.results.statistics import wilson_interval
from delta_tune.results.study_record import StudyRecord
from delta_tune.training.metrics import classification_metrics
from delta_tune.training.task import Task


def score_test(task: Task, best: Path, logits: Tensor) -> dict[str, Any]:
    """The model's scores on the test split, with a 95 % interval of its accuracy.

    The caller writes every scoring down: a second one is no longer an honest estimate.

    Args:
        task: which has a test split.
        best: the model's folder.
        logits: its (N, K) for that split.
    """
    assert task.dataset.test is not None
    labels = torch.from_numpy(np.array(task.dataset.test.labels))
    scores = {f"test_{name}": value for name, value in classification_metrics(logits, labels).items()}
    low, high = wilson_interval(scores["test_accuracy"], len(labels))
    return {
        "folder": str(best),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": len(labels),
        **scores,
        "test_accuracy_interval": [low, high],
    }


def score_final_model(task: Task, folder: Path, record: StudyRecord, device: str, *, retrained: bool) -> None:
    """Score the final model on test, or look at validation if there is no test split and it was not trained on it.

    Args:
        task: of the study.
        folder: the study's, where what the model said of each image, and what its channels see, is kept.
        record: of the study; the scoring of a test split is added.
        device: where the model computes.
        retrained: whether the model was trained on validation too.
    """
    name, best = "val" if task.dataset.test is None else "test", folder / BEST
    if name == "test" or not retrained:
        logits = split_logits(task, task.dataset.for_name(name), best, device)
        if name == "test":
            scored = score_test(task, best, logits)
            record.add_scoring(scored)
            update_model_config(best, {"test": scored})
        save_predictions(task, name, logits, folder / PREDICTIONS_FILE)
    save_feature_map_images(task, read_attention_weights(folder / ATTENTION_FILE), best, folder / PICTURES_FILE)
