"""The two tables of a study, `trials.parquet` and `epochs.parquet`, from which a resume is rebuilt."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq

from delta_tune.background import TimeShare
from delta_tune.config import LOSS_PARTS, METRICS, Metric, TrialConfig, UserError, as_utf8, fields_of
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.results.journal import Journal
from delta_tune.results.layout import EPOCHS_FILE, JOURNAL_FILE, TRIALS_FILE, trial_name

State = Literal["waiting", "running", "completed", "pruned", "stopped", "diverged", "failed"]
FINISHED: tuple[State, ...] = ("completed", "pruned", "diverged", "failed")
OPEN: tuple[State, ...] = ("waiting", "running")
SCORES = {
    "val_loss": "Mean cross entropy on the validation split",
    "val_accuracy": "Accuracy on the validation split",
    "val_balanced_accuracy": "Mean recall over the classes of the validation split",
    "val_macro_f1": "Mean F1 over the classes of the validation split",
}
"""Validation metrics: name → meaning."""
EPOCH_COLUMNS = {
    "train_loss": "Mean of `cross_entropy` + `alpha` · (`behavior` or `weight_l2_sp`) + `beta` · `head_l2`",
    **LOSS_PARTS,
    **SCORES,
    "lr": "Learning rate of the backbone at the last step",
    "seconds": "Seconds of training, waiting for data and the source's forward passes included",
    "eval_seconds": "Seconds of scoring the validation split and of writing the checkpoint",
}
"""What a trial reports of an epoch: name → meaning."""
REPORTED = "reported"
"""Column of `epochs.parquet`: when the epoch was reported, in seconds since 1970. Rungs decide in this order."""
EVENTS = b"delta_tune.events"
"""Metadata key of a table: how many of the journal's events it includes."""
WRITING_SHARE = 0.05
"""Share of wall-clock time for writing the tables, which takes longer the more trials there are."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of one of the tables."""

    name: str
    type: pa.DataType | None
    """None for a helper of the search space: use the type of its values."""
    meaning: str


class StudyTables:
    """`trials.parquet` and `epochs.parquet` of a study folder, in memory and on disk.

    Each event is appended to the journal before it takes effect, so a killed process loses none. Now and then, and at
    the end, both tables are written and the journal is removed. Files are replaced atomically and may be read while the
    study runs. A row shows a finished trial or epoch only after everything that a resume needs of it is on disk.
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

    @classmethod
    def read(cls, folder: Path, metric: Metric) -> StudyTables:
        """Read the tables of a finished, interrupted or running session, including its journal.

        Does not change anything on disk.

        Raises:
            UserError: a table is missing or damaged.
        """
        while True:
            stamps = _stamps(folder)
            try:
                tables = cls._read(folder, metric)
            except UserError:
                if stamps == _stamps(folder):
                    raise
            else:
                if stamps == _stamps(folder):
                    return tables

    @classmethod
    def _read(cls, folder: Path, metric: Metric) -> StudyTables:
        """Both tables and the journal; consistent unless one was rewritten meanwhile."""
        tables = cls(folder, metric)
        try:
            for row in _read_table(folder / EPOCHS_FILE).to_pylist():
                tables.epochs.setdefault(int(row["trial_id"]), []).append(row)
            found = _read_table(folder / TRIALS_FILE)
            for row in found.to_pylist():
                tables.trials[row["number"]] = row
                tables.epochs.setdefault(row["number"], [])
            # A session that was killed between the two tables left epochs that the journal tells again: that changes
            # nothing.
            for event in tables._journal.resume(int((found.schema.metadata or {}).get(EVENTS, 0))):
                tables._apply(**event)
            if unknown := tables.epochs.keys() - tables.trials.keys():
                raise KeyError(f"epochs of unknown trials {sorted(unknown)}")
            for number, row in tables.trials.items():
                if tables.epochs[number] and row["epochs"] != len(tables.epochs[number]):
                    tables._sum_up(number)  # killed between the one table and the other
        except (OSError, ValueError, KeyError) as error:
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

    def report(self, number: int, row: Mapping[str, Any], ended: float | None = None) -> None:
        """Add an epoch of a trial.

        A repeated epoch (after a worker died) replaces that epoch and all later ones.
        """
        told = {"trial_id": trial_name(number), "epoch": row["epoch"], **{k: row[k] for k in EPOCH_COLUMNS}}
        self._tell(number, {"ended": ended}, told | {REPORTED: time.time()})

    def run_out_of_memory(self, number: int) -> None:
        """Mark a trial to run again with more of a GPU."""
        self._tell(number, {"state": "waiting", "out_of_memory": self.trials[number]["out_of_memory"] + 1})

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
        (self.open.add if row["state"] in OPEN else self.open.discard)(number)
        if epoch is not None:
            del rows[epoch["epoch"] - 1 :]
            rows.append(epoch)
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
            **{name: rows[-1][name] for name in SCORES},
            **{f"best_{name}": best[name] for name in SCORES},
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
        """
        full = [
            number
            for number, trial in self.trials.items()
            if trial["state"] == "completed" and regularizer in (None, trial["config.regularizer"])
        ]
        return sorted(full, key=self._rank)

    def _rank(self, number: int) -> tuple[float, float, int]:
        row, sign = self.best_row(number), 1 if METRICS[self.metric] == "max" else -1
        return -sign * row[self.metric], row["val_loss"], number

    def config(self, number: int) -> TrialConfig:
        """The configuration of a trial."""
        row = self.trials[number]
        return TrialConfig.from_record(
            {name.removeprefix("config."): v for name, v in row.items() if name.startswith("config.")}
        )

    def params(self, number: int) -> dict[str, Any]:
        """A trial's coordinates in the space."""
        found: dict[str, Any] = json.loads(self.trials[number]["suggested"])
        return found

    def table(self) -> pa.Table:
        """`trials.parquet` as a table."""
        rows = [self.trials[number] for number in sorted(self.trials)]
        helpers = {name for row in rows for name in row if name.startswith("param.")}
        columns: dict[str, pa.Array] = {}
        for column in trial_columns(sorted(helpers)):
            values = [row.get(column.name) for row in rows]
            found = {type(value) for value in values} - {type(None)}
            if column.type is None and len(found) > 1 and found != {int, float}:
                values = [None if v is None else str(v) for v in values]  # a helper with values of several types
            values = [as_utf8(v) if isinstance(v, str) else v for v in values]  # errors name files
            columns[column.name] = pa.array(values, type=column.type)
        return pa.table(columns)

    def catch_up(self) -> None:
        """Write the tables if the journal is ahead of them and the time share for writing allows it."""
        if self._lag and self._written and self._share.free:
            self.write()

    def write(self) -> None:
        """Write both tables atomically; the journal is then empty."""
        with self._share.taken():
            self._write()

    def _write(self) -> None:
        rows = [row for number in sorted(self.epochs) for row in self.epochs[number]]
        columns = {c.name: pa.array([row.get(c.name) for row in rows], type=c.type) for c in epoch_columns()}
        epochs = pa.table(columns)
        # Epochs first: a trial's row never claims an epoch that the other table lacks.
        for name, table in ((EPOCHS_FILE, epochs), (TRIALS_FILE, self.table())):
            with atomic_write(self.folder / name) as partial:
                pq.write_table(table.replace_schema_metadata({EVENTS: str(self._journal.count)}), partial)
        self._journal.clear()
        self._lag, self._written = False, True


