"""The plan of a study and its estimated time, as `--dry-run` prints them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable

from delta_tune.cluster.gpu_sharing import measure_footprint_on_cluster
from delta_tune.cluster.nodes import Cluster
from delta_tune.cluster.resources import Resources, allocate, find_gpus
from delta_tune.config import HEAVIEST, METHODS, StudyConfig, TrialConfig
from delta_tune.console.format import format_count, format_duration
from delta_tune.models.devices import torch_threads
from delta_tune.results.mirror import INTERVAL_S
from delta_tune.search.asha import rung_epochs
from delta_tune.spaces.l2_baseline import ARM
from delta_tune.spaces.space import describe
from delta_tune.spaces.validation import CheckedSpace
from delta_tune.study.study import Study
from delta_tune.study.time_budget import final_training_growth, plan_post_search
from delta_tune.training.task import Task
from delta_tune.training.trial import run_trial


def expected_epochs(trials: int, config: StudyConfig, checked: CheckedSpace) -> float:
    """Expected number of epochs if a share of 1/reduction_factor passes each rung."""
    ends = [*rung_epochs(config.max_epochs, config.grace_period, config.reduction_factor), config.max_epochs]
    staged = sum(
        (end - start) / config.reduction_factor**k for k, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    )
    without = sum(not p.config.method.has_rungs for p in checked.drawn) / len(checked.drawn)
    if checked.space.balance == "regularizer":
        without = sum(not METHODS[choice].has_rungs for choice in checked.choices) / len(checked.choices)
    return trials * (1 - without) * staged


def time_one_epoch(task: Task, config: TrialConfig, threads: int) -> float:
    """Seconds of one epoch with its scoring, measured on this machine's CPU with a uniform-weight DELTA trial."""
    probe = dataclasses.replace(config, regularizer=HEAVIEST, behavior_scale="raw", max_epochs=1)
    with torch_threads(threads):
        start = time.perf_counter()
        run_trial(task, probe)
        return time.perf_counter() - start


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
    return allocate(
        study.config, cluster, study.num_trials, device, lambda: measure_footprint_on_cluster(study.task, study.configs)
    )


def plan_lines(study: Study, resources: Resources) -> list[str]:
    """The plan, line by line."""
    config, checked, trials = study.config, study.checked, study.num_trials
    data, backbone, space = study.task.dataset, study.task.backbone, checked.space
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
    return [
        f"Study     {study.folder}",
        *(
            [f"          kept at {study.mirror.address}, at most {INTERVAL_S:.0f} s behind"]
            if study.mirror is not None
            else []
        ),
        f"Data      {data.name}: {len(data.classes)} classes, {', '.join(sizes)}",
        *(f"          {note}" for note in data.notes),
        f"Model     {backbone.model}, {backbone.weights} weights, {p.image_size} × {p.image_size} pixels",
        *(f"          {note}" for note in backbone.notes),
        f"Hooks     {layers}",
        f"Space     {space.name}: {describe(space)}".rstrip(": "),
        f"          samples {', '.join(names) or 'nothing: all is set'}" + (f"; {turns} in turns" if turns else ""),
        f"          {len(checked.points)} starting points first",
        *(f"          {sentence}" for sentence in checked.notes),
        f"Budget    {trials} trials of up to {config.max_epochs} epochs; ASHA asks after epochs "
        f"{', '.join(map(str, rungs)) or '(none)'} and keeps 1 in {config.reduction_factor:g}{apart}: "
        f"about {bought:.0f} epochs instead of {trials * config.max_epochs}",
        f"Resources {format_count(resources.slots, 'trial')} at a time, each with {resources.for_one_trial}, "
        f"on {resources.where}",
        *(f"          {sentence}" for sentence in resources.why),
        *(f"          {note}" for note in study.notes),
    ]


def estimate(study: Study, resources: Resources) -> str:
    """The estimated time of the search, in a sentence."""
    config, checked = study.config, study.checked
    if resources.device != "cpu":
        return "Time      not estimated: one epoch would have to be measured on the trials' GPU"
    seconds = time_one_epoch(study.task, checked.drawn[0].config, resources.threads)
    bought = expected_epochs(study.num_trials, config, checked)
    then = ""
    if config.confirm:
        arms = checked.choices if checked.space.balance == ARM else {p.config.regularizer for p in checked.drawn}
        after = plan_post_search(
            math.inf,
            repetitions=config.confirm,
            epoch_seconds=dict.fromkeys(map(str, arms), seconds),
            max_epochs=config.max_epochs,
            slots=resources.slots,
            growth=final_training_growth(config, study.task),
        )
        then = (
            f", then about {format_duration(after.confirmation)} to confirm ({len(arms)} × {config.confirm} runs) and "
            f"{format_duration(after.final)} for the final model"
        )
    return (
        f"Time      about {format_duration(seconds * bought / resources.slots)}{then} "
        f"({seconds:.1f} s an epoch, measured here with one trial running), attention not included"
    )
