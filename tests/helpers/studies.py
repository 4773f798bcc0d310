"""Folders of studies that were never run: what a report, a plot or another program is shown."""

from __future__ import annotations

import json
import math
import random
import shutil

import numpy as np
import pyarrow.parquet as pq
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json

from delta_tune.attention.layer_attention import LayerAttention, attention_table
from delta_tune.config import TrialConfig
from delta_tune.results.columns import EPOCH_COLUMNS
from delta_tune.results.layout import ATTENTION_FILE, STUDY_FILE
from delta_tune.results.remembered_studies import remember_study
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables

MAX_EPOCHS = 8


class OfOneBackbone:
    """What a stand-in for a `Study` of one network says of it; it has a `task`, and where they are asked for `configs`
    and a `progress`."""

    several, names_backbones = False, False

    @property
    def tasks(self):
        return {"only": self.task}

    @property
    def first_task(self):
        return self.task

    @property
    def dataset(self):
        return self.task.dataset

    def configs_of(self, label):
        return self.configs

    def telling(self, label):
        return self.progress.say

    def task_of(self, config):
        return self.task

    def task_of_trial(self, number):
        return self.task

    def label_of_trial(self, number):
        return "only"


CLASSES = ("blue", "green", "<b>red</b>")
DISTRIBUTIONS = {
    "regularizer": CategoricalDistribution(["delta", "l2"]),
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "alpha": FloatDistribution(1e-2, 10.0, log=True),
}


def epoch_row(epoch, score):
    row = dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"val_accuracy": score, "seconds": 1.0, "eval_seconds": 0.2}
    return row | {"val_loss": 1 - score, "epoch": epoch}


def level(lr):
    """A score that a learning rate decides, of 0.3 to 0.9."""
    return 0.3 + 0.6 * math.exp(-((math.log10(lr) + 2) ** 2))


def add_trial(tables, number, state, *, method="delta", lr=0.01, alpha=1.0, error=None, backbone=None):
    """A trial that ends in this way; `began` and `ended` lie in one of two lanes."""
    params = {"regularizer": method, "lr": lr} | ({"alpha": alpha} if method == "delta" else {})
    config = TrialConfig(**params, max_epochs=MAX_EPOCHS, seed=number, backbone=backbone)
    tables.add(number, config, params, {})
    if state == "waiting":
        return
    began = 1.7e9 + number // 2 * MAX_EPOCHS * 1.3 + number % 2
    tables.start(number, "f" * 56, began, 0.1)
    epochs = {"completed": MAX_EPOCHS, "pruned": 2, "failed": 0, "diverged": 1, "running": 3}[state]
    for epoch in range(1, epochs + 1):
        tables.report(number, epoch_row(epoch, level(lr) * (1 - 0.5**epoch)), began + 1.2 * epoch)
    if state != "running":
        tables.finish(number, state, error)


