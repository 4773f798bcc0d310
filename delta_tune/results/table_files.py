"""The files of a study's tables, `trials.parquet` and `epochs.parquet`: read and checked, written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from delta_tune.config import as_utf8
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.filesystem.rows import read_table_file
from delta_tune.filesystem.untrusted import Scalar, Text, parse_json
from delta_tune.results.columns import check_epochs, check_trials, epoch_columns, trial_columns
from delta_tune.results.layout import EPOCHS_FILE, TRIALS_FILE

Trials = dict[int, dict[str, Any]]
"""Number of a trial → its row."""
Epochs = dict[int, list[dict[str, Any]]]
"""Number of a trial → the rows of its epochs."""
BACKBONE = "config.backbone"
"""The column that only studies of several networks have."""
EVENTS = b"delta_tune.events"
"""Metadata key of a table: how many of the journal's events it includes."""


def read_table_files(folder: Path) -> tuple[Trials, Epochs, int]:
    """The rows of both tables, each checked by itself, and how many of the journal's events they include.

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """
    epochs: Epochs = {}
    rows, _ = read_table_file(folder / EPOCHS_FILE)
    check_epochs(rows)
    for row in rows:
        epochs.setdefault(int(row["trial_id"]), []).append(row)
    rows, told = read_table_file(folder / TRIALS_FILE)
    check_trials(rows)
    trials = {row["number"]: row for row in rows}
    for number in trials:
        epochs.setdefault(number, [])
    return trials, epochs, int(told.get(EVENTS, 0))


def stamps(folder: Path) -> list[int]:
    """Other ones when a table has been replaced."""
    return [file.stat().st_mtime_ns for file in (folder / TRIALS_FILE, folder / EPOCHS_FILE) if file.exists()]


def check_tables(trials: Trials, epochs: Epochs) -> None:
    """Check that the rows of both tables fit together.

    Raises:
        ValueError: they do not.
    """
    check_trials(list(trials.values()))  # the journal may have changed them
    if unknown := epochs.keys() - trials.keys():
        raise ValueError(f"epochs of unknown trials {sorted(unknown)[:5]}")
    for number, row in trials.items():
        rows = epochs[number]
        if {row["number"], *(int(each["trial_id"]) for each in (row, *rows))} != {number}:
            raise ValueError(f"trial {number} has another number")
        if [each["epoch"] for each in rows] != list(range(1, len(rows) + 1)):
            raise ValueError(f"the epochs of trial {number} are not 1, 2, 3 and so on")
        if row["state"] == "completed" and not rows:
            raise ValueError(f"trial {number} is completed, but has no epoch")
        parse_json(row["suggested"], dict[Text, Scalar])


def trials_table(trials: Trials) -> pa.Table:
    """`trials.parquet` as a table; `config.backbone` is there in studies of several networks."""
    rows = [trials[number] for number in sorted(trials)]
    helpers = {name for row in rows for name in row if name.startswith("param.")}
    columns: dict[str, pa.Array] = {}
    for column in trial_columns(sorted(helpers)):
        values = [row.get(column.name) for row in rows]
        if column.name == BACKBONE and not any(values):  # a study of one network
            continue
        found = {type(value) for value in values} - {type(None)}
        if column.type is None and len(found) > 1 and found != {int, float}:
            values = [None if v is None else str(v) for v in values]  # a helper with values of several types
        values = [as_utf8(v) if isinstance(v, str) else v for v in values]  # errors name files
        columns[column.name] = pa.array(values, type=column.type)
    return pa.table(columns)


def write_table_files(folder: Path, trials: Trials, epochs: Epochs, events: int) -> None:
    """Write both tables, each atomically.

    Args:
        folder: of the study.
        trials: all rows.
        epochs: all rows.
        events: of the journal, that they include.
    """
    rows = [row for number in sorted(epochs) for row in epochs[number]]
    columns = {c.name: pa.array([row.get(c.name) for row in rows], type=c.type) for c in epoch_columns()}
    # Epochs first: a trial's row never claims an epoch that the other table lacks.
    for name, table in ((EPOCHS_FILE, pa.table(columns)), (TRIALS_FILE, trials_table(trials))):
        with atomic_write(folder / name) as partial:
            pq.write_table(table.replace_schema_metadata({EVENTS: str(events)}), partial)
