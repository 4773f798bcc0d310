"""Run a network once, before any work starts: does it take the images, the new head, and what does it answer."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from delta_tune.config import UserError
from delta_tune.data.images import Preprocessing
from delta_tune.models.architectures import replace_head, size_keyword
from delta_tune.models.feature_maps import head_function
from delta_tune.models.hooked_layers import first_line
from delta_tune.models.input_size import FORWARD_ERRORS, size_fault
from delta_tune.models.trace import STANDARD_SIZE


def check_output(network: nn.Module, num_classes: int, image_size: int, channels: int = 3) -> None:
    """Run a network once.

    Raises:
        ValueError: it does not run on images of this size, or does not return one finite logit per class.
    """
    try:
        with torch.inference_mode():
            logits = network(torch.zeros(1, channels, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"its network does not run on images of {image_size} pixels: {reason}") from error
    if logits.shape != (1, num_classes) or not logits.isfinite().all():
        raise ValueError(f"its network does not return {num_classes} finite numbers for an image")


def check_forward(module: nn.Module, model: str, head: str, preprocessing: Preprocessing, stride: int) -> None:
    """Run a network once at the user's image size with a new head, so that trials cannot fail on either.

    Args:
        module: in eval mode; it gets a head of two outputs.
        model: its name, for messages.
        head: module path of its head.
        preprocessing: gives image size and channels.
        stride: of its last feature map, in pixels.

    Raises:
        UserError: it does not run at that size, has no head that can be replaced, or computes NaN or Inf.
    """
    image_size, channels = preprocessing.image_size, preprocessing.channels
    if image_size < stride:
        raise UserError(
            f"An image size of {image_size} pixels leaves nothing of the last feature map of {model}, which has stride "
            f"{stride}; give --image-size {stride} or more."
        )
    old = module.get_submodule(head)
    replace_head(module, head, 2, torch.Generator().manual_seed(0))
    try:
        logits = _run(module, image_size, channels)
    except FORWARD_ERRORS:
        module.set_submodule(head, old)
        _check_image_size(module, model, image_size, channels)
        logits = None  # only the new head does not fit
    if logits is None or logits.shape != (1, 2):
        module.set_submodule(head, old)
        raise UserError(_several_heads(module, model, old))
    if not logits.isfinite().all():
        raise UserError(
            f"The model {model} with these weights computes NaN or Inf for an image of {image_size} pixels, although "
            "each weight is finite; give undamaged weights."
        )


def head_fault(module: nn.Module, head: str, preprocessing: Preprocessing) -> str:
    """Why no classifier can be fitted to the network's features; empty if one can."""
    try:
        head_function(module, head, image_size=preprocessing.image_size, channels=preprocessing.channels)
    except UserError as error:
        return str(error)
    return ""


def _run(module: nn.Module, image_size: int, channels: int) -> Tensor:
    with torch.no_grad():
        image = torch.randn(1, channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
        logits: Tensor = module(image)
    return logits


def _check_image_size(module: nn.Module, model: str, image_size: int, channels: int) -> None:
    try:
        _run(module, image_size, channels)
    except FORWARD_ERRORS as error:
        if size_keyword(model):
            raise UserError(size_fault(model, image_size, str(error), channels)) from error
        usable = STANDARD_SIZE
        larger = (image_size // 32 + 1) * 32  # networks with windows or several scales take multiples of 32
        with suppress(*FORWARD_ERRORS):
            _run(module, larger, channels)
            usable = larger
        raise UserError(
            f"The model {model} does not run on images of {image_size} pixels ({first_line(error)}); "
            f"give another --image-size, such as {usable}."
        ) from error


def _several_heads(module: nn.Module, model: str, head: nn.Module) -> str:
    """Why a head with another number of outputs does not fit the network."""
    outputs = next(head.parameters()).shape[0]
    heads = [
        path
        for path, part in module.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d) and next(part.parameters()).shape[0] == outputs
    ]
    of = f"from {len(heads)} layers ({', '.join(heads[:4])})" if len(heads) > 1 else "by more than its last layer"
    return (
        f"The model {model} computes its logits {of}, so its head cannot be replaced; name a network with one head, "
        "such as resnet50."
    )
