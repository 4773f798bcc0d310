"""`predict --explain`."""

from __future__ import annotations

import importlib.util
import json

import pytest

from delta_tune.cli import commands
from delta_tune.data.images import open_picture
from delta_tune.inference import inputs


def run(capsys, *words):
    status = commands.main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_explain_writes_a_page_of_all_images(best, task, tmp_path, capsys):
    names, page = task.dataset.test.names[:3], tmp_path / "why.html"
    status, out, _ = run(capsys, "predict", best, *names, "--explain", page)
    assert status == 0
    assert f"Explanations: {page}" in out.replace("\n", "")
    text = page.read_text()
    assert text.count("<article>") == 3
    assert all(name in text for name in names)


def test_explain_leaves_json_as_it_is(best, task, tmp_path, capsys):
    names = task.dataset.test.names[:2]
    _, out, _ = run(capsys, "predict", best, *names, "--json", "--explain", tmp_path / "why.html")
    assert len(json.loads(out)) == 2
    assert (tmp_path / "why.html").exists()


def test_explain_goes_on_after_an_unreadable_image(best, task, tmp_path, capsys):
    damaged, page = tmp_path / "damaged.png", tmp_path / "why.html"
    damaged.write_bytes(b"x")
    status, _, err = run(capsys, "predict", best, damaged, task.dataset.test.names[0], "--explain", page)
    assert status == 2
    assert "damaged.png cannot be read" in err
    assert page.read_text().count("<article") == 2


def test_each_image_is_opened_once(best, task, tmp_path, capsys, monkeypatch):
    opened, names = [], [str(name) for name in task.dataset.test.names[:2]]
    monkeypatch.setattr(
        inputs, "open_picture", lambda source, *how: opened.append(source) or open_picture(source, *how)
    )
    run(capsys, "predict", best, *names, "--explain", tmp_path / "why.html")
    assert opened == names


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("why.png", "--explain must be the name of an HTML file such as why.html"),
        ("nowhere/why.html", "lies in a folder that does not exist"),
        ("folder.html", "cannot be written"),
    ],
)
def test_page_that_cannot_be_written_is_refused_before_work_starts(tmp_path, capsys, name, sentence):
    (tmp_path / "folder.html").mkdir()
    status, out, err = run(capsys, "predict", "no-study", "no.png", "--explain", tmp_path / name)
    assert (status, out) == (2, "")
    assert sentence in err


def test_missing_package_is_named_before_work_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, _, err = run(capsys, "predict", "no-study", "no.png", "--explain", tmp_path / "why.html")
    assert status == 2
    assert 'pip install "delta-tune[explain]"' in err
