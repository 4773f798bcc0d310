from __future__ import annotations

import dataclasses

import pytest
import torch

from delta_tune.cluster.gpu_sharing import (
    CONTEXT_BYTES,
    Footprint,
    cpus_of_sharer,
    doubled_share,
    gpu_share,
    heaviest_config,
    measure_footprint,
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_torch_cannot_use_is_a_clear_error(task):
    with pytest.raises(UserError, match="--gpus-per-trial 0"):
        measure_footprint(task, TrialConfig())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_footprint_is_of_the_trial(task):
    small, large = (measure_footprint(task, heaviest_config([TrialConfig(batch_size=size)])) for size in (4, 32))
    assert 0 < small.peak < large.peak < large.total
    assert 0 < small.busy <= 1


def test_footprint_says_what_was_measured():
    said = dataclasses.replace(footprint(), busy=0.42).sentence
    assert "2 GiB of 24 GiB" in said
    assert "42 %" in said
