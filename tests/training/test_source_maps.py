from __future__ import annotations

import pytest
import torch

from delta_tune.config import TrialConfig
from delta_tune.training.source_map_index import StepKey
from delta_tune.training.trial import run_trial

LAYERS = ("layer1.0.conv2", "layer3.0.conv1", "layer4.0.conv2")


class DictStore:
    """A store in this process: what others would leave, and what was done to it."""

    def __init__(self):
        self.maps, self.asked, self.left = {}, [], []

    def ask(self, batch, layers):
        self.asked.append(batch)
        found = self.maps.get(batch)
        if found is not None and set(layers) <= set(found):
            return {layer: found[layer].clone() for layer in layers}, False
        return None, self.asked.count(batch) == 1

    def leave(self, batch, maps):
        self.left.append(batch)
        self.maps[batch] = dict(maps)


class Taken(DictStore):
    """Another trial is always at the maps, and never leaves any."""

    def ask(self, batch, layers):
        return None, False


def config(**settings):
    return TrialConfig(**{"batch_size": 8, "max_epochs": 2, "layers": LAYERS, "lr": 0.01, **settings})


def numbers(result):
    rows = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in result.epochs]
    return rows, {name: value.tolist() for name, value in result.model_state.items()}


@pytest.mark.parametrize("method", ["delta", "delta_uniform"])
def test_sharing_changes_no_bit_of_a_trial(task, method):
    alone = numbers(run_trial(task, config(regularizer=method)))
    store = DictStore()
    assert numbers(run_trial(task, config(regularizer=method), maps=store)) == alone
    computed = len(store.left)
    assert computed == 2 * 5  # 36 images in batches of 8, two epochs
    assert numbers(run_trial(task, config(regularizer=method), maps=store)) == alone
    assert len(store.left) == computed
    assert numbers(run_trial(task, config(regularizer=method), maps=Taken())) == alone


def test_trials_of_other_alpha_and_fewer_layers_find_the_maps(task):
    store = DictStore()
    run_trial(task, config(), maps=store)
    computed = len(store.left)
    run_trial(task, config(alpha=0.1, lr=0.001, layers=LAYERS[1:]), maps=store)
    assert len(store.left) == computed


@pytest.mark.parametrize(
    "other",
    [
        *(
            {"batch_size": 9},
            {"augmentation": "none"},
            {"augmentation": "trivial"},
            {"random_erasing": 0.5},
            {"seed": 1},
        ),
        *({"mixup": 0.2}, {"mixup": 0.4}, {"cutmix": 0.4}, {"sampling": "balanced"}),
    ],
)
def test_trials_that_see_other_images_do_not(task, other):
    store = DictStore()
    run_trial(task, config(max_epochs=1), maps=store)
    run_trial(task, config(max_epochs=1, **other), maps=store)
    assert len(store.left) == len(set(store.left))
    assert len(store.left) > 5


def test_trials_that_differ_in_their_early_size_share_the_maps_of_the_late_epochs(task):
    store = DictStore()
    run_trial(task, config(), maps=store)
    early = len(store.left) // 2
    run_trial(task, config(early_size=0.5), maps=store)
    assert len(store.left) == len(set(store.left)) == 3 * early
    assert {key.epoch for key in store.left[2 * early :]} == {1}


def test_trials_of_one_sampling_share_maps_and_no_bit_changes(task):
    balanced = config(sampling="balanced", max_epochs=1)
    alone, store = numbers(run_trial(task, balanced)), DictStore()
    run_trial(task, config(sampling="balanced", max_epochs=1, alpha=0.1, logit_adjustment=1.0), maps=store)
    computed = len(store.left)
    assert numbers(run_trial(task, balanced, maps=store)) == alone
    assert len(store.left) == computed


def test_other_methods_do_not_ask(task):
    store = DictStore()
    run_trial(task, config(regularizer="l2"), maps=store)
    assert not store.asked


def test_maps_are_those_of_the_images_in_the_batch(task):
    """What is left for a step is the source's output for the augmented images of that step."""
    from delta_tune.data.augmentation import augment
    from delta_tune.data.batches import shuffled_batches
    from delta_tune.models.feature_maps import feature_maps

    store = DictStore()
    run_trial(task, config(max_epochs=1), maps=store)
    generator = torch.Generator().manual_seed(1)  # of seed 0, epoch 1
    batches = shuffled_batches(36, 8, generator)
    source = task.source_model(torch.device("cpu"), LAYERS)
    for step, indices in enumerate(batches):
        pixels = torch.from_numpy(task.dataset.train.images.batch(indices))
        images = augment(pixels, config().augmentation, task.backbone.preprocessing, generator)
        with torch.no_grad(), feature_maps(source, LAYERS) as maps:
            source(images)
        left = store.maps[StepKey(0, 8, config().image_settings(1), 1, step)]
        assert all(torch.equal(left[layer], maps[layer]) for layer in LAYERS)


def test_trials_of_other_networks_share_no_maps(task):
    store = DictStore()
    run_trial(task, config(max_epochs=1, backbone="one"), maps=store)
    computed = len(store.left)
    run_trial(task, config(max_epochs=1, backbone="other"), maps=store)
    assert len(store.left) == len(set(store.left)) == 2 * computed
    run_trial(task, config(max_epochs=1, backbone="other", alpha=0.1), maps=store)
    assert len(store.left) == 2 * computed
