"""Screening of tiny networks: what is kept, what is dropped and why, and what it costs."""

from __future__ import annotations

import dataclasses
import math

import pytest
import safetensors.torch
import torch
from timm.models import ResNet
from torch.nn.modules.module import register_module_forward_pre_hook

from delta_tune.config import Candidate, StudyConfig, UserError
from delta_tune.console.progress import Progress
from delta_tune.data.cutting import cut_for_study
from delta_tune.data.training_sample import TrainingSample
from delta_tune.models import availability
from delta_tune.study import screening, screening_pass
from delta_tune.study.screening import Machine, room_of, screen, this_machine
from delta_tune.study.screening_rules import PASSES_OF_STEP, SHARE, Room
from delta_tune.training.speed import Speed
from delta_tune.training.task import prepare_several

TINY = "timm:test_resnet"
CPU = Machine(device=torch.device("cpu"), threads=1, slots=1)
ROOM = Room(seconds=math.inf, slots=1, epochs=6)


@pytest.fixture(scope="module")
def blind_weights(tiny_weights, tmp_path_factory):
    """Weights of a network that sees nothing: every image has the same features."""
    state = safetensors.torch.load_file(tiny_weights)
    first = next(name for name, value in state.items() if value.ndim == 4)
    file = tmp_path_factory.mktemp("weights") / "blind.safetensors"
    safetensors.torch.save_file(state | {first: torch.zeros_like(state[first])}, file)
    return file


@pytest.fixture
def candidates(tiny_weights, blind_weights):
    return [Candidate(TINY, str(blind_weights)), Candidate(TINY, str(tiny_weights))]


@pytest.fixture
def fast(monkeypatch):
    """A step takes no time that is measured."""
    monkeypatch.setattr(screening_pass, "measure_speed", lambda *_: Speed(training=0.01, scoring=0.004))


def screened(image_folder, candidates, **settings):
    """What was found."""
    return screened_and_kept(image_folder, candidates, **settings)[0]


def screened_and_kept(
    image_folder, candidates, *, room=ROOM, image_size=64, suits=lambda label, task: None, seed=0, **cutting
):
    sample = TrainingSample(cut_for_study(str(image_folder), **cutting), "auto", None, seed)
    return screen(
        candidates,
        sample,
        image_size=image_size,
        channels=3,
        seed=seed,
        room=room,
        machine=CPU,
        suits=suits,
        progress=Progress(verbose=0),
    )


def test_network_that_sees_the_classes_is_kept(image_folder, candidates, fast):
    found = screened(image_folder, candidates)
    best, blind = found.networks
    assert (best.weights, best.kept, best.verdict) == (candidates[1].weights, True, "the best")
    assert not blind.kept
    assert blind.verdict.startswith("clearly less likely than the best (-")
    assert blind.likelihood == pytest.approx(-math.log(3), abs=1e-3)
    assert best.likelihood > -0.3
    assert best.accuracy > 0.9
    assert (found.images, found.of) == (36, 36)


def test_kept_backbone_is_the_one_that_a_study_loads(image_folder, candidates, fast):
    found, (kept,) = screened_and_kept(image_folder, candidates)
    loaded, again = prepare_several(image_folder, [candidates[1], kept], image_size=64)
    assert kept.fingerprint == loaded.backbone.fingerprint == again.backbone.fingerprint
    assert again.backbone.state is kept.state
    assert again.dataset.preprocessing == loaded.dataset.preprocessing
    assert again.dataset.fingerprint == loaded.dataset.fingerprint
    assert [network.weights for network in found.kept] == [kept.weights]


def test_table_has_speed_parameters_and_time_of_a_trial(image_folder, candidates, fast):
    best = screened(image_folder, candidates).networks[0]
    assert (best.training_s, best.forward_s) == (0.01, 0.004)
    assert best.trial_s == pytest.approx(6 * (36 * 0.01 + 18 * 0.004))
    assert best.parameters == sum(
        value.numel()
        for name, value in safetensors.torch.load_file(best.weights).items()
        if not name.startswith("fc.") and "running" not in name and "num_batches" not in name
    )


def test_same_seed_gives_the_same_result(image_folder, candidates, fast):
    first, second = (screened(image_folder, candidates, seed=5) for _ in range(2))
    assert first == second


def test_equal_networks_are_both_kept(image_folder, candidates, fast, tiny_weights, tmp_path):
    twin = tmp_path / "twin.safetensors"
    state = safetensors.torch.load_file(tiny_weights)
    safetensors.torch.save_file(state | {"conv1.0.weight": state["conv1.0.weight"] * 1.0001}, twin)
    found = screened(image_folder, [candidates[1], Candidate(TINY, str(twin))])
    assert [network.kept for network in found.networks] == [True, True]


