"""The model's network as timm or torchvision builds it: constructor and weights, the temperature in the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from delta_tune.config import UserError
from delta_tune.export.state_dict import check_one_network
from delta_tune.export.twins import copy_weights, in_timm, in_torchvision
from delta_tune.inference.model import Model
from delta_tune.inference.model_config import built_size
from delta_tune.models.architectures import constructor_options

Library = Literal["timm", "torchvision"]


@dataclass(frozen=True, kw_only=True)
class LibraryNetwork:
    """A network that a library's own constructor builds.

    Attributes:
        name: of the architecture in the library.
        keywords: for its constructor, besides the number of classes.
        state: its weights, contiguous; its logits are already divided by the model's temperature.
    """

    name: str
    keywords: dict[str, Any]
    state: dict[str, Tensor]


def library_network(model: Model, library: Library, format_name: str) -> LibraryNetwork:
    """The model's network in a library, its own or the one that has the same network under another name.

    Args:
        model: of one network.
        library: that is to build it.
        format_name: of the format, for messages.

    Raises:
        UserError: the model has several networks or sees mirror images, the library does not have its network, or is
            torchvision and the images are not RGB.
    """
    check_one_network(model, f"A folder for {format_name}")
    named, channels = model.config["backbone"]["model"], model.preprocessing.channels
    if library == "torchvision" and channels != 3:
        raise UserError(
            f"torchvision's constructors build networks for RGB, and the model's images have {channels} channels; give "
            "--format timm, onnx, torchscript or state_dict."
        )
    state = _calibrated_state(model)
    name = named.removeprefix("timm:")
    if named.startswith("timm:") == (library == "timm"):
        architecture = name.partition(".")[0] if library == "timm" else name
        options = constructor_options(named, channels, built_size(model.config))
        return LibraryNetwork(name=architecture, keywords=options, state=state)
    twin, keywords = _twin(name, library, format_name)
    size = built_size(model.config) or model.preprocessing.image_size
    keywords = keywords | constructor_options(f"timm:{twin}" if library == "timm" else twin, channels, size)
    network = build(library, twin, len(model.classes), keywords)
    try:
        copy_weights(state, network)
    except ValueError as error:
        raise _no_twin(name, library, format_name) from error
    return LibraryNetwork(name=twin, keywords=keywords, state=_contiguous(network))


def build(library: Library, name: str, num_classes: int, keywords: dict[str, Any]) -> nn.Module:
    """The network that the library's constructor builds, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        constructor = timm.create_model if library == "timm" else get_model
        network: nn.Module = constructor(name, num_classes=num_classes, **keywords)
    return network.eval()


def _twin(name: str, library: Library, format_name: str) -> tuple[str, dict[str, Any]]:
    if library == "timm":
        found = in_timm(name)
    else:
        twin = in_torchvision(name)
        found = None if twin is None else (twin, {})
    if found is None:
        raise _no_twin(name, library, format_name)
    return found


def _no_twin(name: str, library: Library, format_name: str) -> UserError:
    own, formats = ("torchvision", "torchvision") if library == "timm" else ("timm", "timm, hf")
    return UserError(
        f"{library} has no network with the same layers as {own}'s {name}, so the model cannot be exported to "
        f"{format_name}; give --format {formats}, onnx, torchscript or state_dict."
    )


def _calibrated_state(model: Model) -> dict[str, Tensor]:
    """The weights, those of the linear head divided by the temperature: that divides the logits."""
    state = _contiguous(model.network)
    for name in ("weight", "bias"):
        state[f"{model.config['backbone']['head']}.{name}"] /= model.temperature
    return state


def _contiguous(network: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }
