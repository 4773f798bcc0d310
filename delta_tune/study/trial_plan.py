"""Plan a study's trials: their number, the space, a baseline beside it, and starting points."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from delta_tune.config import StudyConfig, TrialConfig, UserError
from delta_tune.results.study_record import StudyRecord
from delta_tune.search.samplers import check_sampler
from delta_tune.spaces.default_space import CONVOLUTIONAL
from delta_tune.spaces.joint import balanced, chooses_backbone, join_spaces
from delta_tune.spaces.l2_baseline import add_l2_baseline, lacks_l2_baseline
from delta_tune.spaces.space import load_space
from delta_tune.spaces.validation import BACKBONE, CheckedSpace, check_space
from delta_tune.spaces.warm_start import add_starting_points, best_configurations, of_backbone
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


def plan_trials(
    config: StudyConfig, record: StudyRecord, left_open: Collection[str] = (), spaces: Mapping[str, Any] | None = None
) -> TrialPlan:
    """The trials of the study with these settings.

    Several networks take turns, unless the space, or what is set, says of itself which one a trial has.

    Args:
        config: the settings.
        record: the study's record. It stores the configurations of `--start-from`, so that a resumed study proposes
            the same ones even if the other study is gone.
        left_open: settings that the time budget decides: `num_trials`, and `max_epochs` until it has.
        spaces: label → the search space of each of the study's networks, the one that was screened best first; None
            for the settings' own for all, as long as they are not known.

    Raises:
        UserError: the space, sampler or earlier study is unusable.
    """
    base = dataclasses.replace(record.trial_defaults, max_epochs=config.max_epochs, seed=config.seed)
    parts = plan_spaces(config, base, spaces or {})
    remarks = [check_sampler(config.sampler, part) for part in parts.values()]
    checked = joined(parts)
    trials: int | None = None
    note = confirmed = None
    beside: list[str] = []
    if config.sampler == "grid":
        trials = len(checked.points)
        without = ", without --start-from" if config.start_from else ""
        note = f"{trials} trials, the points of START: what the sampler grid runs{without}."
    else:
        if "num_trials" not in left_open:
            trials, note = count_trials(config.num_trials, checked)
        own = trials
        for label, part in parts.items() if config.confirm else ():
            if lacks_l2_baseline(part):
                parts[label] = part = add_l2_baseline(part, config.seed)
                further = f"1 in {len(part.choices)} trials searches"
                if own is not None and trials is not None:
                    each = own // len(parts) // (len(part.choices) - 1)
                    trials += each
                    further = f"{each} further trials search"
                further += "" if len(parts) == 1 else f" (with {label})"
                beside.append(f"{part.space.name} has no plain L2: {further} it, to compare with.")
            elif not any(proposal.config.is_baseline for proposal in part.drawn):
                beside.append(f"{part.space.name} has L2 with contrast or co_tuning alone: no plain L2 is compared.")
    if config.start_from:
        found = record.start_from
        if found is None:
            found = record.start_from = best_configurations(config.start_from, config.out)
        if config.sampler != "grid":
            for label, part in parts.items():
                parts[label] = add_starting_points(part, of_backbone(found, label, parts))
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
    elif config.final_runs:
        flag = "--train-fraction" if config.train_per_class is None else "--train-per-class"
        final = f"The final model is the best trial's: with {flag} nothing is trained anew on train and validation."
    notes = tuple(dict.fromkeys(text for text in (note, *remarks, *beside, confirmed, final) if text))
    return TrialPlan(checked=joined(parts), num_trials=trials, notes=notes)


def plan_spaces(config: StudyConfig, base: TrialConfig, spaces: Mapping[str, Any]) -> dict[str, CheckedSpace]:
    """The spaces that take turns, by their network's label; one under "" if trials choose no network by turns.

    Args:
        config: the settings.
        base: what the spaces override.
        spaces: as of `plan_trials`.

    Raises:
        UserError: a space is unusable.
    """
    own = spaces.get(config.set.get(BACKBONE, ""), config.space or next(iter(spaces.values()), CONVOLUTIONAL))
    checked = check_space(load_space(own, base, config.set), config.seed)
    if len(spaces) < 2 or chooses_backbone(checked):
        return {"": checked}
    return {label: check_space(load_space(space, base, config.set), config.seed) for label, space in spaces.items()}


def joined(parts: Mapping[str, CheckedSpace]) -> CheckedSpace:
    """What the spaces of `plan_spaces` are together."""
    return join_spaces(parts) if len(parts) > 1 else next(iter(parts.values()))


def count_trials(num_trials: int, checked: CheckedSpace) -> tuple[int, str | None]:
    """How many trials the study has, and a sentence if that is not what was asked for.

    Balanced methods get equal numbers.

    Raises:
        UserError: there are fewer trials than methods to balance.
    """
    if checked.space.balance is None:
        return num_trials, None
    choices, what = len(checked.choices), balanced(checked)
    if checked.inner:
        choices *= math.lcm(*(len(each.turns) for each in checked.inner.values()))
    each, left = divmod(num_trials, choices)
    if each == 0:
        raise UserError(
            f"--num-trials {num_trials} is less than the {choices} choices of {what} that "
            f"{checked.space.name} gives the same number of trials; give at least {choices}."
        )
    if left == 0:
        return num_trials, None
    return each * choices, (
        f"{each * choices} trials of the {num_trials}: {each} for each {what}, so that they "
        f"compare; --num-trials {(each + 1) * choices} would give {each + 1}."
    )
