"""Choose among several backbones before a study: one pass of each over a few training images, and its speed here."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from delta_tune.config import Candidate, StudyConfig, UserError, labels_of
from delta_tune.console.format import format_count, format_duration
from delta_tune.console.progress import Progress
from delta_tune.data.batches import eval_batch_size
from delta_tune.data.dataset import Dataset
from delta_tune.data.training_sample import TrainingSample
from delta_tune.labels.kinds import kind_of
from delta_tune.models.availability import at_hand
from delta_tune.models.backbones import Backbone
from delta_tune.models.device_check import gpu_device
from delta_tune.results.screened import ScreenedNetwork, Screening
from delta_tune.study.schedule import epochs_of_set, epochs_of_steps
from delta_tune.study.screening_pass import (
    TIMED_BATCH,
    MissingWeights,
    Runner,
    check,
    load,
    predict,
    preprocessing_of,
    time_steps,
)
from delta_tune.study.screening_rules import MOST_KEPT, Room, keep, sampled_images, timed_images
from delta_tune.study.time_budget import END_S, LARGEST_SHARE, START_S
from delta_tune.training.task import Task

LONGEST_S, SHARE_OF_BUDGET = 120.0, 0.05
"""Seconds, and share of the time budget, that all passes may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where screening runs, and what is known of where trials will.

    Attributes:
        device: of the passes and of the steps that are timed.
        threads: of torch in a trial on a CPU.
        slots: trials at a time; None if trials run on other machines, whose speed is not known.
    """

    device: torch.device
    threads: int
    slots: int | None


def this_machine(config: StudyConfig) -> Machine:
    """Where a study's screening runs."""
    gpu = torch.device(gpu_device())
    cpus, gpus = config.cpus_per_trial or 1, config.gpus_per_trial
    found = torch.get_device_module(gpu).device_count() if gpus != 0 else 0
    slots = found / (gpus if isinstance(gpus, int | float) else 1) if found else (os.cpu_count() or 1) / cpus
    here = (config.address or os.environ.get("RAY_ADDRESS") or "local") == "local"
    return Machine(
        device=gpu if found else torch.device("cpu"),
        threads=max(1, int(cpus)),
        slots=max(1, min(int(slots), config.max_concurrent_trials or int(slots))) if here else None,
    )


def room_of(
    config: StudyConfig, left_open: Collection[str], steps: int, machine: Machine, seconds: float | None
) -> Room:
    """The time there is for a study's trials.

    Args:
        config: the settings.
        left_open: names of those that the time budget decides.
        steps: of an epoch.
        machine: where trials run.
        seconds: that are left of the time budget; None if there is none.
    """
    epochs, for_trials, notes = config.max_epochs, math.inf, tuple[str, ...]()
    if config.max_steps is not None:
        epochs = epochs_of_steps(config.max_steps, steps)
    elif "max_epochs" in left_open:
        epochs = epochs_of_set(steps)
    if seconds is not None and machine.slots is not None:
        share = 1 - LARGEST_SHARE if config.confirm or config.final_runs else 1.0
        for_trials = max(0.0, share * (seconds - START_S - END_S))
    if seconds is not None and machine.slots is None:
        notes = ("Trials run on other machines, whose speed is not known here: the time budget does not decide.",)
    trials = None if "num_trials" in left_open else config.num_trials
    return Room(seconds=for_trials, slots=machine.slots or 1, epochs=epochs, num_trials=trials, notes=notes)


def screen(
    candidates: Sequence[Candidate],
    sample: TrainingSample,
    *,
    image_size: int | None,
    channels: int,
    seed: int,
    room: Room,
    machine: Machine,
    suits: Callable[[str, Task], None],
    progress: Progress,
) -> tuple[Screening, list[Backbone]]:
    """Rank the candidates, and choose which the study goes on with: at most two.

    Args:
        candidates: ≥ 2.
        sample: reads training images.
        image_size: as asked.
        channels: of the input.
        seed: of the folds.
        room: the time there is.
        machine: where this runs.
        suits: given label and task, raises UserError for a network with which the study cannot do what it is asked to.
        progress: prints to the user.

    Returns:
        What was found, and the backbones that are kept, in the order of `Screening.kept`.

    Raises:
        UserError: no candidate can be used, or the weights of one that was named are not there or do not fit.
    """
    runners, missing = load_all(candidates, image_size, channels)

    def read(runner: Runner, positions: np.ndarray) -> Dataset:
        return sample.read(positions, sample.settled(preprocessing_of(runner)))

    images, looked_at = len(sample.labels), 0
    most = TIMED_BATCH if machine.device.type == "cpu" else eval_batch_size(machine.device)
    few = sample.positions(1, 1)[: timed_images(images, room.epochs, max(1, len(runners)), most)]
    with progress.bar("Screening networks", 2 * len(runners)) as advance:
        for runner in alive(runners):
            check(runner, read(runner, few[:1]), suits)
        if len(running := alive(runners)) > 1:
            for runner in running:
                time_steps(runner, read(runner, few), machine.device, machine.threads)
                advance(1)
            drop_slow(alive(runners), sample, room)
        if len(running := alive(runners)) > 1:
            positions, passes = positions_to_look_at(running, sample, len(runners), room), []
            running.sort(key=lambda runner: repr(sample.settled(preprocessing_of(runner)).square))  # each is read once
            for runner in running:
                dataset = read(runner, positions)
                passes.append((runner, predict(runner, dataset, seed, machine.device)))
                advance(1)
            labels = dataset.train.labels
            rank([(runner, logits) for runner, logits in passes if logits is not None], labels, room)
            looked_at = len(labels)
    for runner in alive(runners) if not looked_at else ():
        runner.keep("the only one that can be used here")
    if not alive(runners):
        told = [f"{runner.row.label}: {runner.row.verdict}" for runner in runners] + missing
        raise UserError(
            f"None of the {len(candidates)} networks of --model can be used: {'; '.join(told)}; name others."
        )
    runners.sort(key=lambda runner: runner.place)
    found = Screening(
        networks=tuple(runner.row for runner in runners),
        images=looked_at,
        of=images,
        epochs=room.epochs,
        device="CPU" if machine.device.type == "cpu" else "GPU",
        notes=(*missing, *room.notes),
    )
    return found, [runner.backbone for runner in runners if runner.row.kept and runner.backbone is not None]


