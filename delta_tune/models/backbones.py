"""Load pretrained networks of torchvision and timm as plain arrays; build the source and the target from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from delta_tune.config import LAYER_CHOICES, UserError, did_you_mean, parse_layers
from delta_tune.data.images import Preprocessing
from delta_tune.models.architectures import build_architecture, build_unfilled, size_keyword
from delta_tune.models.feature_maps import head_function
from delta_tune.models.forward_check import check_forward, head_fault
from delta_tune.models.hooked_layers import NetworkLayers, find_layers
from delta_tune.models.input_channels import adapt_network, adapt_preprocessing, channels_note
from delta_tune.models.input_size import build_for_size, size_fault, size_note
from delta_tune.models.map_layout import CHANNELS_FIRST, MapLayout
from delta_tune.models.normalisation import normalises_images
from delta_tune.models.pretrained_weights import (
    DEMO_MODEL,
    check_image_size,
    fit_weights,
    is_embedding,
    preprocessing_for,
    read_weights,
)
from delta_tune.models.weight_formats import resized_note


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Backbone:
    """A pretrained network, as plain arrays: pickled without torch objects."""

    model: str
    """`NAME` of torchvision.models or `timm:NAME`."""
    weights: str
    """`default`, `demo`, a file or a folder, as the user gave it."""
    preprocessing: Preprocessing
    state: dict[str, npt.NDArray[Any]]
    """The state dict without the head's tensors; arrays may be read-only."""
    head: str
    """Module path of the Linear or 1×1 Conv2d that computes the logits."""
    layers: tuple[str, ...]
    """The hooked layers derived from the architecture, in execution order."""
    channels: dict[str, int]
    """Channels of every layer that may be hooked, by module path in execution order."""
    fingerprint: str
    """Hexadecimal digest of the model's name and the state."""
    notes: tuple[str, ...] = ()
    """Sentences for the user on how the weights were read."""
    head_fault: str = ""
    """Why no classifier can be fitted to the network's features: its head cannot be cut out. Empty if it can."""
    source_head: dict[str, npt.NDArray[Any]] | None = None
    """The state dict of the network's own head; None if the weights bring none of the architecture's classes."""
    prefers_adamw: bool = False
    """Whether such networks are fine-tuned with AdamW: they have layer norms and no batch norms."""
    layouts: dict[str, MapLayout] = field(default_factory=dict)
    """Layouts of the outputs of these layers; one that is missing returns (B, C, H, W)."""

    @property
    def input_shape(self) -> dict[str, int]:
        """Side and channels of the input, as keywords."""
        return {"image_size": self.preprocessing.image_size, "channels": self.preprocessing.channels}

    def layouts_of(self, layers: Iterable[str]) -> dict[str, MapLayout]:
        """Layer → how its output is laid out."""
        return {layer: self.layouts.get(layer, CHANNELS_FIRST) for layer in layers}

    def part_names(self, layers: Iterable[str]) -> tuple[str, ...]:
        """Names of the maps that these layers' outputs consist of, see `MapLayout`."""
        return tuple(name for layer, layout in self.layouts_of(layers).items() for name in layout.part_names(layer))

    @property
    def built_size(self) -> int | None:
        """The image size that the network is built for; None if it takes any."""
        return self.preprocessing.image_size if size_keyword(self.model) else None

    @property
    def source_head_fault(self) -> str:
        """Why the network's own head cannot be trained along, in a sentence; empty if it can."""
        if self.source_head is not None:
            return self.head_fault
        return (
            f"The weights {self.weights} bring no classifier that fits {self.model}, and Co-Tuning trains the source's "
            "own along (attention's probe needs none); give weights that have it."
        )

    @property
    def source_head_digest(self) -> str:
        """Hexadecimal digest of the network's own head, which the fingerprint does not contain."""
        return weights_digest(self.head, self.source_head or {})