def test_same_weights_under_two_names_are_refused(image_folder, candidates, tmp_path, tiny_weights):
    twin = tmp_path / "twin.safetensors"
    twin.write_bytes(tiny_weights.read_bytes())
    with pytest.raises(
        UserError, match=r"twice: .*tiny\.safetensors\) and .*twin\.safetensors\) have the same weights"
    ):
        screened(image_folder, [candidates[1], Candidate(TINY, str(twin))])


def test_screening_costs_less_than_half_a_trial(image_folder, candidates):
    """By the images of forward passes, those of a training step counted three times; without any clock."""
    passes = []

    def count(module, inputs):
        if isinstance(module, ResNet):
            passes.append(len(inputs[0]) * (PASSES_OF_STEP if torch.is_grad_enabled() else 1))

    hook = register_module_forward_pre_hook(count)
    try:
        found = screened(
            image_folder, candidates, suits=lambda label, task: passes.clear()
        )  # loading checks each network once
    finally:
        hook.remove()
    assert found.images == 36
    assert 2 * 36 <= sum(passes) <= SHARE * PASSES_OF_STEP * ROOM.epochs * 36


def test_sample_is_part_of_a_large_training_set(image_folder, candidates, fast, monkeypatch):
    monkeypatch.setattr(screening, "sampled_images", lambda *_: (9, 1))
    found = screened(image_folder, candidates)
    assert (found.images, found.of) == (9, 36)


def test_network_whose_trials_do_not_fit_is_dropped_before_its_pass(image_folder, candidates, monkeypatch):
    def speed(task, *_):
        slow = task.backbone.weights == candidates[1].weights
        return Speed(training=1.0 if slow else 0.01, scoring=0.0)

    monkeypatch.setattr(screening_pass, "measure_speed", speed)
    monkeypatch.setattr(screening, "predict", lambda *_: pytest.fail("there is only one left"))
    found = screened(image_folder, candidates, room=Room(seconds=60, slots=1, epochs=6))
    assert [network.label for network in found.kept] == ["test_resnet (blind.safetensors)".replace("test", "timm:test")]
    assert found.networks[1].verdict == "4 trials of 3 epochs do not fit into the 1:00 for trials"


def test_fastest_is_kept_where_no_trial_fits(image_folder, candidates, fast):
    found = screened(image_folder, candidates, room=Room(seconds=0, slots=1, epochs=6))
    assert len(found.kept) == 1


def test_slower_network_with_time_for_some_epochs_says_how_many(image_folder, candidates, fast):
    found = screened(image_folder, candidates, room=Room(seconds=4 * 4 * 0.44, slots=1, epochs=6))
    assert found.networks[0].verdict == "the best; there is time for 4 of 6 epochs"


def test_image_size_that_a_network_cannot_take_drops_it(image_folder, candidates, tiny_weights):
    found = screened(
        image_folder, [candidates[1], Candidate("alexnet", str(alexnet_file(tiny_weights.parent)))], image_size=32
    )
    assert [network.label for network in found.kept] == [TINY]
    assert found.kept[0].verdict == "the only one that can be used here"
    assert "alexnet" in found.networks[1].verdict
    assert "32" in found.networks[1].verdict


def alexnet_file(folder):
    from torchvision.models import alexnet

    file = folder / "alexnet.pth"
    torch.save(alexnet().state_dict(), file)
    return file


def test_network_that_the_space_cannot_use_is_dropped(image_folder, candidates, fast):
    def suits(label, task):
        if task.backbone.weights == candidates[1].weights:
            raise UserError("It has no branches to drop.")

    found = screened(image_folder, candidates, suits=suits)
    assert found.networks[1].verdict == "It has no branches to drop"
    assert [network.weights for network in found.kept] == [candidates[0].weights]


def test_study_is_refused_where_no_network_is_left(image_folder, candidates):
    def suits(label, task):
        raise UserError("It has no branches to drop.")

    with pytest.raises(
        UserError,
        match=r"^None of the 2 networks of --model can be used: .*tiny.*: It has no branches to drop; name others\.$",
    ):
        screened(image_folder, candidates, suits=suits)


def test_unknown_name_is_refused(image_folder, candidates):
    with pytest.raises(UserError, match="'resnet-18' is unknown"):
        screened(image_folder, [candidates[0], Candidate("resnet-18", str(candidates[0].weights))])


