from __future__ import annotations

import pytest

from delta_tune.results.utilization import measure_time_use, slots_without


def row(began, ended, train=None, validation=0.0):
    return {
        "began": began,
        "ended": ended,
        "train_seconds": ended - began if train is None else train,
        "eval_seconds": validation,
    }


def test_time_use_of_full_slots_is_training():
    use = measure_time_use([row(0, 10), row(0, 10)], [(0.0, 2)])
    assert (use.total, use.training, use.inside, use.between, use.tail) == (20, 20, 0, 0, 0)
    assert use.overhead == 0


def test_time_use_divides_all_of_the_slots_time():
    rows = [row(0, 10, 7, 1), row(1, 5, 3, 1), row(6, 14, 8, 0), row(11, 13, 1, 0.5)]
    use = measure_time_use(rows, [(0.0, 2)])
    assert use.total == 28
    assert (use.training, use.validation) == (19, 2.5)
    assert use.inside == pytest.approx(24 - 21.5)
    assert use.tail == 1  # one slot from 13 to 14
    assert use.between == pytest.approx(1 + 1 + 1)  # before 1, from 5 to 6, from 10 to 11
    assert use.training + use.validation + use.inside + use.between + use.tail == pytest.approx(use.total)
    assert use.overhead == pytest.approx(5.5 / 21.5)


def test_time_use_counts_slots_without_any_trial_as_idle():
    use = measure_time_use([row(0, 10)], [(0.0, 4)])
    assert use.tail == 30
    assert use.between == 0


def test_time_use_leaves_out_earlier_sessions_and_trials_without_an_epoch():
    rows = [row(0, 10), row(100, 110), {**row(50, 60), "ended": None}, row(104, 106, train=0)]
    assert measure_time_use(rows, [(0.0, 1)], since=90).total == 10
    assert measure_time_use([], [(0.0, 2)]) is None
    assert measure_time_use(rows, [(0.0, 1)], since=200) is None


def test_sentence_gives_shares_and_overhead():
    said = measure_time_use([row(0, 10, 7, 1)], [(0.0, 1)]).sentence()
    assert "training 70 %, validation 10 %, checkpoints and reports 20 %" in said
    assert "added 25 %" in said


def test_slots_that_come_and_go_are_counted_while_they_are_there():
    rows = [row(0, 10), row(4, 9), row(0, 6)]
    use = measure_time_use(rows, [(0.0, 2), (3.0, 3), (8.0, 1)])
    assert use.total == 2 * 3 + 3 * 5 + 1 * 2
    assert use.tail == (3 * 4 + 1 * 2) - (6 + 5 + 2)


def test_slots_that_do_other_work_are_not_idle():
    slots = slots_without([(0.0, 2), (20.0, 3)], [(-5.0, 2), (-1.0, 0), (4.0, 1), (10.0, 0)])
    assert slots == [(-5.0, 0), (-1.0, 2), (0.0, 2), (4.0, 1), (10.0, 2), (20.0, 3)]
    use = measure_time_use([row(0, 10), row(0, 4)], slots)
    assert (use.total, use.between, use.tail) == (14, 0, 0)
