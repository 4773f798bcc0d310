"""Which classes are explained, and what attended channels see."""

import numpy as np
import pytest
import torch
from helpers import studies

from delta_tune.data.augmentation import center_crop
from delta_tune.data.images import open_picture, stored_square
from delta_tune.explanation.attended_channels import CHANNELS, attended_channels, attention_beside
from delta_tune.explanation.explain import MOST_LABELS, explain, labels_to_explain, layer_of
from delta_tune.explanation.heat_maps import heat_maps
from delta_tune.inference.ensemble import combine
from delta_tune.inference.model import Prediction, load
from delta_tune.results.layout import ATTENTION_FILE


def prediction(*shares, unsure=False, labels=("a",)):
    return Prediction("a", shares[0], dict(zip("abcdefgh", shares, strict=False)), unsure=unsure, labels=labels)


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (prediction(0.9, 0.08, 0.02), ("a",)),
        (prediction(0.6, 0.3, 0.1), ("a", "b")),
        (prediction(0.6, 0.29, 0.11), ("a",)),
        (prediction(0.8, 0.05, 0.15, unsure=True), ("a", "c")),
        (prediction(1.0), ("a",)),
    ],
)
def test_second_class_is_explained_where_the_first_one_is_doubtful(given, labels):
    assert labels_to_explain(given) == labels


@pytest.mark.parametrize(
    ("there", "labels"), [((), ("a",)), (("c", "b"), ("c", "b")), (tuple("abcdef"), tuple("abcd"))]
)
def test_of_several_labels_those_that_are_there_are_explained(there, labels):
    assert MOST_LABELS == 4
    assert labels_to_explain(prediction(0.6, 0.5, labels=there), several=True) == labels


@pytest.fixture(scope="module")
def seen(best, image_folder):
    """A model, squares of four images, their predictions."""
    model, files = load(best), sorted((image_folder / "test").rglob("*.png"))[::4]
    squares = np.stack([stored_square(open_picture(file), model.preprocessing) for file in files])
    return model, squares, model.predict(files, min_confidence=1.0)


def test_explanation_has_the_maps_of_its_labels(seen):
    model, squares, predictions = seen
    layer = layer_of(model)
    found = explain(model, squares, predictions, layer, {})
    images = center_crop(torch.from_numpy(squares), model.preprocessing)
    for position, (each, said) in enumerate(zip(found, predictions, strict=True)):
        assert tuple(each.maps) == labels_to_explain(said)
        assert len(each.maps) == 2
        for label, shown in each.maps.items():
            number = model.classes.index(label)
            (wanted,) = heat_maps(model.network, layer, images[[position]], [number], model.kind)
            np.testing.assert_allclose(shown, wanted, atol=1e-4)
        assert each.channels == ()


def test_channels_are_those_with_the_largest_weights_and_their_maps(seen):
    model, squares, _ = seen
    images = center_crop(torch.from_numpy(squares), model.preprocessing)
    attention = {"layer1": np.random.default_rng(0).dirichlet(np.ones(32)).astype(np.float32)}
    maps = []
    handle = model.network.layer1.register_forward_hook(lambda module, args, output: maps.append(output.detach()))
    with torch.no_grad():
        model.network(images)
    handle.remove()
    found = attended_channels(model.network, attention, images)
    order = sorted(range(32), key=lambda channel: -attention["layer1"][channel])[:CHANNELS]
    for position, (each,) in enumerate(found):
        assert each.layer == "layer1"
        assert list(each.channels) == order
        np.testing.assert_allclose(each.weights, attention["layer1"][order] * 32, rtol=1e-6)
        np.testing.assert_allclose(each.maps, maps[0][position, order].numpy(), rtol=1e-5)


def test_attention_of_another_network_is_left_out(seen):
    model, squares, _ = seen
    images = center_crop(torch.from_numpy(squares), model.preprocessing)
    strange = {"nowhere": np.full(4, 0.25, dtype=np.float32), "layer1": np.full(7, 1 / 7, dtype=np.float32)}
    assert attended_channels(model.network, strange, images) == [()] * len(images)


def test_of_several_networks_the_channels_of_the_first_are_shown(seen):
    model, squares, _ = seen
    images = center_crop(torch.from_numpy(squares), model.preprocessing)
    attention = {"layer1": np.full(32, 1 / 32, dtype=np.float32)}
    alone = attended_channels(model.network, attention, images)
    both = attended_channels(combine([model.network, torch.nn.Identity()], flip=True), attention, images)
    for (first,), (second,) in zip(alone, both, strict=True):
        np.testing.assert_array_equal(first.maps, second.maps)


@pytest.mark.parametrize("part", ["", "best"])
def test_attention_is_found_in_the_study_of_a_model(tmp_path, part):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.json").write_text("{}")
    studies.attention_file(tmp_path)
    assert (tmp_path / ATTENTION_FILE).exists()
    assert {layer: len(weights) for layer, weights in attention_beside(tmp_path / part).items()} == {
        "layer0": 16,
        "layer1": 32,
    }


def test_model_alone_and_model_at_an_address_have_no_attention_beside_them(tmp_path):
    assert attention_beside(tmp_path) == attention_beside("s3://bucket/study") == {}
