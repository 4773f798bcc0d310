"""A scoring of the test split in words."""

from __future__ import annotations

import pytest

from delta_tune.results.scoring import Scoring

CONTENT = {
    "model": "trial 0",
    "images": 200,
    "test_accuracy": 0.853,
    "test_balanced_accuracy": 0.8,
    "test_macro_f1": 0.791,
    "test_accuracy_interval": [0.797, 0.896],
}
ACCURACY = "accuracy 85.3 % on 200 images, scored once (95 % interval 79.7 to 89.6 %)"


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("val_accuracy", ACCURACY),
        ("val_loss", ACCURACY),
        ("val_macro_f1", f"macro F1 79.1 %, {ACCURACY}"),
        ("val_balanced_accuracy", f"balanced accuracy 80.0 %, {ACCURACY}"),
    ],
)
def test_score_by_the_study_s_metric_is_said_before_the_accuracy(metric, said):
    assert Scoring(CONTENT, 0, metric).said == said


def test_scores_of_several_labels_are_said_before_exact_matches():
    content = CONTENT | {"test_mean_average_precision": 0.9}
    said = Scoring(content, 0, "val_mean_average_precision").said
    assert said == f"mean average precision 90.0 %, macro F1 79.1 %, {ACCURACY.replace('accuracy', 'exact matches')}"
