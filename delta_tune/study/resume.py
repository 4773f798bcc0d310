"""`--resume`: check that the study is the same, and rebuild its state from its tables."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from optuna.distributions import BaseDistribution, distribution_to_json

from delta_tune.config import UserError
from delta_tune.console.escape import flag, shell_command
from delta_tune.filesystem.atomic import PARTIAL
from delta_tune.results.columns import FINISHED, REPORTED
from delta_tune.results.layout import LOCK, RAY, WANDB
from delta_tune.results.study_identity import BackboneIdentity, StudyIdentity
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables
from delta_tune.search.asha import AshaScheduler
from delta_tune.search.messages import is_worker_death
from delta_tune.search.optuna_search import LOST, OptunaSearcher, Unfinished
from delta_tune.spaces.l2_baseline import ARM, turn_of
from delta_tune.spaces.validation import CheckedSpace
from delta_tune.study.known_studies import check_same_text
from delta_tune.study.networks import layers_of_tokens, space_of
from delta_tune.training.task import Task


def fingerprints_of(task: Task, checked: CheckedSpace) -> dict[str, str]:
    """The fingerprints of the data, the weights, and the source's own head where trials of this space train it."""
    found = {"data": task.dataset.fingerprint, "weights": task.backbone.fingerprint}
    if any(proposal.config.effective_co_tuning for proposal in checked.drawn):
        found["source_head"] = task.backbone.source_head_digest
    return found


def study_identity(tasks: Mapping[str, Task], checked: CheckedSpace) -> StudyIdentity:
    """The identity of a study: data, weights and space.

    If a hyperparameter's distribution depends on others, the first one drawn represents it.
    """
    known: dict[str, BaseDistribution] = {}
    for proposal in checked.drawn:
        known = dict(proposal.distributions) | known
    dataset = next(iter(tasks.values())).dataset
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    backbones = tuple(
        BackboneIdentity(
            label=label,
            model=task.backbone.model,
            weights=task.backbone.weights,
            fingerprints=fingerprints_of(task, space_of(tasks, label, checked)),
        )
        for label, task in tasks.items()
    )
    return StudyIdentity(
        fingerprints=backbones[0].fingerprints,
        backbone=", ".join(tasks),
        backbones=backbones if len(backbones) > 1 else (),
        images={name: len(split) for name, split in splits.items() if split is not None},
        space=checked.space.source,
        distributions={name: json.loads(distribution_to_json(each)) for name, each in known.items()},
        layers=layers_of_tokens(tasks),
    )


def check_same_study(record: StudyRecord, folder: Path, tasks: Mapping[str, Task], checked: CheckedSpace) -> None:
    """Check that a resumed study is the one that was started.

    Args:
        record: of the earlier sessions.
        folder: of the study.
        tasks: of this session's networks.
        checked: its space.

    Raises:
        UserError: data, weights or space differ.
    """
    ours = study_identity(tasks, checked)
    begin_with = shell_command(flag("--start-from", folder.name))
    anew = f"start a new study, with {begin_with} to begin with what this one found"
    changed = _changed(record.fingerprints, ours.fingerprints)
    if record.backbones or ours.backbones:
        known = {each.label: each.fingerprints for each in ours.backbones}
        was_labels = [each.label for each in record.backbones] or [record.backbone]
        if list(known or tasks) != was_labels:
            raise UserError(
                f"{folder} cannot be resumed: its networks were {' and '.join(was_labels)}, and now they are "
                f"{' and '.join(tasks)}; name the same ones in the same order with --model and --weights, or {anew}."
            )
        changed = [
            f"{name} ({each.label})"
            for each in record.backbones
            for name in _changed(each.fingerprints, known[each.label])
        ]
    if changed:
        sizes = (record.images, ours.images)
        was, now = (", ".join(f"{name} {count}" for name, count in images.items()) for images in sizes)
        images = f" (images: {was} then, {now} now)" if was != now else ""
        raise UserError(
            f"{folder} cannot be resumed: its {' and '.join(changed)} changed since{images}; restore them, or {anew}."
        )
    check_same_text(record.space, ours.space, str(folder), checked.space.name, folder.name)


