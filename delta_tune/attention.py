"""Which channels matter for the target classes: DELTA's attention weights (arXiv 1901.09229), and their reliability.

`d_j` is what switching channel j off costs: the mean over probe images of CE(channel j off) − CE(intact), signed. "Off"
zeroes the output channel of the hooked module, for a convolution before its batch norm. The weights are the softmax of
z-scored d.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_tune.ablation import channel_losses
from delta_tune.config import UserError, nearest


def ablation_losses(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layers: Sequence[str],
    *,
    byte_budget: int = 2**30,
    progress: Callable[[int, int], None] | None = None,
    notes: list[str] | None = None,
) -> dict[str, Tensor]:
    """`d` of every channel: {layer: float32 (C,)}, on CPU. The mean over images of `ablation_losses_per_image`."""
    losses = ablation_losses_per_image(
        model, images, labels, layers, byte_budget=byte_budget, progress=progress, notes=notes
    )
    return {layer: each.double().mean(0).float() for layer, each in losses.items()}


def ablation_losses_per_image(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layers: Sequence[str],
    *,
    byte_budget: int = 2**30,
    progress: Callable[[int, int], None] | None = None,
    notes: list[str] | None = None,
) -> dict[str, Tensor]:
    """What switching a channel off costs each image: {layer: float32 (N, C)}, on CPU.

    Args:
        model: in eval mode, with a trained head; it is left as it was, bit for bit.
        images: float (N, 3, H, W), normalised, where the model is.
        labels: int64 (N,), in [0, K).
        layers: names of modules with output (B, C, H, W).
        byte_budget: bound on the memory that stacked variants take.
        progress: called with (done, total), in channels × images.
        notes: takes a sentence for every layer without shortcuts, and why it has none.

    Raises:
        UserError: a layer that the model does not have.
        ValueError: a model in training mode, shapes that do not fit, a layer that the forward does not reach.
    """
    _check(model, images, labels, layers)
    return channel_losses(model, images, labels, layers, byte_budget=byte_budget, progress=progress, notes=notes)


def first_order_losses(model: nn.Module, images: Tensor, labels: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """The estimate −Σ z · ∂CE/∂z of `ablation_losses`, z the layer's output: {layer: float32 (C,)}, on CPU."""
    losses = first_order_losses_per_image(model, images, labels, layers)
    return {layer: each.double().mean(0).float() for layer, each in losses.items()}


def first_order_losses_per_image(
    model: nn.Module, images: Tensor, labels: Tensor, layers: Sequence[str], *, batch_size: int = 32
) -> dict[str, Tensor]:
    """`first_order_losses` of each image: {layer: float32 (N, C)}, on CPU; one forward and one backward for all layers.

    A poor stand-in where the head is fitted well, because its gradient is then almost zero: compare before use.
    """
    _check(model, images, labels, layers)
    outputs: dict[str, Tensor] = {}
    handles = []
    losses: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    try:
        for layer in layers:

            def keep(module: nn.Module, inputs: object, output: Tensor, layer: str = layer) -> Tensor:
                outputs[layer] = output if output.requires_grad else output.detach().requires_grad_()
                return outputs[layer].clone()  # the next module may write to what it is given

            handles.append(model.get_submodule(layer).register_forward_hook(keep))
        for start in range(0, len(images), batch_size):
            block, targets = images[start : start + batch_size], labels[start : start + batch_size]
            with torch.inference_mode(False), torch.enable_grad():
                loss = F.cross_entropy(model(block), targets, reduction="sum")
                gradients = torch.autograd.grad(loss, [outputs[layer] for layer in losses])
            for layer, gradient in zip(losses, gradients, strict=True):
                product = outputs[layer].detach() * gradient
                losses[layer].append(-product.flatten(2).sum(2) if product.dim() > 2 else -product)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: torch.cat(blocks).float().cpu() for layer, blocks in losses.items()}


