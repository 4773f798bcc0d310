"""Measurements on the frozen source before any trial: head inputs, mean squares of maps, the probe head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from delta_tune.data.batches import evaluation_batches, filled
from delta_tune.data.dataset import Split
from delta_tune.labels.kinds import Labels, kind_of
from delta_tune.models.backbones import Backbone, build_source, build_target
from delta_tune.models.devices import torch_threads
from delta_tune.models.feature_maps import feature_maps, head_function, head_inputs
from delta_tune.models.map_layout import named_parts

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Candidate penalties of the probe head, chosen on held-out images. Each fit begins where the one before ended."""


SourcePass = tuple[np.ndarray, dict[str, list[float]]]
"""The head's inputs, float32 (N, D) or (N, C, h, w); part of a layer → for each batch its mean of FM_s² times its
images."""


class FittedHead(NamedTuple):
    """A linear classifier on the source's features."""

    state: dict[str, np.ndarray]
    """Its parameters by name."""
    logits: np.ndarray
    """Float32 (N, K), of the images that it was fitted to."""


def measure_features(
    backbone: Backbone, split: Split, layers: Sequence[str], device: torch.device, part: range | None = None
) -> SourcePass:
    """Run the source once over the un-augmented images of a split, or of a part of it."""
    source = build_source(backbone).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    features: list[np.ndarray] = []
    layouts = backbone.layouts_of(layers)
    sums: dict[str, list[float]] = {name: [] for name in backbone.part_names(layers)}
    indices = np.arange(len(split)) if part is None else np.array(part)
    with torch.inference_mode(), feature_maps(source, layers) as maps:
        for images in evaluation_batches(split, backbone.preprocessing, device, indices):
            count = len(images)
            found = head_inputs(source, backbone.head, filled(images, len(indices)))
            features.append(found[:count].float().cpu().numpy())
            with torch_threads(1):
                for name, each in named_parts(maps, layouts).items():
                    sums[name].append(each[:count].float().square().mean().item() * count)
    return np.concatenate(features), sums


def join_passes(passes: Sequence[SourcePass]) -> tuple[np.ndarray, dict[str, float]]:
    """Join the parts of a split, in order.

    Returns:
        The head's inputs of all images, and for each part of a layer the mean of FM_s² over images, channels and
        positions (for the `relative` behaviour scale).
    """
    features = np.concatenate([each for each, _ in passes])
    totals = dict.fromkeys(passes[0][1], 0.0)
    for _, sums in passes:
        for name, of_batches in sums.items():
            for value in of_batches:  # one by one: sum() rounds otherwise from Python 3.12 on
                totals[name] += value
    return features, {name: total / len(features) for name, total in totals.items()}


def fit_probe_head(
    backbone: Backbone, features: np.ndarray, labels: Labels, num_classes: int, seed: int, device: torch.device
) -> FittedHead:
    """Train a head on the source's features by L-BFGS (attention step 1).

    The head's L2 penalty is chosen on a held-out fifth of the images, drawn with the seed: the smallest down to which
    their loss falls.
    """
    model = build_target(backbone, num_classes, torch.Generator().manual_seed(seed)).eval().to(device)
    model.requires_grad_(False)
    head = model.get_submodule(backbone.head)
    logits = head_function(model, backbone.head, **backbone.input_shape)
    x, y = torch.tensor(features, device=device), torch.tensor(labels, device=device)
    kind = kind_of(labels)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y))).to(device)
    held_out, rest = order[: len(y) // 5], order[len(y) // 5 :]

    def held_out_loss(penalty: float) -> float:
        fit_head(head, logits, x[rest], y[rest], penalty)
        with torch.no_grad():
            return kind.loss(logits(x[held_out]), y[held_out]).item()

    with torch_threads(1):  # one thread: the result must not depend on the number of cores
        chosen, least = PENALTIES[2], math.inf
        for penalty in PENALTIES if len(held_out) else ():
            if (loss := held_out_loss(penalty)) >= least:
                break
            chosen, least = penalty, loss
        fit_head(head, logits, x, y, chosen)
        with torch.no_grad():
            fitted = logits(x).float().cpu().numpy()
    state = {name: value.cpu().numpy() for name, value in head.state_dict().items()}
    return FittedHead(state=state, logits=fitted)


def fit_head(
    head: nn.Module,
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    penalty: float,
    weights: Tensor | None = None,
) -> None:
    """Minimise the mean loss plus ½ penalty ‖parameters of `head`‖² by L-BFGS, from where they are.

    Args:
        head: what is fitted; frozen afterwards.
        logits: from inputs to logits (N, K), by means of `head`.
        x: inputs of N images.
        y: their labels.
        penalty: ≥ 0.
        weights: (N,) of the images, ≥ 0; None weights all alike.
    """
    head.requires_grad_(True)
    parameters, kind = list(head.parameters()), kind_of(y)
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe")

    def mean_loss() -> Tensor:
        if weights is None:
            return kind.loss(logits(x), y)
        return (weights * kind.losses(logits(x), y)).sum() / weights.sum()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = mean_loss() + penalty / 2 * torch.stack([p.square().sum() for p in parameters]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    head.requires_grad_(False)