def _changed(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name.replace("_", " ") for name, known in was.items() if now.get(name, known) != known]


def check_plain_files(folder: Path) -> None:
    """Check that a study's folder holds plain files and folders only: writing to a link writes somewhere else.

    Raises:
        UserError: names what is neither.
    """
    for place, folders, files in os.walk(folder):
        if Path(place) == folder / WANDB:  # wandb's own links, to its newest run
            folders.clear()
            continue
        for path in (Path(place, name) for name in (*folders, *files)):
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                kind = "a link" if stat.S_ISLNK(mode) else "no plain file"
                raise UserError(
                    f"{folder} cannot be resumed: {path.relative_to(folder)} is {kind}, and a study never makes one, "
                    f"so what is written to it might land elsewhere; remove it, or put what it stands for in its place."
                )


def remove_unfinished_files(folder: Path) -> None:
    """Remove what a killed session was writing; only for a session that has claimed the study."""
    for file in folder.rglob(f".*{PARTIAL}"):
        if file.parent.name != LOCK:
            file.unlink(missing_ok=True)


def foreign_owner_note(folder: Path) -> tuple[str, ...]:
    """A warning about a study that another user started: Ray's files may contain code, ours are only data."""
    if not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid():
        return ()
    return (
        f"{folder} belongs to another user. Its tables, JSON and weights are read as data; {folder / RAY} holds "
        f"Ray's state as pickles, which this does not open: do so with Ray's own tools only if you trust their owner.",
    )


def restore(tables: StudyTables, scheduler: AshaScheduler, searcher: OptunaSearcher, max_epochs: int) -> None:
    """Rebuild rungs and Optuna from the tables of the earlier session.

    Args:
        tables: the search's tables; trials whose end was not written by the earlier session are ended here.
        scheduler: a new scheduler.
        searcher: a new searcher.
        max_epochs: epochs of a full trial.
    """
    told = [(e.get(REPORTED) or 0.0, number, e["epoch"]) for number in tables.searched for e in tables.epochs[number]]
    configs = {number: tables.config(number) for number in tables.searched}
    for _, number, epoch in sorted(told):
        row, epochs = tables.trials[number], tables.epochs[number]
        stop = scheduler.replay(configs[number], number, [epochs[epoch - 1]])
        # The session may have been killed between stopping a trial and writing its row.
        if epoch == len(epochs) and row["state"] not in FINISHED and (stop or epoch >= max_epochs):
            tables.close_without_writing(number, "pruned" if stop else "completed")
    finished, unfinished = [], []
    for number, row in sorted(tables.searched.items()):
        values = {epoch["epoch"]: epoch[tables.metric] for epoch in tables.epochs[number]}
        if row["state"] in FINISHED:
            lost = row["state"] == "failed" and is_worker_death(row["error"])
            finished.append((number, tables.params(number), LOST if lost else row["state"], values))
        else:
            unfinished.append(Unfinished(number=number, params=tables.params(number), values=values))
    choice_of, checked = None, searcher.checked
    if ARM in {checked.space.balance, *(each.space.balance for each in checked.inner.values())}:
        # An earlier session may not have had arms
        choice_of = {number: turn_of(checked, tables, number) for number in tables.searched}
    searcher.restore_trials(finished, unfinished, choice_of)


def seconds_spent(record: StudyRecord, tables: StudyTables) -> float:
    """Wall-clock seconds of the earlier sessions.

    A killed driver may have written its tables after `study.json`; time up to their last epoch counts, but no more than
    the epochs since then took: the clock may have been set in between.
    """
    last = max((row["ended"] for row in tables.trials.values() if row.get("ended")), default=0.0)
    noted = last if record.spent_seconds_at is None else record.spent_seconds_at
    since = [row for rows in tables.epochs.values() for row in rows if (row.get(REPORTED) or 0.0) > noted]
    at_most: float = sum(row["seconds"] + row["eval_seconds"] for row in since)
    return (record.spent_seconds or 0.0) + min(max(0.0, last - noted), at_most)
