"""The folder `best/`, written and read: the final model's weights, and in `config.json` all that prediction needs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from delta_tune.config import UserError
from delta_tune.filesystem.atomic import atomic_write, write_json
from delta_tune.filesystem.uris import open_filesystem
from delta_tune.models.backbones import Backbone
from delta_tune.results.layout import BEST, CONFIG_FILE, PICTURES_FILE, PREDICTIONS_FILE, WEIGHTS_FILE


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
    """`config.json` of a model that this study has written."""
    config: dict[str, Any] = json.loads((best / CONFIG_FILE).read_text())
    return config


def read_model(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`config.json` and the weights of a study's `best` folder (or of the study's own).

    Args:
        folder: here, or at an address such as s3://bucket/results/photos.

    Raises:
        UserError: there is no model there.
    """
    filesystem, root = open_filesystem(folder, "load")
    root = root.rstrip("/")
    try:
        if filesystem.get_file_info(f"{root}/{BEST}/{CONFIG_FILE}").is_file:
            root = f"{root}/{BEST}"
        content = {}
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            with filesystem.open_input_stream(f"{root}/{name}") as stream:
                content[name] = stream.read()
        return json.loads(content[CONFIG_FILE]), safetensors.torch.load(content[WEIGHTS_FILE])
    except (OSError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"There is no model in {folder} ({error}); give the folder `best` of a finished study."
        ) from error
