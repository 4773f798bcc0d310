from __future__ import annotations

import pickle

import numpy as np
import torch

from delta_tune.config import TrialConfig

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
