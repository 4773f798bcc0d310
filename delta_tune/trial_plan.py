"""Which trials a study has: its space, what is searched beside it, what is tried first, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from delta_tune.config import TrialConfig
from delta_tune.earlier import best_configurations, starting_from
from delta_tune.plain_arm import lacks_plain_l2, with_plain_l2
from delta_tune.plan import count_trials
from delta_tune.samplers import check_sampler
from delta_tune.settings import StudyConfig
from delta_tune.space_checks import CheckedSpace, check_space
from delta_tune.spaces import load_space


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


def plan_trials(config: StudyConfig, record: dict[str, Any]) -> TrialPlan:
    """The trials of the study with these settings.

    Args:
        config: the settings.
        record: `study.json`, where the configurations of an earlier study are written down: a resumed study proposes
            the same even where the other one is gone by then.

    Raises:
        UserError: the space, its sampler or the earlier study cannot be used.
    """
    base = TrialConfig(max_epochs=config.max_epochs, seed=config.seed)
    checked = check_space(load_space(config.space, base, config.set), config.seed)
    remark = check_sampler(config.sampler, checked)
    trials, note = count_trials(config, checked)
    beside = confirmed = None
    if config.confirm and config.sampler != "grid" and lacks_plain_l2(checked):
        checked = with_plain_l2(checked, config.seed)
        each = trials // (len(checked.choices) - 1)
        trials += each
        beside = f"{checked.space.name} has no plain L2: {each} further trials search it, to compare with."
    if config.start_from:
        if "start_from" not in record:
            record["start_from"] = best_configurations(config.start_from, config.out)
        checked = starting_from(checked, record["start_from"])
    if config.confirm:
        confirmed = (
            f"Then the best of each method again on {config.confirm} fresh seeds and splits, "
            f"{config.max_epochs} epochs each, and once more for the final model."
        )
    notes = tuple(text for text in (note, remark, beside, confirmed) if text)
    return TrialPlan(checked=checked, num_trials=trials, notes=notes)
