"""A fine-tuned network as plain arrays, for another process to build it again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from delta_tune.models.architectures import build_architecture
from delta_tune.models.backbones import Backbone, load_state


def state_arrays(network: nn.Module) -> dict[str, np.ndarray]:
    """The network's state by the names of its parameters and buffers."""
    return {name: value.detach().cpu().numpy() for name, value in network.state_dict().items()}


def rebuild(backbone: Backbone, state: Mapping[str, np.ndarray], device: torch.device) -> nn.Module:
    """Build the network of this backbone whose `state_arrays` these are, in eval mode."""
    return build_network(backbone, {name: torch.from_numpy(np.array(value)) for name, value in state.items()}, device)


def build_network(backbone: Backbone, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> nn.Module:
    """Build the network of this backbone with these weights, in eval mode."""
    classes = len(tensors[f"{backbone.head}.weight"])
    size, channels = backbone.preprocessing.image_size, backbone.preprocessing.channels
    network = build_architecture(backbone.model, backbone.head, classes, channels=channels, image_size=size)
    load_state(network, tensors)
    return network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
