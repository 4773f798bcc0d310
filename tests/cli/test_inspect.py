from __future__ import annotations

import csv
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.studies import add_trial, study_json, tables_in

from delta_tune.cli import commands
from delta_tune.results.layout import HELD_OUT_FILE
from delta_tune.results.study_record import StudyRecord


@pytest.fixture
def study(tmp_path):
    """A finished study with two suspect labels among six held-out images."""
    folder = tmp_path / "study"
    folder.mkdir()
    study_json(folder)
    tables = tables_in(folder)
    add_trial(tables, 0, "completed")
    tables.write()
    table = {
        "image": [f"{n}.jpg" for n in range(5)] + ["=5.jpg"],
        "true": list("aabbcc"),
        "predicted": list("abbbca"),
        "probability": [0.9, 0.8, 0.9, 0.9, 0.9, 0.95],
        "probability_of_true": [0.9, 0.1, 0.9, 0.9, 0.9, 0.02],
        "suspect": pa.array([None, 2, None, None, None, 1], type=pa.int32()),
        "thumbnail": pa.array([None] * 6, type=pa.binary()),
    }
    pq.write_table(pa.table(table), folder / HELD_OUT_FILE)
    record = StudyRecord.read(folder)
    known = {"images": 6, "accuracy": 0.67, "interval": [0.3, 0.9], "temperature": 1.0, "calibration_error": 0.1}
    known |= {"calibrated_error": 0.1, "unsure": None, "runs": 2, "asked": [2, 1], "suspects": 2, "trials": 1}
    record.set_model(0, "trial 0 retrained 2 times on 6 images, weights averaged")
    record.set_held_out(known)
    record.write(folder)
    return folder


def test_inspect_prints_plain_text_when_piped(image_folder, capsys):
    assert commands.main(["inspect", str(image_folder)]) == 0
    out = capsys.readouterr().out
    assert "3 classes, train 36, val 18, test 15" in out
    assert "\x1b" not in out


def test_inspect_prints_json_alone(image_folder, capsys):
    assert commands.main(["inspect", str(image_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 69


@pytest.mark.parametrize(("flags", "status"), [([], 0), (["--strict"], 1)])
def test_inspect_exits_with_1_for_serious_findings_if_strict(flags, status, image_folder, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(image_folder, folder)
    next((folder / "train").glob("*/*")).write_bytes(b"no image")
    assert commands.main(["inspect", str(folder), *flags]) == status
    assert "1 image cannot be read" in capsys.readouterr().out


def test_strict_inspect_of_sound_data_exits_with_0(image_folder):
    assert commands.main(["inspect", str(image_folder), "--strict"]) == 0


def test_inspect_lists_suspects_of_a_study(study, capsys):
    assert commands.main(["inspect", "--study", str(study)]) == 0
    out = capsys.readouterr().out
    assert out.index("=5.jpg") < out.index("1.jpg")
    assert "95 %" in out


def test_inspect_writes_suspects_of_a_study_to_act_on(study, tmp_path):
    file = tmp_path / "suspects.csv"
    assert commands.main(["inspect", "--study", str(study), "--csv", str(file)]) == 0
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [(row["image"], row["label"], row["suggested"], row["rank"]) for row in rows] == [
        ("'=5.jpg", "c", "a", "1"),
        ("1.jpg", "a", "b", "2"),
    ]


def test_inspect_judges_labels_by_a_network(image_folder, tiny_weights, tmp_path, capsys):
    file = tmp_path / "suspects.csv"
    flags = ["--model", "timm:test_resnet", "--weights", str(tiny_weights), "--image-size", "64", "--csv", str(file)]
    assert commands.main(["inspect", str(image_folder), *flags]) == 0
    assert "are predicted by linear classifiers on the frozen network" in capsys.readouterr().out
    assert file.read_text().startswith("image,label,suggested,probability,probability_of_label,rank")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "inspect needs DATA"),
        (["nowhere"], "There is no 'nowhere'"),
        (["demo", "--val-fraction", "2"], "val_fraction must be"),
        (["demo", "--weights", "x.pth"], "--weights goes with --model"),
        (["demo", "--csv", "x.csv"], "--csv lists suspect labels"),
        (["demo", "--csv", "/nowhere/x.csv"], "--csv /nowhere/x.csv cannot be written there"),
        (["--study", "nowhere"], "study"),
        (["--study", "s3://bucket/study"], "copy it here first"),
        (["--model", "resnet18", "--study", "nowhere"], "judges the labels of DATA"),
    ],
)
def test_mistakes_are_told_in_a_sentence(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert commands.main(["inspect", *flags]) == 2
    assert message in capsys.readouterr().err


def test_study_without_held_out_images_is_refused(study, capsys):
    (study / HELD_OUT_FILE).unlink()
    assert commands.main(["inspect", "--study", str(study)]) == 2
    assert "which final runs write" in capsys.readouterr().err


def test_newest_study_of_the_data_is_found(study, image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record = StudyRecord.read(study)
    record.content["settings"]["data"] = str(image_folder)
    record.write(study)
    (tmp_path / "results").mkdir()
    study.rename(tmp_path / "results" / "study")
    assert commands.main(["inspect", str(image_folder)]) == 0
    assert "results/study" in capsys.readouterr().out
