"""Studies of seconds whose best configuration is trained anew on folds, on a real Ray with two CPUs."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import load_file

import delta_tune
from delta_tune.config import TrialConfig, UserError
from delta_tune.data.resampling import hold_out_folds
from delta_tune.inference.ensemble import members_of
from delta_tune.inference.model import load
from delta_tune.report.heat_map_images import read_heat_map_images
from delta_tune.report.predictions import read_predictions
from delta_tune.results.layout import HEAT_MAPS_FILE, HELD_OUT_FILE, PREDICTIONS_FILE
from delta_tune.results.logit_shift import LogitShift
from delta_tune.study import final_model, final_runs, shifted_model
from delta_tune.study.confirmation_splits import fresh_seed
from delta_tune.study.time_budget import FOLDS

pytestmark = pytest.mark.usefixtures("ray_cluster")

SPACE = """
def space(trial):
    trial.suggest_float("lr", 1e-3, 1e-2, log=True)
    return {"regularizer": "l2"}
"""

TWO_METHODS = """
def space(trial):
    return {"regularizer": trial.suggest_categorical("regularizer", ["l2", "l2_sp"]), "lr": 0.01}

START = [{"regularizer": "l2"}, {"regularizer": "l2_sp"}]
"""


def study_settings(image_folder, tiny_weights, place):
    """A study of two trials and two final runs."""
    (place / "space.py").write_text(SPACE)
    return {
        **{"data": str(image_folder), "model": "timm:test_resnet", "weights": str(tiny_weights), "image_size": 64},
        **{"out": place, "name": "study", "verbose": 0, "max_epochs": 2, "num_trials": 2, "final_runs": 2},
        **{"space": str(place / "space.py"), "set": {"batch_size": 8}, "grace_period": 2},
        **{"gpus_per_trial": 0, "max_concurrent_trials": 1},
    }


@pytest.fixture
def settings(image_folder, tiny_weights, tmp_path):
    return study_settings(image_folder, tiny_weights, tmp_path)


@pytest.fixture(scope="module")
def runs_weights():
    """What the runs of `made` leave: for each mean that is made, the tensors of its files."""
    return []


@pytest.fixture(scope="module")
def made(image_folder, tiny_weights, tmp_path_factory, ray_cluster, runs_weights):
    """The settings of a study, and its result."""
    own, mean = study_settings(image_folder, tiny_weights, tmp_path_factory.mktemp("made")), final_model.mean_weights

    def keeping(files):
        runs_weights.append([load_file(file) for file in files])
        return mean(files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(final_model, "mean_weights", keeping)
        return own, delta_tune.tune(**own)


@pytest.fixture(scope="module")
def searched(image_folder, tiny_weights, tmp_path_factory, ray_cluster):
    """The result of the same study without final runs, by macro F1: where final runs begin, a copy of it is resumed."""
    own = study_settings(image_folder, tiny_weights, tmp_path_factory.mktemp("searched"))
    return delta_tune.tune(**own | {"final_runs": 0, "metric": "val_macro_f1"})


def record(result):
    return json.loads((result.path / "study.json").read_text())


def weights(result):
    return hashlib.sha256((result.path / "best" / "model.safetensors").read_bytes()).hexdigest()


def resume_copy(result, folder, **more):
    """Resume a copy of a study in another folder."""
    if not (folder / "study").exists():
        shutil.copytree(result.path, folder / "study")
    return delta_tune.tune(**{"name": "study", "out": folder, "resume": True, "verbose": 0, **more})


@pytest.fixture
def resumed(made, tmp_path):
    """A function that resumes a copy of the study."""
    return functools.partial(resume_copy, made[1], tmp_path)


@pytest.fixture
def finished(searched, tmp_path):
    """A function that goes on with a copy of the study that has no final runs."""
    return functools.partial(resume_copy, searched, tmp_path)


def test_model_is_named_and_predicts(made, image_folder):
    _, result = made
    told = record(result)
    # 54 images, 18 of each of three classes: the first two folds have six each
    assert told["model"] == f"trial {told['winner']} retrained 2 times on 48 of 54 images, weights averaged"
    assert load(result.path).predict(next(image_folder.rglob("*.png")))[0].label in ("blue", "green", "red")
    assert f"({told['model']})" in result.summary
    assert "The 2 final runs of trial " in result.summary
    assert f"({told['model']})" in (result.path / "best" / "README.md").read_text()


def test_held_out_images_are_those_of_both_folds_each_predicted_once(made, task, folds):
    _, result = made
    rows, folds = pq.read_table(result.path / HELD_OUT_FILE).to_pylist(), folds[:2]
    assert [row["image"] for row in rows] == [name for fold in folds for name in fold.val.names]
    labels = np.concatenate([fold.val.labels for fold in folds])
    assert [row["true"] for row in rows] == [task.dataset.classes[label] for label in labels]


def test_record_model_and_result_tell_the_held_out_scores(made):
    _, result = made
    rows, known = pq.read_table(result.path / HELD_OUT_FILE).to_pylist(), record(result)["held_out"]
    accuracy = np.mean([row["true"] == row["predicted"] for row in rows])
    assert (known["images"], known["runs"]) == (len(rows), 2)
    assert known["accuracy"] == pytest.approx(accuracy)
    assert known["suspects"] == sum(row["suspect"] is not None for row in rows)
    told = json.loads((result.path / "best" / "config.json").read_text())
    assert told["metrics"]["val_accuracy"] == pytest.approx(accuracy)
    assert {name: result.best_metrics[name] for name in told["metrics"]} == told["metrics"]
    assert told["temperature"] == known["temperature"]


def test_probabilities_of_held_out_images_are_calibrated(made):
    _, result = made
    rows, known = pq.read_table(result.path / HELD_OUT_FILE).to_pylist(), record(result)["held_out"]
    right = np.array([row["true"] == row["predicted"] for row in rows])
    confidence = np.array([row["probability"] for row in rows])
    bins = np.ceil(confidence * 15)
    gaps = [abs((right[bins == each] - confidence[bins == each]).sum()) for each in np.unique(bins)]
    assert known["calibrated_error"] == pytest.approx(sum(gaps) / len(rows), abs=1e-5)


def test_test_split_is_scored_once_and_shown_as_the_model_predicts_it(made, task):
    _, result = made
    told = record(result)
    assert [scoring["model"] for scoring in told["test_scorings"]] == [told["model"]]
    rows = pq.read_table(result.path / PREDICTIONS_FILE).to_pylist()
    predicted = load(result.path).predict([row["image"] for row in rows])
    assert [row["probability"] for row in rows] == pytest.approx([p.probability for p in predicted], abs=1e-4)


def test_weights_are_the_mean_of_the_runs(made, runs_weights):
    ((one, other),) = runs_weights
    found = load(made[1].path).network.state_dict()
    for name, value in one.items():
        assert not np.array_equal(value, other[name]) or not value.is_floating_point() or "running" in name, name
        if value.is_floating_point():
            expected = (value.double().numpy() + other[name].double().numpy()) / 2
            np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-6, atol=1e-7)


def test_no_checkpoint_of_a_final_run_is_left(made):
    _, result = made
    assert [folder.name for folder in (result.path / "checkpoints").iterdir() if "final" in folder.name] == []


def test_report_shows_what_is_known_of_the_model(made):
    text = (made[1].path / "report.html").read_text()
    assert "The 2 final runs of trial " in text
    assert "Probabilities are calibrated with a temperature" in text


@pytest.mark.slow
def test_same_seed_gives_the_same_bytes(made):
    own, first = made
    again = delta_tune.tune(**own | {"name": "again"})
    assert weights(again) == weights(first)
    assert pq.read_table(again.path / HELD_OUT_FILE).equals(pq.read_table(first.path / HELD_OUT_FILE))


def test_resume_of_a_finished_study_trains_nothing_again(made, resumed, monkeypatch):
    monkeypatch.setattr(final_runs, "run_race", None)
    again = resumed()
    assert weights(again) == weights(made[1])
    assert record(again)["test_scorings"] == record(made[1])["test_scorings"]
    assert again.summary.replace(str(again.path), "") == made[1].summary.replace(str(made[1].path), "")


@pytest.mark.slow
def test_resume_with_further_trials_trains_the_final_model_anew(made, resumed):
    again = resumed(num_trials=3)
    told = record(again)
    assert told["held_out"]["trials"] == record(made[1])["held_out"]["trials"] + 1
    assert " retrained 2 times " in told["model"]
    assert load(again.path)


@pytest.mark.slow
def test_resume_with_more_final_runs_trains_the_final_model_anew(resumed):
    again = resumed(final_runs=3)
    assert record(again)["held_out"]["runs"] == 3
    assert len(members_of(load(again.path).network)) == 1


def test_resume_without_final_runs_keeps_the_model_that_they_made(made, resumed):
    again = resumed(final_runs=0)
    assert weights(again) == weights(made[1])


@pytest.mark.slow
def test_resume_with_two_members_makes_the_final_model_of_two_networks(resumed, image_folder):
    result = resumed(members=2)
    model = load(result.path)
    assert record(result)["held_out"]["runs"] == 2
    assert len(members_of(model.network)) == 2
    assert record(result)["model"].endswith(" retrained 2 times on 48 of 54 images, 2 networks")
    assert len(model.predict([str(file) for file in sorted(image_folder.rglob("*.png"))[:3]])) == 3
    assert "of the first of 2 networks" in (result.path / "best" / "README.md").read_text()


@pytest.fixture(scope="module")
def searched_without_test(image_folder, tiny_weights, tmp_path_factory, ray_cluster):
    """The result of a study without final runs, of the images without their test split."""
    folder = tmp_path_factory.mktemp("without-test")
    for split in ("train", "val"):
        shutil.copytree(image_folder / split, folder / "photos" / split)
    own = study_settings(folder / "photos", tiny_weights, folder)
    return delta_tune.tune(**own | {"final_runs": 0})


@pytest.mark.slow
def test_report_shows_held_out_predictions_where_there_is_no_test_split(searched_without_test, tmp_path):
    result = resume_copy(searched_without_test, tmp_path, final_runs=3)
    found = read_predictions(result.path / PREDICTIONS_FILE)
    rows = pq.read_table(result.path / HELD_OUT_FILE)
    assert (found.split, found.confusion.sum()) == ("held-out", rows.num_rows)
    assert "held-out images" in (result.path / "report.html").read_text()
    shown = read_heat_map_images(result.path / HEAT_MAPS_FILE)
    names = {row["image"] for row in rows.to_pylist()}
    assert {each.image for images in shown.values() for each in images} <= names
    assert "right" in shown
    assert "of final runs that were not trained on the image" in (result.path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
def test_shift_of_logits_is_in_the_model_and_in_all_that_is_said_of_it(searched, tmp_path, monkeypatch, members):
    more = {"final_runs": 2, "members": members}
    plain = resume_copy(searched, tmp_path / "plain", **more)
    shift, shares = LogitShift(strength=1.5, before=0.6, after=0.7), torch.tensor([0.0, -5.0, -10.0])
    monkeypatch.setattr(shifted_model, "choose_shift", lambda *_: shift)
    monkeypatch.setattr(shifted_model, "shares_of", lambda _: shares)
    result = resume_copy(searched, tmp_path / "shifted", **more)
    images, before, after = torch.randn(4, 3, 64, 64), load(plain.path), load(result.path)
    with torch.inference_mode():
        for ours, theirs in zip(members_of(after.network), members_of(before.network), strict=True):
            torch.testing.assert_close(ours(images), theirs(images) - 1.5 * shares)
    known, rows = record(result)["held_out"], pq.read_table(result.path / HELD_OUT_FILE).to_pylist()
    assert known["shift"] == {"strength": 1.5, "before": 0.6, "after": 0.7}
    assert known["accuracy"] == pytest.approx(np.mean([row["true"] == row["predicted"] for row in rows]))
    assert "1.5 times the log of a class's share is taken off its logit" in result.summary
    assert "1.5 times the log of a class" in (result.path / "report.html").read_text()
    assert "shift" not in record(plain)["held_out"]
    told = json.loads((result.path / "best" / "config.json").read_text())
    assert told["logit_shift"] == 1.5
    assert told["metrics"]["val_macro_f1"] == pytest.approx(known["score"])
    assert after.temperature != before.temperature, "fitted to the shifted logits"
    assert not list((result.path / "checkpoints").glob("final*"))


@pytest.mark.slow
def test_confirmed_configuration_is_that_of_the_final_runs(settings, tmp_path):
    (tmp_path / "two.py").write_text(TWO_METHODS)
    settings = settings | {"space": str(tmp_path / "two.py"), "confirm": 2, "max_epochs": 1, "grace_period": 1}
    result = delta_tune.tune(**settings)
    told = record(result)
    assert told["confirmation"]["trials"].keys() == {"l2", "l2_sp"}
    assert told["model"].startswith(f"trial {told['winner']} retrained 2 times on ")
    assert told["winner"] in told["confirmation"]["trials"].values()
    assert [scoring["model"] for scoring in told["test_scorings"]] == [told["model"]]
    assert told["race"] == []


@pytest.mark.slow
def test_study_of_few_training_images_on_purpose_keeps_the_search_s_model(settings):
    result = delta_tune.tune(**settings | {"train_per_class": 6, "num_trials": 1})
    told = record(result)
    assert "held_out" not in told
    assert not (result.path / HELD_OUT_FILE).exists()
    assert " retrained " not in told["model"]


@pytest.mark.slow
def test_time_budget_that_is_too_short_for_two_runs_keeps_the_model(finished, monkeypatch, capsys):
    monkeypatch.setattr(final_runs, "run_seconds", lambda *args: 1e6)
    result = finished(final_runs=2, time_budget="10m", verbose=1)
    assert "no room left for the final runs: best/ stays as it is" in " ".join(capsys.readouterr().out.split())
    assert "held_out" not in record(result)
    assert load(result.path)


@pytest.fixture(scope="module")
def folds(task):
    """The data sets of the final runs."""
    return hold_out_folds(task.dataset, FOLDS, fresh_seed(0, FOLDS))


def test_run_that_diverges_says_so(task, folds, tmp_path):
    config = TrialConfig(regularizer="l2", lr=1e9, schedule="constant", batch_size=8, max_epochs=2)
    shared = ray.put([task.on(folds[0])])
    assert final_runs._train([shared], 0, config, str(tmp_path), "cpu", 1).startswith("diverged: ")


@pytest.fixture
def second_diverges(monkeypatch, folds):
    """The run without the second fold diverges."""
    outcome = final_runs.outcome

    def other(reference):
        found = outcome(reference)
        return "diverged: of a test" if found.names == folds[1].val.names else found

    monkeypatch.setattr(final_runs, "outcome", other)


@pytest.mark.slow
def test_final_run_that_diverges_is_left_out(finished, second_diverges, capsys, folds):
    result = finished(final_runs=3, verbose=1)
    told = record(result)
    assert f"A final run of l2 (trial {told['winner']}) diverged: of a test." in " ".join(
        capsys.readouterr().out.split()
    )
    assert told["held_out"]["runs"] == 2
    names = pq.read_table(result.path / HELD_OUT_FILE)["image"].to_pylist()
    assert names == [name for fold in (0, 2) for name in folds[fold].val.names]


@pytest.mark.slow
def test_single_run_that_ends_well_leaves_the_model_as_it_is(finished, second_diverges, capsys):
    result = finished(final_runs=2, verbose=1)
    assert "Only 1 final run ended: best/ stays as it is." in " ".join(capsys.readouterr().out.split())
    assert "held_out" not in record(result)


@pytest.mark.slow
def test_interrupt_between_two_final_runs_is_resumed_without_the_finished_one(made, settings, monkeypatch):
    ended, make, stamps = final_runs.Race.ended, final_runs.make_final_model, []

    def interrupted(race, run, scores):
        ended(race, run, scores)
        raise KeyboardInterrupt

    def note():
        """When the weights of each run were written."""
        files = sorted((settings["out"] / "study" / "checkpoints").glob("final-*/weights-2.safetensors"))
        stamps.append([(file.parent.name, file.stat().st_mtime_ns) for file in files])

    with monkeypatch.context() as patch:
        patch.setattr(final_runs.Race, "ended", interrupted)
        first = delta_tune.tune(**settings)
    assert "Interrupted. Carry on with:" in first.summary
    assert record(first)["test_scorings"] == []
    assert load(first.path), "the search's"
    note()
    monkeypatch.setattr(final_runs, "make_final_model", lambda *args: (note(), make(*args)))
    again = delta_tune.tune(name="study", out=settings["out"], resume=True, verbose=0)
    before, after = stamps
    assert (len(before), len(after)) == (1, 2)
    assert after[0] == before[0], "it is not trained again"
    assert weights(again) == weights(made[1])
    assert len(record(again)["test_scorings"]) == 1


@pytest.mark.slow
def test_interrupt_while_the_model_is_made_is_resumed_to_the_same_end(
    made, searched_without_test, tmp_path, monkeypatch
):
    def interrupted(*args, **more):
        raise KeyboardInterrupt

    resume = functools.partial(resume_copy, searched_without_test, tmp_path, final_runs=2)
    for step in ("write_held_out", "save_model", "save_predictions"):
        with monkeypatch.context() as patch:
            patch.setattr(final_model, step, interrupted)
            resume()
    again = resume()
    assert weights(again) == weights(made[1])
    assert read_predictions(again.path / PREDICTIONS_FILE).split == "held-out"
    assert [folder.name for folder in (again.path / "checkpoints").iterdir() if "final" in folder.name] == []


@pytest.mark.slow
def test_first_model_that_no_trial_beats_is_trained_on_the_folds_too(finished, monkeypatch):
    monkeypatch.setattr(final_runs, "finalists", lambda tables, num_val: [0])
    result = finished(final_runs=2)
    assert record(result)["model"].startswith("trial 0 retrained 2 times on ")
    assert "frozen, with a fitted linear classifier" in (result.path / "best" / "README.md").read_text()
    assert load(result.path)


def test_members_without_final_runs_are_refused(settings):
    with pytest.raises(UserError, match="members must be at most final_runs"):
        delta_tune.tune(**settings | {"final_runs": 0, "members": 2})
