from __future__ import annotations

import dataclasses
import math
import os
from types import SimpleNamespace

import pytest
import ray
import torch

from delta_tune.cluster import gpu_sharing
from delta_tune.cluster.failures import ExternalFailure, device_faults_named
from delta_tune.cluster.gpu_sharing import (
    CONTEXT_BYTES,
    STEPS,
    Footprint,
    cpus_of_sharer,
    doubled_share,
    gpu_share,
    heaviest_config,
    limit_memory,
    measure_footprint,
    measure_footprint_on_cluster,
    memory_fraction,
    source_copies,
    trials_per_gpu,
    whole_units,
)
from delta_tune.config import TrialConfig, UserError

GIB = 2**30


def footprint(peak=2 * GIB, total=24 * GIB, busy=0.1):
    return Footprint(peak=peak, total=total, busy=busy, images_per_second=100.0)


@pytest.mark.parametrize(
    ("asked", "cpus", "trials"),
    [
        (footprint(busy=0.1), 16, 8),  # memory: 24 / (2.2 + 0.59)
        (footprint(busy=0.3), 16, 4),  # time: the fourth one fills the rest
        (footprint(busy=0.5), 16, 2),
        (footprint(busy=1.0), 16, 1),
        (footprint(busy=0.1), 3, 3),  # CPUs
        (footprint(peak=30 * GIB), 16, 1),  # too large altogether: the trial will say so
        (footprint(), 0.5, 1),
    ],
)
def test_as_many_trials_share_a_gpu_as_the_scarcest_allows(asked, cpus, trials):
    assert trials_per_gpu(asked, cpus, 1) == trials


@pytest.mark.parametrize("trials", range(1, 40))
def test_so_many_shares_fit_and_no_more(trials):
    assert trials * gpu_share(trials) <= 1
    assert (trials + 1) * gpu_share(trials) > 1


@pytest.mark.parametrize(
    ("cpus_per_gpu", "gpus", "cpus"),
    [
        (8, 1, 8),
        (8, 0.5, 4),
        (8, 0.3333, 2),
        (8, 1 / 3, 2),
        (8, 0.3, 2),
        (2, 0.25, 0.5),
        (1, 0.3333, 0.3333),
        (0, 1, 1),
    ],
)
def test_cpus_are_shared_out_like_the_gpu(cpus_per_gpu, gpus, cpus):
    assert cpus_of_sharer(cpus_per_gpu, gpus) == cpus


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3333, 0.0001, 0.07, 0.2841])
def test_shares_in_rays_units_stay_as_they_are(share):
    assert whole_units(share) == share


def test_three_thirds_fit():
    assert whole_units(1 / 3) == 0.3333


def test_each_choice_of_layers_has_a_source_of_its_own():
    configs = [
        TrialConfig(regularizer="l2"),
        *(TrialConfig(regularizer="delta", layers=layers) for layers in ("all", "last", "all")),
    ]
    assert source_copies(configs) == 2
    assert source_copies(configs[:1]) == 0


@pytest.mark.parametrize(("before", "after"), [(0.1, 0.2), (0.25, 0.5), (0.3333, 1.0), (0.5, 1.0), (0.2, 0.5)])
def test_twice_halves_how_many_share(before, after):
    assert doubled_share(before) == after


@pytest.mark.parametrize("trials", [1, 2, 3, 8])
def test_caps_and_contexts_of_all_sharers_fit_in_the_gpu(trials):
    cap = memory_fraction(gpu_share(trials), 24 * GIB)
    assert trials * (cap * 24 * GIB + CONTEXT_BYTES) <= 24 * GIB * 1.0001


def test_heaviest_has_the_largest_batch_and_both_networks():
    configs = [
        TrialConfig(regularizer="l2_fe", batch_size=256),
        TrialConfig(regularizer="l2", batch_size=64, warmup_epochs=2),
        TrialConfig(regularizer="delta", batch_size=16),
    ]
    chosen = heaviest_config(configs)
    assert (chosen.batch_size, chosen.regularizer, chosen.max_epochs) == (64, "delta_uniform", 2)
    assert heaviest_config(configs[:2]).regularizer == "l2"
    assert heaviest_config([*configs, TrialConfig(optimizer="adamw", batch_size=1)]).optimizer == "adamw"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_torch_cannot_use_is_a_clear_error(task):
    with pytest.raises(UserError, match="--gpus-per-trial 0"):
        measure_footprint(task, TrialConfig())


@pytest.mark.gpu
def test_footprint_is_of_the_trial(task):
    small, large = (measure_footprint(task, heaviest_config([TrialConfig(batch_size=size)])) for size in (4, 32))
    assert 0 < small.peak < large.peak < large.total
    assert 0 < small.busy <= 1


def test_footprint_says_what_was_measured():
    said = dataclasses.replace(footprint(), busy=0.42).sentence
    assert "2 GiB of 24 GiB" in said
    assert "42 %" in said


