"""Run one trial in a Ray worker, from its Tune configuration to its reports."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from delta_tune.cluster.devices import lasting_fault
from delta_tune.cluster.failures import ExternalFailure, external_cause
from delta_tune.cluster.gpu_sharing import memory_fraction
from delta_tune.cluster.shared_objects import get_shared
from delta_tune.cluster.source_map_store import RaySourceMaps
from delta_tune.config import Metric, TrialConfig, UserError
from delta_tune.console.format import format_duration
from delta_tune.filesystem.uris import is_uri
from delta_tune.results.layout import ERROR_FILE, HUNG_BEFORE_FILE, HUNG_FILE, traceback_file, trial_name
from delta_tune.results.mirror import Mirror, local_copy
from delta_tune.search.messages import OutcomeKind, TrialAssignment, TrialOutcome
from delta_tune.search.watchdog import FACTOR, timeout_from_note, watch_epochs
from delta_tune.training.checkpoint import read_resume_point
from delta_tune.training.trial import Row, run_trial


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Settings shared by all trials of a study."""

    shelf: str
    checkpoints: str
    """Folder or address of all trials' checkpoints."""
    metric: Metric
    threads: int
    device: str
    maps: str | None
    """Name of the index of shared source feature maps; None if maps are not shared."""


TRIES, WAIT_S = 5, 10.0
"""Attempts to push an epoch to an address, and seconds between them."""

_tasks: tuple[str, Any] | None = None
"""Tasks of the study that this process last worked for; processes are reused between trials."""


def run_tune_trial(tune_config: dict[str, Any], settings: WorkerSettings) -> None:
    """Run one trial and report each epoch.

    Exceptions inside the trial are reported as its outcome, not raised: Tune would restart the trial, which only makes
    sense if a worker or node died.
    """
    # By default Tune waits 2 s for a trial's thread to end, then gives up on the actor and forgets to tell the searcher
    # (ray/tune/execution/tune_controller.py, _on_trial_reset), so that a study on a busy machine would never end.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "600"
    assignment = TrialAssignment.from_config(tune_config)
    torch.set_num_threads(settings.threads)
    reporter = _Reporter(settings.metric)
    place = settings.checkpoints
    if not is_uri(place) and not Path(place).parent.exists():  # a node that joined after the study's check
        unseen = f"{Path(place).parent} is not seen by node {socket.gethostname()}, which trials were given to"
        reporter.end("blocked", unseen)
        return
    if fault := lasting_fault(settings.device):
        reporter.end("blocked", f"node {socket.gethostname()}, which trials were given to, cannot use its GPU: {fault}")
        return
    try:
        with local_copy(f"{place}/{trial_name(assignment.number)}") as (folder, mirror):
            _run(assignment, settings, folder, mirror, reporter)
    except (OSError, UserError) as error:
        if not is_uri(place):
            raise
        reporter.end("blocked", f"{place} cannot be read ({error})")


class _Reporter:
    """Reports one trial to Tune: its epochs and, if it ends badly, its outcome."""

    def __init__(self, metric: Metric) -> None:
        self._origin = {"node": ray.get_runtime_context().get_node_id(), "began": time.time()}
        self._last: Row = {"epoch": 0, metric: float("nan")}

    def epoch(self, row: Row) -> None:
        """Report an epoch."""
        self._last = row
        tune.report({**row, **self._origin, "ended": time.time()})

    def end(self, kind: OutcomeKind, error: str) -> None:
        """Report that the trial ended badly, after the last epoch that was reported."""
        tune.report(TrialOutcome(kind=kind, error=error).to_result({**self._last, **self._origin}))


def _run(
    assignment: TrialAssignment, settings: WorkerSettings, folder: Path, mirror: Mirror | None, reporter: _Reporter
) -> None:
    global _tasks
    config, gpus, number = assignment.config, assignment.gpus, assignment.number
    note, before = folder / HUNG_FILE, folder / HUNG_BEFORE_FILE
    if (limit := timeout_from_note(note)) is not None:
        if before.exists():
            note.replace(folder / ERROR_FILE)
            longest = f"{format_duration(limit)}, {FACTOR:g} times the longest before"
            cause = f"it hung: an epoch took more than {longest}, twice, and was ended"
            reporter.end("failed", f"{cause} ({traceback_file(number)} says where)")
            return
        note.replace(before)  # once may be the machine's fault: a paused container, a virtual machine that moved
    point = read_resume_point(folder)
    known_epochs = 0 if point is None else point.epoch

    try:
        if settings.device == "cuda" and gpus < 1:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(memory_fraction(gpus, total))
        if _tasks is None or _tasks[0] != settings.shelf:
            _tasks = settings.shelf, get_shared(settings.shelf)
        task = _tasks[1][assignment.task]
        for other in _tasks[1]:
            if other is not task:
                other.forget_networks()
        with watch_epochs(note) as watch:

            def report(row: Row) -> None:
                watch.end(row["seconds"] + row["eval_seconds"])
                if row["epoch"] > known_epochs:
                    before.unlink(missing_ok=True)
                if mirror is not None:
                    push_with_retries(mirror)
                reporter.epoch(row)
                watch.begin()

            # The tables at an address may lack some of these epochs; report them now.
            for row in _earlier_rows(config, folder, mirror) if mirror is not None else ():
                report(row)
            result = run_trial(
                task,
                config,
                report,
                metric=settings.metric,
                device=settings.device,
                checkpoint=folder,
                maps=None if settings.maps is None else RaySourceMaps(settings.maps),
            )
    except torch.cuda.OutOfMemoryError as error:
        kind: OutcomeKind = "out of memory" if 0 < gpus < 1 else "failed"
        reporter.end(kind, f"the GPU's memory is too small ({error})")
        return
    except Exception as error:
        if (blocked := external_cause(error)) is not None:
            reporter.end("blocked", blocked)
            return
        cause = "".join(traceback.format_exception_only(error)).strip()
        where = traceback.extract_tb(error.__traceback__)[-1]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
        if mirror is not None:
            push_with_retries(mirror)
        place = f"{Path(where.filename).name}:{where.lineno}, traceback in {traceback_file(number)}"
        reporter.end("failed", f"{cause} ({place})")
        return
    finally:
        release_memory()
    if result.state == "diverged":
        reporter.end("diverged", result.error or "")


def _earlier_rows(config: TrialConfig, folder: Path, mirror: Mirror) -> list[Row]:
    """Rows of the run that is resumed, except the last, which the run reports itself.

    A run of another configuration is unknown to the study and is removed.
    """
    point = read_resume_point(folder)
    if point is None:
        return []
    if not config.same_as(point.config):
        mirror.clear()
        return []
    return point.rows[:-1]


def push_with_retries(mirror: Mirror) -> None:
    """Push the mirror, with retries.

    Raises:
        ExternalFailure: the push keeps failing.
    """
    for left in reversed(range(TRIES)):
        try:
            mirror.push()
            return
        except OSError as error:
            if not left:
                raise ExternalFailure(f"{mirror.address} cannot be written to ({error})") from error
            time.sleep(WAIT_S)


def release_memory() -> None:
    """Free a trial's memory: its process is reused and would otherwise grow with each trial."""
    gc.collect()  # networks, hooks and optimizers form reference cycles
    if gc.get_freeze_count() == 0:
        gc.freeze()  # scanning torch, Ray and the rest after each trial would take half a second
    # Each trial runs in its own thread, whose heap glibc does not shrink by itself.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
