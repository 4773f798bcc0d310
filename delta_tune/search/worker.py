"""Run one trial in a Ray worker, from its Tune configuration to its reports."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import time
import traceback
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from delta_tune.background import TimeShare
from delta_tune.cluster.assigned_gpu import gpus_of_process, use_assigned_gpu
from delta_tune.cluster.failures import ExternalFailure, external_cause, out_of_memory_text
from delta_tune.cluster.gpu_sharing import limit_memory
from delta_tune.cluster.nodes import cpus_to_spare
from delta_tune.cluster.shared_objects import get_shared
from delta_tune.cluster.source_map_store import RaySourceMaps
from delta_tune.cluster.trial_device import lasting_fault
from delta_tune.config import Metric, UserError
from delta_tune.console.format import format_duration
from delta_tune.data.packed_images import pack_here
from delta_tune.data.stored_images import set_decoding_threads
from delta_tune.filesystem.uris import is_uri
from delta_tune.models.device_errors import find_device_fault
from delta_tune.results.layout import (
    BROKEN_BEFORE_FILE,
    ERROR_FILE,
    HUNG_BEFORE_FILE,
    HUNG_FILE,
    traceback_file,
    trial_name,
)
from delta_tune.results.mirror import Mirror, local_copy
from delta_tune.search.messages import NOTICE, OutcomeKind, TrialAssignment, TrialOutcome
from delta_tune.search.process_faults import (
    ProcessMustEndError,
    end_process,
    judge_note,
    leave_note,
)
from delta_tune.search.watchdog import FACTOR, timeout_from_note, watch_epochs
from delta_tune.training.checkpoint import read_resume_point
from delta_tune.training.task import Task
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
    attention: str | None = None
    """Name of each task's attention that is measured while the study runs; None if tasks have it from the start."""
    rungs: tuple[int, ...] = ()
    """Epochs after which a trial may be stopped."""
    cpus: float = 1.0
    """CPUs of a trial."""


REPORT_S = 1.0
"""Seconds from a report to the next, unless an epoch comes with which the trial may end;"""
REPORTING_SHARE = 0.05
"""or more, so that a trial spends at most this share of its time on waiting for a busy driver."""


TRIES, WAIT_S = 5, 10.0
"""Attempts to push a checkpoint to an address, and seconds between them."""

_tasks: tuple[str, Any] | None = None
"""Tasks of the study that this process last worked for; processes are reused between trials."""


def run_tune_trial(tune_config: dict[str, Any], settings: WorkerSettings) -> None:
    """Run one trial and report its epochs.

    Exceptions inside the trial are reported as its outcome, not raised: Tune would restart the trial, which only makes
    sense if a worker or node died.
    """
    # By default Tune waits 2 s for a trial's thread to end, then gives up on the actor and forgets to tell the searcher
    # (ray/tune/execution/tune_controller.py, _on_trial_reset), so that a study on a busy machine would never end.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "600"
    assignment = TrialAssignment.from_config(tune_config)
    torch.set_num_threads(settings.threads)
    if settings.device != "cpu":
        use_assigned_gpu()
    decisive = {*settings.rungs, assignment.config.max_epochs}
    reporter = _Reporter(settings.metric, decisive)
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
    except ProcessMustEndError:
        end_process()
    except RuntimeError as error:  # of giving memory back after the trial's end
        if find_device_fault(error) is None:
            raise
        end_process()
    except (OSError, UserError) as error:
        if not is_uri(place):
            raise
        reporter.end("blocked", f"{place} cannot be read ({error})")


