"""The methods: what each adds to the loss, which settings it uses, how it is shown. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Regularizer = Literal["linear_probe", "l2", "l2_sp", "l2_fe", "delta_uniform", "delta", "co_tuning", "bi_tuning"]
"""The keys of `METHODS`, for type checkers and for the choices of `TrialConfig.regularizer`."""

BEHAVIOR: Final = "behavior"
"""The penalty on the distance of feature maps, the only one that needs the source beside the target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One way to fine-tune: loss = cross_entropy + alpha · penalty + beta · head_l2 + terms with fields as strengths.

    To add a method, add its name to `Regularizer`, its row to `METHODS` and, if its penalty is new, the penalty to
    `training/regularizers.py`. Everything else asks this table.
    """

    name: Regularizer
    colour: str
    """In the report's figures."""
    penalty: str | None
    """Name of the penalty that alpha weighs, and of its column in `epochs.parquet`; None adds no penalty."""
    penalizes: str = ""
    """What the penalty measures, in words."""
    fields: frozenset[str]
    """The fields of `TrialConfig` that this method uses and some other method does not."""
    trains_backbone: bool = True
    """Otherwise the head alone is trained, on features of the un-augmented images."""
    fits_head: bool = False
    """Whether the head is fitted at once, in one epoch without steps of SGD."""
    has_rungs: bool = True
    """Whether ASHA may stop its trials."""
    weight_decay: float = 0.0
    """The default of `TrialConfig.weight_decay`."""
    co_tuning: float = 0.0
    """The default of `TrialConfig.co_tuning`."""
    contrast: float = 0.0
    """The default of `TrialConfig.contrast`."""

    @property
    def uses_behavior(self) -> bool:
        """Whether the loss compares feature maps with those of the source."""
        return self.penalty == BEHAVIOR

    @property
    def uses_attention(self) -> bool:
        """Whether channels are weighted by measured attention."""
        return "attention_estimator" in self.fields

    @property
    def penalizes_head(self) -> bool:
        """Whether the loss has the L2 penalty on the head."""
        return "beta" in self.fields

    @property
    def unused_fields(self) -> frozenset[str]:
        """The fields of `TrialConfig` that have no effect on this method."""
        return frozenset().union(*(method.fields for method in METHODS.values())) - self.fields


_MAPS = "feature maps"
_OF_SGD = frozenset(
    {
        *("lr", "head_lr_multiplier", "head_start", "momentum", "nesterov", "weight_decay", "batch_size", "schedule"),
        *("warmup_epochs", "label_smoothing", "max_grad_norm", "optimizer", "class_weights", "sampling"),
        "logit_adjustment",
    }
)
_OF_BACKBONE = _OF_SGD | {
    *("batch_norm", "augmentation", "average_epochs", "layer_decay", "drop_path", "random_erasing", "mixup", "cutmix"),
    *("early_size", "co_tuning", "contrast"),
}
_OF_BEHAVIOR = _OF_BACKBONE | {"alpha", "beta", "behavior_scale", "layers"}
_OF_ATTENTION = _OF_BEHAVIOR | {"attention_estimator", "attention_temperature"}

METHODS: Final[dict[str, Method]] = {
    # In the order of the report's figures. The colours are from Okabe and Ito's palette, which the colour-blind can
    # tell apart.
    method.name: method
    for method in (
        Method(name="delta", colour="#0072b2", penalty=BEHAVIOR, penalizes=_MAPS, fields=_OF_ATTENTION),
        Method(name="delta_uniform", colour="#56b4e9", penalty=BEHAVIOR, penalizes=_MAPS, fields=_OF_BEHAVIOR),
        Method(
            name="l2_sp",
            colour="#e69f00",
            penalty="weight_l2_sp",
            penalizes="distance from the source weights",
            fields=_OF_BACKBONE | {"alpha", "beta"},
        ),
        Method(name="l2", colour="#d55e00", penalty=None, fields=_OF_BACKBONE, weight_decay=1e-4),
        Method(name="co_tuning", colour="#009e73", penalty=None, fields=_OF_BACKBONE, weight_decay=1e-4, co_tuning=1.0),
        Method(name="bi_tuning", colour="#882255", penalty=None, fields=_OF_BACKBONE, weight_decay=1e-4, contrast=1.0),
        # Frozen features lead at epoch 5 where DELTA wins at 15, and their epochs cost next to nothing: no rungs.
        Method(
            name="l2_fe",
            colour="#cc79a7",
            penalty=None,
            fields=_OF_SGD | {"beta"},
            trains_backbone=False,
            has_rungs=False,
        ),
        Method(
            name="linear_probe",
            colour="#999999",
            penalty=None,
            fields=frozenset(),
            trains_backbone=False,
            fits_head=True,
            has_rungs=False,
        ),
    )
}

FIRST_MODEL: Final = "linear_probe"
"""The method of a study's first trial, which no search space proposes."""
BASELINE: Final = "l2"
"""The control that every other method has to beat."""
HEAVIEST: Final = "delta_uniform"
"""The method that time and memory are measured with: it runs both networks and needs no attention."""

LOSS_PARTS: Final = {
    "cross_entropy": "Mean cross entropy of the training batches, with label smoothing",
    **{
        method.penalty: f"Mean penalty on the {method.penalizes}, before `alpha`; null for methods without it"
        for method in METHODS.values()
        if method.penalty is not None
    },
    "head_l2": "Mean L2 penalty on the head, before `beta`; null for methods without it",
    "co_tuning": "Mean cross entropy of the source's own head, before the strength `co_tuning`; null where that is 0",
    "contrast": "Mean supervised contrastive loss, before the strength `contrast`; null where that is 0",
}
"""The parts of all methods' losses, in the order of their columns: name → meaning."""
