"""How many wrong labels are found, and how many of those that are named are wrong.

    python benchmarks/label_errors.py [--quick] [--data FOLDER ...] [--json FILE]

A tenth of the labels of flowers17, clothing and trashnet96 is replaced by another class, drawn alike; then
`python -m delta_tune inspect --model` looks for them, without having trained anything: with MobileNetV2 and with
EfficientNet-Lite0, at 97 pixels. "before" is confident learning with a classifier on the last
layer's features, as a study's list was once made; the other columns are what `inspect` does. Labels that
are wrong in the sets themselves count as not wrong. "estimate" is the share of wrong labels that `inspect` tells,
"untouched" the images that it names where no label was replaced. Asked are precision and recall of 0.7 at least.

The photos and MobileNetV2's weights are in the folder that DELTA_TUNE_TEST_DATA names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from development_data import DATA, MISSING, WEIGHTS

from delta_tune.attention.probe_head import measure_features
from delta_tune.data.resampling import pool_splits
from delta_tune.training.frozen_features import FrozenFeatures
from delta_tune.training.out_of_fold import deal_folds, judge_labels, out_of_fold
from delta_tune.training.task import prepare

SETS = ("flowers17", "clothing", "trashnet96")
NETWORKS = {
    "MobileNetV2": ("mobilenet_v2", str(WEIGHTS / "mobilenet_v2.pth")),
    "EfficientNet-Lite0": ("timm:tf_efficientnet_lite0", "demo"),
}
IMAGE_SIZE, SHARE, ASKED = 97, 0.1, 0.7


def features_of(data: Path, network: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All images of a set: what `inspect` sees of them, what the head sees, and their labels."""
    task = prepare(data, *NETWORKS[network], image_size=IMAGE_SIZE)
    whole = pool_splits(
        [each for each in (task.dataset.train, task.dataset.val, task.dataset.test) if each is not None]
    )
    frozen, parts = FrozenFeatures(task.backbone), range(0, len(whole), 512)
    ours = [frozen.of(whole.images.batch(np.arange(start, min(start + 512, len(whole))))) for start in parts]
    last, _ = measure_features(task.backbone, whole, (), torch.device("cpu"))
    return np.concatenate(ours), last.reshape(len(last), last.shape[1], -1).mean(2), np.asarray(whole.labels)


def with_wrong_labels(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels with a share of them replaced by another class, and which were."""
    rng, count = np.random.default_rng(seed), int(labels.max()) + 1
    wrong = np.zeros(len(labels), dtype=bool)
    wrong[rng.choice(len(labels), round(share * len(labels)), replace=False)] = True
    drawn = (labels + rng.integers(1, count, len(labels))) % count
    return np.where(wrong, drawn, labels), wrong


def scores(named: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Precision and recall of the images that were named."""
    right = int(wrong[named].sum())
    return {"named": len(named), "precision": right / max(1, len(named)), "recall": right / max(1, int(wrong.sum()))}


ROUNDING = 1e-6
"""By which a probability may miss its class's mean: all may be alike."""


def suspect_labels(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Confident learning (Northcutt et al. 2021, arXiv 1911.00068): images that count as another class than told.

    An image counts as a class if its probability of it is at least the class's threshold: the mean probability of the
    class over the images with that label. Of several such classes it counts as the most probable. The suspects are
    what lies off the diagonal of the paper's confident joint, the most suspect first, by p(label) - max p(other class).

    Args:
        probabilities: (N, K), each row of a model that was not trained on the image.
        labels: (N,) given classes.
    """
    rows, classes = np.arange(len(labels)), probabilities.shape[1]
    given = probabilities[rows, labels]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=given, minlength=classes)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= thresholds - ROUNDING, probabilities, -1.0)
    (suspects,) = np.nonzero((confident.max(1) >= 0) & (confident.argmax(1) != labels))
    others = probabilities[suspects].copy()
    others[np.arange(len(suspects)), labels[suspects]] = -1.0
    return suspects[np.argsort(given[suspects] - others.max(1), kind="stable")]


def confident_learning(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What confident learning names by a classifier on these features."""
    folds = deal_folds(labels, np.arange(len(labels)), np.random.default_rng(0))
    logits = out_of_fold(features, labels, int(labels.max()) + 1, folds)
    return suspect_labels(torch.from_numpy(logits).softmax(1).numpy(), labels)


def measure(data: Path, network: str, seeds: list[int]) -> list[dict[str, Any]]:
    """A row for each seed, and one for the untouched labels."""
    ours, last, labels = features_of(data, network)
    num_classes, alone = int(labels.max()) + 1, np.arange(len(labels))
    untouched = judge_labels(ours, labels, num_classes, alone, 0).noise
    rows = []
    for seed in seeds:
        given, wrong = with_wrong_labels(labels, SHARE, seed)
        noise = judge_labels(ours, given, num_classes, alone, 0).noise
        before = confident_learning(last, given)
        row: dict[str, Any] = {"data": data.name, "network": network, "seed": seed, "images": len(labels)}
        row |= {"ours": scores(noise.suspects(), wrong), "before": scores(before, wrong)}
        row |= {"estimate": noise.share, "untouched": len(untouched.suspects()), "untouched_estimate": untouched.share}
        rows.append(row)
        print(in_words(row), flush=True)
    return rows


def in_words(row: dict[str, Any]) -> str:
    """A row as a line."""
    ours, before = row["ours"], row["before"]
    return (
        f"{row['data']:<11} {row['network']:<19} {row['seed']:>4} {ours['named']:>6} {ours['precision']:>10.2f} "
        f"{ours['recall']:>7.2f} {before['precision']:>11.2f} {before['recall']:>7.2f} {100 * row['estimate']:>7.1f} % "
        f"{row['untouched']:>6} ({100 * row['untouched_estimate']:.1f} %)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="flowers17 and one seed only")
    parser.add_argument("--data", nargs="+", type=Path, metavar="FOLDER", help="data sets instead of the three")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    given = parser.parse_args()
    sets = given.data or [DATA / name for name in (SETS[:1] if given.quick else SETS)]
    if not sets[0].is_dir():
        raise SystemExit(MISSING)
    print(f"{'data':<11} {'network':<19} seed  named  precision  recall  (before: P)     (R) estimate  untouched")
    seeds = [0] if given.quick else [0, 1]
    rows = [row for data in sets for network in NETWORKS for row in measure(data, network, seeds)]
    least = min(min(row["ours"]["precision"], row["ours"]["recall"]) for row in rows)
    print(f"Least precision or recall: {least:.2f}; asked {ASKED}.")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
