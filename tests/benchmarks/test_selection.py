"""Rules that name a winner, on recorded curves: what each picks, what studies lose by it, when trials are enough."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, log_loss

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # programs, not a package
import selection
from record_curves import SPACES
from selection_parts.arms import Arm, arms_of, decision
from selection_parts.efficiency import efficiency
from selection_parts.pool import Pool, balanced_accuracy, is_start, parts_of, read_pool, tempered_nll
from selection_parts.sequence import judge, run_of, runs_of, trials_until
from selection_parts.studies import draws, resampled, simulate

VAL, TEST, CLASSES, EPOCHS = 40, 60, 4, 5


def logits_of(rng, labels, skill):
    """One configuration's: noise, and `skill` on the true class."""
    return rng.normal(size=(len(labels), CLASSES)) + skill * np.eye(CLASSES)[labels]


def pool_of(count=12, seed=0):
    """Configurations of growing skill, whose curves rise to what their logits have."""
    rng = np.random.default_rng(seed)
    labels, tested = (rng.permutation(np.arange(size) % CLASSES) for size in (VAL, TEST))
    logits = np.array([logits_of(rng, labels, skill) for skill in np.linspace(0.5, 4, count)])
    test = np.array([logits_of(rng, tested, skill) for skill in np.linspace(0.5, 4, count)])
    final = (logits.argmax(2) == labels).mean(1)
    loss = np.array([log_loss(labels, torch.softmax(torch.from_numpy(each), 1).numpy()) for each in logits])
    rise = np.array([0.4, 0.7, 0.9, 0.97, 1.0])
    return Pool(
        name="made up",
        starts=np.zeros(count, bool),
        num_val=VAL,
        methods=("l2",) * count,
        score=final[:, None] * rise,
        loss=loss[:, None] / rise,
        accuracy=final[:, None] * rise,
        test=(test.argmax(2) == tested).mean(1),
        logits=logits,
        labels=labels,
    )


def table_of(file, count=6, state="completed"):
    """A recording, as `record_curves.py` writes it."""
    rng = np.random.default_rng(0)
    labels = {"val": (np.arange(VAL) % CLASSES).tolist(), "test": (np.arange(TEST) % 7 % CLASSES).tolist()}
    rows = []
    for number in range(count):
        given = {"number": number, "state": state if number == 1 else "completed"}
        given |= {"space": "methods.py", "params": json.dumps({"regularizer": "l2", "lr": number})}
        given["config"] = json.dumps({"regularizer": "l2_sp" if number == 2 else "l2"})
        for epoch in range(1, EPOCHS + 1):
            scores = dict(zip(("val_accuracy", "val_balanced_accuracy", "val_loss"), rng.random(3), strict=True))
            rows.append(given | scores | {"epoch": epoch, "val_logits": None, "test_logits": None})
        for split, name in (("val", "val_logits"), ("test", "test_logits"), ("test", "best_test_logits")):
            made = logits_of(rng, np.array(labels[split]), number)
            rows[-1][name] = made.astype(np.float16).ravel().tolist()
    rng.shuffle(rows)
    kinds = {name: pa.list_(pa.float16()) for name in ("val_logits", "test_logits", "best_test_logits")}
    names = sorted({name for row in rows for name in row})
    columns = {name: pa.array([row.get(name) for row in rows], type=kinds.get(name)) for name in names}
    metadata = {"labels": json.dumps({"classes": CLASSES, **labels})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), file)
    return sorted(rows, key=lambda row: (row["number"], row["epoch"])), labels


def pick(arm, *drawn):
    return arm.pick(np.array([drawn])).tolist()[0]


def test_arm_takes_the_best_and_of_equals_the_lower_loss():
    arm = Arm(score=np.array([0.8, 0.9, 0.9, 0.7]), loss=np.array([0.1, 0.4, 0.3, 0.0]))
    assert pick(arm, 0, 1, 2, 3) == 2
    assert pick(arm, 0, 1, 3) == 1
    assert pick(arm, 3, 0) == 0


def test_arm_near_takes_the_lowest_loss_within_one_standard_error():
    # Of 0.9 and 100 photos it is 0.03: 0.871 is near, 0.869 is not. Without the best, the cut is another one.
    arm = Arm(score=np.array([0.9, 0.871, 0.869]), loss=np.array([0.3, 0.2, 0.1]), near=100)
    assert pick(arm, 0, 1, 2) == 1
    assert pick(arm, 1, 2) == 2


def test_arm_picks_study_by_study():
    arm = Arm(score=np.array([0.1, 0.3, 0.2]), loss=np.zeros(3))
    assert arm.pick(np.array([[0, 1], [2, 0], [2, 1]])).tolist() == [1, 2, 1]


