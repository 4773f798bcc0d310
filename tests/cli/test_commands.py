from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.studies import add_trial, study_json, tables_in
from PIL import Image

from delta_tune.cli import commands
from delta_tune.config import visible
from delta_tune.export import model_file
from delta_tune.inference.model import load
from delta_tune.inference.model_folder import save_model
from delta_tune.models.backbones import build_target


@pytest.fixture(scope="module")
def folder(task, tmp_path_factory):
    """A study's folder with a model."""
    place = tmp_path_factory.mktemp("study")
    study_json(place)
    tables = tables_in(place)
    add_trial(tables, 0, "completed")
    tables.write()
    network = build_target(task.backbone, 3, torch.Generator().manual_seed(0))
    safetensors.torch.save_file(network.state_dict(), place / "weights.safetensors")
    save_model(
        task.backbone,
        task.dataset.classes,
        [place / "weights.safetensors"],
        {"config": {}, "metrics": {}},
        place / "best",
    )
    return place


def run(capsys, *words):
    status = commands.main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_predict_prints_every_probability_as_json(folder, task, capsys):
    names = task.dataset.test.names[:3]
    status, out, _ = run(capsys, "predict", folder, *names, "--json")
    rows = json.loads(out)
    assert status == 0
    assert [row["image"] for row in rows] == list(names)
    for row, prediction in zip(rows, load(folder).predict(names), strict=True):
        assert row["label"] == prediction.label
        assert row["probabilities"] == prediction.probabilities


