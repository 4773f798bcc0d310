from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.small_networks import small_backbone
from PIL import Image

from delta_tune.data.augmentation import center_crop
from delta_tune.data.loading import load_dataset
from delta_tune.inference.ensemble import Ensemble, Flipped
from delta_tune.inference.model import load
from delta_tune.inference.model_folder import save_model
from delta_tune.models.backbones import build_source, build_target
from delta_tune.report import feature_map_images
from delta_tune.report.feature_map_images import CHANNELS, GAP, TILE
from delta_tune.training.task import Task


@pytest.fixture(scope="module")
def drawn(task, tmp_path_factory):
    """A task with attention of two layers, and what is drawn of a model that is the source still."""
    place = tmp_path_factory.mktemp("pictures")
    network = build_target(task.backbone, 3, torch.Generator().manual_seed(0))
    safetensors.torch.save_file(network.state_dict(), place / "weights.safetensors")
    save_model(task.backbone, task.dataset.classes, [place / "weights.safetensors"], {}, place / "best")
    rng = np.random.default_rng(1)
    losses = {layer: rng.normal(0, 0.5, count).astype(np.float32) for layer, count in (("layer1", 32), ("layer3", 48))}
    weights = {name: np.exp(each) / np.exp(each).sum() for name, each in losses.items()}
    feature_map_images.save_feature_map_images(
        task, weights, load(place / "best").network, place / "report" / "maps.parquet"
    )
    return weights, feature_map_images.read_feature_map_images(place / "report" / "maps.parquet")


def test_pictures_are_of_photos_of_different_classes_for_each_layer(drawn, task):
    _, pictures = drawn
    names = list(dict.fromkeys(each.image for each in pictures))
    label_of = dict(zip(task.dataset.val.names, task.dataset.val.labels.tolist(), strict=True))
    assert len({label_of[name] for name in names}) == len(names) == feature_map_images.PHOTOS
    assert [(each.image, each.layer) for each in pictures] == [(n, k) for n in names for k in ("layer1", "layer3")]


def test_channels_are_the_most_and_the_least_attended(drawn):
    attention, pictures = drawn
    for each in pictures:
        weights = attention[each.layer]
        order = sorted(range(len(weights)), key=lambda c: -weights[c])
        assert list(each.channels) == order[:CHANNELS] + order[-CHANNELS:]
        assert sorted(each.weights, reverse=True) == list(each.weights)
        assert each.weights[0] > 1 > each.weights[-1]


def test_pictures_show_the_maps_of_their_channels_stretched_to_their_range(drawn, task):
    _, pictures = drawn
    found = {}
    source = build_source(task.backbone)
    source.layer1.register_forward_hook(lambda module, args, output: found.update(maps=output.detach().clone()))
    picture = pictures[0]
    index = task.dataset.val.names.index(picture.image)
    with torch.no_grad():
        source(
            center_crop(torch.from_numpy(task.dataset.val.images.batch(np.array([index]))), task.backbone.preprocessing)
        )
    image = Image.open(io.BytesIO(picture.picture)).convert("RGBA").convert("RGB")
    assert image.size == (2 * CHANNELS * (TILE + GAP) - GAP, 2 * (TILE + GAP) - GAP)
    for across, channel in enumerate(picture.channels):
        values = found["maps"][0, channel].numpy()
        row, column = np.unravel_index(values.argmax(), values.shape)
        cell = TILE / np.array(values.shape)
        at = (across * (TILE + GAP) + int((column + 0.5) * cell[1]), int((row + 0.5) * cell[0]))
        assert sum(image.getpixel(at)) > 500, "the strongest place is bright"


def test_lower_row_is_the_models(drawn):
    _, pictures = drawn
    pixels = np.asarray(Image.open(io.BytesIO(pictures[0].picture)).convert("RGBA").convert("RGB"), dtype=int)
    np.testing.assert_array_equal(pixels[:TILE], pixels[TILE + GAP :])  # this model is the source still


def test_of_several_networks_the_first_is_drawn(drawn, task, tmp_path):
    attention, pictures = drawn
    others = [build_target(task.backbone, 3, torch.Generator()).eval() for _ in range(2)]
    for value in others[1].state_dict().values():
        value.zero_()
    feature_map_images.save_feature_map_images(task, attention, Flipped(Ensemble(others)), tmp_path / "maps.parquet")
    assert feature_map_images.read_feature_map_images(tmp_path / "maps.parquet") == pictures


def test_map_that_is_the_same_everywhere_is_dark():
    assert max(feature_map_images.map_tile(np.full((4, 4), 3.0)).getpixel((9, 9))) < 16


def test_nothing_is_drawn_without_attention(task, tmp_path):
    feature_map_images.save_feature_map_images(task, {}, torch.nn.Identity(), tmp_path / "maps.parquet")
    assert feature_map_images.read_feature_map_images(tmp_path / "maps.parquet") == []


@pytest.mark.parametrize("name", ["small_vit", "small_vit_registers", "small_swin"])
def test_tokens_are_drawn_as_the_square_that_they_are_of_the_image(name, image_folder, tmp_path):
    backbone = small_backbone(name)
    dataset = load_dataset(image_folder, preprocessing=backbone.preprocessing, seed=0)
    backbone = dataclasses.replace(backbone, preprocessing=dataset.preprocessing)
    network, layer = build_target(backbone, 3, torch.Generator().manual_seed(0)).eval(), backbone.layers[0]
    weights = np.random.default_rng(0).dirichlet(np.ones(backbone.channels[layer])).astype(np.float32)
    file = tmp_path / "report" / "maps.parquet"
    feature_map_images.save_feature_map_images(
        Task(dataset=dataset, backbone=backbone), {layer: weights}, network, file
    )
    found = []
    network.get_submodule(layer).register_forward_hook(lambda module, args, output: found.append(output))
    first = feature_map_images.read_feature_map_images(file)[0]
    row = dataset.val.names.index(first.image)
    with torch.no_grad():
        network(center_crop(torch.from_numpy(dataset.val.images.batch(np.array([row]))), backbone.preprocessing))
    side = 8 if name == "small_swin" else 4
    tokens = found[0].reshape(-1, len(weights))[-side * side :, first.channels[0]].reshape(side, side)
    expected = np.asarray(feature_map_images.map_tile(tokens.numpy()).convert("RGB"), dtype=int)
    drawn = np.asarray(Image.open(io.BytesIO(first.picture)).convert("RGB"), dtype=int)[:TILE, :TILE]
    assert np.abs(drawn - expected).max() < 40  # of 64 colours
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 4


def test_layer_whose_positions_are_not_in_order_is_not_drawn(image_folder, tmp_path):
    backbone = small_backbone("small_vit")
    dataset = load_dataset(image_folder, preprocessing=backbone.preprocessing, seed=0)
    layouts = {layer: dataclasses.replace(layout, in_order=False) for layer, layout in backbone.layouts.items()}
    backbone = dataclasses.replace(backbone, preprocessing=dataset.preprocessing, layouts=layouts)
    network, layer = build_target(backbone, 3, torch.Generator().manual_seed(0)).eval(), backbone.layers[0]
    weights = np.full(32, 1 / 32, np.float32)
    task = Task(dataset=dataset, backbone=backbone)
    feature_map_images.save_feature_map_images(task, {layer: weights}, network, tmp_path / "report" / "maps.parquet")
    assert feature_map_images.read_feature_map_images(tmp_path / "report" / "maps.parquet") == []
