"""After the search: train the best configuration on several folds of train and validation.

Each run holds a tenth of the images out and predicts it at its end, so that what is said of the model comes from images
that were not trained on. Runs are plain Ray tasks, resumed from their checkpoints like trials.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import safetensors.torch
import torch
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from delta_tune.cluster.assigned_gpu import use_assigned_gpu
from delta_tune.cluster.failures import BrokenGpuError, TooLittleMemoryError, device_faults_named
from delta_tune.cluster.resources import wait_for_resources
from delta_tune.config import TrialConfig
from delta_tune.console.format import format_count
from delta_tune.data.resampling import hold_out_folds
from delta_tune.models.network_state import build_network
from delta_tune.report.held_out import HeldOut
from delta_tune.report.predictions import split_logits
from delta_tune.results.mirror import local_copy
from delta_tune.search.session import Session
from delta_tune.search.worker import push_with_retries
from delta_tune.study.attention_phase import attention_of_earlier_sessions
from delta_tune.study.confirmation_splits import fresh_seed
from delta_tune.study.final_model import make_final_model, run_folder
from delta_tune.study.race import ROUNDS, FoldRun, Race, finalists, race_sentences
from delta_tune.study.study import Study
from delta_tune.study.time_budget import FOLDS, LEAST_RUNS, SLACK, fold_growth
from delta_tune.training.checkpoint import last_weights
from delta_tune.training.task import Task
from delta_tune.training.trial import run_trial

LOOK_S = 1.0
RACE_SHARE = 1 / 4
"""Largest share of all epochs for runs of configurations that do not become the model."""


def train_final_model(study: Study, session: Session, chosen: int | None = None) -> None:
    """Train the final model and make it `best/`, if there is time.

    Args:
        study: whose search is over.
        session: where to train.
        chosen: the trial whose configuration it has; None for a race of the best.
    """
    say = study.progress.say
    if study.has_final_model and chosen in (None, study.record.winner):
        return
    racers = [chosen] if chosen is not None else finalists(study.tables, len(study.dataset.val))
    if not racers:
        return
    count, racers = runs_that_fit(study, session, racers)
    if count < LEAST_RUNS:
        say("The time budget has no room left for the final runs: best/ stays as it is.")
        return
    configs = {trial: study.tables.config(trial) for trial in racers}
    folds = {label: each[:count] for label, each in fold_tasks(study, session, configs).items()}
    several = next(iter(folds.values()))
    if len(several) < LEAST_RUNS:
        say("Too few images or groups share a label to be held out in turn: no final runs, best/ stays as it is.")
        return
    rivals = " and ".join(named(study, each) for each in racers[1:])
    race = Race(racers, len(several))
    say(
        f"Final runs: {named(study, racers[0])} {len(several)} times on {len(several[0].dataset.train)} images"
        f"{f', and {rivals} {ROUNDS} times to compare' if rivals else ''}."
    )
    ended = run_race(study, session, race, folds, configs)
    runs = sorted((run for run in ended if run.trial == race.leader), key=lambda run: run.fold)
    if len(runs) < LEAST_RUNS:
        say(f"Only {format_count(len(runs), 'final run')} ended: best/ stays as it is.")
        return
    study.record.set_race(race_sentences(race, lambda trial: named(study, trial), study.config.metric))
    leaders = folds[study.label_of_trial(race.leader)]
    make_final_model(study, session, [leaders[run.fold] for run in runs], {run: ended[run] for run in runs}, race.begun)


def named(study: Study, trial: int) -> str:
    """A trial in words."""
    return f"{study.tables.method(trial)} (trial {trial})"


def runs_that_fit(study: Study, session: Session, racers: Sequence[int]) -> tuple[int, list[int]]:
    """How many runs of the leader there is time for, and who races: each rival costs `ROUNDS` further runs."""
    wanted, slots = study.config.final_runs, session.resources.slots
    seconds = {trial: run_seconds(study, trial) for trial in racers}

    def fits(count: int, racing: Sequence[int]) -> bool:
        in_race = ROUNDS if len(racing) > 1 else 0
        rounds = math.ceil(len(racing) * in_race / slots) + math.ceil(max(0, count - in_race) / slots)
        return (1 - SLACK) * rounds * max(seconds[trial] for trial in racing) <= study.budget.left

    count = next((count for count in range(wanted, LEAST_RUNS - 1, -1) if fits(count, racers[:1])), 0)
    # In epochs: seconds would decide otherwise each time
    searched = sum(row["epochs"] for row in study.tables.searched.values())
    epochs = {trial: study.tables.config(trial).last_epoch * fold_growth(study.dataset) for trial in racers}
    for many in range(len(racers), 1, -1):
        besides = ROUNDS * sum(epochs[trial] for trial in racers[1:many])
        if fits(wanted, racers[:many]) and besides <= RACE_SHARE * (searched + wanted * epochs[racers[0]] + besides):
            return wanted, list(racers[:many])
    return count, list(racers[:1])


def run_seconds(study: Study, trial: int) -> float:
    """Expected seconds of a final run of a trial's configuration, with what it measures of its images before."""
    row, config = study.tables.trials[trial], study.tables.config(trial)
    epoch = (row["train_seconds"] + row["eval_seconds"]) / max(1, row["epochs"])
    return float(epoch * config.last_epoch * fold_growth(study.dataset)) + study.measuring_seconds([config])