def load_all(candidates: Sequence[Candidate], image_size: int | None, channels: int) -> tuple[list[Runner], list[str]]:
    """The candidates that are there, and a sentence on those that are not.

    Raises:
        UserError: the weights of one that was named are not there or do not fit.
    """
    runners, missing = list[Runner](), dict[str, list[str]]()
    for candidate, label in zip(candidates, labels_of(candidates), strict=True):
        candidate = at_hand(candidate)
        row = ScreenedNetwork(
            label=label, model=str(candidate.model), weights=candidate.weights, kept=False, verdict=""
        )
        runner = Runner(candidate=candidate, row=row)
        try:
            found = load(candidate, image_size, channels)
        except MissingWeights as error:
            if not candidate.listed:
                raise UserError(
                    f"The default weights of {label} cannot be had here ({error}); give --weights a local .pth or "
                    f".safetensors file, or leave the model out."
                ) from error
            missing.setdefault(str(error), []).append(label)
            continue
        if isinstance(found, str):
            runner.drop(found)
        else:
            refuse_twins(label, found, alive(runners))
            runner.backbone = found
        runners.append(runner)
    told = [f"{', '.join(labels)} ({why})" for why, labels in missing.items()]
    return runners, [f"Missing here: {'; '.join(told)}"] if told else []


def refuse_twins(label: str, backbone: Backbone, others: Sequence[Runner]) -> None:
    """Refuse a network that another name or file has brought already.

    Raises:
        UserError: names both.
    """
    for other in others:
        if other.backbone is not None and other.backbone.fingerprint == backbone.fingerprint:
            raise UserError(
                f"--model names the same network twice: {other.row.label} and {label} have the same weights; leave one "
                f"out."
            )


def alive(runners: Sequence[Runner]) -> list[Runner]:
    """Those that are not dropped."""
    return [runner for runner in runners if runner.backbone is not None]


def drop_slow(runners: Sequence[Runner], sample: TrainingSample, room: Room) -> None:
    """Drop the candidates whose trials do not fit into the time; if none fits, all but the fastest."""
    val = len(sample.cut.chosen["val"])
    for runner in runners:
        row = runner.row
        epoch = len(sample.labels) * (row.training_s or 0.0) + val * (row.forward_s or 0.0)
        runner.row = dataclasses.replace(row, trial_s=room.epochs * epoch)
        runner.epochs = room.epochs_in_time(epoch)
    fastest = min(runners, key=lambda runner: runner.row.trial_s or 0.0, default=None)
    for runner in runners:
        if runner.epochs < room.least_epochs and runner is not fastest:
            trials = format_count(room.full_trials, "trial")
            epochs = format_count(room.least_epochs, "epoch")
            runner.drop(f"{trials} of {epochs} do not fit into the {format_duration(room.seconds)} for trials")


def positions_to_look_at(runners: Sequence[Runner], sample: TrainingSample, begun: int, room: Room) -> np.ndarray:
    """The training images of the passes."""
    longest = LONGEST_S if math.isinf(room.seconds) else min(LONGEST_S, SHARE_OF_BUDGET * room.seconds)
    an_image = sum(runner.row.forward_s or 0.0 for runner in runners)
    images, classes = len(sample.labels), len(sample.cut.classes)
    count, least = sampled_images(images, classes, room.epochs, begun, an_image, longest)
    return sample.positions(count, least)


def rank(predicted: Sequence[tuple[Runner, np.ndarray]], labels: np.ndarray, room: Room) -> None:
    """Note what the passes say, and which candidates are kept."""
    kind = kind_of(labels)
    scores = [
        -kind.losses(torch.from_numpy(logits), torch.from_numpy(labels)).double().numpy() for _, logits in predicted
    ]
    names, fit = [runner.row.label for runner, _ in predicted], [r.epochs >= room.epochs for r, _ in predicted]
    order, told = keep(names, scores, fit)
    for number, (runner, logits) in enumerate(predicted):
        runner.row = dataclasses.replace(
            runner.row,
            likelihood=float(scores[number].mean()),
            error=float(scores[number].std(ddof=1) / math.sqrt(len(labels))) if len(labels) > 1 else 0.0,
            accuracy=float(kind.is_right(logits, labels).mean()),
        )
        short = "" if fit[number] else f"; there is time for {runner.epochs} of {room.epochs} epochs"
        if number in order:
            runner.keep(told[number] + short, place=order.index(number))
        else:
            runner.drop(told[number] + short, place=MOST_KEPT - float(scores[number].mean()))
