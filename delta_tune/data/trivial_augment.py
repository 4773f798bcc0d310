"""TrivialAugment-Wide (arXiv 2103.10158) for a whole batch at once: one of 14 operations per image, on its device.

Operations, magnitudes and signs are those of torchvision's TrivialAugmentWide with its defaults. The CPU draws them, so
it knows which images an operation changes, and a GPU is not asked.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from delta_tune.data.device_copies import to_device

OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
DRAWS = 3
"""Uniform numbers per image: operation, magnitude, sign."""
_BINS = 31
_SIGNED = {"shear_x": 0.99, "shear_y": 0.99, "translate_x": 32.0, "translate_y": 32.0, "rotate": 135.0}
_SIGNED |= dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.99)  # their largest magnitude
_MAGNITUDES = {name: torch.linspace(0, largest, _BINS) for name, largest in _SIGNED.items()} | {
    "posterize": (8 - torch.arange(_BINS) / ((_BINS - 1) / 6)).round(),
    "solarize": 255 * torch.linspace(1, 0, _BINS).double(),
}


def trivial_augment(images: Tensor, draws: Tensor) -> Tensor:
    """Change each image by one operation.

    Args:
        images: uint8 (B, S, S, C).
        draws: uniform in [0, 1), (B, 3), on the CPU.

    Returns:
        uint8 (B, S, S, C).
    """
    return apply_operations(images, *draw_operations(draws))


def draw_operations(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Operations (B,), indices of `OPERATIONS`, and their magnitudes (B,), float64, from uniform numbers (B, 3).

    Magnitudes: slope of a shear, pixels of a translation, degrees of a rotation, factor − 1 of brightness, colour,
    contrast and sharpness, bits that posterize keeps, value from which solarize inverts.
    """
    operations = (draws[:, 0] * len(OPERATIONS)).long()
    table = torch.stack([_MAGNITUDES.get(name, torch.zeros(_BINS)).double() for name in OPERATIONS])
    signed = torch.tensor([name in _SIGNED for name in OPERATIONS])[operations]
    magnitudes = table[operations, (draws[:, 1] * _BINS).long()]
    return operations, torch.where(signed & (draws[:, 2] < 0.5), -magnitudes, magnitudes)


