"""The grid of the reference runs: raw scale, batch norm in train mode, all four layers, temperature 5.

    python launch.py --data DIR --model resnet50 --space search_spaces/reference.py --num-trials 10 --set batch_size=64

What the authors' and the library port's configurations give on your data. The reference sums over the batch, so its
alpha 0.01 at batch 64 is 0.64 here, on a per-image mean; Stanford Dogs had 0.1, the later suite 1e-6 and 1e-5 on the
last block alone.
"""

from __future__ import annotations

from typing import Any

from delta_tune.spaces import SpaceTrial

ALPHAS = [64e-6, 64e-5, 0.64, 6.4]


def space(trial: SpaceTrial) -> dict[str, Any]:
    """Two methods, four alphas, two learning rates: 10 points."""
    regularizer = trial.suggest_categorical("regularizer", ["delta", "l2"])
    trial.suggest_categorical("lr", [0.01, 0.001])
    config: dict[str, Any] = {"batch_norm": "train", "schedule": "step", "augmentation": "crop_flip"}
    config |= {"head_start": "random", "head_lr_multiplier": 10.0, "max_grad_norm": None}
    if regularizer == "delta":
        alpha = trial.suggest_categorical("alpha", ALPHAS)
        config |= {"behavior_scale": "raw", "beta": 0.01, "layers": "all" if alpha > 0.01 else "last"}
    return config


START = [{"regularizer": "l2", "lr": lr} for lr in (0.01, 0.001)] + [
    {"regularizer": "delta", "alpha": alpha, "lr": lr} for alpha in (0.64, 6.4, 64e-5, 64e-6) for lr in (0.01, 0.001)
]
