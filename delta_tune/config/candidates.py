"""The backbones that a study is to choose from, as `--model` and `--weights` name them. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from delta_tune.config.errors import UserError

SIZES: dict[str, tuple[str, ...]] = {
    "small": (
        "mobilenet_v3_large",
        "timm:tf_efficientnet_lite0",
        "timm:mobilenetv4_conv_small.e2400_r224_in1k",
        "timm:efficientnet_b0.ra4_e3600_r224_in1k",
        "timm:convnext_atto.d2_in1k",
        "timm:tiny_vit_5m_224.dist_in22k_ft_in1k",
    ),
    "medium": (
        "resnet50",
        "timm:tf_efficientnetv2_s.in21k_ft_in1k",
        "timm:convnext_tiny.in12k_ft_in1k",
        "timm:deit3_small_patch16_224.fb_in22k_ft_in1k",
        "timm:vit_base_patch32_clip_224.laion2b_ft_in12k_in1k",
    ),
    "large": (
        "timm:convnext_base.fb_in22k_ft_in1k",
        "timm:swin_base_patch4_window7_224.ms_in22k_ft_in1k",
        "timm:beitv2_base_patch16_224.in1k_ft_in22k_in1k",
        "timm:vit_base_patch16_clip_224.laion2b_ft_in12k_in1k",
        "timm:caformer_b36.sail_in22k_ft_in1k",
    ),
}
"""Size → networks to choose from: of different families, by the accuracy on ImageNet that timm and torchvision publish,
under licences that allow commercial use."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backbone that a study may use."""

    model: str | None
    """`NAME` of torchvision.models or `timm:NAME`; None is the demo's."""
    weights: str | None = None
    """`default`, `demo` or a file; None as in `StudyConfig`."""
    listed: bool = False
    """Whether it comes from a list of `SIZES`: then it is left out where it cannot be loaded."""


def names_several(model: str | None) -> bool:
    """Whether `--model` names more than one backbone."""
    return model is not None and ("," in model or model in SIZES)


def candidates_of(model: str | None, weights: str | None) -> tuple[Candidate, ...]:
    """The backbones that `--model` and `--weights` name, in their order; one where neither names several.

    Args:
        model: a name, names separated by commas, or one of `SIZES`.
        weights: one for all, or one each, separated by commas.

    Raises:
        UserError: an empty name, the same twice, another number of weights, or weights for a list that has its own.
    """
    models = [part.strip() for part in (model or "").split(",")]
    if not names_several(model):
        if weights is not None and "," in weights and not Path(weights).expanduser().exists():
            raise UserError(
                f"--weights names {len(weights.split(','))} weights ({weights}) for one --model; name one model for "
                f"each, separated by commas, or one file."
            )
        return (Candidate(model, weights),)
    if "" in models:
        raise UserError(f"--model {model!r} has an empty name; separate names by single commas, such as a,b.")
    sizes = [name for name in models if name in SIZES]
    if sizes and weights is not None:
        raise UserError(
            f"--weights {weights} cannot be given with --model {sizes[0]}, whose networks come with their own; leave "
            f"--weights out, or name the models."
        )
    each = _one_each(models, weights)
    found = [
        candidate
        for name, of_name in zip(models, each, strict=True)
        for candidate in (
            [Candidate(m, None, listed=True) for m in SIZES[name]] if name in SIZES else [Candidate(name, of_name)]
        )
    ]
    for number, candidate in enumerate(found):
        if _network(candidate) in map(_network, found[:number]):
            raise UserError(
                f"--model {model} has {candidate.model} twice with the same weights; name it once, or give each its "
                f"own --weights, separated by commas."
            )
    return tuple(found)


def labels_of(candidates: Sequence[Candidate]) -> list[str]:
    """A name for each of several candidates: the model's, with the weights' where it is there more than once."""
    models = [candidate.model or "" for candidate in candidates]
    labels = [
        name if models.count(name) == 1 else f"{name} ({PurePath(candidate.weights or 'default').name})"
        for name, candidate in zip(models, candidates, strict=True)
    ]
    return [
        label if labels.count(label) == 1 else f"{models[number]} ({candidate.weights})"
        for number, (label, candidate) in enumerate(zip(labels, candidates, strict=True))
    ]


def _network(candidate: Candidate) -> tuple[str | None, str]:
    return candidate.model, candidate.weights or "default"


def _one_each(models: Sequence[str], weights: str | None) -> list[str | None]:
    if weights is None or "," not in weights or Path(weights).expanduser().exists():
        return [weights] * len(models)
    parts = [part.strip() for part in weights.split(",")]
    if len(parts) != len(models) or "" in parts:
        raise UserError(
            f"--weights {weights} names {sum(map(bool, parts))} weights for {len(models)} models; give one for all, or "
            f"one each in the order of --model ({','.join(models)})."
        )
    return list(parts)
