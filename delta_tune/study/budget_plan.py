"""Choose epochs and trials by the time budget: time a few steps, share the time out, and say so."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import fmean

from delta_tune.cluster.gpu_sharing import heaviest_config
from delta_tune.config import TrialConfig
from delta_tune.console.format import format_count, format_duration
from delta_tune.search.session import Session
from delta_tune.spaces.l2_baseline import compared
from delta_tune.spaces.validation import CheckedSpace
from delta_tune.study.attention_phase import ATTENTION_SHARE
from delta_tune.study.confirmation_splits import split_growth
from delta_tune.study.networks import space_of
from delta_tune.study.plan import budget_lines, share_with_rungs, waits_for_speed
from delta_tune.study.schedule import SHORTEST, Means, Schedule, Wishes, choose_schedule, search_seconds
from delta_tune.study.setup import make_search, steps_of_epoch, written_settings
from delta_tune.study.study import Study
from delta_tune.study.time_budget import (
    END_S,
    LARGEST_SHARE,
    LEAST_RUNS,
    MOST_CHECKED,
    START_S,
    final_training_growth,
    fold_growth,
    images_to_measure,
    plan_final_runs,
    plan_post_search,
)
from delta_tune.study.trial_plan import plan_trials
from delta_tune.training.speed import Speed, few, measure_speed

SIDE_BY_SIDE = 1.2
"""Factor on the time of a step where other trials run beside: they share memory and caches."""

LEAST_REPETITIONS = 2
"""Of a confirmation."""


def plan_by_budget(study: Study, session: Session) -> None:
    """Before the first trial: choose what is left to the time budget, shorten what does not fit into it, and say so.

    A study that has trials keeps its epochs: its rungs compare trials of as many.
    """
    if waits_for_speed(study):
        choose_by_budget(study, session)
        for line in budget_lines(study):
            study.progress.say(line)
    elif 0 < study.budget.left < math.inf:
        keep_time_for_ends(study, session, time_steps(study, session))


def choose_by_budget(study: Study, session: Session, *, prepared: bool = True) -> None:
    """Choose the schedule of a study with a time budget.

    Args:
        study: the study; its settings, space and search are those of the choice afterwards.
        session: where trials run.
        prepared: whether what trials share has been measured; else its time is estimated.
    """
    speed = time_steps(study, session)
    keep_time_for_ends(study, session, speed)
    means = means_of(study, session, speed)
    if not prepared:
        passes = speed.scoring * (len(study.dataset.train) + len(study.dataset.val)) * len(study.tasks)
        means = dataclasses.replace(means, seconds=means.seconds - passes)
    asked, epochs_given = study.config, "max_epochs" not in study.left_open
    wishes = Wishes(
        max_epochs=asked.max_epochs if epochs_given else None,
        num_trials=study.num_trials,
        grace_period=asked.grace_period,
        grace_of=asked.max_epochs if epochs_given or "grace_period" in study.left_open else None,
        reduction_factor=asked.reduction_factor,
        counted=share_with_rungs(study.checked),
    )
    schedule = choose_schedule(wishes, means)
    study.schedule, study.why = schedule, tuple(reasons(study, wishes, means, schedule))
    keep_time_for_ends(study, session, speed)  # less where there is no time for final runs
    if schedule.num_trials:  # else the choice is left to a session with more time
        use_schedule(study, schedule)


def keep_time_for_ends(study: Study, session: Session, speed: Speed) -> None:
    """Keep what the start of a trial and the end of the study take at this speed."""
    study.start_seconds = START_S * speed.waiting
    study.budget.end = END_S * speed.waiting + speed.scoring * images_at_end(study) / session.measuring.slots


def time_steps(study: Study, session: Session) -> Speed:
    """The speed of the configuration to plan with, where trials run; of several networks, what they have on average."""
    found = []
    with session.measuring.workplace() as workplace:
        for label, task in study.tasks.items():
            config = config_to_time(space_of(study.tasks, label, study.checked))
            found.append(workplace.run(measure_speed, few(task, config), config, session.resources.threads))
    return found[0] if len(found) == 1 else mean_speed(found)


def mean_speed(speeds: Sequence[Speed]) -> Speed:
    """The speed of a study of which each of these has as many trials; any of them may be scored at its end."""
    return Speed(
        training=fmean(speed.training for speed in speeds),
        scoring=max(speed.scoring for speed in speeds),
        waiting=max(speed.waiting for speed in speeds),
    )


def config_to_time(checked: CheckedSpace) -> TrialConfig:
    """That of the first starting point, which is what a trial is expected to cost; else the heaviest of the space.

    A trial that costs more is seen as it runs: what is left of the time is reckoned with the epochs of the trials.
    """
    first = checked.first.config
    if checked.points and first.method.trains_backbone:
        return heaviest_config([first])
    return heaviest_config(checked.configs)


def images_at_end(study: Study) -> int:
    """Number of images that are scored at the end: of test, or of val if there is no test split, by each network.

    The mean of final runs is checked beside them on some of train and val.
    """
    data, members = study.dataset, study.config.members
    groups = [len(range(first, study.config.final_runs, members)) for first in range(members)]
    passes = sum(runs + 1 for runs in groups if runs > 1) * study.trains_final
    return members * len(data.test or data.val) + passes * min(MOST_CHECKED, len(data.train) + len(data.val))


def means_of(study: Study, session: Session, speed: Speed) -> Means:
    """What the study has left to spend, at this speed."""
    budget, config, data, slots = study.budget, study.config, study.dataset, session.resources.slots
    assert budget.total is not None, "asked only then"
    beside = SIDE_BY_SIDE if slots > 1 else 1.0
    epoch_seconds = beside * speed.epoch_seconds(data)
    attention = any(each.method.uses_attention for each in study.configs)
    confirming = measuring = 0.0
    if config.confirm:
        confirming = plan_post_search(
            math.inf,
            repetitions=LEAST_REPETITIONS,
            epoch_seconds=dict.fromkeys(compared(study.checked), epoch_seconds),
            max_epochs=1,
            slots=slots,
            growth=final_training_growth(config, data, slots),
            split_growth=split_growth(config, data),
        ).total
        reads = images_to_measure(study.configs, data) / session.measuring.slots
        measuring = (LEAST_REPETITIONS + 1) * reads * speed.scoring
    elif study.trains_final:
        confirming = plan_final_runs(
            math.inf,
            runs=LEAST_RUNS,
            epoch_seconds=epoch_seconds,
            max_epochs=1,
            slots=slots,
            growth=fold_growth(data),
        ).total
        measuring = math.ceil(LEAST_RUNS / slots) * images_to_measure(study.configs, data) * speed.scoring
    return Means(
        seconds=budget.left - study.start_seconds - attention * ATTENTION_SHARE * budget.total,
        epoch_seconds=epoch_seconds,
        steps=steps_of_epoch(data, study.checked),
        slots=slots,
        confirming=confirming,
        for_confirming=LARGEST_SHARE * budget.total,
        measuring=measuring,
        least_epochs=1 if config.confirm else SHORTEST,
    )


def reasons(study: Study, wishes: Wishes, means: Means, schedule: Schedule) -> list[str]:
    """Sentences for the plan on how the schedule came about."""
    budget, slots = study.budget, format_count(means.slots, "trial")
    assert budget.total is not None, "asked only then"
    step = means.epoch_seconds / means.steps
    lines = [
        f"{format_duration(budget.total)} in all, of which {format_duration(max(0.0, means.seconds))} are left for "
        f"trials: a step takes {step:.2g} s and an epoch {format_duration(means.epoch_seconds)}, {slots} at a time"
    ]
    if not schedule.num_trials:
        lines.append("that is too short for a trial; a larger --time-budget goes on")
    elif wishes.max_epochs is not None and schedule.max_epochs < wishes.max_epochs:
        trials = study.num_trials or 1
        needed = search_seconds(wishes, means, trials, wishes.max_epochs)
        lines.append(
            f"{format_count(trials, 'trial')} of up to {wishes.max_epochs} epochs would take about "
            f"{format_duration(needed)}, so they have {format_count(schedule.max_epochs, 'epoch')}"
        )
    if study.num_trials is not None and 0 < schedule.num_trials < study.num_trials:
        lines.append(f"about {schedule.num_trials} of the {study.num_trials} trials will end in time")
    if means.confirming and not schedule.confirms:
        lines.append(budget.too_short().rstrip("."))
    return [f"{line[0].upper()}{line[1:]}." for line in lines]


def use_schedule(study: Study, schedule: Schedule) -> None:
    """Make the schedule the study's, and note it in the record, which is written with the next trial."""
    before = study.config
    config = dataclasses.replace(before, max_epochs=schedule.max_epochs, grace_period=schedule.grace_period)
    asked = {
        name: getattr(before, name)
        for name in ("max_epochs", "grace_period")
        if name not in study.left_open and getattr(before, name) != getattr(config, name)
    }
    study.config = config
    study.left_open = frozenset(study.left_open) & {"num_trials"}
    study.checked = plan_trials(config, study.record, study.left_open, study.spaces).checked
    make_search(study)
    study.record.settle(written_settings(study), asked)
