"""The folder `best/`, written and read: the final model's weights, and in `config.json` all that prediction needs."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
from pyarrow import fs
from pydantic import AfterValidator, BaseModel, Field
from torch import Tensor, nn

from delta_tune.config import TaskName, UserError
from delta_tune.data.fitting import Interpolation, Resize
from delta_tune.filesystem.atomic import atomic_write, write_json
from delta_tune.filesystem.untrusted import (
    JSON_BYTES,
    Count,
    Number,
    Scalar,
    Share,
    Text,
    parse_json,
    read_json,
    refusing,
)
from delta_tune.filesystem.uris import open_filesystem, read_regular
from delta_tune.inference.ensemble import combine
from delta_tune.labels.kinds import LabelKind, kind_named
from delta_tune.labels.one_label import ONE_LABEL
from delta_tune.labels.thresholds import HALF
from delta_tune.models.architectures import build_architecture
from delta_tune.models.backbones import Backbone, load_state
from delta_tune.models.forward_check import check_output
from delta_tune.results.layout import (
    BEST,
    CONFIG_FILE,
    HEAT_MAPS_FILE,
    PICTURES_FILE,
    PREDICTIONS_FILE,
    weights_file,
)

MAX_SIDE = 4096
"""Pixels; as in `StudyConfig.image_size`."""
MAX_CHANNELS = 64
"""As in `StudyConfig.channels`."""
HEADER_BYTES = 16 * 2**20
"""At most, of a safetensors file without its tensors."""
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, MemoryError, safetensors.SafetensorError)
"""What a damaged folder raises."""
MAX_NETWORKS = 16
MEASURED = ("networks", "sha256", "temperature", "unsure", "thresholds")
"""Keys of `config.json` that hold for these very weights and change what `predict` answers."""


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


def save_model(
    backbone: Backbone,
    classes: Sequence[str],
    weights: Sequence[Path],
    origin: Mapping[str, Any],
    best: Path,
    kind: LabelKind = ONE_LABEL,
) -> None:
    """Write a folder of weights and all that another program needs to predict with them.

    Predictions and maps of another model beside it are removed. The folder can be read at every moment: while weights
    are replaced, `config.json` tells of one network without a temperature, the former model's first one or the new
    model's. Who read it before, or has a copy of a part, sees by the sums of the files that they are not of one model.

    Args:
        backbone: of the networks.
        classes: in the order of their outputs.
        weights: 1 to 16 safetensors files, whose networks' probabilities are averaged.
        origin: where they come from: trial, epoch, config, metrics; `temperature`, `unsure` and `thresholds`, if they
            are known.
        best: the folder.
        kind: of the labels that they predict.

    Raises:
        FileNotFoundError: a file of weights is missing.
    """
    assert 1 <= len(weights) <= MAX_NETWORKS
    for file in (PREDICTIONS_FILE, PICTURES_FILE, HEAT_MAPS_FILE):
        (best.parent / file).unlink(missing_ok=True)
    best.mkdir(exist_ok=True)
    names = [weights_file(number) for number in range(1, len(weights) + 1)]
    with ExitStack() as writing:
        partials = [writing.enter_context(atomic_write(best / name)) for name in names]
        for partial, file in zip(partials, weights, strict=True):
            shutil.copyfile(file, partial)
        sums = [_sha256(partial) for partial in partials] if len(partials) > 1 else []
        _forget_measured(best)  # all is copied; at the block's end the copies get their names
    for number in range(len(names) + 1, MAX_NETWORKS + 1):
        (best / weights_file(number)).unlink(missing_ok=True)
    write_json(
        best / CONFIG_FILE,
        {
            **origin,
            **({"networks": len(sums), "sha256": sums} if sums else {}),
            "backbone": {
                **{"model": backbone.model, "head": backbone.head, "fingerprint": backbone.fingerprint},
                **({} if backbone.built_size is None else {"image_size": backbone.built_size}),
            },
            **({"task": kind.name} if kind is not ONE_LABEL else {}),
            "classes": list(classes),
            "preprocessing": dataclasses.asdict(backbone.preprocessing),
        },
    )


def _forget_measured(best: Path) -> None:
    """Let `config.json` tell of the model's first network alone, for whatever weights it has."""
    try:
        told = read_json(best / CONFIG_FILE, dict[str, Any])
    except (OSError, ValueError):  # none yet, or a damaged one, which is not read before it is replaced
        return
    if told.keys() & set(MEASURED):
        write_json(best / CONFIG_FILE, {key: value for key, value in told.items() if key not in MEASURED})


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


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


