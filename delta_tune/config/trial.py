"""What one fine-tuning run is asked to do. Standard library only, so `--help` answers at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from delta_tune.config.errors import UserError, did_you_mean

Regularizer = Literal["l2", "l2_sp", "l2_fe", "delta_uniform", "delta"]
BehaviorScale = Literal["raw", "relative"]
AttentionEstimator = Literal["exact", "first_order"]
BatchNorm = Literal["train", "frozen"]
Schedule = Literal["step", "cosine", "constant"]
Augmentation = Literal["none", "flip", "crop_flip", "resized_crop_flip"]
Metric = Literal["val_accuracy", "val_balanced_accuracy", "val_macro_f1", "val_loss"]
Mode = Literal["max", "min"]
Sampler = Literal["tpe", "gp", "random", "cmaes", "grid"]

METRICS: dict[str, Mode] = {
    "val_accuracy": "max",
    "val_balanced_accuracy": "max",
    "val_macro_f1": "max",
    "val_loss": "min",
}
LAYER_CHOICES = ("all", "last", "last_two")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """One configuration of the fine-tuning run (arXiv 1901.09229); `docs/method.md` has the formulas.

    Raises:
        UserError: a value of the wrong type or out of its range.
    """

    regularizer: Regularizer = "delta"
    """What keeps the target near the source: weight decay, the starting point, a frozen backbone, or feature maps."""
    behavior_scale: BehaviorScale = "relative"
    """`relative` divides a layer's term by the map's mean square, so that alpha carries over between backbones."""
    alpha: float = 1.0
    """Strength of the behaviour (a per-image mean; delta, delta_uniform) or starting-point (l2_sp) penalty, ≥ 0."""
    beta: float = 0.01
    """Strength of the L2 penalty on the new head, ≥ 0; every method but l2 has it."""
    layers: str | tuple[str, ...] = "all"
    """Hooked layers: all, last, last_two, or module names."""
    attention_estimator: AttentionEstimator = "exact"
    """Channel losses by ablation (`exact`), or by one gradient for all channels (`first_order`)."""
    attention_temperature: float = 5.0
    """Temperature T of the softmax over a layer's standardised channel losses, > 0."""
    batch_norm: BatchNorm = "frozen"
    """`frozen` keeps the backbone's running statistics and trains the affine parameters; `train` uses each batch's."""
    lr: float = 0.001
    """Peak learning rate of the backbone, > 0."""
    head_lr_multiplier: float = 10.0
    """The head learns at this multiple of `lr`, > 0."""
    momentum: float = 0.9
    """Momentum of SGD, in [0, 1)."""
    nesterov: bool = True
    """Nesterov's form of the momentum; without effect where momentum is 0."""
    weight_decay: float | None = None
    """Weight decay of all parameters, ≥ 0; None means 1e-4 for l2 and 0 for the others."""
    batch_size: int = 32
    """Images a step, ≥ 1."""
    schedule: Schedule = "cosine"
    """Learning rate over the trial: ×0.1 after two thirds, a cosine to 0, or constant."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0, ≥ 0."""
    label_smoothing: float = 0.0
    """Label smoothing of the training cross entropy, in [0, 1)."""
    max_grad_norm: float | None = None
    """Gradients are clipped to this norm, > 0; None leaves them alone."""
    average_epochs: float = 0.0
    """Horizon in epochs of the moving average of the weights that is scored and kept, ≥ 0; 0 takes the last weights."""
    augmentation: Augmentation = "crop_flip"
    """Random changes of the training images."""
    max_epochs: int = 12
    """Epochs of a full trial, ≥ 1."""
    seed: int = 0
    """Seed of data order, augmentation and head; a study gives all its trials the same one."""

    def __post_init__(self) -> None:
        for name, hint in _TRIAL_HINTS.items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), hint))
        for name, (low, high, closed) in _RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not ((value >= low if closed else value > low) and value < high):
                bound = f"{'≥' if closed else '>'} {low:g}" + ("" if high == float("inf") else f" and < {high:g}")
                raise UserError(f"{name} must be {bound}, but got {value!r}.")
        if isinstance(self.layers, tuple) and not self.layers:
            raise UserError(f"layers must be one of {', '.join(LAYER_CHOICES)}, or module names, but got none.")

    @property
    def uses_behavior(self) -> bool:
        """Whether the loss compares feature maps."""
        return self.regularizer in ("delta", "delta_uniform")

    @property
    def effective_weight_decay(self) -> float:
        """`weight_decay` with its default resolved."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 1e-4 if self.regularizer == "l2" else 0.0

    def record(self) -> dict[str, Any]:
        """The fields as stored: those that do not apply to the method are null, layer names are joined by commas."""
        unused = set()
        if not self.uses_behavior:
            unused |= {"behavior_scale", "layers"}
        if self.regularizer != "delta":
            unused |= {"attention_estimator", "attention_temperature"}
        if self.regularizer in ("l2", "l2_fe"):
            unused.add("alpha")
        if self.regularizer == "l2":
            unused.add("beta")
        if self.regularizer == "l2_fe":
            unused |= {"batch_norm", "augmentation", "average_epochs"}
        values = {f.name: None if f.name in unused else getattr(self, f.name) for f in dataclasses.fields(self)}
        if isinstance(values["layers"], tuple):
            values["layers"] = ",".join(values["layers"])
        values["weight_decay"] = self.effective_weight_decay
        return values

    def same_as(self, record: Mapping[str, Any]) -> bool:
        """Whether this is the configuration that `record` was made of; fields that do not apply do not count."""
        return self.record() == record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> TrialConfig:
        """The inverse of `record`: a null field takes its default.

        Raises:
            UserError: a name that is no field.
        """
        check_names(record, "configuration")
        values = {k: v for k, v in record.items() if v is not None}
        return cls(**values)


_TRIAL_HINTS: dict[str, Any] = get_type_hints(TrialConfig)
INFINITY = float("inf")
_RANGES: dict[str, tuple[float, float, bool]] = {  # name: (low, high (open), low is allowed)
    "alpha": (0, INFINITY, True),
    "beta": (0, INFINITY, True),
    "attention_temperature": (0, INFINITY, False),
    "lr": (0, INFINITY, False),
    "head_lr_multiplier": (0, INFINITY, False),
    "momentum": (0, 1, True),
    "weight_decay": (0, INFINITY, True),
    "batch_size": (1, INFINITY, True),
    "warmup_epochs": (0, INFINITY, True),
    "label_smoothing": (0, 1, True),
    "average_epochs": (0, INFINITY, True),
    "max_grad_norm": (0, INFINITY, False),
    "max_epochs": (1, INFINITY, True),
    "seed": (0, INFINITY, True),
}
TRIAL_FIELDS: tuple[str, ...] = tuple(_TRIAL_HINTS)


def check_names(names: Iterable[str], where: str) -> None:
    """Refuse a name that is no field of `TrialConfig`.

    Raises:
        UserError: with the nearest valid names.
    """
    for name in names:
        if name not in TRIAL_FIELDS:
            raise UserError(
                f"{name!r} in the {where} is no hyperparameter{did_you_mean(name, TRIAL_FIELDS)}; "
                f"the hyperparameters are {', '.join(TRIAL_FIELDS)}."
            )


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` in the type of its field; numbers are converted where nothing is lost."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UserError(f"{name} must be one of {', '.join(get_args(hint))}, but got {value!r}.")
        return value
    if name == "layers":
        return parse_layers(value)
    optional = type(None) in get_args(hint)
    if value is None and optional:
        return None
    kind = next(k for k in (*get_args(hint), hint) if k in (bool, int, float))
    if kind is bool:
        if isinstance(value, bool):
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        if kind is float:
            return float(value)
        if float(value).is_integer():
            return int(value)
    raise UserError(f"{name} must be {kind.__name__}{' or None' if optional else ''}, but got {value!r}.")


def parse_layers(value: Any) -> str | tuple[str, ...]:
    """`all`, `last`, `last_two`, or module names as a tuple, from a string (commas between names) or a sequence.

    Raises:
        UserError: neither.
    """
    if isinstance(value, str):
        names = tuple(part.strip() for part in value.split(",") if part.strip())
        return names[0] if len(names) == 1 and names[0] in LAYER_CHOICES else names
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(value)
    raise UserError(f"layers must be one of {', '.join(LAYER_CHOICES)}, or module names, but got {value!r}.")


def parse_setting(text: str) -> tuple[str, Any]:
    """One `--set key=value`; a key that starts with `_` is a helper of the search space.

    Raises:
        UserError: no `=`, an unknown key, or a value that is not of the field's type.
    """
    name, equals, raw = text.partition("=")
    name, raw = name.strip(), raw.strip()
    if not equals or not name:
        raise UserError(f"--set takes key=value, but got {text!r}.")
    if name.startswith("_"):
        return name, _parse_scalar(raw)
    check_names([name], "--set")
    hint = _TRIAL_HINTS[name]
    value: Any = raw if get_origin(hint) is Literal or name == "layers" else _parse_scalar(raw)
    return name, getattr(TrialConfig(**{name: value}), name)


def _parse_scalar(raw: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if raw.lower() in words:
        return words[raw.lower()]
    for kind in (int, float):
        try:
            return kind(raw)
        except ValueError:
            continue
    return raw
