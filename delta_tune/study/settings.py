"""The settings of a session: of a new study as they were given, of a resumed one also as it was begun."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from delta_tune.config import StudyConfig, UserError, as_utf8, candidates_of, names_several, study_config
from delta_tune.console.escape import flag, shell_command
from delta_tune.results.remembered_studies import known_study, new_id
from delta_tune.results.study_record import StudyRecord
from delta_tune.spaces.space import find_space
from delta_tune.study.known_studies import check_space_text, is_copy, settings_to_resume

NAMES_NOT_PATHS = ("demo", "default")
"""Values of data and weights that never mean a folder of that name."""

# Settings that may change at a resume: how much and where to run, not what is measured. Of data, label map, weights and
# space the content is compared: they may have been moved.
CHANGEABLE = {
    *("data", "label_map", "weights", "space"),
    *("num_trials", "time_budget", "confirm", "confirm_splits", "final_runs", "members"),
    *("cpus_per_trial", "gpus_per_trial", "max_concurrent_trials"),
    *("address", "out", "name", "resume", "verbose", "cache", "memory", "scratch", "storage", "mlflow", "wandb"),
}


def resolve_settings(
    given: Mapping[str, Any], place: str | None = None
) -> tuple[StudyConfig, StudyRecord, tuple[str, ...]]:
    """The settings of the study, the record of the study to resume (else a new one), and sentences for the plan.

    A resumed study has its settings; settings given again must agree or be changeable. What its folder alone names is
    not used.

    Args:
        given: settings as the user gave them.
        place: the study's address, if `out` is a local copy of it.

    Raises:
        UserError: a setting is unknown, invalid, differs from the study to resume, or must be given again.
    """
    config = study_config(given)
    if config.max_steps is not None and "max_epochs" in given:
        raise UserError(
            f"--max-steps {config.max_steps} and --max-epochs {config.max_epochs} exclude each other; give one of them."
        )
    if not config.resume:
        record = StudyRecord()
        record.study_id = new_id()
        return config, record, ()
    assert config.name is not None, "checked before the study was claimed"
    folder = config.out / config.name
    place = place or str(folder.resolve())
    record = StudyRecord.read(folder)
    begin_with = shell_command(flag("--start-from", config.name))
    for name, value in settings_for_json(config, config.out).items():
        same = value == record.settings.get(name) or (name in record.asked and value == record.asked[name])
        if name in given and name not in CHANGEABLE and not same:
            raise UserError(
                f"{folder} was begun with {name} {record.settings.get(name)!r} and cannot be resumed "
                f"with {value!r}; leave it out, or start a new study, with {begin_with} to begin with "
                f"what this one found."
            )
    known = known_study(record.study_id)
    settings, notes = settings_to_resume(record, given, known, place)
    if known is not None and is_copy(known, place):
        record.study_id = new_id()
        notes += (f"This is a copy of {known['folder']}, which stays as it is.",)
    elif record.study_id is None:
        record.study_id = new_id()
    here = {"out": config.out, "name": config.name, "resume": True}
    decided = {name: settings[name] for name in record.asked}
    config = study_config({**settings, **given, **decided, **here})
    check_space_text(record, config.space, str(folder), folder.name)
    return config, record, notes


def settings_left_open(config: StudyConfig, record: StudyRecord, given: Mapping[str, Any]) -> frozenset[str]:
    """The names of the settings that the time budget is to decide: nobody has given them, or `max_steps` for epochs.

    Args:
        config: the settings.
        record: of the study; it has those of earlier sessions.
        given: settings that the user gives now.
    """
    if config.time_budget is None:
        return frozenset()
    decided = {"num_trials"} if config.sampler == "grid" else set()
    if config.max_steps is not None:
        decided |= {"max_epochs", "grace_period"}
    return frozenset(("max_epochs", "grace_period", "num_trials")) - given.keys() - record.settled - decided


def check_paths(config: StudyConfig) -> None:
    """Refuse places for results that are not UTF-8: Arrow and Ray cannot open them.

    Raises:
        UserError: names the setting.
    """
    places = {"out": config.out.absolute(), "name": config.name, "cache": config.cache, "scratch": config.scratch}
    for setting, place in places.items():
        if as_utf8(str(place)) != str(place):
            raise UserError(
                f"--{setting} {place} has bytes that are not UTF-8, which Arrow and Ray cannot open; give another."
            )


def settings_for_json(config: StudyConfig, folder: Path) -> dict[str, Any]:
    """Settings as they go into `study.json`: paths absolute, so a study is resumed from anywhere, functions by name."""
    settings = dataclasses.asdict(config) | {"name": folder.name, "out": str(folder.parent), "resume": False}
    if config.space is None:  # the network decides, once it is known
        settings["space"] = None
    elif callable(config.space):
        settings["space"] = getattr(config.space, "__name__", repr(config.space))
    else:
        settings["space"] = str(find_space(config.space))
    if names_several(config.model) and config.weights is not None:
        each = [candidate.weights for candidate in candidates_of(config.model, config.weights)]
        settings["weights"] = ",".join(_absolute(weights or "default") for weights in each)
    for name in ("data", "label_map", "weights", "start_from"):
        if settings[name] not in (None, *NAMES_NOT_PATHS) and Path(settings[name]).exists():
            settings[name] = str(Path(settings[name]).absolute())
    if settings["scratch"] is not None:
        settings["scratch"] = os.path.abspath(os.path.expanduser(settings["scratch"]))
    return settings


def _absolute(weights: str) -> str:
    """Weights of one of several models: a file's path is made absolute."""
    path = Path(weights).expanduser()
    return weights if weights in NAMES_NOT_PATHS or not path.exists() else str(path.absolute())
