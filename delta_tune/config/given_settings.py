"""Settings as a user gave them, made those of a study; by keywords of `tune`, which are flags of `launch.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from delta_tune.config.addresses import refuse_secrets
from delta_tune.config.errors import UserError, did_you_mean
from delta_tune.config.fields import fields_of
from delta_tune.config.study import SMALLEST_PART, StudyConfig

STUDY_FIELDS: tuple[str, ...] = tuple(fields_of(StudyConfig))
DATA_OPTIONS = tuple(
    name for name, declared in fields_of(StudyConfig).items() if declared.group == "data" and name != "data"
)
"""Settings of how the data is read, after `data` itself: keywords of `load_datasets` too."""
DEMO: dict[str, Any] = {
    "image_size": 64,
    "space": "search_spaces/demo.py",
    "num_trials": 10,
    "max_epochs": 9,
    "grace_period": 3,
    "reduction_factor": 3,
    "final_runs": 2,
}
"""What the demo uses where nothing else is asked for: minutes on two cores."""


def study_config(given: Mapping[str, Any]) -> StudyConfig:
    """The settings with their defaults.

    Raises:
        UserError: an unknown name, a value that is not allowed, or an address that holds a password.
    """
    for name in given:
        if name not in STUDY_FIELDS:
            raise UserError(
                f"{name!r} is no setting of a study{did_you_mean(name, STUDY_FIELDS)}; "
                f"the settings are {', '.join(STUDY_FIELDS)}."
            )
    refuse_secrets(given)
    _check_gpus(given.get("gpus_per_trial"))
    defaults = DEMO if given.get("data", "demo") == "demo" and given.get("model") is None else {}
    return StudyConfig(**{**defaults, **given})


def _check_gpus(asked: Any) -> None:
    """Refuse shares of GPUs that a trial cannot have; studies of early versions that had them can still be read.

    Raises:
        UserError: the share is above 1, or below Ray's unit.
    """
    allowed = f"give 1, a fraction of 1 from {SMALLEST_PART:f}".rstrip("0") + ", auto, or 0 to train on CPUs"
    if not isinstance(asked, int | float):
        return
    if asked > 1:
        raise UserError(f"--gpus-per-trial {asked:g} is not possible, because one trial trains on one GPU; {allowed}.")
    if 0 < asked < SMALLEST_PART:
        raise UserError(f"--gpus-per-trial {asked:g} is less than Ray can share out; {allowed}.")
