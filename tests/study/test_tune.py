"""Studies on a real Ray with two CPUs, on the tiny network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
from tensorboardX.proto.event_pb2 import Event

import delta_tune
from delta_tune.cluster import measuring_workers
from delta_tune.cluster.gpu_sharing import Footprint
from delta_tune.cluster.trial_device import DEVICE_VARIABLE
from delta_tune.config import UserError, study_config
from delta_tune.results.tables import StudyTables
from delta_tune.search import runner
from delta_tune.study import plan, search_phase
from delta_tune.study.settings import settings_for_json
from delta_tune.training import measurements
from delta_tune.training.trial import run_trial

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Attention of the tiny network is measured once for all studies here."""
    return str(tmp_path_factory.mktemp("cache"))


def study_settings(image_folder, tiny_weights, cache, out):
    """A study of seconds."""
    return {
        "cache": cache,
        "data": str(image_folder),
        "model": "timm:test_resnet",
        "weights": str(tiny_weights),
        "image_size": 64,
        "out": out,
        "name": "study",
        "verbose": 0,
        "max_epochs": 4,
        "num_trials": 4,
        "final_runs": 0,
        "set": {"batch_size": 8},
        "gpus_per_trial": 0,
        "max_concurrent_trials": 1,  # each further one starts a process, which takes longer than these trials
    }


@pytest.fixture
def settings(image_folder, tiny_weights, tmp_path, cache):
    """Those of a study of the test's own."""
    return study_settings(image_folder, tiny_weights, cache, tmp_path)


def free_store_bytes():
    return ray.available_resources()["object_store_memory"]


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def plain(trial):
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    return {"regularizer": "l2", "head_lr_multiplier": 1.0}


def searched(result):
    """The trials of a study without its first model, which is trial 0."""
    first, *rest = result.trials.to_pylist()
    assert (first["number"], first["config.regularizer"], first["state"]) == (0, "linear_probe", "completed")
    return rest


TIMES = {"train_seconds", "eval_seconds", "start_seconds", "began", "ended", "node"}


def timeless(table):
    return table.select([name for name in table.column_names if name not in TIMES])


@pytest.fixture(scope="module")
def all_methods(image_folder, tiny_weights, tmp_path_factory, cache, ray_cluster):
    """The settings of a study of one trial a method, and its result."""
    own = study_settings(image_folder, tiny_weights, cache, tmp_path_factory.mktemp("all"))
    own |= {"space": "search_spaces/methods.py", "num_trials": 7}
    return own, delta_tune.tune(**own)


def test_tune_of_all_methods_leaves_tables_model_and_evidence(all_methods):
    settings, result = all_methods
    rows = result.trials.to_pylist()
    methods = ["delta", "delta_uniform", "l2_sp", "l2", "co_tuning", "bi_tuning", "l2_fe"]
    assert [row["config.regularizer"] for row in searched(result)] == methods
    assert {row["state"] for row in rows} <= {"completed", "pruned", "diverged"}
    assert pq.read_table(result.path / "trials.parquet").equals(result.trials)
    epochs = pq.read_table(result.path / "epochs.parquet").to_pylist()
    assert len(epochs) == sum(row["epochs"] for row in rows)
    best = max((r for r in rows if r["state"] == "completed"), key=lambda r: r["best_val_accuracy"])
    assert result.best_metrics["val_accuracy"] == best["best_val_accuracy"]
    study = json.loads((result.path / "study.json").read_text())
    assert len(study["test_scorings"]) == 1
    assert list((result.path / "attention").glob("*.parquet"))
    assert list((result.path / "ray").rglob("events.out.tfevents*"))
    assert [f.name for f in (result.path / "checkpoints").iterdir()] == [f"{study['winner']:05d}"]
    model = delta_tune.load(result.path / "best")
    assert model.predict([next(Path(settings["data"]).rglob("*.png"))])[0].label in ("blue", "green", "red")
    config = json.loads((result.path / "best" / "config.json").read_text())
    assert config["versions"] == study["versions"]
    assert config["test"]["test_accuracy"] == study["test_scorings"][0]["test_accuracy"]
    assert "% on 15 images, scored once (95 % interval" in (result.path / "best" / "README.md").read_text()