def test_weights_that_do_not_fit_are_refused(image_folder, candidates):
    with pytest.raises(UserError, match="do not fit resnet18"):
        screened(image_folder, [candidates[0], Candidate("resnet18", candidates[0].weights)])


def test_named_model_whose_default_weights_are_not_here_is_refused_at_once(image_folder, candidates, monkeypatch):
    monkeypatch.setattr(screening_pass, "why_missing", lambda model: "not in the cache, and nobody answers")
    with pytest.raises(UserError, match=r"^The default weights of resnet18 cannot be had here \(not in the cache, and"):
        screened(image_folder, [candidates[0], Candidate("resnet18", None)])


def test_listed_models_that_are_not_here_are_told_in_one_line(image_folder, candidates, fast, monkeypatch):
    monkeypatch.setattr(screening_pass, "why_missing", lambda model: "not in the cache, and nobody answers")
    listed = [Candidate(name, listed=True) for name in ("resnet18", "resnet34")]
    found = screened(image_folder, [candidates[1], *listed])
    assert found.notes == ("Missing here: resnet18, resnet34 (not in the cache, and nobody answers)",)
    assert len(found.networks) == 1


def test_list_of_which_nothing_is_here_is_refused(image_folder, monkeypatch):
    monkeypatch.setattr(screening_pass, "why_missing", lambda model: "not in the cache, and nobody answers")
    with pytest.raises(UserError, match=r"None of the 2 networks .*: Missing here: resnet18, resnet34 \(not in"):
        screened(image_folder, [Candidate(name, listed=True) for name in ("resnet18", "resnet34")])


def test_network_for_which_there_is_no_memory_is_dropped(image_folder, candidates, monkeypatch):
    def speed(task, *_):
        if task.backbone.weights == candidates[1].weights:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return Speed(training=0.01, scoring=0.004)

    monkeypatch.setattr(screening_pass, "measure_speed", speed)
    found = screened(image_folder, candidates)
    assert found.networks[1].verdict == "it does not fit into memory"


def test_network_of_infinite_features_is_dropped(image_folder, candidates, fast, monkeypatch):
    whole = screening_pass.measure_features

    def measure(backbone, *rest):
        features, sums = whole(backbone, *rest)
        return (features + math.inf if backbone.weights == candidates[1].weights else features), sums

    monkeypatch.setattr(screening_pass, "measure_features", measure)
    found = screened(image_folder, candidates)
    assert [network.verdict for network in found.networks] == ["the best", "its features are not finite numbers"]


def config(**settings):
    return StudyConfig(data="x", model="a,b", **settings)


def test_room_without_a_budget_is_endless():
    assert room_of(config(), (), 100, CPU, None) == Room(seconds=math.inf, slots=1, epochs=6, num_trials=16)


def test_room_keeps_time_for_the_final_runs():
    with_runs = room_of(config(time_budget="1h"), (), 100, CPU, 3600)
    without = room_of(config(time_budget="1h", final_runs=0), (), 100, CPU, 3600)
    assert with_runs.seconds == pytest.approx(without.seconds / 2)
    assert without.seconds < 3600


def test_room_left_to_the_budget_has_the_epochs_that_the_training_set_needs():
    left_open = {"max_epochs", "num_trials"}
    rooms = [room_of(config(time_budget="1h"), left_open, steps, CPU, 3600) for steps in (10, 10_000)]
    assert [(room.epochs, room.num_trials) for room in rooms] == [(6, None), (3, None)]


def test_room_of_steps():
    assert room_of(config(max_steps=250), (), 100, CPU, None).epochs == 3


def test_speed_of_other_machines_is_not_known():
    elsewhere = dataclasses.replace(CPU, slots=None)
    room = room_of(config(time_budget="1h"), (), 100, elsewhere, 3600)
    assert room.seconds == math.inf
    assert "other machines" in room.notes[0]


def test_machine_of_a_cluster_is_another(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert this_machine(config(gpus_per_trial=0, cpus_per_trial=2)).threads == 2
    assert this_machine(config(gpus_per_trial=0, max_concurrent_trials=1)).slots == 1
    assert this_machine(config(gpus_per_trial=0, address="10.0.0.1:6379")).slots is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert this_machine(config(gpus_per_trial=0)).slots is None


def test_silent_network_does_not_hold_up_a_list(image_folder, monkeypatch):
    availability.answers.cache_clear()
    monkeypatch.setattr(availability, "answers", lambda host: False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nowhere")
    with pytest.raises(UserError, match=r"not in the cache, and download\.pytorch\.org does not answer"):
        screened(image_folder, [Candidate(name, listed=True) for name in ("resnet18", "resnet34")])
