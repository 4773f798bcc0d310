"""How strongly, where and how sharply should feature maps be held? DELTA against the same with uniform weights.

    python launch.py --data DIR --model resnet50 --space search_spaces/delta.py --num-trials 32

Cost: a DELTA epoch is one forward of the source above a plain one; the attention is computed once for all.
"""

from __future__ import annotations

from typing import Any

from delta_tune.spaces import SpaceTrial


def space(trial: SpaceTrial) -> dict[str, Any]:
    """Alpha, beta, the attention settings, learning rate and batch norm."""
    regularizer = trial.suggest_categorical("regularizer", ["delta", "delta_uniform"])
    trial.suggest_float("alpha", 1e-2, 30, log=True)
    trial.suggest_float("beta", 1e-4, 1e-1, log=True)
    trial.suggest_categorical("layers", ["all", "last_two", "last"])
    trial.suggest_categorical("batch_norm", ["frozen", "train"])
    trial.suggest_float("lr", 1e-4, 3e-3, log=True)
    if regularizer == "delta":
        trial.suggest_float("attention_temperature", 0.5, 20, log=True)
    return {"behavior_scale": "relative"}


START = [
    {"regularizer": "delta_uniform", "alpha": 1.0, "layers": "all", "batch_norm": "frozen", "lr": 0.002},
    {"regularizer": "delta", "alpha": 10.0, "layers": "all", "batch_norm": "frozen", "lr": 0.002},
]
