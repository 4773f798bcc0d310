"""Which method is best at an equal budget? Seven methods with the same recipe around them, each with its own strengths.

    python launch.py --data DIR --model mobilenet_v2 --space search_spaces/methods.py --num-trials 42

Each method gets the same number of trials (`BALANCE`) and an Optuna study of its own; ASHA's rungs are kept per method.
Cost: frozen features take seconds, the others full fine-tuning trials. `co_tuning` needs weights that bring the
source's own classifier: take it out of the list for others.
"""

from __future__ import annotations

from typing import Any

from delta_tune.spaces import SpaceTrial

BALANCE = "regularizer"
METHODS = ["delta", "delta_uniform", "l2_sp", "l2", "co_tuning", "bi_tuning", "l2_fe"]


def space(trial: SpaceTrial) -> dict[str, Any]:
    """Every method has a learning rate, and those that train the network the same batches; each has what is its own."""
    regularizer = trial.suggest_categorical("regularizer", METHODS)
    if regularizer == "l2_fe":
        trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        trial.suggest_float("beta", 1e-5, 1e-1, log=True)
        return {}
    trial.suggest_float("lr", 3e-4, 4e-3, log=True)
    trial.suggest_categorical("batch_size", [8, 16])
    if regularizer in ("l2", "co_tuning", "bi_tuning"):
        trial.suggest_float("weight_decay", 1e-5, 1e-2, log=True)
    else:
        trial.suggest_float("beta", 1e-4, 1e-1, log=True)
    if regularizer == "co_tuning":
        trial.suggest_float("co_tuning", 1e-2, 3, log=True)
    elif regularizer == "bi_tuning":
        trial.suggest_float("contrast", 1e-2, 3, log=True)
    elif regularizer == "l2_sp":
        trial.suggest_float("alpha", 1e-3, 1, log=True)
    elif regularizer != "l2":
        trial.suggest_float("alpha", 1e-2, 30, log=True)
    if regularizer == "delta":
        trial.suggest_float("attention_temperature", 0.5, 20, log=True)
    return {}


# Each method's recipe first, from the fitted head (head_start).
_RECIPE = {"lr": 0.001, "batch_size": 8}
START = [
    {"regularizer": "l2", "weight_decay": 1e-4, **_RECIPE},
    {"regularizer": "bi_tuning", "contrast": 0.1, "weight_decay": 1e-4, **_RECIPE},
    {"regularizer": "co_tuning", "co_tuning": 0.3, "weight_decay": 1e-4, **_RECIPE},
    {"regularizer": "l2_sp", "alpha": 0.1, **_RECIPE},
    {"regularizer": "l2_fe", "lr": 0.01, "beta": 0.001},
    {"regularizer": "delta_uniform", "alpha": 1.0, **_RECIPE},
    {"regularizer": "delta", "alpha": 1.0, **_RECIPE},
]
