"""Which images an epoch's batches hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.simulated_gpu import simulated_gpu

from delta_tune.data.batches import balanced_order, filled, shuffled_batches, training_batches

LABELS = np.repeat([0, 1, 3], [20, 7, 2])  # class 2 does not occur


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_random_sampling_is_the_plain_shuffle_bit_by_bit():
    generators = seeded(), seeded()
    expected = shuffled_batches(len(LABELS), 8, generators[0])
    found = training_batches(LABELS, 8, "random", generators[1])
    assert [batch.tolist() for batch in found] == [batch.tolist() for batch in expected]
    assert generators[0].get_state().equal(generators[1].get_state())


@pytest.mark.parametrize("seed", range(5))
def test_balanced_epoch_has_as_many_draws_as_images_and_of_each_class_the_same_number(seed):
    order = balanced_order(LABELS, seeded(seed))
    counts = np.bincount(LABELS[order], minlength=4)
    assert len(order) == 29
    assert counts[2] == 0
    assert sorted(counts[[0, 1, 3]].tolist()) == [9, 10, 10]


def test_balanced_epoch_repeats_no_image_before_all_of_its_class_had_their_turn():
    draws = np.bincount(balanced_order(LABELS, seeded()), minlength=29)
    assert draws[:20].max() == 1, "10 of 20"
    assert set(draws[20:27].tolist()) == {1, 2}, "9 or 10 of 7"
    assert set(draws[27:].tolist()) <= {4, 5}, "9 or 10 of 2"


def test_each_class_has_its_turn_to_be_drawn_once_more():
    once_more = [np.bincount(LABELS[balanced_order(LABELS, seeded(seed))], minlength=4) for seed in range(60)]
    assert (np.array(once_more)[:, [0, 1, 3]] == 9).any(0).all()


def test_balanced_order_is_mixed_and_follows_from_the_generator_alone():
    first, again, other = (balanced_order(LABELS, seeded(seed)) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()
    changes = np.count_nonzero(np.diff(LABELS[first]))
    assert changes > 8, "not class by class"


def test_balanced_batches_are_as_many_as_random_ones_and_none_has_a_single_image():
    labels = np.repeat([0, 1], [12, 5])
    sizes = [[len(batch) for batch in training_batches(labels, 8, kind, seeded())] for kind in ("random", "balanced")]
    assert sizes[0] == sizes[1] == [8, 9]


def test_balanced_order_of_fewer_images_than_draws_of_one_class_is_a_permutation():
    assert sorted(balanced_order(np.zeros(6, dtype=np.int64), seeded()).tolist()) == list(range(6))


@pytest.mark.parametrize("kind", ["random", "balanced"])
@pytest.mark.parametrize("count", [17, 18, 23, 24, 25])
def test_batches_of_one_size_are_as_many_as_others(kind, count):
    labels = np.arange(count) % 3
    found = training_batches(labels, 8, kind, seeded(), same_size=True)
    assert len(found) == len(training_batches(labels, 8, kind, seeded()))
    assert {len(batch) for batch in found} == {8}


def test_the_last_of_batches_of_one_size_is_filled_with_images_of_the_first():
    *before, last = training_batches(np.zeros(21, np.int64), 8, "random", seeded(), same_size=True)
    *_, short = training_batches(np.zeros(21, np.int64), 8, "random", seeded())
    assert last.tolist() == [*short, *before[0][:3]]


def test_a_single_batch_stays_as_small_as_it_is():
    assert [len(batch) for batch in training_batches(LABELS, 64, "random", seeded(), same_size=True)] == [29]


@pytest.mark.parametrize(("images", "of", "size"), [(3, 3, 4), (4, 4, 4), (5, 300, 128), (128, 300, 128), (44, 44, 64)])
def test_evaluated_batches_are_filled_to_one_size_on_cuda(images, of, size):
    batch = torch.arange(images).float().reshape(-1, 1, 1, 1)
    with simulated_gpu("cuda"):
        found = filled(batch.to("cuda"), of).cpu().flatten().tolist()
    assert found == [*range(images), *[images - 1] * (size - images)]


def test_evaluated_batches_are_as_they_are_on_a_cpu():
    batch = torch.zeros(5, 3, 2, 2)
    assert filled(batch, 300) is batch