def trials_of_two_networks(tables, count=12):
    """Trials of two networks that take turns: the other one is the better."""
    for number in range(count):
        label = ("one", "the <b>other</b>")[number % 2]
        lr = 0.01 * (1 + number) if number % 2 else 0.0002 * (1 + number)
        add_trial(tables, number, "completed", method=["delta", "l2"][number // 2 % 2], lr=lr, backbone=label)


TWO_NETWORKS = [
    {"label": label, "model": f"model of {label}", "weights": "default", "fingerprints": {"data": "d", "weights": "w"}}
    for label in ("one", "the <b>other</b>")
]
"""What `study.json` says of them."""


def random_trials(tables, count, seed=0):
    rng = random.Random(seed)
    for number in range(count):
        lr, alpha = 10 ** rng.uniform(-4, -1), 10 ** rng.uniform(-2, 1)
        state = ["completed", "pruned", "completed", "pruned", "diverged"][number % 5]
        add_trial(tables, number, state, method=["delta", "l2"][number % 2], lr=lr, alpha=alpha)


def rename_method(tables, old, new):
    """Make the tables those of a study by another version, whose methods are not all in our table."""
    for row in tables.trials.values():
        if row["config.regularizer"] == old:
            row["config.regularizer"] = new
            row["suggested"] = json.dumps(json.loads(row["suggested"]) | {"regularizer": new})


HELD_OUT = {
    **{"images": 120, "runs": 3, "asked": [3, 1], "trials": 16, "suspects": 2, "accuracy": 0.9},
    **{"interval": [0.833, 0.942], "temperature": 1.5, "calibration_error": 0.08, "calibrated_error": 0.02},
    "unsure": {"below": 0.6, "refused": 0.2, "accuracy": 0.96, "images": 120},
}
"""What `study.json` says of a model of final runs."""
FINAL_MODEL = "trial 0 retrained 3 times on 135 of 150 images, weights averaged"


def study_json(folder, *, finished=True, test=True, name="study", metric="val_accuracy", **more):
    """`study.json` as a study writes it."""
    scoring = {
        "trial": 0,
        "model": "trial 0",
        "folder": str(folder / "best"),
        "time": "2026-11-23T00:00:00+00:00",
        "images": 60,
        "test_accuracy": 0.9,
        "test_accuracy_interval": [0.8, 0.95],
    }
    settings = {
        **{"data": "photos", "val_fraction": 0.2, "test_fraction": 0.0, "train_fraction": None, "seed": 0},
        **{"train_per_class": None, "skip_damaged": False, "drop_duplicates": False, "model": "resnet50"},
        **{"weights": "default", "image_size": None, "space": "search_spaces/delta.py", "set": {}, "num_trials": 16},
        **{"max_epochs": MAX_EPOCHS, "metric": metric, "grace_period": 2, "reduction_factor": 4, "name": name},
    }
    if "confirmation" in more:
        more["confirmation"] = {"metric": "val_accuracy", "scores": {}, "sentences": []} | more["confirmation"]
    record = {
        "fingerprints": {"data": "d" * 64, "weights": "w" * 32},
        "backbone": "resnet50",
        "images": {"train": 100, "val": 50} | ({"test": 60} if test else {}),
        "space": "def space(trial): ...  # </script><b>\n",
        "distributions": {name: json.loads(distribution_to_json(each)) for name, each in DISTRIBUTIONS.items()},
        "versions": {"delta-tune": "0.1.0", "torch": "2.14.1"},
        "git_commit": None,
        "command": ["launch.py", "--data", "photos"],
        "started": "2026-11-23T00:00:00+00:00",
        "test_scorings": [scoring] if test and finished else [],
        "settings": settings,
        "attention_verdict": "",
        **({"finished": "2026-11-23T01:00:00+00:00", "model": "trial 0"} if finished else {}),
        **more,
    }
    (folder / STUDY_FILE).write_text(json.dumps(record))


def change_settings(folder, **settings):
    """Write other settings into `study.json`."""
    content = json.loads((folder / STUDY_FILE).read_text())
    content["settings"] |= settings
    (folder / STUDY_FILE).write_text(json.dumps(content))


def remembered_study(folder, best, task, data):
    """A finished study that this user began, with the model in `best`, which was trained on `data`."""
    shutil.copytree(best, folder / "best")
    prints = {"data": task.dataset.fingerprint, "weights": "w" * 32}
    study_json(folder, id="5" * 32, fingerprints=prints)
    change_settings(folder, data=str(data))
    record = StudyRecord.read(folder)
    assert remember_study(record.study_id, str(folder), record.settings, record.space) is None
    return folder


def attention_file(folder, channels=(16, 32)):
    rng = np.random.default_rng(0)
    rows = [
        (f"layer{n}", LayerAttention(losses=rng.normal(0, 0.1, c).astype(np.float32), reliability=0.8, images=30))
        for n, c in enumerate(channels)
    ]
    (folder / ATTENTION_FILE).parent.mkdir()
    pq.write_table(attention_table(rows), folder / ATTENTION_FILE)


def tables_in(folder):
    return StudyTables(folder, "val_accuracy")
