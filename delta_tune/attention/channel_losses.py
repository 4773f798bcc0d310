"""How much each channel matters for the target classes: the losses behind DELTA's attention (arXiv 1901.09229).

`d_j` is the cost of switching channel j off: the mean over probe images of CE(channel j off) − CE(intact), signed.
"Off" zeroes the hooked module's output channel, for a convolution before its batch norm. The attention weights are the
softmax of the z-scored d.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from delta_tune.attention.ablation import Ablation
from delta_tune.config import UserError, did_you_mean
from delta_tune.labels.kinds import kind_of
from delta_tune.models.feature_maps import forward_hooks
from delta_tune.models.map_layout import CHANNELS_FIRST, MapLayout


def ablation_losses(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layers: Sequence[str],
    *,
    layouts: Mapping[str, MapLayout] | None = None,
    byte_budget: int = 2**30,
    progress: Callable[[int, int], None] | None = None,
    notes: list[str] | None = None,
) -> dict[str, Tensor]:
    """`d` of every channel: {layer: float32 (C,)}, on CPU; the mean of `ablation_losses_per_image`."""
    losses = ablation_losses_per_image(
        model, images, labels, layers, layouts=layouts, byte_budget=byte_budget, progress=progress, notes=notes
    )
    return {layer: each.double().mean(0).float() for layer, each in losses.items()}


def ablation_losses_per_image(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layers: Sequence[str],
    *,
    layouts: Mapping[str, MapLayout] | None = None,
    byte_budget: int = 2**30,
    progress: Callable[[int, int], None] | None = None,
    notes: list[str] | None = None,
) -> dict[str, Tensor]:
    """Increase of each image's loss when a channel is switched off: {layer: float32 (N, C)}, on CPU.

    Args:
        model: in eval mode, with a trained head; not changed.
        images: float (N, 3, H, W), normalised, on the model's device.
        labels: int64 (N,), in [0, K); or, with several labels an image, float32 (N, K) of 0 and 1.
        layers: names of modules with output (B, C, H, W), or (B, T, C) or (B, H, W, C) where `layouts` says so.
        layouts: layer → where its channels are; those that are not named have theirs first.
        byte_budget: bound on the memory of stacked variants.
        progress: called with (done, total), in channels × images.
        notes: called with a sentence for each layer without shortcuts, and why.

    Raises:
        UserError: the model does not have a layer.
        ValueError: the model is in training mode, shapes do not match, or the forward pass does not reach a layer.
    """
    _check(model, images, labels, layers)
    ablation = Ablation(model, images[:2], layers, layouts)
    if notes is not None:
        notes += ablation.notes
    total, done = sum(ablation.channels.values()) * len(images), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return ablation.losses(images, labels, layers, byte_budget, advance)


def first_order_losses(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layers: Sequence[str],
    *,
    layouts: Mapping[str, MapLayout] | None = None,
) -> dict[str, Tensor]:
    """First-order estimate −Σ z · ∂CE/∂z of `ablation_losses`, z the layer's output: {layer: float32 (C,)}, on CPU."""
    losses = first_order_losses_per_image(model, images, labels, layers, layouts=layouts)
    return {layer: each.double().mean(0).float() for layer, each in losses.items()}


def first_order_losses_per_image(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layers: Sequence[str],
    *,
    layouts: Mapping[str, MapLayout] | None = None,
    batch_size: int = 32,
) -> dict[str, Tensor]:
    """`first_order_losses` per image: {layer: float32 (N, C)}, on CPU; one forward and backward pass for all layers.

    A poor estimate if the head is fitted well, because its gradient is then almost zero: compare before use.
    """
    _check(model, images, labels, layers)
    outputs: dict[str, Tensor] = {}
    losses: dict[str, list[Tensor]] = {layer: [] for layer in layers}

    def keep(layer: str, inputs: object, output: Tensor) -> Tensor:
        outputs[layer] = output if output.requires_grad else output.detach().requires_grad_()
        return outputs[layer].clone()  # the next module may write to its input

    with forward_hooks(model, layers, keep):
        for start in range(0, len(images), batch_size):
            block, targets = images[start : start + batch_size], labels[start : start + batch_size]
            with torch.inference_mode(False), torch.enable_grad():
                loss = kind_of(targets).loss(model(block), targets, "sum")
                gradients = torch.autograd.grad(loss, [outputs[layer] for layer in losses])
            for layer, gradient in zip(losses, gradients, strict=True):
                product = outputs[layer].detach() * gradient
                layout = (layouts or {}).get(layer, CHANNELS_FIRST)
                losses[layer].append(-layout.sum_positions(product) if product.dim() > 2 else -product)
    return {layer: torch.cat(blocks).float().cpu() for layer, blocks in losses.items()}


def _check(model: nn.Module, images: Tensor, labels: Tensor, layers: Sequence[str]) -> None:
    modules = dict(model.named_modules())
    for layer in layers:
        if layer not in modules or not layer:
            raise UserError(
                f"the model has no layer {layer!r}{did_you_mean(layer, modules)}: name a module of the model"
            )
    if not layers:
        raise ValueError("at least one layer must be named")
    indifferent = (nn.Linear, nn.Conv2d)  # a head replaced after eval()
    training = [name for name, module in modules.items() if module.training and not isinstance(module, indifferent)]
    if training:
        name = training[0] or type(model).__name__
        raise ValueError(f"the model must be in eval mode, but {name} is in training mode: call model.eval()")
    if images.dim() != 4 or len(images) == 0 or not images.is_floating_point():
        raise ValueError(f"images must be float (N, 3, H, W) with N ≥ 1, but got {images.dtype} {tuple(images.shape)}")
    several = labels.dim() == 2 and labels.dtype == torch.float32
    if labels.shape[:1] != images.shape[:1] or not (several or (labels.dim() == 1 and labels.dtype == torch.int64)):
        raise ValueError(
            f"labels must be int64 ({len(images)},), or float32 ({len(images)}, K), but got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
