"""The columns of `trials.parquet` and `epochs.parquet`: type, meaning, and the values that are allowed when read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import pyarrow as pa
import pydantic
from pydantic import AfterValidator

from delta_tune.config import LOSS_PARTS, MULTILABEL_METRIC, TrialConfig, fields_of
from delta_tune.config.fields import Field
from delta_tune.filesystem.untrusted import Amount, Count, MeanOfShares, Number, Scalar, Share, Text, check_rows
from delta_tune.results.study_schema import TrialNumber

State = Literal["waiting", "running", "completed", "pruned", "stopped", "diverged", "failed"]
FINISHED: tuple[State, ...] = ("completed", "pruned", "diverged", "failed")
OPEN: tuple[State, ...] = ("waiting", "running")
SCORES = {
    "val_loss": "Mean cross entropy on the validation split; with several labels an image, their sum",
    "val_accuracy": "Accuracy on the validation split; with several labels an image, the share of the images all of "
    "whose labels are right",
    "val_balanced_accuracy": "Mean recall over the classes of the validation split; with several labels an image, mean "
    "of recall and specificity over the labels",
    "val_macro_f1": "Mean F1 over the classes of the validation split",
    "val_mean_average_precision": "Mean average precision over the labels of the validation split; null with one label "
    "an image",
}
"""Validation metrics: name → meaning."""
EPOCH_COLUMNS = {
    "train_loss": "Mean of `cross_entropy` + `alpha` · (`behavior` or `weight_l2_sp`) + `beta` · `head_l2` + "
    "`config.co_tuning` · `co_tuning` + `config.contrast` · `contrast`",
    **LOSS_PARTS,
    **SCORES,
    "lr": "Learning rate of the backbone at the last step",
    "seconds": "Seconds of training, waiting for data and the source's forward passes included",
    "eval_seconds": "Seconds of scoring the validation split",
}
"""What a trial reports of an epoch: name → meaning."""
REPORTED = "reported"
"""Column of `epochs.parquet`: when the epoch was reported, in seconds since 1970. Rungs decide in this order."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of one of the tables."""

    name: str
    type: pa.DataType | None
    """None for a helper of the search space: use the type of its values."""
    meaning: str
    values: Any
    """The allowed values, as a type that pydantic checks."""


def epoch_columns() -> list[Column]:
    """The columns of `epochs.parquet`."""
    figures: dict[str, Any] = dict.fromkeys(EPOCH_COLUMNS, Number | None) | {
        **dict.fromkeys(SCORES, MeanOfShares),
        MULTILABEL_METRIC: MeanOfShares | None,
        **{"train_loss": Number, "val_loss": Number, "val_accuracy": Share, "seconds": Amount, "eval_seconds": Amount},
    }
    return [
        Column("trial_id", pa.string(), "The trial", Text),
        Column("epoch", pa.int32(), "Number of the epoch, from 1", Annotated[int, pydantic.Field(ge=1)]),
        *(Column(name, pa.float64(), meaning, figures[name]) for name, meaning in EPOCH_COLUMNS.items()),
        Column(REPORTED, pa.float64(), "When the study received the row, in seconds since 1970", Amount | None),
    ]


def trial_columns(helpers: Iterable[str] = ()) -> list[Column]:
    """The columns of `trials.parquet`; `helpers` are the columns of the search space's helpers."""
    score, moment = Number | None, Amount | None
    return [
        Column("trial_id", pa.string(), "The number with leading zeros, as in the names of folders", Text),
        Column("number", pa.int32(), "Number of the trial, from 0, in the order of proposal", TrialNumber),
        Column("state", pa.string(), f"One of {', '.join(get_args(State))}", State),
        Column("epochs", pa.int32(), "Number of finished epochs", Count),
        *(Column(name, pa.float64(), f"{meaning}, after the last epoch", score) for name, meaning in SCORES.items()),
        *(
            Column(f"best_{name}", pa.float64(), f"{meaning}, in the best epoch", score)
            for name, meaning in SCORES.items()
        ),
        Column("best_epoch", pa.int32(), "The first epoch with the best value of the study's metric", Count | None),
        *(
            Column(f"config.{field.name}", _arrow_type(field.hint), field.help, _config_values(field))
            for field in fields_of(TrialConfig).values()
        ),
        *(Column(name, None, "A helper of the search space", Scalar) for name in helpers),
        Column("suggested", pa.string(), "The suggested values by name, as JSON", Text),
        Column("train_seconds", pa.float64(), "Seconds of training, all epochs", moment),
        Column("eval_seconds", pa.float64(), "Seconds of scoring, all epochs", moment),
        Column("start_seconds", pa.float64(), "Seconds from the proposal to the start on a worker", moment),
        Column("began", pa.float64(), "When a worker began the trial, in seconds since 1970", moment),
        Column("ended", pa.float64(), "When the last epoch ended, in seconds since 1970", moment),
        Column("gpus", pa.float64(), "GPUs of the trial; below 1 a part of one", Amount | None),
        Column(
            "out_of_memory",
            pa.int32(),
            "How often the trial ran out of GPU memory and was run again with more",
            Count | None,
        ),
        Column("fitted_to", pa.int32(), "Images that it was fitted to, if not all of train", Count | None),
        Column("scored_on", pa.int32(), "Images that it was scored on, if not all of val: ranked last", Count | None),
        Column("node", pa.string(), "Ray's id of the node", Text | None),
        Column("error", pa.string(), "Why the trial failed or diverged", Text | None),
    ]


def check_epochs(rows: Sequence[Mapping[str, Any]]) -> None:
    """Check rows of `epochs.parquet`, one by one; None where a row lacks a column.

    Raises:
        ValueError: names column and row.
    """
    check_rows(rows, _EPOCH_VALUES)


def check_trials(rows: Sequence[Mapping[str, Any]]) -> None:
    """Check rows of `trials.parquet`, one by one; columns that this version does not know may hold plain values.

    Raises:
        ValueError: names column and row.
    """
    others = {name for row in rows for name in row} - _TRIAL_VALUES.keys()
    check_rows(rows, _TRIAL_VALUES | dict.fromkeys(sorted(others), Scalar))


def _config_values(field: Field) -> Any:
    """Of a number what the field allows; any text, because another version may have other choices."""
    if field.name == "regularizer":
        return Text
    if field.kind is None:
        return Text | None
    return Annotated[Scalar, AfterValidator(lambda value: value if value is None else field.checked(value))]


def _arrow_type(hint: Any) -> pa.DataType:
    if get_origin(hint) is Literal:
        return pa.string()
    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    return next(kinds[kind] for kind in (hint, *get_args(hint)) if kind in kinds)


_EPOCH_VALUES = {column.name: column.values for column in epoch_columns()}
_TRIAL_VALUES = {column.name: column.values for column in trial_columns()}
