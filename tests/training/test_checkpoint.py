from __future__ import annotations

import dataclasses
import json
import os
import pickle

import pytest
import safetensors.torch
import torch
from helpers.hostile import MISSING, changed
from helpers.studies import epoch_row
from torch import nn

from delta_tune.config import UserError
from delta_tune.results.layout import BEST_FILE, RESUME_FILE
from delta_tune.training.checkpoint import Checkpoint, ResumePoint, last_weights, read_resume_point


def trained(folder, seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Checkpoint(folder, model, optimizer, torch.amp.GradScaler("cpu", enabled=False)), model, optimizer


def point(epoch):
    rows = [epoch_row(each, 0.5) for each in range(1, epoch + 1)]
    return ResumePoint(config={"lr": 0.1}, rows=rows, first_loss=2.5, best_epoch=1, epoch=epoch)


def step(model, optimizer):
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_load_brings_back_weights_and_momentum(tmp_path):
    checkpoint, model, optimizer = trained(tmp_path)
    step(model, optimizer)
    with checkpoint.writing(1):
        pass
    checkpoint.save(point(1))
    other, fresh, fresh_optimizer = trained(tmp_path, seed=1)
    assert read_resume_point(tmp_path) == point(1)
    other.load(1, torch.device("cpu"))
    for each, its in ((model, optimizer), (fresh, fresh_optimizer)):
        step(each, its)
    assert torch.equal(model.weight, fresh.weight)


def test_resume_point_of_an_empty_folder_is_none(tmp_path):
    trained(tmp_path / "new")
    assert read_resume_point(tmp_path / "new") is None
    assert not (tmp_path / "new").exists()


def test_save_keeps_one_state_and_the_best_weights(tmp_path):
    checkpoint, model, optimizer = trained(tmp_path)
    for epoch in (1, 2, 3):
        step(model, optimizer)
        with checkpoint.writing(epoch):
            pass
        if epoch == 2:
            checkpoint.save_best(epoch)
            best = model.weight.detach().clone()
        checkpoint.save(point(epoch))
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == sorted([BEST_FILE, RESUME_FILE, "weights-3.safetensors", "optimizer-3.pt"])
    assert torch.equal(safetensors.torch.load_file(tmp_path / BEST_FILE)["weight"], best)


def test_death_before_the_record_leaves_the_epoch_before_whole(tmp_path):
    checkpoint, model, optimizer = trained(tmp_path)
    with checkpoint.writing(1):
        pass
    checkpoint.save(point(1))
    before = model.weight.detach().clone()
    step(model, optimizer)
    with checkpoint.writing(2):
        pass  # and here it dies
    other, fresh, _ = trained(tmp_path, seed=1)
    assert read_resume_point(tmp_path).epoch == 1
    assert last_weights(tmp_path) == tmp_path / "weights-1.safetensors"
    other.load(1, torch.device("cpu"))
    assert torch.equal(fresh.weight, before)


def test_best_weights_are_copied_where_links_cannot_be_made(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    checkpoint, model, _ = trained(tmp_path)
    with checkpoint.writing(1):
        pass
    checkpoint.save_best(1)
    assert torch.equal(safetensors.torch.load_file(tmp_path / BEST_FILE)["weight"], model.weight)


def test_failure_to_write_is_raised(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    checkpoint, *_ = trained(tmp_path)
    with pytest.raises(OSError, match="no space left"), checkpoint.writing(1):
        pass


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("config",), [], "config: "),
        (("rows",), [], "rows: "),
        (("rows", 0, "val_loss"), "x", "column val_loss"),
        (("rows", 0, "epoch"), 2, "not those of the epochs 1, 2, 3"),
        (("rows", 0, "seconds"), -1.0, "column seconds"),
        (("epoch",), 3, "not those of the epochs 1, 2, 3"),
        (("epoch",), "../../x", "epoch: "),
        (("best_epoch",), 9, "the best epoch"),
        (("first_loss",), MISSING, "first_loss: "),
    ],
)
def test_resume_point_of_a_stranger_is_refused(tmp_path, place, value, said):
    content = dataclasses.asdict(point(2))
    (tmp_path / RESUME_FILE).write_text(json.dumps(changed(content, place, value)))
    with pytest.raises(UserError, match=rf"resume.json is damaged \(.*{said}.*; remove the folder"):
        read_resume_point(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no such format", pickle.dumps({"optimizer": print})])
@pytest.mark.parametrize("name", ["weights-1.safetensors", "optimizer-1.pt"])
def test_state_of_a_stranger_is_refused(tmp_path, name, content):
    checkpoint, *_ = trained(tmp_path)
    with checkpoint.writing(1):
        pass
    checkpoint.save(point(1))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged .*; remove the folder"):
        checkpoint.load(1, torch.device("cpu"))