def test_arms_today_takes_the_best_epoch_and_last_the_last():
    score = np.array([[0.5, 0.9, 0.6, 0.6], [0.5, 0.7, 0.8, 0.8], [0.7, 0.7, 0.7, 0.75]])
    loss = np.array([[9.0, 9, 9, 9], [1, 1, 1, 1], [1, 1, 1, 0]])
    pool = dataclasses.replace(pool_of(3), score=score, loss=loss, logits=None)
    arms = arms_of(pool)
    assert {name: pick(arm, 0, 1, 2) for name, arm in arms.items()} == {"a": 0, "b": 1, "c": 2, "f": 1, "g": 2}
    assert arms["f"].score == pytest.approx(score[:, 1:].mean(1))
    assert arms["g"].loss == pytest.approx(loss[:, 1:].mean(1))


def test_arms_today_breaks_ties_by_the_loss_of_the_first_best_epoch():
    score = np.array([[0.9, 0.9, 0.1], [0.1, 0.9, 0.9]])
    loss = np.array([[0.5, 0.1, 0.1], [0.1, 0.4, 0.6]])
    pool = dataclasses.replace(pool_of(2), score=score, loss=loss, logits=None)
    assert arms_of(pool)["a"].loss.tolist() == [0.5, 0.4]


def test_tempered_nll_undoes_a_temperature():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % CLASSES
    logits = logits_of(rng, labels, 2.0)
    grid = [
        log_loss(labels, torch.softmax(torch.from_numpy(logits / t), 1).numpy()) for t in np.geomspace(0.1, 10, 400)
    ]
    assert tempered_nll(logits, labels) == pytest.approx(min(grid), abs=1e-4)
    assert tempered_nll(5 * logits, labels) == pytest.approx(min(grid), abs=1e-4)


def test_balanced_accuracy_is_that_of_sklearn():
    rng = np.random.default_rng(0)
    labels = np.arange(50) % 7 % CLASSES
    logits = np.array([logits_of(rng, labels, skill) for skill in (0.0, 1.0, 3.0)])
    assert balanced_accuracy(logits, labels) == pytest.approx(
        [balanced_accuracy_score(labels, each.argmax(1)) for each in logits]
    )


def test_parts_fall_from_class_to_class_in_a_random_order():
    labels = np.repeat([0, 1, 2, 3, 4], 10)
    parts = parts_of(labels, 30, 1.0, 0.2)
    counts = [np.bincount(labels[part]).tolist() for part in parts]
    assert all(sorted(each) == [2, 4, 6, 8, 10] for each in counts)
    assert len({tuple(each) for each in counts}) > 5


def test_parts_of_a_half_have_half_of_each_class():
    labels = np.repeat([0, 1, 2], [10, 4, 3])
    halves = parts_of(labels, 5, 0.5, 0.5)
    assert all(np.bincount(labels[half]).tolist() == [5, 2, 2] for half in halves)
    assert all(len(set(half.tolist())) == 9 for half in halves)
    assert len({tuple(half.tolist()) for half in halves}) == 5


def test_pool_with_photos_is_judged_by_them_alone():
    pool, photos = pool_of(), np.array([3, 1, 20])
    part = pool.with_photos(photos)
    expected = (pool.logits[:, photos].argmax(2) == pool.labels[photos]).mean(1)
    assert part.score[:, -1] == pytest.approx(expected)
    assert part.num_val == 3
    balanced = dataclasses.replace(pool, metric="balanced_accuracy").with_photos(np.arange(15))
    told = [balanced_accuracy_score(pool.labels[:15], each[:15].argmax(1)) for each in pool.logits]
    assert balanced.score[:, 0] == pytest.approx(told)
    assert sorted(arms_of(part)) == ["b", "c", "d", "e"]
    assert part.nll[4] == pytest.approx(tempered_nll(pool.logits[4, photos], pool.labels[photos]))


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_read_pool_sorts_rows_and_leaves_out_what_diverged(tmp_path, metric):
    rows, labels = table_of(tmp_path / "made.parquet", state="diverged")
    pool = read_pool(tmp_path / "made.parquet", metric)
    kept = [row for row in rows if row["number"] != 1]
    assert pool.score == pytest.approx(np.array([row[f"val_{metric}"] for row in kept]).reshape(5, EPOCHS))
    assert pool.loss == pytest.approx(np.array([row["val_loss"] for row in kept]).reshape(5, EPOCHS))
    assert (pool.name, pool.num_val, pool.methods) == ("made", VAL, ("l2", "l2_sp", "l2", "l2", "l2"))
    score = balanced_accuracy_score if metric == "balanced_accuracy" else lambda true, told: np.mean(true == told)
    for column, told in (("test_logits", pool.test), ("best_test_logits", pool.best_test)):
        named = [np.reshape(row[column], (TEST, CLASSES)).argmax(1) for row in kept if row["epoch"] == EPOCHS]
        assert told == pytest.approx([score(np.array(labels["test"]), each) for each in named])


