"""Do the rare classes need help? Plain L2 and DELTA, with logits adjusted by none, half or all of the log shares.

    python launch.py --data DIR --model mobilenet_v2 --space search_spaces/imbalanced.py --metric val_macro_f1

Cost: that of `delta.py`; the adjustment itself costs nothing. Give a metric that counts all classes alike: by accuracy
the frequent ones decide. The final model's logits may be shifted besides, if that helps on images held out.
Half an adjustment gained the most in `benchmarks/imbalance.py`; the figures are in docs/experiments.md.
"""

from __future__ import annotations

from typing import Any

from delta_tune.spaces import SpaceTrial


def space(trial: SpaceTrial) -> dict[str, Any]:
    """The method, the learning rate, the batch and the adjustment; alpha where maps are held."""
    regularizer = trial.suggest_categorical("regularizer", ["l2", "delta_uniform"])
    trial.suggest_float("lr", 3e-4, 4e-3, log=True)
    trial.suggest_categorical("batch_size", [8, 16])
    trial.suggest_categorical("logit_adjustment", [0.0, 0.5, 1.0])
    if regularizer == "delta_uniform":
        trial.suggest_float("alpha", 0.1, 10, log=True)
    return {}


_RECIPE = {"lr": 0.001, "batch_size": 8}
START = [
    {"regularizer": "l2", "logit_adjustment": 0.5, **_RECIPE},
    {"regularizer": "l2", "logit_adjustment": 0.0, **_RECIPE},
    {"regularizer": "l2", "logit_adjustment": 1.0, **_RECIPE},
    {"regularizer": "delta_uniform", "alpha": 1.0, "logit_adjustment": 0.5, **_RECIPE},
]
