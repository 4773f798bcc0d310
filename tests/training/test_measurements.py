from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from delta_tune.attention.layer_attention import LayerAttention, to_bytes
from delta_tune.config import TrialConfig
from delta_tune.filesystem.cache import Cache
from delta_tune.training import measurements
from delta_tune.training.measurements import Measurements
from delta_tune.training.workplace import ThisProcess, split_pieces

LAYERS = ("layer1.0.conv2", "layer3.0.conv1", "layer4.0.conv2")


@pytest.fixture
def fresh(task, tmp_path):
    """Nothing measured, and a cache of its own."""
    return with_cache(task, Cache(tmp_path / "cache"))


def with_cache(other, cache, seed=0):
    """Nothing measured on the source and data of another."""
    return Measurements(dataset=other.dataset, backbone=other.backbone, seed=seed, cache=cache)


def later(other):
    """Of a later study: it has the cache and nothing else."""
    return with_cache(other, other.cache)


def losses(measured):
    return {layer: each.losses.tolist() for layer, each in measured.attention["exact"].items()}


def factors_of(task, config):
    task.measurements.measure([config])
    return task.measurements.channel_factors(config, torch.device("cpu"))


def test_measure_computes_nothing_in_a_later_study(fresh, monkeypatch):
    configs = [TrialConfig(layers=LAYERS), TrialConfig(regularizer="l2_fe")]
    fresh.measure(configs)
    again = later(fresh)
    for name in ("measure_features", "fit_probe_head", "measure_layers"):
        monkeypatch.setattr(measurements, name, lambda *a, **k: pytest.fail("computed again"))
    said = []
    again.measure(configs, say=said.append)
    assert losses(again) == losses(fresh)
    assert again.mean_squares == fresh.mean_squares
    assert all(np.array_equal(again.features[split], fresh.features[split]) for split in ("train", "val"))
    assert any("losses of 3 layers found in" in sentence for sentence in said)


def test_measure_attention_of_other_layers_uses_what_is_known(fresh, monkeypatch):
    fresh.measure([TrialConfig(layers=LAYERS[1:])])
    asked = []
    measure_layers = measurements.measure_layers
    monkeypatch.setattr(
        measurements,
        "measure_layers",
        lambda images, layers, *a, **k: asked.append(layers) or measure_layers(images, layers, *a, **k),
    )
    again = later(fresh)
    again.measure([TrialConfig(layers=LAYERS, attention_temperature=t) for t in (1.0, 9.0)])
    for temperature in (1.0, 9.0):
        again.channel_factors(TrialConfig(layers=LAYERS[1:], attention_temperature=temperature), torch.device("cpu"))
    assert asked == [LAYERS[:1]]
    alone = with_cache(fresh, None)
    alone.measure([TrialConfig(layers=LAYERS)])
    assert losses(again) == losses(alone)


def test_interrupted_pass_goes_on_with_the_piece_that_it_was_at(fresh, monkeypatch):
    pieces, asked, measure_features = [range(0, 20), range(20, 36)], [], measurements.measure_features

    def interrupted(backbone, images, layers, device, part):
        asked.append(images.names)
        if asked == named:
            raise KeyboardInterrupt
        return measure_features(backbone, images, layers, device, part)

    named = [fresh.dataset.train.names[piece.start : piece.stop] for piece in pieces]
    monkeypatch.setattr(measurements, "measure_features", interrupted)
    whole = with_cache(fresh, None)
    whole.measure_source([TrialConfig(layers=LAYERS)], print, ThisProcess())
    monkeypatch.setattr(measurements, "split_pieces", lambda images: pieces)
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        fresh.measure_source([TrialConfig(layers=LAYERS)], print, ThisProcess())
    again = later(fresh)
    again.measure_source([TrialConfig(layers=LAYERS)], print, ThisProcess())
    assert asked == [*named, named[1]]
    np.testing.assert_allclose(again.features["train"], whole.features["train"], rtol=1e-5, atol=1e-6)
    assert again.mean_squares == pytest.approx(whole.mean_squares)
    assert len(list(Path(fresh.cache.location).iterdir())) == 2, "the pieces are gone, features and head are there"


def test_measure_recomputes_damaged_files_and_says_so(fresh):
    fresh.measure([TrialConfig(layers=LAYERS)])
    files = list(Path(fresh.cache.location).iterdir())
    assert len(files) == 5  # the source's features, the head, and a file per layer
    for file in files:
        file.write_bytes(b"no such format")
    again, said = later(fresh), []
    again.measure([TrialConfig(layers=LAYERS)], say=said.append)
    assert losses(again) == losses(fresh)
    assert sum("is damaged" in sentence for sentence in said) == 5
    third, said = later(fresh), []
    third.measure([TrialConfig(layers=LAYERS)], say=said.append)
    assert not any("damaged" in sentence for sentence in said)


