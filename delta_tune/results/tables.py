"""The two tables of a study, `trials.parquet` and `epochs.parquet`, from which a resume is rebuilt."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from delta_tune.background import TimeShare
from delta_tune.config import BASELINE, FIRST_MODEL, METRICS, Metric, TrialConfig, UserError
from delta_tune.filesystem.untrusted import Scalar, Text, check
from delta_tune.results.columns import EPOCH_COLUMNS, OPEN, REPORTED, SCORES, State, check_epochs
from delta_tune.results.journal import Journal
from delta_tune.results.layout import JOURNAL_FILE, TRIALS_FILE, trial_name
from delta_tune.results.study_schema import TrialNumber
from delta_tune.results.table_files import (
    BACKBONE,
    check_tables,
    read_table_files,
    stamps,
    trials_table,
    write_table_files,
)

WRITING_SHARE = 0.05
"""Share of wall-clock time for writing the tables, which takes longer the more trials there are."""


class StudyTables:
    """`trials.parquet` and `epochs.parquet` of a study folder, in memory and on disk.

    Each event is appended to the journal before it takes effect, so a killed process loses none. Now and then, and at
    the end, both tables are written and the journal is removed. Files are replaced atomically and may be read while the
    study runs. A row shows a finished trial only after everything that a resume needs of it is on disk; epochs of an
    unfinished trial may be trained again, and then take the place of their rows.
    """

    def __init__(self, folder: Path, metric: Metric) -> None:
        self.folder, self.metric = folder, metric
        self.trials: dict[int, dict[str, Any]] = {}
        self.epochs: dict[int, list[dict[str, Any]]] = {}
        self.open: set[int] = set()
        """Numbers of waiting and running trials."""
        self.leader: int | None = None
        """The first of `ranked`, updated whenever a trial ends."""
        self._journal = Journal(folder / JOURNAL_FILE)
        self._lag = False
        self._written = False
        self._share = TimeShare(WRITING_SHARE)

    @property
    def searched(self) -> dict[int, dict[str, Any]]:
        """The trials that the search proposed: all but the first model."""
        return {n: row for n, row in self.trials.items() if row["config.regularizer"] != FIRST_MODEL}

    @classmethod
    def read(cls, folder: Path, metric: Metric) -> StudyTables:
        """Read the tables of a finished, interrupted or running session, including its journal.

        Does not change anything on disk.

        Raises:
            UserError: a table is missing or damaged.
        """
        while True:
            before = stamps(folder)
            try:
                tables = cls._read(folder, metric)
            except UserError:
                if before == stamps(folder):
                    raise
            else:
                if before == stamps(folder):
                    return tables

    @classmethod
    def _read(cls, folder: Path, metric: Metric) -> StudyTables:
        """Both tables and the journal; consistent unless one was rewritten meanwhile."""
        tables = cls(folder, metric)
        try:
            tables.trials, tables.epochs, events = read_table_files(folder)
            # A session that was killed between the two tables left epochs that the journal tells again: that changes
            # nothing.
            for event in tables._journal.resume(events):
                check(_Event, event)
                check_epochs([event["epoch"]] if event["epoch"] else [])
                tables._apply(**event)
            check_tables(tables.trials, tables.epochs)
            for number, rows in tables.epochs.items():
                tables.trials[number]["epochs"] = len(rows)
                if rows:
                    tables._sum_up(number)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} cannot be resumed: its tables do not read ({error}); start a new study."
            ) from error
        tables.open = {number for number, row in tables.trials.items() if row["state"] in OPEN}
        tables.leader = next(iter(tables.ranked()), None)
        return tables

    def add(self, number: int, config: TrialConfig, params: Mapping[str, Any], helpers: Mapping[str, Any]) -> None:
        """Add a proposed trial."""
        row = {
            "trial_id": trial_name(number),
            "number": number,
            "state": "waiting",
            **{f"config.{name}": value for name, value in config.record().items()},
            **{f"param.{name}": value for name, value in helpers.items()},
            "suggested": json.dumps(dict(params)),
            "epochs": 0,
            "out_of_memory": 0,
            "train_seconds": 0.0,
            "eval_seconds": 0.0,
        }
        self._tell(number, row)

    def start(
        self, number: int, node: str | None, began: float, start_seconds: float | None, gpus: float = 0.0
    ) -> None:
        """A worker started a trial.

        Args:
            number: the trial's number.
            node: Ray's id of the node.
            began: seconds since 1970.
            start_seconds: seconds since it was proposed.
            gpus: GPUs of the trial.
        """
        told = {"node": node, "began": began, "start_seconds": start_seconds, "gpus": gpus}
        self._tell(number, {"state": "running", **told})

    def move(self, number: int, node: str) -> None:
        """A running trial continues on another node after its worker or node was lost."""
        self._tell(number, {"node": node})

    def report(self, number: int, row: Mapping[str, Any], ended: float | None = None) -> bool:
        """Add an epoch of a trial, and return whether the tables lacked it.

        An epoch that is trained again, because a worker died, takes the place of the one before and keeps its time of
        report: the order in which epochs were reported is the one in which rungs decided. One that is only told again
        changes nothing.
        """
        told = {"trial_id": trial_name(number), "epoch": row["epoch"], **{k: row[k] for k in EPOCH_COLUMNS}}
        reported = time.time()
        if row["epoch"] <= len(self.epochs[number]):
            before = self.epochs[number][row["epoch"] - 1]
            if all(before.get(name) == value for name, value in told.items()):
                return False
            reported = before.get(REPORTED) or reported
        self._tell(number, {"ended": ended}, told | {REPORTED: reported})
        return True

    def note_images(self, number: int, fitted_to: int | None, scored_on: int | None) -> None:
        """Note of how many images a trial is, where it is not of all of train, or not of all of val."""
        self._tell(number, {"fitted_to": fitted_to, "scored_on": scored_on})

    def run_out_of_memory(self, number: int) -> None:
        """Mark a trial to run again with more of a GPU."""
        self._tell(number, {"state": "waiting", "out_of_memory": (self.trials[number].get("out_of_memory") or 0) + 1})

    def run_again(self, number: int) -> None:
        """Mark a trial to run again as it is: its GPU was lost."""
        self._tell(number, {"state": "waiting"})

    def finish(self, number: int, state: State, error: str | None = None) -> None:
        """Set how a trial ended."""
        self._tell(number, {"state": state, "error": error})
        self._update_leader(number)

    def close_without_writing(self, number: int, state: State) -> None:
        """Set how a trial ended whose session was killed before writing it; written with the next write."""
        self._apply(number, {"state": state})
        self._update_leader(number)

    def _tell(self, number: int, trial: Mapping[str, Any], epoch: dict[str, Any] | None = None) -> None:
        """Record an event: changes to a trial's row, and possibly an epoch."""
        if not self._written:  # tables that were read, whose journal may end in an incomplete line
            self.write()
        self._journal.append({"number": number, "trial": trial, "epoch": epoch})
        self._lag = True
        self._apply(number, trial, epoch)
        self.catch_up()

    def _apply(self, number: int, trial: Mapping[str, Any], epoch: dict[str, Any] | None = None) -> None:
        """Apply an event in memory."""
        row, rows = self.trials.setdefault(number, {}), self.epochs.setdefault(number, [])
        row |= trial
        (self.open.add if row.get("state") in OPEN else self.open.discard)(number)
        if epoch is not None:
            rows[epoch["epoch"] - 1 : epoch["epoch"]] = [epoch]
            self._sum_up(number)

    def _update_leader(self, number: int) -> None:
        """Update the leader after a trial ended."""
        if self.trials[number]["state"] == "completed":
            self.leader = min(number, number if self.leader is None else self.leader, key=self._rank)

    def _sum_up(self, number: int) -> None:
        """Update a trial's row from its epochs."""
        rows, best = self.epochs[number], self.best_row(number)
        self.trials[number] |= {
            "epochs": len(rows),
            **{name: rows[-1].get(name) for name in SCORES},
            **{f"best_{name}": best.get(name) for name in SCORES},
            "best_epoch": best["epoch"],
            "train_seconds": sum(r["seconds"] for r in rows),
            "eval_seconds": sum(r["eval_seconds"] for r in rows),
        }

    def best_row(self, number: int) -> dict[str, Any]:
        """A trial's first epoch with its best metric."""
        sign = 1 if METRICS[self.metric] == "max" else -1
        return max(self.epochs[number], key=lambda row: sign * row[self.metric])

    def ranked(self, regularizer: str | None = None) -> list[int]:
        """Numbers of completed trials (of one method), best first.

        Ordered by the best epoch's metric, then by its validation loss, which a small split resolves more finely.
        Trials that were scored on a part of the validation split come last: their scores do not compare.
        """
        full = [
            number
            for number, trial in self.trials.items()
            if trial["state"] == "completed" and regularizer in (None, trial["config.regularizer"])
        ]
        return sorted(full, key=self._rank)

    def rank_of(self, scores: Mapping[str, Any]) -> tuple[float, float]:
        """A key by which scores are ordered, best first."""
        sign = 1 if METRICS[self.metric] == "max" else -1
        return -sign * scores[self.metric], scores["val_loss"]

    def is_sampled(self, number: int | None) -> bool:
        """Whether a trial was scored on a part of the validation split; not if there is no such trial."""
        return number in self.trials and self.trials[number].get("scored_on") is not None

    def is_partial(self, number: int) -> bool:
        """Whether a trial was fitted to, or scored on, a part of its split."""
        return self.is_sampled(number) or self.trials[number].get("fitted_to") is not None

    def _rank(self, number: int) -> tuple[bool, float, float, int]:
        return self.is_sampled(number), *self.rank_of(self.best_row(number)), number

    def config(self, number: int) -> TrialConfig:
        """The configuration of a trial.

        Raises:
            UserError: it is none; a later version may have written it.
        """
        row = self.trials[number]
        record = {name.removeprefix("config."): v for name, v in row.items() if name.startswith("config.")}
        try:
            return TrialConfig.from_record(record)
        except UserError as error:
            raise UserError(f"{self.folder / TRIALS_FILE}, trial {number}: {error}") from None

    def backbone(self, number: int) -> str | None:
        """The label of a trial's network among the study's; None in a study of one."""
        return self.trials[number].get(BACKBONE)

    def method(self, number: int) -> str:
        """A trial's method in words, in a study of several networks with that which it has."""
        method, label = str(self.trials[number]["config.regularizer"]), self.backbone(number)
        return method if label is None else f"{method} on {label}"

    def is_baseline(self, number: int) -> bool:
        """Whether a trial is plain L2, without the terms of other methods; earlier versions' had none."""
        row = self.trials[number]
        terms = row.get("config.co_tuning") or row.get("config.contrast")
        return row["config.regularizer"] == BASELINE and not terms

    def params(self, number: int) -> dict[str, Any]:
        """A trial's coordinates in the space."""
        found: dict[str, Any] = json.loads(self.trials[number]["suggested"])
        return found

    def table(self) -> pa.Table:
        """`trials.parquet` as a table."""
        return trials_table(self.trials)

    def catch_up(self) -> None:
        """Write the tables if the journal is ahead of them and the time share for writing allows it."""
        if self._lag and self._written and self._share.free:
            self.write()

    def write(self) -> None:
        """Write both tables atomically; the journal is then empty."""
        with self._share.taken():
            write_table_files(self.folder, self.trials, self.epochs, self._journal.count)
            self._journal.clear()
            self._lag, self._written = False, True


class _Event(BaseModel, extra="forbid"):
    """An event of the journal."""

    number: TrialNumber
    trial: dict[Text, Scalar]
    epoch: dict[Text, Scalar] | None
