"""Which backbones a study goes on with: screened once, read again by a resume."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch
from torchvision.models import vgg11

from delta_tune.config import SIZES, Candidate, StudyConfig, UserError, candidates_of
from delta_tune.console.progress import Progress
from delta_tune.console.screening_table import screening_lines
from delta_tune.results.screened import ScreenedNetwork, Screening
from delta_tune.results.study_record import StudyRecord
from delta_tune.study import chosen_backbones
from delta_tune.study.chosen_backbones import choose_backbones, kept_before
from delta_tune.study.plan import plan_lines
from delta_tune.study.settings import settings_for_json
from delta_tune.study.setup import open_study, prepare_study
from delta_tune.training import task


def screening(*kept, dropped=()):
    rows = [
        ScreenedNetwork(label=name, model=name, weights=None, kept=name in kept, verdict="")
        for name in (*kept, *dropped)
    ]
    return Screening(networks=tuple(rows), images=10, of=20, epochs=6, device="CPU")


def choose(config, record):
    return choose_backbones(
        config,
        record,
        left_open=(),
        batch_size=8,
        seconds_left=None,
        suits=lambda label, task: None,
        progress=Progress(verbose=0),
    )


def test_one_model_is_not_screened(monkeypatch):
    monkeypatch.setattr(chosen_backbones, "screen", lambda *_, **__: pytest.fail("there is nothing to choose"))
    record = StudyRecord()
    assert choose(StudyConfig(model="resnet18", weights="a.pth"), record) == ([Candidate("resnet18", "a.pth")], None)
    assert record.screening is None


def test_screening_is_noted_and_not_repeated(monkeypatch, image_folder):
    calls = []
    found, backbone = screening("vgg11", dropped=["resnet18"]), object()
    monkeypatch.setattr(chosen_backbones, "screen", lambda *_, **__: calls.append(1) or (found, [backbone]))
    config, record = StudyConfig(data=str(image_folder), model="resnet18,vgg11"), StudyRecord()
    assert choose(config, record)[0] == [backbone]
    assert choose(config, record)[0] == [Candidate("vgg11", None)]
    assert len(calls) == 1
    assert record.screening == found


def test_examples_that_were_listed_are_handed_on(monkeypatch, image_folder):
    monkeypatch.setattr(chosen_backbones, "screen", lambda *_, **__: (screening("vgg11"), []))
    _, cut = choose(StudyConfig(data=str(image_folder), model="resnet18,vgg11", train_per_class=3), StudyRecord())
    assert len(cut.chosen["train"]) == 9


def test_order_is_that_of_the_screening():
    found = kept_before(screening("vgg11", "resnet18"), candidates_of("resnet18,vgg11", None), "resnet18,vgg11")
    assert [candidate.model for candidate in found] == ["vgg11", "resnet18"]


def test_weights_are_those_the_user_names_now():
    written = screening("vgg11")
    written = dataclasses.replace(
        written, networks=(dataclasses.replace(written.networks[0], weights="/of/a/stranger.pth"),)
    )
    assert kept_before(written, candidates_of("resnet18,vgg11", "mine.pth"), "resnet18,vgg11") == [
        Candidate("vgg11", "mine.pth")
    ]


def test_network_that_the_user_does_not_name_is_refused():
    with pytest.raises(UserError, match=r"has kept the network 'alexnet', which --model resnet18,vgg11 does not name"):
        kept_before(screening("alexnet"), candidates_of("resnet18,vgg11", None), "resnet18,vgg11")


def test_list_of_an_earlier_version_goes_on():
    assert "resnet34" not in SIZES["small"]
    assert kept_before(screening("resnet34"), candidates_of("small", None), "small") == [
        Candidate("resnet34", listed=True)
    ]


@pytest.mark.parametrize("name", ["timm:hf-hub:evil/model", "../x", "timm:local-dir:/tmp"])
def test_list_of_a_stranger_leads_nowhere(name):
    with pytest.raises(UserError, match="does not name"):
        kept_before(screening(name), candidates_of("small", None), "small")


def test_study_that_kept_nothing_is_refused():
    with pytest.raises(UserError, match="kept none of its networks"):
        kept_before(screening(dropped=["vgg11"]), candidates_of("vgg11,resnet18", None), "vgg11,resnet18")


@pytest.fixture
def settings(image_folder, tiny_weights, tmp_path):
    """A study of two networks, one of which has other weights."""
    other = tmp_path / "other.safetensors"
    state = safetensors.torch.load_file(tiny_weights)
    safetensors.torch.save_file({name: value * 0 if "conv1" in name else value for name, value in state.items()}, other)
    return {
        **{"data": str(image_folder), "model": "timm:test_resnet,timm:test_resnet", "image_size": 64, "max_epochs": 2},
        **{"weights": f"{other},{tiny_weights}", "out": tmp_path / "results", "name": "two", "verbose": 0},
    }


def test_study_goes_on_with_the_best_network_and_resumes_without_a_second_screening(
    settings, tiny_weights, monkeypatch, tmp_path
):
    study = prepare_study(settings)
    open_study(study)
    assert study.first_task.backbone.weights == str(tiny_weights)
    assert [network.label for network in study.record.screening.kept] == ["timm:test_resnet (tiny.safetensors)"]
    monkeypatch.setattr(chosen_backbones, "screen", lambda *_, **__: pytest.fail("it is known"))
    again = prepare_study({"out": tmp_path / "results", "name": "two", "resume": True, "verbose": 0})
    assert again.first_task.backbone.fingerprint == study.first_task.backbone.fingerprint
    assert again.record.screening == study.record.screening


def test_network_that_screening_keeps_is_not_loaded_again(settings, monkeypatch):
    monkeypatch.setattr(task, "load_backbone", lambda *_: pytest.fail("it is loaded"))
    assert prepare_study(settings).record.screening is not None


def test_plan_shows_the_screening(settings):
    study = prepare_study(settings)
    resources = SimpleNamespace(slots=1, for_one_trial="1 CPU", where="this machine", why=())
    assert set(screening_lines(study.record.screening)) < set(plan_lines(study, resources))


def test_paths_of_all_weights_are_written_in_full(settings, monkeypatch, tmp_path, tiny_weights):
    (tmp_path / "tiny.safetensors").symlink_to(tiny_weights)
    monkeypatch.chdir(tmp_path)
    config = StudyConfig(**settings | {"weights": "other.safetensors,tiny.safetensors"})
    written = settings_for_json(config, tmp_path / "two")["weights"]
    assert written == f"{tmp_path / 'other.safetensors'},{tmp_path / 'tiny.safetensors'}"


def test_space_that_a_network_cannot_follow_drops_that_network_alone(settings, tmp_path):
    file = tmp_path / "vgg.pth"
    torch.save(vgg11().state_dict(), file)
    weights = f"{settings['weights'].partition(',')[2]},{file}"
    given = settings | {"model": "timm:test_resnet,vgg11", "weights": weights, "set": {"drop_path": 0.1}}
    study = prepare_study(given)
    assert list(study.tasks) == ["timm:test_resnet"]
    assert "vgg11 has no residual branches" in study.record.screening.networks[1].verdict


def test_network_with_layer_norms_is_asked_for_what_its_own_space_needs(settings, tmp_path):
    """Its default space drops branches, which the other network's does not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    weights = f"{settings['weights'].partition(',')[2]},{tmp_path / 'vit.pth'}"
    study = prepare_study(settings | {"model": "timm:test_resnet,timm:test_vit", "weights": weights})
    assert {network.label for network in study.record.screening.networks} == {"timm:test_resnet", "timm:test_vit"}
    assert not [network for network in study.record.screening.networks if network.likelihood is None]
