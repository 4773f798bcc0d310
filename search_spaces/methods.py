"""Which method is best at an equal budget? L2, L2-SP, frozen features and DELTA, each with its own hyperparameters.

    python launch.py --data DIR --model mobilenet_v2 --space search_spaces/methods.py --num-trials 40

Each method gets the same number of trials (`BALANCE`) and an Optuna study of its own; ASHA's rungs are kept per method.
Cost: frozen features take seconds, the others full fine-tuning trials.
"""

from __future__ import annotations

from typing import Any

from delta_tune.spaces import SpaceTrial

BALANCE = "regularizer"


def space(trial: SpaceTrial) -> dict[str, Any]:
    """Every method has a learning rate; each has what else is its own."""
    regularizer = trial.suggest_categorical("regularizer", ["delta", "delta_uniform", "l2_sp", "l2", "l2_fe"])
    if regularizer == "l2_fe":
        trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        trial.suggest_float("beta", 1e-5, 1e-1, log=True)
        return {}
    trial.suggest_float("lr", 1e-4, 3e-3, log=True)
    trial.suggest_categorical("batch_norm", ["frozen", "train"])
    if regularizer == "l2":
        trial.suggest_float("weight_decay", 1e-5, 1e-2, log=True)
        return {}
    trial.suggest_float("beta", 1e-4, 1e-1, log=True)
    if regularizer == "l2_sp":
        trial.suggest_float("alpha", 1e-3, 1.0, log=True)
        return {}
    trial.suggest_float("alpha", 1e-2, 30, log=True)
    if regularizer == "delta":
        trial.suggest_float("attention_temperature", 0.5, 20, log=True)
    return {"behavior_scale": "relative", "layers": "all"}


# Each method's recipe first, from the fitted head (head_start).
START = [
    {"regularizer": "l2", "lr": 0.001, "batch_norm": "frozen", "weight_decay": 1e-4},
    {"regularizer": "l2_sp", "lr": 0.001, "batch_norm": "frozen", "alpha": 0.1},
    {"regularizer": "l2_fe", "lr": 0.01, "beta": 0.001},
    {"regularizer": "delta_uniform", "lr": 0.001, "batch_norm": "frozen", "alpha": 1.0},
    {"regularizer": "delta", "lr": 0.001, "batch_norm": "frozen", "alpha": 1.0},
]
