"""The regularization terms of the loss: pure functions of tensors (arXiv 1901.09229, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_tune.training.fused_behavior import fused_behavior, usable

CONTRAST_TEMPERATURE = 0.07
"""Of the softmax over cosine similarities, as in Bi-Tuning (arXiv 2011.06182)."""


def head_l2(head: nn.Module) -> Tensor:
    """½(‖W‖² + ‖b‖²) of the new head, bias included; a float32 scalar."""
    return _HalfSquares.apply(*head.parameters())  # type: ignore[no-any-return]


def weight_l2_sp(parameters: Iterable[Tensor], source: Iterable[Tensor]) -> Tensor:
    """½‖w − w*‖² over pairs of backbone parameters of equal shapes (L2-SP, arXiv 1802.01483, eq. 2)."""
    return _HalfSquares.apply(*torch._foreach_sub(list(parameters), list(source)))  # type: ignore[no-any-return]


WEIGHT_PENALTIES: dict[str, Callable[[Iterable[Tensor], Iterable[Tensor]], Tensor]] = {"weight_l2_sp": weight_l2_sp}
"""Penalty (`Method.penalty`) → its function of the backbone's parameters and their start values."""


def supervised_contrast(features: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss of a batch (Khosla et al. 2020, arXiv 2004.11362, eq. 2: L_out, one view an image).

    With z the normalised features and P(i) the other images of i's class, the mean over images i with P(i) not empty of
    −1/|P(i)| Σ_{p ∈ P(i)} log(exp(z_i·z_p/τ) / Σ_{a ≠ i} exp(z_i·z_a/τ)).

    Args:
        features: (B, D), or (B, D, h, w), whose positions are averaged.
        labels: (B,) classes.

    Returns:
        A float32 scalar; 0 if no two images are of one class.
    """
    with torch.autocast(features.device.type, enabled=False):  # similarities in half precision would be too coarse
        z = F.normalize(features.float().flatten(2).mean(2) if features.ndim > 2 else features.float())
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        positive = (labels[:, None] == labels) & ~itself
        log_shares = (z @ z.T / CONTRAST_TEMPERATURE).masked_fill(itself, -torch.inf).log_softmax(1)
        counts = positive.sum(1)
        losses = -log_shares.masked_fill(~positive, 0.0).sum(1) / counts.clamp(min=1)
        return losses.sum() / (counts > 0).sum().clamp(min=1)


def channel_factors(weights: Tensor, mean_square: float | None) -> Tensor:
    """The factor of each channel's squared distance in one layer's behaviour term.

    Args:
        weights: attention W of the layer, (C,), sums to 1.
        mean_square: mean of FM_s² over images, channels and positions for the `relative` scale; None for `raw`.

    Returns:
        (C,): C · W_j, divided by C · mean_square if given. A map that is zero everywhere has factor 0: a relative error
        is undefined there.
    """
    channels = len(weights)
    if mean_square is None:
        return weights * channels
    if mean_square == 0:
        return torch.zeros_like(weights)
    return weights / mean_square


def behavior(
    target_maps: Mapping[str, Tensor], source_maps: Mapping[str, Tensor], factors: Mapping[str, Tensor]
) -> Tensor:
    """½ · mean over images of Σ_layers Σ_channels factor_lj · ‖FM_t[j] − FM_s[j]‖² / (H·W), eq. 4 and 6.

    Args:
        target_maps: layer, or part of one, → (B, C, H, W), with gradient.
        source_maps: the frozen source's, of the same shapes.
        factors: the same names → (C,), see `channel_factors`; its keys are the maps used.

    Returns:
        A float32 scalar: a mean per image, so that alpha has the same meaning at every batch size (the reference sums).
    """
    terms = [target_maps[x] for x in factors], [source_maps[x] for x in factors], list(factors.values())
    return fused_behavior(*terms) if usable(*terms, _plain_behavior) else _plain_behavior(*terms)


def _plain_behavior(targets: Sequence[Tensor], sources: Sequence[Tensor], factors: Sequence[Tensor]) -> Tensor:
    total = torch.zeros((), device=factors[0].device)
    for target, source, factor in zip(targets, sources, factors, strict=True):
        per_image = target.shape[0] * target.shape[2] * target.shape[3]
        total = total + _WeightedSquaredDistance.apply(target, source, factor) / per_image
    return 0.5 * total


class _WeightedSquaredDistance(torch.autograd.Function):
    """Σ_j factor_j ‖t_j − s_j‖² in float32: only the difference is saved as a map-sized tensor."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, target: Tensor, source: Tensor, factor: Tensor) -> Tensor:
        difference = target.float() - source.float()
        ctx.save_for_backward(difference, factor)
        return (
            difference.square().sum((0, 2, 3)) * factor
        ).sum()  # no matmul: autocast would compute it in half precision

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        difference, factor = ctx.saved_tensors  # type: ignore[attr-defined]
        return difference * (2 * grads[0] * factor).view(1, -1, 1, 1), None, None


class _HalfSquares(torch.autograd.Function):
    """½ Σ ‖t‖² in float32, whose gradient is one foreach product instead of some operators a tensor."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        if tensors[0].device.type == "cpu":  # foreach would round its sums otherwise
            return 0.5 * torch.stack([t.float().square().sum() for t in tensors]).sum()
        return 0.5 * torch.stack(torch._foreach_norm(tensors)).float().square().sum()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, ...]:
        return torch._foreach_mul(ctx.saved_tensors, grads[0])  # type: ignore[attr-defined]
