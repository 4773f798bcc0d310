"""`study.json`: read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from delta_tune.config import UserError
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.results.layout import STUDY_FILE


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """An indented JSON file, whole or not at all."""
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(content, indent=2, default=str, allow_nan=False) + "\n")


def read_study(folder: Path) -> dict[str, Any]:
    """`study.json` of a study folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        content: dict[str, Any] = json.loads((folder / STUDY_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"There is no study in {folder}; --name and --out must name one that was started.") from None
    except ValueError as error:  # no JSON, or no text at all
        raise UserError(f"{folder / STUDY_FILE} is damaged ({error}); start a new study.") from None
    return content


def scoring_of(scorings: Sequence[Mapping[str, Any]], model: str | None) -> tuple[Mapping[str, Any], str] | None:
    """A model's scoring of the test split, and in words how often that had been scored; None where there is none.

    Args:
        scorings: `test_scorings` of `study.json`.
        model: as `study.json` names it.
    """
    for place, scoring in enumerate(scorings):
        if scoring["model"] == model:
            return scoring, "scored once" if place == 0 else f"scoring {place + 1} of this split, so not an unseen one"
    return None
