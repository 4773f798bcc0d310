"""The search: measure what trials share, then run them within the time budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from delta_tune.results.columns import FINISHED
from delta_tune.results.utilization import measure_time_use, slots_without
from delta_tune.search.runner import run_trials
from delta_tune.search.session import Session
from delta_tune.study.attention_phase import AttentionPhase
from delta_tune.study.best_model import follow_leader
from delta_tune.study.study import Study
from delta_tune.study.time_budget import LARGEST_SHARE, LOOK_AT_BUDGET_S, cached_for
from delta_tune.tracking.trackers import trackers


def search(study: Study, session: Session) -> bool:
    """Run the remaining trials; return whether the user interrupted them."""
    ended = sum(row["state"] in FINISHED for row in study.tables.searched.values())
    if study.num_trials is not None and ended >= study.num_trials:
        return False
    if study.schedule is not None and not study.schedule.num_trials:
        study.tables.write()
        return False
    left, least = time_left(study, session), study.least_seconds
    if left is not None and left() <= least:
        study.progress.say(study.budget.search_is_over())
        study.tables.write()
        return False
    resources = session.resources
    study.searcher.gpus_per_trial = resources.gpus_per_trial
    study.recorder.on_new_leader = lambda: follow_leader(study)
    with session.measuring.workplace() as workplace:
        # Trials on frozen features measure them on their own, if there is no time to do it for all
        for label, task in study.tasks.items():
            shared = [each for each in study.configs_of(label) if each.method.trains_backbone or not study.sampled]
            task.measurements.measure_source(shared, study.telling(label), workplace)
    if left is not None:
        left = cached_for(LOOK_AT_BUDGET_S, left)
    with AttentionPhase(study, session) as attention:
        attention.begin()
        ready_seconds = study.budget.session
        study.record.set_ready_seconds(ready_seconds)
        beside = ", and attention is measured beside them" if attention.is_under_way else ""
        study.progress.say(f"Ready after {ready_seconds:.0f} s; the first trials start{beside}.")
        slots = run(study, session, attention, left)
        is_over = study.recorder.interrupted or (left is not None and left() <= least)
        if attention.failed or (study.searcher.waits and not is_over):
            attention.finish()
            slots += run(study, session, attention, left)
    study.save_record()
    most = min(resources.most or math.inf, study.num_trials or math.inf)
    slots = slots_without([(since, int(min(many, most))) for since, many in slots], attention.use)
    if used := measure_time_use(study.tables.searched.values(), slots, since=study.budget.began):
        study.record.set_time_use(used)
        study.progress.say(used.sentence())
    return study.recorder.stop_the_rest(time_is_over=left is not None and left() <= least)


def run(
    study: Study, session: Session, attention: AttentionPhase, left: Callable[[], float] | None
) -> list[tuple[float, int]]:
    """Run trials, as long as there are some that need not wait for attention; what `run_trials` returns."""
    on_cpu = session.resources.device == "cpu"
    return run_trials(
        list(study.tasks.values()),
        study.searcher,
        study.scheduler,
        study.recorder,
        session,
        folder=study.folder,
        metric=study.config.metric,
        # On a GPU, recomputing the source's maps is as fast as moving them through host memory.
        share_maps=on_cpu and any(config.uses_behavior for config in study.configs),
        left=left,
        beside=attention,
        least=study.least_seconds,
        loggers=trackers(study.config, study.tables, study.progress.say, study.record.study_id or ""),
    )


def time_left(study: Study, session: Session) -> Callable[[], float] | None:
    """A function that returns the seconds that the search may still use; None if there is no time budget.

    Once epochs have been measured, it prints what is reserved for the confirmation and the final model; again, if later
    ones leave time for fewer seeds.
    """
    budget, confirm = study.budget, study.config.confirm
    if budget.total is None:
        return None
    if not study.confirms and not study.trains_final:
        return lambda: budget.left
    most = LARGEST_SHARE * budget.total
    announced = math.inf

    def left() -> float:
        nonlocal announced
        reserved = study.reserve(most, session)
        kept = reserved.repetitions if confirm else reserved.runs
        if kept < announced and any(row["state"] == "completed" for row in study.tables.searched.values()):
            announced = kept
            study.record.set_reserved(dataclasses.asdict(reserved))
            study.progress.say(budget.reserved_after_search(reserved, confirm))
        return budget.left - reserved.total

    return left
