"""What a row of probabilities says of an image."""

from __future__ import annotations

import numpy as np

from delta_tune.labels.answer import answer_of

ROW = np.array([0.25, 0.625, 0.125], dtype=np.float32)


def test_one_label_is_the_most_probable_class():
    answer = answer_of(ROW, None, 0.5)
    assert (answer.best, answer.probability, answer.there, answer.unsure) == (1, 0.625, (1,), False)


def test_probability_below_the_least_is_unsure_and_the_least_itself_is_sure():
    assert answer_of(ROW, None, 0.626).unsure
    assert not answer_of(ROW, None, 0.625).unsure


def test_several_labels_are_those_that_reach_their_thresholds_the_most_probable_first():
    assert answer_of(ROW, [0.25, 0.5, 0.25], 0.0).there == (1, 0)


def test_threshold_that_float32_cannot_hold_is_reached_by_the_number_it_rounds_to():
    row = np.array([0.1], dtype=np.float32)
    assert answer_of(row, [0.1], 0.0).there == (0,)


def test_none_of_several_labels_is_unsure_if_its_absence_is():
    assert answer_of(ROW, [0.9, 0.9, 0.9], 0.5).there == ()
    assert answer_of(ROW, [0.9, 0.9, 0.9], 0.5).unsure  # 1 - 0.625
    assert not answer_of(ROW, [0.9, 0.9, 0.9], 0.375).unsure
