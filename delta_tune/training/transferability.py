"""How well a frozen network tells the classes apart: what a linear classifier says of images it was not fitted to."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from delta_tune.attention.probe_head import fit_head
from delta_tune.data.splits import Indices
from delta_tune.data.stratify import folds_of_units, units_of
from delta_tune.labels.kinds import Labels, kind_of
from delta_tune.models.devices import torch_threads
from delta_tune.training.out_of_fold import FOLDS, standardized

PENALTIES = (1e-2, 1e-3)
"""Of the classifiers: per backbone that of the better likelihood counts."""


def head_inputs_as_vectors(features: np.ndarray) -> np.ndarray:
    """What `measure_features` returned, as float64 (N, D): of maps (N, D, h, w) the means over the positions."""
    vectors: np.ndarray = features.reshape(*features.shape[:2], -1).mean(2, dtype=np.float64)
    return vectors


def predict_folds(
    features: np.ndarray, labels: Labels, num_classes: int, groups: Indices | None, seed: int
) -> np.ndarray:
    """Logits (N, K) of each image by a linear classifier that was fitted to the images of other folds.

    The folds are stratified and keep groups whole; an image that is in none, because its class or group is the only one
    of its kind, is told nothing: its logits are 0.

    Args:
        features: (N, D), of any scale.
        labels: of the N images.
        num_classes: K ≥ 2.
        groups: (N,), equal for images that belong together; None if none do.
        seed: of the folds.
    """
    folds = folds_of_units(units_of(labels, groups), FOLDS, np.random.default_rng(seed))
    x, y, kind = torch.from_numpy(_rotated(standardized(features))), torch.from_numpy(labels), kind_of(labels)
    found = [torch.zeros(len(x), num_classes) for _ in PENALTIES]
    if not x.shape[1]:
        return found[0].double().numpy()
    with torch_threads(1):  # the result must not depend on the number of cores
        for fold in range(FOLDS):
            held_out, rest = torch.from_numpy(folds == fold), torch.from_numpy(folds != fold)
            if not held_out.any() or not rest.any():
                continue
            head = nn.Linear(x.shape[1], num_classes)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            for logits, penalty in zip(found, PENALTIES, strict=True):
                fit_head(head, head, x[rest], y[rest], penalty)
                with torch.no_grad():
                    logits[held_out] = head(x[held_out])
    return min(found, key=lambda logits: float(kind.loss(logits, y))).double().numpy()


def _rotated(features: np.ndarray) -> np.ndarray:
    """The same vectors in as many dimensions as they span, float32: a classifier with an L2 penalty is the same."""
    if features.shape[1] > len(features):
        left, scales, _ = np.linalg.svd(features, full_matrices=False)
        features = left * scales
    rotated: np.ndarray = features.astype(np.float32)
    return rotated
