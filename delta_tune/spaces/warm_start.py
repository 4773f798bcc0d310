"""`--start-from`: start a study from the best configurations of an earlier one."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from delta_tune.config import UserError
from delta_tune.results.layout import STUDY_FILE
from delta_tune.results.study_folder import read_study
from delta_tune.results.tables import StudyTables
from delta_tune.spaces.l2_baseline import ARM, arm_of
from delta_tune.spaces.validation import BACKBONE, CheckedSpace, point_at

BEST_OF_EACH_METHOD = 3

Values = dict[str, Any]
"""A configuration's hyperparameters and helpers, by name."""


def best_configurations(study: str, out: Path) -> list[Values]:
    """The best completed trials of an earlier study, best first, at most `BEST_OF_EACH_METHOD` per method and network.

    Args:
        study: its folder or its name.
        out: the folder in which a name is looked up.

    Raises:
        UserError: there is no such study, its tables are damaged, or no trial completed.
    """
    folder = Path(study) if (Path(study) / STUDY_FILE).exists() else out / study
    _, tables = read_study(folder)
    chosen: list[int] = []

    def kind(number: int) -> tuple[str, str | None]:
        return tables.trials[number]["config.regularizer"], tables.backbone(number)

    for number in (n for n in tables.ranked() if n in tables.searched):
        if sum(kind(n) == kind(number) for n in chosen) < BEST_OF_EACH_METHOD:
            chosen.append(number)
    if not chosen:
        raise UserError(
            f"--start-from {folder} has no completed trial; give a study that has one, or leave the flag out."
        )
    return [_values(tables, number) for number in chosen]


def of_backbone(found: Sequence[Values], label: str, labels: Collection[str]) -> list[Values]:
    """Configurations to try with one of a study's networks: all but those that another one of them had.

    Args:
        found: of an earlier study, which may have had other networks, or one.
        label: of the network.
        labels: of all networks of the study.
    """
    return [values for values in found if values.get(BACKBONE, label) == label or values[BACKBONE] not in labels]


def add_starting_points(checked: CheckedSpace, found: Sequence[Values]) -> CheckedSpace:
    """Add configurations to the starting points, before those that the space has.

    Configurations that the space cannot express are left out, with a message.
    """
    points, notes = [], []
    for values in found:
        inside = {name: value for name, value in values.items() if name not in checked.space.fixed}
        if checked.space.balance == ARM:
            inside[ARM] = arm_of(values["regularizer"], checked.choices)
        point = point_at(
            checked.space, inside, f"{values['regularizer']} with lr {values['lr']:.3g} of the other study"
        )
        if isinstance(point, str):
            notes.append(point)
        elif point not in points:
            points.append(point)
    own = [point for point in checked.points if point not in points]
    return dataclasses.replace(checked, points=(*points, *own), notes=(*checked.notes, *dict.fromkeys(notes)))


def _values(tables: StudyTables, number: int) -> Values:
    row, config = tables.trials[number], tables.config(number)
    helpers = {name.removeprefix("param."): v for name, v in row.items() if name.startswith("param.") and v is not None}
    values = config.resolved()
    layers = values["layers"]
    return {**values, "layers": layers if isinstance(layers, str) else ",".join(layers), **helpers}
