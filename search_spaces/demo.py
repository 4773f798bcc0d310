"""The demo's question: does holding the feature maps beat the plain L2 recipe on a few handwritten digits?

    python launch.py

Cost: about a dozen trials of a few epochs at 64 pixels, minutes on two cores.
"""

from __future__ import annotations

from typing import Any

from delta_tune.spaces import SpaceTrial


def space(trial: SpaceTrial) -> dict[str, Any]:
    """The plain recipe against DELTA; alpha and the learning rate."""
    regularizer = trial.suggest_categorical("regularizer", ["l2", "delta"])
    trial.suggest_float("lr", 1e-4, 3e-3, log=True)
    config: dict[str, Any] = {"batch_size": 16, "augmentation": "none"}  # a flipped 2 is no 2
    if regularizer == "delta":
        trial.suggest_float("alpha", 1e-2, 30, log=True)
    return config


BALANCE = "regularizer"
START = [
    {"regularizer": "l2", "lr": 0.001},
    {"regularizer": "l2", "lr": 0.002},
    {"regularizer": "delta", "lr": 0.002, "alpha": 0.1},
]