def test_measure_goes_on_where_the_cache_cannot_be_written(fresh, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(fresh.cache, "write", full)
    said = []
    fresh.measure([TrialConfig(layers=LAYERS)], say=said.append)
    assert set(losses(fresh)) == set(LAYERS)
    assert sum("cannot be written (no space left on device)" in sentence for sentence in said) == 5


def test_measure_says_how_far_the_weights_can_be_trusted(fresh):
    said = []
    fresh.measure([TrialConfig(layers=LAYERS)], say=said.append)
    assert any("Split-half reliability of W: layer1.0.conv2" in sentence for sentence in said)
    for each in fresh.attention["exact"].values():
        assert each.images == 36
        assert -1 <= each.first_order_agreement <= 1
        assert each.reliability <= 1


def test_measure_exact_losses_are_those_of_a_masked_forward(fresh):
    """All 36 images are probed, so d is the plain mean over them."""
    from delta_tune.attention.measurement import probe_network
    from delta_tune.attention.probe_head import fit_probe_head
    from delta_tune.data.batches import evaluation_batches

    fresh.measure([TrialConfig(layers=LAYERS)])
    train, cpu = fresh.dataset.train, torch.device("cpu")
    head, _ = fit_probe_head(fresh.backbone, fresh.features["train"], train.labels, 3, 0, cpu)
    model = probe_network(fresh.backbone, head, 3)
    images = torch.cat(list(evaluation_batches(train, fresh.backbone.preprocessing, cpu)))
    targets, layer, channel = torch.tensor(train.labels), LAYERS[1], 5
    with torch.no_grad():
        intact = torch.nn.functional.cross_entropy(model(images), targets)

        def switch_off(module, inputs, output):
            output[:, channel] = 0

        model.get_submodule(layer).register_forward_hook(switch_off)
        off = torch.nn.functional.cross_entropy(model(images), targets)
    assert fresh.attention["exact"][layer].losses[channel] == pytest.approx((off - intact).item(), abs=1e-5)


def test_measure_only_what_the_methods_need(fresh):
    fresh.measure([TrialConfig(regularizer=each, head_start="random") for each in ("l2", "l2_sp")])
    assert not fresh.features
    assert fresh.head is None
    fresh.measure([TrialConfig(regularizer="delta_uniform", behavior_scale="raw")])
    assert fresh.head is not None
    assert fresh.features.keys() == {"train"}
    assert not fresh.attention


def test_fitted_head_is_found_by_a_later_study(fresh, monkeypatch):
    fresh.measure([TrialConfig(regularizer="l2")])
    again = later(fresh)
    monkeypatch.setattr(measurements, "fit_probe_head", lambda *a, **k: pytest.fail("fitted again"))
    again.measure([TrialConfig(regularizer="l2")])
    assert not again.features
    assert np.array_equal(again.head.logits, fresh.head.logits)
    assert all(np.array_equal(value, fresh.head.state[name]) for name, value in again.head.state.items())


@pytest.mark.parametrize("what", ["cut off", "another study's", "not finite", "other classes", "an array too many"])
def test_damaged_head_is_fitted_again(fresh, what):
    fresh.measure([TrialConfig(regularizer="l2")])
    name = f"{fresh.files.head_key()}.safetensors"
    arrays = safetensors.numpy.load(fresh.cache.read(name, 2**30))
    if what == "another study's":
        arrays["key"] = arrays["key"][::-1].copy()
    elif what == "not finite":
        arrays["logits"] = arrays["logits"] * np.nan
    elif what == "other classes":
        arrays["head/weight"] = arrays["head/weight"][:2].copy()
    elif what == "an array too many":
        arrays["head/extra"] = arrays["logits"]
    content = safetensors.numpy.save(arrays)
    fresh.cache.write(name, content[:-8] if what == "cut off" else content)
    again, said = later(fresh), []
    again.measure([TrialConfig(regularizer="l2")], say=said.append)
    assert any("is damaged" in sentence and "fitted again" in sentence for sentence in said)
    assert np.array_equal(again.head.logits, fresh.head.logits)


def test_channel_factors_are_uniform_and_mean_one_without_attention_in_raw_scale(task):
    config = TrialConfig(regularizer="delta_uniform", behavior_scale="raw")
    for factors in factors_of(task, config).values():
        torch.testing.assert_close(factors, torch.ones_like(factors))


def test_channel_factors_of_attention_are_mean_one_in_raw_scale(task):
    config = TrialConfig(regularizer="delta", behavior_scale="raw")
    for factors in factors_of(task, config).values():
        assert factors.mean().item() == pytest.approx(1.0, rel=1e-5)
        assert factors.std().item() > 0


def test_mean_squares_equal_a_plain_pass_over_the_training_images(task):
    from delta_tune.data.augmentation import center_crop
    from delta_tune.models.feature_maps import feature_maps

    task.measurements.measure([TrialConfig(regularizer="delta_uniform")])
    pixels = torch.from_numpy(task.dataset.train.images.batch(np.arange(len(task.dataset.train))))
    source = task.source_model(torch.device("cpu"), task.backbone.layers)
    with torch.no_grad(), feature_maps(source, task.backbone.layers) as maps:
        source(center_crop(pixels, task.backbone.preprocessing))
        for layer in task.backbone.layers:
            expected = maps[layer].double().square().mean().item()
            assert task.measurements.mean_squares[layer] == pytest.approx(expected, rel=1e-4)


def stranger(change):
    """Change each array of a file of features, and keep the rest."""

    def write(file):
        if file.suffix == ".safetensors":
            safetensors.numpy.save_file({k: change(k, v) for k, v in safetensors.numpy.load_file(file).items()}, file)

    return write


def other_layer(file):
    """Losses of the right layer, but of fewer channels."""
    if file.suffix == ".parquet":
        found = LayerAttention(losses=np.ones(3, dtype=np.float32), reliability=0.9, images=9)
        file.write_bytes(to_bytes("layer", found, file.stem))


def exchanged(file):
    """Each file under the name of another of its kind."""
    others = sorted(file.parent.glob(f"*{file.suffix}"))
    if file == others[0] and len(others) > 1:
        first, second = others[0].read_bytes(), others[1].read_bytes()
        others[0].write_bytes(second)
        others[1].write_bytes(first)


@pytest.fixture(scope="module")
def measured(task, tmp_path_factory):
    """The two last layers measured, and head features."""
    found = with_cache(task, Cache(tmp_path_factory.mktemp("measured") / "cache"))
    found.measure([TrialConfig(layers=LAYERS[1:]), TrialConfig(regularizer="l2_fe")])
    return found


@pytest.mark.parametrize(
    ("damage", "times"),
    [
        (stranger(lambda name, value: value[:, :3] if name == "features" else value), 2),
        (stranger(lambda name, value: value[:5] if name == "features" else value), 2),
        (stranger(lambda name, value: value * np.float32(np.nan) if name == "features" else value), 2),
        (stranger(lambda name, value: value.astype(np.float64) if name == "features" else value), 2),
        (stranger(lambda name, value: value[::-1].copy() if name == "key" else value), 3),
        (stranger(lambda name, value: np.ones(3) if name.startswith("mean") else value), 1),
        (other_layer, 2),
        (exchanged, 4),
    ],
)
def test_measure_again_what_a_stranger_put_into_the_cache(measured, tmp_path, damage, times):
    for file in shutil.copytree(measured.cache.location, tmp_path / "cache").iterdir():
        damage(file)
    again, said = with_cache(measured, Cache(tmp_path / "cache")), []
    again.measure([TrialConfig(layers=LAYERS[1:]), TrialConfig(regularizer="l2_fe")], say=said.append)
    assert losses(again) == losses(measured)
    assert again.mean_squares == measured.mean_squares
    assert all(np.array_equal(again.features[split], measured.features[split]) for split in ("train", "val"))
    assert sum("is damaged" in sentence for sentence in said) == times


def test_pieces_cover_a_split_once_in_whole_batches():
    pieces = split_pieces(9000)
    assert [image for piece in pieces for image in piece] == list(range(9000))
    assert all(piece.start % 2048 == 0 for piece in pieces)


def test_features_in_the_cache_are_read_once(fresh, monkeypatch):
    configs = [TrialConfig(regularizer="delta_uniform", head_start="random"), TrialConfig(regularizer="l2_fe")]
    fresh.measure(configs)
    again, read = later(fresh), []
    real = Cache.read
    monkeypatch.setattr(Cache, "read", lambda self, name, limit: read.append(name) or real(self, name, limit))
    assert again.knows_source(print)
    again.measure_source(configs[:1], print, ThisProcess())
    assert read == [f"{again.files.source_key(split)}.safetensors" for split in ("train", "val")]
    assert again.mean_squares == fresh.mean_squares
