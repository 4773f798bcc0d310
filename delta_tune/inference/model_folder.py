"""The folder `best/`, written and read: the final model's weights, and in `config.json` all that prediction needs."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
from pyarrow import fs
from pydantic import AfterValidator, BaseModel, Field
from torch import Tensor, nn

from delta_tune.config import UserError
from delta_tune.data.images import Interpolation
from delta_tune.filesystem.atomic import atomic_write, write_json
from delta_tune.filesystem.untrusted import JSON_BYTES, Count, Number, Scalar, Text, parse_json, read_json, refusing
from delta_tune.filesystem.uris import open_filesystem, read_regular
from delta_tune.models.backbones import Backbone, build_architecture, check_output, load_state
from delta_tune.results.layout import BEST, CONFIG_FILE, PICTURES_FILE, PREDICTIONS_FILE, WEIGHTS_FILE

MAX_SIDE = 4096
"""Pixels; as in `StudyConfig.image_size`."""
HEADER_BYTES = 16 * 2**20
"""At most, of a safetensors file without its tensors."""


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("it is empty")
    return text


def _unlike(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a class stands twice")
    return names


class ModelBackbone(BaseModel):
    """Which network it is."""

    model: Text
    head: Annotated[Text, AfterValidator(_not_empty)]


class ModelPreprocessing(BaseModel, extra="forbid"):
    """The fields of `Preprocessing`."""

    image_size: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    stored_size: Annotated[int, Field(ge=1, le=4 * MAX_SIDE)]
    mean: Annotated[list[Number], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=3, max_length=3)]
    interpolation: Interpolation


def _larger(sizes: ModelPreprocessing) -> ModelPreprocessing:
    if not sizes.image_size <= sizes.stored_size <= 4 * sizes.image_size:
        raise ValueError(f"stored_size {sizes.stored_size} is not 1 to 4 times image_size {sizes.image_size}")
    return sizes


class ModelConfig(BaseModel):
    """What prediction needs of `config.json`."""

    backbone: ModelBackbone
    classes: Annotated[list[Text], Field(min_length=1, max_length=50_000), AfterValidator(_unlike)]
    preprocessing: Annotated[ModelPreprocessing, AfterValidator(_larger)]


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


class StudyModelConfig(BaseModel):
    """What the model card tells of `config.json`. Whether a network can be built of it is checked when it is loaded."""

    backbone: NamedBackbone
    classes: list[Text]
    preprocessing: ToldPreprocessing
    epoch: Count | None = None
    config: ModelTrial
    metrics: dict[Text, Number]


def save_model(
    backbone: Backbone, classes: Sequence[str], weights: Path, origin: Mapping[str, Any], best: Path
) -> None:
    """Write a folder of weights and all that another program needs to predict with them.

    Predictions and maps of another model beside it are removed.

    Args:
        backbone: of the network.
        classes: in the order of its outputs.
        weights: a safetensors file.
        origin: where they come from: trial, epoch, config, metrics.
        best: the folder.
    """
    for file in (PREDICTIONS_FILE, PICTURES_FILE):
        (best.parent / file).unlink(missing_ok=True)
    best.mkdir(exist_ok=True)
    with atomic_write(best / WEIGHTS_FILE) as partial:
        shutil.copyfile(weights, partial)
    write_json(
        best / CONFIG_FILE,
        {
            **origin,
            "backbone": {"model": backbone.model, "head": backbone.head, "fingerprint": backbone.fingerprint},
            "classes": list(classes),
            "preprocessing": dataclasses.asdict(backbone.preprocessing),
        },
    )


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


def read_model(folder: str | Path) -> tuple[dict[str, Any], nn.Module]:
    """`config.json` and the network of a study's `best` folder (or of the study's own), in eval mode.

    Args:
        folder: here, or at an address such as s3://bucket/results/photos.

    Raises:
        UserError: there is no model there, or it is damaged.
    """
    filesystem, root = open_filesystem(folder, "load")
    root = root.rstrip("/")
    try:
        if filesystem.get_file_info(f"{root}/{BEST}/{CONFIG_FILE}").is_file:
            root = f"{root}/{BEST}"
        config = parse_json(_read(filesystem, f"{root}/{CONFIG_FILE}", JSON_BYTES), ModelConfig)
        backbone, classes = config["backbone"], len(config["classes"])
        network = build_architecture(backbone["model"], backbone["head"], classes).eval()
        own = network.state_dict()
        most = sum(value.nbytes for value in own.values()) + HEADER_BYTES
        _load(network, own, safetensors.torch.load(_read(filesystem, f"{root}/{WEIGHTS_FILE}", most)))
        check_output(network, classes, config["preprocessing"]["image_size"])
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError, safetensors.SafetensorError) as error:
        cause = f"{str(error) or type(error).__name__:.300}".splitlines()[0]
        raise UserError(
            f"There is no model in {folder} ({cause}); give the folder `best` of a finished study."
        ) from error
    return config, network


def _read(filesystem: fs.FileSystem, path: str, limit: int) -> bytes:
    content = read_regular(filesystem, path, limit)
    if content is None:
        raise FileNotFoundError(f"{path} is missing")
    return content


def _load(network: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Load weights into a network, whose own tensors they must be alike.

    Raises:
        ValueError: a tensor is missing, unknown, of another type or shape, or not finite.
    """
    if different := sorted(own.keys() ^ state.keys()):
        raise ValueError(f"{WEIGHTS_FILE} does not fit {CONFIG_FILE}: {len(different)} tensors such as {different[0]}")
    for name, value in state.items():
        if (value.dtype, value.shape) != (own[name].dtype, own[name].shape):
            raise ValueError(
                f"{name} in {WEIGHTS_FILE} is {value.dtype} {tuple(value.shape)} instead of {own[name].dtype} "
                f"{tuple(own[name].shape)}"
            )
        if not value.isfinite().all():
            raise ValueError(f"{name} in {WEIGHTS_FILE} is not finite")
    load_state(network, state)
