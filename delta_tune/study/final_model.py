"""The final model: the mean of the weights of several runs, what they say of unseen images, and `best/` made of it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from delta_tune.data.dataset import Split
from delta_tune.data.resampling import pool_splits, pool_train_val
from delta_tune.inference.model import load
from delta_tune.inference.model_folder import save_model
from delta_tune.models.network_state import build_network
from delta_tune.report.heat_map_images import save_heat_map_images
from delta_tune.report.held_out import HELD_OUT, HeldOut, join, write_held_out
from delta_tune.report.predictions import save_predictions, split_logits
from delta_tune.results.image_scores import CLASS_METRICS
from delta_tune.results.layout import (
    BEST,
    CHECKPOINTS,
    FINAL,
    HEAT_MAPS_FILE,
    HELD_OUT_FILE,
    PREDICTIONS_FILE,
    trial_name,
)
from delta_tune.results.log import may_fail
from delta_tune.results.statistics import wilson_interval
from delta_tune.search.session import Session
from delta_tune.study.race import FoldRun
from delta_tune.study.shifted_model import find_shift, shift_networks
from delta_tune.study.study import Study
from delta_tune.study.time_budget import MOST_CHECKED
from delta_tune.training.checkpoint import last_weights, save_weights
from delta_tune.training.task import Task
from delta_tune.training.workplace import Workplace

SLACK = 0.02
"""By which the loss of a mean may exceed that of its networks: between 0.005 and 0.01 nothing is told of accuracy."""


def run_folder(run: FoldRun) -> str:
    """Name of the checkpoint folder of a final run."""
    return f"{FINAL}-{trial_name(run.trial)}-{run.fold}"


def make_final_model(
    study: Study,
    session: Session,
    folds: Sequence[Task],
    predicted: Mapping[FoldRun, HeldOut],
    begun: Collection[FoldRun],
) -> None:
    """Average the weights of the runs, check the mean, and make it `best/`, with what is known of it.

    Args:
        study: whose record and folder are written.
        session: where the mean is checked.
        folds: the runs' tasks.
        predicted: the runs of one trial, ≥ 1, and what they predict.
        begun: these runs and all others, whose checkpoints are removed at the end.
    """
    runs, record, best = list(predicted), study.record, study.folder / BEST
    trial, checkpoints = runs[0].trial, study.folder / CHECKPOINTS
    held_out, shift = join(list(predicted.values())), None
    searched = study.task_of_trial(trial)
    files = []
    for run in runs:
        if session.mirror is not None:
            session.mirror.fetch_folder(checkpoints / run_folder(run))
        files.append(last_weights(checkpoints / run_folder(run)))
    with session.measuring.workplace() as workplace:
        weights, averaged = checked_means(study, searched, files, workplace, checkpoints / FINAL)
    if (found := find_shift(study, searched, held_out, weights[0])) is not None:
        shift, offsets = found
        weights = shift_networks(searched.backbone, weights, offsets, checkpoints / FINAL)
        held_out = dataclasses.replace(held_out, logits=held_out.logits + offsets.numpy())
    known = describe(held_out)  # and so the temperature is that of the shifted logits
    metrics = held_out.kind.metrics(torch.from_numpy(held_out.logits), torch.from_numpy(held_out.labels))
    config = study.tables.config(trial)
    origin = {
        "trial": trial_name(trial),
        "epoch": config.last_epoch,
        "config": config.record(),
        "metrics": {f"val_{name}": value for name, value in metrics.items()},
        "runs": len(runs),
        **{name: value for name, value in known.items() if name in ("temperature", "unsure", "thresholds")},
        **({} if shift is None else {"logit_shift": shift.strength}),
    }
    split = pool_splits([fold.dataset.val for fold in folds])
    task = searched.on(dataclasses.replace(searched.dataset, val=split))
    calibrated = torch.from_numpy(held_out.logits) / known["temperature"]
    suspects = held_out.kind.suspects(calibrated.numpy(), held_out.labels)
    thresholds = known.get("thresholds")
    write_held_out(task, calibrated, suspects, study.folder / HELD_OUT_FILE, thresholds)
    save_model(task.backbone, task.dataset.classes, weights, origin, best, held_out.kind)
    images = f"{len(folds[0].dataset.train)} of {len(study.dataset.train) + len(study.dataset.val)} images"
    record.set_model(trial, f"trial {trial} retrained {in_words(len(runs), images, len(weights), averaged=averaged)}")
    asked = [study.config.final_runs, study.config.members]
    about = {"runs": len(runs), "asked": asked, "suspects": len(suspects), "trials": study.ended}
    if study.config.metric in CLASS_METRICS and not study.dataset.is_multilabel:
        about |= {"score": metrics[study.config.metric.removeprefix("val_")]}
    record.set_held_out(known | about | ({} if shift is None else {"shift": dataclasses.asdict(shift)}))
    study.save_record()
    if task.dataset.test is None:
        file = study.folder / PREDICTIONS_FILE
        save_predictions(task, "val", calibrated, file, told=HELD_OUT, thresholds=thresholds)
        with may_fail("The heat maps for the report", study.folder, study.progress.say):
            save_heat_maps(study, session, task, calibrated, thresholds)
    for folder in {*checkpoints.glob(f"{FINAL}*"), *(checkpoints / run_folder(run) for run in begun)}:
        if session.mirror is not None:
            session.mirror.discard(folder)
        shutil.rmtree(folder, ignore_errors=True)


def save_heat_maps(
    study: Study, session: Session, task: Task, calibrated: Tensor, thresholds: Sequence[float] | None
) -> None:
    """Draw where the final model looks in a few of the images that its runs held out."""
    network, file = load(study.folder / BEST).network, study.folder / HEAT_MAPS_FILE
    with session.measuring.workplace() as workplace:
        save_heat_map_images(task, "val", calibrated, network, file, workplace, thresholds=thresholds)


def mean_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of networks of one architecture, computed in float64; whole numbers are those of the first.

    Args:
        files: of safetensors, ≥ 1.
    """
    first = safetensors.torch.load_file(files[0])
    total = {name: value.double() for name, value in first.items() if value.is_floating_point()}
    for file in files[1:]:
        with safetensors.safe_open(file, framework="pt") as opened:
            for name, value in total.items():
                value += opened.get_tensor(name)
    return first | {name: (value / len(files)).to(first[name].dtype) for name, value in total.items()}


