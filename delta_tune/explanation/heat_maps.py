"""Heat maps of an image for a class: LayerCAM (Jiang et al. 2021, doi 10.1109/TIP.2021.3089943), computed by captum."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from delta_tune.config import UserError
from delta_tune.inference.ensemble import Flipped, members_of
from delta_tune.labels.kinds import LabelKind
from delta_tune.models.hooked_layers import MapLayer

HeatMap = npt.NDArray[np.float32]
"""(S, S) in [0, 1]: 0 where nothing speaks for the class, 1 where most does; all 0 if nothing does anywhere."""
BATCH_SIZE = 16
"""Images of a forward pass that keeps what its gradient needs."""


def can_draw() -> bool:
    """Whether the package that computes heat maps is installed."""
    return importlib.util.find_spec("captum") is not None


def check_package() -> None:
    """Raise UserError if the package that computes heat maps is missing."""
    if not can_draw():
        raise UserError('--explain needs the package captum; install it with pip install "delta-tune[explain]".')


def heat_maps(
    network: nn.Module, layer: MapLayer, images: Tensor, classes: Sequence[int], kind: LabelKind
) -> npt.NDArray[np.float32]:
    """Where in each image the network finds evidence for a class.

    Of one network it is Σ_k relu(A_k · ∂y/∂A_k), with A_k the maps of a layer and y the logit of the class: LayerCAM,
    whose relu(∂y/∂A_k) · A_k it is where maps are not negative, and with an equal meaning where they may be. Of a layer
    that returns tokens, k is the embedding dimension and each token of the image is a place; class tokens have none and
    are left out. Of several networks, and of an image and its mirror image, it is the mean of their maps, each weighted
    by its share of the class's mean probability. It is enlarged to the input (bilinear) and divided by its highest
    value.

    Args:
        network: what `combine` returns, in eval mode; neither hooks nor gradients stay behind.
        layer: of each network, what `heat_map_layer` returns.
        images: normalised, (N, C, S, S), on the network's device.
        classes: number of the class of each image, (N,).
        kind: of the labels that the network predicts.

    Returns:
        A `HeatMap` for each image, (N, S, S).
    """
    parts = [slice(start, start + BATCH_SIZE) for start in range(0, len(images), BATCH_SIZE)]
    maps = [_heat_maps(network, layer, images[part], list(classes[part]), kind) for part in parts]
    return np.concatenate(maps) if maps else np.zeros((0, *images.shape[2:]), dtype=np.float32)


def _heat_maps(
    network: nn.Module, layer: MapLayer, images: Tensor, classes: list[int], kind: LabelKind
) -> npt.NDArray[np.float32]:
    from captum.attr import LayerGradientXActivation

    members = members_of(network)
    views = [images, images.flip(3)] if isinstance(network, Flipped) else [images]
    seen = [(member, view, view is not images) for member in members for view in views]
    maps: list[Tensor] = []
    for member, view, is_mirrored in seen:
        method = LayerGradientXActivation(member, member.get_submodule(layer.name))
        products = layer.layout.squares(method.attribute(view, target=classes).detach())
        assert products is not None, "heat_map_layer returns a layer of squares"
        found = products.relu().sum(1, keepdim=True)
        maps.append(found.flip(3) if is_mirrored else found)
    shares = 1.0 if len(maps) == 1 else _shares(seen, classes, kind)
    mean = (torch.stack(maps) * shares).sum(0)
    enlarged = functional.interpolate(mean, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    highest = enlarged.amax((1, 2), keepdim=True)
    scaled = torch.where(highest > 0, enlarged / highest, 0.0)
    array: npt.NDArray[np.float32] = scaled.float().cpu().numpy()
    return array


def _shares(seen: Sequence[tuple[nn.Module, Tensor, bool]], classes: list[int], kind: LabelKind) -> Tensor:
    """The share of each network and view in the class's mean probability: (M, N, 1, 1, 1), their sum over M is 1."""
    wanted = torch.tensor(classes)
    with torch.no_grad():
        of_class = [
            kind.probabilities(member(view).double())[torch.arange(len(view)), wanted.to(view.device)]
            for member, view, _ in seen
        ]
    probabilities = torch.stack(of_class)
    total = probabilities.sum(0)
    shares = torch.where(total > 0, probabilities / total, 1 / len(seen))
    return shares.float()[:, :, None, None, None]