@pytest.mark.parametrize(("gpus", "limits"), [(0.25, [0.25 - CONTEXT_BYTES / (24 * GIB)]), (1.0, []), (0.0, [])])
def test_process_with_a_part_of_a_gpu_is_held_to_it(monkeypatch, gpus, limits):
    found = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=24 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", found.append)
    limit_memory(gpus)
    assert found == limits


@pytest.mark.parametrize(
    ("error", "tries", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            1,
            "a smaller batch_size or --image-size",
        ),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), 2, "on GPU 0 of node"),
    ],
    ids=["memory", "broken"],
)
def test_measuring_that_fails_on_the_gpu_is_one_sentence(ray_cluster, monkeypatch, tmp_path, error, tries, words):
    def measure(task, config, copies):
        with device_faults_named("measuring"):
            (tmp_path / str(os.getpid())).touch()
            raise error

    monkeypatch.setattr(gpu_sharing, "_measure", measure)
    with pytest.raises(UserError, match=r"^--gpus-per-trial auto found no share: measuring on GPU 0") as told:
        measure_footprint_on_cluster(None, [TrialConfig()])
    assert words in str(told.value)
    assert "Traceback" not in str(told.value)
    assert len(list(tmp_path.iterdir())) == tries, "each in a process of its own"


@pytest.fixture
def measured(task, monkeypatch):
    """Measures a trial on a GPU that is a name only; tells the configuration that was trained."""
    events, trained = [SimpleNamespace(self_device_time_total=1.0)], []
    profiler = SimpleNamespace(start=lambda: None, stop=lambda: None, key_averages=lambda: events)
    monkeypatch.setattr(torch.profiler, "profile", lambda activities, acc_events: profiler)
    for name, answer in {
        "is_available": True,
        "get_device_properties": SimpleNamespace(total_memory=2**33),
        "reset_peak_memory_stats": None,
        "synchronize": None,
        "max_memory_reserved": 2**30,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *device, answer=answer: answer)

    def run_trial(task, config, report, device):
        trained.append(config)
        rows = [{"epoch": epoch, "seconds": 0.5} for epoch in range(1, config.max_epochs + 1)]
        for row in rows:
            report(row)
        return SimpleNamespace(epochs=rows)

    monkeypatch.setattr(gpu_sharing, "run_trial", run_trial)
    return SimpleNamespace(
        events=events, trained=trained, of=lambda config, *more: measure_footprint(task, config, *more)
    )


@pytest.mark.parametrize("batch_size", [1, 8, 4096])
def test_enough_steps_are_measured_where_images_are_few(measured, task, batch_size):
    found = measured.of(TrialConfig(batch_size=batch_size))
    images = min(len(task.dataset.train), STEPS * batch_size)
    (config,) = measured.trained
    assert (config.max_epochs - 1) * math.ceil(images / batch_size) >= STEPS
    assert found.images_per_second == images / 0.5


def test_sources_of_all_choices_of_layers_are_counted(measured, task):
    one, three, none = (measured.of(TrialConfig(), copies).peak for copies in (1, 3, 0))
    assert one == none == 2**30
    assert three - one == 2 * sum(array.nbytes for array in task.backbone.state.values())


def test_gpu_whose_time_nobody_may_measure_is_not_shared(measured):
    measured.events.clear()
    assert trials_per_gpu(measured.of(TrialConfig()), 16, 1) == 1


def test_gpu_that_the_heaviest_trial_does_not_fit_in_is_not_shared(measured, monkeypatch):
    def starve(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_sharing, "run_trial", starve)
    found = measured.of(TrialConfig())
    assert trials_per_gpu(found, 16, 1) == 1
    assert found.sentence == "measured: the heaviest trial ran out of the 8 GiB of a GPU"


def test_measurement_gives_up_where_no_gpu_becomes_free(task, ray_cluster, monkeypatch):
    class Service:
        def answer(self):
            return 1

    service = ray.remote(num_gpus=1)(Service).remote()
    ray.get(service.answer.remote())
    monkeypatch.setattr(gpu_sharing, "MEASURE_S", 0.5)
    try:
        with pytest.raises(ExternalFailure, match=r"no GPU was free for .* to measure a trial on; end what uses them"):
            measure_footprint_on_cluster(task, [TrialConfig(regularizer="l2")])
    finally:
        ray.kill(service)


def test_heaviest_trains_the_sources_head_on_whole_images():
    configs = [TrialConfig(regularizer="delta", batch_size=64, early_size=0.5), TrialConfig(regularizer="co_tuning")]
    chosen = heaviest_config(configs)
    assert (chosen.effective_co_tuning, chosen.early_size) == (1.0, 1.0)
    assert heaviest_config(configs[:1]).effective_co_tuning == 0
