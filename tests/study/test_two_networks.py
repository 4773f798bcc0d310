"""Studies of two networks on a real Ray: the network is a hyperparameter of their trials."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import timm
import torch

import delta_tune
from delta_tune.config import candidates_of
from delta_tune.results.tables import StudyTables
from delta_tune.study import setup
from delta_tune.study.tune import dry_run

OTHER = "timm:test_mambaout"
ONE = "timm:test_resnet"
SPACE = """
def space(trial):
    regularizer = trial.suggest_categorical("regularizer", ["l2", "delta"])
    trial.suggest_float("lr", 1e-5, 1e-3, log=True)
    return {}

START = [{"regularizer": "delta", "lr": 0.0002}, {"regularizer": "l2", "lr": 0.0004}]
"""


def random_weights(name, folder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model(name.removeprefix("timm:"), pretrained=False)
    file = folder / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def settings_of(image_folder, tiny_weights, tmp_path_factory):
    """A function from a study's own settings to all of them."""
    cache, space = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("space") / "two.py"
    space.write_text(SPACE)
    other_weights = random_weights(OTHER, tmp_path_factory.mktemp("weights"))

    def settings(**own):
        return {
            **{"cache": str(cache), "data": str(image_folder), "image_size": 64, "space": str(space)},
            **{"model": f"{ONE},{OTHER}", "weights": f"{tiny_weights},{other_weights}"},
            **{"out": tmp_path_factory.mktemp("out"), "name": "study", "verbose": 0, "max_epochs": 3},
            **{"num_trials": 6, "final_runs": 2, "gpus_per_trial": 0},
            **{"set": {"batch_size": 8, "layers": "last"}},
            **{"max_concurrent_trials": 1, **own},
        }

    return settings


