"""A state dict for the constructor of torchvision or timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torchvision.models import get_model

from delta_tune.config import UserError
from delta_tune.export.check import check_file
from delta_tune.inference.ensemble import Flipped, members_of
from delta_tune.inference.model import Model
from delta_tune.inference.model_config import built_size
from delta_tune.models.architectures import (
    build_unfilled,
    constructor_options,
    input_convolution,
    with_input_channels,
)


def check_one_network(model: Model, holder: str = "A state dict") -> None:
    """Raise UserError if the model has several networks or sees mirror images, which `holder` cannot hold."""
    flip, networks = isinstance(model.network, Flipped), len(members_of(model.network))
    if flip or networks > 1:
        what = f"{networks} networks" if networks > 1 else "a network that sees the image and its mirror image"
        raise UserError(f"{holder} cannot hold {what}; give --format onnx or torchscript.")


def write_state_dict(model: Model, file: Path) -> None:
    network = model.network.to(memory_format=torch.contiguous_format)
    torch.save(network.state_dict(), file)  # no plain dict: it has the versions of modules, which MNASNet asks for
    told = constructor_of(model)
    build = timm.create_model if told["call"] == "timm.create_model" else get_model
    rebuilt: nn.Module = build(*told["arguments"], **told["keywords"])
    if "input_convolution" in told:
        with_input_channels(rebuilt, told["input_convolution"]["module"], told["input_convolution"]["in_channels"])
    rebuilt.load_state_dict(torch.load(file, weights_only=True))
    rebuilt.eval()
    with torch.inference_mode():
        check_file(model, network, lambda images: (rebuilt(images),))


def constructor_of(model: Model) -> dict[str, Any]:
    """The call that builds the network that the state dict belongs to.

    Of torchvision's networks for other channels than RGB, the convolution `input_convolution` has then to be replaced.
    """
    name, channels, size = model.config["backbone"]["model"], model.preprocessing.channels, built_size(model.config)
    replaced = {}
    if channels != 3 and not name.startswith("timm:"):
        module = input_convolution(build_unfilled(name, image_size=size))
        replaced = {"input_convolution": {"module": module, "in_channels": channels}}
    return {
        "call": "timm.create_model" if name.startswith("timm:") else "torchvision.models.get_model",
        "arguments": [name.removeprefix("timm:")],
        "keywords": {"num_classes": len(model.classes), **constructor_options(name, channels, size)},
        **replaced,
    }
