"""Studies of two networks on a real Ray: the network is a hyperparameter of their trials."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import timm
import torch

import delta_tune

OTHER = "timm:test_mambaout"
ONE = "timm:test_resnet"
SPACE = """
def space(trial):
    regularizer = trial.suggest_categorical("regularizer", ["l2", "delta"])
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    return {}

START = [{"regularizer": "delta", "lr": 0.001}, {"regularizer": "l2", "lr": 0.002}]
"""


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory):
    """Random weights of another network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model(OTHER.removeprefix("timm:"), pretrained=False)
        for _ in range(3):
            model(torch.randn(8, 3, 64, 64))
    file = tmp_path_factory.mktemp("weights") / "other.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def settings_of(image_folder, tiny_weights, other_weights, tmp_path_factory):
    """A function from a study's own settings to all of them."""
    cache, space = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("space") / "two.py"
    space.write_text(SPACE)

    def settings(**own):
        return {
            **{"cache": str(cache), "data": str(image_folder), "image_size": 64, "space": str(space)},
            **{"model": f"{ONE},{OTHER}", "weights": f"{tiny_weights},{other_weights}"},
            **{"out": tmp_path_factory.mktemp("out"), "name": "study", "verbose": 0, "max_epochs": 3},
            **{"num_trials": 6, "final_runs": 2, "set": {"batch_size": 8}, "gpus_per_trial": 0},
            **{"max_concurrent_trials": 1, **own},
        }

    return settings


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
