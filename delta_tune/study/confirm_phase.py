"""After the search: compare the methods on fresh seeds and splits, and retrain the best one's configuration."""

from __future__ import annotations

from delta_tune.results.layout import BEST
from delta_tune.search.session import Session
from delta_tune.study.attention_phase import most_probe_images
from delta_tune.study.confirmation import Confirmation, confirm, confirmation_to_json
from delta_tune.study.final_runs import train_final_model
from delta_tune.study.retraining import describe_model, retrain_and_save, task_with_all_images
from delta_tune.study.study import Study
from delta_tune.study.time_budget import LOOK_AT_BUDGET_S, SLACK, cached_for, final_takes_val


def confirm_and_retrain(study: Study, session: Session) -> bool:
    """Compare the methods, if the settings ask for it, and retrain the best one's configuration.

    Returns:
        Whether the user interrupted it.
    """
    config, budget, say = study.config, study.budget, study.progress.say
    if not study.tables.searched.keys() & set(study.tables.ranked()):
        return False
    if not study.confirms:
        if study.trains_final and not study.has_final_model:
            train_final_model(study, session)
        return False
    repetitions, left, final_seconds = config.confirm, None, 0.0
    if budget.total is not None:
        # The search ends when as much is left as was reserved, and its processes take a moment to end
        reserved = study.reserve(budget.left / (1 - SLACK), session)
        repetitions, final_seconds = reserved.repetitions, reserved.final
        left = cached_for(LOOK_AT_BUDGET_S, lambda: budget.left - final_seconds)
        if repetitions < config.confirm:
            say(budget.too_short_to_confirm(repetitions, config.confirm))
        if not repetitions:
            return False
    for task in study.tasks.values():
        task.probe_images = most_probe_images(study)
    confirmation, whole = confirm(
        study.tasks,
        study.tables,
        study.groups,
        repetitions,
        session,
        seed=config.seed,
        folder=study.folder,
        max_epochs=config.max_epochs,
        left=left,
        splits=config.confirm_splits,
        planned=config.confirm,
    )
    if confirmation is not None:
        study.record.set_confirmation(confirmation_to_json(confirmation))
    study.save_record()
    if confirmation is not None and study.trains_final:
        train_final_model(study, session, confirmation.trials[confirmation.best])
    elif confirmation is not None:
        retrain_best(study, session, confirmation, final_seconds)
    return not whole


def retrain_best(study: Study, session: Session, confirmation: Confirmation, seconds: float) -> None:
    """Make the best method's configuration, trained anew, the final model, unless it is.

    Args:
        study: the study.
        session: where the model is trained.
        confirmation: names the best method.
        seconds: estimated training time; nothing is trained if the time budget has less left.
    """
    searched = study.task_of_trial(confirmation.trials[confirmation.best])
    task = task_with_all_images(searched) if final_takes_val(study.config) else searched
    model = describe_model(task, confirmation)
    if study.record.model == model and (study.folder / BEST).exists():
        return
    if not study.budget.has_time_for(seconds):
        study.progress.say("The time budget has no room left for the final model: best/ stays as it is.")
        return
    left = None if study.budget.total is None else lambda: study.budget.left + SLACK * seconds
    trial = retrain_and_save(task, study.tables, confirmation, session, study.folder, left)
    if trial is not None:
        study.record.set_model(trial, model)