def test_tune_leaves_event_files_that_tensorboard_reads(all_methods):
    _, result = all_methods
    data = next((result.path / "ray").rglob("trial-00001/events.out.tfevents*")).read_bytes()
    tags = set()
    while data:
        (length,) = struct.unpack("<Q", data[:8])  # a record: length, its checksum, content, its checksum
        tags |= {value.tag for value in Event.FromString(data[12 : 12 + length]).summary.value}
        data = data[16 + length :]
    assert {"ray/tune/val_accuracy", "ray/tune/train_loss"} <= tags


def test_tune_trial_equals_the_same_configuration_run_alone(all_methods, task):
    _, result = all_methods
    tables = StudyTables.read(result.path, "val_accuracy")
    (number,) = (n for n, row in tables.trials.items() if row["config.regularizer"] == "l2")
    alone = run_trial(task, tables.config(number)).epochs
    rows = tables.epochs[number]
    assert [row["val_loss"] for row in alone[: len(rows)]] == pytest.approx([r["val_loss"] for r in rows], rel=1e-5)


@pytest.mark.slow
def test_tune_twice_in_one_process_gives_the_same_and_leaves_no_object(all_methods):
    settings, first = all_methods
    before = free_store_bytes()
    again = delta_tune.tune(**{**settings, "name": "again"})
    assert timeless(again.trials).equals(timeless(first.trials))
    assert ray.is_initialized()
    assert wait_until(lambda: free_store_bytes() == before), "objects of ours stay in the store"


@pytest.mark.slow
def test_resume_of_a_finished_study_only_tops_up(all_methods, tmp_path):
    _, first = all_methods
    shutil.copytree(first.path, tmp_path / "study")
    again = delta_tune.tune(name="study", out=tmp_path, resume=True, num_trials=14, verbose=0)
    assert len(searched(again)) == 14
    assert again.trials.slice(0, 8).equals(first.trials)


def test_tune_records_diverged_and_failed_trials_with_their_cause_and_goes_on(settings):
    # One image a step and a last map of one pixel: batch norm in train mode refuses.
    def space(trial):
        kind = trial.suggest_categorical("_kind", ["diverges", "raises", "learns"])
        lr, norm = {"diverges": (1e9, "frozen"), "raises": (1e-4, "train"), "learns": (1e-4, "frozen")}[kind]
        return {"regularizer": "l2", "schedule": "constant", "lr": lr, "batch_norm": norm}

    small = {"image_size": 32, "set": {"batch_size": 1}, "sampler": "random", "num_trials": 8}
    result = delta_tune.tune(**{**settings, **small, "space": space})
    rows = searched(result)
    assert {row["param._kind"] for row in rows} == {"diverges", "raises", "learns"}
    allowed = {"diverges": {"diverged"}, "raises": {"failed"}, "learns": {"completed", "pruned"}}
    for row in rows:
        assert row["state"] in allowed[row["param._kind"]]
        assert bool(row["error"]) == (row["param._kind"] != "learns")
        if row["state"] == "failed":
            assert "Expected more than 1 value per channel" in row["error"]
            traceback = f"checkpoints/{row['trial_id']}/error.txt"
            assert traceback in row["error"]
            assert "Traceback" in (result.path / traceback).read_text()


def test_tune_says_nothing_at_verbose_0(settings, capfd):
    capfd.readouterr()
    delta_tune.tune(**{**settings, "space": plain, "num_trials": 1, "max_epochs": 1})
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def every_trial_leads(monkeypatch):
    monkeypatch.setattr(StudyTables, "_rank", lambda self, number: -number)


@pytest.mark.slow
@pytest.mark.usefixtures("every_trial_leads")
def test_tune_goes_on_where_the_best_model_so_far_cannot_be_saved(settings, monkeypatch):
    followed = []

    def follow(study):
        followed.append(study.tables.leader)
        raise OSError("Connection reset by peer")

    monkeypatch.setattr(search_phase, "follow_leader", follow)
    result = delta_tune.tune(**{**settings, "space": plain, "num_trials": 2, "max_epochs": 1})
    assert [row["state"] for row in searched(result)] == ["completed"] * 2
    assert {1, 2} <= set(followed), "at their ends; reports that lead are followed, too"


