"""Heat maps of a report: which images they are of, and that they are the final model's."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.hostile import columns
from helpers.studies import add_trial, study_json, tables_in
from PIL import Image

from delta_tune.config import UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.data.pictures import crop_stored_square
from delta_tune.explanation.explain import layer_of
from delta_tune.explanation.heat_maps import heat_maps
from delta_tune.inference.model import load
from delta_tune.labels.several_labels import SEVERAL_LABELS
from delta_tune.models.backbones import build_target
from delta_tune.report import heat_map_images as module
from delta_tune.report.heat_map_drawing import draw_heat_map, to_jpeg
from delta_tune.report.heat_map_images import PICTURE_SIZE, read_heat_map_images, save_heat_map_images
from delta_tune.report.page import write_report
from delta_tune.report.predictions import save_predictions, split_logits
from delta_tune.results.layout import HEAT_MAPS_FILE, PREDICTIONS_FILE

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def drawn(best, task, tmp_path_factory):
    """A model, its probabilities of the test split, and what is drawn of it."""
    model, file = load(best), tmp_path_factory.mktemp("report") / "maps" / "heat_maps.parquet"
    logits = split_logits(task, task.dataset.test, model.network).clone()
    logits[:4] = logits[:4].roll(1, 1)  # some mistakes
    save_heat_map_images(task, "test", logits, model.network, file)
    return model, logits.softmax(1).numpy(), file


def rows_of(drawn, task):
    """Group → (position, what is drawn), in order."""
    position = {name: number for number, name in enumerate(task.dataset.test.names)}
    return {
        group: [(position[each.image], each) for each in images]
        for group, images in read_heat_map_images(drawn[2]).items()
    }


def test_right_ones_are_the_surest_of_different_classes(drawn, task):
    _, probabilities, _ = drawn
    labels = task.dataset.test.labels
    best_of = {}
    for position in sorted(range(len(labels)), key=lambda n: -probabilities[n].max()):
        if probabilities[position].argmax() == labels[position]:
            best_of.setdefault(labels[position], position)
    found = rows_of(drawn, task)["right"]
    assert [position for position, _ in found] == list(best_of.values())
    for position, each in found:
        assert [label for label, _, _ in each.maps] == [each.true] == [task.dataset.classes[labels[position]]]


def test_wrong_ones_are_the_surest_and_have_a_map_of_the_true_class_too(drawn, task):
    _, probabilities, _ = drawn
    labels, classes = task.dataset.test.labels, task.dataset.classes
    wrong = [n for n in range(len(labels)) if probabilities[n].argmax() != labels[n]]
    found = rows_of(drawn, task)["wrong"]
    expected = sorted(wrong, key=lambda n: -probabilities[n].max())[: module.IMAGES]
    assert [position for position, _ in found] == expected
    for position, each in found:
        said = classes[probabilities[position].argmax()]
        assert [label for label, _, _ in each.maps] == [said, each.true]
        wanted = [probabilities[position].max(), probabilities[position, labels[position]]]
        assert [share for _, share, _ in each.maps] == pytest.approx(wanted, rel=1e-6)


def test_doubtful_ones_have_the_closest_second_class_and_a_map_of_it(drawn, task):
    _, probabilities, _ = drawn
    found = rows_of(drawn, task)
    others = {position for group in ("right", "wrong") for position, _ in found[group]}
    ranked = np.sort(probabilities, axis=1)
    lead = ranked[:, -1] - ranked[:, -2]
    expected = [n for n in np.argsort(lead, kind="stable").tolist() if n not in others][: module.IMAGES]
    assert [position for position, _ in found["doubtful"]] == expected
    for position, each in found["doubtful"]:
        order = np.argsort(-probabilities[position])[:2]
        assert [label for label, _, _ in each.maps] == [task.dataset.classes[k] for k in order]


def test_maps_are_those_of_the_model(drawn, task):
    model = drawn[0]
    layer = layer_of(model)
    for position, each in (pair for pairs in rows_of(drawn, task).values() for pair in pairs):
        square = task.dataset.test.images.batch(np.array([position]))
        seen = crop_stored_square(square[0], model.preprocessing)
        seen = seen.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BICUBIC)
        assert each.picture == to_jpeg(seen)
        images = center_crop(torch.from_numpy(square), model.preprocessing)
        for label, _, picture in each.maps:
            (wanted,) = heat_maps(model.network, layer, images, [model.classes.index(label)], model.kind)
            expected = Image.open(io.BytesIO(to_jpeg(draw_heat_map(seen, wanted))))
            shown = Image.open(io.BytesIO(picture))
            difference = np.asarray(shown, dtype=float) - np.asarray(expected, dtype=float)
            assert np.abs(difference).mean() < 1  # other batches round otherwise


def test_of_several_labels_one_is_drawn_and_thresholds_count(label_task, tmp_path):
    network = build_target(label_task.backbone, 3, torch.Generator().manual_seed(0)).eval()
    test = label_task.dataset.test
    labels, thresholds = np.asarray(test.labels), [0.2, 0.5, 0.7]
    probabilities = np.random.default_rng(0).uniform(0.02, 0.98, labels.shape).astype(np.float32)
    logits = torch.logit(torch.from_numpy(probabilities))
    save_heat_map_images(label_task, "test", logits, network, tmp_path / "maps.parquet", thresholds=thresholds)
    found = read_heat_map_images(tmp_path / "maps.parquet")
    position = {name: number for number, name in enumerate(test.names)}
    number = {name: k for k, name in enumerate(label_task.dataset.classes)}
    assert found["wrong"]
    for group, images in found.items():
        for each in images:
            ((label, share, _),) = each.maps
            row, k = position[each.image], number[label]
            assert share == pytest.approx(probabilities[row, k], abs=1e-5)
            is_right = all((probabilities[row] >= thresholds) == (labels[row] > 0))
            assert group == "doubtful" or is_right == (group == "right")
            if group == "wrong":
                assert k == np.abs(probabilities[row] - labels[row]).argmax()
            if group == "doubtful":
                assert k == np.abs(probabilities[row] - thresholds).argmin()


def test_model_that_errs_never_has_no_wrong_ones(task, best, tmp_path):
    logits = 9 * torch.eye(3)[torch.from_numpy(np.array(task.dataset.test.labels))]
    save_heat_map_images(task, "test", logits, load(best).network, tmp_path / "maps.parquet")
    assert list(read_heat_map_images(tmp_path / "maps.parquet")) == ["right", "doubtful"]


def test_nothing_is_drawn_without_the_package(task, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "can_draw", lambda: False)
    save_heat_map_images(task, "test", torch.zeros(15, 3), torch.nn.Identity(), tmp_path / "maps.parquet")
    assert read_heat_map_images(tmp_path / "maps.parquet") == {}


@pytest.mark.parametrize("name", list(module.COLUMNS))
def test_damaged_file_is_refused_by_its_name(drawn, tmp_path, name):
    table, file = pq.read_table(drawn[2]), tmp_path / "heat_maps.parquet"
    refused = 0
    for values in (*columns(len(table)).values(), None):
        changed = table.drop_columns([name])
        pq.write_table(changed if values is None else changed.append_column(name, values), file)
        try:
            read_heat_map_images(file)
        except UserError as error:
            refused += "heat_maps.parquet is damaged" in str(error)
    assert refused >= 10


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.scripts, self.events, self.ids = 0, [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.events += [key for key, _ in attributes if key.startswith("on")]
        self.ids += [value for key, value in attributes if key == "id"]


@pytest.fixture
def folder(tmp_path, task):
    """A study with predictions."""
    study_json(tmp_path)
    tables = tables_in(tmp_path)
    add_trial(tables, 0, "completed")
    tables.write()
    save_predictions(task, "test", torch.eye(3).repeat(5, 1), tmp_path / PREDICTIONS_FILE)
    return tmp_path


def test_report_has_a_section_only_if_there_are_maps(drawn, folder):
    assert "looks" not in Elements(write_report(folder).read_text()).ids
    (folder / HEAT_MAPS_FILE).write_bytes(drawn[2].read_bytes())
    text = write_report(folder).read_text()
    assert "looks" in Elements(text).ids
    assert all(heading in text for heading in ("Right and sure", "Wrong and sure", "In doubt"))
    assert text.count('alt="heat map for') == len(pq.read_table(drawn[2]))


def test_hostile_names_are_text(drawn, folder):
    rows = pq.read_table(drawn[2]).to_pylist()
    before = Elements(write_report(folder).read_text())
    hostile = [row | dict.fromkeys(("image", "true", "label"), HOSTILE) for row in rows]
    pq.write_table(pa.Table.from_pylist(hostile), folder / HEAT_MAPS_FILE)
    found = Elements(write_report(folder).read_text())
    assert (found.scripts, found.events) == (before.scripts, [])


def test_kind_of_the_labels_reaches_the_maps(label_task, tmp_path, monkeypatch):
    kinds = []
    monkeypatch.setattr(
        module,
        "heat_maps",
        lambda network, layer, images, classes, kind: (kinds.append(kind), np.zeros((len(classes), 64, 64)))[1],
    )
    network = build_target(label_task.backbone, 3, torch.Generator().manual_seed(0)).eval()
    save_heat_map_images(label_task, "test", torch.zeros(12, 3), network, tmp_path / "maps.parquet")
    assert kinds == [SEVERAL_LABELS]