def test_read_pool_of_the_old_table():
    pool = read_pool(selection.OLD)
    assert (len(pool), pool.score.shape, pool.logits, pool.best_test) == (200, (200, 12), None, None)
    assert 0.8 < pool.test.max() < 0.92
    assert sorted(arms_of(pool)) == ["a", "b", "c", "f", "g"]


def test_draws_take_no_configuration_twice_and_each_as_often():
    drawn = draws(np.random.default_rng(0), np.ones(9, int), 3000, 4)
    assert all(len(set(each)) == 4 for each in drawn.tolist())
    assert np.bincount(drawn.ravel()) / 3000 == pytest.approx(np.full(9, 4 / 9), abs=0.05)


def test_draws_follow_the_weights_and_never_take_what_is_not_there():
    drawn = draws(np.random.default_rng(0), np.array([3, 0, 1]), 4000, 1)
    assert np.bincount(drawn.ravel()) / 4000 == pytest.approx([0.75, 0, 0.25], abs=0.03)
    assert np.unique(draws(np.random.default_rng(0), np.array([3, 0, 1]), 100, 2)).tolist() == [0, 2]


def test_resampled_has_enough_configurations():
    rng = np.random.default_rng(0)
    pools = [resampled(rng, 6, 5) for _ in range(50)]
    assert all(pool.sum() == 6 and (pool > 0).sum() >= 5 for pool in pools)


def test_simulate_compares_arms_with_the_oracle_and_with_one_another():
    test = np.array([0.5, 0.6, 0.7, 0.8])
    knows, worst = Arm(score=test, loss=-test), Arm(score=-test, loss=test)
    found = simulate([{"a": worst, "b": knows}], test, test + 0.1, 2, studies=4000, pools=20)
    # Of two of four the better one has 0.6, 0.7, 0.7, 0.8, 0.8, 0.8 in the six draws; the worse is 1.3 minus that.
    better = 100 * np.mean([0.6, 0.7, 0.7, 0.8, 0.8, 0.8])
    assert found["b"].score == pytest.approx(better, abs=0.5)
    assert found["b"].loss == 0
    assert found["a"].loss == pytest.approx(found["b"].gain) == pytest.approx(2 * (better - 65), abs=0.7)
    assert found["a*"].score == pytest.approx(found["a"].score + 10)
    assert found["a"].interval == (0, 0)
    assert 0 < found["b"].interval[0] < found["b"].gain


def test_simulate_deals_studies_to_judges_in_turn():
    test = np.array([0.0, 1.0])
    likes = [{"a": Arm(score=score, loss=score)} for score in (test, -test)]
    assert simulate(likes, test, None, 2, studies=100, pools=1)["a"].score == 50


def test_decision_takes_the_arm_that_wins_most_sets_among_those_within_the_limits():
    gains = {
        "x": {"c": 0.2, "f": 0.9, "g": 0.1},
        "y": {"c": 0.3, "f": -0.3, "g": 0.1},
        "z": {"c": 0.0, "f": 1, "g": 0.4},
    }
    assert decision(gains) == "c"  # f wins two sets, but loses 0.3 on one
    assert decision({**gains, "y": {"c": 0.3, "f": -0.2, "g": 0.1}}) == "f"


def test_decision_keeps_todays_if_none_gains_enough():
    assert decision({"x": {"c": 0.1, "g": 0.05}, "y": {"c": 0.05, "g": 0.0}}) == "a"


def test_decision_breaks_ties_by_the_mean():
    assert decision({"x": {"c": 0.5, "d": 0.2}, "y": {"c": 0.2, "d": 0.3}}) == "c"


def test_decision_of_an_arm_that_lacks_a_set_is_by_the_others():
    assert decision({"old": {"c": 0.1}, "x": {"c": 0.1, "d": 0.4}, "y": {"c": 0.1, "d": 0.4}}) == "d"


