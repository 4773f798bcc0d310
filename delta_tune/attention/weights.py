"""Turn channel losses into attention weights, and measure their reliability."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_weights(d: Tensor, temperature: float = 5.0) -> Tensor:
    """W = softmax(z / T) of the z-scored `d` (C,), with the population standard deviation; uniform if that is 0.

    Raises:
        ValueError: `d` is not a finite vector, or the temperature is not positive.
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
    """Reliability of W: the correlation r between the W of two random halves of the images, in [-1, 1].

    Spearman–Brown corrected from half of these images to `images` images (default: as many as given), k times as many:
    k·r / (1 + (k − 1)·r), with r the mean over `splits` halvings. NaN if the W of a half is uniform.

    Args:
        losses: per image, (N, C), N ≥ 2.
        generator: draws the halves.
        weights: weight of each image, (N,); equal by default.
    """
    if len(losses) < 2:
        raise ValueError(f"at least 2 images are needed to split them, but got {len(losses)}")
    weighted = losses.double() if weights is None else losses.double() * weights[:, None]
    correlations = []
    for _ in range(splits):
        order = torch.randperm(len(losses), generator=generator)
        # W does not depend on the scale of d, so a sum works like a mean
        halves = [weighted[half].sum(0) for half in (order[: len(order) // 2], order[len(order) // 2 :])]
        correlations.append(correlation(*(attention_weights(half, temperature) for half in halves)))
    r = sum(correlations) / len(correlations)
    k = (images or len(losses)) / (len(losses) / 2)
    if math.isnan(r):
        return r
    return -1.0 if 1 + (k - 1) * r <= 0 else max(-1.0, k * r / (1 + (k - 1) * r))


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of two vectors; NaN if one is constant."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else float("nan")


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman correlation of two vectors without ties; NaN if one is constant."""
    return correlation(*(each.argsort().argsort() if each.min() < each.max() else each for each in (a, b)))


def perplexity(weights: Tensor) -> float:
    """exp(entropy) of `weights` (C,) divided by C, in (0, 1]: the effective share of channels; 1 means uniform."""
    w = weights.double()
    return float(torch.special.entr(w).sum().exp()) / len(w)