def load_backbone(model: str | None, weights: str | None, image_size: int | None, channels: int = 3) -> Backbone:
    """Load a pretrained network for transfer.

    Args:
        model: `NAME` of torchvision.models or `timm:NAME`; None is the demo's tf_efficientnet_lite0.
        weights: default (the library's own), demo, a local .pth, .pt or .safetensors file, or a folder of the Hugging
            Face Hub with one; None is demo without a model, else default.
        image_size: side of the square input in pixels; None is the weights' own. Position embeddings are resized to it.
        channels: of the input; weights for RGB are adapted, those for so many channels taken as they are.

    Raises:
        UserError: the model is unknown, its weights are unavailable or do not fit, it has no layers to hook, or the
            image size is too small, or one that its patches do not divide.
    """
    if weights is None:
        weights = "demo" if model is None else "default"
    model = DEMO_MODEL if model is None else model
    check_image_size(image_size)
    module = build_for_size(model, image_size)
    preprocessing = preprocessing_for(model, weights, module, image_size)
    side = preprocessing.image_size
    anatomy = _layers(module, model, side)
    module, notes, has_head = _with_weights(module, anatomy.head, model, weights, channels, side)
    if image_size is None and (note := size_note(model, module, side)):
        notes.append(note)
    if channels != 3:
        preprocessing = adapt_preprocessing(preprocessing, model, channels)
        notes.append(channels_note(channels))
    own_head = {k: v.numpy() for k, v in module.get_submodule(anatomy.head).state_dict().items()}
    check_forward(module, model, anatomy.head, preprocessing, anatomy.stride)
    state = {k: v.numpy() for k, v in module.state_dict().items() if not k.startswith(f"{anatomy.head}.")}
    return Backbone(
        model=model,
        weights=weights,
        preprocessing=preprocessing,
        state=state,
        head=anatomy.head,
        layers=anatomy.layers,
        channels=anatomy.channels,
        layouts=anatomy.layouts,
        fingerprint=weights_digest(model, state),
        notes=tuple(notes),
        head_fault=head_fault(module, anatomy.head, preprocessing),
        source_head=own_head if has_head and not is_embedding(model, module) else None,
        prefers_adamw=normalises_images(module),
    )


def build_source(backbone: Backbone) -> nn.Module:
    """Build the frozen pretrained network in eval mode, with an Identity as its head."""
    module = build_unfilled(backbone.model, **backbone.input_shape)
    module.set_submodule(backbone.head, nn.Identity())
    _copy_state(module, backbone)
    return module.eval().requires_grad_(False)


def build_target(
    backbone: Backbone, num_classes: int, generator: torch.Generator, drop_path: float | None = None
) -> nn.Module:
    """Build the pretrained network with a new head of `num_classes` outputs, in train mode.

    The head's weights are drawn from N(0, 0.01²) by `generator`, its bias is 0. The backbone's parameters are the
    source's. The network maps float32 (B, C, S, S) to logits (B, num_classes) in train and in eval mode. `drop_path` is
    that of `build_unfilled`.

    Raises:
        UserError: the network has no branches to drop, and `drop_path` is not 0.
    """
    module = build_architecture(
        backbone.model, backbone.head, num_classes, generator, drop_path, **backbone.input_shape
    )
    _copy_state(module, backbone)
    return module.train().requires_grad_(True)


def build_source_head(backbone: Backbone, device: torch.device) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Build the network's own head, and the function from the head's inputs to the source's logits (B, C_s).

    Its parameters are trainable and the source's.

    Raises:
        UserError: the weights bring none, or it cannot be cut out.
    """
    if backbone.source_head is None:
        raise UserError(backbone.source_head_fault)
    module = build_unfilled(backbone.model, **backbone.input_shape).eval()
    _copy_state(module, backbone)
    head = module.get_submodule(backbone.head)
    load_state(head, {name: torch.from_numpy(np.array(value)) for name, value in backbone.source_head.items()})
    module.to(device)
    return head, head_function(module, backbone.head, **backbone.input_shape)


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict with exactly the module's names and shapes into it.

    Unlike `load_state_dict`, this needs no versions of the modules, which safetensors files lack and MNASNet asks for.

    Raises:
        RuntimeError: names or shapes differ.
    """
    own = module.state_dict()
    shapes, given = ({key: value.shape for key, value in each.items()} for each in (own, state))
    if strange := sorted(key for key in shapes.keys() | given.keys() if shapes.get(key) != given.get(key)):
        raise RuntimeError(f"the state dict and the network differ in {', '.join(strange[:3])}")
    for key, value in state.items():
        own[key].copy_(value)


