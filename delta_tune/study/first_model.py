"""The first model of a study: a linear classifier on the frozen source's features, seconds after the data is read."""

from __future__ import annotations

import dataclasses
import math
import time

import ray

from delta_tune.attention.probe_head import measure_features
from delta_tune.config import FIRST_MODEL, TrialConfig
from delta_tune.console.format import format_duration, format_score
from delta_tune.data.dataset import Split
from delta_tune.data.resampling import first_images, sample_images
from delta_tune.models.devices import torch_threads
from delta_tune.results.columns import FINISHED
from delta_tune.results.layout import BEST, CHECKPOINTS, trial_name
from delta_tune.results.mirror import local_copy
from delta_tune.results.tables import StudyTables
from delta_tune.search.session import Session
from delta_tune.search.worker import push_with_retries
from delta_tune.study.all_images import fit_to_all_images
from delta_tune.study.best_model import completed_model, follow_leader, save_winner
from delta_tune.study.study import Study
from delta_tune.training.task import Task
from delta_tune.training.trial import TrialResult, run_trial
from delta_tune.training.workplace import Say, Workplace

NUMBER = 0
"""Of its trial."""
LONGEST_S, SHARE = 30.0, 0.1
"""Seconds, and share of the time budget, in which the pass over all images must fit; otherwise a sample comes first."""
PER_CLASS = 20
"""Images of each class in the sample, at least."""
TIMED_IMAGES = 64
REST_SHARE = 0.5
"""Share of the time that is left, where no trial fits into it, that the pass over all images may take."""


def first_searched(tables: StudyTables) -> int:
    """Number of the first trial that the search proposes; a study that an earlier version began has no first model."""
    row = tables.trials.get(NUMBER)
    return NUMBER if row is not None and row["config.regularizer"] != FIRST_MODEL else NUMBER + 1


def fit_first_model(study: Study, session: Session) -> None:
    """Fit the classifier, score it and save it as `best/`, unless an earlier session has.

    Where the pass over all images would take long, the classifier is fitted to a sample first. Without a time budget,
    or with a long one, it is fitted to all images after that; else trials, too, begin with what the sample taught. Of
    several networks it has the one that was screened best.
    """
    tables, record, say = study.tables, study.record, study.progress.say
    row = tables.trials.get(NUMBER)
    fitted = row is not None and row["state"] in FINISHED
    if fitted or first_searched(tables) == NUMBER:
        follow_leader(study)  # an earlier session may have been killed before it did
    config = config_of_first(study)
    task = study.task_of(config)
    if first_searched(tables) == NUMBER or (fitted and not tables.is_partial(NUMBER)):
        if fitted and not tables.searched and record.model == f"trial {NUMBER}":
            with session.measuring.workplace() as workplace:  # an earlier session was ended before it was done
                task.measurements.measure_source([config], say, workplace)
                fit_to_all_images(study, NUMBER, workplace)
        return
    if fault := task.backbone.head_fault:
        say(f"There is no first model: {fault}")
        return
    if row is None:
        tables.add(NUMBER, config, {}, {})
    if not fitted:
        tables.start(NUMBER, ray.get_runtime_context().get_node_id(), time.time(), 0.0)
    with session.measuring.workplace() as workplace:
        fraction = record.sample if fitted or study.sampled else choose_sample(study, workplace)
        if fraction is not None:
            fit_to_sample(study, session, workplace, config, fraction, fitted=fitted)
        if not study.sampled:
            task.measurements.measure_source([config, *without_co_tuning(study)], say, workplace)
            fit_and_save(study, session, task, config)
            fit_to_all_images(study, NUMBER, workplace)


def config_of_first(study: Study) -> TrialConfig:
    """The first model's configuration."""
    label = next(iter(study.tasks)) if study.names_backbones else None
    return TrialConfig(regularizer=FIRST_MODEL, max_epochs=1, seed=study.config.seed, backbone=label)


def fit_to_sample(
    study: Study, session: Session, workplace: Workplace, config: TrialConfig, fraction: float, *, fitted: bool
) -> None:
    """Fit the classifier to a sample; if there is no time for more, have trials begin with it.

    Args:
        study: the study.
        session: where trials run.
        workplace: measures the source.
        config: of the first model.
        fraction: of the images.
        fitted: whether an earlier session has, so that only trials need it.
    """
    say, began = study.progress.say, time.monotonic()
    task = study.task_of(config)
    sample = sample_task(task, fraction)
    sample.measurements.measure_source([config, *without_co_tuning(study)], say, workplace)
    seconds = (time.monotonic() - began) / images_of(sample)
    if not fitted:
        fit_and_save(study, session, sample, config)
    if not study.sampled:
        return
    for label, other in study.tasks.items():
        part = sample if other is task else sample_task(other, fraction)
        part.measurements.measure_source(study.configs_of(label), study.telling(label), workplace)
        other.measurements.stand_in(part.measurements)
    val, longest = study.dataset.val, SHARE * (study.budget.total or math.inf)
    if not fitted and len(sample.dataset.val) < len(val) and seconds * len(val) <= longest:
        # Trials are scored on all of val: without such a score this one would come after all of them
        scored = with_all_of_val(sample, val)
        scored.measurements.measure_source([config], say, workplace)
        fit_and_save(study, session, scored, config)


def without_co_tuning(study: Study) -> list[TrialConfig]:
    """The configurations of the first model's network, without Co-Tuning's part, which it need not wait for."""
    return [dataclasses.replace(config, co_tuning=0.0) for config in study.configs_of(next(iter(study.tasks)))]


