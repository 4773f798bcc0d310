from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from pyarrow import fs

from delta_tune.config import UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.data.images import stored_square
from delta_tune.filesystem.uris import to_pyarrow_uri
from delta_tune.inference.model import Model, load
from delta_tune.inference.model_folder import save_model
from delta_tune.models.architectures import build_architecture
from delta_tune.models.backbones import build_target
from delta_tune.results.layout import HEAT_MAPS_FILE, PREDICTIONS_FILE


def test_load_takes_a_study_at_an_address(best, task, bucket):
    fs.copy_files(str(best), to_pyarrow_uri(f"s3://{bucket}/results/a study/best"))
    loaded = load(f"s3://{bucket}/results/a study")
    assert loaded.predict(task.dataset.test.names) == load(best).predict(task.dataset.test.names)
    with pytest.raises(UserError, match=f"^There is no model in s3://{bucket}/other"):
        load(f"s3://{bucket}/other")


def test_load_predicts_as_the_network_that_was_trained(best, task):
    test = task.dataset.test
    network = build_target(task.backbone, 3, torch.Generator()).eval()
    network.load_state_dict(safetensors.torch.load_file(best / "model.safetensors"))
    with torch.no_grad():
        pixels = torch.from_numpy(test.images.batch(np.arange(len(test))))
        expected = network(center_crop(pixels, task.backbone.preprocessing)).softmax(1).numpy()
    predictions = load(best).predict(test.names)
    assert [p.label for p in predictions] == [task.dataset.classes[k] for k in expected.argmax(1)]
    np.testing.assert_allclose([p.probability for p in predictions], expected.max(1), rtol=1e-4)


def test_predict_takes_paths_bytes_and_pil_images_alike(best, task):
    name = task.dataset.test.names[0]
    model = load(best)
    ways = [name, Path(name), Path(name).read_bytes(), Image.open(name)]
    assert len({p.probability for p in model.predict(ways)}) == 1
    assert model.predict(name) == model.predict([name])


def test_predict_takes_arrays_and_tensors_as_it_takes_the_image(best, task):
    images = [Image.open(name) for name in task.dataset.test.names[:2]]
    batch = np.stack([np.asarray(image) for image in images])
    model = load(best)
    expected = model.predict(images)
    tensor = torch.from_numpy(batch).movedim(-1, 1)
    for given in (batch, list(batch), tensor, [*tensor], [batch[:1], images[1]]):
        assert model.predict(given) == expected
    assert model.predict(batch[0]) == model.predict(images[:1])  # alone: batches of other sizes round otherwise


def test_predict_takes_a_grey_array_as_the_grey_image(best):
    grey = np.random.default_rng(0).integers(0, 255, (70, 80), dtype=np.uint8)
    model = load(best)
    assert model.predict(grey) == model.predict(Image.fromarray(grey))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((8, 8, 3)), r"an array must be uint8 \(H, W, 3\).* got float64 \(8, 8, 3\); give pixels"),
        (np.zeros((3, 8, 8), np.uint8), r"got uint8 \(3, 8, 8\)"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"a tensor must be uint8 \(3, H, W\).* got torch.uint8 \(8, 8, 3\)"),
        (torch.zeros(3, 8, 8), r"got torch.float32 \(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), r"got uint8 \(0, 8, 3\)"),
    ],
)
def test_predict_refuses_arrays_that_may_mean_something_else(best, given, said):
    with pytest.raises(UserError, match=said):
        load(best).predict(given)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_predict_does_not_depend_on_the_batch_size(best, task, batch_size):
    model = load(best)
    expected = [model.predict(name)[0].probability for name in task.dataset.test.names]
    found = [p.probability for p in model.predict(task.dataset.test.names, batch_size=batch_size)]
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_predict_refuses_batches_of_nothing(best, task, batch_size):
    with pytest.raises(UserError, match=f"batch_size must be ≥ 1, but got {batch_size}"):
        load(best).predict(task.dataset.test.names, batch_size=batch_size)


def test_predict_gives_every_class_its_probability(best, task):
    (prediction,) = load(best).predict([task.dataset.test.names[0]])
    assert tuple(prediction.probabilities) == task.dataset.classes
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_predict_names_an_image_it_cannot_read(best, tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"a\.jpg cannot be read"):
        load(best).predict(tmp_path / "a.jpg")


def test_another_model_takes_the_place_of_what_was_told_of_the_last_one(best, task, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / PREDICTIONS_FILE).touch()
    (tmp_path / HEAT_MAPS_FILE).touch()
    save_model(task.backbone, task.dataset.classes, [best / "model.safetensors"], {}, tmp_path / "best")
    assert not (tmp_path / PREDICTIONS_FILE).exists()
    assert not (tmp_path / HEAT_MAPS_FILE).exists()


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_predict_reports_an_unreadable_image_in_its_row(best, task, batch_size):
    good = [Path(name).read_bytes() for name in task.dataset.test.names[:3]]
    model = load(best)
    rows = model.predict([good[0], b"no image", *good[1:], b""], batch_size=batch_size)
    expected = [p.label for p in model.predict(good)]
    assert [row.label for row in rows] == [expected[0], None, *expected[1:], None]
    assert rows[1].error.startswith("the image at index 1 cannot be read as an image (empty, or in none of the formats")
    assert (rows[4].probability, rows[4].probabilities) == (None, {})
    assert rows[0].error is None


def test_predict_of_unreadable_images_only(best, tmp_path):
    (row,) = load(best).predict([tmp_path / "missing.jpg"])
    assert row.error.startswith(f"{tmp_path}/missing.jpg cannot be read as an image (No such file")