class _Reporter:
    """Reports one trial to Tune: its epochs, short ones together, and its outcome if it ends badly.

    Args:
        metric: the one that Tune asks for.
        decisive: epochs that are reported at once.
    """

    def __init__(self, metric: Metric, decisive: Collection[int]) -> None:
        self._decisive, self._waiting = decisive, list[Row]()
        self._share, self._sent_at = TimeShare(REPORTING_SHARE), -REPORT_S
        context = ray.get_runtime_context()
        self._origin = {"node": context.get_node_id(), "gpu": ", ".join(gpus_of_process()), "began": time.time()}
        self._notice: dict[str, str] = {}
        self._last: Row = {"epoch": 0, metric: float("nan")}

    def epoch(self, row: Row) -> None:
        """Report an epoch, now or with later ones."""
        self._last = row
        self._waiting.append({**row, "ended": time.time()})
        rested = time.monotonic() - self._sent_at >= REPORT_S and self._share.free
        if rested or row["epoch"] in self._decisive:
            with self._share.taken():
                self._send(row)
            self._sent_at = time.monotonic()

    def say(self, sentence: str) -> None:
        """Tell the user a sentence, with the next report."""
        self._notice = {NOTICE: sentence}

    def end(self, kind: OutcomeKind, error: str) -> None:
        """Report that the trial ended badly, after the last epoch that was reported."""
        self._send(TrialOutcome(kind=kind, error=error).to_result(self._last))

    def _send(self, content: Row) -> None:
        (epochs, self._waiting), (notice, self._notice) = (self._waiting, []), (self._notice, {})
        tune.report({**content, **self._origin, **notice, "epochs": epochs})


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
    if (verdict := judge_note(folder, number, device=settings.device, gpus=gpus)) is not None:
        if mirror is not None:
            push_with_retries(mirror)
        if verdict.outcome is not None:
            reporter.end(verdict.outcome, verdict.sentence)
            return
        reporter.say(verdict.sentence)
    point = read_resume_point(folder)
    if mirror is not None and point is not None and not config.same_as(point.config):
        mirror.clear()  # the study knows nothing of that run any more
        point = None
    known_epochs = 0 if point is None else point.epoch

    broken = False
    try:
        if settings.device != "cpu":
            limit_memory(gpus)
        if _tasks is None or _tasks[0] != settings.shelf:
            tasks = get_shared(settings.shelf)
            _pack_images_here(tasks)
            _tasks = settings.shelf, tasks
        task = _tasks[1][assignment.task]
        for other in _tasks[1]:
            if other is not task:
                other.forget_networks()
        if settings.attention is not None and task.measurements.missing_attention([config]):
            task.measurements.keep_attention(get_shared(settings.attention)[assignment.task])
        set_decoding_threads(max(settings.threads, cpus_to_spare(settings.cpus, gpus)))
        with watch_epochs(note) as watch:

            def report(row: Row) -> None:
                if row["epoch"] <= known_epochs:
                    watch.end(row["seconds"] + row["eval_seconds"])
                reporter.epoch(row)

            def saved(epoch: int) -> None:
                if epoch > known_epochs:
                    before.unlink(missing_ok=True)
                    (folder / BROKEN_BEFORE_FILE).unlink(missing_ok=True)
                if mirror is not None:
                    push_with_retries(mirror)

            result = run_trial(
                task,
                config,
                report,
                metric=settings.metric,
                device=settings.device,
                checkpoint=folder,
                maps=None if settings.maps is None else RaySourceMaps(settings.maps),
                decisive=settings.rungs,
                saved=saved,
                watch=watch.epoch,
            )
    except Exception as error:
        broken = _end_badly(error, assignment, folder, mirror, reporter)
        if broken:
            raise ProcessMustEndError from error
        return
    finally:
        if not broken:  # it would call into the broken context
            release_memory()
    if result.state == "diverged":
        reporter.end("diverged", result.error or "")


def _pack_images_here(tasks: Iterable[Task]) -> None:
    """Write what trials will read from this node's disk, before an epoch's time is measured.

    Raises:
        ExternalFailure: the disk is full, or the data cannot be seen from here: no trial can run on this node.
    """
    try:
        for task in tasks:
            for split in (task.dataset.train, task.dataset.val):
                pack_here(split.images)
    except UserError as error:
        raise ExternalFailure(str(error).rstrip(".")) from error


def _end_badly(
    error: Exception, assignment: TrialAssignment, folder: Path, mirror: Mirror | None, reporter: _Reporter
) -> bool:
    """Report the end of a trial that raised; return whether the process must end: the next one reports it then."""
    number = assignment.number
    if (blocked := external_cause(error)) is not None:
        reporter.end("blocked", blocked)
        return False
    fault = find_device_fault(error)
    if fault is not None and fault.ends_process:
        leave_note(folder, fault)
        if mirror is not None:
            push_with_retries(mirror)
        return True
    if fault is not None:
        kind: OutcomeKind = "out of memory" if 0 < assignment.gpus < 1 else "failed"
        reporter.end(kind, out_of_memory_text(fault.text))
        return False
    cause = "".join(traceback.format_exception_only(error)).strip()
    where = traceback.extract_tb(error.__traceback__)[-1]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
    if mirror is not None:
        push_with_retries(mirror)
    place = f"{Path(where.filename).name}:{where.lineno}, traceback in {traceback_file(number)}"
    reporter.end("failed", f"{cause} ({place})")
    return False


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
