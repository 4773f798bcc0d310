"""What a study is about to do: everything that can be refused is refused here, and `--dry-run` prints it."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from delta_tune.cluster import Cluster
from delta_tune.config import TrialConfig, UserError
from delta_tune.devices import torch_threads
from delta_tune.live import clock
from delta_tune.models import resolve_layers
from delta_tune.packing import Footprint, share_of, trials_per_gpu
from delta_tune.plain_arm import ARM
from delta_tune.results import STUDY_FILE, read_study
from delta_tune.scheduling import WITHOUT_RUNGS, rung_epochs
from delta_tune.settings import StudyConfig, study_config
from delta_tune.space_checks import CheckedSpace
from delta_tune.spaces import describe, find_space
from delta_tune.task import Task
from delta_tune.time_budget import reserve
from delta_tune.training import run_trial

NAMES_NOT_PATHS = ("demo", "default")
"""Of data and weights; a folder of that name is not meant."""

# What a resumed study may change: how much and where, not what is measured.
CHANGEABLE = {
    *("num_trials", "time_budget", "confirm", "cpus_per_trial", "gpus_per_trial", "max_concurrent_trials"),
    *("address", "out", "name", "resume", "verbose", "cache", "storage", "mlflow", "wandb"),
}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets, and how many run at a time.

    Attributes:
        cpus_per_trial: logical CPUs.
        gpus_per_trial: GPUs; below 1 a part of one.
        slots: trials at a time, on the cluster as it is when the study begins.
        most: trials at a time at the most, however the cluster grows; None for no limit.
        where: the cluster in words.
        why: how the GPUs were shared out, where it was measured.
    """

    cpus_per_trial: float
    gpus_per_trial: float
    slots: int
    most: int | None = None
    where: str = "this machine"
    why: str = ""

    @property
    def threads(self) -> int:
        """Torch threads of a trial."""
        return max(1, int(self.cpus_per_trial))

    @property
    def device(self) -> str:
        """Where a trial trains."""
        return "cuda" if self.gpus_per_trial > 0 else "cpu"


def allocate(config: StudyConfig, cluster: Cluster, num_trials: int, measure: Callable[[], Footprint]) -> Resources:
    """The resources of one trial; `measure` is asked where it is to be found out how many share a GPU.

    Raises:
        UserError: more than the cluster has.
    """
    gpus, why = config.gpus_per_trial, ""
    if gpus == "auto" and cluster.gpus >= 1:
        footprint = measure()
        gpus = share_of(trials_per_gpu(footprint, cluster.cpus / cluster.gpus, config.cpus_per_trial))
        why = footprint.sentence
    elif gpus is None or gpus == "auto":
        gpus = 1.0 if cluster.gpus >= 1 else 0.0
    most = config.max_concurrent_trials
    try:
        slots = min(cluster.slots(config.cpus_per_trial, gpus), num_trials)
    except UserError:
        if not (cluster.may_grow and most):
            raise
        slots = 1  # nodes are asked for before the study begins
    return Resources(
        cpus_per_trial=config.cpus_per_trial,
        gpus_per_trial=gpus,
        slots=slots if most is None else min(slots, most),
        most=most,
        where=str(cluster),
        why=why,
    )


def resolve_settings(given: Mapping[str, Any]) -> tuple[StudyConfig, dict[str, Any]]:
    """The settings of the study, and `study.json` of the one that is resumed (else nothing).

    A resumed study has its settings already: those that are given again must agree, or be of the kind that may change.

    Raises:
        UserError: an unknown setting, one that is not allowed, or one that differs from the study that is resumed.
    """
    config = study_config(given)
    if not config.resume:
        return config, {}
    if config.name is None:
        raise UserError("--resume needs the --name of the study to carry on; give the folder's name under --out.")
    record = read_study(config.out / config.name)
    for name, value in settings_for_json(config, config.out).items():
        if name in given and name not in CHANGEABLE and value != record["settings"][name]:
            raise UserError(
                f"{config.out / config.name} was begun with {name} {record['settings'][name]!r} and cannot be resumed "
                f"with {value!r}; leave it out, or start a new study, with --start-from {config.name} to begin with "
                f"what this one found."
            )
    return study_config({**record["settings"], **given}), record


