"""What a study is about, as `study.json` has it: data, networks, search space. A resumed study must have the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class BackboneIdentity:
    """One of the networks that a study's trials choose from.

    Attributes:
        label: its name in the study: what `config.backbone` of its trials says.
        model: as of `Backbone`.
        weights: as of `Backbone`; local files may have moved since.
        fingerprints: as of `StudyIdentity`, of this network and of the data as it is read for it.
    """

    label: str
    model: str
    weights: str
    fingerprints: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class StudyIdentity:
    """What a study is about; it can be resumed only if data, weights and search space are the same.

    Attributes:
        fingerprints: of the data, the weights, and the source's own head where trials train it along.
        backbone: the model's name.
        images: split → number of images.
        backbones: the networks that trials choose from, if there are several; empty for one.
        space: source code of the search space.
        distributions: hyperparameter → its distribution, as Optuna writes it in JSON.
        layers: the hooked layers in words, of networks whose channels are those of tokens; empty for others.
    """

    fingerprints: dict[str, str]
    backbone: str
    images: dict[str, int]
    space: str
    distributions: dict[str, Any]
    backbones: tuple[BackboneIdentity, ...] = ()
    layers: str = ""
