"""Progress of a run of trials, counted event by event, and its live view in the terminal."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable

import psutil
import torch
from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from delta_tune.config import Metric, visible
from delta_tune.console.format import format_count, format_duration, format_score
from delta_tune.results.tables import StudyTables

BAR_WIDTH = 32


class RunProgress:
    """Progress of a run of trials.

    Tune's loop reports events, the drawing thread reads the counts; neither has to scan all trials.

    Args:
        tables: the run's tables.
        total: number of trials; None for as many as the time allows.
        clock: returns seconds.
    """

    def __init__(self, tables: StudyTables, total: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._tables, self.total, self._clock = tables, total, clock
        self._lock = threading.Lock()
        self._slots: Callable[[], int] = lambda: 1
        self._deadline: float | None = None
        self._began = clock()
        self._started: dict[int, float] = {}
        self._epochs: dict[int, int] = {}
        self._seconds = self._ended = 0.0
        self.done = self.bought = self.saved = 0
        self.best = "–"

    def begin(self, slots: Callable[[], int]) -> None:
        """Start counting, with the trials of earlier sessions included.

        Args:
            slots: returns how many trials may run now; called from any thread.
        """
        with self._lock:
            self._began, self._slots = self._clock(), slots
            self._started, self._epochs, self._seconds, self._ended = {}, {}, 0.0, 0.0
            self.done = self.bought = self.saved = 0
            for number, row in self._tables.searched.items():
                self.bought += row["epochs"]
                if number not in self._tables.open and row["state"] != "stopped":
                    self._count(number)
            self._update_best()

    def started(self, number: int) -> None:
        """A trial started, or started again after its worker was lost."""
        with self._lock:
            self._started.setdefault(number, self._clock())
            self._epochs.setdefault(number, self._tables.trials[number]["epochs"])

    def reported(self, number: int, epoch: int) -> None:
        """A trial finished an epoch."""
        with self._lock:
            self.bought += epoch - self._epochs.get(number, 0)
            self._epochs[number] = epoch

    def requeued(self, number: int) -> None:
        """A trial stopped and will run again."""
        with self._lock:
            self._started.pop(number, None)
            self._epochs.pop(number, None)

    def ended(self, number: int) -> None:
        """A trial ended; the tables already have its state."""
        with self._lock:
            since = self._started.pop(number, None)
            self._epochs.pop(number, None)
            if since is not None:
                self._seconds += self._clock() - since
                self._ended += 1
            self._count(number)
            self._update_best()

    def ends_in(self, seconds: float) -> None:
        """All trials will be stopped after `seconds`, done or not."""
        self._deadline = self._clock() + seconds

    @property
    def running(self) -> dict[int, int]:
        """Running trials and how many epochs each has finished."""
        with self._lock:
            return {number: self._epochs.get(number, 0) for number in self._started}

    @property
    def elapsed(self) -> float:
        """Seconds since the run began in this session."""
        return self._clock() - self._began

    @property
    def left(self) -> float | None:
        """Estimated seconds until the end, from the trials that ended in this session; None before the first."""
        with self._lock:
            now = self._clock()
            if self.total is None:
                return None if self._deadline is None else max(0.0, self._deadline - now)
            if not self._ended:
                return None
            mean = self._seconds / self._ended
            rests = [max(0.0, mean - (now - since)) for since in self._started.values()]
            waiting = max(0, self.total - self.done - len(rests))
            left = max([(waiting * mean + sum(rests)) / max(1, self._slots()), *rests])
            return left if self._deadline is None else max(0.0, min(left, self._deadline - now))

    def max_epochs(self, number: int) -> int:
        """Epochs of a full trial."""
        epochs: int = self._tables.trials[number]["config.max_epochs"]
        return epochs

    def _count(self, number: int) -> None:
        row = self._tables.trials[number]
        self.done += 1
        if row["state"] == "pruned":
            self.saved += self.max_epochs(number) - row["epochs"]

    def _update_best(self) -> None:
        if (leader := self._tables.leader) is not None:
            score = self._tables.best_row(leader)[self._tables.metric]
            self.best = f"{format_score(self._tables.metric, score)} (trial {leader}, {self._tables.method(leader)})"


def render_progress(progress: RunProgress, metric: Metric, title: str, gpus: int) -> RenderableType:
    """The live view: a progress bar and five lines, each cut to the terminal's width."""
    running = progress.running
    done, now = f"{format_count(progress.done, 'trial')} done", f"{len(running)} running"
    size, filled = progress.elapsed + (progress.left or 0.0), progress.elapsed
    if progress.total is not None:
        to_come = max(0, progress.total - progress.done - len(running))
        done, now = f"{progress.done} of {progress.total} trials done", f"{now}, {to_come} to come"
        size, filled = progress.total, progress.done
    left = "–" if progress.left is None else f"about {format_duration(progress.left)}"
    use = cpu_use()
    if gpus and (busy := gpu_utilization(gpus)) is not None:
        use += f", GPU {busy:.0f} %"
    trials = [f"{n} (epoch {epochs} of {progress.max_epochs(n)})" for n, epochs in sorted(running.items())]
    lines = {
        title: f"{done}, {now}",
        "best": f"{metric} {progress.best}",
        "epochs": f"{progress.bought} bought, {progress.saved} saved by stopping trials early",
        "time": f"{format_duration(progress.elapsed)} gone, {left} left; {use}",
        "trials": ", ".join(trials) or "–",
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_row("", ProgressBar(total=size, completed=filled, width=BAR_WIDTH))
    for name, text in lines.items():
        grid.add_row(Text(visible(name)), Text(visible(text), no_wrap=True, overflow="ellipsis"))
    return grid


def cpu_use() -> str:
    """Utilization of this machine's CPUs since the last call, in words; a dash where the system does not tell it."""
    try:
        return f"CPU {psutil.cpu_percent():.0f} %"
    except (psutil.Error, OSError, RuntimeError, NotImplementedError):  # a /proc that is hidden or of another system
        return "CPU –"


def gpu_utilization(gpus: int) -> float | None:
    """Mean utilization of this machine's GPUs in percent; None if it cannot be read.

    That is so without the package nvidia-ml-py, and where NVML refuses: a part of a GPU (MIG), an old driver, a lost
    GPU. Its errors are of classes that only this package knows.
    """
    try:
        return statistics.mean(torch.cuda.utilization(index) for index in range(gpus))
    except Exception:  # a view must not end a study
        return None