def new_name(task: Task) -> str:
    """data-model-date-time."""
    return f"{task.dataset.name}-{task.backbone.model.removeprefix('timm:')}-{datetime.now():%Y%m%d-%H%M%S}"


def study_folder(config: StudyConfig, name: str) -> Path:
    """The folder of the study: a new one, or with `resume` the one that is there.

    Raises:
        UserError: the name is taken, the study to resume does not exist, or nothing can be written there.
    """
    folder = (config.out / name).absolute()
    if (folder / STUDY_FILE).exists() and not config.resume:
        raise UserError(
            f"The name {name!r} is taken: {folder} holds a study; give --resume to carry it on, or another --name."
        )
    above = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        reason = "no permission to write" if above.is_dir() else "not a folder"
        raise UserError(f"--out {config.out} cannot be written to ({above}: {reason}); give a folder that can.")
    return folder


def count_trials(config: StudyConfig, checked: CheckedSpace) -> tuple[int, str | None]:
    """The trials of the study, and a sentence where it is not what was asked for.

    Balanced methods get equal numbers; `grid` has as many as there are starting points.

    Raises:
        UserError: fewer trials than there are methods to balance.
    """
    if config.sampler == "grid":
        points = len(checked.grid)
        return points, f"{points} trials, the points of START: what the sampler grid runs."
    if checked.space.balance is None:
        return config.num_trials, None
    choices = len(checked.choices)
    each, left = divmod(config.num_trials, choices)
    if each == 0:
        raise UserError(
            f"--num-trials {config.num_trials} is less than the {choices} choices of {checked.space.balance} that "
            f"{checked.space.name} gives the same number of trials; give at least {choices}."
        )
    if left == 0:
        return config.num_trials, None
    return each * choices, (
        f"{each * choices} trials of the {config.num_trials}: {each} for each {checked.space.balance}, so that they "
        f"compare; --num-trials {(each + 1) * choices} would give {each + 1}."
    )


def expected_epochs(trials: int, config: StudyConfig, checked: CheckedSpace) -> float:
    """Epochs that the study buys if a share of 1/reduction_factor passes each rung."""
    ends = [*rung_epochs(config.max_epochs, config.grace_period, config.reduction_factor), config.max_epochs]
    staged = sum(
        (end - start) / config.reduction_factor**k for k, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    )
    without = sum(p.config.regularizer == WITHOUT_RUNGS for p in checked.drawn) / len(checked.drawn)
    if checked.space.balance == "regularizer":
        without = checked.choices.count(WITHOUT_RUNGS) / len(checked.choices)
    return trials * (1 - without) * staged


def time_one_epoch(task: Task, config: TrialConfig, threads: int) -> float:
    """Wall clock of one epoch with its scoring, measured on this machine's CPU with a uniform-weight DELTA trial."""
    probe = dataclasses.replace(config, regularizer="delta_uniform", behavior_scale="raw", max_epochs=1)
    with torch_threads(threads):
        start = time.perf_counter()
        run_trial(task, probe)
        return time.perf_counter() - start


