"""The search: measure what trials share, then run them within the time budget."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import pyarrow.parquet as pq

from delta_tune.attention.layer_attention import attention_table, noise_warning
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.results.columns import FINISHED
from delta_tune.results.layout import ATTENTION_FILE
from delta_tune.results.utilization import measure_time_use
from delta_tune.search.runner import run_trials
from delta_tune.search.session import Session
from delta_tune.study.best_model import follow_leader
from delta_tune.study.study import Study
from delta_tune.study.time_budget import LARGEST_SHARE, LOOK_AT_BUDGET_S, cached_for
from delta_tune.tracking.trackers import trackers


def search(study: Study, session: Session) -> bool:
    """Run the remaining trials; return whether the user interrupted them."""
    to_run = study.num_trials - sum(row["state"] in FINISHED for row in study.tables.searched.values())
    if to_run <= 0:
        return False
    left = time_left(study, session)
    if left is not None and left() <= 0:
        study.progress.say(study.budget.search_is_over())
        return False
    resources = session.resources
    study.searcher.gpus_per_trial = resources.gpus_per_trial
    study.recorder.on_new_leader = lambda: follow_leader(study)
    measure_attention(study, session)
    ready_seconds = study.budget.session
    study.record.set_ready_seconds(ready_seconds)
    study.progress.say(f"Ready after {ready_seconds:.0f} s; the first trials start.")
    if left is not None:
        left = cached_for(LOOK_AT_BUDGET_S, left)
    slots = run_trials(
        [study.task],
        study.searcher,
        study.scheduler,
        study.recorder,
        session,
        folder=study.folder,
        metric=study.config.metric,
        # On a GPU, recomputing the source's maps is as fast as moving them through host memory.
        share_maps=resources.device == "cpu" and any(config.uses_behavior for config in study.configs),
        left=left,
        loggers=trackers(study.config, study.tables, study.progress.say, study.record.study_id or ""),
    )
    study.save_record()
    most = min(resources.most or study.num_trials, study.num_trials)
    slots = [(since, min(many, most)) for since, many in slots]
    if used := measure_time_use(study.tables.searched.values(), slots, since=study.budget.began):
        study.record.set_time_use(used)
        study.progress.say(used.sentence())
    return study.recorder.stop_the_rest() and (left is None or left() > 0)


def time_left(study: Study, session: Session) -> Callable[[], float] | None:
    """A function that returns the seconds that the search may still use; None if there is no time budget.

    Once epochs have been measured, it prints what is reserved for the confirmation and the final model.
    """
    budget, confirm = study.budget, study.config.confirm
    if budget.total is None:
        return None
    if not confirm:
        return lambda: budget.left
    most, slots = LARGEST_SHARE * budget.total, session.resources.slots
    announced = False

    def left() -> float:
        nonlocal announced
        reserved = study.reserve(most, slots)
        if study.tables.leader is not None and not announced:
            announced = True
            study.record.set_reserved(dataclasses.asdict(reserved))
            study.progress.say(budget.reserved_after_search(reserved, confirm))
        return budget.left - reserved.total

    return left


def measure_attention(study: Study, session: Session) -> None:
    """Measure the attention of all layers that trials need, and write it to the study's folder."""
    began, measurements = time.monotonic(), study.task.measurements
    with session.measuring.workplace(probes=any(config.method.uses_attention for config in study.configs)) as workplace:
        measurements.measure(study.configs, say=study.progress.say, workplace=workplace)
    seconds = time.monotonic() - began
    attention = measurements.attention.values()
    warnings = [noise_warning({name: layer.reliability for name, layer in layers.items()}) for layers in attention]
    study.record.set_attention(seconds, " ".join(warning for warning in warnings if warning))
    if attention:
        rows = [row for layers in attention for row in layers.items()]
        (study.folder / ATTENTION_FILE).parent.mkdir(exist_ok=True)
        with atomic_write(study.folder / ATTENTION_FILE) as partial:
            pq.write_table(attention_table(rows), partial)
