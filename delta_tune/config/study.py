"""What one study is asked to do: the flags of `launch.py` and the keywords of `tune`. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from delta_tune.config.errors import UserError, did_you_mean
from delta_tune.config.trial import INFINITY, METRICS, Metric, Mode, Sampler, check_names


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """One search: the flags of `launch.py` and the keywords of `tune`."""

    data: str = "demo"
    """Image folder, Parquet file or folder, here or at s3://… or gs://…; torchvision:NAME, or demo."""
    val_fraction: float = 0.2
    """Validation part cut from train where the data has no such split, in (0, 1)."""
    test_fraction: float = 0.0
    """Test part cut from train where the data has no such split, in [0, 1)."""
    train_fraction: float | None = None
    """Train on this part of what is left, in (0, 1]."""
    train_per_class: int | None = None
    """Train on this many images of each class, ≥ 1."""
    skip_damaged: bool = False
    """Leave unreadable images out and count them instead of refusing."""
    drop_duplicates: bool = False
    """Take images that also stand in another split out of train."""
    model: str | None = None
    """NAME of torchvision.models or timm:NAME (the demo's EfficientNet-Lite0)."""
    weights: str | None = None
    """default (the library's own), a local .pth or .safetensors, or demo."""
    image_size: int | None = None
    """Square input in pixels (the weights' own)."""
    space: Any = "search_spaces/delta.py"
    """Search space: a Python file, or the function itself."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters fixed to a value, by name."""
    num_trials: int = 16
    """Trials of the search, ≥ 1."""
    max_epochs: int = 12
    """Epochs of a full trial, ≥ 1."""
    time_budget: float | str | None = None
    """Wall clock of the search: seconds, or text such as 45m or 2h."""
    metric: Metric = "val_accuracy"
    """What is optimised on the validation split."""
    mode: Mode | None = None
    """max or min (as the metric has it)."""
    sampler: Sampler = "tpe"
    """How configurations are drawn after the starting points."""
    grace_period: int = 1
    """First rung of ASHA in epochs, ≥ 1."""
    reduction_factor: float = 4
    """ASHA keeps one in this many at each rung, > 1."""
    confirm: int = 0
    """After the search run the best of each method again on so many fresh seeds and splits, 0 or ≥ 2."""
    cpus_per_trial: float = 1
    """CPUs of one trial."""
    gpus_per_trial: float | Literal["auto"] | None = None
    """GPUs of one trial, a fraction shares one, auto measures how many share one (0; 1 where there are GPUs)."""
    max_concurrent_trials: int | None = None
    """Upper bound of trials at a time (what the cluster holds)."""
    address: str | None = None
    """Ray: local, auto, or an address (local; RAY_ADDRESS is honoured)."""
    out: Path = Path("results")
    """Results folder, or s3://… or gs://…."""
    name: str | None = None
    """Name of the study (data-model-date-time)."""
    storage: str | None = None
    """Optuna storage for optuna-dashboard: a database URL, or the path of a journal file (none)."""
    mlflow: str | None = None
    """MLflow server or database that the trials are sent to: http://host:5000, sqlite:///mlflow.db (none)."""
    wandb: str | None = None
    """Weights & Biases project that the trials are sent to (none)."""
    cache: str | None = None
    """Folder or s3://… address where studies share attention and features (.cache in the results folder)."""
    start_from: str | None = None
    """An earlier study, its folder or its name under `out`, whose best configurations are tried first (none)."""
    resume: bool = False
    """Carry on the interrupted study of that name."""
    seed: int = 0
    """Seed of splits, trials and sampler."""
    verbose: int = 1
    """0 quiet, 1 trials, 2 epochs."""

    def __post_init__(self) -> None:
        for name, (low, high, closed) in _STUDY_RANGES.items():
            value, hint = getattr(self, name), _STUDY_HINTS[name]
            if value is None and type(None) in get_args(hint):
                continue
            if value == "auto" and Literal["auto"] in get_args(hint):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(f"{name} must be a number, but got {value!r}.")
            if int in (hint, *get_args(hint)):
                if not float(value).is_integer():
                    raise UserError(f"{name} must be a whole number, but got {value!r}.")
                object.__setattr__(self, name, int(value))
            if not ((value >= low if closed else value > low) and value <= high):
                upper = "" if high == INFINITY else f" and ≤ {high:g}"
                raise UserError(f"{name} must be {'≥' if closed else '>'} {low:g}{upper}, but got {value!r}.")
        for name, hint in _STUDY_HINTS.items():
            if hint is bool and not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} must be True or False, but got {getattr(self, name)!r}.")
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise UserError(f"{name} must be one of {', '.join(get_args(hint))}, but got {getattr(self, name)!r}.")
        if self.mode not in (None, METRICS[self.metric]):
            raise UserError(f"mode must be {METRICS[self.metric]} for {self.metric}, but got {self.mode!r}.")
        if self.grace_period > self.max_epochs:
            raise UserError(
                f"grace_period must not exceed max_epochs, but got {self.grace_period} and {self.max_epochs}."
            )
        if self.confirm == 1:
            raise UserError("confirm must be 0 or at least 2, but got 1: a single run has no spread.")
        if self.train_fraction is not None and self.train_per_class is not None:
            raise UserError("train_fraction and train_per_class exclude each other; give one of them.")
        if self.name is not None and (self.name in ("", "..") or Path(self.name).name != self.name):
            raise UserError(f"name must be a plain folder name, but got {self.name!r}; the folder above it is out.")
        check_names([name for name in self.set if not name.startswith("_")], "set")
        for name in ("max_epochs", "seed"):
            if name in self.set:
                raise UserError(f"set must leave {name} to --{name.replace('_', '-')}: it is the study's own setting.")
        _ = self.time_budget_s  # refuses what is no duration before anything is computed
        if isinstance(self.out, Path) and re.match(r"\w\w+:/", str(self.out)):
            raise UserError(f"out must be text where it is an address, but got the path {str(self.out)!r}.")
        object.__setattr__(self, "out", Path(self.out))

    @property
    def time_budget_s(self) -> float | None:
        """`time_budget` in seconds.

        Raises:
            UserError: text that is no duration.
        """
        if self.time_budget is None:
            return None
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smhd]?)\s*", str(self.time_budget))
        if not match or float(match[1]) <= 0:
            raise UserError(f"time_budget must be like 90s, 45m or 2h, but got {self.time_budget!r}.")
        return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


