from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import threading
from concurrent.futures import wait

import pytest
import safetensors.torch
import torch
from helpers.hostile import MISSING, changed
from helpers.studies import epoch_row
from torch import nn

from delta_tune.config import UserError
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.results.layout import BEST_FILE, RESUME_FILE
from delta_tune.training import checkpoint as module
from delta_tune.training.checkpoint import Checkpoint, ResumePoint, cpu_copy, last_weights, read_resume_point


def trained(folder, seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Checkpoint(folder, model, optimizer, torch.amp.GradScaler("cpu", enabled=False)), model, optimizer


def point(epoch, best_epoch=1):
    rows = [epoch_row(each, 0.5) for each in range(1, epoch + 1)]
    return ResumePoint(config={"lr": 0.1}, rows=rows, first_loss=2.5, best_epoch=best_epoch, epoch=epoch)


def step(model, optimizer):
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def saved(checkpoint, at, best=None, **settings):
    checkpoint.save(at, best, **settings)
    checkpoint.wait()


def weights(model):
    return cpu_copy(model.state_dict())


def best_weights(folder, name=BEST_FILE):
    return safetensors.torch.load_file(folder / name)["weight"]


def test_load_brings_back_weights_and_momentum(tmp_path):
    checkpoint, model, optimizer = trained(tmp_path)
    step(model, optimizer)
    saved(checkpoint, point(1), weights(model))
    other, fresh, fresh_optimizer = trained(tmp_path, seed=1)
    assert read_resume_point(tmp_path) == point(1)
    other.load(point(1), torch.device("cpu"))
    for each, its in ((model, optimizer), (fresh, fresh_optimizer)):
        step(each, its)
    assert torch.equal(model.weight, fresh.weight)


def test_resume_point_of_an_empty_folder_is_none(tmp_path):
    trained(tmp_path / "new")
    assert read_resume_point(tmp_path / "new") is None
    assert not (tmp_path / "new").exists()


def test_save_is_of_the_state_when_it_was_asked_for(tmp_path, monkeypatch):
    goes_on = threading.Event()
    write = safetensors.torch.save_file
    monkeypatch.setattr(safetensors.torch, "save_file", lambda *args: goes_on.wait(60) and write(*args))
    checkpoint, model, optimizer = trained(tmp_path)
    step(model, optimizer)
    before, momentum = model.weight.detach().clone(), optimizer.state[model.weight]["momentum_buffer"].clone()
    checkpoint.save(point(1), weights(model))
    step(model, optimizer)
    goes_on.set()
    checkpoint.wait()
    other, fresh, fresh_optimizer = trained(tmp_path, seed=1)
    other.load(point(1), torch.device("cpu"))
    assert torch.equal(fresh.weight, before)
    assert torch.equal(fresh_optimizer.state[fresh.weight]["momentum_buffer"], momentum)


def test_save_keeps_one_state_and_the_best_weights(tmp_path):
    checkpoint, model, optimizer = trained(tmp_path)
    best = None
    for epoch in (1, 2, 3):
        step(model, optimizer)
        if epoch == 2:
            best = weights(model)
        if epoch != 2:
            saved(checkpoint, point(epoch, best_epoch=min(epoch, 2)), best or weights(model), final=epoch == 3)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == sorted([BEST_FILE, "best-2.safetensors", RESUME_FILE, "weights-3.safetensors", "optimizer-3.pt"])
    assert torch.equal(best_weights(tmp_path), best["weight"])


def test_best_weights_that_are_on_disk_are_kept_by_a_resumed_run(tmp_path):
    checkpoint, model, _ = trained(tmp_path)
    best = weights(model)
    saved(checkpoint, point(1), best)
    other, *_ = trained(tmp_path, seed=1)
    other.load(point(1), torch.device("cpu"))
    saved(other, point(2), None, final=True)
    assert torch.equal(best_weights(tmp_path), best["weight"])


@pytest.mark.parametrize("fails", ["optimizer-2.pt", RESUME_FILE])
def test_death_before_the_record_leaves_the_epoch_before_whole(tmp_path, monkeypatch, fails):
    """Its best weights too: what was written ahead of the record belongs to an epoch that may end otherwise."""
    checkpoint, model, optimizer = trained(tmp_path)
    saved(checkpoint, point(1), weights(model))
    before = model.weight.detach().clone()
    step(model, optimizer)

    @contextlib.contextmanager
    def dies(file):
        if file.name == fails:
            raise OSError("killed")
        with atomic_write(file) as partial:
            yield partial

    with monkeypatch.context() as patch:
        patch.setattr("delta_tune.training.checkpoint.atomic_write", dies)
        with pytest.raises(OSError, match="killed"):
            saved(checkpoint, point(2, best_epoch=2), weights(model))
    other, fresh, _ = trained(tmp_path, seed=1)
    found = read_resume_point(tmp_path)
    assert found == point(1)
    assert last_weights(tmp_path) == tmp_path / "weights-1.safetensors"
    other.load(found, torch.device("cpu"))
    assert torch.equal(fresh.weight, before)
    saved(other, point(2), None, final=True)
    assert torch.equal(best_weights(tmp_path), before)


def test_best_weights_of_an_earlier_version_are_found(tmp_path):
    checkpoint, model, _ = trained(tmp_path)
    saved(checkpoint, point(1), weights(model))
    assert module.best_weights(tmp_path, point(1)) == tmp_path / "best-1.safetensors"
    (tmp_path / "best-1.safetensors").rename(tmp_path / BEST_FILE)
    assert module.best_weights(tmp_path, point(1)) == tmp_path / BEST_FILE
    checkpoint.load(point(1), torch.device("cpu"))
    saved(checkpoint, point(2), None, final=True)
    assert torch.equal(best_weights(tmp_path), model.weight)


def test_run_without_its_best_weights_is_refused(tmp_path):
    checkpoint, model, _ = trained(tmp_path)
    saved(checkpoint, point(1), weights(model))
    (tmp_path / "best-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"best-1.safetensors is damaged .*; remove the folder"):
        checkpoint.load(point(1), torch.device("cpu"))


def test_best_weights_are_copied_where_links_cannot_be_made(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    checkpoint, model, _ = trained(tmp_path)
    saved(checkpoint, point(1), weights(model), final=True)
    assert torch.equal(best_weights(tmp_path), model.weight)


def test_failure_to_write_is_raised_when_the_run_looks_again(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    checkpoint, model, _ = trained(tmp_path)
    checkpoint.save(point(1), weights(model))
    wait([checkpoint._saving])
    with pytest.raises(OSError, match="no space left"):
        assert checkpoint.due


def test_save_is_due_after_its_interval_and_not_while_one_is_on_its_way(tmp_path, monkeypatch):
    goes_on = threading.Event()
    checkpoint, model, _ = trained(tmp_path)
    assert not checkpoint.due
    monkeypatch.setattr("delta_tune.training.checkpoint.INTERVAL_S", 0.0)
    assert checkpoint.due
    monkeypatch.setattr(checkpoint, "_saved", lambda epoch: goes_on.wait(60))
    checkpoint.save(point(1), weights(model))
    assert not checkpoint.due
    goes_on.set()
    checkpoint.wait()
    assert checkpoint.due


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
    checkpoint, model, _ = trained(tmp_path)
    saved(checkpoint, point(1), weights(model))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged .*; remove the folder"):
        checkpoint.load(point(1), torch.device("cpu"))
