"""The end of a study: the winner's kept weights become the model, and the test split is scored, once."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delta_tune.attention_store import weights_in
from delta_tune.checkpoint import BEST_FILE
from delta_tune.config import METRICS
from delta_tune.evaluation import classification_metrics, wilson_interval
from delta_tune.files import written_whole
from delta_tune.inference import CONFIG_FILE, WEIGHTS_FILE
from delta_tune.live import shown
from delta_tune.map_pictures import PICTURES_FILE, keep_pictures
from delta_tune.predictions import PREDICTIONS_FILE, keep_predictions, split_logits
from delta_tune.progress import brief
from delta_tune.results import (
    ATTENTION_FILE,
    CHECKPOINTS,
    EPOCHS_FILE,
    REPORT_FILE,
    SCORES,
    TRIALS_FILE,
    StudyTables,
    scoring_of,
    trial_name,
    write_json,
)
from delta_tune.task import Task

BEST = "best"


def keep_winner(task: Task, tables: StudyTables, winner: int, folder: Path) -> None:
    """Make `best/` of the winner's best epoch."""
    row = tables.best_row(winner)
    told = {"trial": trial_name(winner), "epoch": row["epoch"], "config": tables.config(winner).record()}
    told["metrics"] = {name: row[name] for name in SCORES}
    keep_model(task, folder / CHECKPOINTS / trial_name(winner) / BEST_FILE, told, folder / BEST)


def keep_model(task: Task, weights: Path, told: Mapping[str, Any], best: Path) -> None:
    """A folder of weights and all that another program needs to predict with them.

    What was kept beside it of another model's predictions and maps is taken away.

    Args:
        task: what they were trained for.
        weights: a safetensors file.
        told: where they come from: trial, epoch, config, metrics.
        best: the folder.
    """
    for told_of_another in (PREDICTIONS_FILE, PICTURES_FILE):
        (best.parent / told_of_another).unlink(missing_ok=True)
    best.mkdir(exist_ok=True)
    with written_whole(best / WEIGHTS_FILE) as partial:
        shutil.copyfile(weights, partial)
    write_json(
        best / CONFIG_FILE,
        {
            **told,
            "backbone": {
                "model": task.backbone.model,
                "head": task.backbone.head,
                "fingerprint": task.backbone.fingerprint,
            },
            "classes": list(task.dataset.classes),
            "preprocessing": dataclasses.asdict(task.backbone.preprocessing),
        },
    )


def add_to_config(best: Path, told: Mapping[str, Any]) -> None:
    """Add what became known of the model to its `config.json`."""
    write_json(best / CONFIG_FILE, json.loads((best / CONFIG_FILE).read_text()) | dict(told))


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


def judge(task: Task, folder: Path, record: dict[str, Any], device: str, *, retrained: bool) -> None:
    """Score the final model on test, or look at validation if there is no test split and it was not trained on it.

    Args:
        task: of the study.
        folder: the study's, where what the model said of each image, and what its channels see, is kept.
        record: `study.json`; the scoring of a test split is added.
        device: where the model computes.
        retrained: whether the model was trained on validation too.
    """
    name, best = "val" if task.dataset.test is None else "test", folder / BEST
    if name == "test" or not retrained:
        logits = split_logits(task, task.dataset.for_name(name), best, device)
        if name == "test":
            scored = score_test(task, best, logits)
            record["test_scorings"].append({"trial": record["winner"], "model": record["model"], **scored})
            add_to_config(best, {"test": scored})
        keep_predictions(task, name, logits, folder / PREDICTIONS_FILE)
    keep_pictures(task, weights_in(folder / ATTENTION_FILE), best, folder / PICTURES_FILE)


def summary(
    tables: StudyTables,
    folder: Path,
    scorings: list[dict[str, Any]],
    model: str,
    remarks: Sequence[str],
    *,
    resume: bool,
    out: str,
) -> list[str]:
    """What a study found, in sentences.

    Args:
        tables: of the search.
        folder: of the study.
        scorings: of the test split, in their order.
        model: which the final one is, as scorings name it.
        remarks: what else there is to say: the confirmation's verdict, and attention's.
        resume: whether it was interrupted.
        out: what holds the folder, as the user knows it.
    """
    metric = tables.metric
    ranked = tables.ranked()
    said = []
    if not ranked:
        states = [str(row["state"]) for row in tables.trials.values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        said.append(f"No trial came to its full budget: {counts}.")
    else:
        winner = ranked[0]
        method = tables.trials[winner]["config.regularizer"]
        score = tables.best_row(winner)[metric]
        said.append(
            f"Best: {method} with {brief(tables, winner)}: {metric} {shown(metric, score)} "
            f"after epoch {tables.best_row(winner)['epoch']} (trial {winner})."
        )
        said += _against_plain(tables, method, score)
    said += remarks
    if ranked:
        if (found := scoring_of(scorings, model)) is not None:
            test, times = found
            low, high = test["test_accuracy_interval"]
            said.append(
                f"Test: accuracy {100 * test['test_accuracy']:.1f} % on {test['images']} images, {times} "
                f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)."
            )
        said.append(f"Model: {folder / BEST} ({model})")
    said.append(f"Tables: {folder / TRIALS_FILE} and {EPOCHS_FILE}")
    if (folder / REPORT_FILE).exists():
        said.append(f"Report: {folder / REPORT_FILE}")
    if resume:
        said.append(f"Interrupted. Carry on with: python launch.py --resume --name {folder.name} --out {out}")
    return said


def _against_plain(tables: StudyTables, method: str, score: float) -> list[str]:
    """How far the winner is from the best of plain L2, or plain L2 from the best of the rest where it won."""
    if method == "l2":
        rest = [n for n in tables.ranked() if tables.trials[n]["config.regularizer"] != "l2"]
        if not rest:
            return []
        runner_up, other = tables.trials[rest[0]]["config.regularizer"], tables.best_row(rest[0])[tables.metric]
        return [
            f"That is the plain L2 recipe; the best of the other methods is {runner_up} with "
            f"{shown(tables.metric, other)} (trial {rest[0]})."
        ]
    if not any(row["config.regularizer"] == "l2" for row in tables.trials.values()):
        return []
    plain = tables.ranked("l2")
    if not plain:
        return ["Plain L2 fine-tuning had no trial of full budget, so there is nothing to compare with."]
    other = tables.best_row(plain[0])[tables.metric]
    by = f"{100 * (score - other):+.1f} points" if METRICS[tables.metric] == "max" else f"{score - other:+.4f}"
    return [
        f"Plain L2: {shown(tables.metric, other)} at its best (trial {plain[0]}), so {method} is {by} on the "
        f"validation split it was chosen on."
    ]
