"""What the commands that use a model have in common in their flags."""

from __future__ import annotations

import math
from typing import Literal

from delta_tune.config import UserError

MODEL_FOLDER = "Folder of a study, or its best/; local or at s3://…"
FLIP = "Average the image and its mirror image, which takes twice as long"


def parse_min_confidence(text: str) -> float | Literal["auto"]:
    """The value of --min-confidence.

    Raises:
        UserError: it is neither a number from 0 to 1 nor auto.
    """
    if text == "auto":
        return "auto"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"--min-confidence must be a number from 0 to 1, or auto, but got {text}.")
    return value
