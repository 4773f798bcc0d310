from __future__ import annotations

import numpy as np
import pytest
import torch

from delta_tune.attention.probe_head import PENALTIES, fit_probe_head, join_passes, measure_features
from delta_tune.data.batches import evaluation_batches
from delta_tune.models.backbones import load_backbone
from delta_tune.models.devices import torch_threads

LAYERS = ("layer1.0.conv2", "layer3.0.conv1")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def features():
    """Of 600 images, as wide as a real network's, so that torch uses its threads; no head tells them all apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 600)
    place = rng.normal(size=(10, 20))[labels] + 1.5 * rng.normal(size=(600, 20))
    return (place @ rng.normal(size=(20, 1280)) / 10).astype(np.float32), labels


@pytest.mark.slow
def test_head_is_the_same_bits_whatever_the_threads(features):
    backbone, found = load_backbone(None, None, 64), []
    for threads in (1, 2):
        with torch_threads(threads):
            found.append(fit_probe_head(backbone, *features, 10, 0, CPU))
            assert torch.get_num_threads() == threads
    (one, logits), (two, others) = found
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert np.array_equal(logits, others)


def test_head_is_where_the_penalised_loss_is_flat(features):
    """At the minimum of mean cross-entropy + p/2 ‖head‖² for one of the penalties, by the formula of its gradient."""
    x, y = features
    head, logits = fit_probe_head(load_backbone(None, None, 64), x, y, 10, 0, CPU)
    weight, bias = (head[name].astype(np.float64) for name in ("weight", "bias"))
    scores = x @ weight.T + bias
    np.testing.assert_allclose(logits, scores, atol=1e-4)
    off = np.exp(scores - scores.max(1, keepdims=True))
    off = (off / off.sum(1, keepdims=True) - np.eye(10)[y]) / len(y)
    slopes = [max(np.abs(off.T @ x + p * weight).max(), np.abs(off.sum(0) + p * bias).max()) for p in PENALTIES]
    assert min(slopes) < 1e-3 < np.abs(off.T @ x).max()


def test_mean_squares_are_those_of_all_values_whatever_the_threads(task):
    found = []
    for threads in (1, 2):
        with torch_threads(threads):
            found.append(join_passes([measure_features(task.backbone, task.dataset.train, LAYERS, CPU)])[1])
    assert found[0] == found[1]
    source = task.source_model(CPU, LAYERS)
    maps = {layer: [] for layer in LAYERS}
    for layer in LAYERS:
        source.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, layer=layer: maps[layer].append(output.clone().numpy())
        )
    with torch.inference_mode():
        for images in evaluation_batches(task.dataset.train, task.backbone.preprocessing, CPU):
            source(images)
    task.forget_networks()
    for layer in LAYERS:
        values = np.concatenate(maps[layer]).astype(np.float64)
        assert found[0][layer] == pytest.approx((values**2).mean(), rel=1e-5)