def weights_digest(name: str, state: Mapping[str, npt.NDArray[Any]]) -> str:
    """Hexadecimal digest of a name and of arrays with their own names, in their order."""
    digest = hashlib.blake2b(name.encode(), digest_size=16)
    for key, value in state.items():
        digest.update(f"{key} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def can_be_negative(backbone: Backbone) -> bool:
    """Whether the network can return a logit below 0: a ReLU follows SqueezeNet's head."""
    network = build_target(backbone, 1, torch.Generator()).eval()
    head = network.get_submodule(backbone.head)
    image = torch.zeros(1, backbone.preprocessing.channels, *[backbone.preprocessing.image_size] * 2)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.fill_(-1.0 if name == "bias" else 0.0)
        return bool((network(image) < 0).all())


def head_inputs_shape(backbone: Backbone) -> tuple[int, int]:
    """Channels of the head's input, and at most how many positions it has: 1 if the head is a Linear."""
    head = build_unfilled(backbone.model, image_size=backbone.preprocessing.image_size).get_submodule(backbone.head)
    if isinstance(head, nn.Conv2d):
        return head.in_channels, backbone.preprocessing.image_size**2
    assert isinstance(head, nn.Linear)
    return head.in_features, 1


def resolve_layers(backbone: Backbone, layers: str | tuple[str, ...]) -> tuple[str, ...]:
    """Resolve `layers` (all, last, last_two or module names) to hooked layers in execution order.

    Raises:
        UserError: a name is not a layer with a feature map; the message has the nearest valid names.
    """
    names = parse_layers(layers)
    if isinstance(names, str):
        return {"all": backbone.layers, "last": backbone.layers[-1:], "last_two": backbone.layers[-2:]}[names]
    if not names:
        raise UserError(f"layers must be one of {', '.join(LAYER_CHOICES)}, or module names, but got none.")
    for name in names:
        if name not in backbone.channels:
            raise UserError(
                f"{name!r} is no layer of {backbone.model} with a feature map{did_you_mean(name, backbone.channels)}; "
                f"give one of {', '.join(LAYER_CHOICES)}, or module names such as {', '.join(backbone.layers)}."
            )
    return tuple(name for name in backbone.channels if name in names)


def _copy_state(module: nn.Module, backbone: Backbone) -> None:
    own = {k: v for k, v in module.state_dict().items() if not k.startswith(f"{backbone.head}.")}
    assert own.keys() == backbone.state.keys(), "the backbone was loaded with another version of its library"
    for key, value in own.items():
        value.numpy()[...] = backbone.state[key]


def _check_own_size(model: str, content: object, head: str, weights: str, image_size: int) -> None:
    """Raise UserError if the weights fit the network as its library builds it, and cannot be resized."""
    if not size_keyword(model):
        return
    usual = build_unfilled(model).eval()
    own = getattr(usual, "pretrained_cfg", {}).get("input_size", (image_size,))[-1]
    if own == image_size:
        return
    try:
        fit_weights(usual, content, head, model, weights)
    except UserError:  # they do not belong to this network at all
        return
    raise UserError(
        f"The weights {weights} are those of {own} pixels, and what depends on the image size in {model} cannot be "
        f"resized; give --image-size {own}, or another network."
    )


def _layers(module: nn.Module, model: str, image_size: int) -> NetworkLayers:
    """Head and hooked layers, at the user's image size if the network is built for it."""
    if not size_keyword(model):
        return find_layers(module, model)
    try:
        return find_layers(module, model, image_size)
    except UserError as error:
        if error.__cause__ is None:  # it runs, and is another network than can be used
            raise
        raise UserError(size_fault(model, image_size, str(error.__cause__))) from error


def _with_weights(
    module: nn.Module, head: str, model: str, weights: str, channels: int, image_size: int
) -> tuple[nn.Module, list[str], bool]:
    """The network with its weights, adapted to images of `channels` channels, sentences on them, and `fit_weights`'."""
    content = read_weights(model, weights, image_size)
    try:
        note, has_head = fit_weights(module, content, head, model, weights)
    except UserError:
        if channels == 3:
            _check_own_size(model, content, head, weights, image_size)
            raise
        fitting = build_unfilled(model, channels=channels, image_size=image_size).eval()
        with suppress(UserError):
            note, has_head = fit_weights(fitting, content, head, model, weights)
            return fitting, [note] if note else [], has_head
        raise
    own_size = getattr(module, "pretrained_cfg", {}).get("input_size", (image_size,))[-1]
    by_library = weights == "default" and own_size != image_size
    resized = resized_note(module, content, image_size, by_library) if size_keyword(model) else ""
    if channels != 3:
        module = adapt_network(module, model, channels, image_size)
    return module, [text for text in (note, resized) if text], has_head
