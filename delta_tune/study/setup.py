"""Which trials a study has: its space, what is searched beside it, what is tried first, and how many."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from delta_tune.config import StudyConfig, TrialConfig, UserError, study_config
from delta_tune.models.backbones import resolve_layers
from delta_tune.results.layout import STUDY_FILE
from delta_tune.results.study_record import StudyRecord
from delta_tune.search.samplers import check_sampler
from delta_tune.spaces.l2_baseline import add_l2_baseline, lacks_l2_baseline
from delta_tune.spaces.space import find_space, load_space
from delta_tune.spaces.validation import CheckedSpace, check_space
from delta_tune.spaces.warm_start import add_starting_points, best_configurations
from delta_tune.training.task import Task

NAMES_NOT_PATHS = ("demo", "default")
"""Of data and weights; a folder of that name is not meant."""

# What a resumed study may change: how much and where, not what is measured.
CHANGEABLE = {
    *("num_trials", "time_budget", "confirm", "cpus_per_trial", "gpus_per_trial", "max_concurrent_trials"),
    *("address", "out", "name", "resume", "verbose", "cache", "storage", "mlflow", "wandb"),
}


def resolve_settings(given: Mapping[str, Any]) -> tuple[StudyConfig, StudyRecord]:
    """The settings of the study, and the record of the one that is resumed (else an empty one).

    A resumed study has its settings already: those that are given again must agree, or be of the kind that may change.

    Raises:
        UserError: an unknown setting, one that is not allowed, or one that differs from the study that is resumed.
    """
    config = study_config(given)
    if not config.resume:
        return config, StudyRecord()
    if config.name is None:
        raise UserError("--resume needs the --name of the study to carry on; give the folder's name under --out.")
    record = StudyRecord.read(config.out / config.name)
    for name, value in settings_for_json(config, config.out).items():
        if name in given and name not in CHANGEABLE and value != record.settings[name]:
            raise UserError(
                f"{config.out / config.name} was begun with {name} {record.settings[name]!r} and cannot be resumed "
                f"with {value!r}; leave it out, or start a new study, with --start-from {config.name} to begin with "
                f"what this one found."
            )
    return study_config({**record.settings, **given}), record


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


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """The trials of a study.

    Attributes:
        checked: the space that is searched.
        num_trials: of it.
        notes: what the user is told of it, in sentences.
    """

    checked: CheckedSpace
    num_trials: int
    notes: tuple[str, ...]


def plan_trials(config: StudyConfig, record: StudyRecord) -> TrialPlan:
    """The trials of the study with these settings.

    Args:
        config: the settings.
        record: of the study, where the configurations of an earlier study are written down: a resumed study proposes
            the same even where the other one is gone by then.

    Raises:
        UserError: the space, its sampler or the earlier study cannot be used.
    """
    base = TrialConfig(max_epochs=config.max_epochs, seed=config.seed)
    checked = check_space(load_space(config.space, base, config.set), config.seed)
    remark = check_sampler(config.sampler, checked)
    trials, note = count_trials(config, checked)
    beside = confirmed = None
    if config.confirm and config.sampler != "grid" and lacks_l2_baseline(checked):
        checked = add_l2_baseline(checked, config.seed)
        each = trials // (len(checked.choices) - 1)
        trials += each
        beside = f"{checked.space.name} has no plain L2: {each} further trials search it, to compare with."
    if config.start_from:
        if record.start_from is None:
            record.start_from = best_configurations(config.start_from, config.out)
        checked = add_starting_points(checked, record.start_from)
    if config.confirm:
        confirmed = (
            f"Then the best of each method again on {config.confirm} fresh seeds and splits, "
            f"{config.max_epochs} epochs each, and once more for the final model."
        )
    notes = tuple(text for text in (note, remark, beside, confirmed) if text)
    return TrialPlan(checked=checked, num_trials=trials, notes=notes)