def apply_operations(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Change image i, of uint8 (B, S, S, C), by operation i at magnitude i, which are on the CPU."""
    order = operations.argsort(stable=True)
    there, back = to_device(torch.stack([order, order.argsort()]), images.device).unbind()
    pixels = images.index_select(0, there)
    operations, magnitudes = operations[order], magnitudes[order]
    for (first, last), change in _CHANGES.items():
        start, end = torch.searchsorted(operations, torch.tensor([_index(first), _index(last) + 1])).tolist()
        if start < end:
            changed = change(pixels[start:end].permute(0, 3, 1, 2), operations[start:end], magnitudes[start:end])
            pixels[start:end] = changed.permute(0, 2, 3, 1)
    return pixels.index_select(0, back)


def _index(name: str) -> int:
    return OPERATIONS.index(name)


# Those below take pixels uint8 (n, C, S, S), operations (n,) and magnitudes (n,), and return uint8 (n, C, S, S).


def _warp(pixels: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Shear, translate and rotate; (x, y) from the centre is the nearest pixel to theta · (x, y, 1), or black."""
    size = pixels.shape[-1]

    def of(name: str) -> Tensor:
        return torch.where(operations == _index(name), magnitudes, 0.0)

    angle = torch.deg2rad(of("rotate"))
    sine, cosine = angle.sin(), angle.cos()
    shear_x, shear_y = of("shear_x"), of("shear_y")
    # Shears leave the top left corner where it is
    theta_x = torch.stack([cosine, shear_x - sine, shear_x * size / 2 - of("translate_x").trunc()])
    theta_y = torch.stack([sine + shear_y, cosine, shear_y * size / 2 - of("translate_y").trunc()])
    theta = to_device((torch.stack([theta_x, theta_y], dim=2) / (size / 2)).float(), pixels.device)
    of_x, of_y, shift = theta[:, :, None, None].unbind()
    places = (torch.arange(size, device=pixels.device) - (size - 1) / 2)[:, None]
    grid = places * of_x + (places[:, None] * of_y + shift)
    return functional.grid_sample(pixels.float(), grid, mode="nearest", align_corners=False).to(torch.uint8)


def _blend(pixels: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Brightness, colour and contrast: away from, or towards, black, the grey image and its mean.

    Where channels are not RGB, the grey image is the image itself, as torchvision has it for one channel, so `color`
    changes nothing.
    """
    grey = pixels.float()
    if pixels.shape[1] != 3:
        magnitudes = torch.where(operations == _index("color"), 0.0, magnitudes)
    else:
        red, green, blue = grey.unbind(1)
        grey = (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[:, None]
    shares = torch.stack([operations == _index("color"), operations == _index("contrast")]).float()
    of_grey, of_mean = to_device(shares[:, :, None, None, None], pixels.device).unbind()
    other = of_grey * grey + of_mean * grey.mean((1, 2, 3), keepdim=True)
    kept, added = to_device(_factors(magnitudes), pixels.device).unbind()
    return torch.addcmul(pixels * kept, other, added).clamp_(0, 255).to(torch.uint8)


def _sharpen(pixels: Tensor, _: Tensor, magnitudes: Tensor) -> Tensor:
    """Away from, or towards, the image smoothed by a kernel of ones with a 5 in the middle; borders stay."""
    result = pixels.float()
    inner = result[:, :, 1:-1, 1:-1]
    smooth = ((9 * functional.avg_pool2d(result, 3, stride=1) + 4 * inner) / 13).round_()
    _, added = to_device(_factors(magnitudes), pixels.device).unbind()
    inner.addcmul_(smooth - inner, added)
    return result.clamp_(0, 255).to(torch.uint8)


def _factors(magnitudes: Tensor) -> Tensor:
    """Factors of the image and of what it is blended with, (2, n, 1, 1, 1)."""
    return torch.stack([1 + magnitudes, -magnitudes]).float()[:, :, None, None, None]


def _posterize(pixels: Tensor, _: Tensor, magnitudes: Tensor) -> Tensor:
    masks = 256 - 2 ** (8 - magnitudes)
    return pixels & to_device(masks.to(torch.uint8)[:, None, None, None], pixels.device)


def _solarize(pixels: Tensor, _: Tensor, magnitudes: Tensor) -> Tensor:
    threshold = to_device(magnitudes.float()[:, None, None, None], pixels.device)
    return torch.where(pixels >= threshold, 255 - pixels, pixels)


def _autocontrast(pixels: Tensor, _: Tensor, __: Tensor) -> Tensor:
    """Stretch each channel to 0 to 255, as torchvision does, whose own function makes a GPU wait."""
    low, high = pixels.amin((2, 3), keepdim=True).float(), pixels.amax((2, 3), keepdim=True).float()
    stretched = (pixels - low) / ((high - low) * (1 / 255))
    return torch.where(high > low, stretched, pixels).clamp_(0, 255).to(torch.uint8)


def _equalize(pixels: Tensor, _: Tensor, __: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import equalize  # takes seconds, which who only crops need not wait for

    equal: Tensor = equalize(pixels)
    return equal


_CHANGES = {
    ("shear_x", "rotate"): _warp,
    ("brightness", "contrast"): _blend,
    ("sharpness", "sharpness"): _sharpen,
    ("posterize", "posterize"): _posterize,
    ("solarize", "solarize"): _solarize,
    ("autocontrast", "autocontrast"): _autocontrast,
    ("equalize", "equalize"): _equalize,
}
"""First and last of neighbours in `OPERATIONS` → the function that applies them; identity has none."""