def read_model(folder: str | Path) -> tuple[dict[str, Any], nn.Module]:
    """`config.json` and the network of a study's `best` folder (or of the study's own), in eval mode.

    Several networks are an `Ensemble`.

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
        while True:
            content = _read(filesystem, f"{root}/{CONFIG_FILE}", JSON_BYTES)
            try:
                config = parse_json(content, Annotated[ModelConfig, AfterValidator(_one_for_each_class)])
                return config, _read_networks(filesystem, root, config)
            except UNREADABLE:
                if _read(filesystem, f"{root}/{CONFIG_FILE}", JSON_BYTES) == content:
                    raise
                # A better model has taken its place meanwhile
    except UNREADABLE as error:
        cause = f"{str(error) or type(error).__name__:.300}".splitlines()[0]
        raise UserError(
            f"There is no model in {folder} ({cause}); give the folder `best` of a finished study."
        ) from error


def _read_networks(filesystem: fs.FileSystem, root: str, config: dict[str, Any]) -> nn.Module:
    backbone, classes, networks = config["backbone"], len(config["classes"]), []
    size, channels = config["preprocessing"]["image_size"], config["preprocessing"].get("channels", 3)
    for number, expected in enumerate(_sums(config), 1):
        name = weights_file(number)
        network = build_architecture(
            backbone["model"], backbone["head"], classes, channels=channels, image_size=built_size(config)
        ).eval()
        most = sum(value.nbytes for value in network.state_dict().values()) + HEADER_BYTES
        content = _read(filesystem, f"{root}/{name}", most)
        if expected is not None and hashlib.sha256(content).hexdigest() != expected:
            raise ValueError(f"{name} is not the one that {CONFIG_FILE} tells of")
        _load(network, name, safetensors.torch.load(content))
        check_output(network, classes, size, channels)
        networks.append(network)
    return combine(networks, kind_named(config.get("task", ONE_LABEL.name)))


def built_size(config: Mapping[str, Any]) -> int | None:
    """The image size that a model's network was built for; None if it takes any, or an early version built it."""
    size: int | None = config["backbone"].get("image_size")
    return size


def _sums(config: dict[str, Any]) -> list[str | None]:
    """The SHA-256 that the file of each network must have; that of a single one is not known."""
    networks = config.get("networks", 1)
    if networks == 1:
        return [None]
    sums: list[str | None] = config.get("sha256", [])
    if len(sums) != networks:
        raise ValueError(f"sha256: it has {len(sums)} sums for {networks} networks")
    return sums


def _read(filesystem: fs.FileSystem, path: str, limit: int) -> bytes:
    content = read_regular(filesystem, path, limit)
    if content is None:
        raise FileNotFoundError(f"{path} is missing")
    return content


def _load(network: nn.Module, file: str, state: Mapping[str, Tensor]) -> None:
    """Load weights of a file into a network, whose own tensors they must be alike.

    Raises:
        ValueError: a tensor is missing, unknown, of another type or shape, or not finite.
    """
    own = network.state_dict()
    if different := sorted(own.keys() ^ state.keys()):
        raise ValueError(f"{file} does not fit {CONFIG_FILE}: {len(different)} tensors such as {different[0]}")
    for name, value in state.items():
        if (value.dtype, value.shape) != (own[name].dtype, own[name].shape):
            raise ValueError(
                f"{name} in {file} is {value.dtype} {tuple(value.shape)} instead of {own[name].dtype} "
                f"{tuple(own[name].shape)}"
            )
        if not value.isfinite().all():
            raise ValueError(f"{name} in {file} is not finite")
    load_state(network, state)
