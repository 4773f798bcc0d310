"""What the benchmark of wrong labels compares with."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # programs, not a package
from label_errors import suspect_labels


def test_suspects_are_those_of_cleanlab_in_its_order():
    rng = np.random.default_rng(5)
    true = rng.integers(0, 5, 400)
    logits = rng.normal(0, 1, (400, 5))
    logits[np.arange(400), true] += 2.5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels, wrong = true.copy(), rng.random(400) < 0.08
    labels[wrong] = rng.integers(0, 5, wrong.sum())
    # cleanlab 2.9.0: find_label_issues(labels, probabilities, filter_by="confident_learning",
    #                                   return_indices_ranked_by="normalized_margin")
    expected = [356, 299, 98, 181, 68, 351, 185, 256, 254, 336, 180, 305, 395, 125, 29, 329]
    assert suspect_labels(probabilities, labels).tolist() == expected
