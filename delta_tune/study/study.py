"""A study from its settings to its model, step by step."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow.parquet as pq

from delta_tune.attention.layer_attention import attention_table, noise_warning
from delta_tune.cluster.gpu_sharing import measure_footprint_on_cluster
from delta_tune.cluster.nodes import Cluster
from delta_tune.cluster.resources import Resources, allocate
from delta_tune.config import UserError
from delta_tune.console.format import format_duration
from delta_tune.console.progress import Progress
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.filesystem.uris import is_uri
from delta_tune.inference.model_card import write_model_card
from delta_tune.inference.model_folder import save_winner, update_model_config
from delta_tune.report.page import ReportWriter
from delta_tune.report.sentences import study_summary
from delta_tune.results.layout import ATTENTION_FILE, BEST, CHECKPOINTS, STUDY_FILE, trial_name
from delta_tune.results.mirror import INTERVAL_S, push_or_raise
from delta_tune.results.study_record import scoring_of, write_json
from delta_tune.results.study_result import StudyResult
from delta_tune.results.tables import FINISHED, SCORES, StudyTables
from delta_tune.results.utilization import measure_time_use
from delta_tune.search.asha import AshaScheduler
from delta_tune.search.optuna_search import OptunaSearcher
from delta_tune.search.optuna_storage import open_storage
from delta_tune.search.recorder import Recorder
from delta_tune.search.runner import run_trials
from delta_tune.search.session import Session
from delta_tune.spaces.l2_baseline import comparison_groups, rung_groups
from delta_tune.spaces.space import Proposal
from delta_tune.study.confirmation import Confirmation, confirm, confirmation_to_json
from delta_tune.study.finish_phase import score_final_model
from delta_tune.study.plan import plan_lines
from delta_tune.study.remote import RemoteStudies
from delta_tune.study.resume import check_same_study, foreign_owner_note, restore, seconds_spent, study_identity
from delta_tune.study.retraining import describe_model, retrain_and_save, task_with_all_images
from delta_tune.study.setup import (
    check_layers,
    git_commit,
    new_name,
    plan_trials,
    resolve_settings,
    settings_for_json,
    study_folder,
)
from delta_tune.study.time_budget import (
    LARGEST_SHARE,
    PostSearchBudget,
    TimeBudget,
    cached_for,
    final_takes_val,
    final_training_growth,
    mean_epoch_seconds,
    plan_post_search,
)
from delta_tune.tracking.trackers import check_trackers, trackers
from delta_tune.training.task import Task, prepare

SHARED_CACHE = ".cache"
LOOK_AT_BUDGET_S = 1.0
SLACK = 0.05
"""Part of the time for the final model that may lie beyond the budget."""
DATA_OPTIONS = (
    "val_fraction", "test_fraction", "train_fraction", "train_per_class", "skip_damaged", "drop_duplicates"
)  # fmt: skip


class Study:
    """A study from its settings on. Made only if everything that can be refused before Ray starts is in order."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.began = time.time()
        address = str(settings.get("out", ""))
        self._remote = RemoteStudies(address) if is_uri(address) else None
        if self._remote is not None:
            settings = self._remote.begin(dict(settings))
        self.config, self.record = resolve_settings(settings)
        config = self.config
        check_trackers(config)
        storage = None if config.storage is None else open_storage(config.storage)
        self.progress = Progress(verbose=config.verbose)
        trials = plan_trials(config, self.record)
        self.checked, self.num_trials, self._notes = trials.checked, trials.num_trials, trials.notes
        if config.name:
            self.folder = study_folder(config, config.name)
        self.task: Task = prepare(
            config.data,
            config.model,
            config.weights,
            image_size=config.image_size,
            seed=config.seed,
            cache=config.cache or config.out.absolute() / SHARED_CACHE,
            progress=self.progress.bar,
            **{name: getattr(config, name) for name in DATA_OPTIONS},
        )
        check_layers(self.task, self.checked)
        if not config.name:
            self.folder = study_folder(config, new_name(self.task))
        self.mirror = None if self._remote is None else self._remote.mirror(self.folder.name)
        self.out = str(self.folder.parent) if self._remote is None else self._remote.address
        self.tables = StudyTables(self.folder, config.metric)
        if config.resume:
            check_same_study(self.record, self.folder, self.task, self.checked)
            self.tables = StudyTables.read(self.folder, config.metric)
            self._notes += foreign_owner_note(self.folder)
        self.scheduler = AshaScheduler(
            metric=config.metric,
            max_epochs=config.max_epochs,
            grace_period=config.grace_period,
            reduction_factor=config.reduction_factor,
            num_val=len(self.task.dataset.val),
            group_of=rung_groups(self.checked),
        )
        self.searcher = OptunaSearcher(
            self.checked,
            metric=config.metric,
            sampler=config.sampler,
            seed=config.seed,
            max_epochs=config.max_epochs,
            num_trials=self.num_trials,
            on_proposal=self._proposed,
            name=self.folder.name,
            storage=storage,
            resume=config.resume,
        )
        self.recorder = Recorder(self.tables, self.scheduler, self.progress, self.num_trials, self.mirror)
        self.reporter = ReportWriter(self.folder, self.progress.say)
        self._interrupted = False
        self._confirmation: Confirmation | None = None
        self._retrained = self._reserve_told = False
        restore(self.tables, self.scheduler, self.searcher, config.max_epochs)
        spent = seconds_spent(self.record, self.tables)
        self.budget = TimeBudget(config.time_budget_s, spent=spent, began=self.began)

    def resources(self, cluster: Cluster) -> Resources:
        """What one trial gets.

        Raises:
            UserError: more than the cluster has.
        """
        configs = [proposal.config for proposal in self.checked.drawn]
        return allocate(self.config, cluster, self.num_trials, lambda: measure_footprint_on_cluster(self.task, configs))

    def plan(self, resources: Resources) -> list[str]:
        """What is about to be done, in sentences."""
        said = plan_lines(self.config, self.folder, self.task, self.checked, self.num_trials, resources)
        if self.mirror is not None:
            said.insert(1, f"          kept at {self.mirror.address}, at most {INTERVAL_S:.0f} s behind")
        return [*said, *(f"          {note}" for note in self._notes)]

    def open(self) -> None:
        """Write down what the study is, before anything is computed.

        Raises:
            UserError: the folder cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made ({error.strerror}); give another --out.") from error
        packages = ("delta-tune", "torch", "torchvision", "timm", "ray", "optuna")
        begun = {
            **study_identity(self.task, self.checked),
            "versions": {name: version(name) for name in packages},
            "git_commit": git_commit(),
            "command": sys.argv,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "test_scorings": [],
        }
        for how in ("finished", "interrupted"):
            self.record.pop(how, None)
        self.record = (
            begun | self.record | {"settings": settings_for_json(self.config, self.folder) | {"out": self.out}}
        )
        self.tables.write()  # before the file that says there is a study to resume
        write_json(self.folder / STUDY_FILE, self.record)
        if self.mirror is not None:
            push_or_raise(self.mirror)

    def search(self, session: Session) -> None:
        """Measure what trials share, then run them."""
        to_run = self.num_trials - sum(row["state"] in FINISHED for row in self.tables.trials.values())
        if to_run <= 0:
            return
        if self.budget.total is not None and self._left_for_search(session) <= 0:
            self.progress.say(
                f"The search's part of the time budget of {format_duration(self.budget.total)} is spent; a larger "
                f"--time-budget goes on."
            )
            return
        resources = session.resources
        self.searcher.gpus_per_trial = resources.gpus_per_trial
        self._measure(session)
        self.record["ready_seconds"] = time.time() - self.began
        self.progress.say(f"Ready after {self.record['ready_seconds']:.0f} s; the first trials start.")
        left = None
        if self.budget.total is not None:
            left = cached_for(LOOK_AT_BUDGET_S, lambda: self._left_for_search(session))
        slots = run_trials(
            [self.task],
            self.searcher,
            self.scheduler,
            self.recorder,
            session,
            folder=self.folder,
            metric=self.config.metric,
            share_maps=self._shares_maps(resources),
            left=left,
            loggers=trackers(self.config, self.tables, self.progress.say),
        )
        self._keep_time()
        most = min(resources.most or self.num_trials, self.num_trials)
        slots = [(since, min(many, most)) for since, many in slots]
        if used := measure_time_use(self.tables.trials.values(), slots, since=self.began):
            self.record["time_use"] = dataclasses.asdict(used)
            self.progress.say(used.sentence())
        self._interrupted = self.recorder.stop_the_rest() and (left is None or left() > 0)

    def _left_for_search(self, session: Session) -> float:
        """Seconds of the time budget that the search may still use; what comes after it is told once it is known."""
        assert self.budget.total is not None
        if not self.config.confirm:
            return self.budget.left
        kept = self._reserve(session, LARGEST_SHARE * self.budget.total)
        if self.tables.leader is not None and not self._reserve_told:
            self._reserve_told = True
            self.record["reserved"] = dataclasses.asdict(kept)
            total = format_duration(self.budget.total)
            self.progress.say(
                f"Of the {total}, {format_duration(kept.confirmation)} are kept for a confirmation with "
                f"{kept.repetitions} of {self.config.confirm} seeds and {format_duration(kept.final)} for the final "
                f"model."
                if kept.repetitions
                else f"The {total} are too short to confirm and retrain: the search has all of them."
            )
        return self.budget.left - kept.total

    def _reserve(self, session: Session, within: float) -> PostSearchBudget:
        return plan_post_search(
            within,
            repetitions=self.config.confirm,
            epoch_seconds=mean_epoch_seconds(self.tables, comparison_groups(self.checked)),
            max_epochs=self.config.max_epochs,
            slots=session.resources.slots,
            growth=final_training_growth(self.config, self.task),
            split_seconds=self.record.get("attention_seconds", 0.0),
        )

    def _shares_maps(self, resources: Resources) -> bool:
        """On a GPU the source's forward pass is as fast as the way of its maps through the host's memory."""
        return resources.device == "cpu" and any(p.config.uses_behavior for p in self.checked.drawn)

    def confirm(self, session: Session) -> None:
        """Compare the methods on fresh seeds and splits, and retrain the best one's configuration."""
        config = self.config
        if not config.confirm or self._interrupted or not self.tables.ranked():
            return
        repetitions, left = config.confirm, None
        final = 0.0
        if self.budget.total is not None:
            kept = self._reserve(session, self.budget.left)
            repetitions, final = kept.repetitions, kept.final
            left = cached_for(LOOK_AT_BUDGET_S, lambda: self.budget.left - final)
            if repetitions < config.confirm:
                seeds = f"for {repetitions} seeds instead of {config.confirm}, no more"
                self.progress.say(
                    f"The {format_duration(max(0.0, self.budget.left))} left of the time budget are enough "
                    f"{seeds if repetitions else 'neither to confirm nor to retrain'}."
                )
            if not repetitions:
                return
        self._confirmation, whole = confirm(
            self.task,
            self.tables,
            comparison_groups(self.checked),
            repetitions,
            session,
            seed=config.seed,
            folder=self.folder,
            max_epochs=config.max_epochs,
            left=left,
        )
        self._keep_time()
        self._interrupted = not whole
        if self._confirmation is None:
            return
        self.record["confirmation"] = confirmation_to_json(self._confirmation)
        task = task_with_all_images(self.task) if final_takes_val(config) else self.task
        model = describe_model(task, self._confirmation)
        self._retrained = self.record.get("model") == model and (self.folder / BEST).exists()
        if self._retrained:
            return
        if self.budget.left < (1 - SLACK) * final:
            self.progress.say("The time budget has no room left for the final model: it is the one the search kept.")
            return
        trial = retrain_and_save(task, self.tables, self._confirmation, session, self.folder)
        if trial is not None:
            self._retrained = True
            self.record |= {"winner": trial, "model": model}

    def _measure(self, session: Session) -> None:
        configs, began = [proposal.config for proposal in self.checked.drawn], time.time()
        self.task.measurements.measure(configs, session.device, self.progress.say, session.runner)
        self.record["attention_seconds"] = max(time.time() - began, self.record.get("attention_seconds", 0.0))
        verdicts = [
            noise_warning({k: v.reliability for k, v in m.items()}) for m in self.task.measurements.attention.values()
        ]
        self.record["attention_verdict"] = " ".join(verdict for verdict in verdicts if verdict)
        if self.task.measurements.attention:
            rows = [row for layers in self.task.measurements.attention.values() for row in layers.items()]
            (self.folder / ATTENTION_FILE).parent.mkdir(exist_ok=True)
            with atomic_write(self.folder / ATTENTION_FILE) as partial:
                pq.write_table(attention_table(rows), partial)

    def finish(self, device: str) -> StudyResult:
        """The winner's model, its score on the test split, and what to say of it all."""
        tables, winner = self.tables, next(iter(self.tables.ranked()), None)
        scorings, best = self.record["test_scorings"], self.folder / BEST
        if self._retrained:
            winner = self.record["winner"]
        elif winner is not None and (self.record.get("model") != f"trial {winner}" or not best.exists()):
            if self.mirror is not None:
                self.mirror.fetch_folder(self.folder / CHECKPOINTS / trial_name(winner))
            save_winner(self.task, tables, winner, self.folder)
            self.record |= {"winner": winner, "model": f"trial {winner}"}
        model = self.record.get("model", "")
        # A study that goes on later must not have looked at its test split.
        if winner is not None and not self._interrupted and scoring_of(scorings, model) is None:
            score_final_model(self.task, self.folder, self.record, device, retrained=self._retrained)
        ended = "interrupted" if self._interrupted else "finished"
        self.record[ended] = datetime.now(UTC).isoformat(timespec="seconds")
        self._keep_time()
        if winner is not None:
            update_model_config(best, {"versions": self.record["versions"]})
            confirmed = self._confirmation.sentences if self._confirmation else ()
            write_model_card(best, self.record, confirmed, retrained=self._retrained)
        page = self.reporter.write()
        self.progress.methods(tables)
        remarks = [*(self._confirmation.sentences if self._confirmation else ()), self.record.get("attention_verdict")]
        said = study_summary(
            tables,
            self.folder,
            scorings,
            model,
            [text for text in remarks if text],
            resume=self._interrupted,
            out=self.out,
        )
        for line in said:
            self.progress.say(line)
        if self.mirror is not None:
            push_or_raise(self.mirror, whole=True)
        scored = scoring_of(scorings, model)
        test_scores = {} if scored is None else dict(scored[0])
        return StudyResult(
            best_config=None if winner is None else tables.config(winner),
            best_metrics={} if winner is None else {k: tables.best_row(winner)[k] for k in SCORES} | test_scores,
            trials=tables.table(),
            path=self.folder,
            report=page,
            summary="\n".join(said),
            metric=self.config.metric,
        )

    def _keep_time(self) -> None:
        """Write down how long the study has run in all its sessions: its time budget counts them all."""
        self.record |= {"spent_seconds": self.budget.used, "spent_seconds_at": time.time()}
        write_json(self.folder / STUDY_FILE, self.record)

    def _proposed(self, number: int, proposal: Proposal) -> None:
        self._keep_time()
        if number not in self.tables.trials:
            self.tables.add(number, proposal.config, proposal.params, proposal.helpers)
        self.recorder.asked(number)