def fold_tasks(study: Study, session: Session, configs: Mapping[int, TrialConfig]) -> dict[str, list[Task]]:
    """Label of each network that races → its task with each fold held out.

    Attention is that of the search; the rest is measured where a run needs it.

    Args:
        study: whose search is over.
        session: where attention is measured, if a session before lost it.
        configs: trial → configuration of each racer.
    """
    racing: dict[str, list[TrialConfig]] = {}
    for trial, config in configs.items():
        racing.setdefault(study.label_of_trial(trial), []).append(config)
    return {label: _folds_of(study, session, label, of_label) for label, of_label in racing.items()}


def _folds_of(study: Study, session: Session, label: str, configs: Sequence[TrialConfig]) -> list[Task]:
    searched, say = study.tasks[label], study.telling(label)
    measurements = searched.measurements
    if measurements.missing_attention(configs):  # a session that had nothing left to search
        measurements.keep_attention(attention_of_earlier_sessions(study, label))
        measurements.find_attention(configs, say)
    if measurements.missing_attention(configs):
        with session.measuring.workplace(probes=True) as workplace:
            measurements.keep_attention(measurements.measure_attention(configs, say, workplace))
    tasks = []
    for data in hold_out_folds(searched.dataset, FOLDS, fresh_seed(study.config.seed, FOLDS)):
        task = dataclasses.replace(searched, dataset=data, cache=None)
        task.measurements.keep_attention(measurements.attention)
        tasks.append(task)
    return tasks


def run_race(
    study: Study, session: Session, race: Race, folds: Mapping[str, Sequence[Task]], configs: Mapping[int, TrialConfig]
) -> dict[FoldRun, HeldOut]:
    """Train what the race asks for, as long as there is time; return what the runs predict that ended well."""
    resources, say, budget = session.resources, study.progress.say, study.budget
    seconds = max(run_seconds(study, trial) for trial in race.racers)
    wait_for_resources(resources, say)
    shared = {label: ray.put(list(each)) for label, each in folds.items()}
    total = len(next(iter(folds.values()))) + ROUNDS * (len(race.racers) - 1)
    ended, running = dict[FoldRun, HeldOut](), dict[Any, tuple[FoldRun, float]]()

    def start(run: FoldRun) -> None:
        gpus = study.tables.trials[run.trial].get("gpus") or resources.gpus_per_trial
        options = {"num_cpus": resources.cpus_per_trial, "num_gpus": gpus if resources.gpus_per_trial else 0}
        remote: Any = ray.remote(max_retries=3, retry_exceptions=[BrokenGpuError], **options)(_train)
        # One seed for all: from heads drawn with different ones, weights have no mean
        config = dataclasses.replace(configs[run.trial], seed=fresh_seed(study.config.seed, FOLDS + 1))
        place = f"{session.checkpoints(study.folder)}/{run_folder(run)}"
        boxed = [shared[study.label_of_trial(run.trial)]]
        running[remote.remote(boxed, run.fold, config, place, resources.device, resources.threads)] = (
            run,
            time.monotonic(),
        )

    try:
        with study.progress.bar("Final runs", total) as advance:
            while True:
                while len(running) < resources.slots and budget.has_time_for(seconds):
                    if (run := race.upcoming()) is None:
                        break
                    start(run)
                if not running or budget.left + SLACK * seconds <= 0:
                    return ended
                for reference in ray.wait(list(running), timeout=LOOK_S)[0]:
                    (run, began), found = running.pop(reference), outcome(reference)
                    seconds = max(seconds, time.monotonic() - began)
                    advance(1)
                    if isinstance(found, str):
                        say(f"A final run of {named(study, run.trial)} {found}.")
                        race.ended(run, None)
                        continue
                    ended[run] = found
                    kind = study.dataset.kind
                    race.ended(run, kind.image_scores(found.logits, found.labels, study.config.metric))
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def outcome(reference: Any) -> HeldOut | str:
    """What a run predicts, or how it ended without: too little memory ends its run alone, not the study."""
    try:
        found: HeldOut | str = ray.get(reference)
    except (TooLittleMemoryError, OutOfMemoryError, WorkerCrashedError) as error:
        cause = error.cause if isinstance(error, RayTaskError) else error  # the text of the former is a traceback
        return f"failed: {str(cause).strip().splitlines()[0]}"
    return found


def _train(
    shared: list[Any], fold: int, config: TrialConfig, checkpoint: str, device: str, threads: int
) -> HeldOut | str:
    """Train a fold's run, resuming where an earlier session stopped; return its predictions, or that it diverged."""
    torch.set_num_threads(threads)
    with device_faults_named("a final run"), local_copy(checkpoint) as (folder, mirror):
        if device != "cpu":
            use_assigned_gpu()
        task: Task = ray.get(shared[0])[fold]
        saved = None if mirror is None else lambda epoch: push_with_retries(mirror)
        error = run_trial(task, config, checkpoint=folder, device=device, saved=saved).error
        if error:
            return f"diverged: {error}"
        val = task.dataset.val
        network = build_network(task.backbone, safetensors.torch.load_file(last_weights(folder)), device)
        return HeldOut(names=tuple(val.names), labels=val.labels, logits=split_logits(task, val, network).numpy())
