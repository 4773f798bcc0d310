"""What one study is asked to do: the flags of `launch.py` and the keywords of `tune`. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from delta_tune.config.errors import UserError
from delta_tune.config.fields import Range, field, fields_of
from delta_tune.config.sizes import parse_bytes, parse_duration
from delta_tune.config.trial import FIXED_BY_STUDY, METRICS, Metric, Mode, check_names

SMALLEST_PART = 0.0001
"""Ray counts CPUs and GPUs in units of it."""
TaskName = Literal["classification", "multilabel"]
MULTILABEL_METRIC: Metric = "val_mean_average_precision"
"""Of data with several labels an image where nothing else is asked for, and only of such data."""
Sampler = Literal["tpe", "gp", "random", "cmaes", "grid"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """One search: the flags of `launch.py` and the keywords of `tune`."""

    data: str = field(
        "demo",
        "Images: a folder, a Parquet file, a table (.csv, .tsv, .jsonl) or shards (.tar), local or at `s3://…` or "
        "`gs://…`; `torchvision:NAME`; or `demo`",
        group="data",
        metavar="DIR|FILE|NAME",
    )
    task: Literal["auto", "classification", "multilabel"] = field(
        "auto",
        "`classification` has one class an image, `multilabel` any number of labels; `auto` is what the data has",
        group="data",
    )
    val_fraction: float = field(
        0.2,
        "Fraction of train that is used for validation if the data has no val split",
        range=Range(0, 1, low_open=True, high_open=True),
        group="data",
        metavar="F",
    )
    test_fraction: float = field(
        0.0,
        "Fraction of train that is used for testing if the data has no test split",
        range=Range(0, 1, high_open=True),
        group="data",
        metavar="F",
    )
    train_fraction: float | None = field(
        None,
        "Train on this fraction of what is then left of train",
        range=Range(0, 1, low_open=True),
        unset="all",
        group="data",
        metavar="F",
    )
    train_per_class: int | None = field(
        None,
        "Train on this number of images per class",
        range=Range(1),
        unset="all",
        group="data",
        metavar="N",
    )
    skip_damaged: bool = field(False, "Leave out unreadable images and count them", group="data")
    drop_duplicates: bool = field(False, "Leave images out of train that are also in another split", group="data")
    label_map: str | None = field(
        None,
        "CSV `from,to` or JSON that renames and merges classes; an empty `to` leaves the images out",
        group="data",
        metavar="FILE",
    )
    resize: Literal["auto", "crop", "squash", "letterbox"] = field(
        "auto",
        "How images that are not square become it: their centre, all of them squashed, or all of them with a border; "
        "`auto` chooses by their shapes",
        group="data",
    )
    white: float | None = field(
        None,
        "Value of white in images of more than 8 bits",
        range=Range(0, low_open=True),
        unset="65535 for 16 bits; others are refused",
        group="data",
        metavar="VALUE",
    )
    model: str | None = field(
        None,
        "`NAME` in torchvision.models, or `timm:NAME`; of several, separated by commas, or of a list, which is "
        "`small`, `medium` or `large`, the study keeps the best two",
        unset="the demo's EfficientNet-Lite0",
        group="model",
        metavar="NAME[,NAME]",
    )
    weights: str | None = field(
        None,
        "Pretrained weights: `default` (the library's own), a local .pth or .safetensors file, a folder of the Hugging "
        "Face Hub with one, or `demo`; with several models one for all, or one each, separated by commas",
        unset="default; without --model: demo",
        group="model",
        metavar="FILE[,FILE]",
    )
    image_size: int | None = field(
        None,
        "Side of the square input",
        range=Range(1, 4096),
        unset="the weights' own",
        group="model",
        metavar="PIXELS",
    )
    channels: int = field(
        3,
        "Channels of the images: 3 is RGB, 1 grey; others are read of TIFF files and NumPy arrays (.npy)",
        range=Range(1, 64),
        group="model",
        metavar="N",
    )
    space: Any = field(
        None,
        "Python file that defines the search space",
        unset="search_spaces/delta.py; transformer.py for networks with layer norms and no batch norms",
        group="search",
        metavar="FILE",
    )
    set: Mapping[str, Any] = field({}, "Fix a hyperparameter; may be repeated", group="search", metavar="KEY=VALUE")
    num_trials: int = field(16, "Number of trials", range=Range(1), group="search", metavar="N")
    max_epochs: int = field(6, "Epochs of a full trial", range=Range(1, 1_000_000), group="search", metavar="N")
    max_steps: int | None = field(
        None,
        "Steps of a full trial, instead of `max_epochs`: its epochs follow from the number of training images",
        range=Range(1, 1_000_000),
        unset="max_epochs",
        group="search",
        metavar="N",
    )
    time_budget: float | str | None = field(
        None,
        "Wall-clock time of everything, such as `45m` or `2h`; epochs and trials that are not given are chosen to fit",
        group="search",
        metavar="TIME",
    )
    metric: Metric = field(
        "val_accuracy",
        f"Metric to optimise; with several labels an image it is `{MULTILABEL_METRIC}` if none is given",
        group="search",
    )
    mode: Mode | None = field(
        None, "Whether the metric is to be large or small", unset="as the metric requires", group="search"
    )
    sampler: Sampler = field("tpe", "How configurations are sampled after the starting points", group="search")
    grace_period: int = field(1, "First rung of ASHA, in epochs", range=Range(1), group="search", metavar="N")
    reduction_factor: float = field(
        4, "One in R trials passes a rung", range=Range(1.01, 1_000_000), group="search", metavar="R"
    )
    confirm: int = field(
        0,
        "After the search, compare the methods on N ≥ 2 fresh seeds and splits",
        range=Range(0, 1000),
        group="search",
        metavar="N",
    )
    confirm_splits: Literal["random", "folds"] = field(
        "random",
        "What --confirm holds out: new random parts of train and validation, or each of their N folds once",
        group="search",
    )
    final_runs: int = field(
        5,
        "After the search, train the best configuration N ≥ 2 times on nine tenths of train and validation, each time "
        "without another tenth, and average the weights; 0 keeps the search's model",
        range=Range(0, 10),
        group="search",
        metavar="N",
    )
    members: int = field(
        1,
        "Networks of the final model, whose probabilities are averaged: better, and as many times slower",
        range=Range(1, 10),
        group="search",
        metavar="M",
    )
    cpus_per_trial: float | None = field(
        None,
        "CPUs per trial",
        range=Range(SMALLEST_PART),
        unset="1; on GPUs, a node's CPUs shared out among its trials",
        group="resources",
        metavar="N",
    )
    gpus_per_trial: float | Literal["auto"] | None = field(
        None,
        "GPUs per trial, at most 1: a fraction shares a GPU, `auto` measures how many trials fit on one",
        range=Range(0),
        unset="auto if there are GPUs, else 0",
        group="resources",
        metavar="N|auto",
    )
    max_concurrent_trials: int | None = field(
        None,
        "Maximum number of trials at a time",
        range=Range(1),
        unset="what the cluster holds",
        group="resources",
        metavar="N",
    )
    memory: float | str | None = field(
        None,
        "Memory that images may take on a node, such as `8GB`: decoded if they fit, else as files; what does not fit "
        "either is read from the node's disk",
        unset="half of what is available",
        group="resources",
        metavar="SIZE",
    )
    scratch: str | None = field(
        None,
        "Folder of each node to which images that do not fit into memory are copied",
        unset="~/.cache/delta_tune/images, and image files stay where they are",
        group="resources",
        metavar="DIR",
    )
    address: str | None = field(
        None,
        "Ray cluster: `local`, `auto` or `host:port`",
        unset="RAY_ADDRESS if it is set, else local",
        group="resources",
        metavar="ADDRESS",
    )
    out: Path = field(
        Path("results"), "Folder of the results, local or at `s3://…` or `gs://…`", group="study", metavar="DIR|s3://…"
    )
    name: str | None = field(None, "Name of the study", unset="data-model-date-time", group="study", metavar="NAME")
    storage: str | None = field(
        None,
        "Optuna storage for optuna-dashboard: a database such as `sqlite:///s.db`, or a journal file",
        group="tools that follow a study",
        metavar="URL|FILE",
    )
    mlflow: str | None = field(
        None,
        "Also log the trials to MLflow: `http://host:5000` or `sqlite:///mlflow.db`",
        group="tools that follow a study",
        metavar="URL",
    )
    wandb: str | None = field(
        None,
        "Also log the trials to this Weights & Biases project",
        group="tools that follow a study",
        metavar="PROJECT",
    )
    cache: str | None = field(
        None,
        "Where studies share attention and features: a folder, or an address such as `s3://…`",
        unset=".cache in the results folder",
        group="study",
        metavar="DIR|s3://…",
    )
    start_from: str | None = field(
        None,
        "Earlier study, its folder or name: try its best configurations first",
        group="study",
        metavar="DIR|NAME",
    )
    resume: bool = field(False, "Continue the interrupted study of that name", group="study")
    seed: int = field(0, "Seed of splits, trials and sampler", range=Range(0, 2**31), group="study", metavar="N")
    verbose: int = field(
        1, "0 prints nothing, 1 trials, 2 also epochs", range=Range(0, 2), group="study", metavar="0-2"
    )

    def __post_init__(self) -> None:
        for name, declared in fields_of(StudyConfig).items():
            object.__setattr__(self, name, declared.checked(getattr(self, name)))
        if self.mode not in (None, METRICS[self.metric]):
            raise UserError(f"mode must be {METRICS[self.metric]} for {self.metric}, but got {self.mode!r}.")
        if self.max_steps is None and self.grace_period > self.max_epochs:  # else its epochs may not be known yet
            raise UserError(
                f"grace_period must not exceed max_epochs, but got {self.grace_period} and {self.max_epochs}."
            )
        if self.confirm == 1:
            raise UserError("confirm must be 0 or at least 2, but got 1: a single run has no spread.")
        if self.final_runs == 1:
            raise UserError("final_runs must be 0 or at least 2, but got 1: there is no mean of one network.")
        if self.members > max(1, self.final_runs):
            raise UserError(
                f"members must be at most final_runs, whose networks they are, but got {self.members} and "
                f"{self.final_runs}; give more --final-runs."
            )
        if self.confirm_splits == "folds" and (self.train_fraction or self.train_per_class):
            raise UserError(
                "confirm_splits must be random with train_fraction or train_per_class, for folds train on all images, "
                "but got 'folds'."
            )
        if self.members > 1 and (self.train_fraction or self.train_per_class):
            raise UserError(
                f"members must be 1 with train_fraction or train_per_class, which leave out the final runs, but got "
                f"{self.members}."
            )
        if self.train_fraction is not None and self.train_per_class is not None:
            raise UserError("train_fraction and train_per_class exclude each other; give one of them.")
        if self.name is not None and (self.name in ("", "..") or Path(self.name).name != self.name):
            raise UserError(f"name must be a plain folder name, but got {self.name!r}; the folder above it is out.")
        check_names([name for name in self.set if not name.startswith("_")], "set")
        for name in FIXED_BY_STUDY:
            if name in self.set:
                raise UserError(f"set must leave {name} to --{name.replace('_', '-')}: it is the study's own setting.")
        _ = self.time_budget_s, self.memory_bytes  # refuses what is none before anything is computed
        if self.scratch is not None and ("://" in self.scratch or not self.scratch):
            raise UserError(f"scratch must be a folder on the disk of each node, but got {self.scratch!r}.")
        if isinstance(self.out, Path) and re.match(r"\w\w+:/", str(self.out)):
            raise UserError(f"out must be text where it is an address, but got the path {str(self.out)!r}.")
        object.__setattr__(self, "out", Path(self.out))

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes.

        Raises:
            UserError: text that is no amount of memory.
        """
        return None if self.memory is None else parse_bytes(self.memory, "memory")

    @property
    def time_budget_s(self) -> float | None:
        """`time_budget` in seconds.

        Raises:
            UserError: text that is no duration.
        """
        return None if self.time_budget is None else parse_duration(self.time_budget, "time_budget")