@pytest.mark.slow
@pytest.mark.usefixtures("every_trial_leads")
def test_tune_ends_with_the_error_that_kept_it_from_saving_the_best_model(settings, monkeypatch):
    def follow(study):
        raise ZeroDivisionError("of a test")

    monkeypatch.setattr(search_phase, "follow_leader", follow)
    with pytest.raises(ZeroDivisionError, match="of a test"):
        delta_tune.tune(**{**settings, "space": plain, "num_trials": 2, "max_epochs": 1})


def test_tune_takes_a_function_as_space_and_refuses_an_unknown_setting(settings):
    with pytest.raises(UserError, match="num_trials"):
        delta_tune.tune(**settings, num_trails=3)


def test_tune_refuses_gpus_that_are_not_there(settings):
    with pytest.raises(UserError, match="gpus-per-trial"):
        delta_tune.tune(**{**settings, "space": plain, "gpus_per_trial": 2})


WITHOUT_L2 = """
def space(trial):
    trial.suggest_float("lr", 1e-3, 1e-2, log=True)
    return {"regularizer": "delta_uniform"}
"""


@pytest.mark.slow
def test_tune_confirms_the_space_against_plain_l2_and_retrains_the_best(settings, tmp_path):
    (tmp_path / "without.py").write_text(WITHOUT_L2)
    small = {"num_trials": 1, "max_epochs": 2, "grace_period": 2, "space": str(tmp_path / "without.py")}
    confirmed = delta_tune.tune(**{**settings, **small, "confirm": 2})
    study = json.loads((confirmed.path / "study.json").read_text())
    methods = [row["config.regularizer"] for row in searched(confirmed)]
    assert methods == ["delta_uniform", "l2"], "as many of plain L2"
    runs = pq.read_table(confirmed.path / "confirm" / "trials.parquet").to_pylist()
    assert [run["config.regularizer"] for run in runs] == ["delta_uniform", "l2"] * 2
    assert {run["state"] for run in runs} == {"completed"}
    assert "2 pairs" in confirmed.summary
    assert set(study["confirmation"]["scores"]) == {"l2", "delta_uniform"}
    assert study["model"] == f"trial {study['winner']} retrained on 54 images"
    assert [scoring["model"] for scoring in study["test_scorings"]] == [study["model"]], "the test split is scored once"
    assert len(delta_tune.load(confirmed.path / "best").predict([next(Path(settings["data"]).rglob("*.png"))])) == 1
    card = (confirmed.path / "best" / "README.md").read_text()
    assert "mean of the confirmation's runs" in card
    assert f"({study['model']})" in card
    before = (confirmed.path / "confirm" / "trials.parquet").read_bytes()
    again = delta_tune.tune(name="study", out=settings["out"], resume=True, verbose=0)
    assert (again.path / "confirm" / "trials.parquet").read_bytes() == before, "nothing is run again"
    assert again.summary == confirmed.summary


@pytest.mark.slow
def test_tune_confirms_a_table_with_groups_on_folds(settings, tmp_path):
    images = sorted(Path(settings["data"]).rglob("*.png"))
    rows = [f"{image},{image.parent.name}x,{number // 3}" for number, image in enumerate(images)]
    (tmp_path / "t.csv").write_text("\n".join(["file_name,class,group", *rows]))
    classes = sorted({image.parent.name for image in images})
    (tmp_path / "map.json").write_text(json.dumps({f"{name}x": name for name in classes}))
    more = {"data": str(tmp_path / "t.csv"), "label_map": str(tmp_path / "map.json"), "space": plain}
    result = delta_tune.tune(
        **{**settings, **more, "num_trials": 1, "max_epochs": 1, "confirm": 3, "confirm_splits": "folds"}
    )
    study = json.loads((result.path / "study.json").read_text())
    assert (study["settings"]["confirm_splits"], study["settings"]["label_map"]) == ("folds", more["label_map"])
    runs = pq.read_table(result.path / "confirm" / "trials.parquet").to_pylist()
    assert [run["state"] for run in runs] == ["completed"] * 3
    assert sorted(json.loads((result.path / "best" / "config.json").read_text())["classes"]) == classes