def test_run_prunes_by_the_rungs_and_counts_epochs():
    accuracy = np.array([[0.9] * 5, [0.1] * 5, [0.9, 0.9, 0.9, 0.2, 0.2], [0.95] * 5])
    pool = dataclasses.replace(pool_of(4), accuracy=accuracy, score=accuracy)
    run = run_of(pool, np.array([0, 1, 2, 3]))
    # Rungs after epochs 1 and 4: the second is stopped at the first of them, the third at the other.
    assert run.full.tolist() == [True, False, False, True]
    assert run.epochs.tolist() == [5, 6, 10, 15]


def test_run_lets_frozen_features_pass_the_rungs():
    accuracy = np.array([[0.9] * 5, [0.1] * 5])
    pool = dataclasses.replace(pool_of(2), accuracy=accuracy, methods=("l2", "l2_fe"))
    assert run_of(pool, np.array([0, 1])).full.tolist() == [True, True]


def test_trials_until_hands_the_rule_what_ran_to_its_end():
    accuracy = np.array([[0.8, 0.9], [0.1, 0.1], [0.85, 0.8], [0.9, 0.9]])
    pool = dataclasses.replace(pool_of(4), accuracy=accuracy, score=accuracy)
    told = []

    def stops(scores, trials, num_val):
        told.append((scores, trials, num_val))
        return trials == 3

    assert trials_until(pool, run_of(pool, np.arange(4)), stops) == 3
    assert told == [([0.9], 1, VAL), ([0.9], 2, VAL), ([0.9, 0.85], 3, VAL)]
    assert trials_until(pool, run_of(pool, np.arange(4)), lambda *_: False) == 4


def test_judge_of_all_trials_loses_nothing_and_of_fewer_something():
    pool = pool_of(20)
    runs = runs_of(pool, 40)
    arm = arms_of(pool)["a"]
    every, few = judge(pool, runs, arm, 32), judge(pool, runs, arm, 3)
    assert (every.trials, every.share, every.loss) == (20, 1, 0)
    assert (few.trials, few.share < 0.5, few.loss > 1) == (3, True, True)


def test_run_at_full_length_prunes_nothing():
    run = run_of(pool_of(4), np.arange(4), None)
    assert (run.full.all(), run.epochs.tolist()) == (True, [5, 10, 15, 20])


def test_run_scores_count_trials_that_have_ended():
    test = np.array([0.3, 0.9, 0.6])
    arm = Arm(score=np.array([0.1, 0.2, 0.3]), loss=np.zeros(3))
    run = run_of(dataclasses.replace(pool_of(3), test=test), np.array([1, 0, 2]), None)
    # None, then the second, which has the better score than the first, then the third
    assert run.scores(arm, test, [4, 5, 14, 15]) == [0.3, 0.9, 0.9, 0.6]


def test_runs_with_starts_have_them_first_in_their_order():
    pool = dataclasses.replace(pool_of(8), starts=np.isin(np.arange(8), [2, 6]))
    orders = [run.order.tolist() for run in runs_of(pool, 5, starts=True)]
    assert all(order[:2] == [2, 6] and sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_efficiency_of_rungs_that_stop_the_worst():
    pool = pool_of(16)
    arm = Arm(score=pool.test, loss=-pool.test)
    found = efficiency(pool, arm, ["full length", "ours"], 30)
    assert found["full length"].by_trials[-1] == pytest.approx(100 * pool.test.max())
    assert found["full length"].epochs <= 16 * EPOCHS
    assert found["ours"].epochs < found["full length"].epochs
    assert found["ours"].area > found["full length"].area


def test_recorded_tables_begin_with_the_starting_points_of_both_spaces_in_turn():
    numbers = {space: [n for n in range(place, 24, 2) if is_start(space, n)] for place, space in enumerate(SPACES)}
    assert numbers == {"delta.py": [0, 2, 4], "methods.py": [1, 3, 5, 7, 9]}


@pytest.mark.slow
def test_program_ends_and_writes_its_figures(tmp_path, monkeypatch, capsys):
    table_of(tmp_path / "made.parquet", 9)
    table_of(tmp_path / "begun.parquet", 3)
    table_of(tmp_path / "old", 9)
    monkeypatch.setattr(selection, "OLD", tmp_path / "old")
    monkeypatch.setattr(selection, "POOLS", 20)
    monkeypatch.setattr(
        sys, "argv", ["selection.py", "--quick", "--curves", str(tmp_path), "--json", str(tmp_path / "told.json")]
    )
    selection.main()
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["configurations"] == {"old": 9, "made": 9}  # of the other too few
    assert set(told["selection"]["made"]["4"]) == {"a", "a*", "b", "c", "d", "e", "f", "g"}
    assert set(told["halves"]["made"]["4"]) == {"b", "c", "d", "e"}
    assert f"Taken: {selection.NAMES[told['taken']]}" in capsys.readouterr().out