def test_flip_averages_the_image_and_its_mirror_image(best, task):
    test, model = task.dataset.test, load(best)
    pixels = torch.from_numpy(test.images.batch(np.arange(1)))
    image = center_crop(pixels, task.backbone.preprocessing)
    with torch.no_grad():
        one, other = (model.network(view).softmax(1)[0].numpy() for view in (image, image.flip(3)))
    assert one != pytest.approx(other, rel=1e-3)
    (found,) = load(best, flip=True).predict(test.names[0])
    np.testing.assert_allclose(list(found.probabilities.values()), (one + other) / 2, rtol=1e-4)


def test_predictions_below_the_confidence_are_unsure(best, task):
    model, names = load(best), task.dataset.test.names
    plain = model.predict(names)
    middle = sorted(p.probability for p in plain)[len(plain) // 2]
    found = model.predict(names, min_confidence=middle)
    assert [p.unsure for p in found] == [p.probability < middle for p in plain]
    assert [(p.label, p.probabilities) for p in found] == [(p.label, p.probabilities) for p in plain]
    assert not any(p.unsure for p in plain)


def test_auto_is_the_confidence_that_the_study_found(best, task):
    known = {"below": 0.6, "refused": 0.1, "accuracy": 0.9, "images": 50}
    model, names = load(best), task.dataset.test.names
    known_model = Model(model.network, model.config | {"unsure": known})
    assert known_model.predict(names, min_confidence="auto") == model.predict(names, min_confidence=0.6)


def test_auto_needs_what_the_study_found(best, task):
    with pytest.raises(UserError, match=r"does not know below .*; give a number from 0 to 1 instead of auto"):
        load(best).predict(task.dataset.test.names, min_confidence="auto")


@pytest.mark.parametrize("given", [-0.1, 1.1, float("nan"), "often"])
def test_confidence_outside_its_range_is_refused(best, task, given):
    with pytest.raises(UserError, match=f'min_confidence must be a number from 0 to 1, or "auto", but got {given!r}'):
        load(best).predict(task.dataset.test.names, min_confidence=given)


def test_unreadable_image_is_not_unsure(best):
    (row,) = load(best).predict([b"no image"], min_confidence=1.0)
    assert row.error
    assert not row.unsure


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_load_refuses_a_device_that_is_not_there(best, device):
    with pytest.raises(UserError, match=f"^The device {device} cannot be used .*; give cpu, or cuda where"):
        load(best, device)


def test_load_takes_the_study_folder_too(best):
    assert load(best.parent).classes == load(best).classes


def test_load_refuses_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match="no model"):
        load(tmp_path)


def test_best_config_has_all_that_another_program_needs(best, task):
    config = json.loads((best / "config.json").read_text())
    assert config["classes"] == list(task.dataset.classes)
    assert config["backbone"]["model"] == task.backbone.model
    assert config["preprocessing"]["image_size"] == 64
    assert config["config"]["regularizer"] == "l2"
    assert 0 <= config["metrics"]["val_accuracy"] <= 1


@pytest.fixture
def five(best, tmp_path):
    """A model of five channels, of 12 bits, that sees whole images."""
    config = json.loads((best / "config.json").read_text())
    told = config["preprocessing"] | {"mean": [0.5] * 5, "std": [0.2] * 5}
    told |= {"resize": "letterbox", "channels": 5, "white": 4095.0}
    backbone = config["backbone"]
    network = build_architecture(backbone["model"], backbone["head"], len(config["classes"]), channels=5)
    torch.manual_seed(0)
    state = {
        name: torch.rand(value.shape) / 10 if value.is_floating_point() else torch.zeros_like(value)
        for name, value in network.state_dict().items()
    }
    (tmp_path / "best").mkdir()
    safetensors.torch.save_file(state, tmp_path / "best" / "model.safetensors")
    (tmp_path / "best" / "config.json").write_text(json.dumps(config | {"preprocessing": told}))
    return load(tmp_path)


def test_predict_takes_arrays_and_files_of_the_models_channels(five, tmp_path):
    values = np.random.default_rng(0).integers(0, 5000, (30, 90, 5), dtype=np.uint16)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "first.npy", np.moveaxis(values, 2, 0))
    ways = [tmp_path / "a.npy", tmp_path / "first.npy", values, values.astype(np.float32)]
    ways += [torch.from_numpy(values.astype(np.int32)).movedim(2, 0), values[None]]
    assert len({p.probability for p in five.predict(ways)}) == 1
    pixels = np.floor(np.minimum(values, 4095) * (255 / 4095) + 0.5).astype(np.uint8)
    with torch.no_grad():
        images = center_crop(torch.from_numpy(stored_square(pixels, five.preprocessing)[None]), five.preprocessing)
        expected = five.network(images).softmax(1).max()
    assert five.predict(pixels).pop().probability == pytest.approx(float(expected))
    assert five.predict(values).pop().probability == pytest.approx(float(expected))


def test_predict_says_which_arrays_a_model_of_five_channels_takes(five):
    with pytest.raises(
        UserError, match=r"must be of numbers \(H, W, 5\), or \(N, H, W, 5\), but got uint8 \(8, 8, 3\)"
    ):
        five.predict(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="it has the colours RGB, not 5 channels"):
        five.predict(Image.new("RGB", (9, 9)))


def test_load_refuses_means_of_other_channels(best, tmp_path):
    config = json.loads((best / "config.json").read_text())
    config["preprocessing"] |= {"channels": 5}
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="mean and std do not have 5 numbers"):
        load(tmp_path)
