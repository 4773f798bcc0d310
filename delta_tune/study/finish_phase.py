"""The end of a study: the winner's saved weights become the model, and the test split is scored, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delta_tune.attention.layer_attention import read_attention_weights
from delta_tune.cluster.measuring import Measuring
from delta_tune.explanation.heat_maps import can_draw
from delta_tune.inference.model import load
from delta_tune.inference.model_card import write_model_card
from delta_tune.inference.model_config import read_config, update_model_config
from delta_tune.models.backbones import resolve_layers
from delta_tune.models.map_layout import describe_layers
from delta_tune.report.feature_map_images import save_feature_map_images
from delta_tune.report.heat_map_images import save_heat_map_images
from delta_tune.report.predictions import save_predictions, split_logits
from delta_tune.report.sentences import calibration_sentence, final_model_sentences, model_row, study_summary
from delta_tune.results.columns import SCORES
from delta_tune.results.layout import (
    ATTENTION_FILE,
    BEST,
    CONFIG_FILE,
    HEAT_MAPS_FILE,
    HELD_OUT_FILE,
    PICTURES_FILE,
    PREDICTIONS_FILE,
    STUDY_FILE,
)
from delta_tune.results.log import may_fail
from delta_tune.results.mirror import push_or_raise
from delta_tune.results.statistics import wilson_interval
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.study_result import StudyResult
from delta_tune.study.best_model import keep_or_save
from delta_tune.study.study import Study
from delta_tune.training.task import Task
from delta_tune.training.workplace import Workplace


def conclude(study: Study, measuring: Measuring, *, interrupted: bool) -> int | None:
    """Write the model and score it on the test split; return its trial, None if there is none.

    Args:
        study: the study.
        measuring: where the model computes.
        interrupted: whether the user interrupted the study.
    """
    winner = keep_or_save(study)
    # An interrupted study must not look at its test split yet.
    if winner is not None and not interrupted:
        with measuring.workplace() as place:
            score_final_model(
                study.task_of_trial(winner),
                study.folder,
                study.record,
                place,
                seen_val=study.record.has_seen_val,
                say=study.progress.say,
                backbone=study.tables.backbone(winner),
            )
    return winner


def _compared(study: Study, trial: int) -> str:
    """Which layers a trial compared with the source's, and what their channels are; empty if those of convolutions."""
    config, backbone = study.tables.config(trial), study.task_of_trial(trial).backbone
    if not config.uses_behavior:
        return ""
    layers = resolve_layers(backbone, config.layers)
    named, told = describe_layers(layers, backbone.channels, backbone.layouts)
    return f"It compared {named} with those of the source. {told}" if told else ""


def finish(study: Study, winner: int | None, *, interrupted: bool) -> StudyResult:
    """Write the model's card and the report, and sum up what the study found.

    Args:
        study: the study.
        winner: trial of the model; None if there is none.
        interrupted: whether the user interrupted the study.
    """
    record, tables, best, say = study.record, study.tables, study.folder / BEST, study.progress.say
    record.end("interrupted" if interrupted else "finished")
    study.save_record()
    confirmed: Sequence[str] = record.confirmation["sentences"] if record.confirmation else ()
    if winner is not None:
        with may_fail("The model card", study.folder, say):
            update_model_config(best, {"versions": dict(record.versions)})
            told = [*final_model_sentences(record, Path(HELD_OUT_FILE)), calibration_sentence(record), *confirmed]
            hooks = _compared(study, winner)
            write_model_card(best, record, [text for text in told if text], retrained=record.retrained, hooks=hooks)
    page = study.reporter.write()
    study.progress.methods(tables)
    remarks = [text for text in (*confirmed, record.attention_verdict) if text]
    lines = study_summary(tables, study.folder, record, remarks, out=study.out)
    for line in lines:
        say(line)
    if study.mirror is not None:
        push_or_raise(study.mirror, whole=True)
    metrics: dict[str, Any] = {}
    if winner is not None:
        row = model_row(tables, record)
        scores = read_config(best)["metrics"] if record.held_out is not None else row
        metrics = {name: scores[name] for name in SCORES if scores.get(name) is not None}
        metrics |= dict(record.scoring.content if record.scoring else {})
    return StudyResult(
        best_config=None if winner is None else tables.config(winner),
        best_metrics=metrics,
        trials=tables.table(),
        path=study.folder,
        report=page,
        summary="\n".join(lines),
        metric=study.config.metric,
    )


