"""Networks pretrained on RGB for images of other channels: the first convolution is adapted, as timm does it."""

from __future__ import annotations

import dataclasses

from torch import nn

from delta_tune.config import UserError
from delta_tune.data.images import Preprocessing
from delta_tune.models.architectures import build_unfilled, constructor_options


def adapt_network(module: nn.Module, model: str, channels: int, image_size: int | None = None) -> nn.Module:
    """The network for images of `channels` channels, in eval mode, with the weights of `module`, which takes RGB.

    Of one channel, the first convolution's weights for red, green and blue are added; of others they are repeated in
    turn and scaled by 3 / channels. `image_size` is that for which the network was built, as in `build_unfilled`.

    Raises:
        UserError: the network takes RGB only.
    """
    from timm.models import adapt_input_conv  # takes seconds, which networks of torchvision for RGB need not wait for

    try:
        adapted = build_unfilled(model, channels=channels, image_size=image_size).eval()
        own, given = adapted.state_dict(), module.state_dict()
        for key, value in own.items():
            same = value.shape == given[key].shape
            value.copy_(given[key] if same else adapt_input_conv(channels, given[key]))
    except UserError:
        raise
    except Exception as error:  # constructors of timm raise different exceptions
        raise UserError(
            f"The network {model} cannot be adapted to images of {channels} channels ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}); leave --channels out, or give another --model."
        ) from error
    return adapted


def adapt_preprocessing(preprocessing: Preprocessing, model: str, channels: int) -> Preprocessing:
    """The preprocessing for images of `channels` channels: the mean of the three for one, else theirs in turn."""
    mean, std = preprocessing.mean, preprocessing.std
    if "transform_input" in constructor_options(model):  # which makes these of the usual ones, in the network for RGB
        mean = std = (0.5, 0.5, 0.5)
    if channels == 1:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    else:
        mean, std = (tuple(values[index % 3] for index in range(channels)) for values in (mean, std))
    return dataclasses.replace(preprocessing, channels=channels, mean=mean, std=std)


def channels_note(channels: int) -> str:
    """What is told of an adapted network."""
    how = "added" if channels == 1 else f"repeated in turn and scaled by 3/{channels}"
    return (
        f"The input has {channels} channel{'s' if channels > 1 else ''}: the weights of the first convolution for red, "
        f"green and blue are {how}. The operation color of augmentation trivial leaves such images as they are."
    )
