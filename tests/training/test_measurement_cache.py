"""What the files of measurements depend on; what is read and written is tested with the measurements."""

from __future__ import annotations

import dataclasses

from delta_tune.training.task import prepare


def test_attention_key_depends_on_seed_layer_and_estimator(task):
    files = task.measurements.files
    key = files.attention_key("exact", "layer1")
    assert key == task.measurements.files.attention_key("exact", "layer1")
    others = {
        files.attention_key("first_order", "layer1"),
        files.attention_key("exact", "layer2"),
        dataclasses.replace(files, seed=1).attention_key("exact", "layer1"),
    }
    assert key not in others
    assert len(others) == 3


def test_attention_key_depends_on_the_split(image_folder, tiny_weights, task):
    part = prepare(image_folder, "timm:test_resnet", str(tiny_weights), image_size=64, train_per_class=5)
    ours, theirs = (each.measurements.files.attention_key("exact", "layer1") for each in (task, part))
    assert ours != theirs