def plan_lines(
    config: StudyConfig, folder: Path, task: Task, checked: CheckedSpace, trials: int, resources: Resources
) -> list[str]:
    """The plan in sentences."""
    data, backbone, space = task.dataset, task.backbone, checked.space
    sizes = [f"train {len(data.train.labels)}", f"val {len(data.val.labels)}"]
    if data.test is not None:
        sizes.append(f"test {len(data.test.labels)}")
    p = backbone.preprocessing
    layers = ", ".join(f"{name} ({backbone.channels[name]})" for name in backbone.layers)
    names = Counter(name for proposal in checked.drawn for name in proposal.params if name != ARM)
    turns = "the space and plain L2" if space.balance == ARM else space.balance
    rungs = rung_epochs(config.max_epochs, config.grace_period, config.reduction_factor)
    bought = expected_epochs(trials, config, checked)
    apart = {"regularizer": ", method by method", ARM: ", the space and plain L2 apart"}.get(space.balance or "", "")
    said = [
        f"Study     {folder}",
        f"Data      {data.name}: {len(data.classes)} classes, {', '.join(sizes)}",
        *(f"          {note}" for note in data.notes),
        f"Model     {backbone.model}, {backbone.weights} weights, {p.image_size} × {p.image_size} pixels",
        f"Hooks     {layers}",
        f"Space     {space.name}: {describe(space)}".rstrip(": "),
        f"          samples {', '.join(names) or 'nothing: all is set'}" + (f"; {turns} in turns" if turns else ""),
        f"          {len(checked.points)} starting points first",
        *(f"          {sentence}" for sentence in checked.said),
        f"Budget    {trials} trials of up to {config.max_epochs} epochs; ASHA asks after epochs "
        f"{', '.join(map(str, rungs)) or '(none)'} and keeps 1 in {config.reduction_factor:g}{apart}: "
        f"about {bought:.0f} epochs instead of {trials * config.max_epochs}",
        f"Resources {resources.slots} trials at a time, each with {resources.cpus_per_trial:g} CPUs"
        + (f" and {resources.gpus_per_trial:g} GPUs" if resources.gpus_per_trial else "")
        + f", on {resources.where}",
        *([f"          {resources.why}"] if resources.why else []),
    ]
    return said


def estimate(task: Task, config: StudyConfig, checked: CheckedSpace, trials: int, resources: Resources) -> str:
    """The expected wall clock of the search, in a sentence."""
    if resources.device != "cpu":
        return "Time      not estimated: one epoch would have to be measured on the trials' GPU"
    seconds = time_one_epoch(task, checked.drawn[0].config, resources.threads)
    bought = expected_epochs(trials, config, checked)
    then = ""
    if config.confirm:
        arms = checked.choices if checked.space.balance == ARM else {p.config.regularizer for p in checked.drawn}
        after = reserve(
            math.inf,
            repetitions=config.confirm,
            epoch_seconds=dict.fromkeys(map(str, arms), seconds),
            max_epochs=config.max_epochs,
            slots=resources.slots,
            growth=growth(config, task),
        )
        then = (
            f", then about {clock(after.confirmation)} to confirm ({len(arms)} × {config.confirm} runs) and "
            f"{clock(after.final)} for the final model"
        )
    return (
        f"Time      about {clock(seconds * bought / resources.slots)}{then} "
        f"({seconds:.1f} s an epoch, measured here with one trial running), attention not included"
    )


def final_takes_val(config: StudyConfig) -> bool:
    """Whether a confirmed configuration is retrained with validation: not where train was made small on purpose."""
    return config.train_fraction is None and config.train_per_class is None


def growth(config: StudyConfig, task: Task) -> float:
    """Images of the final training / images of a trial's."""
    train, val = len(task.dataset.train), len(task.dataset.val)
    return (train + val) / train if final_takes_val(config) else 1.0


def check_layers(task: Task, checked: CheckedSpace) -> None:
    """Refuse a layer that the backbone does not have.

    Raises:
        UserError: with the nearest layers.
    """
    for layers in {p.config.layers for p in checked.drawn if p.config.uses_behavior}:
        resolve_layers(task.backbone, layers)


def settings_for_json(config: StudyConfig, folder: Path) -> dict[str, Any]:
    """Settings as they go into `study.json`: paths absolute, so a study is resumed from anywhere, functions by name."""
    settings = dataclasses.asdict(config) | {"name": folder.name, "out": str(folder.parent), "resume": False}
    if callable(config.space):
        settings["space"] = getattr(config.space, "__name__", repr(config.space))
    else:
        settings["space"] = str(find_space(config.space))
    for name in ("data", "weights", "start_from"):
        if settings[name] not in (None, *NAMES_NOT_PATHS) and Path(settings[name]).exists():
            settings[name] = str(Path(settings[name]).absolute())
    return settings


def git_commit() -> str | None:
    """The commit of the working directory, where it is a git checkout."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git here: there is no commit to name
        return None
    return found.stdout.strip() or None
