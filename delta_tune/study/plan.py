"""The plan of a study and its estimated time, as `--dry-run` prints them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from delta_tune.cluster.gpu_sharing import Footprint, measure_footprint_on_cluster
from delta_tune.cluster.nodes import Cluster
from delta_tune.cluster.resources import Resources, allocate, find_gpus
from delta_tune.config import HEAVIEST, METHODS, TrialConfig
from delta_tune.console.format import format_count, format_duration
from delta_tune.console.screening_table import screening_lines
from delta_tune.models.map_layout import describe_layers
from delta_tune.results.mirror import INTERVAL_S
from delta_tune.search.asha import rung_epochs
from delta_tune.spaces.joint import balanced
from delta_tune.spaces.l2_baseline import ARM, compared
from delta_tune.spaces.space import describe
from delta_tune.spaces.validation import CheckedSpace
from delta_tune.study.class_counts import class_lines
from delta_tune.study.confirmation_splits import split_growth
from delta_tune.study.schedule import MOST_TRIALS, expected_epochs
from delta_tune.study.study import Study
from delta_tune.study.time_budget import final_training_growth, fold_growth, plan_final_runs, plan_post_search
from delta_tune.training.speed import few, measure_speed
from delta_tune.training.task import Task


def share_with_rungs(checked: CheckedSpace) -> float:
    """Share of the trials whose epochs count: those on frozen features cost next to nothing beside others."""
    if checked.inner:
        return sum(map(share_with_rungs, checked.inner.values())) / len(checked.inner)
    methods = [proposal.config.method for proposal in checked.drawn]
    if checked.space.balance == "regularizer":
        methods = [METHODS[choice] for choice in checked.choices]
    return sum(method.has_rungs for method in methods) / len(methods) or 1.0


def epochs_bought(trials: int, study: Study) -> float:
    """How many epochs so many trials are expected to have."""
    config = study.config
    counted = trials * share_with_rungs(study.checked)
    return expected_epochs(counted, config.max_epochs, config.grace_period, config.reduction_factor)


def time_one_epoch(task: Task, config: TrialConfig, threads: int) -> float:
    """Seconds of one epoch with its scoring, from a few steps of a uniform-weight DELTA trial on this machine's CPU."""
    unmeasured: dict[str, Any] = {"behavior_scale": "raw", "head_start": "random", "co_tuning": 0.0, "contrast": 0.0}
    probe = dataclasses.replace(config, regularizer=HEAVIEST, **unmeasured)
    return measure_speed(few(task, probe), probe, threads, torch.device("cpu")).epoch_seconds(task.dataset)


def study_resources(study: Study, cluster: Cluster, say: Callable[[str], None] | None) -> Resources:
    """What one trial gets.

    Args:
        study: the study.
        cluster: the nodes.
        say: prints what is waited for; None does not wait for nodes, for a plan.

    Raises:
        UserError: more than the cluster has, or GPUs that torch cannot use.
        ExternalFailure: no GPU was free in time.
    """
    cluster, device = find_gpus(study.config, cluster, say)
    most = MOST_TRIALS if study.num_trials is None else study.num_trials
    return allocate(study.config, cluster, most, device, lambda: largest_footprint(study))


def largest_footprint(study: Study) -> Footprint:
    """What a trial of the network needs that needs most of a GPU."""
    found = [measure_footprint_on_cluster(task, study.configs_of(label)) for label, task in study.tasks.items()]
    return max(found, key=lambda each: max(each.peak / each.total, each.busy))


def plan_lines(study: Study, resources: Resources) -> list[str]:
    """The plan, line by line."""
    checked, data = study.checked, study.dataset
    sizes = [f"train {len(data.train.labels)}", f"val {len(data.val.labels)}"]
    if data.test is not None:
        sizes.append(f"test {len(data.test.labels)}")
    names = Counter(name for proposal in checked.drawn for name in proposal.params if name != ARM)
    turns = balanced(checked).replace(ARM, "the space and plain L2")
    return [
        f"Study     {study.folder}",
        *(
            [f"          kept at {study.mirror.address}, at most {INTERVAL_S:.0f} s behind"]
            if study.mirror is not None
            else []
        ),
        f"Data      {data.name}: {len(data.classes)} {data.kind.noun}, {', '.join(sizes)}",
        *(f"          {line}" for line in class_lines(data, study.config.metric, checked.configs)),
        *(f"          {note}" for note in data.notes),
        *([] if study.record.screening is None else screening_lines(study.record.screening)),
        *(line for label in study.tasks for line in model_lines(study, label)),
        *space_lines(checked),
        f"          samples {', '.join(names) or 'nothing: all is set'}" + (f"; {turns} in turns" if turns else ""),
        f"          {format_count(len(checked.points), 'starting point')} first",
        *(f"          {sentence}" for sentence in checked.notes),
        *budget_lines(study),
        f"Resources {format_count(resources.slots, 'trial')} at a time, each with {resources.for_one_trial}, "
        f"on {resources.where}",
        *(f"          {sentence}" for sentence in resources.why),
        *(f"          {note}" for note in study.notes),
    ]