_STUDY_HINTS: dict[str, Any] = get_type_hints(StudyConfig)
STUDY_FIELDS: tuple[str, ...] = tuple(_STUDY_HINTS)
_STUDY_RANGES: dict[str, tuple[float, float, bool]] = {  # name: (low, high (closed), low is allowed)
    "val_fraction": (0, 1, False),
    "test_fraction": (0, 1, True),
    "train_fraction": (0, 1, False),
    "train_per_class": (1, INFINITY, True),
    "image_size": (1, INFINITY, True),
    "num_trials": (1, INFINITY, True),
    "max_epochs": (1, INFINITY, True),
    "grace_period": (1, INFINITY, True),
    "reduction_factor": (1, INFINITY, False),
    "confirm": (0, INFINITY, True),
    "cpus_per_trial": (0, INFINITY, False),
    "gpus_per_trial": (0, INFINITY, True),
    "max_concurrent_trials": (1, INFINITY, True),
    "seed": (0, 2**31, True),
    "verbose": (0, 2, True),
}
DEMO: dict[str, Any] = {
    "image_size": 64,
    "space": "search_spaces/demo.py",
    "num_trials": 10,
    "max_epochs": 9,
    "grace_period": 3,
    "reduction_factor": 3,
}
"""What the demo uses where nothing else is asked for: minutes on two cores."""


def study_config(given: Mapping[str, Any]) -> StudyConfig:
    """The settings with their defaults.

    Raises:
        UserError: an unknown name, or a value that is not allowed.
    """
    for name in given:
        if name not in STUDY_FIELDS:
            raise UserError(
                f"{name!r} is no setting of a study{did_you_mean(name, STUDY_FIELDS)}; "
                f"the settings are {', '.join(STUDY_FIELDS)}."
            )
    defaults = DEMO if given.get("data", "demo") == "demo" and given.get("model") is None else {}
    return StudyConfig(**{**defaults, **given})
