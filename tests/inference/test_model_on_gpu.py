"""Predictions on simulated GPUs."""

from __future__ import annotations

import pytest
from helpers.simulated_gpu import simulated_gpu

from delta_tune.inference.model import load
from delta_tune.report.predictions import split_logits


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_predictions_are_those_of_the_cpu(best, image_folder, kind):
    files = sorted((image_folder / "test").rglob("*.png"))[::3]
    expected = load(best).predict(files)
    with simulated_gpu(kind) as gpu:
        found = load(best, kind).predict(files)
    assert gpu.launches
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.label == theirs.label
        assert ours.probabilities == pytest.approx(theirs.probabilities, rel=1e-4)


def test_a_split_is_scored_as_on_the_cpu_without_waits_between_batches(best, task, monkeypatch):
    monkeypatch.setattr("delta_tune.data.batches.EVAL_BATCH_SIZE", 3)
    test = task.dataset.for_name("test")
    expected = split_logits(task, test, load(best).network)
    with simulated_gpu() as gpu:
        network = load(best, "cuda").network
        gpu.clear()
        found = split_logits(task, test, network)
    assert gpu.waits.total() == 1
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("computed", ["predict", "embed"])
def test_networks_see_few_shapes_on_cuda(best, image_folder, computed):
    files, shapes = sorted((image_folder / "test").rglob("*.png"))[:5], set()
    with simulated_gpu("cuda"):
        model = load(best, "cuda")
        model.network.register_forward_pre_hook(lambda module, inputs: shapes.add(len(inputs[0])))
        found = getattr(model, computed)(files)
    assert len(found) == 5
    assert shapes == {8}, "the next power of two"
