"""Trials sent to MLflow and Weights & Biases, without a server."""

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from mlflow.tracking import MlflowClient
from ray import cloudpickle

import delta_tune
from delta_tune.config import StudyConfig, TrialConfig, UserError
from delta_tune.results.columns import EPOCH_COLUMNS
from delta_tune.results.tables import StudyTables
from delta_tune.search.messages import TrialAssignment
from delta_tune.tracking.mlflow_runs import MlflowRuns
from delta_tune.tracking.trackers import check_trackers, trackers

KEY = "0123456789abcdef0123456789abcdef01234567"


def kinds(trial):
    kind = trial.suggest_categorical("_kind", ["raises", "learns"])
    lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    return {"regularizer": "l2", "lr": lr, "batch_norm": {"raises": "train", "learns": "frozen"}[kind]}


@pytest.fixture
def settings(image_folder, tiny_weights, tmp_path):
    """A study of seconds, whose trials fail where batch norm sees one image of one pixel a step."""
    return {
        "data": str(image_folder),
        "model": "timm:test_resnet",
        "weights": str(tiny_weights),
        "image_size": 32,
        "out": tmp_path,
        "name": "study",
        "verbose": 0,
        "space": kinds,
        "sampler": "random",
        "max_epochs": 2,
        "num_trials": 5,
        "final_runs": 0,
        "set": {"batch_size": 1},
        "gpus_per_trial": 0,
        "max_concurrent_trials": 1,
    }


def runs_of(uri):
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    return client, {run.data.tags["trial_name"]: run for run in runs}


@pytest.mark.slow
def test_mlflow_has_a_run_a_trial_with_params_epochs_and_state(settings, tmp_path, ray_cluster):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    result = delta_tune.tune(**settings, mlflow=uri)
    epochs = StudyTables.read(result.path, "val_accuracy").epochs
    client, runs = runs_of(uri)
    assert len(runs) == 5
    for row in result.trials.to_pylist()[1:]:  # Tune does not run the first model
        run = runs[f"trial-{row['trial_id']}"]
        assert run.data.tags["state"] == row["state"]
        assert run.info.status == ("FAILED" if row["state"] == "failed" else "FINISHED")
        assert float(run.data.params["lr"]) == row["config.lr"]
        assert not {"number", "gpus", "task", "alpha"} & run.data.params.keys(), "what is no hyperparameter of l2"
        seen = client.get_metric_history(run.info.run_id, "val_loss")
        told = [(each["epoch"], each["val_loss"]) for each in epochs[row["number"]]]
        assert [(each.step, each.value) for each in seen] == told
    assert {row["state"] for row in result.trials.to_pylist()} >= {"failed"}


@pytest.fixture
def callback(tmp_path):
    """A maker of callbacks for one study of one trial, as its sessions have them."""
    (tmp_path / "study").mkdir()
    tables = StudyTables(tmp_path / "study", "val_accuracy")  # the experiment has the folder's name
    tables.add(0, TrialConfig(regularizer="l2"), {}, {})
    said = []

    def session():
        made = MlflowRuns(f"sqlite:///{tmp_path}/mlflow.db", tables, said.append)
        made.setup()
        return made

    check_trackers(StudyConfig(mlflow=f"sqlite:///{tmp_path}/mlflow.db"))
    return SimpleNamespace(session=session, tables=tables, said=said, uri=f"sqlite:///{tmp_path}/mlflow.db")


class TuneTrial:
    """As much of Tune's trial as callbacks look at."""

    config = TrialAssignment(number=0, hyperparameters={"lr": 0.1, "alpha": None}).to_config()

    def __str__(self):
        return "trial-00000"


def epoch(number):
    return dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"epoch": number}


def test_mlflow_run_of_a_trial_is_killed_with_its_session_and_goes_on_with_the_next(callback):
    first, trial = callback.session(), TuneTrial()
    first.log_trial_start(trial)
    first.log_trial_result(1, trial, epoch(1))
    first.on_experiment_end([trial])
    client, runs = runs_of(callback.uri)
    assert runs["trial-00000"].info.status == "KILLED"
    second, again = callback.session(), TuneTrial()
    second.log_trial_start(again)
    second.log_trial_result(1, again, epoch(2))
    callback.tables.finish(0, "pruned")
    second.log_trial_end(again)
    second.on_experiment_end([again])
    client, runs = runs_of(callback.uri)
    (run,) = runs.values()
    assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "pruned")
    assert [each.step for each in client.get_metric_history(run.info.run_id, "val_loss")] == [1, 2]


def test_mlflow_that_takes_no_more_is_told_once_and_does_not_stop_the_study(callback, monkeypatch):
    made, trial = callback.session(), TuneTrial()
    made.log_trial_start(trial)

    def refuses(*args, **kwargs):
        raise OSError("the server is gone")

    monkeypatch.setattr(made._client, "log_batch", refuses)
    for number in (1, 2):
        made.log_trial_result(number, trial, epoch(number))
    (said,) = callback.said
    assert "the server is gone" in said
    assert "its own tables have them all" in said


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("runs", "takes an address, but got 'runs'"),
        ("ftp://somewhere", "ftp://somewhere cannot be used"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9 cannot be used"),
        (f"sqlite:///{__file__}/no.db", "cannot be used"),
        ("https://me:secret@host", "https://…:…@host holds a password"),
    ],
)
def test_mlflow_address_that_cannot_be_used_is_one_sentence(uri, said, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError) as refused:
        check_trackers(StudyConfig(mlflow=uri))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "command"),
    [({"mlflow": "sqlite:///m.db"}, "pip install mlflow-skinny"), ({"wandb": "birds"}, "pip install wandb")],
)
def test_trackers_without_their_package_name_the_command_that_installs_it(given, command, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=command):
        check_trackers(StudyConfig(**given))


def test_trackers_are_none_unless_asked_for(tmp_path):
    assert trackers(StudyConfig(), StudyTables(tmp_path, "val_accuracy"), print) == []


def test_wandb_without_a_key_is_one_sentence(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline"):
        check_trackers(StudyConfig(wandb="birds"))


@pytest.mark.parametrize("project", ["", "my/birds"])
def test_wandb_project_that_is_no_name_is_one_sentence(project):
    with pytest.raises(UserError, match="a project's name"):
        check_trackers(StudyConfig(wandb=project))


def test_wandb_is_told_project_and_group_and_no_key_that_tune_would_pickle(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (made,) = trackers(StudyConfig(wandb="birds"), StudyTables(tmp_path / "study", "val_accuracy"), print)
    assert (made.project, made.group, made.api_key) == ("birds", "study", None)
    assert {"node", "began", "number", "task"} <= set(made.excludes)
    assert KEY.encode() not in cloudpickle.dumps(made)


def files_with(key, folder):
    return [file for file in folder.rglob("*") if file.is_file() and key.encode() in file.read_bytes()]


@pytest.mark.slow
def test_wandb_runs_offline_lie_in_the_study_and_nothing_has_the_key(settings, monkeypatch, ray_cluster):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = delta_tune.tune(**settings | {"num_trials": 1, "set": {"batch_size": 8}}, wandb="birds")
    assert len(list((result.path / "wandb").glob("offline-run-*/run-*.wandb"))) == 1
    assert files_with(KEY, result.path) == []
    assert files_with(KEY, Path(ray._private.worker._global_node.get_logs_dir_path())) == []
    assert os.environ["WANDB_API_KEY"] == KEY