TURNS = """
def space(trial):
    turn = trial.suggest_categorical("_turn", [0, 1, 2, 3, 4])
    method = ["delta_uniform", "l2", "delta_uniform", "l2_sp", "delta_uniform"][turn]
    return {"regularizer": method, "lr": 0.01, "batch_norm": "train" if turn % 2 else "frozen"}

START = [{"_turn": turn} for turn in range(5)]
"""


@pytest.mark.slow
def test_tune_carries_nothing_over_from_trial_to_trial(settings, tmp_path):
    (tmp_path / "turns.py").write_text(TURNS)
    small = {"num_trials": 5, "max_epochs": 2, "grace_period": 2}
    result = delta_tune.tune(**{**settings, **small, "space": str(tmp_path / "turns.py")})
    rows = sorted(searched(result), key=lambda row: row["param._turn"])
    losses = [row["val_loss"] for row in rows]
    assert [row["param._turn"] for row in rows] == [0, 1, 2, 3, 4]
    assert losses[0] == losses[2] == losses[4]
    assert len(set(losses)) == 3


@pytest.fixture
def named_gpus(monkeypatch):
    """Trials are scheduled on the GPU that is a name only, and train on the CPU."""
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")


@pytest.mark.slow
def test_tune_runs_a_trial_again_with_more_of_a_gpu_where_its_part_was_too_small(settings, named_gpus, monkeypatch):
    def starving(config, worker_settings):
        from ray import tune

        from delta_tune.search.messages import TrialAssignment, TrialOutcome
        from delta_tune.search.worker import run_tune_trial

        assignment = TrialAssignment.from_config(config)
        if assignment.number == 2 and assignment.gpus < 1:
            last = {"epoch": 0, "val_accuracy": float("nan"), "node": "n", "began": 0.0, "ended": 1.0}
            tune.report(TrialOutcome(kind="out of memory", error="too small").to_result(last))
        else:
            run_tune_trial(config, worker_settings)

    monkeypatch.setattr(runner, "run_tune_trial", starving)
    small = {"num_trials": 3, "max_epochs": 1, "gpus_per_trial": 0.5}
    result = delta_tune.tune(**{**settings, **small, "space": plain})
    rows = searched(result)
    assert [row["state"] for row in rows] == ["completed"] * 3
    assert [row["gpus"] for row in rows] == [0.5, 1.0, 0.5]
    assert [row["out_of_memory"] for row in rows] == [0, 1, 0]


def break_worker(tmp_path, monkeypatch, *, numbers=()):
    """The first worker's context is broken from its first trial on, as that of any that runs trials of `numbers`."""

    def breaking(config, worker_settings):
        import contextlib
        import os

        import torch

        from delta_tune.search import worker

        with contextlib.suppress(FileExistsError), (tmp_path / "broken").open("x") as file:
            file.write(str(os.getpid()))

        def broken(*args, **kwargs):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

        if (tmp_path / "broken").read_text() == str(os.getpid()) or config["number"] in numbers:
            worker.run_trial = broken
        worker.run_tune_trial(config, worker_settings)

    monkeypatch.setattr(runner, "run_tune_trial", breaking)


SLOTS = {"num_trials": 4, "max_epochs": 1, "max_concurrent_trials": 2}


@pytest.mark.faults
def test_tune_loses_no_trial_to_a_worker_whose_gpu_context_is_broken(settings, named_gpus, monkeypatch, tmp_path):
    break_worker(tmp_path, monkeypatch)
    result = delta_tune.tune(**{**settings, **SLOTS, "gpus_per_trial": 0.5, "space": plain})
    assert [row["state"] for row in searched(result)] == ["completed"] * 4