def checked_means(
    study: Study, task: Task, files: Sequence[Path], workplace: Workplace, folder: Path
) -> tuple[list[Path], bool]:
    """Files of the members of the model, each the mean of a group of networks, and whether they are means.

    Networks that lie in different basins of the loss have a mean that classifies worse than they do. So on images of
    train and validation, nine tenths of which each network has seen, the mean's loss must not be above theirs by more
    than `SLACK`; else the networks themselves become the members, as many as were asked for.

    Args:
        study: says how many members.
        task: of the search, of the networks.
        files: the networks' weights.
        workplace: scores the networks.
        folder: where the means are written.
    """
    members, images = study.config.members, checked_images(task, study.config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index in range(min(members, len(files))):
        group = files[index::members]
        state = mean_weights(group)
        file = folder / f"member-{index}.safetensors"
        save_weights(state, file)
        written.append(file)
        if len(group) == 1:
            continue
        ours = loss_of(task, state, images, workplace)
        theirs = [loss_of(task, safetensors.torch.load_file(each), images, workplace) for each in group]
        if not ours <= np.mean(theirs) + SLACK:
            study.progress.say(
                f"The mean of {len(group)} networks has a loss of {ours:.3g} where they have {np.mean(theirs):.3g}, so "
                f"they are not averaged."
            )
            return list(files[:members]), False
    return written, len(written) < len(files)


def in_words(runs: int, images: str, members: int, *, averaged: bool) -> str:
    """How the model came about."""
    times = f"{runs if averaged else members} times on {images}" if averaged or members > 1 else f"once on {images}"
    means = ", weights averaged" if averaged else ""
    return f"{times}{means}{f', {members} networks' if members > 1 else ''}"


def checked_images(task: Task, seed: int) -> Split:
    """Some images of train and validation."""
    pool = pool_train_val(task.dataset)
    order = np.random.default_rng(seed).permutation(len(pool.labels))
    return pool.split(np.sort(order[:MOST_CHECKED]))


def loss_of(task: Task, state: Mapping[str, Tensor], images: Split, workplace: Workplace) -> float:
    """Mean loss of the network with these weights."""
    logits = split_logits(task, images, build_network(task.backbone, state), workplace)
    return task.dataset.kind.loss(logits, torch.from_numpy(np.asarray(images.labels))).item()


def describe(held_out: HeldOut) -> dict[str, Any]:
    """Accuracy with its interval, temperature, and what is known of the probabilities without and with it."""
    labels, accuracy = held_out.labels, held_out.accuracy
    temperature = held_out.kind.temperature(held_out.logits, labels)
    return {
        "images": len(labels),
        "accuracy": accuracy,
        "interval": list(wilson_interval(accuracy, len(labels))),
        "temperature": temperature,
        **held_out.kind.calibration(held_out.logits, labels, temperature),
    }