def model_lines(study: Study, label: str) -> list[str]:
    """The lines of the plan on a network."""
    backbone = study.tasks[label].backbone
    p = backbone.preprocessing
    layers, told = describe_layers(backbone.layers, backbone.channels, backbone.layouts)
    return [
        f"Model     {backbone.model}, {backbone.weights} weights, {p.image_size} × {p.image_size} pixels",
        *([f"          called {label} in tables and report"] if study.several and label != backbone.model else []),
        *(f"          {note}" for note in backbone.notes),
        f"Hooks     {layers}",
        *([f"          {told}"] if told else []),
    ]


def space_lines(checked: CheckedSpace) -> list[str]:
    """The lines of the plan on the search space: one, or one for each network whose space is another."""
    spaces = {label: each.space for label, each in checked.inner.items()}
    if len({each.name for each in spaces.values()}) < 2:
        space = next(iter(spaces.values()), checked.space)
        return [f"Space     {space.name}: {describe(space)}".rstrip(": ")]
    return [f"Space     {label}: {each.name}: {describe(each)}".rstrip(": ") for label, each in spaces.items()]


def waits_for_speed(study: Study) -> bool:
    """Whether what fits into the time budget is not known yet."""
    return study.budget.total is not None and study.schedule is None and not study.tables.searched


def budget_lines(study: Study) -> list[str]:
    """The lines of the plan on trials and epochs."""
    config, trials = study.config, study.num_trials
    if waits_for_speed(study):
        total = format_duration(study.budget.total or 0.0)
        return [f"Budget    {total} in all; what fits into it is known once a step has been timed"]
    if study.schedule is not None and not study.schedule.num_trials:
        return [f"Budget    {study.why[0]}", *(f"          {sentence}" for sentence in study.why[1:])]
    rungs = rung_epochs(config.max_epochs, config.grace_period, config.reduction_factor)
    balance = balanced(study.checked)
    apart = (
        ", method by method" if "regularizer" in balance else ", the space and plain L2 apart" if ARM in balance else ""
    )
    if study.several:
        apart = f", network by network{apart.replace(', method', ' and method')}"
    asks = (
        f"ASHA asks after epochs {', '.join(map(str, rungs)) or '(none)'} and keeps 1 in "
        f"{config.reduction_factor:g}{apart}"
    )
    why = [f"          {sentence}" for sentence in study.why]
    epochs = format_count(config.max_epochs, "epoch")
    if config.max_steps is not None:
        asked = study.record.asked.get("max_epochs")
        epochs += f"{'' if asked is None else f' instead of {asked}'} for {format_count(config.max_steps, 'step')}"
    if trials is None:
        about = "" if study.schedule is None else f", about {study.schedule.num_trials} of them"
        return [f"Budget    trials of up to {epochs} until the time is over{about}; {asks}", *why]
    bought = epochs_bought(trials, study)
    return [
        f"Budget    {trials} trials of up to {epochs}; {asks}: about {bought:.0f} epochs instead of "
        f"{trials * config.max_epochs}",
        *why,
    ]


def estimate(study: Study, resources: Resources) -> str:
    """The estimated time of the search, in a sentence."""
    config, checked, trials = study.config, study.checked, study.num_trials
    if trials is None:
        return "Time      the search ends with the time budget"
    if resources.device != "cpu":
        return "Time      not estimated: one epoch would have to be measured on the trials' GPU"
    each = {
        label: time_one_epoch(task, study.configs_of(label)[0], resources.threads)
        for label, task in study.tasks.items()
    }
    seconds, slowest = sum(each.values()) / len(each), max(each.values())
    bought = epochs_bought(trials, study)
    then = ""
    if config.confirm:
        arms = compared(checked)
        after = plan_post_search(
            math.inf,
            repetitions=config.confirm,
            epoch_seconds=dict.fromkeys(arms, slowest),
            max_epochs=config.max_epochs,
            slots=resources.slots,
            growth=final_training_growth(config, study.dataset, resources.slots, config.final_runs),
            split_growth=split_growth(config, study.dataset),
        )
        then = (
            f", then about {format_duration(after.confirmation)} to confirm ({len(arms)} × {config.confirm} runs) and "
            f"{format_duration(after.final)} for the final model"
        )
    elif study.trains_final:
        runs = plan_final_runs(
            math.inf,
            runs=config.final_runs,
            epoch_seconds=slowest,
            max_epochs=config.max_epochs,
            slots=resources.slots,
            growth=fold_growth(study.dataset),
        )
        then = f", then about {format_duration(runs.final)} for {format_count(runs.runs, 'final run')}"
    took = f"{seconds:.1f} s an epoch"
    if study.several:
        took = f"an epoch takes {' and '.join(f'{one:.1f} s with {label}' for label, one in each.items())}"
    return (
        f"Time      about {format_duration(seconds * bought / resources.slots)}{then} "
        f"({took}, by a few steps here with one trial running), attention not included"
    )