@pytest.mark.faults
def test_tune_fails_a_trial_that_breaks_every_worker_and_no_other(settings, named_gpus, monkeypatch, tmp_path):
    break_worker(tmp_path, monkeypatch, numbers=[2])
    result = delta_tune.tune(**{**settings, **SLOTS, "gpus_per_trial": 0.5, "space": plain})
    rows = searched(result)
    assert [row["state"] for row in rows] == ["completed", "failed", "completed", "completed"]
    assert "AcceleratorError: CUDA error: an illegal memory access" in rows[1]["error"]


@pytest.mark.faults
def test_tune_goes_on_where_a_worker_cannot_be_made_ready_for_its_next_trial(settings, monkeypatch):
    def sluggish(config, worker_settings):
        from ray import tune

        from delta_tune.results.columns import EPOCH_COLUMNS
        from delta_tune.search.worker import run_tune_trial

        if config["number"] > 1:
            run_tune_trial(config, worker_settings)
            return
        os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "1"
        try:
            told = {"epoch": 1, "node": "n", "began": 0.0, "ended": 1.0}
            tune.report({**dict.fromkeys(EPOCH_COLUMNS, 0.0), **told})
        finally:
            time.sleep(4)  # Tune gives up on the worker, and on the trial that was to come to it

    monkeypatch.setattr(runner, "run_tune_trial", sluggish)
    result = delta_tune.tune(**{**settings, "num_trials": 3, "max_epochs": 1, "space": plain})
    rows = searched(result)
    assert [row["state"] for row in rows] == ["completed", "failed", "completed"]
    assert "the worker died" in rows[1]["error"]


@pytest.mark.slow
def test_tune_packs_a_gpu_as_was_measured(settings, named_gpus, monkeypatch):
    measured = Footprint(peak=2**30, total=2**33, busy=0.5, images_per_second=10.0)
    monkeypatch.setattr(plan, "measure_footprint_on_cluster", lambda task, configs: measured)
    small = {"num_trials": 2, "max_epochs": 1, "gpus_per_trial": "auto"}
    result = delta_tune.tune(**{**settings, **small, "space": plain})
    assert [row["gpus"] for row in searched(result)] == [0.5, 0.5]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tune_says_where_torch_cannot_use_the_gpus_that_ray_counts(settings):
    with pytest.raises(UserError, match=r"torch .* cannot use"):
        delta_tune.tune(**{**settings, "space": plain, "gpus_per_trial": "auto"})


def methods_in_turn(trial):
    regularizer = trial.suggest_categorical("regularizer", ["delta", "l2"])
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    return {"regularizer": regularizer, "layers": "last"}


@pytest.fixture
def two_at_a_time(settings, tmp_path):
    """A study that has to measure its attention, with a slot for that and another for trials."""
    return settings | {"space": methods_in_turn, "cache": str(tmp_path / "cache"), "max_concurrent_trials": 2}


@pytest.mark.slow
def test_tune_begins_with_trials_that_need_no_attention_while_it_is_measured(two_at_a_time, tmp_path, monkeypatch):
    begun, start, measure_layers = threading.Event(), StudyTables.start, measurements.measure_layers

    def started(tables, number, *args, **kwargs):
        start(tables, number, *args, **kwargs)
        if tables.trials[number]["config.regularizer"] == "l2":
            begun.set()

    def late(*args, **kwargs):
        assert begun.wait(120), "attention is to end after a trial has begun"
        yield from measure_layers(*args, **kwargs)

    monkeypatch.setattr(StudyTables, "start", started)
    monkeypatch.setattr(measurements, "measure_layers", late)
    result = delta_tune.tune(**two_at_a_time)
    measured = (result.path / "attention" / "attention.parquet").stat().st_mtime
    began = {}
    for row in result.trials.to_pylist():
        began.setdefault(row["config.regularizer"], []).append(row["began"])
    assert min(began["l2"]) < measured < min(began["delta"])


def measuring_actors(monkeypatch, error):
    """Workers whose measurement of attention raises this, or never ends."""

    class Actor(measuring_workers._Actor):  # in a function, so that Ray's processes need not import this module
        def losses(self, shelf, index, work):
            with self._faults_named():
                if error is not None:
                    raise error
                time.sleep(3600)

    monkeypatch.setattr(measuring_workers, "_Actor", Actor)


