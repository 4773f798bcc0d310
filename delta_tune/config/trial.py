"""What one fine-tuning run is asked to do. Standard library only, so `--help` answers at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from delta_tune.config.errors import UserError, did_you_mean
from delta_tune.config.fields import Range, field, fields_of
from delta_tune.config.image_settings import Augmentation, ImageSettings, Sampling
from delta_tune.config.methods import BASELINE, METHODS, Method, Regularizer

BehaviorScale = Literal["raw", "relative"]
AttentionEstimator = Literal["exact", "first_order"]
BatchNorm = Literal["train", "frozen"]
HeadStart = Literal["random", "probe"]
Schedule = Literal["step", "cosine", "constant"]
Optimizer = Literal["sgd", "adamw"]
ClassWeights = Literal["none", "balanced"]
Metric = Literal["val_accuracy", "val_balanced_accuracy", "val_macro_f1", "val_mean_average_precision", "val_loss"]
Mode = Literal["max", "min"]

METRICS: dict[str, Mode] = {
    "val_accuracy": "max",
    "val_balanced_accuracy": "max",
    "val_macro_f1": "max",
    "val_mean_average_precision": "max",
    "val_loss": "min",
}
LAYER_CHOICES = ("all", "last", "last_two")
BEFORE: dict[str, Any] = {
    **{"head_start": "random", "lr": 0.001, "head_lr_multiplier": 10.0, "max_grad_norm": None},
    **{"optimizer": "sgd", "layer_decay": 1.0, "drop_path": None, "class_weights": "none"},
    **{"sampling": "random", "logit_adjustment": 0.0},
    **{"random_erasing": 0.0, "mixup": 0.0, "cutmix": 0.0, "early_size": 1.0, "co_tuning": 0.0, "contrast": 0.0},
}
"""Field → its default in earlier versions: what their studies' trials did where nothing was written."""
_BY_METHOD = ("weight_decay", "co_tuning", "contrast")
"""Fields whose default the method decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """One configuration of the fine-tuning run (arXiv 1901.09229); `docs/explanation/method.md` has the formulas.

    Raises:
        UserError: a value of the wrong type or out of its range.
    """

    regularizer: Regularizer = field(
        "delta",
        "What keeps the target near the source: weight decay (`l2`), the starting point (`l2_sp`), a frozen backbone "
        "(`l2_fe`), feature maps (`delta_uniform`, `delta`), the source's classes (`co_tuning`), or contrast within "
        "the batch (`bi_tuning`); `linear_probe` fits the head on the frozen backbone at once and is a study's first "
        "trial",
    )
    behavior_scale: BehaviorScale = field(
        "relative",
        "`relative` divides a layer's term by the map's mean square, so that alpha carries over between backbones",
    )
    alpha: float = field(
        1.0,
        "Strength of the behaviour penalty (`delta`, `delta_uniform`; a mean per image) or of the starting-point "
        "penalty (`l2_sp`)",
        range=Range(0),
    )
    beta: float = field(0.01, "Strength of the L2 penalty on the new head", range=Range(0))
    layers: str | tuple[str, ...] = field("all", "Hooked layers: `all`, `last`, `last_two`, or module names")
    attention_estimator: AttentionEstimator = field(
        "exact", "Channel losses by ablation (`exact`), or by one gradient for all channels (`first_order`)"
    )
    attention_temperature: float = field(
        5.0, "Temperature T of the softmax over a layer's standardised channel losses", range=Range(0, low_open=True)
    )
    batch_norm: BatchNorm = field(
        "frozen",
        "`frozen` keeps the backbone's running statistics and trains the affine parameters; `train` uses each batch's "
        "statistics",
    )
    lr: float = field(0.002, "Peak learning rate of the backbone", range=Range(0, low_open=True))
    head_lr_multiplier: float = field(
        1.0, "The learning rate of the head is this multiple of `lr`", range=Range(0, low_open=True)
    )
    head_start: HeadStart = field(
        "probe",
        "The head begins with the weights fitted on the frozen backbone (`probe`; linear probing, then fine-tuning, "
        "arXiv 2202.10054), or `random`, which wants a `head_lr_multiplier` of 10",
    )
    layer_decay: float = field(
        1.0,
        "The learning rate of a group of layers is this multiple of that of the group after it (a block each: 14 to "
        "20 in most networks); 1 trains all at `lr`",
        range=Range(0, 1, low_open=True),
    )
    optimizer: Optimizer = field(
        "sgd", "`sgd`, or `adamw` (arXiv 1711.05101), which wants a tenth of the learning rate or less"
    )
    momentum: float = field(0.9, "Momentum of `sgd`", range=Range(0, 1, high_open=True))
    nesterov: bool = field(True, "Nesterov momentum of `sgd`; without effect if `momentum` is 0")
    weight_decay: float | None = field(
        None,
        "Weight decay of all parameters; with `adamw`, of networks with layer norms and no batch norms, of the weights "
        "of layers alone",
        range=Range(0),
        unset="1e-4 for `l2`, `co_tuning` and `bi_tuning`, 0 for the others",
    )
    batch_size: int = field(32, "Images per step", range=Range(1))
    schedule: Schedule = field(
        "cosine", "Learning rate over the trial: `step` is ×0.1 after two thirds, `cosine` ends at 0"
    )
    warmup_epochs: float = field(0.0, "Epochs of linear warm-up from 0", range=Range(0))
    label_smoothing: float = field(
        0.0, "Label smoothing of the training cross entropy", range=Range(0, 1, high_open=True)
    )
    class_weights: ClassWeights = field(
        "none", "`balanced` weighs the cross entropy of each image by the inverse of its class's share of train"
    )
    sampling: Sampling = field(
        "random",
        "The images of an epoch: each of train once (`random`), or as many draws, of which every class has the same "
        "number (`balanced`)",
    )
    logit_adjustment: float = field(
        0.0,
        "The training loss is that of the logits plus this multiple of the log of each class's share of train (arXiv "
        "2007.07314): 1 trains for all classes alike, 0 for the data as it is",
        range=Range(0, 10),
    )
    co_tuning: float | None = field(
        None,
        "Strength of Co-Tuning's term: the source's own head is kept and learns the source classes that go with the "
        "target's (You et al., NeurIPS 2020)",
        range=Range(0),
        unset="1 for `co_tuning`, 0 for the others",
    )
    contrast: float | None = field(
        None,
        "Strength of a supervised contrastive term on the head's inputs (arXiv 2004.11362, 2011.06182)",
        range=Range(0),
        unset="1 for `bi_tuning`, 0 for the others",
    )
    drop_path: float | None = field(
        None,
        "Largest probability with which an image skips a residual branch in training (stochastic depth, arXiv "
        "1603.09382), for networks whose library can do it; that of earlier branches is smaller",
        range=Range(0, 1, high_open=True),
        unset="the library's own: 0.19 for `efficientnet_b0`, 0 for most networks",
    )
    max_grad_norm: float | None = field(
        10.0, "Gradients are clipped to this norm; null for no clipping", range=Range(0, low_open=True)
    )
    average_epochs: float = field(
        0.0,
        "Horizon in epochs of the moving average of the weights that is scored and saved; 0 uses the last weights",
        range=Range(0),
    )
    augmentation: Augmentation = field("crop_flip", "Random changes of the training images")
    random_erasing: float = field(
        0.0, "Probability with which a rectangle of a training image is erased (arXiv 1708.04896)", range=Range(0, 1)
    )
    mixup: float = field(
        0.0, "Parameter of the Beta distribution of mixup (arXiv 1710.09412); 0 mixes no images", range=Range(0)
    )
    cutmix: float = field(
        0.0,
        "Parameter of the Beta distribution of CutMix (arXiv 1905.04899); 0 mixes no images; with `mixup` each has "
        "half of the steps",
        range=Range(0),
    )
    early_size: float = field(
        1.0,
        "Side of the training images in the first half of the epochs, as a fraction of the input size (progressive "
        "resizing)",
        range=Range(0, 1, low_open=True),
    )
    backbone: str | None = field(
        None,
        "The pretrained network, by its name in the study",
        unset="the study's only one; of several, the one that was screened best",
    )
    max_epochs: int = field(6, "Epochs of a full trial", range=Range(1, 1_000_000))
    seed: int = field(
        0, "Seed of data order, augmentation and head; a study gives all its trials the same one", range=Range(0)
    )

    def __post_init__(self) -> None:
        for name, declared in fields_of(TrialConfig).items():
            value = declared.checked(getattr(self, name))
            if declared.kind is float and value is not None:
                value = float(value)
            object.__setattr__(self, name, parse_layers(value) if name == "layers" else value)
        if isinstance(self.layers, tuple) and not self.layers:
            raise UserError(f"layers must be one of {', '.join(LAYER_CHOICES)}, or module names, but got none.")
        if self.backbone is not None and (not isinstance(self.backbone, str) or not self.backbone):
            raise UserError(f"backbone must be the name of one of the study's networks, but got {self.backbone!r}.")
        if self.image_settings(1).mixes and self.effective_contrast:
            raise UserError(
                f"contrast must be 0 with mixup or cutmix, whose images are of two classes, but {self.regularizer} has "
                f"{self.effective_contrast:g}."
            )

    @property
    def method(self) -> Method:
        """What there is to know of the chosen method."""
        return METHODS[self.regularizer]

    @property
    def is_baseline(self) -> bool:
        """Whether this is plain L2: the method, without the terms of others."""
        return self.regularizer == BASELINE and not self.effective_co_tuning and not self.effective_contrast

    @property
    def uses_behavior(self) -> bool:
        """Whether the loss compares feature maps."""
        return self.method.uses_behavior

    @property
    def last_epoch(self) -> int:
        """Number of the epoch with which the run is complete: 1 if the head is fitted at once."""
        return 1 if self.method.fits_head else self.max_epochs

    @property
    def needs_fitted_head(self) -> bool:
        """Whether the head's weights are those fitted on the frozen backbone, at the start or for good."""
        return self.method.fits_head or self.head_start == "probe"

    @property
    def effective_weight_decay(self) -> float:
        """`weight_decay` with its default resolved."""
        return self.method.weight_decay if self.weight_decay is None else self.weight_decay

    @property
    def effective_co_tuning(self) -> float:
        """`co_tuning` with its default resolved; 0 for methods that do not use it."""
        return self._strength("co_tuning", self.method.co_tuning)

    @property
    def effective_contrast(self) -> float:
        """`contrast` with its default resolved; 0 for methods that do not use it."""
        return self._strength("contrast", self.method.contrast)

    def _strength(self, name: str, default: float) -> float:
        given: float | None = getattr(self, name) if name in self.method.fields else 0.0
        return default if given is None else given

    def image_settings(self, epoch: int) -> ImageSettings:
        """What determines the training images of an epoch, from 1; nothing is done to them for a frozen backbone."""
        if not self.method.trains_backbone:
            return ImageSettings(augmentation="none", sampling=self.sampling)
        early = epoch <= self.max_epochs // 2
        return ImageSettings(
            augmentation=self.augmentation,
            random_erasing=self.random_erasing,
            mixup=self.mixup,
            cutmix=self.cutmix,
            relative_size=self.early_size if early else 1.0,
            sampling=self.sampling,
        )

    @property
    def unused_fields(self) -> frozenset[str]:
        """The fields that have no effect on a run of this method with this optimizer."""
        return self.method.unused_fields | (frozenset() if self.optimizer == "sgd" else {"momentum", "nesterov"})

    def resolved(self) -> dict[str, Any]:
        """All fields by name, `backbone` if it is given; those whose default the method decides have its value."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.backbone is None:  # a study of one network says nothing of it in its trials
            del values["backbone"]
        return values | {name: getattr(self, f"effective_{name}") for name in _BY_METHOD}

    def record(self) -> dict[str, Any]:
        """The fields as stored: those that have no effect are null, layer names are joined by commas."""
        unused = self.unused_fields
        values = {name: None if name in unused else value for name, value in self.resolved().items()}
        if isinstance(values["layers"], tuple):
            values["layers"] = ",".join(values["layers"])
        return values

    def same_as(self, record: Mapping[str, Any]) -> bool:
        """Whether this is the configuration that `record` was made of; fields that do not apply do not count."""
        ours = self.record()
        known = {name: None if name in self.unused_fields else was for name, was in BEFORE.items()} | dict(record)
        return {"backbone": None} | ours == {"backbone": None} | known

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> TrialConfig:
        """The inverse of `record`: a null field takes its default, or what it was before there was such a field.

        Raises:
            UserError: a name that is no field.
        """
        check_names(record, "configuration")
        before = {name: was for name, was in BEFORE.items() if name not in _BY_METHOD}  # earlier methods' are the same
        return cls(**before | {k: v for k, v in record.items() if v is not None})


TRIAL_FIELDS: tuple[str, ...] = tuple(fields_of(TrialConfig))
FIXED_BY_STUDY = ("max_epochs", "seed")
"""Fields that all trials of a study share: their results would not compare otherwise."""


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
    value: Any = _parse_scalar(raw) if fields_of(TrialConfig)[name].kind else raw
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