@pytest.fixture(scope="module", autouse=True)
def both_are_kept():
    """Screening, whose choice depends on the machine's speed, is left out: both networks enter the search."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            setup, "choose_backbones", lambda config, *_, **__: (candidates_of(config.model, config.weights), None)
        )
        yield


@pytest.fixture(scope="module")
def study(settings_of, ray_cluster):
    """The settings of a study of two networks, and its result."""
    own = settings_of()
    return own, delta_tune.tune(**own)


TIMES = {"train_seconds", "eval_seconds", "start_seconds", "began", "ended", "node"}


def timeless(table):
    return table.select([name for name in table.column_names if name not in TIMES])


@pytest.mark.slow
def test_networks_take_turns_and_begin_with_the_same_points(study):
    _, result = study
    first, *rows = result.trials.to_pylist()
    assert (first["config.backbone"], first["config.regularizer"]) == (ONE, "linear_probe")
    assert [row["config.backbone"] for row in rows] == [ONE, OTHER] * 3
    assert [row["config.regularizer"] for row in rows[:4]] == ["delta", "delta", "l2", "l2"]
    assert {row["state"] for row in rows} <= {"completed", "pruned"}


@pytest.mark.slow
def test_each_network_has_attention_of_its_own(study):
    _, result = study
    rows = pq.read_table(result.path / "attention" / "attention.parquet").to_pylist()
    layers = {label: {row["layer"] for row in rows if row["backbone"] == label} for label in (ONE, OTHER)}
    assert all(layers.values())
    assert layers[ONE] != layers[OTHER]


@pytest.mark.slow
def test_model_is_of_the_winners_network(study):
    settings, result = study
    record = json.loads((result.path / "study.json").read_text())
    config = json.loads((result.path / "best" / "config.json").read_text())
    (winner,) = (row for row in result.trials.to_pylist() if row["number"] == record["winner"])
    assert config["backbone"]["model"] == winner["config.backbone"]
    assert result.best_config.backbone == winner["config.backbone"]
    assert [each["label"] for each in record["backbones"]] == [ONE, OTHER]
    assert (
        record["model"] == f"trial {winner['number']} retrained 2 times on {48 + 1} images"
        or "retrained" in record["model"]
    )
    photo = next(Path(settings["data"]).rglob("*.png"))
    assert delta_tune.load(result.path).predict([photo])[0].label in ("blue", "green", "red")


@pytest.mark.slow
def test_report_names_the_network_of_each_trial(study):
    _, result = study
    text = result.report.read_text()
    assert f"{ONE}, weights" in text
    assert f"{OTHER}, weights" in text


@pytest.mark.slow
def test_interrupted_study_goes_on_with_the_trials_that_the_whole_one_has(study, settings_of, monkeypatch):
    _, whole = study
    report, told = StudyTables.report, []

    def interrupted(self, number, row, ended=None):
        if (number, row["epoch"]) == (4, 1) and not told:
            told.append(number)
            os.kill(os.getpid(), signal.SIGINT)
        return report(self, number, row, ended)

    own = settings_of(final_runs=0)
    with monkeypatch.context() as patch:
        patch.setattr(StudyTables, "report", interrupted)
        first = delta_tune.tune(**own)
    assert told == [4]
    assert len(first.trials) < len(whole.trials)
    resumed = delta_tune.tune(name="study", out=own["out"], resume=True, verbose=0)
    assert timeless(resumed.trials).equals(timeless(whole.trials))
    attention = [pq.read_table(result.path / "attention" / "attention.parquet") for result in (whole, resumed)]
    assert attention[0].equals(attention[1])


@pytest.mark.slow
def test_methods_are_confirmed_with_the_network_of_their_best_trial(settings_of):
    result = delta_tune.tune(**settings_of(num_trials=4, max_epochs=1, confirm=2, final_runs=0))
    tables = StudyTables.read(result.path, "val_accuracy")
    record = json.loads((result.path / "study.json").read_text())["confirmation"]
    networks = {method: tables.backbone(trial) for method, trial in record["trials"].items()}
    assert networks.keys() == {"l2", "delta"}
    runs = pq.read_table(result.path / "confirm" / "trials.parquet").to_pylist()
    assert {(run["config.regularizer"], run["config.backbone"]) for run in runs} == set(networks.items())
    assert {run["state"] for run in runs} == {"completed"}
    told = ", ".join(f"{method} on {label}" for method, label in networks.items())
    assert f"Each method is compared with the network of its best trial: {told}." in result.summary


OWN = SPACE.replace("return {}", f'trial.suggest_categorical("backbone", ["{OTHER}", "{ONE}"])').replace(
    '"lr": 0.0002}', f'"lr": 0.0002, "backbone": "{OTHER}"}}'
)


@pytest.mark.slow
def test_network_that_the_users_space_chooses_is_a_hyperparameter_like_others(settings_of, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    own = {"space": str(tmp_path / "own.py"), "num_trials": 2, "max_epochs": 2, "final_runs": 0, "time_budget": "10m"}
    result = delta_tune.tune(**settings_of(**own))
    _, first, second = result.trials.to_pylist()
    assert first["config.backbone"] == json.loads(first["suggested"])["backbone"] == OTHER
    assert second["config.backbone"] == json.loads(second["suggested"])["backbone"]


@pytest.mark.slow
def test_plan_tells_of_both_networks(settings_of):
    lines = dry_run(**settings_of(num_trials=5))
    text = "\n".join(lines)
    assert [line.split(",")[0] for line in lines if line.startswith("Model")] == [
        f"Model     {ONE}",
        f"Model     {OTHER}",
    ]
    assert sum(line.startswith("Hooks") for line in lines) == 2
    assert "backbone in turns" in text
    assert "network by network" in text
    assert "4 trials of the 5: 2 for each backbone" in text
    assert f"s with {ONE} and " in text


TRANSFORMER = "timm:test_vit"


@pytest.mark.slow
def test_networks_of_two_kinds_have_each_its_own_default_space(settings_of, tiny_weights, tmp_path):
    weights = f"{tiny_weights},{random_weights(TRANSFORMER, tmp_path)}"
    own = settings_of(model=f"{ONE},{TRANSFORMER}", weights=weights, num_trials=4, max_epochs=1, final_runs=0)
    own.pop("space")
    first = delta_tune.tune(**own)
    _, *rows = first.trials.to_pylist()
    kinds = {row["config.backbone"]: row["config.optimizer"] for row in rows}
    assert kinds == {ONE: "sgd", TRANSFORMER: "adamw"}
    assert json.loads((first.path / "study.json").read_text())["settings"]["space"] is None
    again = delta_tune.tune(name="study", out=own["out"], resume=True, num_trials=6, verbose=0)
    assert len(again.trials) == 7
    assert again.trials.slice(0, 5).equals(first.trials)
    assert "--space" not in again.report.read_text().split("Fine-tune once with it")[-1].split("</pre>")[0]