def attention_weights(d: Tensor, temperature: float = 5.0) -> Tensor:
    """W = softmax(z / T) of the z-scored `d` (C,), with the population's standard deviation; uniform where that is 0.

    Raises:
        ValueError: `d` is not a finite vector, or the temperature not positive.
    """
    if d.dim() != 1 or len(d) == 0 or not bool(d.isfinite().all()):
        raise ValueError(f"d must be a finite vector of channel losses, but got shape {tuple(d.shape)}: {d}")
    if not temperature > 0:
        raise ValueError(f"temperature > 0 must hold, but got {temperature}")
    centred = d.double() - d.double().mean()
    std = centred.square().mean().sqrt()
    if bool(d.min() == d.max()) or std == 0:
        return torch.full_like(d, 1 / len(d))
    return torch.softmax(centred / std / temperature, 0).to(d.dtype)


def split_half_reliability(
    losses: Tensor,
    generator: torch.Generator,
    *,
    weights: Tensor | None = None,
    images: int | None = None,
    splits: int = 16,
    temperature: float = 5.0,
) -> float:
    """How well W repeats itself: the correlation r of the W of two random halves of the images, in [-1, 1].

    Spearman–Brown corrected from half of these images to `images` of their kind (as many as these), k times as many:
    k·r / (1 + (k − 1)·r), r the mean over `splits` halvings. NaN where a half's W is uniform, so that nothing can be
    correlated.

    Args:
        losses: per image, (N, C), N ≥ 2.
        generator: draws the halves.
        weights: what each image stands for, (N,); all the same by default.
    """
    if len(losses) < 2:
        raise ValueError(f"at least 2 images are needed to split them, but got {len(losses)}")
    weighted = losses.double() if weights is None else losses.double() * weights[:, None]
    correlations = []
    for _ in range(splits):
        order = torch.randperm(len(losses), generator=generator)
        # W does not depend on the scale of d, so a sum serves as a mean
        halves = [weighted[half].sum(0) for half in (order[: len(order) // 2], order[len(order) // 2 :])]
        correlations.append(correlation(*(attention_weights(half, temperature) for half in halves)))
    r = sum(correlations) / len(correlations)
    k = (images or len(losses)) / (len(losses) / 2)
    if math.isnan(r):
        return r
    return -1.0 if 1 + (k - 1) * r <= 0 else max(-1.0, k * r / (1 + (k - 1) * r))


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of two vectors; NaN where one is constant."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else float("nan")


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of two vectors without ties; NaN where one is constant."""
    return correlation(*(each.argsort().argsort() if each.min() < each.max() else each for each in (a, b)))


def perplexity(weights: Tensor) -> float:
    """exp(entropy) of `weights` (C,) over C, in (0, 1]: the share of channels that count in effect; 1 is uniform."""
    w = weights.double()
    return float(torch.special.entr(w).sum().exp()) / len(w)


def _check(model: nn.Module, images: Tensor, labels: Tensor, layers: Sequence[str]) -> None:
    modules = dict(model.named_modules())
    for layer in layers:
        if layer not in modules or not layer:
            raise UserError(f"the model has no layer {layer!r}{nearest(layer, modules)}: name a module of the model")
    if not layers:
        raise ValueError("at least one layer must be named")
    indifferent = (nn.Linear, nn.Conv2d)  # a head put in after eval()
    training = [name for name, module in modules.items() if module.training and not isinstance(module, indifferent)]
    if training:
        name = training[0] or type(model).__name__
        raise ValueError(f"the model must be in eval mode, but {name} is in training mode: call model.eval()")
    if images.dim() != 4 or len(images) == 0 or not images.is_floating_point():
        raise ValueError(f"images must be float (N, 3, H, W) with N ≥ 1, but got {images.dtype} {tuple(images.shape)}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 ({len(images)},), but got {labels.dtype} {tuple(labels.shape)}")
