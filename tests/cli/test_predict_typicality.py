"""`predict` with the training images: `--min-typicality`, `--data`, and what `--explain` shows of them."""

from __future__ import annotations

import json

import pytest
from helpers import studies
from helpers.studies import change_settings

from delta_tune.cli import commands
from delta_tune.explanation.nearest import nearest_images
from delta_tune.inference.model import load


@pytest.fixture
def study(best, task, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return studies.remembered_study(tmp_path / "study", best, task, image_folder)


def run(capsys, *arguments):
    status = commands.main(["predict", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_images_unlike_the_training_images_are_unsure(study, task, capsys):
    names = list(task.dataset.test.names)
    typical = nearest_images(load(study), study, names).typicality
    middle = sorted(typical)[len(typical) // 2]
    status, out, _ = run(capsys, study, *names, "--min-typicality", middle, "--json")
    rows = json.loads(out)
    assert status == 0
    assert [row["typicality"] for row in rows] == list(typical)
    assert [row["unsure"] for row in rows] == [each < middle for each in typical]
    assert len({row["unsure"] for row in rows}) == 2


def test_both_limits_count(study, task, capsys):
    name = task.dataset.test.names[0]
    _, out, _ = run(capsys, study, name, "--min-typicality", 0, "--min-confidence", 1, "--json")
    assert [row["unsure"] for row in json.loads(out)] == [True]


def test_image_that_cannot_be_read_has_no_typicality(study, task, tmp_path, capsys):
    (tmp_path / "broken.png").write_text("no image")
    names = (tmp_path / "broken.png", task.dataset.test.names[0])
    status, out, err = run(capsys, study, *names, "--min-typicality", 1, "--json")
    assert (status, json.loads(out)[0]["unsure"]) == (2, False)
    assert json.loads(out)[0]["typicality"] is None
    assert "broken.png cannot be read" in err


def test_without_the_flag_json_is_as_it_was(study, task, capsys):
    name, page = task.dataset.test.names[0], study.parent / "why.html"
    (row,) = json.loads(run(capsys, study, name, "--json")[1])
    assert "typicality" not in row
    assert json.loads(run(capsys, study, name, "--json", "--explain", page)[1]) == [row]


def test_limit_without_training_images_is_refused(study, task, tmp_path, capsys):
    change_settings(study, data=str(tmp_path / "gone"))
    status, out, err = run(capsys, study, task.dataset.test.names[0], "--min-typicality", 0.05)
    assert (status, out) == (2, "")
    assert "--min-typicality needs the training images." in err
    assert "name it with --data" in err


def test_data_that_moved_is_named(study, task, image_folder, tmp_path, capsys):
    change_settings(study, data=str(tmp_path / "gone"))
    name = task.dataset.test.names[0]
    assert run(capsys, study, name, "--min-typicality", 0.05, "--data", image_folder)[0] == 0


@pytest.mark.parametrize("given", ["-0.1", "1.5", "nan"])
def test_limit_outside_its_range_is_refused(study, capsys, given):
    status, _, err = run(capsys, study, "a.png", f"--min-typicality={given}")
    assert status == 2
    assert f"--min-typicality must be a number from 0 to 1, but got {float(given)}" in err


def test_data_alone_is_refused(study, capsys):
    status, _, err = run(capsys, study, "a.png", "--data", "photos")
    assert status == 2
    assert "--data goes with --explain or --min-typicality" in err


def test_page_shows_the_nearest_training_images(study, task, tmp_path, capsys):
    name, page = task.dataset.train.names[3], tmp_path / "why.html"
    assert run(capsys, study, name, "--explain", page)[0] == 0
    text = page.read_text()
    assert "The most similar training images" in text
    assert f'title="{name}"' in text
    assert "no closer to their nearest training image" in text
    assert "unlike the training images" not in text


def test_page_says_why_there_are_no_training_images(best, task, tmp_path, capsys):
    page = tmp_path / "why.html"
    assert run(capsys, best, task.dataset.test.names[0], "--explain", page)[0] == 0
    assert "The nearest training images are left out: There is no study.json" in page.read_text()
