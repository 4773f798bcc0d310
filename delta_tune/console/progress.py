"""What a study prints while it runs: a line per trial, with a live view in a terminal or dated lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

import rich.progress
import torch
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from delta_tune.config import visible
from delta_tune.console.format import format_count, format_duration, format_params, format_score
from delta_tune.console.live_view import RunProgress, render_progress
from delta_tune.console.streams import tolerant
from delta_tune.results.tables import StudyTables

LOG_WIDTH = 132
SECONDS_BETWEEN_LINES = 10.0
VIEWS_PER_SECOND = 2.0
COLUMNS = (("trial", 5), ("state", 9), ("method", 13), ("lr", 8), ("alpha", 7), ("epochs", 6), ("best", 7), ("time", 7))


class Progress:
    """Prints to the console: nothing at `verbose` 0, a line per trial at 1, a line per epoch too at 2.

    A terminal shows running trials live below the lines. A notebook gets plain lines; a log file gets lines that begin
    with date and time.
    """

    def __init__(self, *, verbose: int = 1, console: Console | None = None) -> None:
        self.verbose = verbose
        self.console = console or Console(file=tolerant(sys.stdout), highlight=False, soft_wrap=True)
        if not self.console.is_terminal:  # a log file has no 80 columns
            self.console.width = LOG_WIDTH
        self._dated = not self.console.is_terminal and not self.console.is_jupyter
        moves = self.console.is_terminal and not self.console.is_dumb_terminal
        # Elsewhere signs are replaced, and lines that were cut to fit are longer again
        self._is_live_terminal = self.verbose > 0 and moves and self.console.encoding.lower().startswith("utf")
        self._live: Live | None = None
        self._start = time.monotonic()
        self._has_header = False
        self.networks: tuple[str, ...] = ()
        """Labels of the networks that trials choose from; then each line names its own."""

    def say(self, text: str) -> None:
        """Print a message of the study, in one line."""
        if self.verbose:
            self._print(visible(text))

    def _print(self, line: str) -> None:
        now = f"{datetime.now():%Y-%m-%d %H:%M:%S}  " if self._dated else ""
        self.console.print(Text(now + line))

    @contextmanager
    def live(self, run_progress: RunProgress, tables: StudyTables, title: str) -> Iterator[None]:
        """Show running trials below the lines while the block runs, if this is a terminal."""
        if not self._is_live_terminal:
            yield
            return
        gpus = torch.cuda.device_count()

        def draw() -> RenderableType:
            return render_progress(run_progress, tables.metric, title, gpus)

        self._live = Live(
            get_renderable=draw, console=self.console, refresh_per_second=VIEWS_PER_SECOND, transient=True
        )
        try:
            with self._live:
                yield
        finally:
            self._live = None

    def close(self) -> None:
        """Restore the terminal before the process exits abruptly."""
        if self._live is not None:
            self._live.stop()

    @contextmanager
    def bar(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show progress of some work while the block runs; call the yielded function with each amount done.

        A bar in a terminal; elsewhere a line every ten seconds, none if the work is short.
        """
        if self._is_live_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
            )
            with rich.progress.Progress(*columns, console=self.console, transient=True) as bars:
                bar = bars.add_task(visible(text), total=total)
                yield lambda count: bars.advance(bar, count)
            return
        start = last_line = time.monotonic()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, last_line
            done += count
            now = time.monotonic()
            if 0 < done < total and now - last_line >= SECONDS_BETWEEN_LINES:
                last_line = now
                left = format_duration((now - start) * (total - done) / done)
                self.say(f"{text}: {100 * done // total} %, about {left} left.")

        yield advance

    def epoch(self, tables: StudyTables, number: int, epoch: int) -> None:
        """Print an epoch of a trial, at `verbose` 2."""
        if self.verbose >= 2:
            row = tables.epochs[number][epoch - 1]
            score = format_score(tables.metric, row[tables.metric])
            self.say(f"  trial {number} epoch {row['epoch']}: train loss {row['train_loss']:.4f}, {score}")

    def trial(self, tables: StudyTables, number: int, total: int | None, left: float | None = None) -> None:
        """Print a trial that ended, of `total` if that is known, and the estimated seconds `left`."""
        if not self.verbose:
            return
        if not self._has_header:
            self._has_header = True
            far = "" if self._live else f"   so far ({tables.metric})"
            self.say("  ".join(name.rjust(width) for name, width in self._columns) + far)
        trial = tables.trials[number]
        best = trial.get(f"best_{tables.metric}")
        values = (
            str(number),
            trial["state"],
            trial["config.regularizer"],
            *([tables.backbone(number) or ""] if self.networks else []),
            "" if trial["config.lr"] is None else f"{trial['config.lr']:.2g}",
            "" if trial["config.alpha"] is None else f"{trial['config.alpha']:.2g}",
            str(trial["epochs"]),
            "" if best is None else format_score(tables.metric, best),
            f"{trial['train_seconds']:.0f} s",
        )
        line = "  ".join(value.rjust(width) for value, (_, width) in zip(values, self._columns, strict=True))
        self.say(line if self._live else f"{line}   {self._so_far(tables, total, left)}")
        if trial.get("error"):
            self.say(f"         {trial['error']}")

    @property
    def _columns(self) -> tuple[tuple[str, int], ...]:
        if not self.networks:
            return COLUMNS
        widest = max(map(len, ("network", *self.networks)))
        return *COLUMNS[:3], ("network", widest), *COLUMNS[3:]

    def _so_far(self, tables: StudyTables, total: int | None, left: float | None) -> str:
        leader = "–"
        if tables.leader is not None:
            leader = (
                f"{format_score(tables.metric, tables.best_row(tables.leader)[tables.metric])} (trial {tables.leader})"
            )
        done = len(tables.searched.keys() - tables.open)
        rest = "" if left is None or done == total else f", about {format_duration(left)} left"
        trials = format_count(done, "trial") if total is None else f"{done}/{total} trials"
        return f"best {leader}, {trials}, {format_duration(time.monotonic() - self._start)}{rest}"

    def methods(self, tables: StudyTables) -> None:
        """Print the best trial of each method, and network if there are several, as a table."""
        if not self.verbose:
            return
        table = Table("method", "trials", "full", "best", "epoch", "configuration", title=f"Best by {tables.metric}")
        method_of = {number: tables.method(number) for number in tables.trials}
        methods, ranked = list(dict.fromkeys(method_of.values())), tables.ranked()
        leaders = {method: [number for number in ranked if method_of[number] == method] for method in methods}
        order = {number: rank for rank, number in enumerate(ranked)}
        for method in sorted(methods, key=lambda m: order[leaders[m][0]] if leaders[m] else len(order)):
            tried = sum(each == method for each in method_of.values())
            if leaders[method]:
                number = leaders[method][0]
                row = tables.best_row(number)
                cells = [
                    format_score(tables.metric, row[tables.metric]),
                    str(row["epoch"]),
                    format_params(tables.params(number)),
                ]
            else:
                cells = ["–", "–", "no completed trial: not ranked"]
            table.add_row(*(Text(visible(cell)) for cell in (method, str(tried), str(len(leaders[method])), *cells)))
        if not self._dated:
            self.console.print(table)
            return
        with self.console.capture() as captured:
            self.console.print(table)
        for line in captured.get().splitlines():
            self._print(line)
