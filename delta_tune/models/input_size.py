"""Networks that are built for one image size: which sizes they take, and what a size costs."""

from __future__ import annotations

import torch
from torch import nn

from delta_tune.config import UserError
from delta_tune.models.architectures import build_unfilled, size_keyword

FORWARD_ERRORS = (RuntimeError, ValueError, AssertionError)
"""What networks raise at images of a size that they do not take."""
_BUILD_ERRORS = (*FORWARD_ERRORS, TypeError, IndexError, ZeroDivisionError)
_STEP = 32  # networks with windows or several scales take multiples of it
_MOST_TRIED = 8
_USUAL_SIZE = 224
_MUCH_LARGER = 2.0  # as many patches as at the usual size, from which on the plan tells


def build_for_size(model: str, image_size: int | None, channels: int = 3) -> nn.Module:
    """Build the architecture, as `build_unfilled`, in eval mode and for the user's image size.

    Raises:
        UserError: as `build_unfilled`, or its patches or windows do not divide the size; the message has the nearest
            sizes that they do.
    """
    if image_size is None or not size_keyword(model):
        return build_unfilled(model, channels=channels).eval()
    try:
        module = build_unfilled(model, channels=channels, image_size=image_size).eval()
    except UserError:
        raise
    except _BUILD_ERRORS as error:
        _check_patches(model, image_size, patch_size(build_unfilled(model, channels=channels)))
        raise UserError(size_fault(model, image_size, str(error), channels)) from error
    _check_patches(model, image_size, patch_size(module))
    return module


def _check_patches(model: str, image_size: int, patch: int) -> None:
    if image_size % patch:
        raise UserError(
            f"The model {model} cuts images into patches of {patch} × {patch} pixels, which do not divide "
            f"{image_size}; give --image-size {_or(_multiples(image_size, patch)[:2])}."
        )


def patch_size(module: nn.Module) -> int:
    """Side in pixels of the patches that a network cuts its images into; 1 if it does not say."""
    found = getattr(module, "patch_size", None) or getattr(getattr(module, "patch_embed", None), "patch_size", 1)
    if isinstance(found, tuple | list):
        found = found[0]
    return found if isinstance(found, int) and found > 0 else 1


def size_fault(model: str, image_size: int, reason: str, channels: int = 3) -> str:
    """Why the network does not run on images of this size, with the nearest sizes on which it does."""
    tried = _multiples(image_size, _STEP)
    below = next((size for size in tried if size < image_size and _runs(model, size, channels)), None)
    above = next((size for size in tried if size > image_size and _runs(model, size, channels)), None)
    usable = [size for size in (below, above) if size is not None]
    advice = f"give --image-size {_or(usable)}" if usable else "leave --image-size out"
    first = next(iter(reason.strip().splitlines()), "it fails")
    return f"The model {model} does not run on images of {image_size} pixels ({first}); {advice}."


def size_note(model: str, module: nn.Module, image_size: int) -> str:
    """What a large image size costs a network that cuts images into patches; empty if it is a usual one."""
    patch = patch_size(module)
    patches, usual = (image_size // patch) ** 2, (_USUAL_SIZE // patch) ** 2
    if patch == 1 or not size_keyword(model) or patches < _MUCH_LARGER * usual:
        return ""
    smaller = _multiples(_USUAL_SIZE, patch)[0]
    return (
        f"An image of {image_size} pixels has {patches} patches, {patches / (smaller // patch) ** 2:.1f} times as many "
        f"as with --image-size {smaller}, and takes at least so many times as long."
    )


def _multiples(size: int, step: int) -> list[int]:
    """Multiples of `step` by their distance from `size`."""
    middle = size // step
    near = range(max(1, middle - _MOST_TRIED), middle + _MOST_TRIED + 1)
    return sorted((number * step for number in near), key=lambda each: (abs(each - size), each))


def _or(sizes: list[int]) -> str:
    return " or ".join(map(str, sorted(sizes)))


def _runs(model: str, size: int, channels: int) -> bool:
    try:
        module = build_unfilled(model, channels=channels, image_size=size).eval()
        with torch.no_grad():
            module(torch.zeros(1, channels, size, size))
    except _BUILD_ERRORS:
        return False
    return True
