"""What is refused before Ray starts."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from delta_tune.config import TrialConfig, UserError
from delta_tune.spaces.validation import CheckedSpace
from delta_tune.study import setup
from delta_tune.study.setup import (
    check_drop_path,
    check_early_size,
    check_head,
    check_source_head,
    prepare_study,
    written_settings,
)


@pytest.fixture
def uncut(task):
    return dataclasses.replace(task, backbone=dataclasses.replace(task.backbone, head_fault="It cannot be cut out."))


def drawn(*configs):
    proposals = tuple(SimpleNamespace(config=config) for config in configs)
    return CheckedSpace(space=None, drawn=proposals, points=(), notes=())


def test_head_that_cannot_be_cut_out_is_refused_where_trials_begin_with_a_fitted_one(task, uncut):
    advice = "or do without a fitted head: --set head_start=random --set head_lr_multiplier=10"
    with pytest.raises(UserError, match=rf"^It cannot be cut out, {advice}\.$"):
        check_head(uncut, drawn(TrialConfig(regularizer="l2")))
    with pytest.raises(UserError, match=r"10 and no trials of delta and l2_fe\.$"):
        check_head(uncut, drawn(TrialConfig(), TrialConfig(regularizer="l2_fe")))
    check_head(task, drawn(TrialConfig()))


def test_head_that_cannot_be_cut_out_may_begin_at_random(uncut):
    check_head(uncut, drawn(*(TrialConfig(regularizer=r, head_start="random") for r in ("l2", "delta_uniform"))))


def test_network_of_one_size_is_refused_where_trials_begin_with_small_images(task, monkeypatch):
    class OfOneSize(nn.Module):
        def forward(self, images):
            assert images.shape[2] == 64, f"64 pixels, not {images.shape[2]}"
            return torch.zeros(1, 3)

    monkeypatch.setattr(setup, "build_target", lambda *_: OfOneSize())
    with pytest.raises(
        UserError, match=r"^early_size must be 1 for timm:.* on images of 32 pixels: 64 pixels, not 32\.$"
    ):
        check_early_size(task, drawn(TrialConfig(), TrialConfig(early_size=0.5)))
    check_early_size(task, drawn(TrialConfig(), TrialConfig(regularizer="l2_fe", early_size=0.5)))


def test_network_of_any_size_may_begin_with_small_images(task):
    check_early_size(task, drawn(TrialConfig(early_size=0.5)))


def test_drop_path_is_refused_where_the_network_has_no_branches_to_drop(task):
    vgg = dataclasses.replace(task, backbone=dataclasses.replace(task.backbone, model="vgg11"))
    advice = "leave drop_path out, or name a network that has them, such as timm:resnet50"
    with pytest.raises(UserError, match=rf"^drop_path is 0\.2, but vgg11 has no residual branches .*; {advice}\.$"):
        check_drop_path(vgg, drawn(TrialConfig(), TrialConfig(drop_path=0.1), TrialConfig(drop_path=0.2)))
    check_drop_path(
        vgg, drawn(TrialConfig(), TrialConfig(drop_path=0.0), TrialConfig(regularizer="l2_fe", drop_path=0.1))
    )
    check_drop_path(task, drawn(TrialConfig(drop_path=0.1)))


def test_weights_without_a_source_head_are_refused_where_trials_train_it_along(task):
    without = dataclasses.replace(task, backbone=dataclasses.replace(task.backbone, source_head=None))
    check_source_head(without, drawn(TrialConfig(), TrialConfig(regularizer="co_tuning", co_tuning=0.0)))
    with pytest.raises(
        UserError, match=r"bring no classifier .* weights that have it, or do without: --set co_tuning=0\.$"
    ):
        check_source_head(without, drawn(TrialConfig(), TrialConfig(co_tuning=0.5)))
    with pytest.raises(UserError, match=r", or do without: no trials of co_tuning\.$"):
        check_source_head(without, drawn(TrialConfig(), TrialConfig(regularizer="co_tuning")))
    check_source_head(task, drawn(TrialConfig(regularizer="co_tuning")))


def test_source_head_that_cannot_be_cut_out_is_refused_where_trials_train_it_along(uncut):
    check_source_head(uncut, drawn(TrialConfig(regularizer="l2", head_start="random")))
    with pytest.raises(UserError, match=r"^It cannot be cut out, or do without: --set co_tuning=0\.$"):
        check_source_head(uncut, drawn(TrialConfig(regularizer="l2", head_start="random", co_tuning=1.0)))


@pytest.fixture(scope="module")
def transformer_weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "vit.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(timm.create_model("test_vit").state_dict(), file)
    return file


@pytest.mark.parametrize("given", [None, "search_spaces/delta.py"])
def test_space_is_the_networks_own_unless_one_is_named(given, image_folder, transformer_weights, tmp_path):
    study = prepare_study(
        {
            **{"data": str(image_folder), "model": "timm:test_vit", "weights": str(transformer_weights)},
            **{"image_size": 32, "out": tmp_path, "name": "study", "verbose": 0, "cache": str(tmp_path / "cache")},
            **({} if given is None else {"space": given}),
        }
    )
    told = any("is the default space for networks with layer norms" in note for note in study.checked.notes)
    assert told == (given is None)
    assert study.checked.space.name == ("transformer.py" if given is None else "delta.py")
    assert {config.optimizer for config in study.checked.configs} == {"adamw" if given is None else "sgd"}
    assert written_settings(study)["space"].endswith(study.checked.space.name)


def test_networks_of_other_kinds_have_a_space_each(image_folder, transformer_weights, tiny_weights, tmp_path):
    study = prepare_study(
        {
            **{"data": str(image_folder), "model": "timm:test_vit,timm:test_resnet", "image_size": 32},
            **{"weights": f"{transformer_weights},{tiny_weights}", "out": tmp_path, "name": "study", "verbose": 0},
            **{"cache": str(tmp_path / "cache")},
        }
    )
    of_network = {label: {c.optimizer for c in part.configs} for label, part in study.checked.inner.items()}
    assert of_network == {"timm:test_vit": {"adamw"}, "timm:test_resnet": {"sgd"}}
    assert written_settings(study)["space"] is None
