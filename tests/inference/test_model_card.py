from __future__ import annotations

import json

import pytest
import yaml
from helpers.fuzz import cases
from helpers.names import NAMES
from helpers.studies import FINAL_MODEL, HELD_OUT, study_json
from hypothesis import assume, given
from markdown_it import MarkdownIt

from delta_tune.inference.model_card import write_card_section, write_model_card
from delta_tune.results.study_record import StudyRecord

CONFIG = {
    "config": {"regularizer": "delta", "lr": 0.01, "weight_decay": None},
    "epoch": 7,
    "metrics": {"val_accuracy": 0.91},
    "backbone": {"model": "timm:test_resnet", "head": "fc"},
    "classes": [f"class {n}" for n in range(30)],
    "preprocessing": {
        **{"image_size": 64, "stored_size": 73, "interpolation": "bilinear"},
        **{"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]},
    },
}


@pytest.fixture
def card(tmp_path):
    """A function from what the study's record says to the card's text."""

    def write(sentences=(), *, retrained=False, method="delta", told=None, **more):
        study_json(tmp_path, **{"model": "trial 0", "winner": 0, **more})
        config = CONFIG | {"config": CONFIG["config"] | {"regularizer": method}} | (told or {})
        (tmp_path / "config.json").write_text(json.dumps(config))
        write_model_card(tmp_path, StudyRecord.read(tmp_path), sentences, retrained=retrained)
        return (tmp_path / "README.md").read_text()

    return write


def test_card_tells_data_method_and_preprocessing(card):
    text = card()
    assert "photos: 100 train, 50 val, 60 test images. Input: 64 × 64 pixels" in text
    assert "delta, the weights after epoch 7 (trial 0)" in text
    assert '"lr": 0.01' in text
    assert "weight_decay" not in text
    assert "class 19 …" in text
    assert "class 20" not in text


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "the centre of the image scaled to 73 (bilinear); RGB in [0, 1] less 0.5, 0.4, 0.3"),
        ({"resize": "squash"}, "the whole image, its proportions not kept (bilinear); RGB in"),
        (
            {"resize": "letterbox", "channels": 1, "white": 4095},
            "the whole image, its long side scaled to 64, with a border of the mean colour (bilinear); grey (4095 in "
            "images of more than 8 bits is 1) in [0, 1]",
        ),
        ({"channels": 5}, "5 channels in [0, 1]"),
    ],
)
def test_card_tells_what_becomes_of_an_image(card, told, said):
    assert said in card(told={"preprocessing": CONFIG["preprocessing"] | told})


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ("delta", "resnet, fine-tuned with delta to tell 30 classes apart"),
        ("linear_probe", "resnet, frozen, with a fitted linear classifier to tell 30 classes apart"),
    ],
)
def test_card_says_what_was_trained(card, method, what):
    assert what in card(method=method)


def test_card_says_whether_probabilities_are_calibrated(card):
    assert "its probabilities have not been calibrated.\n- The figures" in card()
    text = card(told={"temperature": 1.73456})
    assert "its probabilities are calibrated: logits are divided by the temperature 1.73.\n- The figures" in text


def test_card_tells_how_many_networks_there_are(card):
    assert "`model.safetensors` holds the weights, `config.json` all that" in card()
    text = card(told={"networks": 3})
    assert "holds the weights of the first of 3 networks, whose probabilities are averaged, `model-2.safetens" in text


def test_card_begins_with_front_matter(card):
    _, front, _ = card().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "delta-tune",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "transfer-learning", "delta"],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": "study",
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image classification"},
                        "dataset": {"name": "photos", "type": "imagefolder", "split": "test"},
                        "metrics": [{"type": "accuracy", "value": 0.9, "name": "Accuracy"}],
                    }
                ],
            }
        ],
    }


def test_card_gives_the_test_score_with_its_interval(card):
    assert "| test accuracy | 90.0 % on 60 images, scored once (95 % interval 80.0 to 95.0 %) |" in card()


def test_card_says_where_nothing_unseen_was_scored(card):
    assert "never scored on images that had no part in choosing it" in card(test=False)
    assert "never scored" not in card()


def test_card_says_that_one_seed_is_one_seed_unless_it_was_confirmed(card):
    assert "One training run with one seed" in card()
    text = card(["Confirmed: delta better."], confirmation={"trials": {"delta": 0}})
    assert "One training run" not in text
    assert "Confirmed: delta better." in text


