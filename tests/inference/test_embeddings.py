from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import squeezenet1_1

from delta_tune.config import UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.data.images import read_square
from delta_tune.inference.ensemble import Ensemble, Flipped
from delta_tune.inference.model import Model, load

HEAD = "fc"


@pytest.fixture(scope="module")
def model(best):
    return load(best)


@pytest.fixture(scope="module")
def expected(best, task):
    """What reaches the head of the network: its outputs where the head is left out."""
    network = load(best).network
    network.set_submodule(HEAD, nn.Identity())
    test = task.dataset.test
    pixels = torch.from_numpy(test.images.batch(np.arange(len(test))))
    with torch.inference_mode():
        return network(center_crop(pixels, task.backbone.preprocessing)).numpy()


def test_embed_gives_the_inputs_of_the_head(model, task, expected):
    assert model.config["backbone"]["head"] == HEAD
    found = model.embed(task.dataset.test.names)
    assert found.dtype == np.float32
    assert expected.std(0).max() > 1e-3  # images differ
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_embeddings_of_several_networks_stand_one_after_the_other(best, task, model, expected):
    second = load(best).network
    with torch.no_grad():
        next(second.parameters()).mul_(-1)
    both = Model(Ensemble([model.network, second]), model.config)
    found = both.embed(task.dataset.test.names)
    np.testing.assert_allclose(found[:, : expected.shape[1]], expected, rtol=1e-4, atol=1e-5)
    alone = Model(second, model.config).embed(task.dataset.test.names)
    np.testing.assert_array_equal(found[:, expected.shape[1] :], alone)
    assert not np.allclose(alone, expected)


def test_embedding_of_a_model_with_mirror_images_is_that_of_the_image(best, task, expected):
    flipped = load(best, flip=True)
    assert isinstance(flipped.network, Flipped)
    np.testing.assert_allclose(flipped.embed(task.dataset.test.names), expected, rtol=1e-4, atol=1e-5)


def test_embed_averages_the_positions_of_a_convolution_that_is_the_head(model):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = squeezenet1_1(num_classes=3).eval()
    config = model.config | {"backbone": {"model": "squeezenet1_1", "head": "classifier.1"}}
    pixels = np.random.default_rng(0).integers(0, 255, (2, 70, 80, 3), dtype=np.uint8)
    squares = [read_square(Image.fromarray(each), model.preprocessing) for each in pixels]
    with torch.inference_mode():
        maps = network.features(center_crop(torch.from_numpy(np.stack(squares)), model.preprocessing))
    assert maps.shape[2] > 1
    np.testing.assert_allclose(Model(network, config).embed(pixels), maps.mean((2, 3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_embed_does_not_depend_on_the_batch_size(model, task, expected, batch_size):
    found = model.embed(task.dataset.test.names, batch_size=batch_size)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_embed_takes_what_predict_takes(model, task):
    pixels = np.array(Image.open(task.dataset.test.names[0]))
    ways = [pixels, torch.from_numpy(pixels).movedim(-1, 0), Image.fromarray(pixels), task.dataset.test.names[0]]
    found = [model.embed(given) for given in ways]
    assert {each.shape for each in found} == {(1, found[0].shape[1])}
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])


def test_embeddings_of_no_image_are_rows_of_the_usual_length(model, expected):
    assert model.embed([]).shape == (0, expected.shape[1])


def test_embed_names_an_image_that_it_cannot_read(model, task, tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"broken\.jpg cannot be read"):
        model.embed([task.dataset.test.names[0], tmp_path / "broken.jpg"])


def test_embed_refuses_batches_of_nothing(model, task):
    with pytest.raises(UserError, match="batch_size must be ≥ 1, but got 0"):
        model.embed(task.dataset.test.names, batch_size=0)


def test_embed_says_that_weights_are_damaged(best, task):
    broken = load(best)
    with torch.no_grad():
        next(broken.network.parameters()).fill_(float("inf"))
    with pytest.raises(UserError, match="no finite numbers"):
        broken.embed(task.dataset.test.names[0])
