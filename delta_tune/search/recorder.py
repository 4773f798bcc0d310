"""Tune callback that writes the study's tables and removes checkpoints that are no longer needed."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray.tune import Callback

from delta_tune.background import TimeShare
from delta_tune.cluster.failures import ExternalFailure, out_of_memory_text
from delta_tune.cluster.gpu_sharing import doubled_share
from delta_tune.config import UserError
from delta_tune.console.live_view import RunProgress
from delta_tune.console.progress import Progress
from delta_tune.models.device_errors import KILLED_FOR_MEMORY
from delta_tune.results.columns import OPEN, State
from delta_tune.results.layout import BEST_FILE, CHECKPOINTS, ERROR_FILE, trial_name
from delta_tune.results.mirror import Mirror
from delta_tune.results.tables import StudyTables
from delta_tune.search.asha import AshaScheduler
from delta_tune.search.messages import (
    NOTICE,
    TrialAssignment,
    TrialOutcome,
    is_broken_twice,
    reported_epochs,
    worker_death,
)

FOLLOWING_SHARE = 0.02
"""Largest share of the time in which the weights of trials that run are made the model."""
MAX_BROKEN = 3
"""A GPU is lost once the context broke under so many trials in a row, each in two processes."""


def _gpu(result: dict[str, Any]) -> tuple[str, str]:
    return result["node"], result.get("gpu", "")


class Recorder(Callback):  # type: ignore[misc]
    """Turns Tune's events into table rows and progress, and cleans up checkpoints.

    Of finished trials only the leader's weights are kept, so disk use does not grow with the number of trials.
    """

    def __init__(
        self,
        tables: StudyTables,
        scheduler: AshaScheduler,
        progress: Progress,
        total: int | None,
        mirror: Mirror | None = None,
    ) -> None:
        self._tables, self._scheduler, self._progress, self._total = tables, scheduler, progress, total
        self._mirror = mirror
        self.standing = RunProgress(tables, total)
        self._asked_at: dict[int, float] = {}
        self._cleared = False
        self.interrupted = False
        """Whether the user has interrupted the run."""
        self.on_new_leader: Callable[[], None] | None = None
        """Called when a trial is the best so far: it ended, and its weights are there, or it reported an epoch."""
        self.on_fault: Callable[[Exception], None] | None = None
        """Called with an error that is to end the run: Tune would take one that is raised here for the trial's."""
        self._behind = self._told = False
        self._following = TimeShare(FOLLOWING_SHARE)
        self.on_lost_gpu: Callable[[str, str], None] | None = None
        """Called with the node of a GPU that computes nothing any more, and a sentence about it."""
        self._broken: Counter[tuple[str, str]] = Counter()
        """Trials in a row that failed because a GPU's context broke, by node and GPU."""
        self.on_dropped_trial: Callable[[str], None] | None = None
        """Called with the Tune id of a trial whose end Tune did not report to the searcher."""

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles its settings at the start of a run, but a resume uses the study's tables."""
        return {}

    def asked(self, number: int) -> None:
        """A trial was proposed; its start is timed from now."""
        self._asked_at[number] = time.time()

    @contextmanager
    def shown(self, title: str, slots: Callable[[], int]) -> Iterator[None]:
        """Show progress under `title` while the block runs; `slots` returns the number of concurrent trials."""
        self.standing.begin(slots)
        with self._progress.live(self.standing, self._tables, title):
            yield

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial got a worker."""
        self.standing.started(TrialAssignment.from_config(trial.config).number)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported epochs or a bad end, or both."""
        assignment, outcome = TrialAssignment.from_config(trial.config), TrialOutcome.from_result(result)
        number = assignment.number
        if outcome is not None and outcome.kind == "blocked":
            # Raise before Optuna or the tables see it: the trial stays unfinished, like the others that are running.
            raise ExternalFailure(outcome.error)
        if self._tables.trials[number]["state"] != "running":
            waited = result["began"] - self._asked_at.get(number, result["began"])
            self._tables.start(number, result["node"], result["began"], max(0.0, waited), assignment.gpus)
        elif result["node"] != self._tables.trials[number]["node"]:
            self._tables.move(number, result["node"])
        if NOTICE in result:
            self._progress.say(result[NOTICE])
        rows = reported_epochs(result)
        if rows:
            self._broken.pop(_gpu(result), None)
        for row in rows:
            if self._tables.report(number, row, row["ended"]):
                self._progress.epoch(self._tables, number, row["epoch"])
            self.standing.reported(number, row["epoch"])
        if rows and self.on_new_leader is not None and self._following.free and self._leads(number):
            with self._following.taken():
                self._follow(self.on_new_leader)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial completed, was stopped at a rung, or reported a bad end."""
        assignment, outcome = TrialAssignment.from_config(trial.config), TrialOutcome.from_result(trial.last_result)
        number, gpus = assignment.number, assignment.gpus
        if outcome is None:
            self._finish(number, "pruned" if trial.trial_id in self._scheduler.pruned else "completed", None)
        elif outcome.kind == "out of memory":
            self._tables.run_out_of_memory(number)
            self.standing.requeued(number)
            self._progress.say(
                f"Trial {number} ran out of memory with {gpus:g} of a GPU; it runs again with {doubled_share(gpus):g}."
            )
        elif outcome.kind == "GPU lost":
            self._tables.run_again(number)
            self.standing.requeued(number)
            self._lose_gpu(trial.last_result["node"], outcome.error)
        else:
            assert outcome.kind != "blocked", "its report ended the run"
            self._finish(number, outcome.kind, outcome.error)
            if is_broken_twice(outcome.error):
                self._blame_gpu(trial.last_result, outcome.error)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's worker died too often; exceptions inside a trial are reported instead."""
        lines = str(trial.get_error() or "no cause is known").strip().splitlines()
        killed = [line.strip() for line in lines if KILLED_FOR_MEMORY in line]
        cause = out_of_memory_text(killed[-1], "host memory") if killed else lines[-1]
        self._finish(TrialAssignment.from_config(trial.config).number, "failed", worker_death(cause))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Several times a second: write the tables if due, and look for trials that Tune dropped silently.

        Tune drops a trial if a worker cannot be reset for it (ray#29268, `_on_trial_reset`), and then counts that trial
        against its limit of concurrent trials forever.
        """
        self._tables.catch_up()
        for trial in [trial for trial in self._scheduler.live.values() if trial.status == "ERROR"]:
            self._scheduler.on_trial_error(None, trial)
            if self.on_dropped_trial is not None:
                self.on_dropped_trial(trial.trial_id)
            self.on_trial_error(iteration, trials, trial)

    def _blame_gpu(self, result: dict[str, Any], error: str) -> None:
        """A trial failed because the GPU broke under it twice; lose the GPU if no trial comes to its end there."""
        self._broken[_gpu(result)] += 1
        if self._broken[_gpu(result)] >= MAX_BROKEN:
            self._lose_gpu(result["node"], f"{MAX_BROKEN} trials in a row broke the context of a GPU ({error})")

    def _lose_gpu(self, node: str, why: str) -> None:
        if self.on_lost_gpu is not None:
            self.on_lost_gpu(node, why)

    def stop_the_rest(self, *, time_is_over: bool = False) -> bool:
        """Mark unfinished trials as stopped and write the tables; return whether the user ended the run.

        Args:
            time_is_over: whether unfinished trials are due to that.
        """
        rest = sorted(self._tables.open)
        for number in rest:
            self._tables.finish(number, "stopped")
        self._tables.write()
        return self.interrupted or (bool(rest) and not time_is_over)

    def _finish(self, number: int, state: State, error: str | None) -> None:
        former = self._tables.leader
        self._tables.finish(number, state, error)
        if (self._tables.leader != former or self._behind) and self.on_new_leader is not None:
            self._follow(self.on_new_leader)
        # The first time, clean up all trials: an earlier session may have been killed before it could.
        for each in {number, former} if self._cleared else self._tables.trials:
            if each is not None:
                self._clear(each)
        self._cleared = True
        self.standing.ended(number)
        self._progress.trial(self._tables, number, self._total, self.standing.left)

    def _leads(self, number: int) -> bool:
        """Whether a trial that runs is better than the completed ones."""
        tables, leader = self._tables, self._tables.leader
        return leader is None or tables.rank_of(tables.best_row(number)) < tables.rank_of(tables.best_row(leader))

    def _follow(self, follow: Callable[[], None]) -> None:
        """Tell of the new leader; again at the next trial's end, if that fails for a reason that may pass."""
        self._behind = True
        try:
            follow()
            self._behind = False
        except (OSError, UserError) as error:
            if not self._told:
                self._told = True
                self._progress.say(
                    f"The best model so far cannot be saved ({error}); it is tried again, at the end of the study at "
                    f"the latest."
                )
        except Exception as error:
            if self.on_fault is None:
                raise
            self.on_fault(error)

    def _clear(self, number: int) -> None:
        """Remove files of a trial that are no longer needed."""
        state = self._tables.trials[number]["state"]
        folder = self._tables.folder / CHECKPOINTS / trial_name(number)
        if state in (*OPEN, "stopped"):
            return
        kept = {"failed": {ERROR_FILE}}.get(state, {BEST_FILE} if number == self._tables.leader else set())
        if self._mirror is not None:
            self._mirror.discard(folder, kept)
        if not folder.exists():
            return
        if not kept:
            shutil.rmtree(folder)
            return
        for file in folder.iterdir():
            if file.name not in kept:
                file.unlink()
