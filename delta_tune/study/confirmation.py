"""`--confirm N`: repeat the best configuration of each method on N new seeds and splits, to compare methods."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from delta_tune.cluster.measuring import Job, Measuring
from delta_tune.config import METRICS, Metric, TrialConfig
from delta_tune.results.columns import FINISHED
from delta_tune.results.layout import CONFIRM, EPOCHS_FILE
from delta_tune.results.statistics import method_comparison, resampled_interval
from delta_tune.results.tables import StudyTables
from delta_tune.search.asha import AshaScheduler
from delta_tune.search.planned_runs import PlannedRuns, Run
from delta_tune.search.recorder import Recorder
from delta_tune.search.runner import run_trials
from delta_tune.search.session import Session
from delta_tune.spaces.l2_baseline import Groups
from delta_tune.study.confirmation_splits import (
    ConfirmSplits,
    confirmation_data,
    described_splits,
    run_seed,
    split_sizes,
)
from delta_tune.training.task import Task


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The result of the repeated runs.

    Attributes:
        metric: compares the runs: the study's metric, or accuracy if that is a loss.
        scores: method → the metric after the last epoch, for each repetition that all methods finished.
        trials: method → the trial of the search whose configuration it is.
        sentences: sentences for the summary.
    """

    metric: Metric
    scores: dict[str, list[float]]
    trials: dict[str, int]
    sentences: tuple[str, ...]

    @property
    def best(self) -> str:
        """The method with the best mean."""
        return max(self.scores, key=lambda method: float(np.mean(self.scores[method])))


def contenders(tables: StudyTables, groups: Groups) -> tuple[dict[str, int], str | None]:
    """Method → the best completed trial of each group, among as many of the group's first trials as the others have.

    More trials find a better one by luck alone. Trials that were stopped with the search do not count.

    Returns:
        Also a sentence on groups left out: without a completed trial, or with less than half as many trials as another.
    """
    ended: dict[str, list[int]] = {}
    for number, group in sorted(groups(tables).items()):
        ended.setdefault(group, []).extend([number] if tables.trials[number]["state"] in FINISHED else [])
    rank = {number: place for place, number in enumerate(tables.ranked())}
    most = max(map(len, ended.values()))
    full = {group: each for group, each in ended.items() if 2 * len(each) >= most and rank.keys() & set(each)}
    fewest = min(map(len, full.values()), default=0)
    left_out, fair = list(ended), dict[str, int]()
    for group, each in full.items():
        best = min(rank.keys() & set(each[:fewest]), key=rank.__getitem__, default=None)
        if best is not None:
            left_out.remove(group)
            method = tables.trials[best]["config.regularizer"]  # of two groups, if one ran without its attention
            fair[method] = min(best, fair.get(method, best), key=rank.__getitem__)
    if not left_out:
        return fair, None
    return fair, (
        f"Not compared: {', '.join(left_out)}, without a completed trial among the first {fewest} or with less than "
        f"half of {most} trials; BALANCE in the space gives each method the same number."
    )


def plan_runs(
    tables: StudyTables,
    chosen: Mapping[str, int],
    repetitions: int,
    seed: int,
    splits: ConfirmSplits = "random",
    planned: int | None = None,
) -> list[Run]:
    """All contenders on all splits, ordered by split, so that whole splits are complete if time runs out.

    Args:
        tables: of the search.
        chosen: method → trial of the search.
        repetitions: that there is time for.
        seed: of the study.
        splits: how they are made.
        planned: repetitions that are asked for; None for `repetitions`.
    """
    planned = repetitions if planned is None else planned
    runs: list[Run] = []
    for repetition in range(repetitions):
        for trial in chosen.values():
            config = dataclasses.replace(tables.config(trial), seed=run_seed(seed, repetition, splits, planned))
            gpus = tables.trials[trial].get("gpus") or 0.0
            runs.append(Run(number=len(runs), config=config, repetition=repetition, gpus=gpus))
    return runs


