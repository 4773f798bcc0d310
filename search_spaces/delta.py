"""How far should the network move? DELTA, with and without attention, and plain L2, each at its own learning rate.

    python launch.py --data DIR --model resnet50 --space search_spaces/delta.py --num-trials 32

Cost: a DELTA epoch is one forward of the source above a plain one; the attention is computed once for all.
Batch norm stays frozen and all four layers are held: nothing else ever won with a few dozen photos a class
(docs/experiments.md).
"""

from __future__ import annotations

from typing import Any

from delta_tune.spaces import SpaceTrial


def space(trial: SpaceTrial) -> dict[str, Any]:
    """The method, the learning rate, the recipe, and how strongly and how selectively feature maps are held."""
    regularizer = trial.suggest_categorical("regularizer", ["l2", "delta_uniform", "delta"])
    trial.suggest_float("lr", 5e-4, 6e-3, log=True)
    trial.suggest_categorical("contrast", [0.0, 0.1])
    trial.suggest_categorical("label_smoothing", [0.0, 0.1])
    if regularizer != "l2":
        trial.suggest_float("alpha", 0.1, 10, log=True)
    if regularizer == "delta":
        trial.suggest_float("attention_temperature", 0.5, 10, log=True)
    return {}


# Chosen by benchmarks/portfolio.py: the best first, then what is best where the others are not.
START = [
    {"regularizer": "l2", "lr": 0.002, "contrast": 0.1, "label_smoothing": 0.0},
    {"regularizer": "delta", "lr": 0.002, "contrast": 0.0, "label_smoothing": 0.0, "alpha": 1.0},
]