def test_card_calls_only_a_retrained_models_metrics_means(card):
    confirmation = {"trials": {"delta": 0}}
    assert "| val accuracy, by which it was chosen | 0.91 |" in card(confirmation=confirmation)
    text = card(confirmation=confirmation, retrained=True)
    assert "| val accuracy, mean of the confirmation's runs, by which it was chosen | 0.91 |" in text


def test_card_of_a_model_that_was_not_among_the_confirmed_says_one_seed(card):
    assert "One training run with one seed" in card(confirmation={"trials": {"l2": 3}})


def test_card_of_a_retrained_model_without_test_says_that_it_was_never_scored(card):
    text = card(test=False, retrained=True, confirmation={"trials": {"delta": 0}})
    assert "itself never scored: the metric is that of other runs" in text


def test_card_says_that_the_test_split_was_used_before(card):
    first = {"model": "trial 3", "images": 60, "test_accuracy": 0.8, "test_accuracy_interval": [0.7, 0.9]}
    second = {"model": "trial 0", "images": 60, "test_accuracy": 0.9, "test_accuracy_interval": [0.8, 0.95]}
    assert "scoring 2 of this split, so not an unseen one" in card(test_scorings=[first, second])


def shape(text):
    """Of the Markdown after the front matter: its blocks, and what stands in their lines."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text.split("---\n", 2)[2])
    inline = {child.type for token in tokens for child in token.children or ()}
    return [token.type for token in tokens], inline - {"text", "code_inline", "softbreak"}


@cases(60)
@given(NAMES, NAMES, NAMES)
def test_names_are_names_in_the_card(tmp_path, name, data, method):
    assume(name != data)  # classes differ
    study_json(tmp_path, model="trial 0", winner=0)
    record = StudyRecord.read(tmp_path)
    record.content["settings"]["data"] = data
    texts = []
    for classes, regularizer in ((["a", "b"], "delta"), ([name, data], method)):
        config = CONFIG | {"classes": classes, "config": {"regularizer": regularizer, "lr": 0.01}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        write_model_card(tmp_path, record, (), retrained=False)
        texts.append((tmp_path / "README.md").read_text(encoding="utf-8"))
        record.content["settings"] |= {"name": name}
    usual, odd = texts
    assert yaml.safe_load(odd.split("---\n")[1])["tags"][2] == method
    assert shape(odd) == shape(usual)
    assert not shape(odd)[1]


def test_card_of_final_runs_says_whose_scores_these_are(card):
    text = card(test=False, retrained=True, model=FINAL_MODEL, held_out=HELD_OUT, told={"temperature": 1.537})
    assert "| val accuracy, of images that its runs were not trained on | 0.91 |" in text
    assert "by which it was chosen" not in text
    assert "One training run with one seed" not in text
    assert "its probabilities are calibrated: logits are divided by the temperature 1.54." in text
    assert f"({FINAL_MODEL})" in text


def test_card_says_what_is_not_calibrated_and_how_many_networks_there_are(card):
    assert "its probabilities have not been calibrated" in card()
    assert "networks, whose" not in card()
    text = card(told={"networks": 3})
    assert "the weights of the first of 3 networks, whose probabilities are averaged" in text
    assert "`model-2.safetensors` and so on those of the others" in text


def test_a_section_is_written_once_at_the_end_and_then_in_its_place(card, tmp_path):
    before = card()
    assert write_card_section(tmp_path, "ONNX in int8", "First.")
    assert write_card_section(tmp_path, "ONNX in fp16", "Half.")
    assert write_card_section(tmp_path, "ONNX in int8", "Second.")
    text = (tmp_path / "README.md").read_text()
    assert text == f"{before.rstrip()}\n\n## ONNX in int8\n\nSecond.\n\n## ONNX in fp16\n\nHalf.\n"


def test_a_section_without_text_is_replaced_alone(tmp_path):
    (tmp_path / "README.md").write_text("# A model\n\n## ONNX in int8\n## Limits\n\nMine.\n")
    assert write_card_section(tmp_path, "ONNX in int8", "First.")
    assert (tmp_path / "README.md").read_text().endswith("\n## ONNX in int8\n\nFirst.\n\n## Limits\n\nMine.\n")


def test_a_section_needs_a_card(tmp_path):
    assert not write_card_section(tmp_path, "ONNX in int8", "First.")
    assert list(tmp_path.iterdir()) == []
