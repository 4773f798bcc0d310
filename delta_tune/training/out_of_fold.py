"""Which labels are wrong, and which classes look alike, to a linear classifier on frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from delta_tune.attention.probe_head import fit_head
from delta_tune.data.splits import Indices
from delta_tune.models.devices import torch_threads
from delta_tune.results.label_errors import LabelNoise, fit_label_noise

FOLDS = 5
ROUNDS = (1, 1, 2)
"""How often all folds are predicted before labels are judged: first from all images, then without what seemed wrong."""
PENALTY = 1e-3
SPREAD = 10.0
"""Mean square of an image's features, for which the penalty was chosen."""
MOST_FITTED = 20_000
"""Images that a classifier is fitted to at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelJudgement:
    """What classifiers that were not fitted to an image say about it."""

    probabilities: np.ndarray
    """(N, K)."""
    noise: LabelNoise
    """Which labels are wrong, and how many."""


def judge_labels(features: np.ndarray, labels: Indices, num_classes: int, groups: Indices, seed: int) -> LabelJudgement:
    """Predict each image by a classifier that was fitted to others, and estimate which labels are wrong.

    The classifiers are fitted again with each image weighted by the probability that its label is right.

    Args:
        features: (N, D), of any scale; N ≥ 2.
        labels: (N,).
        num_classes: K ≥ 2.
        groups: (N,): images of one group, such as copies of one picture, are predicted together: a copy with the same
            wrong label would confirm it.
        seed: of the folds.
    """
    weights, draw = np.ones(len(labels)), 0
    for repeats in ROUNDS:
        logits = np.zeros((len(labels), num_classes))
        for _ in range(repeats):
            rng = np.random.default_rng([seed, draw])
            folds = deal_folds(labels, groups, rng)
            logits += out_of_fold(features, labels, num_classes, folds, weights, seed=draw) / repeats
            draw += 1
        noise = fit_label_noise(logits, labels)
        weights = 1 - noise.wrong
    scaled = logits / noise.temperature
    exponents = np.exp(scaled - scaled.max(1, keepdims=True))
    probabilities = exponents / exponents.sum(1, keepdims=True)
    return LabelJudgement(probabilities=probabilities, noise=noise)


def deal_folds(labels: Indices, groups: Indices, rng: np.random.Generator) -> Indices:
    """(N,): the fold of each image, stratified by the class of a group's first image; a group is in one fold."""
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    fold, dealt = np.empty(len(first), dtype=np.int64), 0
    for label in np.unique(labels[first]):
        members = rng.permutation(np.flatnonzero(labels[first] == label))
        fold[members] = (dealt + np.arange(len(members))) % FOLDS
        dealt += len(members)
    dealt_out: Indices = fold[group]
    return dealt_out


def out_of_fold(
    features: np.ndarray,
    labels: Indices,
    num_classes: int,
    folds: Indices,
    weights: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Logits (N, K) of each image by the linear classifier of its fold, which was fitted to the other folds.

    Args:
        features: (N, D), of any scale.
        labels: (N,).
        num_classes: K.
        folds: (N,).
        weights: (N,) of the images in the fit; None weights all alike.
        seed: of the draw, where a classifier is not fitted to all images.
    """
    x = torch.from_numpy(standardized(features).astype(np.float32))
    rng = np.random.default_rng(seed)
    weights = np.ones(len(labels)) if weights is None else weights
    y, w, found = (
        torch.from_numpy(labels),
        torch.from_numpy(weights.astype(np.float32)),
        np.zeros((len(x), num_classes)),
    )
    with torch_threads(1):  # the result must not depend on the number of cores
        for fold in np.unique(folds):
            (rest,) = np.nonzero(folds != fold)
            if not len(rest):
                continue
            fitted = np.sort(rng.permutation(rest)[:MOST_FITTED])
            head = nn.Linear(x.shape[1], num_classes)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            fit_head(head, head, x[fitted], y[fitted], PENALTY, w[fitted])
            with torch.no_grad():
                found[folds == fold] = head(x[folds == fold]).double().numpy()
    return found


def standardized(features: np.ndarray) -> np.ndarray:
    """Features (N, D) with mean 0 and equal spread, without constant ones; an image's mean square is `SPREAD`."""
    spread = features.std(0)
    used = (features - features.mean(0))[:, spread > 1e-6] / spread[spread > 1e-6]
    scaled: np.ndarray = used * np.sqrt(SPREAD / max(1, used.shape[1]))
    return scaled


def confused_pairs(predicted: Indices, labels: Indices) -> list[tuple[int, int, float]]:
    """Pairs of classes that are taken for one another, and the share of their images that are, the highest first.

    A pair counts if it is at least a tenth of the images of both, and three.

    Args:
        predicted: (N,), each by a model that was not trained on the image.
        labels: (N,).
    """
    counts = np.bincount(labels)
    wrong = np.flatnonzero(predicted != labels)
    pairs = np.sort(np.stack([predicted[wrong], labels[wrong]], axis=1), axis=1)
    found, times = np.unique(pairs, axis=0, return_counts=True)
    sizes = np.append(counts, np.zeros(max(0, int(predicted.max(initial=0)) + 1 - len(counts)), dtype=counts.dtype))
    alike = [
        (int(one), int(other), int(count) / int(sizes[one] + sizes[other]))
        for (one, other), count in zip(found, times, strict=True)
        if count >= 3 and count >= 0.1 * (sizes[one] + sizes[other])
    ]
    return sorted(alike, key=lambda pair: -pair[2])
