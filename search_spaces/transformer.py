"""Transformers and ConvNeXt: plain L2 and DELTA under AdamW with layer decay, each at its own learning rate.

    python launch.py --data DIR --model timm:vit_small_patch14_dinov2.lvd142m --image-size 224

Cost: that of `delta.py`. The default for networks with layer norms and no batch norms. Where it is from:
  - AdamW, also for ConvNeXt: Kumar et al., arXiv 2211.09359 (beats SGD on ViT and ConvNeXt), and ConvNeXt, 2201.03545
  - learning rates of 1e-5 to 1e-4: FLYP, 2212.00638; WiSE-FT, 2109.01903; model soups, 2203.05482
  - layer decay 0.65 to 0.8 and warm-up: BEiT, 2106.08254; MAE, 2111.06377; ConvNeXt; timm
  - weight decay 0.05, not of biases, norms and position embeddings: DeiT, 2012.12877; BEiT; MAE; Swin, 2103.14030
  - the fitted head first, then a small learning rate: LP-FT, 2202.10054
  - which layers move is data's choice: surgical fine-tuning, 2210.11466 (here by layer decay)
DELTA's attention may be flat on such networks; the report says so.
"""

from __future__ import annotations

from typing import Any

from delta_tune.spaces import SpaceTrial


def space(trial: SpaceTrial) -> dict[str, Any]:
    """The method, the learning rate, the batch and the layer decay; alpha and temperature where maps are held."""
    regularizer = trial.suggest_categorical("regularizer", ["l2", "delta_uniform", "delta"])
    trial.suggest_float("lr", 5e-6, 3e-4, log=True)
    trial.suggest_categorical("batch_size", [8, 16])
    trial.suggest_categorical("layer_decay", [0.65, 0.75, 0.85, 1.0])
    if regularizer != "l2":
        trial.suggest_float("alpha", 0.1, 10, log=True)
    if regularizer == "delta":
        trial.suggest_float("attention_temperature", 0.5, 10, log=True)
    decay = {"weight_decay": 0.05} if regularizer == "l2" else {}
    return {"optimizer": "adamw", "warmup_epochs": 0.5, **decay}


_HELD = {"alpha": 1.0, "layer_decay": 0.75}
START = [
    {"regularizer": "l2", "lr": 5e-5, "batch_size": 16, "layer_decay": 0.75},
    {"regularizer": "l2", "lr": 1e-4, "batch_size": 16, "layer_decay": 0.75},
    {"regularizer": "delta_uniform", "lr": 1e-4, "batch_size": 16, **_HELD},
    {"regularizer": "l2", "lr": 2e-5, "batch_size": 16, "layer_decay": 1.0},
    {"regularizer": "delta", "lr": 1e-4, "batch_size": 16, "attention_temperature": 5.0, **_HELD},
    {"regularizer": "l2", "lr": 5e-5, "batch_size": 8, "layer_decay": 0.65},
    {"regularizer": "delta_uniform", "lr": 5e-5, "batch_size": 8, **_HELD},
    {"regularizer": "l2", "lr": 2e-4, "batch_size": 16, "layer_decay": 0.65},
]
