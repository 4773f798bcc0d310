"""Run trials with Ray Tune; the only module that builds a Tuner."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.logger import LoggerCallback, TBXLoggerCallback
from ray.tune.search import ConcurrencyLimiter, Searcher

from delta_tune.cluster.connection import redirect_ray_logs
from delta_tune.cluster.failures import ExternalFailure
from delta_tune.cluster.nodes import alive_nodes
from delta_tune.cluster.resources import Capacity, describe_request, trials_that_fit
from delta_tune.cluster.shared_objects import put_shared
from delta_tune.cluster.source_map_store import shared_source_maps, source_map_budget
from delta_tune.config import Metric
from delta_tune.console.live_view import RunProgress
from delta_tune.results.layout import LOG_FILE, RAY, trial_name
from delta_tune.search.asha import AshaScheduler
from delta_tune.search.messages import AVOID, EachEpoch, TrialAssignment
from delta_tune.search.recorder import Recorder
from delta_tune.search.session import Session
from delta_tune.search.worker import WorkerSettings, run_tune_trial
from delta_tune.training.task import Task

MAX_WORKER_DEATHS = 3
NODE_LABEL = "ray.io/node-id"
"""Ray's own label of each node."""
NO_HANDLER = "TUNE_DISABLE_SIGINT_HANDLER"
"""Environment variable that keeps Tune from handling SIGINT."""


class Beside(Protocol):
    """What is measured beside the trials of a run, for those that need it."""

    @property
    def shelf(self) -> str:
        """Under this name `put_shared` has it once such a trial is proposed."""

    @property
    def slots(self) -> int:
        """How many trials less it leaves room for now."""

    @property
    def failed(self) -> bool:
        """Whether it has failed, and the run is to end."""


def run_trials(
    tasks: Sequence[Task],
    searcher: Searcher,
    scheduler: AshaScheduler,
    recorder: Recorder,
    session: Session,
    *,
    folder: Path,
    metric: Metric,
    share_maps: bool,
    left: Callable[[], float] | None = None,
    beside: Beside | None = None,
    least: float = 0.0,
    title: str = "Search",
    loggers: Sequence[LoggerCallback] = (),
) -> list[tuple[float, int]]:
    """Run the searcher's trials until there are no more, time is up, or the user interrupts.

    Args:
        tasks: measured tasks; the object store holds them once per node.
        searcher: proposes trials, each on one of the tasks (`TASK`), and is told of their ends.
        scheduler: stops them at its rungs.
        recorder: records all events.
        session: resources of a trial, and who is told how the maps were shared.
        folder: the study's folder.
        metric: the metric that searcher and scheduler use.
        share_maps: whether trials share the source's feature maps.
        left: returns the seconds until all trials are stopped, wherever they are; None for no limit.
        beside: the attention that is measured meanwhile, if it is.
        least: no trial is started any more when fewer seconds are left.
        title: the run's name in the live view.
        loggers: callbacks that run after the recorder.

    Returns:
        (seconds since 1970, concurrent trials from then on), as nodes came and went.

    Raises:
        ExternalFailure: no trial has had room for a long time, or the only GPUs are lost.
    """
    resources = session.resources
    name = f"{folder}-{uuid.uuid4().hex}"
    settings = WorkerSettings(
        shelf=name,
        checkpoints=session.checkpoints(folder),
        metric=metric,
        threads=resources.threads,
        device=resources.device,
        maps=f"{name}-maps" if share_maps else None,
        attention=None if beside is None else beside.shelf,
        rungs=tuple(scheduler.rungs),
        cpus=resources.cpus_per_trial,
    )

    def trial(config: dict[str, Any]) -> None:
        run_tune_trial(config, settings)

    cpus = resources.cpus_per_trial

    def bundle(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        assignment = TrialAssignment.from_config(config)
        bundles = [{"CPU": cpus, **({"GPU": assignment.gpus} if assignment.gpus else {})}]
        if not assignment.avoid:
            return tune.PlacementGroupFactory(bundles)
        elsewhere = {NODE_LABEL: f"!in({assignment.avoid})"}
        return tune.PlacementGroupFactory(bundles, bundle_label_selector=[elsewhere])

    def runs() -> bool:
        return any(trial.status == trial.RUNNING for trial in scheduler.live.values())

    avoided: set[str] = set()
    ends: list[Exception] = []
    room = Capacity(resources, session.progress.say, nodes=lambda: alive_nodes(avoided), runs=runs)
    limited = _Limiter(searcher, room, avoided, beside, lambda: left is not None and left() < least)

    def avoid(node: str, why: str) -> None:
        avoided.add(node)
        if not trials_that_fit(resources, alive_nodes(avoided)):
            # Not raised here: Tune swallows what is raised at a trial's end.
            ends.append(ExternalFailure(f"{why}, and no other node has room for {describe_request(resources)}"))
            return
        session.progress.say(f"{why[0].upper()}{why[1:]}. No more trials start on that node.")

    recorder.on_lost_gpu = avoid
    recorder.on_fault = ends.append
    recorder.on_dropped_trial = lambda trial_id: limited.on_trial_complete(trial_id, error=True)
    ray_folder = folder / RAY
    tuner = tune.Tuner(
        tune.with_resources(trial, bundle),
        tune_config=tune.TuneConfig(
            search_alg=limited,
            scheduler=scheduler,
            num_samples=-1,  # unlimited: the searcher ends the run
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"run-{len(list(ray_folder.glob('run-*'))) + 1}",
            storage_path=str(ray_folder),
            callbacks=[recorder, _TensorBoard(), *loggers],
            stop=_Stopper(left, room, recorder.standing, ends, beside, scheduler.live),
            failure_config=tune.FailureConfig(max_failures=MAX_WORKER_DEATHS),
            verbose=0,
        ),
    )
    maps, shown = _maps(settings.maps, session.progress.say), recorder.shown(title, lambda: room.slots)
    logs = redirect_ray_logs(folder / LOG_FILE)
    with put_shared(list(tasks), name), logs, _without_credentials(), maps, shown:
        recorder.interrupted = _fit(tuner)
    if ends:
        raise ends[0]
    if room.out_of_room is not None:
        raise ExternalFailure(room.out_of_room)
    return room.history


def _fit(tuner: tune.Tuner) -> bool:
    """Run Tune to its end; return whether the user interrupted it.

    Tune handles SIGINT by a handler of its own. It takes it back at a signal only, so that the next one after its run
    would be lost.
    """
    before = signal.getsignal(signal.SIGINT)
    tuner.fit()
    if threading.current_thread() is not threading.main_thread() or os.environ.get(NO_HANDLER, "0") != "0":
        return False
    interrupted = signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, before)
    return interrupted


