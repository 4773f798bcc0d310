"""`config.json` of a model: what may stand in it, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from delta_tune.config import TaskName
from delta_tune.data.fitting import Interpolation, Resize
from delta_tune.filesystem.atomic import write_json
from delta_tune.filesystem.untrusted import Count, Number, Scalar, Share, Text, parse_json, read_json, refusing
from delta_tune.labels.one_label import ONE_LABEL
from delta_tune.labels.thresholds import HALF
from delta_tune.results.layout import CONFIG_FILE

MAX_SIDE = 4096
"""Pixels; as in `StudyConfig.image_size`."""
MAX_CHANNELS = 64
"""As in `StudyConfig.channels`."""
MAX_NETWORKS = 16


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("it is empty")
    return text


def _unlike(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a class stands twice")
    return names


Networks = Annotated[int, Field(ge=1, le=MAX_NETWORKS)]
Temperature = Annotated[float, Field(ge=0.01, le=100)]


class ModelBackbone(BaseModel):
    """Which network it is."""

    model: Text
    head: Annotated[Text, AfterValidator(_not_empty)]
    image_size: Annotated[int, Field(ge=1, le=MAX_SIDE)] | None = None


class ModelPreprocessing(BaseModel, extra="forbid"):
    """The fields of `Preprocessing`."""

    image_size: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    stored_size: Annotated[int, Field(ge=1, le=4 * MAX_SIDE)]
    mean: Annotated[list[Number], Field(min_length=1, max_length=MAX_CHANNELS)]
    std: Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1, max_length=MAX_CHANNELS)]
    interpolation: Interpolation
    resize: Resize = "crop"
    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3
    white: Annotated[float, Field(gt=0, le=1e300)] | None = None


def _larger(sizes: ModelPreprocessing) -> ModelPreprocessing:
    if not sizes.image_size <= sizes.stored_size <= 4 * sizes.image_size:
        raise ValueError(f"stored_size {sizes.stored_size} is not 1 to 4 times image_size {sizes.image_size}")
    if not len(sizes.mean) == len(sizes.std) == sizes.channels:
        raise ValueError(f"mean and std do not have {sizes.channels} numbers, as channels says")
    return sizes


class ModelUnsure(BaseModel):
    """What `confidence_threshold` found."""

    below: Share
    refused: Share
    accuracy: Share
    images: Count


class ModelConfig(BaseModel):
    """What prediction needs of `config.json`."""

    backbone: ModelBackbone
    classes: Annotated[list[Text], Field(min_length=1, max_length=50_000), AfterValidator(_unlike)]
    preprocessing: Annotated[ModelPreprocessing, AfterValidator(_larger)]
    networks: Networks = 1
    sha256: list[Text] = []
    """Of each network's file, if there are several."""
    temperature: Temperature = 1.0
    unsure: ModelUnsure | None = None
    task: TaskName = "classification"
    thresholds: list[Share] | None = None
    """Of each class, with several labels an image: from which probability on it is there."""


def _one_for_each_class(config: ModelConfig) -> ModelConfig:
    if config.thresholds is not None and len(config.thresholds) != len(config.classes):
        raise ValueError(f"thresholds: {len(config.thresholds)} for {len(config.classes)} classes")
    return config


class ModelTrial(BaseModel):
    """The configuration of a model's trial; other hyperparameters are plain values."""

    __pydantic_extra__: dict[str, Scalar]
    model_config = {"extra": "allow"}

    regularizer: Text


class NamedBackbone(BaseModel):
    """Which network it is, for people."""

    model: Text


class ToldPreprocessing(BaseModel):
    """What images were trained on, for people."""

    image_size: int
    stored_size: int
    mean: list[Number]
    std: list[Number]
    interpolation: Interpolation
    resize: Resize = "crop"
    channels: Annotated[int, Field(ge=1)] = 3
    white: Number | None = None


class StudyModelConfig(BaseModel):
    """What the model card tells of `config.json`. Whether a network can be built of it is checked when it is loaded."""

    backbone: NamedBackbone
    classes: list[Text]
    preprocessing: ToldPreprocessing
    epoch: Count | None = None
    fitted_to: Annotated[int, Field(ge=1)] | None = None
    config: ModelTrial
    metrics: dict[Text, Number]
    networks: Networks = 1
    temperature: Temperature = 1.0
    task: TaskName = "classification"
    thresholds: list[Share] | None = None


def parse_config(content: bytes) -> dict[str, Any]:
    """What prediction needs of `config.json`, which a stranger may have written.

    Raises:
        ValueError: it is damaged.
    """
    config: dict[str, Any] = parse_json(content, Annotated[ModelConfig, AfterValidator(_one_for_each_class)])
    return config


def update_model_config(best: Path, content: dict[str, Any]) -> None:
    """Add what became known of the model to its `config.json`."""
    write_json(best / CONFIG_FILE, read_config(best) | content)


def read_config(best: Path) -> dict[str, Any]:
    """`config.json` of a model that this study has written.

    Raises:
        UserError: it is damaged.
    """
    with refusing(best / CONFIG_FILE, "give the folder `best` of a finished study"):
        config: dict[str, Any] = read_json(best / CONFIG_FILE, StudyModelConfig)
        return config


def model_thresholds(config: Mapping[str, Any]) -> list[float] | None:
    """From which probability on each class is there, by `config.json`; None if an image has one class.

    It is a half where the study did not find out.
    """
    if config.get("task", ONE_LABEL.name) == ONE_LABEL.name:
        return None
    return config.get("thresholds") or [HALF] * len(config["classes"])


def built_size(config: Mapping[str, Any]) -> int | None:
    """The image size that a model's network was built for; None if it takes any, or an early version built it."""
    size: int | None = config["backbone"].get("image_size")
    return size
