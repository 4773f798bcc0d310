"""How far should the network move? DELTA, with and without attention, and plain L2, each at its own learning rate.

    python launch.py --data DIR --model resnet50 --space search_spaces/delta.py --num-trials 32

Cost: a DELTA epoch is one forward of the source above a plain one; the attention is computed once for all.
Batch norm stays frozen, all four layers are held and batches are small: with a few dozen photos a class nothing else
won (docs/experiments.md).
"""

from __future__ import annotations

from typing import Any

from delta_tune.spaces import SpaceTrial


def space(trial: SpaceTrial) -> dict[str, Any]:
    """The method, the learning rate and the batch; alpha and the attention's temperature where maps are held."""
    regularizer = trial.suggest_categorical("regularizer", ["l2", "delta_uniform", "delta"])
    trial.suggest_float("lr", 3e-4, 4e-3, log=True)
    trial.suggest_categorical("batch_size", [8, 16])
    if regularizer != "l2":
        trial.suggest_float("alpha", 0.1, 10, log=True)
    if regularizer == "delta":
        trial.suggest_float("attention_temperature", 0.5, 10, log=True)
    return {}


# In the order of benchmarks/portfolio.py, as far as there are figures (docs/experiments.md).
_HELD = {"alpha": 1.0}
START = [
    {"regularizer": "l2", "lr": 0.001, "batch_size": 8},
    {"regularizer": "l2", "lr": 0.002, "batch_size": 16},
    {"regularizer": "delta", "lr": 0.002, "batch_size": 16, "attention_temperature": 5.0, **_HELD},
    {"regularizer": "l2", "lr": 0.002, "batch_size": 8},
    {"regularizer": "delta", "lr": 0.001, "batch_size": 8, "attention_temperature": 5.0, **_HELD},
    {"regularizer": "delta_uniform", "lr": 0.002, "batch_size": 16, **_HELD},
    {"regularizer": "l2", "lr": 0.0005, "batch_size": 8},
    {"regularizer": "delta_uniform", "lr": 0.001, "batch_size": 8, **_HELD},
]