class _Limiter(ConcurrencyLimiter):  # type: ignore[misc]
    """Limits concurrent trials to what the cluster has room for now, and keeps them off nodes whose GPU was lost.

    Tune's own limiter is fixed. Once it is too late for another trial, there are no more.
    """

    def __init__(
        self,
        searcher: Searcher,
        room: Capacity,
        avoided: Collection[str],
        beside: Beside | None,
        too_late: Callable[[], bool],
    ) -> None:
        super().__init__(searcher, max_concurrent=room.limit)
        self._room, self._avoided, self._beside, self._too_late = room, avoided, beside, too_late

    def suggest(self, trial_id: str) -> Any:
        """The next trial, if there is room for it."""
        if self._too_late():
            return Searcher.FINISHED
        taken = 0 if self._beside is None else self._beside.slots
        self.max_concurrent = max(1, self._room.limit - taken)
        config = super().suggest(trial_id)
        return config | {AVOID: ",".join(sorted(self._avoided))} if isinstance(config, dict) else config

    def get_state(self) -> dict[str, Any]:
        """Empty: a resumed study is rebuilt from its tables."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles its settings at the start of a run, but a resume uses the study's tables."""
        return {}


class _TensorBoard(EachEpoch, TBXLoggerCallback):  # type: ignore[misc]
    """Tune's, with a point for each epoch."""


class _Stopper(tune.Stopper):  # type: ignore[misc]
    """Stops the run on time. Tune's own budget cannot change during a run and waits forever if no node has room."""

    def __init__(
        self,
        left: Callable[[], float] | None,
        room: Capacity,
        standing: RunProgress,
        ends: Collection[Exception],
        beside: Beside | None,
        live: Mapping[str, Any],
    ) -> None:
        self._left, self._room, self._standing, self._ends = left, room, standing, ends
        self._beside, self._live = beside, live

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stops single trials; the scheduler does."""
        return False

    def stop_all(self) -> bool:
        """Whether to stop the run; Tune asks several times per second."""
        if self._left is not None:
            left = self._left()
            self._standing.ends_in(left)
            if left <= 0:
                self._end_processes()
                return True
        failed = self._beside is not None and self._beside.failed
        return failed or bool(self._ends) or self._room.out_of_room is not None

    def _end_processes(self) -> None:
        """End the trials where they are; what they saved stays. Tune would wait for their epochs, up to 10 s."""
        for trial in self._live.values():
            if (actor := trial.temporary_state.ray_actor) is not None:
                ray.kill(actor)

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles its settings at the start of a run, but a resume uses the study's tables."""
        return {}


@contextlib.contextmanager
def _without_credentials() -> Iterator[None]:
    """Keep Tune from copying AWS keys of this process into its workers' runtime environment while the block runs.

    Ray writes runtime environments into logs that all may read, and into the command lines of processes. Workers have
    the variables of their node instead.
    """
    before = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in before if not name.startswith("AWS_")}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = before


@contextlib.contextmanager
def _maps(name: str | None, say: Callable[[str], None]) -> Iterator[None]:
    if name is None:
        yield
        return
    budget = source_map_budget()
    with shared_source_maps(name, budget) as shelf:
        yield
        say(ray.get(shelf.report.remote()).sentence(budget))


def _name(trial: Any) -> str:
    """Name of Tune's folder for a trial; the default would list every hyperparameter."""
    return f"trial-{trial_name(TrialAssignment.from_config(trial.config).number)}"
