"""`run_trial` on simulated GPUs: operands on their device, results as on the CPU, no waits, few launches."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager, nullcontext

import pytest
import torch
from helpers.simulated_gpu import by_line, simulated_gpu

from delta_tune.config import TrialConfig
from delta_tune.data.batches import evaluation_batches
from delta_tune.labels.one_label_metrics import classification_metrics
from delta_tune.models.backbones import build_target
from delta_tune.training import trial
from delta_tune.training.checkpoint import read_resume_point
from delta_tune.training.trial import run_trial

CASES = [
    {"regularizer": "l2"},
    {"regularizer": "l2_sp"},
    {"regularizer": "l2_fe"},
    {"regularizer": "delta_uniform"},
    {"regularizer": "delta", "attention_estimator": "first_order"},
    {"regularizer": "l2", "average_epochs": 0.5, "max_grad_norm": 1.0, "batch_norm": "train"},
    {  # at the default learning rate, the roundings of bfloat16, which differ by processor, would lead far away
        **{"regularizer": "l2_sp", "label_smoothing": 0.1, "augmentation": "resized_crop_flip"},
        **{"warmup_epochs": 1, "lr": 5e-4},
    },
    {
        **{"regularizer": "l2", "optimizer": "adamw", "lr": 1e-4, "layer_decay": 0.7},
        **{"class_weights": "balanced", "drop_path": 0.3},
    },
    {
        **{"regularizer": "delta_uniform", "augmentation": "trivial", "random_erasing": 0.5, "mixup": 0.2},
        **{"cutmix": 1.0, "early_size": 0.5},
    },
    {"regularizer": "co_tuning"},
    {"regularizer": "bi_tuning"},
    {"regularizer": "delta_uniform", "co_tuning": 0.5, "contrast": 0.1},
]
PLAIN, AVERAGED, ADAMW = CASES[0], CASES[5], CASES[7]
STEPS = 6
"""Of an epoch: 36 images in batches of 6."""
LAUNCHES = {"l2": 450, "l2_sp": 900, "l2_fe": 60, "delta_uniform": 700, "delta": 700}
LAUNCHES |= {"co_tuning": 470, "bi_tuning": 490}
"""At most, of a step of the tiny network."""


def name_of(case):
    return "-".join(map(str, case.values()))


def alone(task):
    """The task and its measurements, without the networks: those of another device must not be found."""
    fresh = dataclasses.replace(task)
    fresh.measurements = task.measurements
    return fresh


def config_of(case, **others):
    return TrialConfig(**({"max_epochs": 2, "batch_size": 6} | case | others))


@pytest.fixture(scope="module")
def task(task):
    """Measured on the CPU; tests/attention measures on GPUs."""
    measured = dataclasses.replace(task)
    measured.measurements.measure(config_of(case) for case in CASES)
    return measured


@pytest.fixture(scope="module")
def on_cpu(task):
    """Trials of the cases on the CPU, each computed once."""
    known = {}

    def find(case):
        if name_of(case) not in known:
            known[name_of(case)] = run_trial(alone(task), config_of(case)).epochs[-1]
        return known[name_of(case)]

    return find


@contextmanager
def counted(gpu, method):
    """Yields the waits and launches of each call of a method of the run."""
    original, calls = getattr(trial._Run, method), []

    def call(run, *args):
        gpu.clear()
        result = original(run, *args)
        calls.append((gpu.waits, gpu.launches))
        gpu.clear()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial._Run, method, call)
        yield calls


@pytest.fixture(scope="module")
def on_cuda(task):
    """Trials of the cases on a simulated CUDA device, each computed once: row, waits and launches of the last epoch."""
    known = {}

    def find(case):
        if name_of(case) not in known:
            with simulated_gpu() as gpu, counted(gpu, "_train") as calls:
                row = run_trial(alone(task), config_of(case), device="cuda").epochs[-1]
            known[name_of(case)] = row, *calls[-1]
        return known[name_of(case)]

    return find


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_trial_in_bfloat16_learns_as_on_the_cpu(on_cpu, on_cuda, case):
    row, _, _ = on_cuda(case)
    for name in ("train_loss", "val_loss"):
        assert row[name] == pytest.approx(on_cpu(case)[name], rel=0.05, abs=0.02)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_no_line_waits_for_the_gpu_in_every_step(on_cuda, case):
    _, waits, _ = on_cuda(case)
    assert not {line: count for line, count in by_line(waits).items() if count >= STEPS}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_launches_of_a_step_are_bounded(on_cuda, case):
    _, _, launches = on_cuda(case)
    assert launches.total() / STEPS <= LAUNCHES[case["regularizer"]]


@pytest.mark.parametrize("kind", ["mps", "xpu"])
@pytest.mark.parametrize("case", CASES[:5], ids=name_of)
def test_a_trial_learns_on_other_gpus_as_on_the_cpu(task, on_cpu, case, kind):
    with simulated_gpu(kind) as gpu:
        row = run_trial(alone(task), config_of(case), device=kind).epochs[-1]
    assert gpu.launches
    tolerance = 1e-3 if kind == "mps" else 0.05  # float32, and bfloat16
    assert row["val_loss"] == pytest.approx(on_cpu(case)["val_loss"], rel=tolerance)


@pytest.mark.parametrize("case", [AVERAGED, CASES[3]], ids=name_of)
def test_a_gpu_without_bfloat16_learns_as_the_cpu(task, on_cpu, case):
    with simulated_gpu(bfloat16=False):
        row = run_trial(alone(task), config_of(case), device="cuda").epochs[-1]
    assert row["val_loss"] == pytest.approx(on_cpu(case)["val_loss"], rel=0.05)


def test_scoring_waits_for_its_logits_alone(task):
    with simulated_gpu() as gpu, counted(gpu, "_score") as calls:
        run_trial(alone(task), config_of(PLAIN, batch_size=36, max_epochs=1), device="cuda")
    assert [waits.total() for waits, _ in calls] == [1]


@pytest.mark.parametrize("bfloat16", [True, False], ids=["bfloat16", "float16"])
def test_a_resumed_trial_equals_one_that_was_not_interrupted(task, tmp_path, bfloat16):
    config = config_of(AVERAGED, batch_size=12)
    with simulated_gpu(bfloat16=bfloat16):
        whole = run_trial(alone(task), config, device="cuda").epochs
        interrupted(task, config, tmp_path / "trial")
        resumed = run_trial(alone(task), config, device="cuda", checkpoint=tmp_path / "trial").epochs
    assert [without_times(row) for row in resumed] == [without_times(row) for row in whole]


@pytest.mark.parametrize("case", [PLAIN, ADAMW], ids=name_of)
@pytest.mark.parametrize("on_gpu_first", [True, False])
def test_a_trial_moves_between_a_gpu_and_the_cpu(task, on_cpu, tmp_path, case, on_gpu_first):
    config = config_of(case)
    first, second = ("cuda", "cpu") if on_gpu_first else ("cpu", "cuda")
    with simulated_gpu() if first == "cuda" else nullcontext():
        interrupted(task, config, tmp_path / "trial", first)
    with simulated_gpu() if second == "cuda" else nullcontext():
        resumed = run_trial(alone(task), config, device=second, checkpoint=tmp_path / "trial").epochs
    assert resumed[-1]["val_loss"] == pytest.approx(on_cpu(case)["val_loss"], rel=0.05, abs=0.02)


@pytest.mark.parametrize("first", [True, False], ids=["from bfloat16", "from float16"])
def test_a_trial_moves_between_gpus_of_both_kinds(task, on_cpu, tmp_path, first):
    config = config_of(PLAIN)
    with simulated_gpu(bfloat16=first):
        interrupted(task, config, tmp_path / "trial")
    with simulated_gpu(bfloat16=not first):
        resumed = run_trial(alone(task), config, device="cuda", checkpoint=tmp_path / "trial").epochs
    assert len(resumed) == 2
    assert resumed[-1]["val_loss"] == pytest.approx(on_cpu(PLAIN)["val_loss"], rel=0.05)


@pytest.mark.parametrize(("kind", "bfloat16"), [("cuda", True), ("cuda", False), ("mps", True), ("xpu", True)])
def test_the_behavior_term_is_zero_at_the_weights_of_the_source(task, kind, bfloat16):
    config = config_of({"regularizer": "delta_uniform"}, batch_size=36, max_epochs=1)  # the loss before the only step
    with simulated_gpu(kind, bfloat16=bfloat16):
        assert run_trial(alone(task), config, device=kind).epochs[0]["behavior"] == 0.0


@pytest.mark.parametrize("case", [PLAIN, AVERAGED], ids=name_of)
def test_the_best_epoch_scores_as_the_saved_model(task, case):
    config = config_of(case, max_epochs=1, batch_size=12)
    with simulated_gpu():
        trained = run_trial(alone(task), config, device="cuda")
    network = build_target(task.backbone, len(task.dataset.classes), torch.Generator()).eval()
    network.load_state_dict(trained.model_state)
    with torch.inference_mode():
        pixels = evaluation_batches(task.dataset.val, task.backbone.preprocessing, torch.device("cpu"))
        logits = torch.cat([network(batch) for batch in pixels])
    expected = classification_metrics(logits, torch.tensor(task.dataset.val.labels))
    assert trained.epochs[0]["val_loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_random_numbers_of_the_caller_are_left_as_they_are(task, kind):
    forked = []
    with simulated_gpu(kind):
        module = torch.get_device_module(kind)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "set_rng_state", lambda *given: forked.append(given))
            run_trial(alone(task), config_of(CASES[2], max_epochs=1), device=kind)
    assert len(forked) == 1


def interrupted(task, config, folder, device="cuda"):
    """Run the first epoch and save it."""

    class Stop(Exception):
        pass

    def saved(epoch):
        raise Stop

    with pytest.raises(Stop):
        run_trial(alone(task), config, device=device, checkpoint=folder, decisive=[1], saved=saved)
    assert read_resume_point(folder).epoch == 1


def without_times(row):
    return {name: value for name, value in row.items() if not name.endswith("seconds")}


def test_networks_see_one_shape_in_training_and_one_in_scoring_on_cuda(task, monkeypatch):
    """36 images are no multiple of 10, and 9 are no power of two."""
    shapes = {True: set(), False: set()}

    def built(*args):
        model = build_target(*args)
        model.register_forward_pre_hook(lambda module, inputs: shapes[module.training].add(len(inputs[0])))
        return model

    monkeypatch.setattr(trial, "build_target", built)
    with simulated_gpu("cuda"):
        run_trial(alone(task), TrialConfig(regularizer="l2", batch_size=10, max_epochs=1), device="cuda")
    assert {training: len(sizes) for training, sizes in shapes.items()} == {True: 1, False: 1}
    assert shapes[True] == {10}
