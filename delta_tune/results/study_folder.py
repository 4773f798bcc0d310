"""A study's folder, read: its record and its tables, which must fit together."""

from __future__ import annotations

from pathlib import Path

from delta_tune.config import UserError
from delta_tune.results.layout import STUDY_FILE, TRIALS_FILE
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables


def read_study(folder: Path) -> tuple[StudyRecord, StudyTables]:
    """The record and the tables of the study in `folder`.

    Raises:
        UserError: there is no study, one of its files is damaged, or they do not fit together.
    """
    record = StudyRecord.read(folder)
    tables = StudyTables.read(folder, record.metric)
    named = set(record.confirmation["trials"].values()) if record.confirmation else set()
    if record.winner is not None:
        named.add(record.winner)
    if unknown := sorted(number for number in named if not tables.epochs.get(number)):
        raise UserError(
            f"{folder / STUDY_FILE} names trial {unknown[0]}, of which {TRIALS_FILE} has no epoch; start a new study."
        )
    return record, tables