def confirm(
    searched: Mapping[str, Task],
    tables: StudyTables,
    groups: Groups,
    repetitions: int,
    session: Session,
    *,
    seed: int,
    folder: Path,
    max_epochs: int,
    left: Callable[[], float] | None,
    splits: ConfirmSplits = "random",
    planned: int | None = None,
) -> tuple[Confirmation | None, bool]:
    """Run what is not finished; return the result (None if there is nothing to compare) and whether it is complete.

    Args:
        searched: label → the search's task with each network; new splits or folds are made of its train and val.
        tables: the search's tables.
        groups: what is compared.
        repetitions: seeds and splits, ≥ 2.
        session: where to run.
        seed: of the study.
        folder: of the study.
        max_epochs: of a run.
        left: returns the seconds until runs are stopped, as in `run_trials`; complete repetitions are compared.
        splits: how they are made.
        planned: repetitions that were asked for, where there is no time for all; None for `repetitions`.
    """
    say = session.progress.say
    metric: Metric = tables.metric if METRICS[tables.metric] == "max" else "val_accuracy"
    chosen, remark = contenders(tables, groups)
    if (networks := {method: tables.backbone(trial) for method, trial in chosen.items()}) and any(networks.values()):
        told = ", ".join(f"{method} on {label}" for method, label in networks.items())
        with_networks = f"Each method is compared with the network of its best trial: {told}."
        remark = with_networks if remark is None else f"{remark} {with_networks}"
    own = folder / CONFIRM
    own.mkdir(exist_ok=True)
    found = StudyTables.read(own, metric) if (own / EPOCHS_FILE).exists() else StudyTables(own, metric)
    planned = repetitions if planned is None else planned
    runs = plan_runs(tables, chosen, repetitions, seed, splits, planned)
    known = {n: found.config(n).record() for n in found.trials}
    if any(run.number in known and known[run.number] != run.config.record() for run in runs):
        found = StudyTables(own, metric)  # the search has continued and found others
    open_runs = [run for run in runs if found.trials.get(run.number, {}).get("state") not in FINISHED]
    if open_runs:
        say(
            f"Confirming {', '.join(chosen)} on {described_splits(repetitions, splits)}: "
            f"{len(open_runs)} of {len(runs)} runs."
        )
        used = dict.fromkeys(searched_with(searched, run.config) for run in open_runs)
        on_splits = {
            label: confirmation_data(searched[label].dataset, splits, planned, seed, count=repetitions)
            for label in used
        }
        tasks = [searched[label].on(data) for label in used for data in on_splits[label]]
        first = {label: place * repetitions for place, label in enumerate(used)}
        open_runs = [
            dataclasses.replace(run, task=first[searched_with(searched, run.config)] + run.repetition)
            for run in open_runs
        ]
        measure_splits(tasks, open_runs, session.measuring)
        scheduler = AshaScheduler(metric=metric, max_epochs=max_epochs, grace_period=max_epochs, reduction_factor=2)
        recorder = Recorder(found, scheduler, session.progress, len(runs), session.mirror)

        def proposed(run: Run) -> None:
            if run.number not in found.trials:
                found.add(run.number, run.config, {"repetition": run.repetition}, {})
            recorder.asked(run.number)

        run_trials(
            tasks,
            PlannedRuns(open_runs, metric, proposed),
            scheduler,
            recorder,
            session,
            folder=own,
            metric=metric,
            share_maps=False,
            left=left,
            title="Confirmation",
        )
        if recorder.stop_the_rest(time_is_over=left is not None and left() <= 0):
            return None, False
    train, val = split_sizes(next(iter(searched.values())).dataset, splits, planned)
    return compare_methods(found, runs, chosen, remark, train, val), True


def searched_with(searched: Mapping[str, Task], config: TrialConfig) -> str:
    """The label of a configuration's network."""
    return next(iter(searched)) if config.backbone is None else config.backbone


def measure_splits(tasks: Sequence[Task], runs: Sequence[Run], measuring: Measuring) -> None:
    """Measure on each split what its runs need: labels of a new val must not influence the attention."""

    def job(task: int) -> Job:
        configs = [run.config for run in runs if run.task == task]
        measurements = tasks[task].measurements
        return lambda workplace, say: measurements.measure(configs, say=say, workplace=workplace)

    jobs = [job(task) for task in sorted({run.task for run in runs})]
    measuring.side_by_side(jobs, f"Measuring {len(jobs)} splits")


def compare_methods(
    found: StudyTables, runs: list[Run], chosen: Mapping[str, int], remark: str | None, train: float, val: float
) -> Confirmation | None:
    """Compare the chosen trials' methods on the repetitions in which all of them ended.

    Args:
        found: the tables of the repeated runs.
        runs: what was planned.
        chosen: method → trial of the search.
        remark: a sentence on methods that are left out.
        train: images in the training split, for the interval.
        val: images in the validation split, for the interval.

    Returns:
        None if fewer than two repetitions are whole.
    """
    last: dict[int, dict[str, float]] = {}
    for run in runs:
        if found.trials.get(run.number, {}).get("state") == "completed":
            score = found.epochs[run.number][-1][found.metric]
            last.setdefault(run.repetition, {})[run.config.regularizer] = score
    whole = [scores for scores in last.values() if len(scores) == len(chosen)]
    sentences = [] if remark is None else [remark]
    lost = len({run.repetition for run in runs}) - len(whole)
    if lost:
        sentences.append(f"{lost} repetitions are left out: one of their runs did not end; see {found.folder}.")
    if len(whole) < 2 or not chosen:
        return None
    scores = {method: [each[method] for each in whole] for method in chosen}
    result = Confirmation(metric=found.metric, scores=scores, trials=dict(chosen), sentences=())
    rest = sorted((m for m in scores if m != result.best), key=lambda m: -float(np.mean(scores[m])))
    for other in rest:
        sentences.append(
            f"Confirmed: {method_comparison(result.best, scores[result.best], other, scores[other], train, val)}."
        )
    if not rest:
        alone = resampled_interval(scores[result.best], train, val)
        sentences.append(
            f"Confirmed: {result.best} {100 * alone.mean:.1f} [{100 * alone.low:.1f}, {100 * alone.high:.1f}], "
            f"{alone.runs} runs; there is no other method to compare it with."
        )
    return dataclasses.replace(result, sentences=tuple(sentences))


def confirmation_to_json(confirmation: Confirmation) -> dict[str, Any]:
    """For `study.json`."""
    content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(confirmation)))
    return content