@pytest.mark.faults
def test_interrupt_ends_attention_beside_trials_at_once_and_a_resume_measures_it(two_at_a_time, monkeypatch):
    measuring_actors(monkeypatch, None)
    start, since = StudyTables.start, []

    def interrupted(tables, number, *args, **kwargs):
        start(tables, number, *args, **kwargs)
        if number:
            since.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(StudyTables, "start", interrupted)
        delta_tune.tune(**two_at_a_time)
    assert time.monotonic() - since[0] < 60
    content = json.loads((two_at_a_time["out"] / "study" / "study.json").read_text())
    assert "interrupted" in content
    assert content["attention_wall_seconds"] > 0
    monkeypatch.undo()
    rows = delta_tune.tune(
        out=two_at_a_time["out"], name="study", resume=True, space=methods_in_turn
    ).trials.to_pylist()
    assert [row["config.regularizer"] for row in rows[1:]] == ["delta", "l2"] * 2
    assert {row["state"] for row in rows} <= {"completed", "pruned"}


@pytest.mark.faults
def test_failure_of_attention_beside_trials_ends_the_study_in_a_sentence(two_at_a_time, monkeypatch):
    measuring_actors(monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(UserError, match=r"^The study stopped: measuring on .*memory is too small.*continue with"):
        delta_tune.tune(**two_at_a_time)


@pytest.mark.slow
def test_time_budget_too_short_for_attention_runs_delta_with_uniform_weights(two_at_a_time, monkeypatch):
    measuring_actors(monkeypatch, None)
    result = delta_tune.tune(**two_at_a_time, time_budget="300s")
    rows = result.trials.to_pylist()
    assert [row["config.regularizer"] for row in rows[1:]] == ["delta_uniform", "l2"] * 2
    assert "delta_uniform runs in place of delta" in result.summary
    assert not (result.path / "attention" / "attention.parquet").exists()


@pytest.mark.slow
def test_tune_stops_at_its_time_budget_with_what_it_has(settings):
    many = {"space": plain, "num_trials": 1000, "time_budget": "30s", "confirm": 1000}
    result = delta_tune.tune(**{**settings, **many})
    states = [row["state"] for row in result.trials.to_pylist()]
    assert len(states) < 1000
    if any(row["state"] == "completed" for row in searched(result)):  # not where the machine is too busy
        reserved = json.loads((result.path / "study.json").read_text())["reserved"]
        assert 2 <= reserved["repetitions"] < 1000, "seeds are cut first"
        assert reserved["confirmation"] + reserved["final"] <= 15
    assert set(states) <= {"completed", "pruned", "stopped"}
    assert result.best_config is not None


def test_dry_run_prints_the_plan_and_leaves_nothing(settings):
    from delta_tune.study.tune import dry_run

    own = {"space": "search_spaces/delta.py", "set": {"batch_size": 8, "regularizer": "delta"}}
    said = "\n".join(dry_run(**{**settings, **own, "num_trials": 6, "confirm": 3}))
    parts = [
        "train 36",
        "val 18",
        "test 15",
        "the space and plain L2 in turns",
        "12 trials",
        "6 further trials search it",
    ]
    for part in (*parts, "to confirm (2 × 3 runs)"):
        assert part in said
    assert not (settings["out"] / "study").exists()


def test_settings_keep_a_name_that_a_folder_here_has_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "photos"):
        (tmp_path / name).mkdir()
    for data, kept in (("demo", "demo"), ("photos", str(tmp_path / "photos"))):
        config = study_config(
            {"data": data, "model": "resnet18", "weights": "default", "space": "search_spaces/demo.py"}
        )
        assert settings_for_json(config, tmp_path / "study")["data"] == kept


def test_resume_refuses_other_settings(settings):
    folder = settings["out"] / "study"
    folder.mkdir()
    begun = settings_for_json(study_config({**settings, "space": "search_spaces/demo.py"}), folder)
    (folder / "study.json").write_text(json.dumps({"settings": begun}))
    with pytest.raises(UserError, match="max_epochs"):
        delta_tune.tune(name="study", out=settings["out"], resume=True, max_epochs=9)