def test_predict_takes_the_images_of_a_folder_by_name(folder, tmp_path, capsys):
    for name in ("b.png", "a.jpg"):
        Image.fromarray(np.zeros((70, 70, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    _, out, _ = run(capsys, "predict", folder, tmp_path, "--json")
    assert [row["image"] for row in json.loads(out)] == [str(tmp_path / "a.jpg"), str(tmp_path / "b.png")]


def test_predict_passes_over_hidden_files_and_folders(folder, tmp_path, capsys):
    Image.new("RGB", (70, 80)).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (tmp_path / "album.png").mkdir()
    status, out, _ = run(capsys, "predict", folder, tmp_path, "--json")
    assert (status, [row["image"] for row in json.loads(out)]) == (0, [str(tmp_path / "a.png")])


@pytest.mark.parametrize("form", [["--json"], []])
def test_predict_goes_on_after_an_unreadable_image(folder, tmp_path, capsys, form, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    Image.new("RGB", (70, 80)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "c.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "d.png")
    Image.new("RGB", (70, 80)).save(tmp_path / "e.png")
    status, out, err = run(capsys, "predict", folder, tmp_path, *form)
    said = "delta_tune: 3 of 5 images cannot be read, as their rows say; repair them, or leave them out.\n"
    assert (status, err) == (2, said)
    assert all(f"{tmp_path / name} cannot be read as an image" in out for name in ("b.png", "c.png", "d.png"))
    if form:
        labels = [row["label"] for row in json.loads(out)]
        assert labels == [labels[0], None, None, None, labels[0]]
        assert labels[0]
    else:
        assert out.count(" %") == 4


def test_predict_shows_a_table(folder, task, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(capsys, "predict", folder, task.dataset.test.names[0], "--top", "3")
    (prediction,) = load(folder).predict(task.dataset.test.names[:1])
    assert f"{100 * prediction.probability:.1f} %" in out
    assert all(label in out for label in prediction.probabilities)


def test_predict_marks_what_it_is_unsure_of(folder, task, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    name = task.dataset.test.names[0]
    (prediction,) = load(folder).predict(name)
    _, out, _ = run(capsys, "predict", folder, name, "--min-confidence", "1")
    assert f" unsure ({prediction.label}?) " in out
    assert f"{100 * prediction.probability:.1f} %" in out
    (row,) = json.loads(run(capsys, "predict", folder, name, "--min-confidence", "1", "--json")[1])
    assert (row["label"], row["unsure"]) == (prediction.label, True)
    assert "unsure" not in run(capsys, "predict", folder, name)[1]


def test_predict_averages_mirror_images_on_demand(folder, task, capsys):
    name = task.dataset.test.names[0]
    (row,) = json.loads(run(capsys, "predict", folder, name, "--flip", "--json")[1])
    assert row["probabilities"] == load(folder, flip=True).predict(name)[0].probabilities
    assert row["probabilities"] != load(folder).predict(name)[0].probabilities


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "FOLDER", "missing.jpg"], "missing.jpg cannot be read as an image"),
        (["predict", "FOLDER", "a" * 300], "(File name too long)"),
        (["predict", "FOLDER", "EMPTY"], "There are no images in"),
        (["predict", "EMPTY", "a.jpg"], "There is no model in"),
        (["predict", "FOLDER", "a.jpg", "--top", "0"], "--top must be ≥ 1, but got 0."),
        (["export", "FOLDER", "--format", "onnx", "--output", "EMPTY/no/model.onnx"], "has no folder to lie in"),
        (["export", "FOLDER", "--format", "onnx", "--output", "a" * 300 + "/m.onnx"], "has no folder to lie in"),
        (
            ["export", "FOLDER", "--format", "state_dict", "--output", "a" * 300],
            "(File name too long); give another file",
        ),
        (["export", "FOLDER", "--format", "timm", "--output", "a" * 300], "(File name too long); give another folder"),
        (
            ["export", "FOLDER", "--format", "state_dict", "--inputs", "normalized"],
            "no inputs or outputs to choose; give",
        ),
        (["export", "FOLDER", "--format", "state_dict", "--output", "EMPTY"], "is a folder; give a file, such as"),
        (["predict", "FOLDER", "a.jpg", "--min-confidence", "2"], "--min-confidence must be a number from 0 to 1, or"),
        (["predict", "FOLDER", "a.jpg", "--min-confidence", "x"], "must be a number from 0 to 1, or auto, but got x."),
        (["predict", "FOLDER", "a.jpg", "--min-confidence", "auto"], "The model does not know below which confidence"),
        (["export", "FOLDER", "--format", "state_dict", "--flip"], "cannot hold a network that sees the image and its"),
        (["export", "FOLDER", "--format", "timm", "--flip"], "cannot hold a network that sees the image and its"),
        (["export", "FOLDER", "--format", "timm", "--output", "EMPTY/no/model"], "has no folder to lie in"),
        (["export", "FOLDER", "--format", "timm", "--output", ".."], "has no name; give one for the new folder"),
        (["export", "FOLDER", "--format", "timm", "--output", "FOLDER"], "which is of no earlier export; give a new"),
        (["export", "FOLDER", "--format", "hf", "--embeddings"], "--embeddings is of formats that are files; leave it"),
        (["export", "FOLDER", "--format", "timm", "--inputs", "normalized"], "--inputs normalized is of formats that"),
        (["export", "FOLDER", "--format", "torchvision"], "torchvision has no network with the same layers as timm's"),
        (["predict", "FOLDER", "a.jpg", "--device", "nonsense"], "The device nonsense cannot be used"),
        (["compare", "s3://bucket/study"], "compare takes a folder on this machine, but got s3://bucket/study"),
        (["report", "s3://bucket/study"], "report takes a folder on this machine, but got s3://bucket/study"),
        (["compare", "EMPTY"], "There is no study in"),
        (["report", "EMPTY"], "There is no study in"),
    ],
)
def test_mistake_is_told_in_a_sentence_with_status_2(folder, tmp_path, capsys, words, said):
    words = [word.replace("FOLDER", str(folder)).replace("EMPTY", str(tmp_path)) for word in words]
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith("delta_tune: ")
    assert said in err
    assert err.count("\n") == 1


def test_export_writes_the_file_that_is_asked_for(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "export", folder, "--format", "state_dict")[0] == 0
    assert (tmp_path / "model.pth").exists()


def test_export_of_a_folder_prints_the_lines_that_load_it(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "export", folder, "--format", "timm")
    assert status == 0
    written = {line.partition(":")[0] for line in out.splitlines() if "/" in line and line.endswith("B")}
    assert written == {f"model-timm/{each.name}" for each in (tmp_path / "model-timm").iterdir()}
    code = (tmp_path / "model-timm/README.md").read_text()
    for line in out.split("\n\n")[1].splitlines():
        assert line in code
    assert out.endswith("\nhf upload USER/NAME model-timm .\n")
    assert "Test: accuracy 90.0 % on 60 images" in code


def test_export_passes_on_what_the_file_takes_and_gives(folder, tmp_path, capsys, monkeypatch):
    given = []

    def export_model(model, kind, file, **options):
        given.append((kind, options))
        file.touch()
        return (file,)

    monkeypatch.setattr(model_file, "export_model", export_model)
    for words in ([], ["--inputs", "normalized", "--embeddings"]):
        assert run(capsys, "export", folder, "--format", "torch_export", "--output", tmp_path / "m.pt2", *words)[0] == 0
    assert given == [
        ("torch_export", {"inputs": "pixels", "embeddings": False}),
        ("torch_export", {"inputs": "normalized", "embeddings": True}),
    ]


def test_file_that_cannot_be_written_is_told(folder, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_file, "export_model", full)
    status, _, err = run(capsys, "export", folder, "--format", "state_dict", "--output", tmp_path / "m.pth")
    assert status == 2
    assert err.endswith("m.pth cannot be written (No space left on device); give another file.\n")


def test_report_writes_the_page_and_says_where(folder, capsys):
    assert run(capsys, "report", folder)[1] == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").stat().st_size > 1e6


def test_compare_shows_studies_side_by_side(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run(capsys, "compare", folder, folder)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    assert ["images", *["100 train, 50 val, 60 test"] * 2] in cells
    assert ["accuracy", "test 90.0 %", "test 90.0 %"] in cells
    assert ["95 % interval", "79.9 to 95.3 %", "79.9 to 95.3 %"] in cells
    assert "overlap" in out
    rows = json.loads(run(capsys, "compare", folder, "--json")[1])
    assert rows[0]["accuracy"] == 0.9


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from delta_tune.cli.commands import parser; parser().format_help(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_module_without_a_command_shows_its_help():
    done = subprocess.run([sys.executable, "-m", "delta_tune"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "predict" in done.stdout


@pytest.mark.parametrize("name", [":cat: [b]x.png", "caf\udce9.png", "\x1b[2J.png"])
def test_predict_shows_names_as_they_are(folder, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "400")
    Image.fromarray(np.zeros((70, 70, 3), np.uint8)).save(tmp_path / name)
    status, out, _ = run(capsys, "predict", folder, tmp_path / name)
    assert status == 0
    assert visible(name) in out
    assert out == visible(out, keep="\n")


def test_report_prints_a_path_that_can_be_printed(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "a\x1b[2J")
    assert run(capsys, "report", copy) == (0, f"{visible(str(copy / 'report.html'))}\n", "")
