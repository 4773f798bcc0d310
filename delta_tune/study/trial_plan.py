"""Plan a study's trials: their number, the space, a baseline beside it, and starting points."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

from delta_tune.config import StudyConfig, UserError
from delta_tune.results.study_record import StudyRecord
from delta_tune.search.samplers import check_sampler
from delta_tune.spaces.l2_baseline import add_l2_baseline, lacks_l2_baseline
from delta_tune.spaces.space import load_space
from delta_tune.spaces.validation import CheckedSpace, check_space
from delta_tune.spaces.warm_start import add_starting_points, best_configurations
from delta_tune.study.confirmation_splits import described_splits
from delta_tune.study.time_budget import final_takes_val


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """The trials of a study.

    Attributes:
        checked: the search space.
        num_trials: number of trials; None for as many as the time budget allows.
        notes: sentences for the plan.
    """

    checked: CheckedSpace
    num_trials: int | None
    notes: tuple[str, ...]


def plan_trials(config: StudyConfig, record: StudyRecord, left_open: Collection[str] = ()) -> TrialPlan:
    """The trials of the study with these settings.

    Args:
        config: the settings.
        record: the study's record. It stores the configurations of `--start-from`, so that a resumed study proposes
            the same ones even if the other study is gone.
        left_open: settings that the time budget decides: `num_trials`, and `max_epochs` until it has.

    Raises:
        UserError: the space, sampler or earlier study is unusable.
    """
    base = dataclasses.replace(record.trial_defaults, max_epochs=config.max_epochs, seed=config.seed)
    checked = check_space(load_space(config.space, base, config.set), config.seed)
    remark = check_sampler(config.sampler, checked)
    trials: int | None = None
    note = beside = confirmed = None
    if config.sampler == "grid":
        trials = len(checked.points)
        without = ", without --start-from" if config.start_from else ""
        note = f"{trials} trials, the points of START: what the sampler grid runs{without}."
    else:
        if "num_trials" not in left_open:
            trials, note = count_trials(config.num_trials, checked)
        if config.confirm and lacks_l2_baseline(checked):
            checked = add_l2_baseline(checked, config.seed)
            further = f"1 in {len(checked.choices)} trials searches"
            if trials is not None:
                each = trials // (len(checked.choices) - 1)
                trials += each
                further = f"{each} further trials search"
            beside = f"{checked.space.name} has no plain L2: {further} it, to compare with."
        elif config.confirm and not any(proposal.config.is_baseline for proposal in checked.drawn):
            beside = f"{checked.space.name} has L2 with contrast or co_tuning alone: no plain L2 is compared."
    if config.start_from:
        found = record.start_from
        if found is None:
            found = record.start_from = best_configurations(config.start_from, config.out)
        if config.sampler != "grid":
            checked = add_starting_points(checked, found)
    if config.confirm:
        each_run = f"{config.max_epochs} epochs each" if config.time_budget is None else "as long as a full trial"
        confirmed = (
            f"Then the best of each method again on {described_splits(config.confirm, config.confirm_splits)}, "
            f"{each_run}{'' if config.final_runs else ', and once more for the final model'}."
        )
    final = None
    if config.final_runs and final_takes_val(config):
        final = (
            f"Then the best configuration {config.final_runs} times on nine tenths of train and validation; the mean "
            f"of the weights is the final model."
        )
    notes = tuple(text for text in (note, remark, beside, confirmed, final) if text)
    return TrialPlan(checked=checked, num_trials=trials, notes=notes)


def count_trials(num_trials: int, checked: CheckedSpace) -> tuple[int, str | None]:
    """How many trials the study has, and a sentence if that is not what was asked for.

    Balanced methods get equal numbers.

    Raises:
        UserError: there are fewer trials than methods to balance.
    """
    if checked.space.balance is None:
        return num_trials, None
    choices = len(checked.choices)
    each, left = divmod(num_trials, choices)
    if each == 0:
        raise UserError(
            f"--num-trials {num_trials} is less than the {choices} choices of {checked.space.balance} that "
            f"{checked.space.name} gives the same number of trials; give at least {choices}."
        )
    if left == 0:
        return num_trials, None
    return each * choices, (
        f"{each * choices} trials of the {num_trials}: {each} for each {checked.space.balance}, so that they "
        f"compare; --num-trials {(each + 1) * choices} would give {each + 1}."
    )