def keep_best(study: Study) -> None:
    """Save the best trial's model and the end of a study that cannot go on, unless it has a better model already."""
    record, best = study.record, study.folder / BEST
    if not (study.folder / STUDY_FILE).exists():
        return
    keep_or_save(study)
    record.end("interrupted")
    study.save_record()
    if best.exists():
        study.progress.say(f"Model: {best} ({record.model})")


def score_test(task: Task, best: Path, logits: Tensor, thresholds: Sequence[float] | None = None) -> dict[str, Any]:
    """The model's scores on the test split, with a 95 % interval of its accuracy.

    The caller records every scoring: after the first, the estimate is no longer unbiased.

    Args:
        task: has a test split.
        best: the model's folder.
        logits: its logits (N, K) for that split.
        thresholds: the model's, with several labels an image, (K,).
    """
    assert task.dataset.test is not None
    labels = torch.from_numpy(np.array(task.dataset.test.labels))
    scores = {f"test_{name}": value for name, value in task.dataset.kind.metrics(logits, labels, thresholds).items()}
    low, high = wilson_interval(scores["test_accuracy"], len(labels))
    return {
        "folder": str(best),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": len(labels),
        **scores,
        "test_accuracy_interval": [low, high],
    }


def score_final_model(
    task: Task,
    folder: Path,
    record: StudyRecord,
    workplace: Workplace,
    *,
    seen_val: bool,
    say: Callable[[str], None] = print,
    backbone: str | None = None,
) -> None:
    """Score the final model on test; if there is no test split, predict validation, unless it was trained on it.

    The scoring is in `study.json` before anything else is written. A model that was scored is not scored again; what
    an earlier session did not write after its scoring is written now.

    Args:
        task: of the final model.
        folder: the study's folder, where predictions and feature-map images are saved.
        record: of the study; the scoring of a test split is added.
        workplace: where the model computes.
        seen_val: whether the model was trained on validation too.
        say: prints a sentence about predictions or images that cannot be written.
        backbone: label of the model's network; None in a study of one.
    """
    name, best = "val" if task.dataset.test is None else "test", folder / BEST
    drawn = (folder / PICTURES_FILE).exists() or not (folder / ATTENTION_FILE).exists()
    drawn &= (folder / HEAT_MAPS_FILE).exists() or not can_draw()
    if record.scoring is not None and (folder / PREDICTIONS_FILE).exists() and drawn:
        return
    model = load(best)
    if name == "test" or not seen_val:
        logits = split_logits(task, task.dataset.for_name(name), model.network, workplace) / model.temperature
        if name == "test" and record.scoring is None:
            record.add_scoring(score_test(task, best, logits, model.thresholds))
            record.write(folder)
        if record.scoring is not None:
            scored = {k: v for k, v in record.scoring.content.items() if k not in ("trial", "model")}
            with may_fail(f"The test score in {best / CONFIG_FILE}", folder, say):
                update_model_config(best, {"test": scored})
        with may_fail("The predictions for the report", folder, say):
            save_predictions(task, name, logits, folder / PREDICTIONS_FILE, thresholds=model.thresholds)
        with may_fail("The heat maps for the report", folder, say):
            file = folder / HEAT_MAPS_FILE
            save_heat_map_images(task, name, logits, model.network, file, workplace, thresholds=model.thresholds)
    with may_fail("The images of feature maps for the report", folder, say):
        attention = read_attention_weights(folder / ATTENTION_FILE, backbone)
        save_feature_map_images(task, attention, model.network, folder / PICTURES_FILE, workplace)
