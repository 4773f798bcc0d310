"""The head of a model card, against the specification that the Hub publishes (huggingface/hub-docs, modelcard.md).

The Hub's validator itself is a service. It checks licence, data sets and `model-index`, says the specification.
"""

from __future__ import annotations

import re
from typing import Literal

import pytest
import yaml
from helpers.studies import study_json
from huggingface_hub import ModelCard
from pydantic import BaseModel, Field

from delta_tune.inference.card_metadata import card_metadata
from delta_tune.results.study_record import StudyRecord


class Metric(BaseModel, extra="forbid", strict=True):
    type: str
    value: float
    name: str | None = None


class Data(BaseModel, extra="forbid", strict=True):
    type: str = Field(pattern="^[a-z0-9_./-]+$")
    name: str = Field(min_length=1)
    split: str | None = None


class Task(BaseModel, extra="forbid", strict=True):
    type: Literal["image-classification"]
    name: str | None = None


class Result(BaseModel, extra="forbid", strict=True):
    task: Task
    dataset: Data
    metrics: list[Metric] = Field(min_length=1)


class Index(BaseModel, extra="forbid", strict=True):
    name: str = Field(min_length=1)
    results: list[Result] = Field(min_length=1)


class Head(BaseModel, extra="forbid", strict=True):
    """Keys of the specification that a card of ours may have."""

    library_name: str
    pipeline_tag: Literal["image-classification"]
    tags: list[str]
    metrics: list[str]
    base_model: str | None = Field(None, pattern="^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")
    index: list[Index] = Field([], alias="model-index")


SEVERAL = {"test_mean_average_precision": 0.81, "test_macro_f1": 0.72, "test_balanced_accuracy": 0.75}


@pytest.fixture
def record(tmp_path):
    study_json(tmp_path, model="trial 0", winner=0)
    return StudyRecord.read(tmp_path)


def head_of(record, several=False):
    text = card_metadata("timm", "a study", ["delta"], several=several, record=record)
    content = ModelCard(f"{text}# Title\n")
    assert content.text == "# Title\n"
    found = yaml.safe_load(text.split("---\n")[1])
    Head.model_validate(found)
    return content.data, found


def test_head_is_as_the_hub_specifies_it(record):
    record.content |= {"backbone": "timm:resnet50.a1_in1k"}
    data, found = head_of(record)
    assert (found["base_model"], data.base_model) == ("timm/resnet50.a1_in1k",) * 2
    assert [(each.metric_type, each.metric_value) for each in data.eval_results] == [("accuracy", 0.9)]
    assert data.model_name == "a study"


def test_several_labels_have_their_own_scores(record):
    record.content["test_scorings"][0] |= SEVERAL
    data, _ = head_of(record, several=True)
    told = {each.metric_name: (each.metric_type, each.metric_value) for each in data.eval_results}
    assert told == {
        "Exact matches": ("accuracy", 0.9),
        "Balanced accuracy": ("balanced_accuracy", 0.75),
        "Macro F1": ("f1", 0.72),
        "Mean average precision": ("mAP", 0.81),
    }


def test_model_that_was_not_scored_has_no_results(record):
    record.content["test_scorings"] = []
    _, found = head_of(record)
    assert "model-index" not in found


def test_study_that_is_not_known_has_no_results():
    _, found = head_of(None)
    assert set(found) == {"library_name", "pipeline_tag", "tags", "metrics"}


@pytest.mark.parametrize(
    "data", ["/home/me/secret/photos", "s3://me:secret@bucket/photos/", r"C:\secret\photos", "photos"]
)
def test_only_the_last_part_of_the_datas_address_is_told(record, data):
    record.content["settings"]["data"] = data
    found, head = head_of(record)
    assert found.eval_results[0].dataset_name == "photos"
    assert "secret" not in str(head)


@pytest.mark.parametrize("word", ["1e3", "0o17", "on", "null", "", "a: b", "#x", "- y", "---", "\x85", "\ud800"])
def test_names_are_strings_for_every_reader_of_yaml(record, word):
    record.content["settings"]["data"] = word or "."
    text = card_metadata("timm", word, [word], several=False, record=record)
    assert yaml.safe_load(text.split("---\n")[1])["tags"] == ["image-classification", word]
    assert text.isascii()
    for line in text.splitlines()[1:-1]:  # plain scalars are words of ours, or numbers
        assert re.fullmatch(r'[ -]*([a-z_-]+:)? ?([a-z][a-z0-9_-]*|[0-9.]+|"[^"]*")?', line)
        assert not re.search(r"[: -](on|null)$", line)
