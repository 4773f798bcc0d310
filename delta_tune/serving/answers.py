"""What the server says of an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from delta_tune.labels.answer import answer_of
from delta_tune.serving.model import ServedModel


def prediction(name: str, row: np.ndarray, model: ServedModel, least: float, top: int | None) -> dict[str, Any]:
    """One image's prediction, with the keys of `predict --json`.

    Args:
        name: of the image.
        row: probabilities (K,).
        model: whose classes they are of.
        least: the prediction is unsure if its probability is lower, in [0, 1].
        top: the number of most probable classes to tell, highest first; None is all, in training order.
    """
    answer = answer_of(row, model.thresholds, least)
    told = range(len(row)) if top is None else np.argsort(-row, kind="stable")[:top].tolist()
    return {
        "image": name,
        "label": model.classes[answer.best],
        "probability": answer.probability,
        "unsure": answer.unsure,
        "labels": [model.classes[number] for number in answer.there],
        "probabilities": {model.classes[number]: float(row[number]) for number in told},
    }


def unreadable(name: str, reason: str) -> dict[str, Any]:
    """An image that cannot be read, with the keys of `predict --json`."""
    return {
        "image": name,
        "label": None,
        "probability": None,
        "unsure": False,
        "labels": [],
        "probabilities": {},
        "error": f"{name} cannot be read as an image ({reason}); send an image file such as JPEG or PNG.",
    }
