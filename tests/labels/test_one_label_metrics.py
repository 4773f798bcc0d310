from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from delta_tune.labels.one_label_metrics import classification_metrics


def test_metrics_equal_sklearn_where_a_class_is_missing_from_the_split():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 5, generator=generator)
    logits[:, 4] = -10  # never predicted: sklearn leaves such a class out, as we do
    labels = torch.randint(0, 4, (60,), generator=generator)
    ours = classification_metrics(logits, labels)
    predicted = logits.argmax(1).numpy()
    assert ours["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert ours["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert ours["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    assert ours["loss"] == pytest.approx(
        metrics.log_loss(labels, logits.double().softmax(1).numpy(), labels=range(5)), rel=1e-5
    )


def test_metrics_loss_is_nan_for_nan_logits():
    assert np.isnan(classification_metrics(torch.full((2, 3), float("nan")), torch.tensor([0, 1]))["loss"])
