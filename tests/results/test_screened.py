from __future__ import annotations

import json

import pytest

from delta_tune.config import UserError
from delta_tune.results.layout import STUDY_FILE
from delta_tune.results.screened import ScreenedNetwork, Screening
from delta_tune.results.study_record import StudyRecord

MEASURED = ScreenedNetwork(
    label="resnet18",
    model="resnet18",
    weights="a.pth",
    kept=True,
    verdict="the best",
    image_size=96,
    parameters=11_176_512,
    forward_s=0.0123,
    training_s=0.04,
    trial_s=75.2,
    likelihood=-0.6123,
    error=0.0456,
    accuracy=0.876,
)
DROPPED = ScreenedNetwork(label="timm:vgg11", model="timm:vgg11", weights=None, kept=False, verdict="it is too slow")
FOUND = Screening(networks=(MEASURED, DROPPED), images=300, of=5000, epochs=6, device="CPU", notes=("Missing here: x",))


def test_study_json_gives_back_what_was_noted(tmp_path):
    record = StudyRecord({"settings": {}})
    record.set_screening(FOUND)
    record.write(tmp_path)
    assert StudyRecord.read(tmp_path).screening == FOUND


def test_study_of_an_earlier_version_has_none():
    assert StudyRecord({"settings": {}}).screening is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("label", 3), ("kept", "perhaps"), ("accuracy", 2), ("likelihood", "much"), ("parameters", -1), ("trial_s", -1)],
)
def test_value_that_no_screening_has_is_refused(tmp_path, field, value):
    content = {"settings": {}, "screening": FOUND.content()}
    content["screening"]["networks"][0][field] = value
    (tmp_path / STUDY_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"screening\.networks\.0\.{field}"):
        StudyRecord.read(tmp_path)


def test_fields_of_a_later_version_are_left_alone(tmp_path):
    content = {"settings": {}, "screening": FOUND.content() | {"later": 1}}
    content["screening"]["networks"][0]["later"] = 1
    (tmp_path / STUDY_FILE).write_text(json.dumps(content))
    assert StudyRecord.read(tmp_path).screening == FOUND
