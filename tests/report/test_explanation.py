"""The page of explanations."""

import base64
import html
import io
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers import browser
from PIL import Image

from delta_tune.explanation import explain as explain_module
from delta_tune.explanation.examined_images import examine
from delta_tune.explanation.nearest import NearestImage, NearestImages
from delta_tune.inference.model import load
from delta_tune.report.explanation import write_explanations

HOSTILE = "<img src=x onerror=alert(1)>\"'&\u202ea.png"
NO_NEAREST = "No image of training is <known>."


def alike(count, images=(), note=""):
    """The same nearest images for each of `count` images."""
    return NearestImages((tuple(images),) * count, note, (None,) * count)


class Elements(HTMLParser):
    """The elements of a page and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def model(best):
    return load(best)


@pytest.fixture(scope="module")
def photos(image_folder, tmp_path_factory):
    """Three images, the second of which cannot be read, and the third has a hostile name."""
    place = tmp_path_factory.mktemp("photos")
    names = [place / "a.png", place / "damaged.png", place / HOSTILE.replace("/", "")]
    shutil.copy(image_folder / "test" / "red" / "0.png", names[0])
    names[1].write_bytes(b"x")
    shutil.copy(image_folder / "test" / "blue" / "1.png", names[2])
    return names


ATTENTION = {"layer1": np.linspace(1, 2, 32, dtype=np.float32) / 48}


def page_of(model, photos, file, *, least=None, attention=None, nearest=(), note=NO_NEAREST, most=9, **more):
    examined = examine(model, photos, min_confidence=least, num_shown=most)
    found = alike(len(photos), nearest, note)
    write_explanations(file, model, photos, examined, attention=attention or {}, nearest=found, **more)
    return file.read_text()


def words(text):
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", text[text.index("<body>") :])).split())


def test_page_shows_each_image_its_map_and_its_probabilities(model, photos, tmp_path):
    text = page_of(model, photos[:1], tmp_path / "why.html", attention=ATTENTION)
    (said,) = model.predict(photos[:1])
    shown = words(text)
    for label, probability in said.probabilities.items():
        assert f"{label} {100 * probability:.1f}\u00a0%".replace("\u00a0", " ") in shown
        assert f'style="width: {100 * probability:.2f}%"' in text
    images = [each["src"] for each in Elements(text).of("img")]
    assert len(images) >= 3  # the picture, its map, channels
    for source in images:
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).verify()
    assert "layer1: 31" in shown
    assert f"{explain_module.layer_of(model).side} × {explain_module.layer_of(model).side} positions" in shown


def test_page_needs_nothing_from_outside(model, photos, tmp_path):
    elements = Elements(page_of(model, photos, tmp_path / "why.html", attention=ATTENTION))
    assert not elements.of("script")
    sources = [each[key] for _, each in elements.found for key in ("src", "href") if key in each]
    assert all(source.startswith("data:") for source in sources)


def test_hostile_names_are_text(model, photos, tmp_path):
    hostile = "</strong><script>alert(1)</script>"
    like = NearestImage(HOSTILE, hostile, 0.9, b"\xff\xd8\xff")
    config = model.config | {"classes": [f"{hostile}{name}" for name in model.classes]}
    other = type(model)(model.network, config)
    elements = Elements(page_of(other, photos, tmp_path / "why.html", nearest=[like]))
    assert not elements.of("script")
    assert not any(key.startswith("on") for _, each in elements.found for key in each)
    assert "\u202e" not in (tmp_path / "why.html").read_text()


def test_damaged_image_has_its_sentence_and_the_others_their_pictures(model, photos, tmp_path):
    text = page_of(model, photos, tmp_path / "why.html")
    assert len(Elements(text).of("article")) == 3
    assert f"{photos[1]} cannot be read as an image" in words(text)
    assert "3 images, 1 that cannot be read" in words(text)


def test_unsure_answer_says_so_and_has_a_second_map(model, photos, tmp_path):
    sure = page_of(model, photos[:1], tmp_path / "a.html", least=0.0)
    unsure = page_of(model, photos[:1], tmp_path / "b.html", least=1.0)
    assert sure.count('alt="heat map for') == 1
    assert unsure.count('alt="heat map for') == 2
    assert "1 image, 1 unsure" in words(unsure)
    assert "unsure" not in words(sure).partition("what the network sees")[2]


def test_map_without_evidence_says_so(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(
        explain_module,
        "heat_maps",
        lambda network, layer, images, classes, kind: [np.zeros(images.shape[2:], dtype=np.float32) for _ in classes],
    )
    (said,) = model.predict(photos[:1])
    text = page_of(model, photos[:1], tmp_path / "why.html")
    assert f"nothing in the image speaks for {said.label}" in words(text)


def test_more_images_than_a_page_holds_are_told(model, photos, tmp_path):
    text = page_of(model, photos, tmp_path / "why.html", most=2)
    assert len(Elements(text).of("article")) == 2
    assert "A page shows 2 images; 1 other image is left out." in words(text)


def test_similar_training_images_are_shown_or_their_absence_is_explained(model, photos, tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    like = NearestImage("train/a.png", "red-ish", 0.875, stream.getvalue())
    text = page_of(model, photos[:1], tmp_path / "why.html", nearest=[like, like], note="")
    assert words(text).count("red-ish 0.88") == 2
    assert base64.b64encode(stream.getvalue()).decode() in text
    assert "No image of training is <known>." in words(page_of(model, photos[:1], tmp_path / "why.html"))


def test_missing_attention_is_explained(model, photos, tmp_path):
    without = words(page_of(model, photos[:1], tmp_path / "why.html"))
    assert "There are no channels of attention" in without
    assert "no channels of attention" not in words(
        page_of(model, photos[:1], tmp_path / "why.html", attention=ATTENTION)
    )


def test_number_of_classes_is_a_matter_of_choice(model, photos, tmp_path):
    assert page_of(model, photos[:1], tmp_path / "why.html", classes=1).count('style="width') == 1
    assert page_of(model, photos[:1], tmp_path / "why.html", classes=9).count('style="width') == 3


def test_model_of_several_labels_is_explained_label_by_label(label_task, tmp_path):
    import safetensors.torch
    import torch

    from delta_tune.inference.model_folder import save_model
    from delta_tune.labels.several_labels import SEVERAL_LABELS
    from delta_tune.models.backbones import build_target

    network = build_target(label_task.backbone, 3, torch.Generator().manual_seed(0))
    safetensors.torch.save_file(network.state_dict(), tmp_path / "w.safetensors")
    origin = {"config": {}, "metrics": {}, "temperature": 1.5, "thresholds": [0.0, 0.0, 1.0]}
    classes = label_task.dataset.classes
    save_model(label_task.backbone, classes, [tmp_path / "w.safetensors"], origin, tmp_path / "best", SEVERAL_LABELS)
    model, photo = load(tmp_path / "best"), tmp_path / "photo.png"
    Image.fromarray(label_task.dataset.test.images.batch(np.array([0]))[0]).save(photo)
    text = page_of(model, [photo], tmp_path / "why.html")
    assert {label for label in classes if f'alt="heat map for {label}"' in text} == set(classes[:2])
    assert "Each label that the model finds has a map" in words(text)
    assert "not been calibrated" not in words(text)
    none = load(tmp_path / "best")
    none.thresholds = [1.0] * 3
    assert page_of(none, [photo], tmp_path / "none.html").count('alt="heat map for') == 1
    assert "none of the labels" in words((tmp_path / "none.html").read_text())


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_browser_shows_the_page_without_a_complaint_and_without_scrolling_aside(model, photos, tmp_path, width):
    if browser.CHROMIUM is None or browser.DRIVER is None:
        pytest.skip("needs chromium and chromium-driver")
    page_of(model, photos, tmp_path / "why.html", least=1.0, attention=ATTENTION)
    with browser.chromium() as page:
        opened = page.open(tmp_path / "why.html", width=width)
        assert opened.said == []
        assert opened.run("return [...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert opened.run("return document.documentElement.scrollWidth <= innerWidth")