def spend_rest(study: Study, session: Session) -> None:
    """Fit a classifier of a sample to all images after all, if no trial fits into the time budget but that does."""
    if not study.sampled or study.schedule is None or study.schedule.num_trials:
        return
    with session.measuring.workplace() as workplace:
        if seconds_of_pass(study, workplace) > REST_SHARE * study.budget.left:
            return
        config = config_of_first(study)
        measurements = study.first_task.measurements
        measurements.mean_squares, measurements.head, measurements.relationship = {}, None, None
        measurements.measure_source([config], study.progress.say, workplace)
        study.record.set_sample(None)
        fit_and_save(study, session, study.first_task, config)
        fit_to_all_images(study, NUMBER, workplace)


def choose_sample(study: Study, workplace: Workplace) -> float | None:
    """The part of the images that the first model is fitted to at first; None for all.

    If the time budget is too short for a pass over all of them, that is noted in the record.
    """
    seconds, total = seconds_of_pass(study, workplace), study.budget.total
    longest = longest_pass(total)
    if seconds <= longest:
        return None
    fraction = longest / 2 / seconds
    sample = sample_task(study.first_task, fraction)
    if images_of(sample) > images_of(study.first_task) / 2:
        return None  # a sample with all classes would not take much less
    study.progress.say(
        f"The pass over all images would take {format_duration(seconds)}, so it begins with {_sizes(sample)}."
    )
    if total is not None and seconds > SHARE * total:
        study.record.set_sample(fraction)
    return fraction


def images_of(task: Task) -> int:
    """Number of images of train and val."""
    return len(task.dataset.train) + len(task.dataset.val)


def longest_pass(budget: float | None) -> float:
    """Seconds that the pass over all images may take before the first model."""
    return LONGEST_S if budget is None else min(LONGEST_S, SHARE * budget)


def seconds_of_pass(study: Study, workplace: Workplace) -> float:
    """The seconds that the passes over train and val will take, one with each network."""
    return sum(seconds_of_one_pass(task, study.telling(label), workplace) for label, task in study.tasks.items())


def seconds_of_one_pass(task: Task, say: Say, workplace: Workplace) -> float:
    """The seconds of one network's pass, by the time of a few images; 0 if what it measures is known."""
    images = images_of(task)
    if images <= 4 * TIMED_IMAGES or task.measurements.knows_source(say):
        return 0.0

    def seconds(count: int) -> float:
        few = first_images(task.dataset, count).train
        began = time.monotonic()
        workplace.run(measure_features, task.backbone, few, ())
        return time.monotonic() - began

    seconds(1)  # a worker's start
    once = seconds(1)  # hardly more than building the network
    return max(0.0, seconds(TIMED_IMAGES) - once) * images / (TIMED_IMAGES - 1) / workplace.slots


def sample_task(task: Task, fraction: float) -> Task:
    """The task on a sample of its images, without a cache: it would keep them under the key of all."""
    return dataclasses.replace(task, dataset=sample_images(task.dataset, fraction, PER_CLASS, task.seed), cache=None)


def with_all_of_val(sample: Task, val: Split) -> Task:
    """The task of a measured sample with all of val, which is not measured yet."""
    task = sample.on(dataclasses.replace(sample.dataset, val=val))
    task.measurements.stand_in(sample.measurements)
    task.measurements.features["train"] = sample.measurements.features["train"]
    return task


def fit_and_save(study: Study, session: Session, task: Task, config: TrialConfig) -> None:
    """Fit and score the classifier on a task's images, which are measured; make it the model."""
    result, whole, tables = _run(study, session, task, config), study.dataset, study.tables
    for row in result.epochs:
        tables.report(NUMBER, row, time.time())
    fitted_to, scored_on = len(task.dataset.train), len(task.dataset.val)
    tables.note_images(
        NUMBER,
        fitted_to if fitted_to < len(whole.train) else None,
        scored_on if scored_on < len(whole.val) else None,
    )
    tables.finish(NUMBER, "completed")
    model = completed_model(tables, NUMBER)
    if session.mirror is not None:
        session.mirror.fetch_folder(study.folder / CHECKPOINTS / trial_name(NUMBER))
    save_winner(study.task_of(config), tables, model, study.folder / BEST)
    study.record.set_model(NUMBER, model.name)
    study.save_record()
    metric = study.config.metric
    study.progress.say(
        f"First model after {format_duration(study.budget.session)}: a linear classifier on the frozen "
        f"{config.backbone or 'network'}, {metric} {format_score(metric, model.row[metric])}"
        f"{f' with {_sizes(task)}' if tables.is_partial(NUMBER) else ''}; "
        f"{study.folder / BEST} has the best so far from now on."
    )


def _run(study: Study, session: Session, task: Task, config: TrialConfig) -> TrialResult:
    place = f"{session.checkpoints(study.folder)}/{trial_name(NUMBER)}"
    # Only the head is left to score: no work for a GPU
    with local_copy(place) as (folder, mirror), torch_threads(1):
        # A run on fewer images, or of a session that was killed, would be resumed
        if mirror is not None:
            mirror.clear()
        for file in folder.glob("*"):
            file.unlink()
        result = run_trial(task, config, metric=study.config.metric, checkpoint=folder)
        if mirror is not None:
            push_with_retries(mirror)
    return result


def _sizes(task: Task) -> str:
    return f"{len(task.dataset.train):,} images of train and {len(task.dataset.val):,} of val"
