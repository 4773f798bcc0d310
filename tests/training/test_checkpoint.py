from __future__ import annotations

import os

import pytest
import safetensors.torch
import torch
from torch import nn

from delta_tune.results.layout import BEST_FILE, RESUME_FILE
from delta_tune.training.checkpoint import Checkpoint, ResumePoint, last_weights, read_resume_point


def trained(folder, seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Checkpoint(folder, model, optimizer, torch.amp.GradScaler("cpu", enabled=False)), model, optimizer


def point(epoch):
    return ResumePoint(config={"lr": 0.1}, rows=[{"x": 0.1}], first_loss=2.5, best_epoch=1, epoch=epoch)


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
