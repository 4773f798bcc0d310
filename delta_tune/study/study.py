"""The state of a study, which its phases share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from delta_tune.config import StudyConfig, TrialConfig
from delta_tune.console.progress import Progress
from delta_tune.data.dataset import Dataset
from delta_tune.report.page import ReportWriter
from delta_tune.results.columns import FINISHED
from delta_tune.results.layout import BEST, CHECKPOINTS, FINAL
from delta_tune.results.mirror import Mirror
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables
from delta_tune.search.asha import AshaScheduler
from delta_tune.search.optuna_search import OptunaSearcher
from delta_tune.search.recorder import Recorder
from delta_tune.search.session import Session
from delta_tune.spaces.l2_baseline import Groups, comparison_groups
from delta_tune.spaces.space import Proposal
from delta_tune.spaces.validation import CheckedSpace
from delta_tune.study.confirmation_splits import split_growth
from delta_tune.study.networks import space_of, task_of
from delta_tune.study.schedule import Schedule
from delta_tune.study.time_budget import (
    LEAST_RUNS,
    START_S,
    PostSearchBudget,
    TimeBudget,
    final_takes_val,
    final_training_growth,
    fold_growth,
    images_to_measure,
    mean_epoch_seconds,
    plan_final_runs,
    plan_post_search,
    scoring_seconds,
)
from delta_tune.training.task import Task
from delta_tune.training.workplace import Say


@dataclass(kw_only=True)
class Study:
    """A study's objects and state: `prepare_study` creates it, `tune` runs its phases in order.

    Attributes:
        config: the settings.
        folder: where results are written.
        out: its parent as the user named it: a folder or an address.
        mirror: copies the folder to that address; None if `out` is a folder.
        record: `study.json`.
        tables: trials and epochs of the search.
        tasks: label → the data and a pretrained network that trials may have, the one that was screened best first.
        spaces: label → the search space of each network, as the settings have it.
        checked: the search space.
        num_trials: number of trials; None for as many as the time budget allows.
        notes: sentences for the plan.
        progress: prints to the user.
        reporter: writes the report.
        budget: the time budget over all sessions.
        left_open: names of the settings that are left to the time budget.
        storage: Optuna's; None for memory.
        schedule: what the time budget buys; None without one, and before a step has been timed.
        why: sentences on how the schedule came about.
        start_seconds: from the proposal of a trial to its first step, where its process has to start.
        scheduler: stops trials early.
        searcher: proposes trials.
        recorder: writes the tables while trials run.
    """

    config: StudyConfig
    folder: Path
    out: str
    mirror: Mirror | None
    record: StudyRecord
    tables: StudyTables
    tasks: dict[str, Task]
    checked: CheckedSpace
    num_trials: int | None
    notes: tuple[str, ...]
    progress: Progress
    reporter: ReportWriter
    budget: TimeBudget
    left_open: Collection[str] = ()
    spaces: Mapping[str, Any] = field(default_factory=dict)
    storage: BaseStorage | None = None
    schedule: Schedule | None = None
    why: tuple[str, ...] = ()
    start_seconds: float = START_S
    scheduler: AshaScheduler = field(init=False)
    searcher: OptunaSearcher = field(init=False)
    recorder: Recorder = field(init=False)

    @property
    def first_task(self) -> Task:
        """That of the network which was screened best: the first model has it."""
        return next(iter(self.tasks.values()))

    @property
    def dataset(self) -> Dataset:
        """The data; the images of other networks may be stored otherwise, with the same labels in the same order."""
        return self.first_task.dataset

    def task_of(self, config: TrialConfig) -> Task:
        """The task that a configuration runs on."""
        return task_of(self.tasks, config)

    def label_of_trial(self, number: int) -> str:
        """The label of a trial's network."""
        label = self.tables.backbone(number)
        return label if label in self.tasks else next(iter(self.tasks))

    def task_of_trial(self, number: int) -> Task:
        """The task that a trial runs on."""
        return self.tasks[self.label_of_trial(number)]

    @property
    def several(self) -> bool:
        """Whether trials choose from several networks."""
        return len(self.tasks) > 1

    @property
    def names_backbones(self) -> bool:
        """Whether trials name the network that they have; one alone need not be named, but may."""
        return any(config.backbone is not None for config in self.configs)

    def configs_of(self, label: str) -> list[TrialConfig]:
        """Configurations drawn from the space for one of the networks."""
        return space_of(self.tasks, label, self.checked).configs

    def telling(self, label: str) -> Say:
        """A function that prints a sentence on one of the networks to the user."""
        say = self.progress.say
        return (lambda text: say(text if text.startswith(" ") else f"{label}: {text}")) if self.several else say

    @property
    def configs(self) -> list[TrialConfig]:
        """Configurations drawn from the space, which show what its trials need."""
        return self.checked.configs

    @property
    def groups(self) -> Groups:
        """What the confirmation compares."""
        return comparison_groups(self.checked)

    @property
    def confirms(self) -> bool:
        """Whether there is to be a confirmation, and has been time for one so far."""
        return self.config.confirm > 0 and (self.schedule is None or self.schedule.confirms)

    @property
    def trains_final(self) -> bool:
        """Whether the final model is to be trained after the search, and there has been time for it so far."""
        asked = self.config.final_runs > 0 and final_takes_val(self.config) and not self.sampled
        return asked and (self.schedule is None or self.schedule.confirms)

    @property
    def has_final_model(self) -> bool:
        """Whether the model is that of the final runs that are asked for, is whole, and no trial has ended since."""
        known, begun = self.record.held_out, any((self.folder / CHECKPOINTS).glob(f"{FINAL}*"))
        if known is None or begun or not (self.folder / BEST).exists():
            return False
        return (known["trials"], known["asked"]) == (self.ended, [self.config.final_runs, self.config.members])

    @property
    def ended(self) -> int:
        """Number of trials that have ended."""
        return sum(row["state"] in FINISHED for row in self.tables.trials.values())

    @property
    def sampled(self) -> bool:
        """Whether the time budget is too short for a pass over all images: nothing then needs one."""
        return self.record.sample is not None

    @property
    def least_seconds(self) -> float:
        """Seconds in which a new trial comes to its first rung; there is no use in starting one with less time."""
        seconds = mean_epoch_seconds(self.tables, self.groups).values()  # of the slowest network
        epoch = max(seconds, default=0.0 if self.schedule is None else self.schedule.epoch_seconds)
        return self.start_seconds + self.config.grace_period * epoch

    def save_record(self) -> None:
        """Write `study.json`, with the time that the study has taken in all its sessions."""
        self.record.set_time(self.budget.used)
        self.record.write(self.folder)

    def add_trial(self, number: int, proposal: Proposal) -> None:
        """Add a trial that the searcher proposes to the tables."""
        self.save_record()
        if number not in self.tables.trials:
            self.tables.add(number, proposal.config, proposal.params, proposal.helpers)
        self.recorder.asked(number)

    def reserve(self, within: float, session: Session) -> PostSearchBudget:
        """Estimate the time of confirmation and final model.

        Args:
            within: seconds they may take.
            session: where they run.
        """
        epoch_seconds, slots = mean_epoch_seconds(self.tables, self.groups), session.resources.slots
        measuring = self.measuring_seconds(self.configs)
        if not self.config.confirm:
            if self.several and self.tables.leader in self.tables.searched:
                # What the others take is not kept: rivals race if there is time for them
                assert self.tables.leader is not None, "among the trials"
                own = self.tables.backbone(self.tables.leader)
                epoch_seconds = mean_epoch_seconds(self.tables, self.groups, own)
            return plan_final_runs(
                within,
                runs=self.config.final_runs,
                epoch_seconds=max(epoch_seconds.values(), default=0.0),
                max_epochs=self.config.max_epochs,
                slots=slots,
                growth=fold_growth(self.dataset),
                measuring=measuring,
            )
        besides = math.ceil(LEAST_RUNS / slots) * measuring if self.trains_final else 0.0
        found = plan_post_search(
            within - besides,
            repetitions=self.config.confirm,
            epoch_seconds=epoch_seconds,
            max_epochs=self.config.max_epochs,
            slots=slots,
            growth=final_training_growth(self.config, self.dataset, slots),
            split_seconds=self.record.attention_seconds + measuring / session.measuring.slots,
            split_growth=split_growth(self.config, self.dataset),
        )
        return dataclasses.replace(found, final=found.final + besides) if found.repetitions else found

    def measuring_seconds(self, configs: Sequence[TrialConfig]) -> float:
        """Seconds in which one process measures what such runs need of new splits, but attention."""
        return images_to_measure(configs, self.dataset) * scoring_seconds(self.tables, len(self.dataset.val))
