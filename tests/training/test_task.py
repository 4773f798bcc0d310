from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torchvision
from helpers.several_labels import coloured_squares, source_of

from delta_tune.config import Candidate, TrialConfig, UserError
from delta_tune.training.task import prepare, prepare_several

LAYERS = ("layer1.0.conv2", "layer3.0.conv1", "layer4.0.conv2")


def test_task_travels_without_networks(task):
    task.source_model(torch.device("cpu"), LAYERS)
    copy = pickle.loads(pickle.dumps(task))
    assert copy._sources == {}
    assert np.array_equal(copy.dataset.train.labels, task.dataset.train.labels)


def test_task_travels_with_what_is_measured_and_with_its_images_once(task):
    task.measurements.measure([TrialConfig(regularizer="delta_uniform", layers=LAYERS)])
    copy = pickle.loads(pickle.dumps(task))
    assert copy.measurements.mean_squares == task.measurements.mean_squares
    assert copy.measurements.dataset is copy.dataset
    assert copy.measurements.backbone is copy.backbone


def test_task_on_other_data_has_nothing_measured(task):
    task.measurements.measure([TrialConfig(regularizer="l2_fe")])
    other = task.on(task.dataset)
    assert other.backbone is task.backbone
    assert other.measurements.features == {}
    assert task.measurements.features


def test_network_with_a_relu_after_its_head_is_refused_for_several_labels(tmp_path):
    weights = tmp_path / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), weights)
    with (
        source_of(coloured_squares({"train": 8, "val": 4})),
        pytest.raises(UserError, match=r"^squeezenet1_1 cannot say that an image lacks a label.*give another model\.$"),
    ):
        prepare("squares", "squeezenet1_1", str(weights), image_size=64)


def test_tasks_of_several_sources_have_the_same_splits(image_folder, tiny_weights, task):
    candidates = [Candidate("timm:test_resnet", str(tiny_weights)) for _ in range(2)]
    first, second = prepare_several(image_folder, candidates, image_size=64)
    assert first.dataset.train.images is second.dataset.train.images
    assert first.dataset.fingerprint == second.dataset.fingerprint == task.dataset.fingerprint
    assert first.backbone.fingerprint == task.backbone.fingerprint


@pytest.mark.parametrize("model", ["resnet18,vgg11", "small"])
def test_several_networks_are_for_studies(image_folder, model):
    with pytest.raises(UserError, match=r"^model must be one network here, but got .*; tune chooses among several\.$"):
        prepare(image_folder, model)
