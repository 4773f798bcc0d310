"""The folder `best/`, written and read: the final model's weights beside their `config.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors.torch
from pyarrow import fs
from torch import Tensor, nn

from delta_tune.config import UserError
from delta_tune.filesystem.atomic import atomic_write, write_json
from delta_tune.filesystem.untrusted import JSON_BYTES, read_json
from delta_tune.filesystem.uris import open_filesystem, read_regular
from delta_tune.inference.ensemble import combine
from delta_tune.inference.model_config import MAX_NETWORKS, built_size, parse_config
from delta_tune.labels.kinds import LabelKind, kind_named
from delta_tune.labels.one_label import ONE_LABEL
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

HEADER_BYTES = 16 * 2**20
"""At most, of a safetensors file without its tensors."""
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, MemoryError, safetensors.SafetensorError)
"""What a damaged folder raises."""
MEASURED = ("networks", "sha256", "temperature", "unsure", "thresholds")
"""Keys of `config.json` that hold for these very weights and change what `predict` answers."""


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
                config = parse_config(content)
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