def _stamps(folder: Path) -> list[int]:
    return [file.stat().st_mtime_ns for file in (folder / TRIALS_FILE, folder / EPOCHS_FILE) if file.exists()]


def _read_table(file: Path) -> pa.Table:
    # Given a path, pyarrow reads the size before opening the file, which may be replaced in between.
    with pa.OSFile(str(file)) as opened:
        return pq.read_table(opened)


def epoch_columns() -> list[Column]:
    """The columns of `epochs.parquet`."""
    return [
        Column("trial_id", pa.string(), "The trial"),
        Column("epoch", pa.int32(), "Number of the epoch, from 1"),
        *(Column(name, pa.float64(), meaning) for name, meaning in EPOCH_COLUMNS.items()),
        Column(REPORTED, pa.float64(), "When the study received the row, in seconds since 1970"),
    ]


def trial_columns(helpers: Iterable[str] = ()) -> list[Column]:
    """The columns of `trials.parquet`; `helpers` are the columns of the search space's helpers."""
    return [
        Column("trial_id", pa.string(), "The number with leading zeros, as in the names of folders"),
        Column("number", pa.int32(), "Number of the trial, from 0, in the order of proposal"),
        Column("state", pa.string(), f"One of {', '.join(get_args(State))}"),
        Column("epochs", pa.int32(), "Number of finished epochs"),
        *(Column(name, pa.float64(), f"{meaning}, after the last epoch") for name, meaning in SCORES.items()),
        *(Column(f"best_{name}", pa.float64(), f"{meaning}, in the best epoch") for name, meaning in SCORES.items()),
        Column("best_epoch", pa.int32(), "The first epoch with the best value of the study's metric"),
        *(
            Column(f"config.{field.name}", _arrow_type(field.hint), field.help)
            for field in fields_of(TrialConfig).values()
        ),
        *(Column(name, None, "A helper of the search space") for name in helpers),
        Column("suggested", pa.string(), "The suggested values by name, as JSON"),
        Column("train_seconds", pa.float64(), "Seconds of training, all epochs"),
        Column("eval_seconds", pa.float64(), "Seconds of scoring, all epochs"),
        Column("start_seconds", pa.float64(), "Seconds from the proposal to the start on a worker"),
        Column("began", pa.float64(), "When a worker began the trial, in seconds since 1970"),
        Column("ended", pa.float64(), "When the last epoch ended, in seconds since 1970"),
        Column("gpus", pa.float64(), "GPUs of the trial; below 1 a part of one"),
        Column("out_of_memory", pa.int32(), "How often the trial ran out of GPU memory and was run again with more"),
        Column("node", pa.string(), "Ray's id of the node"),
        Column("error", pa.string(), "Why the trial failed or diverged"),
    ]


def _arrow_type(hint: Any) -> pa.DataType:
    if get_origin(hint) is Literal:
        return pa.string()
    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    return next(kinds[kind] for kind in (hint, *get_args(hint)) if kind in kinds)
